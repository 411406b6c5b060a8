use super::{Matrix, Random, tables};
use crate::{
    Activations, AttentionJob, AttentionQuery, Kernels, KeyBias, KvCache, KvLayout, KvType, LinearJob, Pool,
    RopeTable, f32_to_f16, math,
};

/// FNV-1a of the bits of a fixed workload that passes through every function of the crate. The value below was
/// computed by the scalar table on x86-64; the same test holds it for every table there and on AArch64.
const EXPECTED: u64 = 0xaf73_d77c_d72f_fc91;
/// The same of what came later: Walsh–Hadamard transforms, rows that are int8 already, an int8 cache and key biases.
const EXPECTED_ROTATED: u64 = 0xa279_749d_af8c_a485;

struct Digest(u64);

impl Digest {
    fn add(&mut self, values: &[f32]) {
        for byte in values.iter().flat_map(|v| v.to_bits().to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

fn workload(k: &Kernels, pool: &Pool) -> u64 {
    let mut digest = Digest(0xcbf2_9ce4_8422_2325);
    let mut random = Random(31);
    let (hidden, heads, kv_heads, d, rows) = (192, 6, 2, 32, 21);
    let w8 = Matrix::w8(heads * d, hidden, &mut random, |r| r.int(-127, 127) as i8);
    let w4 = Matrix::w4(heads * d, hidden, &mut random, |r| r.int(-8, 7) as i8, |r| r.int(1, 15) as u8);
    let weight = random.floats(hidden, 1.0);
    let rope = RopeTable::new(d, 4096, 1e6, 0.5, None);
    let mut cache =
        KvCache::new(KvLayout { layers: 1, blocks: 16, kv_heads, head_dim: d, kind: KvType::F16 });
    for t in 0..200 + rows {
        let (k, v) = (random.floats(kv_heads * d, 1.0), random.floats(kv_heads * d, 1.0));
        cache.write(0, (t / 16) as u32, t % 16, &k, &v);
        digest.add(&[f32::from(f32_to_f16(k[0]))]);
    }
    let x = random.floats(rows * hidden, 3.0);
    for batch in [1, 2, 3, 4, rows] {
        let mut normed = vec![0.0; batch * hidden];
        for (x, y) in x.chunks_exact(hidden).zip(normed.chunks_exact_mut(hidden)) {
            k.rms_norm(x, &weight, 1e-6, y);
        }
        digest.add(&normed);
        let mut a = Activations::new();
        k.quantize(pool, &normed, hidden, &mut a);
        let width = heads * d;
        let (mut q, mut up) = (vec![0.0; batch * width], vec![0.0; batch * width]);
        let bias = &normed[..width];
        let mut jobs = [
            LinearJob { weights: w8.view(), bias: Some(bias), out: &mut q, out_stride: width, out_column: 0 },
            LinearJob { weights: w4.view(), bias: None, out: &mut up, out_stride: width, out_column: 0 },
        ];
        k.linear(pool, &a, &mut jobs);
        digest.add(&q);
        digest.add(&up);
        for (m, row) in q.chunks_exact_mut(width).enumerate() {
            k.rope(row, d, &rope, 1000 + 17 * m);
        }
        digest.add(&q);
        let blocks: Vec<u32> = (0..14).collect();
        let queries: Vec<_> = (0..batch).map(|m| AttentionQuery { blocks: &blocks, len: 200 + m }).collect();
        let mut out = vec![0.0; batch * width];
        let job = AttentionJob { layer: 0, queries: &queries, q: &q, heads, key_bias: None };
        k.attention(pool, &cache, &job, &mut out);
        digest.add(&out);
        let mut gated = vec![0.0; batch * width];
        k.silu_mul(&out, &up, &mut gated);
        k.add_assign(&mut gated, &q);
        digest.add(&gated);
        let (max, ln) = k.log_softmax_stats(&gated);
        digest.add(&[max, ln]);
        k.softmax(&mut gated);
        digest.add(&gated);
        let mut row = vec![0.0; hidden];
        k.embed_row(&w4.view(), batch, &mut row);
        digest.add(&row);
        digest.add(&[math::exp(ln), math::ln(ln), math::sin(ln), math::cos(ln)]);
    }
    digest.0
}

fn rotated_workload(k: &Kernels, pool: &Pool) -> u64 {
    let mut digest = Digest(0xcbf2_9ce4_8422_2325);
    let mut random = Random(32);
    let (heads, kv_heads, d, rows) = (6, 2, 32, 21);
    let width = heads * d;
    let w8 = Matrix::w8(width, width, &mut random, |r| r.int(-127, 127) as i8);
    let rope = RopeTable::new(d, 4096, 1e6, 0.5, None);
    let bias = random.floats(kv_heads * d, 50.0);
    let mut caches =
        KvType::ALL.map(|kind| KvCache::new(KvLayout { layers: 1, blocks: 16, kv_heads, head_dim: d, kind }));
    for t in 0..200 + rows {
        let (mut key, v) = (random.floats(kv_heads * d, 1.0), random.floats(kv_heads * d, 1.0));
        k.rope(&mut key, d, &rope, t);
        caches.iter_mut().for_each(|cache| cache.write(0, (t / 16) as u32, t % 16, &key, &v));
    }
    let x = random.floats(rows * width, 3.0);
    let blocks: Vec<u32> = (0..14).collect();
    for batch in [1, 2, 3, 4, rows] {
        let mut q = x[..batch * width].to_vec();
        for block in [16, 32, 64] {
            k.hadamard(&mut q, block);
            digest.add(&q);
        }
        let values: Vec<i8> = q.iter().map(|x| ((x.to_bits() >> 8) as i8).max(-127)).collect();
        let scales: Vec<f32> = (0..batch).map(|m| 0.0001 + m as f32 * 1e-6).collect();
        let a = Activations::from_rows(width, &values, &scales);
        let (out_stride, out_column) = (width, 0);
        k.linear(
            pool,
            &a,
            &mut [LinearJob { weights: w8.view(), bias: None, out: &mut q, out_stride, out_column }],
        );
        digest.add(&q);
        let queries: Vec<_> = (0..batch).map(|m| AttentionQuery { blocks: &blocks, len: 200 + m }).collect();
        let mut out = vec![0.0; batch * width];
        for cache in &caches {
            for key_bias in [None, Some(KeyBias { bias: &bias, rope: &rope })] {
                let job = AttentionJob { layer: 0, queries: &queries, q: &q, heads, key_bias };
                k.attention(pool, cache, &job, &mut out);
                digest.add(&out);
            }
        }
    }
    digest.0
}

#[test]
fn the_fixed_workload_has_the_fixed_digest() {
    for kernels in tables() {
        for threads in [1, 2] {
            let pool = Pool::new(threads);
            let digests = [workload(kernels, &pool), rotated_workload(kernels, &pool)];
            let what = format!("{kernels:?} with {threads} threads: {digests:#018x?}");
            println!("{what}");
            assert_eq!(digests, [EXPECTED, EXPECTED_ROTATED], "{what}");
        }
    }
}
