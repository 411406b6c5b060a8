//! Per-channel operands of the DPU's first stage, as its RDMA reads them.
//!
//! For every eight channels: eight int32 addends, then eight int16 weights' zero points, then eight int16
//! multipliers; parts that a task does not use are left out (seen in the vendor's constants and reproduced by
//! an independent interpreter).

/// Channels in one run of operands.
pub const RUN: usize = 8;

/// Packs addends only: one int32 a channel.
pub fn pack_addends(addends: &[i32]) -> Vec<u8> {
    addends.iter().flat_map(|addend| addend.to_le_bytes()).collect()
}

/// Packs addends, zero points (all 0) and multipliers; the last run is padded with zeros.
///
/// # Panics
/// When the slices differ in length.
pub fn pack_per_channel(addends: &[i32], multipliers: &[i16]) -> Vec<u8> {
    assert_eq!(addends.len(), multipliers.len(), "one multiplier per addend");
    let mut out = Vec::with_capacity(addends.len().next_multiple_of(RUN) * 8);
    for (addends, multipliers) in addends.chunks(RUN).zip(multipliers.chunks(RUN)) {
        let padding = RUN - addends.len();
        out.extend(pack_addends(addends));
        out.resize(out.len() + padding * 4 + RUN * 2, 0);
        out.extend(multipliers.iter().flat_map(|multiplier| multiplier.to_le_bytes()));
        out.resize(out.len() + padding * 2, 0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_eight_channels() {
        let addends: Vec<i32> = (0..9).collect();
        let multipliers: Vec<i16> = (100..109).collect();
        let bytes = pack_per_channel(&addends, &multipliers);
        assert_eq!(bytes.len(), 2 * 64);
        assert_eq!(bytes[4 * 4], 4);
        assert_eq!(bytes[32..48], [0; 16]);
        assert_eq!(bytes[48 + 2], 101);
        assert_eq!(bytes[64], 8);
        assert_eq!(bytes[64 + 48], 108);
    }
}
