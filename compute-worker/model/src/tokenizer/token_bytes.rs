//! The bytes that each token stands for.

use tokenizers::models::bpe::Vocab;

use super::TokenizerError;
use super::json::Added;

/// Highest token id accepted, plus one: far past any vocabulary, so that a hostile id cannot make a huge table.
const MAX_VOCABULARY: usize = 1 << 24;

/// How the text of a vocabulary entry encodes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// GPT-2's: each byte is one printable character.
    ByteLevel,
    /// SentencePiece's: `▁` is a space, and `<0x0A>` is one byte.
    SentencePiece,
}

/// Bytes of all tokens, end to end in one buffer.
#[derive(Debug)]
pub(super) struct TokenBytes {
    data: Vec<u8>,
    /// Where token `id` ends in `data`; it starts where `id - 1` ends.
    ends: Vec<u32>,
    /// Ids that are no token, in ascending order: some vocabularies have holes.
    holes: Vec<u32>,
}

impl TokenBytes {
    /// The bytes of every token of a vocabulary; what is said of an added token counts.
    pub(super) fn new(vocab: &Vocab, added: &[Added], alphabet: Alphabet) -> Result<Self, TokenizerError> {
        let normal = vocab.iter().map(|(text, &id)| (id, text.as_str(), None));
        let added = added.iter().map(|added| (added.id, added.token.content.as_str(), Some(&added.token)));
        let mut entries: Vec<_> = added.chain(normal).collect();
        entries.sort_unstable_by_key(|&(id, text, added)| (id, text, added.is_none()));
        let vocabulary = entries.last().map_or(0, |&(id, ..)| id as usize + 1);
        if vocabulary > MAX_VOCABULARY {
            return Err(TokenizerError::VocabularyTooLarge { vocabulary, max: MAX_VOCABULARY });
        }
        let mut table =
            TokenBytes { data: Vec::new(), ends: Vec::with_capacity(vocabulary), holes: Vec::new() };
        let mut before = None;
        for (id, text, added) in entries {
            match before.replace((id, text)) {
                // An added token that the vocabulary has too.
                Some(same) if same == (id, text) => continue,
                Some((other, first)) if other == id => {
                    let (first, second) = (first.to_owned(), text.to_owned());
                    return Err(TokenizerError::DuplicateId { id, first, second });
                }
                _ => {}
            }
            while table.ends.len() < id as usize {
                table.holes.push(table.ends.len() as u32);
                table.close();
            }
            match added {
                Some(token) if token.special => {}
                Some(_) => table.data.extend_from_slice(text.as_bytes()),
                None => alphabet.decode(text, &mut table.data),
            }
            table.close();
        }
        Ok(table)
    }

    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let end = *self.ends.get(id as usize)? as usize;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before as usize] as usize);
        if self.holes.binary_search(&id).is_ok() { None } else { Some(&self.data[start..end]) }
    }

    /// One more than the highest id.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    fn close(&mut self) {
        self.ends.push(u32::try_from(self.data.len()).unwrap_or(u32::MAX));
    }
}

impl Alphabet {
    fn decode(self, text: &str, out: &mut Vec<u8>) {
        match self {
            Alphabet::ByteLevel => {
                for character in text.chars() {
                    match byte_of(character) {
                        Some(byte) => out.push(byte),
                        None => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
            Alphabet::SentencePiece => match fallback_byte(text) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(text.replace('▁', " ").as_bytes()),
            },
        }
    }
}

/// The byte that `<0xAB>` names.
fn fallback_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Whether a byte is its own character in GPT-2's alphabet.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The byte that a character of GPT-2's alphabet stands for: printable Latin-1 is itself, and the 68 others are
/// U+0100 onwards in the order of their values.
fn byte_of(character: char) -> Option<u8> {
    const OTHERS: [u8; 68] = {
        let mut others = [0; 68];
        let (mut byte, mut found) = (0, 0);
        while byte < 256 {
            if !is_printable(byte as u8) {
                others[found] = byte as u8;
                found += 1;
            }
            byte += 1;
        }
        others
    };
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => OTHERS.get(code as usize - 0x100).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_covers_each_byte_once() {
        let mut bytes: Vec<u8> = (0..0x180).filter_map(char::from_u32).filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(
            (byte_of('Ġ'), byte_of('Ċ'), byte_of('A'), byte_of(' ')),
            (Some(b' '), Some(b'\n'), Some(b'A'), None)
        );
    }

    #[test]
    fn byte_tokens_are_bytes_and_lookalikes_are_text() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        for text in ["<0x0A", "<0x1>", "<0x100>", "<0x+1>x", "0x0A"] {
            assert_eq!(fallback_byte(text), None, "{text}");
        }
    }
}
