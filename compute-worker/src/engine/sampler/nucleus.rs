//! Top-k, top-p, min-p and the draw, over probabilities.
//!
//! Only a beginning of the tokens in order of probability is ever sorted. A histogram over the leading bits of the
//! probabilities (exponent and three more: 2,048 bins) says how far down that beginning reaches.

use crate::engine::request::Sampling;

/// Bits of an f32 that are below the histogram's resolution.
const BIN_SHIFT: u32 = 20;
/// Bins for every non-negative f32.
const BINS: usize = 1 << (31 - BIN_SHIFT);
/// Margin for the difference between a sum by bins and one in order.
const MARGIN: f64 = 1.0 + 1e-9;

/// Draws a token by `uniform` in `[0, 1)` from probabilities that add up to about 1.
pub(super) fn draw(sampling: &Sampling, probabilities: &[f32], uniform: f64) -> u32 {
    if sampling.top_k == 0 && sampling.top_p >= 1.0 && sampling.min_p <= 0.0 {
        let total = sum(probabilities);
        let all = probabilities.iter().enumerate().map(|(id, &p)| (p, id as u32));
        return pick(all, uniform * total);
    }
    let kept = keep(sampling, probabilities);
    let total = kept.iter().map(|(p, _)| f64::from(*p)).sum::<f64>();
    pick(kept.iter().copied(), uniform * total)
}

/// The tokens that top-k, top-p and min-p leave, most likely first, lowest id of equals first.
pub(super) fn keep(sampling: &Sampling, probabilities: &[f32]) -> Vec<(f32, u32)> {
    let least = least_bin(sampling, probabilities);
    let candidates = probabilities.iter().enumerate().map(|(id, &p)| (p, id as u32));
    let mut kept: Vec<_> = candidates.filter(|(p, _)| *p > 0.0 && bin(*p) >= least).collect();
    kept.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if sampling.top_k > 0 {
        kept.truncate(sampling.top_k as usize);
    }
    let highest = kept.first().map_or(0.0, |(p, _)| *p);
    let by_mass = if sampling.top_p < 1.0 {
        let whole = match sampling.top_k {
            0 => sum(probabilities),
            _ => kept.iter().map(|(p, _)| f64::from(*p)).sum(),
        };
        shortest_reaching(&kept, f64::from(sampling.top_p) * whole)
    } else {
        kept.len()
    };
    let by_share = kept.partition_point(|(p, _)| *p >= sampling.min_p * highest);
    // The most likely token always stays.
    kept.truncate(by_mass.min(by_share).max(1));
    kept
}

/// Length of the shortest beginning whose probabilities add up to `mass`.
fn shortest_reaching(kept: &[(f32, u32)], mass: f64) -> usize {
    let mut reached = 0.0;
    for (index, (p, _)) in kept.iter().enumerate() {
        reached += f64::from(*p);
        if reached >= mass {
            return index + 1;
        }
    }
    kept.len()
}

/// A bin below which no token can be among those kept.
fn least_bin(sampling: &Sampling, probabilities: &[f32]) -> usize {
    // Min-p must not hide tokens from top-p's sum over what top-k kept.
    let by_share = if sampling.top_k == 0 || sampling.top_p >= 1.0 {
        bin(sampling.min_p * probabilities.iter().copied().fold(0.0, f32::max))
    } else {
        0
    };
    by_share.max(bin_by_count_or_mass(sampling, probabilities))
}

/// The bin in which top-k's count or, without top-k, top-p's mass is reached.
fn bin_by_count_or_mass(sampling: &Sampling, probabilities: &[f32]) -> usize {
    let mut counts = [0_u32; BINS];
    let mut sums = [0.0_f64; BINS];
    for &p in probabilities {
        let bin = bin(p);
        counts[bin] += 1;
        sums[bin] += f64::from(p);
    }
    let whole: f64 = sums.iter().sum();
    let wanted_mass = f64::from(sampling.top_p) * whole * MARGIN;
    let (mut count, mut mass) = (0_usize, 0.0);
    for bin in (1..BINS).rev() {
        count += counts[bin] as usize;
        mass += sums[bin];
        let enough = match sampling.top_k {
            0 => sampling.top_p < 1.0 && mass >= wanted_mass,
            k => count >= k as usize,
        };
        if enough {
            return bin;
        }
    }
    0
}

fn bin(p: f32) -> usize {
    (p.to_bits() >> BIN_SHIFT) as usize & (BINS - 1)
}

/// The first token at which the running sum passes `target`; the last one that has a probability if none does.
fn pick(tokens: impl Iterator<Item = (f32, u32)>, target: f64) -> u32 {
    let mut reached = 0.0;
    let mut last = 0;
    for (p, id) in tokens {
        if p > 0.0 {
            reached += f64::from(p);
            last = id;
            if reached > target {
                break;
            }
        }
    }
    last
}

/// Sum in 8 strided lanes, then in order of lanes.
fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&value| f64::from(value)).sum::<f64>()
}
