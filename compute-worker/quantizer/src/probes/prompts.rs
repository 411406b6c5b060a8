//! The prompts.
//!
//! All are plain text to be continued, so that models with and without training for chats can be asked. Those with an answer
//! are easy enough for half a billion weights, and leave one right continuation.

use rookery_compute_worker::probes::{Prompt, Topic};

/// Tokens of an answer that is compared with the right one, and a few more.
const ANSWER_TOKENS: usize = 8;
/// Tokens that go on from a snippet.
const SNIPPET_TOKENS: usize = 16;
/// Bytes of a snippet, at most.
const SNIPPET_BYTES: usize = 160;

/// Name, prompt and right continuation.
type Question = (&'static str, &'static str, &'static str);

const ARITHMETIC: [Question; 8] = [
    ("sum", "2 + 2 = 4\n3 + 5 = 8\n7 + 6 =", " 13"),
    ("difference", "10 - 3 = 7\n9 - 4 = 5\n15 - 8 =", " 7"),
    ("product", "2 * 3 = 6\n4 * 5 = 20\n6 * 7 =", " 42"),
    ("quotient", "20 / 4 = 5\n18 / 3 = 6\n56 / 8 =", " 7"),
    ("even-numbers", "The even numbers in order: 2, 4, 6, 8, 10,", " 12"),
    ("powers-of-two", "The powers of two in order: 1, 2, 4, 8, 16, 32,", " 64"),
    ("half", "Half of 10 is 5. Half of 40 is 20. Half of 50 is", " 25"),
    ("apples", "Tom has 3 apples and buys 4 more. Altogether he has 3 + 4 =", " 7"),
];

const LOGIC: [Question; 8] = [
    ("capital", "The capital of France is", " Paris"),
    ("syllogism", "All dogs are animals. Rex is a dog. Therefore, Rex is an", " animal"),
    ("weekdays", "Monday, Tuesday, Wednesday, Thursday,", " Friday"),
    ("opposites", "The opposite of hot is cold. The opposite of up is", " down"),
    ("months", "January, February, March, April,", " May"),
    ("sunset", "The sun rises in the east and sets in the", " west"),
    ("boiling", "At sea level, water freezes at 0 degrees Celsius and boils at", " 100"),
    ("counting", "one, two, three, four, five, six,", " seven"),
];

const CODE: [Question; 8] = [
    ("python-add", "def add(a, b):\n    \"\"\"Returns the sum of a and b.\"\"\"\n    return a", " + b"),
    ("c-loop", "for (int i = 0; i < n; i", "++"),
    ("python-import", "import numpy as", " np"),
    ("python-sign", "if x > 0:\n    print(\"positive\")\nelif x < 0:\n    print(\"", "negative"),
    ("python-even", "def is_even(n):\n    return n % 2 ==", " 0"),
    ("rust-square", "fn square(x: i32) -> i32 {\n    x *", " x"),
    ("sql-order", "SELECT name FROM users WHERE age > 30 ORDER", " BY"),
    ("c-max", "int max(int a, int b) {\n    return a > b ? a :", " b"),
];

/// Name, file, and how the snippet begins there.
const SNIPPETS: [(&str, &str, &str); 8] = [
    ("python", include_str!("../../data/calibration/code.txt"), "def order(tasks"),
    ("report", include_str!("../../data/calibration/prose.txt"), "At 02:10 the level"),
    ("chat", include_str!("../../data/calibration/chat.txt"), "User: My code says"),
    ("german", include_str!("../../data/calibration/world.txt"), "Am frühen Morgen"),
    ("c", include_str!("../../data/calibration/code.txt"), "bool ring_push"),
    ("recipe", include_str!("../../data/calibration/prose.txt"), "1. Rinse the lentils"),
    ("chinese", include_str!("../../data/calibration/world.txt"), "老周在城南"),
    ("table", include_str!("../../data/calibration/world.txt"), "| Station |"),
];

/// The 32 prompts that are recorded with every model: eight of each topic, topics in turn, so that a check of the first few
/// sees several.
pub fn prompts() -> Vec<Prompt> {
    let question = |topic, group: &str, (name, text, answer): Question| Prompt {
        name: format!("{group}/{name}"),
        topic,
        text: text.to_owned(),
        answer: Some(answer.to_owned()),
        tokens: ANSWER_TOKENS,
    };
    let snippet = |(name, file, opening)| Prompt {
        name: format!("text/{name}"),
        topic: Topic::Text,
        text: snippet(file, opening).to_owned(),
        answer: None,
        tokens: SNIPPET_TOKENS,
    };
    let rounds = LOGIC.into_iter().zip(CODE).zip(ARITHMETIC).zip(SNIPPETS);
    let round = rounds.map(|(((logic, code), arithmetic), text)| {
        [
            question(Topic::Logic, "logic", logic),
            question(Topic::Code, "code", code),
            question(Topic::Arithmetic, "arithmetic", arithmetic),
            snippet(text),
        ]
    });
    round.flatten().collect()
}

/// What `text` says from `opening` on, cut after a word.
fn snippet(text: &'static str, opening: &str) -> &'static str {
    let from = text.find(opening).unwrap_or(0);
    let cut = &text[from..text.floor_char_boundary(from + SNIPPET_BYTES)];
    // Some languages have no spaces.
    let words = cut.rfind(char::is_whitespace).filter(|&end| end > SNIPPET_BYTES / 2);
    &cut[..words.unwrap_or(cut.len())]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn there_are_32_prompts_of_four_topics() {
        let prompts = prompts();
        let names: HashSet<&str> = prompts.iter().map(|prompt| prompt.name.as_str()).collect();
        assert_eq!((prompts.len(), names.len()), (32, 32));
        for topic in [Topic::Arithmetic, Topic::Logic, Topic::Code, Topic::Text] {
            let of_topic = || prompts.iter().filter(|prompt| prompt.topic == topic);
            assert_eq!(of_topic().count(), 8, "{topic:?}");
            assert!(of_topic().all(|prompt| prompt.answer.is_none() == (topic == Topic::Text)));
        }
        let first: HashSet<_> = prompts[..2].iter().map(|prompt| prompt.topic).collect();
        assert_eq!(first.len(), 2, "a quick check sees two topics");
    }

    #[test]
    fn snippets_are_where_they_are_said_to_be() {
        for (name, text, opening) in SNIPPETS {
            assert!(text.contains(opening), "{name}");
            let snippet = snippet(text, opening);
            assert!(snippet.starts_with(opening) && text.contains(snippet), "{name}");
            assert!((80..=SNIPPET_BYTES).contains(&snippet.len()), "{name}: {snippet:?}");
        }
    }
}
