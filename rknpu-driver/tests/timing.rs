//! The timing model holds what docs/npu-timing.md says of it.

#[path = "../examples/timing_table/published.rs"]
mod published;
#[path = "../examples/timing_table/report.rs"]
mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rknpu_driver::timing::model::{
    LanguageModel, Linear, Runtime, Transformer, decode_rate, decode_step, prefill,
};
use rknpu_driver::timing::{Board, MacFormat, TaskWork, job_time, mac_cycles, task_time};

#[test]
fn the_vendor_compilers_cycles() {
    let cells = published::compiler_cells();
    assert_eq!(cells.len(), 144, "two precisions, twelve layers, six row counts");
    let spread = report::spread(cells.iter().map(report::compiler_error));
    assert!(spread.median <= 0.005, "median {}", spread.median);
    for cell in &cells {
        // A cell is printed in whole thousands: half of one is its own error.
        let printed = 0.5 / cell.total;
        assert!(
            report::compiler_error(cell).abs() <= 0.05 + printed,
            "{cell:?}: {}",
            report::compiler_error(cell)
        );
    }
}

#[test]
fn the_compilers_board_is_the_compilers_formula() {
    let board = Board::vendor_compiler();
    for cell in published::compiler_cells() {
        let cycles = rknpu_driver::timing::compiler::layer_cycles(
            cell.rows,
            cell.inner,
            cell.outputs,
            published::format(&cell.precision),
        );
        let task = TaskWork {
            tasks: 1,
            mac_cycles: cycles.npu as u64,
            read_bytes: (cycles.ddr * 0.7 * 33.792) as u64,
            ..TaskWork::default()
        };
        let played = job_time(&board, &[vec![task]]).elapsed.as_secs_f64() * board.clock_hz;
        assert!((played / cycles.total() - 1.0).abs() < 1e-3, "{cell:?}: {played} against {cycles:?}");
    }
}

#[test]
fn the_closed_runtimes_decode_rates() {
    let mut worst: BTreeMap<String, f64> = BTreeMap::new();
    for prediction in report::runtime_predictions() {
        if let Some(error) = prediction.decode_error() {
            let model = prediction.row.shape.clone().unwrap_or_default();
            let entry = worst.entry(model).or_default();
            *entry = entry.max(error.abs());
        }
    }
    let within: Vec<&String> =
        worst.iter().filter(|(_, error)| **error <= 0.15).map(|(model, _)| model).collect();
    assert!(within.len() >= 16, "every row of these models is within 15 %: {within:?} of {worst:?}");
}

#[test]
fn the_closed_runtimes_first_tokens() {
    let errors = report::runtime_predictions();
    let spread = report::spread(errors.iter().filter_map(report::RuntimePrediction::first_token_error));
    assert!(spread.median <= 0.20, "median {}", spread.median);
}

#[test]
fn streaming_weights_as_a_probe_found() {
    for product in published::products().iter().filter(|product| product.unit == "GB/s") {
        let error = report::predicted_product(product) / product.published - 1.0;
        assert!(error.abs() <= 0.2, "{product:?}: {error}");
    }
}

#[test]
fn the_page_is_what_the_program_prints() {
    let page = include_str!("../../docs/npu-timing.md");
    let printed = report::page();
    let differing = page.lines().zip(printed.lines()).find(|(page, printed)| page != printed);
    assert!(page == printed, "run the timing_table example again; first difference: {differing:?}");
}

#[test]
fn rows_go_in_sixteens_and_formats_in_their_groups() {
    assert_eq!(mac_cycles(1, 896, 896, MacFormat::Int8), 16 * 28 * 28);
    assert_eq!(mac_cycles(16, 896, 896, MacFormat::Int8), mac_cycles(1, 896, 896, MacFormat::Int8));
    assert_eq!(mac_cycles(17, 896, 896, MacFormat::Int8), 2 * mac_cycles(1, 896, 896, MacFormat::Int8));
    assert_eq!(mac_cycles(16, 1024, 1024, MacFormat::Int4), 16 * 16 * 32);
    assert_eq!(mac_cycles(16, 1024, 1024, MacFormat::Sixteen), 16 * 64 * 32);
    assert_eq!(mac_cycles(16, 1, 1, MacFormat::Int8), 16 * 4);
    assert_eq!(mac_cycles(16, 1, 1, MacFormat::Sixteen), 16 * 2);
}

#[test]
fn batches_share_the_weights_stream() {
    let model = demo();
    let (board, runtime) = (Board::rk3588_vendor(), Runtime::rkllm());
    let one = decode_rate(&board, &runtime, &model, 1, 128);
    let sixteen = decode_rate(&board, &runtime, &model, 16, 128);
    assert!(sixteen > 10.0 * one, "{sixteen} against {one}");
    let parts = decode_step(&board, &runtime, &model, 1, 128);
    assert_eq!(parts.total(), parts.linears + parts.cache + parts.overhead);
}

#[test]
fn four_bit_weights_take_half_the_stream() {
    let model = demo();
    let halved = LanguageModel {
        linears: model.linears.iter().map(|l| Linear { weight_bytes: l.weight_bytes / 2, ..*l }).collect(),
        ..model.clone()
    };
    let (board, runtime) = (Board::rk3588_vendor(), Runtime::rookery(&Board::rk3588_vendor()));
    let whole = decode_step(&board, &runtime, &model, 1, 0).linears;
    let half = decode_step(&board, &runtime, &halved, 1, 0).linears;
    assert!(half < whole && half > whole / 2, "the head keeps its width: {half:?} of {whole:?}");
}

#[test]
fn longer_prompts_take_longer() {
    let (board, runtime) = (Board::rk3588_rocket(), Runtime::rookery(&Board::rk3588_rocket()));
    let times: Vec<Duration> =
        [1, 16, 128, 1024].iter().map(|tokens| prefill(&board, &runtime, &demo(), *tokens).total()).collect();
    assert!(times.is_sorted(), "{times:?}");
}

fn demo() -> LanguageModel {
    Transformer {
        layers: 24,
        hidden: 896,
        query: 896,
        key_value: 128,
        feed_forward: 4864,
        vocabulary: 151_936,
    }
    .int8(2)
}

prop_compose! {
    fn any_task()(tasks in 1..4_u64, mac_cycles in 0..10_000_000_u64, read_bytes in 0..10_000_000_u64, write_bytes in 0..1_000_000_u64) -> TaskWork {
        TaskWork { tasks, mac_cycles, read_bytes, write_bytes, command_bytes: 880 }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A job ends no sooner than its slowest chain alone and than its bytes at full rate, and no later than everything in turn.
    #[test]
    fn a_job_lies_between_its_bounds(chains in prop::collection::vec(prop::collection::vec(any_task(), 0..6), 1..4)) {
        let board = Board::rk3588_vendor();
        let job = job_time(&board, &chains);
        let alone = |chain: &Vec<TaskWork>| chain.iter().map(|task| task_time(&board, task)).sum::<Duration>();
        let slowest = chains.iter().map(alone).max().unwrap_or_default();
        let all: Duration = chains.iter().map(alone).sum();
        let streaming = Duration::from_secs_f64(job.bytes as f64 / board.streamed_bytes_per_s());
        let rounding = Duration::from_micros(1);
        prop_assert!(job.elapsed + rounding >= board.submit_overhead + slowest.max(streaming), "{job:?}");
        prop_assert!(job.elapsed <= board.submit_overhead + all + rounding, "{job:?}");
        prop_assert_eq!(job.elapsed, board.submit_overhead + job.cores.iter().map(|core| core.busy).max().unwrap_or_default());
    }
}
