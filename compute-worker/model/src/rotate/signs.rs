//! Random signs that are the same everywhere: SplitMix64 (Steele, Lea, Flood 2014) read by counter.

/// The generator's increment, `2⁶⁴/φ`.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
/// Where it starts; all that is particular to these rotations.
const SEED: u64 = 0x726F_6F6B_6572_7931;

/// `count` numbers, each `size` or `-size`; every `stream` has its own.
pub(super) fn signs(stream: u64, count: usize, size: f32) -> Vec<f32> {
    let start = mix(SEED ^ mix(stream));
    let sign = |at: u64| {
        let random = mix(start.wrapping_add(at.wrapping_add(1).wrapping_mul(GAMMA)));
        if random >> 63 == 0 { size } else { -size }
    };
    (0..count as u64).map(sign).collect()
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_fixed_balanced_and_differ_between_streams() {
        let word =
            |stream| signs(stream, 64, 1.0).iter().fold(0u64, |bits, &x| bits << 1 | u64::from(x > 0.0));
        // These numbers are part of every rotated bundle.
        assert_eq!((word(0), word(1)), (0x56B6_F316_F35D_58D0, 0x00FE_5D94_6CF2_8544));
        let sum: f32 = signs(3, 10_000, 0.5).iter().sum();
        assert!(sum.abs() < 150.0, "{sum} from 10,000 halves");
        assert_eq!(signs(3, 100, 1.0), signs(3, 10_000, 1.0)[..100]);
    }
}
