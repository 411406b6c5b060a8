//! The page, as Markdown.

use std::fmt::Write;

use rknpu_driver::timing::compiler::layer_cycles;
use rknpu_driver::timing::model::{Runtime, decode_rate, prefill};
use rknpu_driver::timing::{Board, TaskWork, job_time, mac_cycles};

use crate::published::{
    CompilerCell, Product, RuntimeRow, Shape, compiler_cells, format, products, runtime_rows, shapes,
};

/// A prediction beside a published row of the closed runtime.
pub(crate) struct RuntimePrediction {
    pub(crate) row: RuntimeRow,
    /// Tokens per second and milliseconds to the first token; `None` where the model's shape is not known.
    pub(crate) predicted: Option<(f64, f64)>,
}

impl RuntimePrediction {
    /// Relative error of the decode rate.
    pub(crate) fn decode_error(&self) -> Option<f64> {
        self.predicted.map(|(decode, _)| decode / self.row.decode - 1.0)
    }

    /// Relative error of the time to first token.
    pub(crate) fn first_token_error(&self) -> Option<f64> {
        self.predicted.map(|(_, first_token)| first_token / self.row.first_token_ms - 1.0)
    }
}

/// Every published row of the closed runtime, predicted.
pub(crate) fn runtime_predictions() -> Vec<RuntimePrediction> {
    let shapes = shapes();
    runtime_rows().into_iter().map(|row| predict(row, &shapes)).collect()
}

fn predict(row: RuntimeRow, shapes: &[Shape]) -> RuntimePrediction {
    let (board, runtime) = (Board::rk3588_vendor(), Runtime::rkllm());
    let shape = row.shape.as_ref().map(|name| {
        let found = shapes.iter().find(|shape| shape.name == *name);
        &found.unwrap_or_else(|| panic!("fixture: no shape {name}")).model
    });
    let predicted = shape.map(|model| {
        let context = row.prompt + row.new_tokens / 2;
        let first_token = prefill(&board, &runtime, model, row.prompt).total().as_secs_f64();
        (decode_rate(&board, &runtime, model, 1, context), first_token * 1e3)
    });
    RuntimePrediction { row, predicted }
}

/// Relative error of the compiler's total for a cell.
pub(crate) fn compiler_error(cell: &CompilerCell) -> f64 {
    predicted_cycles(cell).total() / 1e3 / cell.total - 1.0
}

fn predicted_cycles(cell: &CompilerCell) -> rknpu_driver::timing::compiler::LayerCycles {
    layer_cycles(cell.rows, cell.inner, cell.outputs, format(&cell.precision))
}

/// What the model says of a published product, in its unit.
pub(crate) fn predicted_product(product: &Product) -> f64 {
    let board = if product.rocket { Board::rk3588_rocket() } else { Board::rk3588_vendor() };
    let format = format(&product.format_name);
    let outputs = product.outputs.div_ceil(product.cores);
    let result_bytes = if product.format_name == "int4" { 2 } else { 4 };
    let weight_bytes = product.inner * outputs * format.bits() / 8;
    let task = TaskWork {
        tasks: 1,
        mac_cycles: mac_cycles(product.rows, product.inner, outputs, format),
        read_bytes: weight_bytes + product.rows * product.inner * format.bits() / 8,
        write_bytes: product.rows * outputs * result_bytes,
        command_bytes: COMMAND_BYTES,
    };
    let chain = vec![task; usize::try_from(product.chain).expect("fixture: a short chain")];
    let job = job_time(&board, &vec![chain; usize::try_from(product.cores).expect("fixture: few cores")]);
    let seconds = job.elapsed.as_secs_f64();
    let weights = (product.chain * product.inner * product.outputs) as f64;
    match product.unit.as_str() {
        "GB/s" => weights * format.bits() as f64 / 8.0 / seconds / 1e9,
        _ => 2.0 * weights * product.rows as f64 / seconds / 1e9,
    }
}

/// Register commands of a task: about 110 words of 8 bytes.
const COMMAND_BYTES: u64 = 880;

/// Share of `errors` within `limit`, and their median and largest magnitude.
pub(crate) struct Spread {
    pub(crate) count: usize,
    pub(crate) median: f64,
    pub(crate) largest: f64,
    pub within_15_percent: usize,
}

/// How far `errors` spread.
pub(crate) fn spread(errors: impl Iterator<Item = f64>) -> Spread {
    let mut sizes: Vec<f64> = errors.map(f64::abs).collect();
    sizes.sort_by(f64::total_cmp);
    Spread {
        count: sizes.len(),
        median: sizes.get(sizes.len() / 2).copied().unwrap_or(f64::NAN),
        largest: sizes.last().copied().unwrap_or(f64::NAN),
        within_15_percent: sizes.iter().filter(|error| **error <= 0.15).count(),
    }
}

/// docs/npu-timing.md.
pub(crate) fn page() -> String {
    let mut page = String::from(HEADER);
    language_models(&mut page);
    shapes_table(&mut page);
    products_table(&mut page);
    compiler_table(&mut page);
    page
}

fn language_models(page: &mut String) {
    let predictions = runtime_predictions();
    let decode = spread(predictions.iter().filter_map(RuntimePrediction::decode_error));
    let first = spread(predictions.iter().filter_map(RuntimePrediction::first_token_error));
    let board = Board::rk3588_vendor();
    let _ = writeln!(
        page,
        "{LANGUAGE_MODELS}\n\
         Bandwidth {:.1} GB/s, {} µs a block, prefill at {:.1} % of the arrays' int8 peak.\n\n\
         Of {} rows modelled, decode is within 15 % in {} (median {:.1} %, largest {:.0} %), time to first token in {} \
         (median {:.0} %, largest {:.0} %).\n\n\
         | release | model | prompt | decode published | predicted, tok/s | error | first token published | predicted, ms | error |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|",
        board.streamed_bytes_per_s() / 1e9,
        Runtime::rkllm().layer_overhead.as_micros(),
        Runtime::rkllm().prefill_share * 100.0,
        decode.count,
        decode.within_15_percent,
        decode.median * 100.0,
        decode.largest * 100.0,
        first.within_15_percent,
        first.median * 100.0,
        first.largest * 100.0,
    );
    for prediction in &predictions {
        let row = &prediction.row;
        let _ = write!(page, "| {} | {} | {} | {} | ", row.release, row.model, row.prompt, row.decode);
        let _ = match prediction.predicted {
            Some((decode, first_token)) => writeln!(
                page,
                "{decode:.2} | {} | {} | {first_token:.0} | {} |",
                percent(prediction.decode_error()),
                row.first_token_ms,
                percent(prediction.first_token_error()),
            ),
            None => writeln!(page, "shape not known | | {} | | |", row.first_token_ms),
        };
    }
}

fn shapes_table(page: &mut String) {
    let _ = writeln!(
        page,
        "{SHAPES}\n| model | blocks | weights read a token, MB | cache a position, KB | source |\n|---|---:|---:|---:|---|"
    );
    for shape in shapes() {
        let _ = writeln!(
            page,
            "| {} | {} | {:.0} | {:.1} | {} |",
            shape.name,
            shape.model.layers,
            shape.model.weight_bytes() as f64 / 1e6,
            shape.model.cache_bytes_per_position as f64 / 1e3,
            shape.source,
        );
    }
}

fn products_table(page: &mut String) {
    let _ = writeln!(
        page,
        "{PRODUCTS}\n| source | board | format | shape | tasks | cores | published | predicted | error |\n|---|---|---|---|---:|---:|---:|---:|---:|"
    );
    for product in products() {
        let predicted = predicted_product(&product);
        let _ = writeln!(
            page,
            "| {} | {} | {} | {}×{}×{} | {} | {} | {} {} | {predicted:.1} | {} |",
            product.source,
            if product.rocket { "rocket" } else { "vendor" },
            product.format_name,
            product.rows,
            product.inner,
            product.outputs,
            product.chain,
            product.cores,
            product.published,
            product.unit,
            percent(Some(predicted / product.published - 1.0)),
        );
    }
}

fn compiler_table(page: &mut String) {
    let cells = compiler_cells();
    let spread = spread(cells.iter().map(compiler_error));
    let _ = writeln!(
        page,
        "{COMPILER}\nAll {} cells: median error {:.2} %, largest {:.1} % (cells are printed in whole thousands).\n\n\
         | precision | model | layer | K×N | M | published kcycles | predicted | error | DDR | predicted | array | predicted |\n\
         |---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        spread.count,
        spread.median * 100.0,
        spread.largest * 100.0,
    );
    for cell in &cells {
        let predicted = predicted_cycles(cell);
        let _ = writeln!(
            page,
            "| {} | {} | {} | {}×{} | {} | {} | {:.0} | {} | {} | {:.0} | {} | {:.0} |",
            cell.precision,
            cell.model,
            cell.layer,
            cell.inner,
            cell.outputs,
            cell.rows,
            cell.total,
            predicted.total() / 1e3,
            percent(Some(compiler_error(cell))),
            cell.ddr,
            predicted.ddr / 1e3,
            cell.npu,
            predicted.npu / 1e3,
        );
    }
}

fn percent(error: Option<f64>) -> String {
    error.map_or_else(String::new, |error| format!("{:+.1} %", error * 100.0))
}

const HEADER: &str = "\
# The timing model beside published figures

Everything predicted here is the output of a model (`rknpu_driver::timing`); nothing was measured on a board by this project.
Published figures are other people's, from the sources named. This page is written by
`cargo run --release -p rknpu-driver --example timing_table > docs/npu-timing.md`, and a test compares the two.

## The model

A task lasts as long as its arithmetic or its memory traffic, whichever is longer, plus the cost of starting a task; both
overlap. Cores share the memory evenly, and none streams faster than one core can. A job adds the cost of a submission.

| constant | vendor driver | rocket | source |
|---|---|---|---|
| multiply-adds a cycle and core | int4 2048, int8 1024, 16-bit 512, tf32 256 | same | technical reference manual; vendor compiler |
| rows in steps of | 16 | same | vendor compiler |
| clock | 1 GHz | 600 MHz | vendor; highest stable clock reported for rocket |
| DRAM peak | 33.8 GB/s | same | LPDDR4x-4224, 64 bits |
| three cores together | 88.8 % of it | same | fitted, see below |
| one core alone | 23.65 GB/s | 17 GB/s | vendor compiler; one open stack |
| a submission | 167 µs | 69 µs | one open stack each |
| a task in a chain | 16 µs | 27 µs | one open stack; rocket's is inferred from its tuned submission |

What it leaves out: refreshes and bank conflicts of the DRAM beyond one efficiency, contention with the CPU, throttling, the
time that output conversion takes in the DPU, refetching by a planner that does not keep weights or features in the on-chip buffer
(the planner's own work lists say what it moves).
";

const LANGUAGE_MODELS: &str = "
## Language models: the vendor's closed runtime

A decode step reads every weight once, and the cache of its context; each block adds a fixed time. Two constants were
fitted by least squares of the relative errors to the decode rates of the eight models of release 1.1: the bandwidth of three
cores and the time a block. A third, the share of the arrays' peak that prefill reaches, was fitted to the same eight
models' times to first token. No constant belongs to a model, and every row of a later release was held out. The context
is the prompt and half of the new tokens.

Prefill is understood less well than decode: the closed runtime reaches a seventh of the arrays' rate, small models less, and
later releases are faster than the fit. Models with experts, recurrent state or per-layer inputs are predicted from their
weights alone and decode slower than that. Group-quantised rows (w8a8_g128 and so on) are another kernel and are not modelled.
";

const SHAPES: &str = "
## Shapes

From the models' public configurations, as known when this was written and not downloaded again; those of common transformers sum to
the parameter counts that their publishers state. The head counts once, the embedding not at all.
";

const PRODUCTS: &str = "
## Streaming weights

Nothing here was fitted. The probe of `decode_bw_probe` streams 3.1 MB of weights a task, several tasks a submission: a fixed cost
over one core's bandwidth explains its slope. The two last rows are mainline's driver under a stack that refetches weights for every
tile (its authors call it not bound by arithmetic): the model, given perfect reuse, is a bound and misses by far.
";

const COMPILER: &str = "
## The vendor's compiler

Its static estimate of one layer, on one core, in thousands of cycles: rows in steps of 16, 23.65 bytes a cycle, everything overlapped.
These are estimates beside estimates.
";
