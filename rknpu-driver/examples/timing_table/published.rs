//! Published figures and models' shapes, read from the fixtures.

use rknpu_driver::timing::MacFormat;
use rknpu_driver::timing::model::{LanguageModel, Linear, Transformer};

/// One cell of the vendor compiler's table, in thousands of cycles.
#[derive(Debug)]
pub(crate) struct CompilerCell {
    pub(crate) precision: String,
    pub(crate) model: String,
    pub(crate) layer: String,
    pub(crate) inner: u64,
    pub(crate) outputs: u64,
    pub(crate) rows: u64,
    pub(crate) total: f64,
    pub(crate) ddr: f64,
    pub(crate) npu: f64,
}

/// One published row of the closed runtime.
#[derive(Debug)]
pub(crate) struct RuntimeRow {
    pub(crate) release: String,
    pub(crate) model: String,
    /// The model's shape; `None` where its configuration is not known.
    pub(crate) shape: Option<String>,
    pub(crate) prompt: u64,
    pub(crate) new_tokens: u64,
    pub(crate) first_token_ms: f64,
    pub(crate) decode: f64,
}

/// A model's shape and where it is from.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) model: LanguageModel,
    pub(crate) source: String,
}

/// One published matrix product, or several in a chain.
#[derive(Debug)]
pub(crate) struct Product {
    pub(crate) source: String,
    pub(crate) rocket: bool,
    pub(crate) format_name: String,
    pub(crate) rows: u64,
    pub(crate) inner: u64,
    pub(crate) outputs: u64,
    pub(crate) chain: u64,
    pub(crate) cores: u64,
    pub(crate) published: f64,
    pub(crate) unit: String,
}

/// All 144 cells of the compiler's tables.
pub(crate) fn compiler_cells() -> Vec<CompilerCell> {
    let cells = rows(include_str!("../../tests/fixtures/timing/compiler_cycles.csv"));
    let cell = |c: Vec<&str>| CompilerCell {
        precision: c[0].into(),
        model: c[1].into(),
        layer: c[2].into(),
        inner: number(c[3]),
        outputs: number(c[4]),
        rows: number(c[5]),
        total: decimal(c[6]),
        ddr: decimal(c[7]),
        npu: decimal(c[8]),
    };
    cells.map(cell).collect()
}

/// All published rows of the closed runtime.
pub(crate) fn runtime_rows() -> Vec<RuntimeRow> {
    let row = |c: Vec<&str>| RuntimeRow {
        release: c[0].into(),
        model: c[1].into(),
        shape: (!c[2].is_empty()).then(|| c[2].into()),
        prompt: number(c[3]),
        new_tokens: number(c[4]),
        first_token_ms: decimal(c[5]),
        decode: decimal(c[6]),
    };
    rows(include_str!("../../tests/fixtures/timing/rkllm.csv")).map(row).collect()
}

/// All shapes, with int8 weights and 16-bit cached values.
pub(crate) fn shapes() -> Vec<Shape> {
    rows(include_str!("../../tests/fixtures/timing/models.csv")).map(|c| shape(&c)).collect()
}

/// All published matrix products.
pub(crate) fn products() -> Vec<Product> {
    let row = |c: Vec<&str>| Product {
        source: c[0].into(),
        rocket: c[1] == "rocket",
        format_name: c[2].into(),
        rows: number(c[3]),
        inner: number(c[4]),
        outputs: number(c[5]),
        chain: number(c[6]),
        cores: number(c[7]),
        published: decimal(c[8]),
        unit: c[9].into(),
    };
    rows(include_str!("../../tests/fixtures/timing/products.csv")).map(row).collect()
}

/// The format that a fixture names.
pub(crate) fn format(name: &str) -> MacFormat {
    match name {
        "int4" => MacFormat::Int4,
        "int8" => MacFormat::Int8,
        "fp16" => MacFormat::Sixteen,
        _ => panic!("fixture: format {name}"),
    }
}

/// Bytes of a cached key or value element: the closed runtime keeps them in fp16.
const CACHED_BYTES: u64 = 2;

fn shape(c: &[&str]) -> Shape {
    let layers = number(c[1]);
    let transformer = Transformer {
        layers,
        hidden: number(c[2]),
        query: number(c[3]),
        key_value: number(c[4]),
        feed_forward: number(c[5]),
        vocabulary: number(c[6]),
    };
    let mut model = transformer.int8(CACHED_BYTES);
    model.linears.retain(|linear| linear.weight_bytes > 0);
    model.linears.extend(c[7].split_whitespace().map(linear));
    if !c[8].is_empty() {
        model.cache_bytes_per_position = layers * number(c[8]) * CACHED_BYTES;
    }
    Shape { name: c[0].into(), model, source: c[9].into() }
}

/// `2560x768*62`: 62 layers from 2,560 to 768.
fn linear(text: &str) -> Linear {
    let (inner, rest) = text.split_once('x').expect("fixture: a linear layer has an x");
    let (outputs, count) = rest.split_once('*').expect("fixture: a linear layer has a count");
    Linear::int8(number(inner), number(outputs), number(count))
}

fn rows(csv: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    csv.lines().filter(|line| !line.starts_with('#')).skip(1).map(|line| line.split(',').collect())
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|error| panic!("fixture: {text}: {error}"))
}

fn decimal(text: &str) -> f64 {
    text.parse().unwrap_or_else(|error| panic!("fixture: {text}: {error}"))
}
