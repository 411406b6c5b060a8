//! Stop strings that count only after some tokens. Everything else of a transcript is tested through the engine.

use super::*;

fn run(min_tokens: u32, strings: &[&str], tokens: &[&[u8]]) -> (String, Option<usize>) {
    let stop = Stop { strings: strings.iter().map(|s| (*s).to_owned()).collect(), ..Stop::default() };
    let mut text = Text::new(min_tokens, &stop);
    let mut out = String::new();
    for token in tokens {
        let emitted = text.push(token);
        out.push_str(&emitted.text);
        if emitted.stopped.is_some() {
            return (out, emitted.stopped);
        }
    }
    (out + &text.finish(), None)
}

#[test]
fn stop_strings_count_from_min_tokens_on() {
    let tokens: [&[u8]; 4] = [b"a", b"END", b"b", b"END"];
    assert_eq!(run(0, &["END"], &tokens), ("a".to_owned(), Some(0)));
    assert_eq!(run(2, &["END"], &tokens), ("aENDb".to_owned(), Some(0)));
    assert_eq!(run(4, &["END"], &tokens), ("aENDbEND".to_owned(), None));
}

#[test]
fn a_character_survives_the_moment_when_stop_strings_begin_to_count() {
    let crab = "🦀".as_bytes();
    for cut in 1..4 {
        let tokens: [&[u8]; 3] = [b"x", &crab[..cut], &crab[cut..]];
        assert_eq!(run(2, &["stop"], &tokens), ("x🦀".to_owned(), None), "cut after {cut}");
    }
}

#[test]
fn only_the_beginning_of_a_character_is_incomplete() {
    assert_eq!(incomplete_end(b"ab"), b"");
    assert_eq!(incomplete_end(b"a\xe2\x82"), b"\xe2\x82");
    assert_eq!(incomplete_end("é".as_bytes()), b"");
    assert_eq!(incomplete_end(b"\xff\x9f"), b"");
}
