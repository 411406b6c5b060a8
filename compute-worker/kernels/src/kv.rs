//! The paged key/value cache, in binary16 or in int8.
//!
//! Values: `[layer][block][K: kv_head][head_dim][16 tokens] [V: kv_head][16 tokens][head_dim]`: K is transposed within
//! a block so that the lanes of a vector are tokens. Binary16 values are two bytes each and nothing else.
//!
//! int8 values are one byte each, −127…127, and stand for `value · scale` with one f32 scale for each (token, kv head)
//! of K and of V: `[layer][block][K: kv_head][16 tokens] [V: kv_head][16 tokens]`, beside the values. As in a row of
//! activations, scale = absmax/127 and value = round(x · (127/absmax)), ties to even; a head of zeros has the scale 0,
//! one that is not finite the scale NaN.
//!
//! A token's values are `head_dim` times as many as its scales, and in the same order of heads and blocks, so the scale
//! of K or V of a head begins at the place of its values divided by `head_dim`.

use std::fmt;
use std::str::FromStr;

use crate::float::body::SMALLEST_ABSMAX;
use crate::half::f32_to_f16;

/// Tokens in a block of the cache.
pub const BLOCK_TOKENS: usize = 16;

/// How a cache stores its numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum KvType {
    /// IEEE binary16.
    #[default]
    F16,
    /// int8 with an f32 scale for each token and kv head, of K and of V. Keys should come without their bias, which
    /// [`crate::KeyBias`] adds back: a large one would take all of the eight bits.
    Int8,
}

impl KvType {
    /// Every kind, largest first.
    pub const ALL: [KvType; 2] = [KvType::F16, KvType::Int8];

    /// The stable name used in configuration, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::Int8 => "int8",
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text is not the name of a kind of cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParseKvTypeError(String);

impl fmt::Display for ParseKvTypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown type of key/value cache {:?}; one of", self.0)?;
        KvType::ALL.iter().try_for_each(|kind| write!(f, " {kind}"))
    }
}

impl std::error::Error for ParseKvTypeError {}

impl FromStr for KvType {
    type Err = ParseKvTypeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = KvType::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| ParseKvTypeError(text.to_owned()))
    }
}

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
    /// How a value is stored.
    pub kind: KvType,
}

impl KvLayout {
    /// Values of K and V in one block of one layer.
    pub(crate) fn block_len(&self) -> usize {
        self.block_scales() * self.head_dim
    }

    /// Heads of K and V of the tokens of one block of one layer: the scales of an int8 block.
    fn block_scales(&self) -> usize {
        2 * self.kv_heads * BLOCK_TOKENS
    }
}

/// Keys and values of all layers; which block belongs to whom is the caller's business.
pub struct KvCache {
    layout: KvLayout,
    store: Store,
}

enum Store {
    F16(Vec<u16>),
    Int8 { values: Vec<i8>, scales: Vec<f32> },
}

/// All blocks of a layer.
#[derive(Clone, Copy)]
pub(crate) enum Blocks<'a> {
    F16(&'a [u16]),
    Int8 { values: &'a [i8], scales: &'a [f32] },
}

impl fmt::Debug for KvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        let all = |per_block: usize| {
            let blocks = layout.layers.checked_mul(layout.blocks);
            let values = blocks.and_then(|blocks| blocks.checked_mul(per_block));
            values.unwrap_or_else(|| panic!("kv cache: {layout:?} overflows"))
        };
        let values = all(layout.block_len());
        let store = match layout.kind {
            KvType::F16 => Store::F16(vec![0; values]),
            KvType::Int8 => {
                Store::Int8 { values: vec![0; values], scales: vec![0.0; all(layout.block_scales())] }
            }
        };
        KvCache { layout, store }
    }

    /// The shape this cache was made with.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Bytes that one block takes over all layers.
    pub fn bytes_per_block(layout: &KvLayout) -> usize {
        let block = match layout.kind {
            KvType::F16 => layout.block_len() * size_of::<u16>(),
            KvType::Int8 => layout.block_len() + layout.block_scales() * size_of::<f32>(),
        };
        layout.layers * block
    }

    /// Stores one token's keys and values (`[kv_heads][head_dim]` each) in `slot` of `block`, rounded to the cache's
    /// type.
    ///
    /// # Panics
    /// When an index or a length does not fit the layout.
    pub fn write(&mut self, layer: usize, block: u32, slot: usize, k: &[f32], v: &[f32]) {
        let KvLayout { layers, blocks, kv_heads, head_dim, .. } = self.layout;
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
        let (at, len, heads) = (layer * blocks + block, self.layout.block_len(), self.layout.block_scales());
        match &mut self.store {
            Store::F16(values) => place(&mut values[at * len..][..len], slot, head_dim, [k, v], f32_to_f16),
            Store::Int8 { values, scales } => {
                let values = &mut values[at * len..][..len];
                let scales = &mut scales[at * heads..][..heads];
                write_int8(values, scales, slot, head_dim, [k, v]);
            }
        }
    }

    /// All blocks of a layer.
    pub(crate) fn layer(&self, layer: usize) -> Blocks<'_> {
        let (at, blocks) = (layer * self.layout.blocks, self.layout.blocks);
        let (len, heads) = (self.layout.block_len(), self.layout.block_scales());
        match &self.store {
            Store::F16(values) => Blocks::F16(&values[at * len..][..blocks * len]),
            Store::Int8 { values, scales } => Blocks::Int8 {
                values: &values[at * len..][..blocks * len],
                scales: &scales[at * heads..][..blocks * heads],
            },
        }
    }
}

/// Puts a token's keys and values into their slot of a block.
fn place<T: Copy, U>(
    block: &mut [U],
    slot: usize,
    head_dim: usize,
    [k, v]: [&[T]; 2],
    to_stored: impl Fn(T) -> U,
) {
    let (keys, values) = block.split_at_mut(block.len() / 2);
    for (to, from) in keys[slot..].iter_mut().step_by(BLOCK_TOKENS).zip(k) {
        *to = to_stored(*from);
    }
    for (head, from) in v.chunks_exact(head_dim).enumerate() {
        let to = &mut values[(head * BLOCK_TOKENS + slot) * head_dim..][..head_dim];
        to.iter_mut().zip(from).for_each(|(to, from)| *to = to_stored(*from));
    }
}

/// As [`place`] for int8, with the scales of the token's heads.
fn write_int8(block: &mut [i8], scales: &mut [f32], slot: usize, head_dim: usize, kv: [&[f32]; 2]) {
    let (block_half, scales_half) = (block.len() / 2, scales.len() / 2);
    for (part, from) in kv.into_iter().enumerate() {
        let values = &mut block[part * block_half..][..block_half];
        let scales = &mut scales[part * scales_half..][..scales_half];
        for (head, from) in from.chunks_exact(head_dim).enumerate() {
            let (scale, inverse) = scales_of(from);
            scales[head * BLOCK_TOKENS + slot] = scale;
            let values = &mut values[head * BLOCK_TOKENS * head_dim..][..BLOCK_TOKENS * head_dim];
            if part == 0 {
                let to = values[slot..].iter_mut().step_by(BLOCK_TOKENS);
                to.zip(from).for_each(|(to, &x)| *to = rounded(x, inverse));
            } else {
                let to = values[slot * head_dim..][..head_dim].iter_mut();
                to.zip(from).for_each(|(to, &x)| *to = rounded(x, inverse));
            }
        }
    }
}

/// absmax/127 and 127/absmax; of zeros 0 and 0, where something is not finite NaN and 0.
fn scales_of(x: &[f32]) -> (f32, f32) {
    // Compared as bits, so that NaN is greatest and never lost.
    let absmax = f32::from_bits(x.iter().fold(0, |most, x| (x.to_bits() & 0x7fff_ffff).max(most)));
    if !absmax.is_finite() {
        (f32::NAN, 0.0)
    } else if absmax < SMALLEST_ABSMAX {
        (0.0, 0.0)
    } else {
        (absmax / 127.0, 127.0 / absmax)
    }
}

/// round(x · inverse), ties to even, of a product within ±127.5; 0 for NaN.
///
/// The sum's last place is 1, so the addition rounds, and its low byte is the integer. Unlike `round_ties_even` this
/// needs no instruction that the baseline of x86-64 lacks.
fn rounded(x: f32, inverse: f32) -> i8 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23
    let product = x * inverse;
    if product.is_nan() { 0 } else { (product + SHIFT).to_bits() as i8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_land_where_the_layout_says() {
        let layout = KvLayout { layers: 2, blocks: 3, kv_heads: 2, head_dim: 16, kind: KvType::F16 };
        assert_eq!(KvCache::bytes_per_block(&layout), 2 * 2 * 2 * 16 * 16 * 2);
        let mut cache = KvCache::new(layout);
        let k: Vec<f32> = (0..32).map(|i| i as f32).collect();
        let v: Vec<f32> = (0..32).map(|i| -(i as f32)).collect();
        cache.write(1, 2, 5, &k, &v);
        let Blocks::F16(values) = cache.layer(1) else { panic!("not a cache of binary16") };
        let block = &values[2 * layout.block_len()..];
        for head in 0..2 {
            for i in 0..16 {
                let value = (head * 16 + i) as f32;
                assert_eq!(block[(head * 16 + i) * 16 + 5], f32_to_f16(value));
                assert_eq!(block[512 + (head * 16 + 5) * 16 + i], f32_to_f16(-value));
            }
        }
        let Store::F16(values) = &cache.store else { panic!("not a cache of binary16") };
        assert_eq!(values.iter().filter(|&&x| x != 0).count(), 62 + 1); // −0.0 is one of the values
    }

    #[test]
    fn int8_tokens_and_their_scales_land_where_the_layout_says() {
        let layout = KvLayout { layers: 2, blocks: 3, kv_heads: 2, head_dim: 32, kind: KvType::Int8 };
        assert_eq!(KvCache::bytes_per_block(&layout), 2 * (2 * 2 * 32 * 16 + 2 * 2 * 16 * 4));
        let mut cache = KvCache::new(layout);
        let mut x = [0.0; 128];
        for (i, x) in x.iter_mut().enumerate() {
            let absmax = (i / 32 + 1) as f32; // of k's heads 1 and 2, of v's 3 and 4
            *x = absmax * [1.0, -0.5, 0.25, -1.0][i % 4];
        }
        let (k, v) = x.split_at(64);
        cache.write(1, 2, 5, k, v);
        let Blocks::Int8 { values, scales } = cache.layer(1) else { panic!("not a cache of int8") };
        let (values, scales) = (&values[2 * layout.block_len()..], &scales[2 * 64..]);
        for head in 0..2 {
            assert_eq!(scales[head * 16 + 5], (head + 1) as f32 / 127.0);
            assert_eq!(scales[32 + head * 16 + 5], (head + 3) as f32 / 127.0);
            for i in 0..32 {
                let value = [127, -64, 32, -127][i % 4]; // 63.5 and 31.75, ties to even
                assert_eq!(values[(head * 32 + i) * 16 + 5], value, "key {head} {i}");
                assert_eq!(values[1024 + (head * 16 + 5) * 32 + i], value, "value {head} {i}");
            }
        }
        assert_eq!(scales.iter().filter(|&&x| x != 0.0).count(), 4);
        assert_eq!(values.iter().filter(|&&x| x != 0).count(), 128);
    }

    #[test]
    fn int8_rounds_as_activations_do() {
        let mut head: Vec<f32> = (0..64).map(|i| (i as f32 - 31.5) * 0.37).collect();
        head[7] = 127.0 * 0.3;
        let specials = [(f32::NAN, f32::NAN), (f32::NEG_INFINITY, f32::NAN), (1e38, 1e38 / 127.0)];
        for (special, scale) in specials {
            let mut head = head.clone();
            head[3] = special;
            let (got, inverse) = scales_of(&head);
            assert!(got == scale || (got.is_nan() && scale.is_nan()), "{special}: {got}");
            let expected = if special.is_finite() { [0, 127] } else { [0, 0] };
            assert_eq!([rounded(head[7], inverse), rounded(special, inverse)], expected, "{special}");
        }
        assert_eq!(scales_of(&[1e-37, -1e-40, 0.0]), (0.0, 0.0));
        let (_, inverse) = scales_of(&head);
        for half in -254..=254 {
            for x in
                [half as f32 * 0.5, f32::from_bits((half as f32 * 0.5).to_bits() + 1), half as f32 * 0.15]
            {
                assert_eq!(rounded(x, 1.0), x.round_ties_even() as i8, "{x}");
                let x = x * 0.3;
                assert_eq!(rounded(x, inverse), (x * inverse).round_ties_even() as i8, "{x}");
            }
        }
    }

    #[test]
    fn names_round_trip_and_unknown_names_are_refused() {
        for kind in KvType::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = "int4".parse::<KvType>().expect_err("there is no cache of int4");
        assert_eq!(error.to_string(), "unknown type of key/value cache \"int4\"; one of f16 int8");
    }

    #[test]
    #[should_panic(expected = "slot 16 of 16")]
    fn a_slot_outside_a_block_is_refused() {
        let layout = KvLayout { layers: 1, blocks: 1, kv_heads: 1, head_dim: 16, kind: KvType::F16 };
        KvCache::new(layout).write(0, 0, 16, &[0.0; 16], &[0.0; 16]);
    }
}
