//! Elementary functions without libm, so that every target gives the same bits.
//!
//! `exp` is the scalar twin of the vector code in `float::body`: the same fused operations in the same order.
//! The others work in f64 with plain (never contracted) operations and round once. Largest errors found by
//! the tests below against std's f64 functions: `exp` 1.02 ulp, `ln`, `sin` and `cos` 0.501 ulp.

/// Above this `exp` is infinite; the clamp keeps the exponent arithmetic in range.
pub(crate) const EXP_HIGH: f32 = 89.0;
/// Below this `exp` is zero.
pub(crate) const EXP_LOW: f32 = -105.0;
/// ln 2 rounded to f32.
pub(crate) const LN_2_HIGH: f32 = std::f32::consts::LN_2;
/// ln 2 − [`LN_2_HIGH`].
pub(crate) const LN_2_LOW: f32 = -1.904_654_3e-9;
/// Taylor coefficients 1/7! … 1/2! of e^r: for |r| ≤ ln 2 / 2 the rest is below 2^-27 of the value.
pub(crate) const EXP_COEFFICIENTS: [f32; 6] =
    [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];

/// e^x, at most 1.1 ulp off; 0 below −104, infinite above 88.8, NaN for NaN.
pub fn exp(x: f32) -> f32 {
    // Written as comparisons, not min/max, so that NaN passes through as in the vector code.
    let x = if EXP_HIGH < x { EXP_HIGH } else { x };
    let x = if EXP_LOW > x { EXP_LOW } else { x };
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-LN_2_HIGH, x);
    let r = n.mul_add(-LN_2_LOW, r);
    let mut p = EXP_COEFFICIENTS[0];
    for &c in &EXP_COEFFICIENTS[1..] {
        p = p.mul_add(r, c);
    }
    let p = (r * r).mul_add(p, r) + 1.0;
    // Two factors, so that results below 2^-126 are rounded once and those near 2^128 do not overflow early.
    let n1 = (n * 0.5).round_ties_even();
    p * pow2(n1) * pow2(n - n1)
}

/// 2^n for integral n in −126…127.
#[inline(always)]
pub(crate) fn pow2(n: f32) -> f32 {
    f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23)
}

/// Natural logarithm: −∞ for 0, NaN below.
pub fn ln(x: f32) -> f32 {
    ln_f64(f64::from(x)) as f32
}

/// Sine of x radians, |x| ≤ 2^20; NaN for what is not finite.
pub fn sin(x: f32) -> f32 {
    sin_cos_f64(f64::from(x)).0 as f32
}

/// Cosine of x radians, |x| ≤ 2^20; NaN for what is not finite.
pub fn cos(x: f32) -> f32 {
    sin_cos_f64(f64::from(x)).1 as f32
}

/// Natural logarithm in f64, about 1 ulp.
pub(crate) fn ln_f64(x: f64) -> f64 {
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x.is_infinite() {
        return x;
    }
    let (scaled, offset) = if x < f64::MIN_POSITIVE { (x * 2f64.powi(54), -54) } else { (x, 0) };
    let bits = scaled.to_bits();
    let mut exponent = ((bits >> 52) as i64) - 1023 + offset;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh(s), s = (m-1)/(m+1), |s| < 0.172: 11 terms reach 2^-56.
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 0.0;
    for k in (1..=11).rev() {
        p = (p + 1.0 / f64::from(2 * k + 1)) * z;
    }
    let e = exponent as f64;
    e * std::f64::consts::LN_2 + (2.0 * s + 2.0 * s * p)
}

/// e^x in f64, about 2 ulp for |x| ≤ 700; saturates beyond.
pub(crate) fn exp_f64(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let x = x.clamp(-700.0, 700.0);
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    // ln 2 in two parts, the first with 33 bits, so that n times it is exact.
    let r = (x - n * 0.693_147_180_369_123_8) - n * 1.908_214_929_270_587_7e-10;
    let mut p = 1.0;
    for k in (1..=14).rev() {
        p = 1.0 + p * r / f64::from(k);
    }
    p * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// Sine and cosine in f64, |x| ≤ 2^20: an absolute error of about 2^-52.
pub(crate) fn sin_cos_f64(x: f64) -> (f64, f64) {
    // pi/2 in three parts of 33 bits: n times each of the first two is exact for n < 2^20.
    const PART_1: f64 = f64::from_bits(0x3ff9_21fb_5440_0000);
    const PART_2: f64 = f64::from_bits(0x3dd0_b461_1a60_0000);
    const PART_3: f64 = f64::from_bits(0x3ba3_198a_2e03_7073);
    if !x.is_finite() {
        return (f64::NAN, f64::NAN);
    }
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = ((x - n * PART_1) - n * PART_2) - n * PART_3;
    let z = r * r;
    let (mut s, mut c) = (1.0, 1.0);
    for k in (1..=9).rev() {
        let k = f64::from(2 * k);
        s = 1.0 - s * z / (k * (k + 1.0));
        c = 1.0 - c * z / (k * (k - 1.0));
    }
    let s = s * r;
    match (n as i64).rem_euclid(4) {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance of `got` from the true value in units of the last place of f32 there.
    fn ulps(got: f32, exact: f64) -> f64 {
        let near = exact as f32;
        let step = f64::from(f32::from_bits(near.abs().to_bits() + 1)) - f64::from(near.abs());
        ((f64::from(got) - exact) / step).abs()
    }

    fn worst(range: std::ops::Range<f64>, steps: u32, got: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        let width = (range.end - range.start) / f64::from(steps);
        let at = |i: u32| (range.start + (f64::from(i) + 0.37) * width) as f32;
        (0..steps).map(|i| ulps(got(at(i)), exact(f64::from(at(i))))).fold(0.0, f64::max)
    }

    #[test]
    fn errors_stay_below_the_stated_bounds() {
        let found = [
            (worst(-87.0..88.7, 400_000, exp, f64::exp), 1.1),
            (worst(-103.0..-87.0, 100_000, exp, f64::exp), 1.0),
            (worst(1e-6..4.0, 400_000, ln, f64::ln), 0.501),
            (worst(4.0..1e30, 100_000, ln, f64::ln), 0.501),
            (worst(-7.0..7.0, 400_000, sin, f64::sin), 0.501),
            (worst(-7.0..7.0, 400_000, cos, f64::cos), 0.501),
            (worst(0.0..1_000_000.0, 400_000, sin, f64::sin), 0.501),
        ];
        println!("largest errors in ulp: {found:?}");
        assert!(found.iter().all(|(error, bound)| error <= bound), "{found:?}");
    }

    #[test]
    fn f64_functions_agree_with_std() {
        for i in 1..20_000 {
            let x = f64::from(i) * 0.0517 - 500.0;
            assert!((exp_f64(x) / x.exp() - 1.0).abs() < 1e-15 * 4.0, "exp {x}");
            let y = f64::from(i) * 13.7;
            assert!((ln_f64(y) - y.ln()).abs() <= 4e-16 * y.ln().abs().max(1.0), "ln {y}");
            let (s, c) = sin_cos_f64(y);
            assert!((s - y.sin()).abs() < 1e-15 && (c - y.cos()).abs() < 1e-15, "sin {y}");
        }
    }

    #[test]
    fn edges_behave_as_documented() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(88.0), 88f64.exp() as f32);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(-104.5), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(ln(0.0), f32::NEG_INFINITY);
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(f32::INFINITY), f32::INFINITY);
        assert!(ln(-1.0).is_nan() && ln(f32::NAN).is_nan());
        assert!(sin(f32::INFINITY).is_nan() && cos(f32::NAN).is_nan());
    }
}
