//! The pool against a shadow model that is slow and obvious.

use std::hash::Hasher;

use proptest::prelude::*;

use super::*;

/// Every key collides, so only the comparison of tokens keeps contents apart.
#[derive(Clone, Default)]
struct AllCollide;

struct Zero;

impl Hasher for Zero {
    fn finish(&self) -> u64 {
        0
    }
    fn write(&mut self, _: &[u8]) {}
}

impl BuildHasher for AllCollide {
    type Hasher = Zero;
    fn build_hasher(&self) -> Zero {
        Zero
    }
}

fn tokens(n: u32) -> BlockTokens {
    [n; BLOCK_TOKENS]
}

/// A new block that holds `n` in all its places.
fn filled<S: BuildHasher>(pool: &BlockPool<S>, parent: Content, n: u32) -> (Lease<S>, Content) {
    let mut lease = pool.allocate().unwrap();
    let name = pool.register(&mut lease, parent, &tokens(n));
    (lease, name)
}

#[test]
fn a_released_prefix_is_found_again_and_evicted_last_block_first() {
    let pool = BlockPool::new(2);
    let (first, a) = filled(&pool, Content::ROOT, 1);
    let (second, b) = filled(&pool, a, 2);
    assert!(pool.allocate().is_none());
    let (id_a, id_b) = (first.id(), second.id());
    drop(second);
    drop(first);
    assert_eq!(pool.available(), 2);
    let (hit_a, name_a) = pool.find(Content::ROOT, &tokens(1)).unwrap();
    let (hit_b, name_b) = pool.find(name_a, &tokens(2)).unwrap();
    assert_eq!((hit_a.id(), hit_b.id(), name_a, name_b), (id_a, id_b, a, b));
    drop(hit_b);
    drop(hit_a);
    assert_eq!(pool.allocate().unwrap().id(), id_b, "the end of the prefix goes first");
    assert!(pool.find(a, &tokens(2)).is_none());
    assert!(pool.find(Content::ROOT, &tokens(1)).is_some());
}

#[test]
fn equal_tokens_after_different_prefixes_are_different_content() {
    let pool = BlockPool::with_hasher(4, AllCollide);
    let (_a, name_a) = filled(&pool, Content::ROOT, 1);
    let (_b, name_b) = filled(&pool, Content::ROOT, 2);
    let (_c, _) = filled(&pool, name_a, 3);
    assert!(pool.find(name_b, &tokens(3)).is_none());
    assert!(pool.find(Content::ROOT, &tokens(3)).is_none());
    assert!(pool.find(name_a, &tokens(3)).is_some());
}

#[test]
fn the_second_to_compute_a_content_takes_the_firsts_block() {
    let pool = BlockPool::new(2);
    let (first, name) = filled(&pool, Content::ROOT, 1);
    let (second, same) = filled(&pool, Content::ROOT, 1);
    assert_eq!((first.id(), name), (second.id(), same));
    assert_eq!(pool.available(), 1);
}

/// What a random test does. Numbers choose among what there is, modulo its count.
#[derive(Debug, Clone)]
enum Op {
    /// Start a sequence: take over what is known of it, as far as `blocks` blocks.
    Start { text: u32, blocks: usize },
    /// A sequence computes its next block.
    Grow { sequence: usize, text: u32 },
    /// A sequence ends.
    End { sequence: usize },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0..3u32, 0..5usize).prop_map(|(text, blocks)| Op::Start { text, blocks }),
        4 => (any::<usize>(), 0..3u32).prop_map(|(sequence, text)| Op::Grow { sequence, text }),
        2 => any::<usize>().prop_map(|sequence| Op::End { sequence }),
    ]
}

/// A sequence as the pool's user holds it, and its whole text.
struct Held {
    leases: Vec<Lease<AllCollide>>,
    names: Vec<Content>,
    text: Vec<u32>,
}

impl Held {
    fn parent(&self) -> Content {
        self.names.last().copied().unwrap_or(Content::ROOT)
    }

    fn release(mut self) {
        while self.leases.pop().is_some() {}
    }
}

/// The shadow: what each block's content is, as the whole text up to it.
#[derive(Default)]
struct Shadow {
    written: HashMap<u32, Vec<u32>>,
}

fn check(pool: &BlockPool<AllCollide>, held: &[Held], shadow: &Shadow) -> Result<(), TestCaseError> {
    let mut leases = vec![0; pool.total()];
    for sequence in held {
        for (i, lease) in sequence.leases.iter().enumerate() {
            leases[lease.id() as usize] += 1;
            prop_assert_eq!(
                &shadow.written[&lease.id()],
                &sequence.text[..=i],
                "a block holds its holder's text"
            );
        }
    }
    let state = pool.lock();
    for (id, block) in state.blocks.iter().enumerate() {
        prop_assert_eq!(block.leases, leases[id], "lease count of block {}", id);
    }
    let unleased = leases.iter().filter(|count| **count == 0).count();
    prop_assert_eq!(state.free.len() + state.cached.len(), unleased, "every block is in one place");
    let known = state.blocks.iter().filter(|block| block.key.is_some()).count();
    prop_assert_eq!(known, state.contents.len());
    for (parent, _) in state.contents.keys() {
        let reachable = *parent == Content::ROOT || state.contents.values().any(|(_, name)| name == parent);
        prop_assert!(reachable, "a known block's prefix is known");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn leases_counts_and_contents_match_the_shadow(ops in prop::collection::vec(op(), 1..120)) {
        let pool = BlockPool::with_hasher(7, AllCollide);
        let mut held: Vec<Held> = Vec::new();
        let mut shadow = Shadow::default();
        for op in ops {
            match op {
                Op::Start { text, blocks } => {
                    let mut sequence = Held { leases: Vec::new(), names: Vec::new(), text: Vec::new() };
                    for _ in 0..blocks {
                        let Some((lease, name)) = pool.find(sequence.parent(), &tokens(text)) else { break };
                        sequence.leases.push(lease);
                        sequence.names.push(name);
                        sequence.text.push(text);
                    }
                    held.push(sequence);
                }
                Op::Grow { sequence, text } => {
                    if held.is_empty() { continue; }
                    let index = sequence % held.len();
                    let before = pool.available();
                    let Some(mut lease) = pool.allocate() else {
                        prop_assert_eq!(before, 0);
                        continue;
                    };
                    let sequence = &mut held[index];
                    sequence.text.push(text);
                    shadow.written.insert(lease.id(), sequence.text.clone());
                    let name = pool.register(&mut lease, sequence.parent(), &tokens(text));
                    sequence.leases.push(lease);
                    sequence.names.push(name);
                }
                Op::End { sequence } => {
                    if held.is_empty() { continue; }
                    let index = sequence % held.len();
                    held.swap_remove(index).release();
                }
            }
            check(&pool, &held, &shadow)?;
        }
        held.drain(..).for_each(Held::release);
        prop_assert_eq!(pool.available(), pool.total(), "nothing leaks");
    }
}
