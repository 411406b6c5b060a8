//! A vector: what the JSON and the BIN file hold.

use std::collections::BTreeMap;
use std::path::Path;

use rknpu_driver::regcmd::registers::dpu::{bs_ow_cfg, feature_mode_cfg};
use rknpu_driver::regcmd::{Field, Word};
use serde::Deserialize;

/// A compiled graph with its tests.
#[derive(Deserialize)]
pub(crate) struct Vector {
    pub(crate) spec: serde_json::Value,
    pub(crate) inputs: Vec<i64>,
    pub(crate) outputs: Vec<i64>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) ops: Vec<Op>,
    pub(crate) tasks: Vec<Task>,
    core_programs: BTreeMap<String, Vec<Vec<usize>>>,
    /// tensor, addend, word of the regcmd buffer, and two numbers without a known meaning.
    pub(crate) relocs: Vec<(i64, u32, usize, i64, i64)>,
    arrays: BTreeMap<String, Array>,
    #[serde(skip)]
    bin: Vec<u8>,
    /// Constants by tensor, as laid out for the NPU.
    #[serde(skip)]
    pub(crate) constants: BTreeMap<i64, Vec<u8>>,
}

#[derive(Deserialize, Clone)]
pub(crate) struct Tensor {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) mem: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) native: Vec<usize>,
    pub(crate) bytes: usize,
    pub(crate) offset: usize,
    #[serde(default)]
    pub(crate) scale: Vec<f64>,
    #[serde(default)]
    pub(crate) scale_bits: Vec<u32>,
    #[serde(default)]
    pub(crate) zero_point: Vec<i64>,
    #[serde(default)]
    pub(crate) sha256: Option<String>,
    #[serde(default)]
    pub(crate) stored: Option<bool>,
}

impl Tensor {
    /// The quantiser's scale: exactly, where its bits are given.
    pub(crate) fn quantisation(&self) -> (f64, i64) {
        let scale = self.scale_bits.first().map(|bits| f64::from(f32::from_bits(*bits)));
        let scale = scale.or(self.scale.first().copied()).unwrap_or(1.0);
        (scale, self.zero_point.first().copied().unwrap_or(0))
    }
}

#[derive(Deserialize)]
pub(crate) struct Op {
    pub(crate) id: i64,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) inputs: Vec<i64>,
    pub(crate) outputs: Vec<i64>,
}

#[derive(Deserialize, Clone, Copy)]
pub(crate) struct Task {
    pub(crate) op: i64,
    pub(crate) int_mask: u32,
    pub(crate) regcfg_amount: u32,
    pub(crate) regcmd_byte_offset: u32,
}

#[derive(Deserialize)]
struct Array {
    dtype: String,
    offset: usize,
    nbytes: usize,
}

/// Elements of an array, integers or floats.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    Integers(Vec<i64>),
    Floats(Vec<f32>),
}

impl Values {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Integers(values) => values.len(),
            Self::Floats(values) => values.len(),
        }
    }
}

/// How a stream's results differ from what its graph means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Approximation {
    /// By rounding of the output alone.
    None,
    /// By rounded results between operators, or between the parts of a split one.
    Rounding,
    /// By a look-up table.
    Table,
    /// By an inverse square root from the bit pattern of a float.
    Norm,
    /// By exponentials from the bit pattern of a float.
    Softmax,
    /// By sums that such exponentials weigh.
    Attention,
}

impl Vector {
    /// Reads `ID.json` and the `ID.bin` beside it.
    pub(crate) fn load(json: &Path) -> Result<Self, String> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let text = read(json)?;
        let mut vector: Self =
            serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", json.display()))?;
        vector.bin = read(&json.with_extension("bin"))?;
        for tensor in &vector.tensors {
            if let Ok(blob) = vector.bytes(&format!("const:{}", tensor.name)) {
                vector.constants.insert(tensor.id, blob.to_vec());
            }
        }
        Ok(vector)
    }

    /// The bytes of an array.
    pub(crate) fn bytes(&self, name: &str) -> Result<&[u8], String> {
        let array = self.arrays.get(name).ok_or_else(|| format!("no array {name}"))?;
        let end = array.offset.checked_add(array.nbytes);
        end.and_then(|end| self.bin.get(array.offset..end))
            .ok_or_else(|| format!("array {name} leaves the file"))
    }

    /// The elements of an array, if there is one of this name.
    pub(crate) fn values(&self, name: &str) -> Option<Values> {
        let array = self.arrays.get(name)?;
        let bytes = self.bytes(name).ok()?;
        // numpy has no bfloat16: such arrays are bits.
        let dtype = if name.ends_with("bf16") { "bf16" } else { &array.dtype };
        decode(dtype, bytes)
    }

    /// Whether there is an array of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.arrays.contains_key(name)
    }

    /// The tensor of an id.
    pub(crate) fn tensor(&self, id: i64) -> Result<&Tensor, String> {
        self.tensors.iter().find(|tensor| tensor.id == id).ok_or_else(|| format!("no tensor {id}"))
    }

    /// Number of tests.
    pub(crate) fn tests(&self) -> usize {
        (0..).take_while(|test| self.arrays.keys().any(|name| name.starts_with(&format!("t{test}.")))).count()
    }

    /// What the stream approximates.
    pub(crate) fn approximation(&self) -> Approximation {
        const MOVING: [&str; 5] = ["Reshape", "Transpose", "Split", "Concat", "Slice"];
        let in_use = |op: &&Op| self.tasks.iter().any(|task| task.op == op.id);
        let computing: Vec<&str> = self
            .ops
            .iter()
            .filter(in_use)
            .map(|op| op.kind.as_str())
            .filter(|kind| !MOVING.contains(kind))
            .collect();
        let any = |part: &str| computing.iter().any(|kind| kind.to_lowercase().contains(part));
        if any("sdpa") {
            Approximation::Attention
        } else if any("softmax") {
            Approximation::Softmax
        } else if any("norm") {
            Approximation::Norm
        } else if self.loads_tables() {
            Approximation::Table
        } else if computing.len() > 1 || any("sqrt") {
            Approximation::Rounding
        } else {
            Approximation::None
        }
    }

    fn computes(&self, kind: &str) -> bool {
        self.ops.iter().any(|op| op.kind == kind && self.tasks.iter().any(|task| task.op == op.id))
    }

    /// Whether tasks transpose: as an operator, or with the DPU's modes within another one (softmax).
    pub(crate) fn transposes(&self) -> bool {
        let sets = |field: Field| {
            self.words().any(|word| {
                (word.target(), word.register()) == (field.block.target(), field.register)
                    && field.get(word.value()) != 0
            })
        };
        self.computes("Transpose") || sets(feature_mode_cfg::TP_EN) || sets(bs_ow_cfg::TP_ORG_EN)
    }

    /// The words of all tasks, addresses not filled in.
    fn words(&self) -> impl Iterator<Item = Word> {
        let words = self.bytes("regcmd").unwrap_or_default().as_chunks::<8>().0;
        words.iter().map(|bytes| Word(u64::from_le_bytes(*bytes)))
    }

    /// Whether convolutions along parts of K are added up.
    pub(crate) fn splits_sums(&self) -> bool {
        self.computes("ConvAdd")
    }

    /// Whether the stream writes entries of a look-up table.
    fn loads_tables(&self) -> bool {
        const LUT_ACCESS_CFG: u64 = 0x1001 << 48 | 0x4100;
        const WRITES: u64 = 1 << (16 + 17);
        self.words().any(|Word(word)| word & 0xffff_0000_0000_ffff == LUT_ACCESS_CFG && word & WRITES != 0)
    }

    /// Numbers of cores that there are programmes for.
    pub(crate) fn programs(&self) -> Vec<usize> {
        self.core_programs.keys().filter_map(|cores| cores.parse().ok()).collect()
    }

    /// The tasks of each core in the programme for `cores` cores.
    pub(crate) fn program(&self, cores: usize) -> &[Vec<usize>] {
        self.core_programs.get(&cores.to_string()).map_or(&[], Vec::as_slice)
    }
}

/// Elements by dtype, in the vectors' and in numpy's spelling; `None` for what is not numbers.
pub(crate) fn decode(dtype: &str, bytes: &[u8]) -> Option<Values> {
    let integers = |width: usize, value: fn(&[u8]) -> i64| {
        Some(Values::Integers(bytes.chunks_exact(width).map(value).collect()))
    };
    let floats = |width: usize, value: fn(&[u8]) -> f32| {
        Some(Values::Floats(bytes.chunks_exact(width).map(value).collect()))
    };
    match dtype {
        "i8" | "i1" => integers(1, |b| i64::from(b[0] as i8)),
        "u8" | "u1" => integers(1, |b| i64::from(b[0])),
        "i16" | "i2" => integers(2, |b| i64::from(i16::from_le_bytes([b[0], b[1]]))),
        "i32" | "i4" => integers(4, |b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        "f16" | "f2" => floats(2, |b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()),
        "bf16" => floats(2, |b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        "f32" | "f4" => floats(4, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        _ => None,
    }
}

/// Elements of a tensor's dtype as bytes: integers as they are, floats rounded to the nearest.
pub(crate) fn encode(dtype: &str, values: &Values) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match (dtype, values) {
        ("i8", Values::Integers(values)) => bytes.extend(values.iter().map(|value| *value as u8)),
        ("i16", Values::Integers(values)) => {
            bytes.extend(values.iter().flat_map(|value| (*value as i16).to_le_bytes()));
        }
        ("f16", Values::Floats(values)) => {
            bytes.extend(values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()));
        }
        ("bf16", Values::Floats(values)) => {
            bytes.extend(values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()));
        }
        ("f32", Values::Floats(values)) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        _ => return None,
    }
    Some(bytes)
}
