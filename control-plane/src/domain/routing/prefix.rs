//! Which gateway has probably read the beginning of a prompt: an index of hashes, approximate and bounded.
//!
//! A prompt is cut into blocks, about as long as the blocks of a gateway's cache. Each block's hash covers everything
//! before it, so two prompts share a hash where they share their beginning up to there. Long prompts are marked at fewer
//! and fewer ends of blocks, so that looking one up costs little. The index says who was last sent a prompt with such a
//! beginning; whether that gateway still has it in its cache, only it knows.

use std::collections::HashMap;

use super::{hash, mix};
use crate::domain::GatewayId;

/// Bytes of text in a block.
const BLOCK_BYTES: usize = 64;

/// Bytes that make a token of text, roughly.
const TOKEN_BYTES: u64 = 4;

/// Token ids in a block.
const BLOCK_IDS: usize = 16;

/// Ends of blocks that are marked, the first ones all, then each a sixteenth further.
const ALL_MARKED: usize = 32;

/// Gateways remembered for each beginning: those it was sent to last.
const HOLDERS: usize = 8;

/// Beginnings remembered, half of them at least as long as it takes for the other half to come. About 20 MB.
const MOST_MARKS: usize = 1 << 18;

/// A prompt as routing sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// About how many tokens it has.
    pub tokens: u64,
    /// Ends of its beginnings, shortest first.
    marks: Vec<Mark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    hash: u64,
    tokens: u64,
}

impl Prompt {
    /// One that nothing is known of.
    pub const NOTHING: Self = Self { tokens: 0, marks: Vec::new() };

    /// Of plain text.
    pub fn of_text(text: &str) -> Self {
        Self::of_bytes(1, text.as_bytes())
    }

    /// Of a conversation's messages, each with a role and what was said.
    pub fn of_messages<'a>(messages: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut bytes = Vec::new();
        for (role, content) in messages {
            // Lengths are not part of it: what comes later must not change what came before.
            bytes.extend_from_slice(role.as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(content.as_bytes());
            bytes.push(0);
        }
        Self::of_bytes(2, &bytes)
    }

    /// Of token ids.
    pub fn of_ids(ids: &[u32]) -> Self {
        let (blocks, _) = ids.as_chunks::<BLOCK_IDS>();
        let hashes = blocks.iter().map(|block| {
            let words = block.as_chunks::<2>().0.iter();
            words.fold(0, |state, [low, high]| step(state, u64::from(*low) | u64::from(*high) << 32))
        });
        Self { tokens: ids.len() as u64, marks: marks(3, hashes, BLOCK_IDS as u64) }
    }

    fn of_bytes(kind: u64, bytes: &[u8]) -> Self {
        let (blocks, _) = bytes.as_chunks::<BLOCK_BYTES>();
        let hashes = blocks.iter().map(|block| {
            let words = block.as_chunks::<8>().0.iter();
            words.fold(0, |state, word| step(state, u64::from_le_bytes(*word)))
        });
        let tokens = (bytes.len() as u64).div_ceil(TOKEN_BYTES);
        Self { tokens, marks: marks(kind, hashes, BLOCK_BYTES as u64 / TOKEN_BYTES) }
    }
}

/// Who holds a beginning: a version on a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder(u64);

impl Holder {
    /// The version with this digest on this gateway.
    pub fn new(gateway: &GatewayId, digest: &str) -> Self {
        // 0 stands for nobody.
        Self(mix(hash(digest.as_bytes(), hash(gateway.as_str().as_bytes(), 1))).max(1))
    }
}

/// Who was sent what lately.
#[derive(Debug)]
pub struct PrefixIndex {
    /// Noted since the last turn.
    young: HashMap<u64, [u64; HOLDERS]>,
    /// Noted before it; the next turn drops what was not noted again.
    old: HashMap<u64, [u64; HOLDERS]>,
    /// Beginnings in each.
    half: usize,
}

impl Default for PrefixIndex {
    fn default() -> Self {
        Self::new(MOST_MARKS)
    }
}

impl PrefixIndex {
    /// An index of at most so many beginnings.
    pub fn new(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (most / 2).max(1) }
    }

    /// A prompt is sent to a gateway.
    pub fn note(&mut self, prompt: &Prompt, holder: Holder) {
        for mark in &prompt.marks {
            let mut holders = self.get(mark.hash).copied().unwrap_or_default();
            let place = holders.iter().position(|known| *known == holder.0).unwrap_or(HOLDERS - 1);
            holders[..=place].rotate_right(1);
            holders[0] = holder.0;
            if self.young.len() >= self.half && !self.young.contains_key(&mark.hash) {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.insert(mark.hash, holders);
        }
    }

    /// Tokens of the prompt that each gateway has probably read: those that have read any.
    pub fn cached(&self, prompt: &Prompt) -> Cached {
        let mut found: Vec<(u64, u64)> = Vec::new();
        for mark in prompt.marks.iter().rev() {
            for &holder in self.get(mark.hash).into_iter().flatten().take_while(|holder| **holder != 0) {
                if !found.iter().any(|(known, _)| *known == holder) {
                    found.push((holder, mark.tokens));
                }
            }
        }
        Cached(found)
    }

    fn get(&self, hash: u64) -> Option<&[u64; HOLDERS]> {
        self.young.get(&hash).or_else(|| self.old.get(&hash))
    }
}

/// What [`PrefixIndex::cached`] found.
#[derive(Clone, Debug, Default)]
pub struct Cached(Vec<(u64, u64)>);

impl Cached {
    /// Tokens that this one has read.
    pub fn of(&self, holder: Holder) -> u64 {
        self.0.iter().find(|(known, _)| *known == holder.0).map_or(0, |(_, tokens)| *tokens)
    }

    /// Whether nobody has read any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn step(state: u64, word: u64) -> u64 {
    let mixed = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

/// The chained hashes of blocks at the ends that are marked.
fn marks(kind: u64, blocks: impl Iterator<Item = u64>, block_tokens: u64) -> Vec<Mark> {
    let (mut state, mut next) = (kind, 1);
    let mut marks = Vec::new();
    for (index, block) in blocks.enumerate() {
        state = step(state, block);
        let count = index + 1;
        if count == next {
            marks.push(Mark { hash: mix(state), tokens: count as u64 * block_tokens });
            next += if count < ALL_MARKED { 1 } else { count / 16 };
        }
    }
    marks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holder(name: &str) -> Holder {
        Holder::new(&name.parse().unwrap(), "sha256:00")
    }

    #[test]
    fn the_longest_shared_beginning_is_found_for_each() {
        let mut index = PrefixIndex::default();
        let common = "a".repeat(640);
        index.note(&Prompt::of_text(&format!("{common}{}", "b".repeat(640))), holder("x"));
        index.note(&Prompt::of_text(&common[..320]), holder("y"));
        let cached = index.cached(&Prompt::of_text(&format!("{common}{}", "c".repeat(640))));
        assert_eq!((cached.of(holder("x")), cached.of(holder("y"))), (160, 80));
        assert_eq!(cached.of(holder("z")), 0);
        assert_eq!(cached.of(Holder::new(&"x".parse().unwrap(), "sha256:01")), 0, "another version");
        let ids: Vec<u32> = (0..100).collect();
        assert!(index.cached(&Prompt::of_ids(&ids)).is_empty());
        index.note(&Prompt::of_ids(&ids), holder("x"));
        assert_eq!(index.cached(&Prompt::of_ids(&ids[..50])).of(holder("x")), 48);
    }

    #[test]
    fn a_conversation_that_goes_on_keeps_its_beginning() {
        let (system, question, answer) = ("s".repeat(200), "q".repeat(200), "a".repeat(200));
        let messages = [("system", &*system), ("user", &*question), ("assistant", &*answer)];
        let mut index = PrefixIndex::default();
        index.note(&Prompt::of_messages(messages[..2].iter().copied()), holder("x"));
        let cached = index.cached(&Prompt::of_messages(messages.iter().copied()));
        assert!(cached.of(holder("x")) >= 96, "{cached:?}");
    }

    #[test]
    fn old_beginnings_and_old_holders_are_forgotten() {
        let mut index = PrefixIndex::new(100);
        let prompt = |n: u32| Prompt::of_ids(&[n; 16]);
        for n in 0..1000 {
            index.note(&prompt(n), holder("x"));
            assert!(index.young.len() + index.old.len() <= 100);
            index.note(&prompt(0), holder("x"));
        }
        assert_eq!(index.cached(&prompt(0)).of(holder("x")), 16, "it was noted all the time");
        assert_eq!(index.cached(&prompt(999)).of(holder("x")), 16);
        assert_eq!(index.cached(&prompt(1)).of(holder("x")), 0);
        (0..HOLDERS).for_each(|n| index.note(&prompt(999), holder(&format!("y{n}"))));
        assert_eq!(index.cached(&prompt(999)).of(holder("x")), 0);
    }

    #[test]
    fn long_prompts_have_few_marks() {
        let prompt = Prompt::of_ids(&vec![7; 1 << 17]);
        assert!(prompt.marks.len() < 200, "{}", prompt.marks.len());
    }

    proptest! {
        /// What is found is never longer than what is shared, nor shorter by more than a sixteenth and a block.
        #[test]
        fn what_is_found_is_what_is_shared(shared in 0usize..2000, rest in 0usize..2000, salt in 1u32..9) {
            let common: Vec<u32> = (0..shared as u32).collect();
            let mut index = PrefixIndex::default();
            let sent: Vec<u32> = common.iter().copied().chain(vec![100_000; rest]).collect();
            index.note(&Prompt::of_ids(&sent), holder("x"));
            let asked: Vec<u32> = common.iter().copied().chain(vec![100_000 + salt; rest]).collect();
            let found = index.cached(&Prompt::of_ids(&asked)).of(holder("x")) as usize;
            prop_assert!(found <= shared);
            prop_assert!(found + found / 16 + 32 > shared, "{found} of {shared}");
        }
    }
}
