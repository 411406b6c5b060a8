//! Finds special tokens in rendered prompts, and keeps them from being found in what users say.
//!
//! A chat template writes special tokens and message contents into one string, in which nothing tells `<|im_end|>` from
//! the template and `<|im_end|>` from a user. So contents are guarded before they are rendered: a [`GUARD`] goes inside
//! each special token's text, where it survives trimming, and comes out again when the prompt is encoded.

use std::borrow::Cow;
use std::collections::HashMap;

/// Put after the first character of a special token's text to say that it is not one. A noncharacter: text that is
/// meant for exchange does not contain it, and text that does has it doubled, so that nothing is lost.
const GUARD: char = '\u{fdd0}';

/// The special tokens of one vocabulary.
#[derive(Debug, Default)]
pub(super) struct Specials {
    ids: HashMap<String, u32>,
    /// Lengths in bytes that occur, longest first.
    lengths: Vec<usize>,
    /// First bytes that occur, ascending.
    first_bytes: Vec<u8>,
}

/// A part of a prompt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Text without special tokens; guards not yet removed.
    Text(&'a str),
    /// A special token.
    Special(u32),
}

impl Specials {
    pub(super) fn new(tokens: impl Iterator<Item = (String, u32)>) -> Self {
        // A single character has no inside for a guard, so it never counts.
        let ids: HashMap<String, u32> =
            tokens.filter(|(text, _)| text.chars().nth(1).is_some() && !text.contains(GUARD)).collect();
        let mut lengths: Vec<usize> = ids.keys().map(String::len).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        let mut first_bytes: Vec<u8> = ids.keys().map(|text| text.as_bytes()[0]).collect();
        first_bytes.sort_unstable();
        first_bytes.dedup();
        Specials { ids, lengths, first_bytes }
    }

    /// Splits a prompt at its special tokens: leftmost first, longest of those that start together.
    pub(super) fn split<'a>(&self, prompt: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut rest = prompt;
        while let Some((start, length, id)) = self.find(rest) {
            if start > 0 {
                pieces.push(Piece::Text(&rest[..start]));
            }
            pieces.push(Piece::Special(id));
            rest = &rest[start + length..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest));
        }
        pieces
    }

    /// Start, length and id of the first special token.
    fn find(&self, text: &str) -> Option<(usize, usize, u32)> {
        text.bytes().enumerate().find_map(|(start, byte)| {
            let (length, id) = self.starting(byte, text, start)?;
            Some((start, length, id))
        })
    }

    /// Length and id of the longest special token that starts at `start`, where `byte` is.
    fn starting(&self, byte: u8, text: &str, start: usize) -> Option<(usize, u32)> {
        self.first_bytes.binary_search(&byte).ok()?;
        self.lengths
            .iter()
            .find_map(|&length| Some((length, *self.ids.get(text.get(start..start + length)?)?)))
    }

    /// The same text, none of which [`Specials::split`] takes for a special token. [`unguard`] undoes it.
    pub(super) fn guard<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.find(text).is_none() && !text.contains(GUARD) {
            return Cow::Borrowed(text);
        }
        let mut guarded = String::with_capacity(text.len() + 16);
        for (start, character) in text.char_indices() {
            guarded.push(character);
            // At every start, not only at those `split` would take: a guard may break the token that hid another.
            let starts = self.starting(text.as_bytes()[start], text, start).is_some();
            if starts || character == GUARD {
                guarded.push(GUARD);
            }
        }
        Cow::Owned(guarded)
    }
}

/// Takes guards out: a single one goes, a doubled one becomes one.
pub(super) fn unguard(text: &str) -> Cow<'_, str> {
    if !text.contains(GUARD) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != GUARD || characters.next_if_eq(&GUARD).is_some() {
            plain.push(character);
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn specials() -> Specials {
        let texts = ["<|end|>", "<|end", "</s>", "[INST]", "y"];
        Specials::new(texts.iter().enumerate().map(|(id, text)| (text.to_string(), id as u32)))
    }

    #[test]
    fn the_longest_special_that_starts_first_is_taken() {
        let pieces = specials().split("x<|end|><|end|</s>y");
        let expected =
            [Piece::Text("x"), Piece::Special(0), Piece::Special(1), Piece::Text("|"), Piece::Special(2)];
        assert_eq!(pieces[..5], expected);
        assert_eq!(pieces[5..], [Piece::Text("y")]);
    }

    #[test]
    fn plain_text_is_not_copied() {
        assert!(matches!(specials().guard("no tokens of it"), Cow::Borrowed(_)));
        assert!(matches!(unguard("no guards"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn guarded_text_has_no_special_token_and_comes_back_whole(
            parts in prop::collection::vec(prop::sample::select(vec![
                "<|end|>", "<|end", "</s>", "[INST]", "b", "<", "|", "é", ">", "\u{fdd0}", "end|>", " ",
            ]), 0..12),
        ) {
            let specials = Specials::new(
                ["<|end|>", "<|end", "</s>", "[INST]", "é<", "|end"].iter().enumerate().map(|(id, text)| (text.to_string(), id as u32)),
            );
            let text = parts.concat();
            let guarded = specials.guard(&text);
            prop_assert!(specials.find(&guarded).is_none(), "{:?}", guarded);
            prop_assert_eq!(unguard(&guarded), text.as_str());
        }
    }
}
