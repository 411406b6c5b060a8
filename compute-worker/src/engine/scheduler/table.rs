//! The blocks of one sequence.

use rookery_kernels::BLOCK_TOKENS;

use crate::engine::block_pool::{BlockPool, BlockTokens, Content, Lease};

/// Leases of a sequence's blocks in the order of its tokens. Dropped, it gives them back last first, as the pool's
/// eviction order wants.
#[derive(Default)]
pub(super) struct BlockTable {
    leases: Vec<Lease>,
    /// `leases[i].id()`, as attention reads it.
    ids: Vec<u32>,
    /// Names of the full blocks' contents, which are the first ones.
    names: Vec<Content>,
}

impl BlockTable {
    /// The cached blocks of the longest known prefix of `tokens`, never all of them: the last token is always
    /// computed, since its logits are wanted.
    pub(super) fn of_cached_prefix(pool: &BlockPool, tokens: &[u32]) -> Self {
        let mut table = Self::default();
        let most = tokens.len().saturating_sub(1) / BLOCK_TOKENS;
        for block in tokens.as_chunks::<BLOCK_TOKENS>().0.iter().take(most) {
            let Some((lease, name)) = pool.find(table.parent(), block) else { break };
            table.push(lease);
            table.names.push(name);
        }
        table
    }

    /// Exchanges the next blocks, from token `computed` on, for ones of the same content that were computed
    /// meanwhile. Returns the tokens that are in the cache thereby; the last token is never among them.
    pub(super) fn take_over(&mut self, pool: &BlockPool, tokens: &[u32], computed: usize) -> usize {
        let known = self.names.len();
        if computed != known * BLOCK_TOKENS {
            return 0;
        }
        let most = tokens.len().saturating_sub(1) / BLOCK_TOKENS;
        let blocks = &tokens.as_chunks::<BLOCK_TOKENS>().0[..most];
        for (index, block) in blocks.iter().enumerate().skip(known) {
            let Some((lease, name)) = pool.find(self.parent(), block) else { break };
            self.ids[index] = lease.id();
            self.leases[index] = lease;
            self.names.push(name);
        }
        (self.names.len() - known) * BLOCK_TOKENS
    }

    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub(super) fn push(&mut self, lease: Lease) {
        self.ids.push(lease.id());
        self.leases.push(lease);
    }

    /// Makes the blocks that `computed` fills known to the pool.
    pub(super) fn register_full(&mut self, pool: &BlockPool, computed: &[u32]) {
        let known = self.names.len();
        let full: &[BlockTokens] = computed.as_chunks().0;
        for (index, tokens) in full.iter().enumerate().skip(known) {
            let parent = self.parent();
            let name = pool.register(&mut self.leases[index], parent, tokens);
            self.ids[index] = self.leases[index].id();
            self.names.push(name);
        }
    }

    fn parent(&self) -> Content {
        self.names.last().copied().unwrap_or(Content::ROOT)
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        while self.leases.pop().is_some() {}
    }
}
