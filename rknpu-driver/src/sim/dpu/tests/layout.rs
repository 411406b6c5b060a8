//! Where the output goes: groups, lines, pad lanes, transpositions.

use crate::regcmd::registers::{dpu, dpu_rdma};
use crate::sim::dpu::bench::{Bench, OUTPUT, SOURCE};
use crate::sim::float::to_f16;
use crate::sim::{SimError, UndecodedKind};

/// 16-bit lanes in and out, untouched.
fn moving(width: u32, height: u32, channels: u32) -> Bench {
    let bench = Bench::flying(width, height, channels, (1, 1, 1));
    let lanes = width * height * channels.next_multiple_of(8);
    bench.fill_u16(SOURCE, &(0..lanes).map(|value| value as u16).collect::<Vec<_>>());
    bench
}

/// An output of `width` × `height` atoms, groups of `group` surfaces `surface` bytes apart, `add` from group to
/// group.
fn output(bench: &mut Bench, size: (u32, u32), group: u32, surface: u32, add: u32, notch: u32) {
    let e = group - 1;
    bench.set(dpu::BS_OW_CFG, e << 8 | e << 5 | e << 2 | 2);
    bench.set(dpu::WDMA_SIZE_1, (size.1 - 1) << 16 | (size.0 - 1));
    bench.set(dpu::DST_SURF_STRIDE, surface);
    bench.set(dpu::SURFACE_ADD, add);
    bench.set(dpu::DATA_CUBE_NOTCH_ADDR, notch << 16 | notch);
}

#[test]
fn groups_lines_and_pad_lanes() {
    // 20 channels of 2 x 2 pixels: three surfaces in groups of two, lines four pixels apart, two lanes a pad of 0xfbff.
    let mut bench = moving(2, 2, 20);
    output(&mut bench, (2, 2), 2, 0x200, 0x1000, 2);
    bench.set(dpu::OFFSET_PEND, 0xfbff);
    bench.run(None).unwrap();
    for (surface, at) in [(0, 0), (1, 0x200), (2, 0x1000)] {
        for (pixel, offset) in [(0, 0), (1, 16), (2, 64), (3, 80)] {
            let first = (surface * 4 + pixel) * 8;
            let expected: Vec<u16> =
                (0..8).map(|lane| if surface == 2 && lane > 3 { 0xfbff } else { first + lane }).collect();
            assert_eq!(bench.u16s(OUTPUT + at + offset, 8), expected, "surface {surface}, pixel {pixel}");
        }
    }
    let mut byte = [0];
    assert!(bench.memory.read(OUTPUT + 32, &mut byte).is_err(), "the notch is left alone");
}

#[test]
fn an_output_may_have_another_shape_than_the_input() {
    // 2 x 3 pixels are read with a line notch of one and written as 6 x 1.
    let mut bench = moving(3, 3, 8);
    bench.set(dpu::DATA_CUBE_WIDTH, 5);
    bench.set(dpu::DATA_CUBE_HEIGHT, 0);
    bench.set(dpu_rdma::RDMA_DATA_CUBE_WIDTH, 1);
    bench.field(dpu_rdma::rdma_src_dma_cfg::LINE_NOTCH_ADDR, 1);
    output(&mut bench, (6, 1), 1, 0x60, 0x60, 0);
    bench.run(None).unwrap();
    let firsts: Vec<u16> = bench.u16s(OUTPUT, 48).into_iter().step_by(8).collect();
    assert_eq!(firsts, [0, 8, 24, 32, 48, 56]);
    bench.set(dpu::DATA_CUBE_WIDTH, 4);
    assert!(bench.run(None).unwrap_err().to_string().contains("WDMA_SIZE_1"));
}

#[test]
fn eight_by_eight_lanes_are_transposed() {
    // Two surfaces of 16 pixels: two blocks of two octets.
    let mut bench = moving(16, 1, 16);
    bench.field(dpu::bs_ow_cfg::TP_ORG_EN, 1);
    output(&mut bench, (1, 2), 8, 0x10, 0x80, 15);
    bench.field(dpu::bs_ow_cfg::TP_ORG_EN, 1);
    bench.field(dpu::wdma_size_0::TP_PRECISION, 1);
    bench.field(dpu::wdma_size_0::SIZE_C_WDMA, 1);
    bench.run(None).unwrap();
    for (block, octet, lane) in (0..2).flat_map(|b| (0..2).flat_map(move |q| (0..8).map(move |e| (b, q, e))))
    {
        let at = block * 0x80 + octet * 0x100 + lane * 0x10;
        let expected: Vec<u16> =
            (0..8).map(|pixel| (block * 128 + octet * 64 + pixel * 8 + lane) as u16).collect();
        assert_eq!(bench.u16s(OUTPUT + at, 8), expected, "block {block}, octet {octet}, lane {lane}");
    }
    bench.field(dpu::wdma_size_0::SIZE_C_WDMA, 2);
    assert!(matches!(bench.run(None), Err(SimError::Undecoded { kind: UndecodedKind::Layout, .. })));
}

#[test]
fn sixteen_by_sixteen_bytes_are_transposed() {
    // One surface of 32 pixels: two blocks.
    let mut bench = moving(1, 32, 8);
    output(&mut bench, (1, 2), 8, 0x10, 0x100, 7);
    bench.field(dpu::bs_ow_cfg::TP_ORG_EN, 1);
    bench.field(dpu::wdma_size_0::SIZE_C_WDMA, 1);
    bench.run(None).unwrap();
    let source = bench.bytes(SOURCE, 512);
    for (block, byte) in (0..2).flat_map(|block| (0..16).map(move |byte| (block, byte))) {
        let expected: Vec<u8> = (0..16).map(|pixel| source[(block * 16 + pixel) * 16 + byte]).collect();
        assert_eq!(bench.bytes(OUTPUT + (block * 0x100 + byte * 16) as u32, 16), expected);
    }
}

#[test]
fn pixels_of_a_line_become_surfaces() {
    let mut bench = moving(8, 3, 16);
    bench.field(dpu::feature_mode_cfg::TP_EN, 1);
    bench.field(dpu::wdma_size_0::TP_PRECISION, 1);
    output(&mut bench, (3, 2), 8, 3 * 16, 8 * 3 * 16, 7 * 3);
    bench.run(None).unwrap();
    for (s, h, w) in (0..2).flat_map(|s| (0..3).flat_map(move |h| (0..8).map(move |w| (s, h, w)))) {
        let at = w * 48 + s * 24 * 16 + h * 16;
        let first = ((s * 3 + h) * 8 + w) * 8;
        assert_eq!(bench.u16s(OUTPUT + at, 1), [first as u16], "surface {s}, pixel ({h}, {w})");
    }
    bench.field(dpu::wdma_size_0::TP_PRECISION, 0);
    assert!(matches!(bench.run(None), Err(SimError::Undecoded { kind: UndecodedKind::Layout, .. })));
}

#[test]
fn first_lanes_are_packed() {
    let mut bench = moving(5, 3, 8);
    bench.field(dpu::feature_mode_cfg::NONALIGN, 1);
    bench.field(dpu::feature_mode_cfg::RGP_TYPE, 3);
    bench.field(dpu::feature_mode_cfg::SURF_LEN, 2);
    bench.run(None).unwrap();
    let expected: Vec<u16> = (0..15).map(|pixel| pixel * 8).chain([0]).collect();
    assert_eq!(bench.u16s(OUTPUT, 16), expected);
    bench.field(dpu::feature_mode_cfg::RGP_TYPE, 2);
    bench.field(dpu::feature_mode_cfg::SURF_LEN, 1);
    bench.run(None).unwrap();
    let expected: Vec<u8> = (0..15).map(|pixel| pixel * 8).chain([0]).collect();
    assert_eq!(bench.bytes(OUTPUT, 16), expected);
    bench.field(dpu::feature_mode_cfg::SURF_LEN, 2);
    assert!(matches!(bench.run(None), Err(SimError::Undecoded { kind: UndecodedKind::Layout, .. })));
}

#[test]
fn the_largest_channel_of_every_pixel_is_packed() {
    let mut bench = Bench::flying(3, 1, 10, (2, 2, 2));
    bench.field(dpu::data_cube_height::MINMAX_CTL, 7);
    bench.field(dpu::feature_mode_cfg::NONALIGN, 1);
    bench.field(dpu::feature_mode_cfg::SURF_LEN, 1);
    let mut lanes = vec![to_f16(-8.0); 48];
    lanes[3] = to_f16(1.5);
    lanes[24] = to_f16(-0.5); // first lane of the second surface, first pixel
    lanes[24 + 8 + 1] = to_f16(7.0); // channel 9 of the second pixel
    lanes[24 + 16 + 2] = to_f16(9.0); // a pad lane of the third pixel
    bench.fill_u16(SOURCE, &lanes);
    bench.run(None).unwrap();
    assert_eq!(bench.u16s(OUTPUT, 4), [to_f16(1.5), to_f16(7.0), to_f16(-8.0), 0]);
    bench.field(dpu::data_cube_height::MINMAX_CTL, 1);
    assert!(matches!(bench.run(None), Err(SimError::Undecoded { kind: UndecodedKind::Layout, .. })));
}

#[test]
fn combinations_that_no_stream_has_are_undecoded() {
    let modes = [
        (dpu::feature_mode_cfg::TP_EN, 1),
        (dpu::feature_mode_cfg::RGP_TYPE, 1),
        (dpu::feature_mode_cfg::NONALIGN, 1),
        (dpu::bs_ow_cfg::RGP_CNTER, 1),
        (dpu::data_cube_height::MINMAX_CTL, 7),
        (dpu::data_format::MC_SURF_OUT, 1),
    ];
    for (field, value) in modes {
        let mut bench = moving(2, 1, 8);
        bench.field(field, value);
        let error = bench.run(None).unwrap_err();
        let SimError::Undecoded { kind, .. } = error else { panic!("{}: {error}", field.name) };
        let surface = field == dpu::data_format::MC_SURF_OUT;
        assert_eq!(
            kind,
            if surface { UndecodedKind::Other } else { UndecodedKind::Layout },
            "{}",
            field.name
        );
    }
}
