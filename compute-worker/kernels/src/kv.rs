//! The paged key/value cache in binary16.
//!
//! `[layer][block][K: kv_head][head_dim][16 tokens] [V: kv_head][16 tokens][head_dim]`: K is transposed within
//! a block so that the lanes of a vector are tokens.

use crate::half::f32_to_f16;

/// Tokens in a block of the cache.
pub const BLOCK_TOKENS: usize = 16;

/// The shape of a cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvLayout {
    /// Transformer blocks of the model.
    pub layers: usize,
    /// Blocks of [`BLOCK_TOKENS`] tokens.
    pub blocks: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Values per head, a multiple of 16.
    pub head_dim: usize,
}

impl KvLayout {
    /// Values of K and V in one block of one layer.
    pub(crate) fn block_len(&self) -> usize {
        2 * self.kv_heads * self.head_dim * BLOCK_TOKENS
    }
}

/// Keys and values of all layers; which block belongs to whom is the caller's business.
pub struct KvCache {
    layout: KvLayout,
    values: Vec<u16>,
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvCache").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl KvCache {
    /// A cache of zeros; the system commits its pages when they are first written.
    ///
    /// # Panics
    /// When `head_dim` is not a multiple of 16 or the size overflows.
    pub fn new(layout: KvLayout) -> KvCache {
        assert!(
            layout.head_dim > 0 && layout.head_dim.is_multiple_of(16),
            "kv cache: head_dim {} is not a multiple of 16",
            layout.head_dim
        );
        let values = layout
            .layers
            .checked_mul(layout.blocks)
            .and_then(|blocks| blocks.checked_mul(layout.block_len()))
            .unwrap_or_else(|| panic!("kv cache: {layout:?} overflows"));
        KvCache { layout, values: vec![0; values] }
    }

    /// The shape this cache was made with.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Bytes that one block takes over all layers.
    pub fn bytes_per_block(layout: &KvLayout) -> usize {
        layout.layers * layout.block_len() * size_of::<u16>()
    }

    /// Stores one token's keys and values (`[kv_heads][head_dim]` each) in `slot` of `block`.
    ///
    /// # Panics
    /// When an index or a length does not fit the layout.
    pub fn write(&mut self, layer: usize, block: u32, slot: usize, k: &[f32], v: &[f32]) {
        let KvLayout { layers, blocks, kv_heads, head_dim } = self.layout;
        let (block, width) = (block as usize, kv_heads * head_dim);
        assert!(layer < layers, "kv cache: layer {layer} of {layers}");
        assert!(block < blocks, "kv cache: block {block} of {blocks}");
        assert!(slot < BLOCK_TOKENS, "kv cache: slot {slot} of {BLOCK_TOKENS}");
        assert!(
            k.len() == width && v.len() == width,
            "kv cache: {} keys, {} values, not {width}",
            k.len(),
            v.len()
        );
        let len = self.layout.block_len();
        let block = &mut self.values[(layer * blocks + block) * len..][..len];
        let (keys, values) = block.split_at_mut(len / 2);
        for (to, from) in keys[slot..].iter_mut().step_by(BLOCK_TOKENS).zip(k) {
            *to = f32_to_f16(*from);
        }
        for (head, from) in v.chunks_exact(head_dim).enumerate() {
            let to = &mut values[(head * BLOCK_TOKENS + slot) * head_dim..][..head_dim];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = f32_to_f16(*from));
        }
    }

    /// All blocks of a layer.
    pub(crate) fn layer(&self, layer: usize) -> &[u16] {
        let len = self.layout.blocks * self.layout.block_len();
        &self.values[layer * len..][..len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_land_where_the_layout_says() {
        let layout = KvLayout { layers: 2, blocks: 3, kv_heads: 2, head_dim: 16 };
        assert_eq!(KvCache::bytes_per_block(&layout), 2 * 2 * 2 * 16 * 16 * 2);
        let mut cache = KvCache::new(layout);
        let k: Vec<f32> = (0..32).map(|i| i as f32).collect();
        let v: Vec<f32> = (0..32).map(|i| -(i as f32)).collect();
        cache.write(1, 2, 5, &k, &v);
        let block = &cache.layer(1)[2 * layout.block_len()..];
        for head in 0..2 {
            for i in 0..16 {
                let value = (head * 16 + i) as f32;
                assert_eq!(block[(head * 16 + i) * 16 + 5], f32_to_f16(value));
                assert_eq!(block[512 + (head * 16 + 5) * 16 + i], f32_to_f16(-value));
            }
        }
        assert_eq!(cache.values.iter().filter(|&&x| x != 0).count(), 62 + 1); // −0.0 is one of the values
    }

    #[test]
    #[should_panic(expected = "slot 16 of 16")]
    fn a_slot_outside_a_block_is_refused() {
        let mut cache = KvCache::new(KvLayout { layers: 1, blocks: 1, kv_heads: 1, head_dim: 16 });
        cache.write(0, 0, 16, &[0.0; 16], &[0.0; 16]);
    }
}
