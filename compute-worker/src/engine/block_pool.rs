//! Blocks of the key/value cache: who holds them, and which hold a prefix that can be used again.
//!
//! A block has 16 tokens. It is *free*, *cached* (nobody holds it, but its content is known and can be taken over)
//! or *leased* by one or more sequences. Leases free themselves when they are dropped.
//!
//! Content is named by a chain: a full block's name stands for (name of the block before it, its 16 tokens), so
//! equal names mean equal tokens from the very start. Names are handed out by a table that compares the tokens
//! themselves, under a hash keyed at random per process: neither an accident nor an attacker can make two
//! different prefixes share a block.
//!
//! Of two sequences that compute the same content at the same time, the later one to finish a block takes over
//! the earlier one's and gives its own back. Both are bit-identical, since every backend and chunking gives the
//! same bits. So whoever holds a cached block also holds all blocks before it, blocks are given back last first,
//! and eviction in least-recently-used order never takes a block while one that depends on it stays.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rookery_kernels::BLOCK_TOKENS;

mod lru;
#[cfg(test)]
mod tests;

use lru::Lru;

/// The tokens of one full block.
pub type BlockTokens = [u32; BLOCK_TOKENS];

/// Name of a block's content: of all tokens from the start of the sequence to the block's end. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Content(u64);

impl Content {
    /// What comes before the first block: nothing.
    pub const ROOT: Content = Content(0);
}

/// All blocks of a cache. Clones share them.
pub struct BlockPool<S = RandomState> {
    state: Arc<Mutex<State<S>>>,
}

impl BlockPool {
    /// A pool of `blocks` free blocks.
    pub fn new(blocks: usize) -> Self {
        Self::with_hasher(blocks, RandomState::new())
    }
}

impl<S: BuildHasher> BlockPool<S> {
    /// As [`BlockPool::new`], with a given hash function for the table of contents.
    pub fn with_hasher(blocks: usize, hasher: S) -> Self {
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let state = State {
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            free: (0..blocks).rev().collect(),
            cached: Lru::new(blocks as usize),
            contents: HashMap::with_hasher(hasher),
            next_content: Content::ROOT.0 + 1,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// All blocks.
    pub fn total(&self) -> usize {
        self.lock().blocks.len()
    }

    /// Blocks that [`BlockPool::allocate`] could give: free and cached ones.
    pub fn available(&self) -> usize {
        let state = self.lock();
        state.free.len() + state.cached.len()
    }

    /// A block of unknown content: a free one, else the least recently used of the cached ones.
    pub fn allocate(&self) -> Option<Lease<S>> {
        let mut state = self.lock();
        let id = match state.free.pop() {
            Some(id) => id,
            None => {
                let id = state.cached.pop_oldest()?;
                state.forget(id);
                id
            }
        };
        state.blocks[id as usize].leases = 1;
        drop(state);
        Some(Lease { state: Arc::clone(&self.state), id })
    }

    /// The block whose content is `tokens` after `parent`, if it is known.
    pub fn find(&self, parent: Content, tokens: &BlockTokens) -> Option<(Lease<S>, Content)> {
        let mut state = self.lock();
        let &(id, content) = state.contents.get(&(parent, *tokens))?;
        state.lease(id);
        drop(state);
        Some((Lease { state: Arc::clone(&self.state), id }, content))
    }

    /// Declares that `lease`'s block now holds `tokens` after `parent`, and returns the content's name. If another
    /// block had this content first, `lease` becomes a lease of that block.
    pub fn register(&self, lease: &mut Lease<S>, parent: Content, tokens: &BlockTokens) -> Content {
        let mut state = self.lock();
        if let Some(&(id, content)) = state.contents.get(&(parent, *tokens)) {
            state.lease(id);
            drop(state);
            *lease = Lease { state: Arc::clone(&self.state), id };
            return content;
        }
        let content = Content(state.next_content);
        state.next_content += 1;
        state.contents.insert((parent, *tokens), (lease.id, content));
        state.blocks[lease.id as usize].key = Some((parent, *tokens));
        content
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        lock(&self.state)
    }
}

impl<S> Clone for BlockPool<S> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state) }
    }
}

impl<S: BuildHasher> fmt::Debug for BlockPool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (total, available) = (self.total(), self.available());
        f.debug_struct("BlockPool").field("total", &total).field("available", &available).finish()
    }
}

/// One holder's claim on a block. Dropping it gives the claim back.
pub struct Lease<S: BuildHasher = RandomState> {
    state: Arc<Mutex<State<S>>>,
    id: u32,
}

impl<S: BuildHasher> Lease<S> {
    /// Number of the block in the cache.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl<S: BuildHasher> Drop for Lease<S> {
    fn drop(&mut self) {
        lock(&self.state).release(self.id);
    }
}

impl<S: BuildHasher> fmt::Debug for Lease<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.id).finish()
    }
}

/// A content's place in the table.
type Key = (Content, BlockTokens);

struct State<S> {
    blocks: Vec<Block>,
    free: Vec<u32>,
    /// Blocks that nobody holds and whose content is known.
    cached: Lru,
    contents: HashMap<Key, (u32, Content), S>,
    next_content: u64,
}

#[derive(Default)]
struct Block {
    leases: u32,
    /// Where the block's content stands in the table, if it does.
    key: Option<Key>,
}

impl<S: BuildHasher> State<S> {
    /// Takes one more claim on a block whose content is known.
    fn lease(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        if block.leases == 0 {
            self.cached.remove(id);
        }
        block.leases += 1;
    }

    fn release(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        block.leases -= 1;
        match (block.leases, block.key.is_some()) {
            (0, true) => self.cached.push_newest(id),
            (0, false) => self.free.push(id),
            _ => {}
        }
    }

    /// Removes a block's content from the table.
    fn forget(&mut self, id: u32) {
        if let Some(key) = self.blocks[id as usize].key.take() {
            self.contents.remove(&key);
        }
    }
}

fn lock<S>(state: &Mutex<State<S>>) -> MutexGuard<'_, State<S>> {
    // Only the engine thread uses a pool. After a panic in a step the pool is only dropped, so counts matter no more.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
