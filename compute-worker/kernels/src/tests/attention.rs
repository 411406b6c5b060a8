use super::{Random, bits, tables};
use crate::{
    AttentionJob, AttentionQuery, BLOCK_TOKENS, Kernels, KvCache, KvLayout, KvType, Pool, f16_to_f32,
    f32_to_f16,
};

/// Keys and values as rounded to binary16.
type Token = [Vec<f32>; 2];

/// Sequences of random keys and values in scattered blocks of one cache.
struct Scene {
    cache: KvCache,
    heads: usize,
    /// Per sequence: its blocks and its tokens.
    sequences: Vec<(Vec<u32>, Vec<Token>)>,
}

const LAYER: usize = 1;

impl Scene {
    fn new(random: &mut Random, head_dim: usize, kv_heads: usize, group: usize, lens: &[usize]) -> Scene {
        let blocks: usize = lens.iter().map(|len| len.div_ceil(BLOCK_TOKENS)).sum();
        let mut cache =
            KvCache::new(KvLayout { layers: 2, blocks: blocks + 1, kv_heads, head_dim, kind: KvType::F16 });
        // Whatever earlier owners left in a block must not matter.
        let rubbish = vec![f32::INFINITY; kv_heads * head_dim];
        for block in 0..=blocks {
            (0..BLOCK_TOKENS).for_each(|slot| cache.write(LAYER, block as u32, slot, &rubbish, &rubbish));
        }
        let mut next = blocks as u32;
        let mut sequences = Vec::new();
        for &len in lens {
            let table: Vec<u32> = (0..len.div_ceil(BLOCK_TOKENS))
                .map(|_| {
                    next -= 1;
                    next
                })
                .collect();
            let mut tokens = Vec::new();
            for t in 0..len {
                let k = random.floats(kv_heads * head_dim, 2.0);
                let v = random.floats(kv_heads * head_dim, 2.0);
                cache.write(LAYER, table[t / BLOCK_TOKENS], t % BLOCK_TOKENS, &k, &v);
                let rounded = |x: &[f32]| x.iter().map(|&x| f16_to_f32(f32_to_f16(x))).collect();
                tokens.push([rounded(&k), rounded(&v)]);
            }
            sequences.push((table, tokens));
        }
        Scene { cache, heads: kv_heads * group, sequences }
    }

    fn width(&self) -> usize {
        self.heads * self.cache.layout().head_dim
    }

    fn run(&self, kernels: &Kernels, pool: &Pool, rows: &[(usize, usize)], q: &[f32]) -> Vec<f32> {
        let queries: Vec<AttentionQuery<'_>> =
            rows.iter().map(|&(s, len)| AttentionQuery { blocks: &self.sequences[s].0, len }).collect();
        let mut out = vec![7.0; rows.len() * self.width()];
        let job = AttentionJob { layer: LAYER, queries: &queries, q, heads: self.heads, key_bias: None };
        kernels.attention(pool, &self.cache, &job, &mut out);
        out
    }

    /// The definition, in f64.
    fn exact(&self, (sequence, len): (usize, usize), q: &[f32]) -> Vec<f64> {
        let KvLayout { kv_heads, head_dim, .. } = *self.cache.layout();
        let tokens = &self.sequences[sequence].1[..len];
        let mut out = Vec::new();
        for (head, q) in q.chunks_exact(head_dim).enumerate() {
            let at = head / (self.heads / kv_heads) * head_dim;
            let dot = |k: &[f32]| q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
            let scores: Vec<f64> =
                tokens.iter().map(|[k, _]| dot(&k[at..at + head_dim]) / (head_dim as f64).sqrt()).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let total: f64 = p.iter().sum();
            out.extend((0..head_dim).map(|i| {
                tokens.iter().zip(&p).map(|([_, v], p)| p / total * f64::from(v[at + i])).sum::<f64>()
            }));
        }
        out
    }
}

#[test]
fn attention_is_right_and_the_same_everywhere() {
    let mut random = Random(21);
    let pools = [Pool::new(1), Pool::new(3)];
    for (head_dim, kv_heads, group) in
        [(16, 1, 1), (48, 3, 2), (64, 2, 7), (80, 1, 3), (128, 2, 4), (32, 1, 12)]
    {
        let scene = Scene::new(&mut random, head_dim, kv_heads, group, &[1, 16, 17, 300, 129]);
        let mut rows: Vec<(usize, usize)> =
            (0..scene.sequences.len()).map(|s| (s, scene.sequences[s].1.len())).collect();
        rows.extend((100..140).map(|len| (3, len))); // a chunk of prefill that crosses 128 tokens
        let q = random.floats(rows.len() * scene.width(), 2.0);
        let expected = scene.run(tables()[0], &pools[0], &rows, &q);
        for (m, row) in rows.iter().enumerate() {
            let range = m * scene.width()..(m + 1) * scene.width();
            for (got, exact) in expected[range.clone()].iter().zip(scene.exact(*row, &q[range])) {
                assert!((f64::from(*got) - exact).abs() < 2e-5, "d={head_dim} row {m}: {got} is not {exact}");
            }
        }
        for kernels in tables() {
            for pool in &pools {
                let out = scene.run(kernels, pool, &rows, &q);
                assert_eq!(bits(&out), bits(&expected), "{kernels:?} d={head_dim} {pool:?}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_is_beside_it() {
    let mut random = Random(22);
    let scene = Scene::new(&mut random, 64, 2, 7, &[290, 45]);
    let rows: Vec<(usize, usize)> =
        (250..=290).map(|len| (0, len)).chain((30..=45).map(|len| (1, len))).collect();
    let (width, pool) = (scene.width(), Pool::new(2));
    let q = random.floats(rows.len() * width, 2.0);
    for kernels in tables() {
        let together = scene.run(kernels, &pool, &rows, &q);
        for chunk in [1, 2, 3, 7, 16, 50] {
            for (i, part) in rows.chunks(chunk).enumerate() {
                let range = i * chunk * width..(i * chunk + part.len()) * width;
                let alone = scene.run(kernels, &pool, part, &q[range.clone()]);
                assert_eq!(bits(&alone), bits(&together[range]), "{kernels:?} chunks of {chunk}, {i}");
            }
        }
    }
}

#[test]
fn numbers_that_are_not_finite_stay_in_their_row() {
    let mut random = Random(23);
    let scene = Scene::new(&mut random, 32, 1, 2, &[20]);
    let rows = [(0, 18), (0, 19), (0, 20)];
    let q = random.floats(3 * scene.width(), 1.0);
    let mut dirty = q.clone();
    dirty[scene.width() + 3] = f32::NAN;
    let pool = Pool::new(1);
    let expected = bits(&scene.run(tables()[0], &pool, &rows, &dirty));
    for kernels in tables() {
        let (good, bad) = (scene.run(kernels, &pool, &rows, &q), scene.run(kernels, &pool, &rows, &dirty));
        assert_eq!(bits(&bad), expected, "{kernels:?}");
        let w = scene.width();
        assert_eq!(bits(&bad[..w]), bits(&good[..w]));
        assert_eq!(bits(&bad[2 * w..]), bits(&good[2 * w..]));
        assert!(bad[w..w + 32].iter().all(|x| x.is_nan()));
    }
}

#[test]
#[should_panic(expected = "attention: block 9 of 2")]
fn a_block_outside_the_cache_is_refused() {
    let cache = KvCache::new(KvLayout { layers: 1, blocks: 2, kv_heads: 1, head_dim: 16, kind: KvType::F16 });
    let queries = [AttentionQuery { blocks: &[9], len: 1 }];
    let job = AttentionJob { layer: 0, queries: &queries, q: &[0.0; 16], heads: 1, key_bias: None };
    Kernels::detect().attention(&Pool::new(1), &cache, &job, &mut [0.0; 16]);
}
