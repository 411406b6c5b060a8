use super::{Random, bits, tables};
use crate::{
    AttentionJob, AttentionQuery, BLOCK_TOKENS, Kernels, KeyBias, KvCache, KvLayout, KvType, Pool, RopeTable,
    f16_to_f32, f32_to_f16,
};

/// Keys and values as the cache rounds them, the keys with their bias.
type Token = [Vec<f64>; 2];

/// Sequences of random keys and values in scattered blocks of one cache.
struct Scene {
    cache: KvCache,
    heads: usize,
    /// Per sequence: its blocks and its tokens.
    sequences: Vec<(Vec<u32>, Vec<Token>)>,
    rope: RopeTable,
    /// What the keys are to be given, `[kv_heads][head_dim]`.
    bias: Option<Vec<f32>>,
}

const LAYER: usize = 1;
const THETA: f64 = 1e4;

/// What reading gives back of a stored token's head.
fn stored(kind: KvType, head: &[f32]) -> Vec<f64> {
    let read: Vec<f32> = match kind {
        KvType::F16 => head.iter().map(|&x| f16_to_f32(f32_to_f16(x))).collect(),
        KvType::Int8 => {
            let absmax = head.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            let integer = |x: f32| (x * (127.0 / absmax)).round_ties_even();
            head.iter().map(|&x| integer(x) * (absmax / 127.0)).collect()
        }
    };
    read.into_iter().map(f64::from).collect()
}

/// Adds a head's bias, rotated to a position, to a key.
fn add_bias(key: &mut [f64], bias: &[f32], position: usize) {
    let d = key.len();
    let (x, y) = bias.split_at(d / 2);
    for i in 0..d / 2 {
        let (x, y) = (f64::from(x[i]), f64::from(y[i]));
        let (sin, cos) = (position as f64 * THETA.powf(-2.0 * i as f64 / d as f64)).sin_cos();
        key[i] += x * cos - y * sin;
        key[d / 2 + i] += y * cos + x * sin;
    }
}

impl Scene {
    /// Heads of q, k and v: `group · kv_heads`, `kv_heads`, `kv_heads`.
    fn new(
        random: &mut Random,
        kind: KvType,
        [head_dim, kv_heads, group]: [usize; 3],
        lens: &[usize],
        bias: Option<f32>,
    ) -> Scene {
        let blocks: usize = lens.iter().map(|len| len.div_ceil(BLOCK_TOKENS)).sum();
        let mut cache = KvCache::new(KvLayout { layers: 2, blocks: blocks + 1, kv_heads, head_dim, kind });
        // Whatever earlier owners left in a block must not matter.
        let rubbish = vec![f32::INFINITY; kv_heads * head_dim];
        for block in 0..=blocks {
            (0..BLOCK_TOKENS).for_each(|slot| cache.write(LAYER, block as u32, slot, &rubbish, &rubbish));
        }
        let bias = bias.map(|scale| random.floats(kv_heads * head_dim, scale));
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
                let read = |x: &[f32]| -> Vec<f64> {
                    x.chunks_exact(head_dim).flat_map(|head| stored(kind, head)).collect()
                };
                let mut key = read(&k);
                let biases = bias.iter().flat_map(|bias| bias.chunks_exact(head_dim));
                key.chunks_exact_mut(head_dim).zip(biases).for_each(|(key, bias)| add_bias(key, bias, t));
                tokens.push([key, read(&v)]);
            }
            sequences.push((table, tokens));
        }
        let longest = lens.iter().copied().max().unwrap_or(0);
        let rope = RopeTable::new(head_dim, longest, THETA, 1.0, None);
        Scene { cache, heads: kv_heads * group, sequences, rope, bias }
    }

    fn width(&self) -> usize {
        self.heads * self.cache.layout().head_dim
    }

    fn run(&self, kernels: &Kernels, pool: &Pool, rows: &[(usize, usize)], q: &[f32]) -> Vec<f32> {
        let queries: Vec<AttentionQuery<'_>> =
            rows.iter().map(|&(s, len)| AttentionQuery { blocks: &self.sequences[s].0, len }).collect();
        let mut out = vec![7.0; rows.len() * self.width()];
        let key_bias = self.bias.as_deref().map(|bias| KeyBias { bias, rope: &self.rope });
        let job = AttentionJob { layer: LAYER, queries: &queries, q, heads: self.heads, key_bias };
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
            let dot = |k: &[f64]| q.iter().zip(k).map(|(&q, k)| f64::from(q) * k).sum::<f64>();
            let scores: Vec<f64> =
                tokens.iter().map(|[k, _]| dot(&k[at..at + head_dim]) / (head_dim as f64).sqrt()).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let total: f64 = p.iter().sum();
            out.extend(
                (0..head_dim)
                    .map(|i| tokens.iter().zip(&p).map(|([_, v], p)| p / total * v[at + i]).sum::<f64>()),
            );
        }
        out
    }
}

/// Every kind of cache, with and without a bias.
const FORMS: [(KvType, Option<f32>); 4] =
    [(KvType::F16, None), (KvType::F16, Some(3.0)), (KvType::Int8, None), (KvType::Int8, Some(3.0))];

#[test]
fn attention_is_right_and_the_same_everywhere() {
    let mut random = Random(21);
    let pools = [Pool::new(1), Pool::new(3)];
    for shape in [[16, 1, 1], [48, 3, 2], [64, 2, 7], [80, 1, 3], [128, 2, 4], [32, 1, 12]] {
        for (kind, bias) in FORMS {
            let scene = Scene::new(&mut random, kind, shape, &[1, 16, 17, 300, 129], bias);
            let mut rows: Vec<(usize, usize)> =
                (0..scene.sequences.len()).map(|s| (s, scene.sequences[s].1.len())).collect();
            rows.extend((100..140).map(|len| (3, len))); // a chunk of prefill that crosses 128 tokens
            let q = random.floats(rows.len() * scene.width(), 2.0);
            let expected = scene.run(tables()[0], &pools[0], &rows, &q);
            for (m, row) in rows.iter().enumerate() {
                let range = m * scene.width()..(m + 1) * scene.width();
                for (got, exact) in expected[range.clone()].iter().zip(scene.exact(*row, &q[range])) {
                    let what = format!("{shape:?} {kind} {bias:?} row {m}: {got} is not {exact}");
                    assert!((f64::from(*got) - exact).abs() < 2e-5, "{what}");
                }
            }
            for kernels in tables() {
                for pool in &pools {
                    let out = scene.run(kernels, pool, &rows, &q);
                    assert_eq!(bits(&out), bits(&expected), "{kernels:?} {shape:?} {kind} {bias:?} {pool:?}");
                }
            }
        }
    }
}

#[test]
fn any_shape_gives_the_scalar_bits() {
    let mut random = Random(24);
    let pools = [1, 2, 3, 4].map(Pool::new);
    for case in 0..60 {
        let (kind, bias) = FORMS[case % FORMS.len()];
        let shape = [16 * random.int(1, 10), random.int(1, 3), random.int(1, 9)].map(|x| x as usize);
        let lens: Vec<usize> = (0..random.int(1, 4)).map(|_| random.int(1, 200) as usize).collect();
        let scene = Scene::new(&mut random, kind, shape, &lens, bias.map(|scale| scale * 30.0));
        let rows: Vec<(usize, usize)> = (0..random.int(1, 40))
            .map(|_| {
                let sequence = random.int(0, lens.len() as i64 - 1) as usize;
                (sequence, random.int(1, lens[sequence] as i64) as usize)
            })
            .collect();
        let q = random.floats(rows.len() * scene.width(), 2.0);
        let expected = bits(&scene.run(tables()[0], &pools[0], &rows, &q));
        for kernels in tables() {
            let out = scene.run(kernels, &pools[case / FORMS.len() % pools.len()], &rows, &q);
            assert_eq!(bits(&out), expected, "{kernels:?} {shape:?} {lens:?} {rows:?} {kind} {bias:?}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_is_beside_it() {
    let mut random = Random(22);
    for (kind, bias) in [FORMS[0], FORMS[3]] {
        let scene = Scene::new(&mut random, kind, [64, 2, 7], &[290, 45], bias);
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
                    assert_eq!(bits(&alone), bits(&together[range]), "{kernels:?} {kind} {chunk}, {i}");
                }
            }
        }
    }
}

/// Greatest distance of the outputs from attention over unrounded keys with the bias.
fn error(kind: KvType, late: bool) -> f32 {
    let (d, len, pool, kernels) = (64, 100, Pool::new(1), Kernels::detect());
    let mut random = Random(25);
    let mut bias = random.floats(d, 3.0);
    bias[d - 1] = 211.0; // the greatest of a Qwen2.5's: turns slowly, so queries all but cancel it
    let rope = RopeTable::new(d, len, 1e6, 1.0, None);
    let layout = KvLayout { layers: 1, blocks: 7, kv_heads: 1, head_dim: d, kind };
    let (mut cache, blocks) = (KvCache::new(layout), [6, 0, 3, 1, 5, 2, 4]);
    let mut q = random.floats(d, 3.0);
    (q[d / 2 - 1], q[d - 1]) = (0.02, 0.02);
    let (mut scores, mut values) = (Vec::new(), Vec::new());
    for t in 0..len {
        let (mut k, v) = (random.floats(d, 2.0), random.floats(d, 2.0));
        let mut full: Vec<f32> = k.iter().zip(&bias).map(|(k, b)| k + b).collect();
        kernels.rope(&mut full, d, &rope, t);
        kernels.rope(&mut k, d, &rope, t);
        cache.write(0, blocks[t / BLOCK_TOKENS], t % BLOCK_TOKENS, if late { &k } else { &full }, &v);
        scores.push(q.iter().zip(&full).map(|(q, k)| q * k).sum::<f32>() / (d as f32).sqrt());
        values.push(v);
    }
    kernels.softmax(&mut scores);
    let queries = [AttentionQuery { blocks: &blocks, len }];
    let key_bias = late.then_some(KeyBias { bias: &bias, rope: &rope });
    let mut out = vec![0.0; d];
    let job = AttentionJob { layer: 0, queries: &queries, q: &q, heads: 1, key_bias };
    kernels.attention(&pool, &cache, &job, &mut out);
    let exact = |i: usize| scores.iter().zip(&values).map(|(p, v)| p * v[i]).sum::<f32>();
    out.iter().enumerate().fold(0.0, |most, (i, x)| most.max((x - exact(i)).abs()))
}

#[test]
fn a_large_bias_does_not_harm_int8_keys_that_come_without_it() {
    let [late, early] = [true, false].map(|late| error(KvType::Int8, late));
    assert!(late < 0.03 && early > 10.0 * late, "errors: {late} added late, {early} stored");
    assert!(error(KvType::F16, true) < 0.01);
}

#[test]
fn numbers_that_are_not_finite_stay_in_their_row() {
    let mut random = Random(23);
    for kind in KvType::ALL {
        let mut scene = Scene::new(&mut random, kind, [32, 1, 2], &[20], None);
        let rows = [(0, 18), (0, 19), (0, 20)];
        let q = random.floats(3 * scene.width(), 1.0);
        let mut dirty = q.clone();
        dirty[scene.width() + 3] = f32::NAN;
        let pool = Pool::new(1);
        let expected = bits(&scene.run(tables()[0], &pool, &rows, &dirty));
        let w = scene.width();
        for kernels in tables() {
            let (good, bad) =
                (scene.run(kernels, &pool, &rows, &q), scene.run(kernels, &pool, &rows, &dirty));
            assert_eq!(bits(&bad), expected, "{kernels:?}");
            assert_eq!(bits(&bad[..w]), bits(&good[..w]));
            assert_eq!(bits(&bad[2 * w..]), bits(&good[2 * w..]));
            assert!(bad[w..w + 32].iter().all(|x| x.is_nan()));
        }
        // A token whose key or value was not finite spoils the rows that see it.
        let blocks = scene.sequences[0].0.clone();
        let before = scene.run(tables()[0], &pool, &rows, &q);
        let (mut k, v) = (vec![1.0; 32], vec![1.0; 32]);
        k[3] = f32::NAN;
        scene.cache.write(LAYER, blocks[1], 2, &k, &v);
        for kernels in tables() {
            let after = scene.run(kernels, &pool, &rows, &q);
            assert_eq!(bits(&after[..w]), bits(&before[..w]), "{kernels:?} {kind}");
            assert!(after[w..].iter().all(|x| x.is_nan()), "{kernels:?} {kind}");
        }
    }
}

/// Attention of one query over a small cache.
fn small(blocks: &[u32], len: usize, key_bias: Option<KeyBias<'_>>) {
    let layout = KvLayout { layers: 1, blocks: 2, kv_heads: 1, head_dim: 16, kind: KvType::F16 };
    let queries = [AttentionQuery { blocks, len }];
    let job = AttentionJob { layer: 0, queries: &queries, q: &[0.0; 16], heads: 1, key_bias };
    Kernels::detect().attention(&Pool::new(1), &KvCache::new(layout), &job, &mut [0.0; 16]);
}

#[test]
#[should_panic(expected = "attention: block 9 of 2")]
fn a_block_outside_the_cache_is_refused() {
    small(&[9], 1, None);
}

#[test]
#[should_panic(expected = "attention: bias of 15 keys, not 16")]
fn a_bias_of_another_length_is_refused() {
    let rope = RopeTable::new(16, 32, THETA, 1.0, None);
    small(&[0], 1, Some(KeyBias { bias: &[0.0; 15], rope: &rope }));
}

#[test]
#[should_panic(expected = "attention: 17 tokens, rope table of 16")]
fn a_rope_table_that_is_too_short_is_refused() {
    let rope = RopeTable::new(16, 16, THETA, 1.0, None);
    small(&[0, 1], 17, Some(KeyBias { bias: &[0.0; 16], rope: &rope }));
}
