//! f32 kernels over 16 strided lanes; the same source compiled for every instruction set.
//!
//! ```text
//! reduction over x[0..n]:  lane l takes x[l], x[l+16], …; the last vector is filled with a neutral value;
//!                          lanes are joined by the fixed tree of `Simd::sum`
//! rms_norm:  y = (x · 1/sqrt(Σx²/n + eps)) · w            Σ by fma
//! rope:      (a, b) = (x[i], x[i+d/2]);  y[i] = fma(a, cos, −(b·sin));  y[i+d/2] = fma(b, cos, a·sin)
//! hadamard:  in each block, for stride block/2, block/4, …, 1:  (x[i], x[i+stride]) = (x[i] + x[i+stride], x[i] − x[i+stride])
//! silu_mul:  y = (g / (1 + e^−g)) · u
//! softmax:   e^(x−max) · (1 / Σ e^(x−max))
//! quantize:  q = round(x · 127/absmax), ties to even; scale = absmax/127
//! finish:    y = (acc·sa)·sw, or fma(acc·sa, sw, bias)
//! ```
//! Vectors of 16; nothing here is tiled: a row of activations fits L1, and these kernels take about 3 % of a
//! decode step.

use crate::math::{self, EXP_COEFFICIENTS, EXP_HIGH, EXP_LOW, LN_2_HIGH, LN_2_LOW};
use crate::simd::{LANES, Simd};

/// Below this a row counts as zero: 127 / absmax would overflow.
pub(crate) const SMALLEST_ABSMAX: f32 = 1.0e-36;

/// e^x per lane: the vector twin of [`math::exp`].
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // The clamped value is the second operand, so that NaN passes.
    let x = s.min(s.splat(EXP_HIGH), x);
    let x = s.max(s.splat(EXP_LOW), x);
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-LN_2_HIGH), x);
    let r = s.fma(n, s.splat(-LN_2_LOW), r);
    let mut p = s.splat(EXP_COEFFICIENTS[0]);
    for &c in &EXP_COEFFICIENTS[1..] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    let n1 = s.round(s.mul(n, s.splat(0.5)));
    s.mul(s.mul(p, s.pow2(n1)), s.pow2(s.sub(n, n1)))
}

/// Greatest lane, by the same tree as the sum.
#[inline(always)]
pub(crate) fn max_lane<S: Simd>(s: S, v: S::V) -> f32 {
    let mut lanes = [0.0; LANES];
    s.store(v, &mut lanes);
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i] > lanes[i + width] { lanes[i] } else { lanes[i + width] };
        }
        width /= 2;
    }
    lanes[0]
}

/// Greatest value of `x`, −∞ for none.
#[inline(always)]
pub(crate) fn max<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut best = s.splat(f32::NEG_INFINITY);
    for chunk in chunks {
        best = s.max(s.load(chunk), best);
    }
    if !tail.is_empty() {
        best = s.max(s.load_part(tail, f32::NEG_INFINITY), best);
    }
    max_lane(s, best)
}

#[inline(always)]
pub(crate) fn quantize_row<S: Simd>(s: S, x: &[f32], out: &mut [i8]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut magnitude = s.splat(0.0);
    for chunk in chunks {
        magnitude = s.max_magnitude(s.load(chunk), magnitude);
    }
    magnitude = s.max_magnitude(s.load_part(tail, 0.0), magnitude);
    let mut lanes = [0.0f32; LANES];
    s.store(magnitude, &mut lanes);
    let absmax = f32::from_bits(lanes.iter().fold(0, |best, x| best.max(x.to_bits())));
    if !absmax.is_finite() {
        out.fill(0);
        return f32::NAN;
    }
    if absmax < SMALLEST_ABSMAX {
        out.fill(0);
        return 0.0;
    }
    let inverse = s.splat(127.0 / absmax);
    let (outs, out_tail) = out[..x.len()].as_chunks_mut::<LANES>();
    for (chunk, to) in chunks.iter().zip(outs) {
        s.store_i8(s.round(s.mul(s.load(chunk), inverse)), to);
    }
    let mut last = [0; LANES];
    s.store_i8(s.round(s.mul(s.load_part(tail, 0.0), inverse)), &mut last);
    out_tail.copy_from_slice(&last[..tail.len()]);
    out[x.len()..].fill(0);
    absmax / 127.0
}

#[inline(always)]
pub(crate) fn finish<S: Simd>(
    s: S,
    acc: &[i32; 64],
    sa: f32,
    sw: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let (accs, _) = acc.as_chunks::<LANES>();
    for (i, (to, acc)) in out.chunks_mut(LANES).zip(accs).enumerate() {
        let range = i * LANES..i * LANES + to.len();
        let t = s.mul(s.load_i32(acc), s.splat(sa));
        let w = s.load_part(&sw[range.clone()], 0.0);
        let y = match bias {
            Some(bias) => s.fma(t, w, s.load_part(&bias[range], 0.0)),
            None => s.mul(t, w),
        };
        s.store_part(y, to);
    }
}

#[inline(always)]
pub(crate) fn rms_norm<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut squares = s.splat(0.0);
    for chunk in chunks {
        let v = s.load(chunk);
        squares = s.fma(v, v, squares);
    }
    let v = s.load_part(tail, 0.0);
    squares = s.fma(v, v, squares);
    let factor = s.splat(1.0 / (s.sum(squares) / x.len() as f32 + eps).sqrt());
    let (weights, weight_tail) = weight.as_chunks::<LANES>();
    let (outs, out_tail) = out.as_chunks_mut::<LANES>();
    for ((x, w), y) in chunks.iter().zip(weights).zip(outs) {
        s.store(s.mul(s.mul(s.load(x), factor), s.load(w)), y);
    }
    s.store_part(s.mul(s.mul(v, factor), s.load_part(weight_tail, 0.0)), out_tail);
}

/// `table` holds cosines, then sines, `head_dim / 2` each.
#[inline(always)]
pub(crate) fn rope<S: Simd>(s: S, heads: &mut [f32], head_dim: usize, table: &[f32]) {
    let half = head_dim / 2;
    let (cos, sin) = table.split_at(half);
    for head in heads.chunks_exact_mut(head_dim) {
        let (low, high) = head.split_at_mut(half);
        for (((a, b), c), d) in
            low.chunks_mut(LANES).zip(high.chunks_mut(LANES)).zip(cos.chunks(LANES)).zip(sin.chunks(LANES))
        {
            let (x, y) = (s.load_part(a, 0.0), s.load_part(b, 0.0));
            let (c, d) = (s.load_part(c, 0.0), s.load_part(d, 0.0));
            s.store_part(s.fma(x, c, s.sub(s.splat(0.0), s.mul(y, d))), a);
            s.store_part(s.fma(y, c, s.mul(x, d)), b);
        }
    }
}

/// Strides of 16 and more are between vectors, two of them in one pass over memory; 8, 4, 2, 1 are within lanes.
#[inline(always)]
pub(crate) fn hadamard<S: Simd>(s: S, x: &mut [f32], block: usize) {
    for block in x.chunks_exact_mut(block) {
        let (vectors, _) = block.as_chunks_mut::<LANES>();
        let mut stride = vectors.len() / 2;
        while stride >= 2 {
            for group in vectors.chunks_exact_mut(2 * stride) {
                let (low, high) = group.split_at_mut(stride);
                let ((a, b), (c, d)) = (low.split_at_mut(stride / 2), high.split_at_mut(stride / 2));
                for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                    let (v, w) = butterfly(s, s.load(a), s.load(c));
                    let (x, y) = butterfly(s, s.load(b), s.load(d));
                    let ((v, x), (w, y)) = (butterfly(s, v, x), butterfly(s, w, y));
                    s.store(v, a);
                    s.store(x, b);
                    s.store(w, c);
                    s.store(y, d);
                }
            }
            stride /= 4;
        }
        if stride == 1 {
            let (pairs, _) = vectors.as_chunks_mut::<2>();
            for [a, b] in pairs {
                let (v, w) = butterfly(s, s.load(a), s.load(b));
                s.store(v, a);
                s.store(w, b);
            }
        }
        for vector in vectors {
            let v = s.butterfly::<4>(s.butterfly::<8>(s.load(vector)));
            s.store(s.butterfly::<1>(s.butterfly::<2>(v)), vector);
        }
    }
}

#[inline(always)]
fn butterfly<S: Simd>(s: S, a: S::V, b: S::V) -> (S::V, S::V) {
    (s.add(a, b), s.sub(a, b))
}

#[inline(always)]
pub(crate) fn silu_mul<S: Simd>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((g, u), y) in gate.chunks(LANES).zip(up.chunks(LANES)).zip(out.chunks_mut(LANES)) {
        let g = s.load_part(g, 0.0);
        let e = exp(s, s.sub(s.splat(0.0), g));
        let silu = s.div(g, s.add(s.splat(1.0), e));
        s.store_part(s.mul(silu, s.load_part(u, 0.0)), y);
    }
}

#[inline(always)]
pub(crate) fn add_assign<S: Simd>(s: S, x: &mut [f32], y: &[f32]) {
    for (a, b) in x.chunks_mut(LANES).zip(y.chunks(LANES)) {
        s.store_part(s.add(s.load_part(a, 0.0), s.load_part(b, 0.0)), a);
    }
}

#[inline(always)]
pub(crate) fn log_softmax_stats<S: Simd>(s: S, logits: &[f32]) -> (f32, f32) {
    let best = max(s, logits);
    let m = s.splat(best);
    let mut sums = s.splat(0.0);
    for chunk in logits.chunks(LANES) {
        sums = s.add(sums, exp(s, s.sub(s.load_part(chunk, f32::NEG_INFINITY), m)));
    }
    (best, math::ln(s.sum(sums)))
}

#[inline(always)]
pub(crate) fn softmax<S: Simd>(s: S, x: &mut [f32]) {
    let m = s.splat(max(s, x));
    let mut sums = s.splat(0.0);
    for chunk in x.chunks_mut(LANES) {
        let e = exp(s, s.sub(s.load_part(chunk, f32::NEG_INFINITY), m));
        sums = s.add(sums, e);
        s.store_part(e, chunk);
    }
    let factor = s.splat(1.0 / s.sum(sums));
    for chunk in x.chunks_mut(LANES) {
        s.store_part(s.mul(s.load_part(chunk, 0.0), factor), chunk);
    }
}
