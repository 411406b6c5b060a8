//! Streams that mean harm: whatever registers hold, a task ends in an error or in memory that is mapped.

use proptest::prelude::*;

use crate::regcmd::registers::{ALL, dpu, dpu_rdma};
use crate::regcmd::{Block, Register};
use crate::sim::dpu::bench::{BS_STREAM, Bench, OPERAND, SOURCE};
use crate::sim::{Accumulators, Cube, Products, SimError};

/// Registers of both blocks that a task may write.
fn registers() -> Vec<Register> {
    let ours = |register: &&Register| matches!(register.block, Block::Dpu | Block::DpuRdma);
    ALL.iter().filter(ours).filter(|register| register.offset & 0xfff >= 0xc).copied().collect()
}

fn products() -> Products {
    let cube = Cube {
        width: 4,
        height: 2,
        channels: 32,
        data: (0..256i32).map(|i| i.wrapping_mul(0x0101_0101)).collect(),
    };
    Products { accumulators: Accumulators::Int(cube), input_sums: vec![i64::MAX; 8] }
}

/// A bench with everything readable.
fn bench(flying: bool, formats: (u32, u32, u32)) -> Bench {
    let bench = if flying { Bench::flying(4, 2, 32, formats) } else { Bench::convolution(4, 2, 32, formats) };
    bench.memory.mark_written(SOURCE..SOURCE + 0x4_0000).unwrap();
    bench
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn random_settings_never_panic(
        flying in any::<bool>(),
        formats in (0u32..6, 0u32..6, 0u32..6),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>(), 0u32..4), 1..8),
    ) {
        let mut bench = bench(flying, formats);
        let registers = registers();
        for (index, value, kind) in changes {
            // Whole words hit modes that do not exist; small values change sizes and strides a little.
            let value = match kind { 0 => value, 1 => value & 0xff, 2 => value & 0xf_000f, _ => 1 << (value & 31) };
            let register = *index.get(&registers);
            let sizes = [dpu::DATA_CUBE_WIDTH, dpu::DATA_CUBE_HEIGHT, dpu::DATA_CUBE_CHANNEL];
            bench.set(register, if sizes.contains(&register) { value & 0x00ff_00ff } else { value });
        }
        let main = (!flying).then(products);
        let outcome = bench.run(main);
        if let Err(error) = outcome {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}

#[test]
fn errors_name_the_register() {
    let cases: [(Register, u32); 12] = [
        (dpu::DATA_FORMAT, 7 << 29),
        (dpu::DATA_FORMAT, 6 << 29),
        (dpu::DATA_FORMAT, 4),
        (dpu::DATA_CUBE_CHANNEL, 0x001f_000f),
        (dpu::DATA_CUBE_CHANNEL, 0x001f_1fff),
        (dpu::BS_CFG, 0x9_0040),
        (dpu::EW_CFG, 0x9_0000 | 0x380),
        (dpu::EW_CFG, 2 << 16 | 0x3c0),
        (dpu::BS_MUL_CFG, 2),
        (dpu::DST_BASE_ADDR, 0x1000),
        (dpu::SURFACE_ADD, 0xffff_fff0),
        (dpu_rdma::RDMA_SRC_BASE_ADDR, 0x9000_0000),
    ];
    for (register, value) in cases {
        let mut bench = bench(true, (0, 0, 0));
        if register == dpu::DATA_CUBE_CHANNEL && value & 0x1fff == 0x1fff {
            bench.set(dpu::DATA_CUBE_WIDTH, 0x1fff);
            bench.set(dpu::DATA_CUBE_HEIGHT, 0x1fff);
        }
        if register == dpu::BS_MUL_CFG {
            bench.set(dpu::BS_CFG, 0x42);
        }
        bench.set(register, value);
        let error = bench.run(None).unwrap_err();
        let name = if register == dpu::SURFACE_ADD { dpu::DST_BASE_ADDR.name } else { register.name };
        assert!(error.to_string().contains(name), "{register} = {value:#x}: {error}");
    }
}

#[test]
fn a_register_that_no_task_wrote_is_an_error() {
    for register in [dpu::BS_CFG, dpu::OUT_CVT_SHIFT, dpu::WDMA_SIZE_1, dpu_rdma::RDMA_SURF_NOTCH] {
        let mut bench = bench(true, (0, 0, 0));
        bench.forget(register);
        let error = bench.run(None).unwrap_err();
        assert!(matches!(error, SimError::NeverWritten { .. }), "{register}: {error}");
    }
}

#[test]
fn engines_and_stages_must_agree() {
    let mut idle = bench(false, (0, 0, 0));
    idle.field(dpu_rdma::rdma_feature_mode_cfg::MRDMA_DISABLE, 0);
    assert!(idle.run(Some(products())).unwrap_err().to_string().contains("RDMA_FEATURE_MODE_CFG"));

    let mut stream = bench(false, (0, 0, 0));
    stream.memory.mark_written(BS_STREAM..BS_STREAM + 0x1000).unwrap();
    stream.set(dpu::BS_CFG, 0x20150);
    stream.field(dpu_rdma::rdma_brdma_cfg::BRDMA_DATA_USE, 1);
    stream.run(Some(products())).unwrap();
    stream.set(dpu_rdma::RDMA_DATA_CUBE_CHANNEL, 15);
    assert!(stream.run(Some(products())).unwrap_err().to_string().contains("RDMA_DATA_CUBE_CHANNEL"));

    let mut operand = bench(true, (0, 0, 0));
    operand.memory.mark_written(OPERAND..OPERAND + 0x1000).unwrap();
    operand.set(dpu_rdma::RDMA_ERDMA_CFG, 0x4000_0004);
    operand.set(dpu::EW_CFG, 1 << 28 | 2 << 16 | 0x3c0);
    operand.run(None).unwrap();
    operand.field(dpu::ew_cfg::EW_DATA_MODE, 0);
    assert!(operand.run(None).unwrap_err().to_string().contains("EW_CFG"));
}

#[test]
fn products_of_another_shape_are_refused() {
    let mut bench = bench(false, (0, 0, 0));
    bench.run(Some(products())).unwrap();
    bench.set(dpu::DATA_CUBE_WIDTH, 4);
    assert!(bench.run(Some(products())).is_err());
    let bench = self::bench(false, (2, 2, 2));
    let error = bench.run(Some(products())).unwrap_err();
    assert!(error.to_string().contains("PROC_PRECISION"), "{error}");
    let error = self::bench(true, (0, 0, 0)).run(Some(products())).unwrap_err();
    assert!(error.to_string().contains("FLYING_MODE"), "{error}");
    assert!(self::bench(false, (0, 0, 0)).run(None).is_err());
    assert!(self::bench(true, (0, 0, 0)).run_with(0x8, None).is_err(), "flying without DPU_RDMA");
}
