//! Turns the bytes of tokens into text as they come: whole characters only, and nothing of a stop string.
//!
//! Two things make text wait. A token may end in the middle of a character, and text may be the beginning of a stop
//! string. Both are held back until what follows decides. What comes out does not depend on how the bytes were cut:
//!
//! ```text
//! text   = from_utf8_lossy(all bytes)
//! output = text up to the stop string that is complete first; of two that end together, the longer
//! ```

use std::str::from_utf8;

/// What one push made certain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emitted {
    /// Text that can be shown: whole characters, none of which belongs to a stop string.
    pub text: String,
    /// Index of the stop string that was met. The stream is over, and all text emitted ends just before it.
    pub stopped: Option<usize>,
}

/// Incremental UTF-8 decoding and stop strings. Bytes that are not UTF-8 become U+FFFD, as in
/// [`String::from_utf8_lossy`].
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    stops: Vec<String>,
    /// Up to three bytes of a character that is not complete.
    partial: Vec<u8>,
    /// Decoded text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl TextStream {
    /// A stream that ends before the first of these strings. Empty strings never match.
    pub fn new(stops: Vec<String>) -> Self {
        TextStream { stops, ..TextStream::default() }
    }

    /// Adds the bytes of one token. After a stop, does nothing.
    pub fn push(&mut self, bytes: &[u8]) -> Emitted {
        if self.stopped {
            return Emitted::default();
        }
        self.partial.extend_from_slice(bytes);
        self.decode();
        self.emit()
    }

    /// The rest, when no more tokens come: text held back, and U+FFFD for a character that was never completed.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        if !self.partial.is_empty() {
            self.partial.clear();
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        let mut text = self.emit().text;
        if !self.stopped {
            text.push_str(&self.held);
        }
        self.held.clear();
        self.stopped = true;
        text
    }

    /// Moves whole characters from `partial` to `held`.
    fn decode(&mut self) {
        let mut rest = self.partial.as_slice();
        loop {
            match from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.held.push_str(from_utf8(valid).unwrap_or_default());
                    rest = after;
                    // `None` says that the bytes end inside a character that may yet be completed.
                    let Some(length) = error.error_len() else { break };
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[length..];
                }
            }
        }
        let kept = rest.len();
        self.partial.drain(..self.partial.len() - kept);
    }

    /// Takes from `held` what is certain.
    fn emit(&mut self) -> Emitted {
        if let Some((index, start)) = self.first_stop() {
            self.stopped = true;
            self.held.truncate(start);
            self.partial.clear();
            return Emitted { text: std::mem::take(&mut self.held), stopped: Some(index) };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Emitted { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// Index and start of the stop string that ends first; of those that end there, the one that starts first.
    fn first_stop(&self) -> Option<(usize, usize)> {
        let found = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = found
            .filter_map(|(index, stop)| self.held.find(stop).map(|start| (start + stop.len(), start, index)));
        found.min().map(|(_, start, index)| (index, start))
    }
}

/// Length of the longest end of `text` with which `stop` begins, without being whole.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    let fits = |&n: &usize| text.as_bytes()[text.len() - n..] == stop.as_bytes()[..n];
    // Both are UTF-8, so an end of `text` that equals a beginning of `stop` starts at a character.
    (1..=longest).rev().filter(|&n| stop.is_char_boundary(n)).find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: all bytes at once.
    fn oracle(bytes: &[u8], stops: &[String]) -> (String, Option<usize>) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let met =
                stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty() && text[..end].ends_with(*stop));
            if let Some((index, stop)) = met.min_by_key(|(index, stop)| (usize::MAX - stop.len(), *index)) {
                return (text[..end - stop.len()].to_owned(), Some(index));
            }
        }
        (text, None)
    }

    fn run(tokens: &[Vec<u8>], stops: &[String]) -> (String, Option<usize>) {
        let mut stream = TextStream::new(stops.to_vec());
        let mut text = String::new();
        for token in tokens {
            let emitted = stream.push(token);
            text.push_str(&emitted.text);
            if emitted.stopped.is_some() {
                assert_eq!(stream.push(b"more"), Emitted::default());
                assert_eq!(stream.finish(), "");
                return (text, emitted.stopped);
            }
        }
        let before = text.clone();
        text.push_str(&stream.finish());
        assert!(stops.iter().all(|stop| stop.is_empty() || !before.contains(stop)));
        (text, None)
    }

    fn strings(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|&stop| stop.to_owned()).collect()
    }

    #[test]
    fn a_character_in_four_tokens_comes_out_whole() {
        let mut stream = TextStream::new(Vec::new());
        for byte in &"🦀".as_bytes()[..3] {
            assert_eq!(stream.push(&[*byte]).text, "");
        }
        assert_eq!(stream.push(&"🦀".as_bytes()[3..]).text, "🦀");
    }

    #[test]
    fn text_waits_only_while_it_may_be_a_stop_string() {
        let mut stream = TextStream::new(strings(&["\n\nEND"]));
        assert_eq!(stream.push(b"one\n").text, "one");
        assert_eq!(stream.push(b"two\n\nEN").text, "\ntwo");
        assert_eq!(stream.push(b"d").text, "\n\nENd");
        assert_eq!(stream.push(b".\n\nEND of").stopped, Some(0));
    }

    #[test]
    fn the_stop_that_is_complete_first_wins_and_the_longer_of_two_that_end_together() {
        assert_eq!(
            run(&[b"abc".to_vec(), b"d".to_vec()], &strings(&["abcd", "bc"])),
            ("a".to_owned(), Some(1))
        );
        assert_eq!(run(&[b"xabc".to_vec()], &strings(&["bc", "abc"])), ("x".to_owned(), Some(1)));
    }

    #[test]
    fn an_unfinished_character_at_the_end_is_one_replacement() {
        assert_eq!(run(&[b"a\xe2\x82".to_vec()], &[]), ("a\u{fffd}".to_owned(), None));
        assert_eq!(run(&[b"a\xffb".to_vec()], &[]), ("a\u{fffd}b".to_owned(), None));
    }

    /// Tokens from a small alphabet, so that stops, broken characters and near misses happen all the time.
    fn token() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => prop::sample::select(vec![b"a".to_vec(), b"b".to_vec(), b"ab".to_vec(), b"\n".to_vec()]),
            2 => prop::sample::select(vec!["é".into(), "€".into(), "🦀".into(), "e\u{301}".into()]),
            2 => prop::collection::vec(prop::sample::select(vec![0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0xff]), 0..4),
        ];
        prop::collection::vec(piece, 0..3).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_cut_gives_the_text_of_all_bytes_cut_at_the_first_stop(
            tokens in prop::collection::vec(token(), 0..12),
            stops in prop::collection::vec("[ab\né€]{0,4}", 0..4),
        ) {
            let (text, stopped) = run(&tokens, &stops);
            let (mut expected, expected_stop) = oracle(&tokens.concat(), &stops);
            if stopped.is_none() && expected_stop.is_some() {
                // Met only in what `finish` decoded: the text is cut, and no push could report it.
                expected.truncate(text.len());
            } else {
                prop_assert_eq!(stopped, expected_stop);
            }
            prop_assert_eq!(text, expected);
        }
    }
}
