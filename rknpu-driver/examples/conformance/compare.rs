//! What counts as a match.
//!
//! | expectation | integers | floats |
//! |---|---|---|
//! | `int_even`: the emitted registers evaluated, ties to even | bit for bit | |
//! | `refsim`: an independent interpreter of the stream | bit for bit; with tables ±1 on 5 % | 2 ulp, or the sum's tolerance |
//! | `simq`, `simf16`: the vendor's simulator | ±1 on 0.1 % (0.2 % beside a match of `int_even`; int16 any) | 2 ulp, or the sum's tolerance |
//!
//! The sum's tolerance is 2⁻¹³ of the tensor's largest value behind one convolution, whose order of additions is not known,
//! and 2⁻¹⁰ where operators follow each other with rounded results between them.
//!
//! The vendor's simulator computes what the graph means, in float, and not what the stream does. Where a stream
//! approximates (tables, softmax and norms by bit tricks, partial sums rounded to int8 or fp16), it is asked only if there is no
//! `refsim`, with the tolerance that the approximation needs.

use std::collections::BTreeMap;

use super::vector::{Approximation, Tensor, Values, Vector};

/// Units in the last place of fp16 or bf16 that any result may differ by.
const ULPS: f32 = 2.0;

/// Parts of the largest value that sums may differ by.
const ONE_SUM: f32 = 1.0 / 8192.0;
const SUMS_IN_A_ROW: f32 = 1.0 / 1024.0;

/// Part of the largest value by which an interpolated table may be off.
const TABLE: f32 = 1e-2;

/// The same for norms, whose inverse square root comes from a bit pattern and three Newton steps in fp16.
const NORM: f32 = 1.0 / 256.0;

/// A power of two by the bits of a float is a straight line between whole exponents, up to 6.15 % above the curve; a
/// quotient of such values is as far off, each probability by itself and an attention's weighted sum as a whole.
const EXPONENTIAL: f32 = 0.0615;

/// Differences that are always granted: 0.1 % of a small tensor is less than one element.
const GRANTED: usize = 2;

/// How far an output may be from an expectation.
#[derive(Clone, Copy)]
struct Rule {
    /// Arrays that hold the expectation.
    arrays: &'static [&'static str],
    /// Largest difference of integers, and per mille of them that may differ.
    step: i64,
    per_mille: usize,
    /// Largest difference of floats, as part of the largest value and of the value itself.
    absolute: f32,
    relative: f32,
}

const VENDOR: &[&str] = &["simq", "simf16", "simbf16", "simf32"];

/// Compares the outputs of a test with what is expected; says what was compared.
pub(crate) fn check(vector: &Vector, test: usize, outputs: &[(Tensor, Values)]) -> Result<String, String> {
    let mut notes = Vec::new();
    for (tensor, values) in outputs {
        let name = format!("t{test}.out.{}", tensor.name);
        let before = notes.len();
        for rule in rules(vector, tensor, &name) {
            for kind in rule.arrays {
                let Some(expected) = vector.values(&format!("{name}.{kind}")) else { continue };
                let differing =
                    compare(tensor, values, &expected, rule).map_err(|why| format!("{kind}: {why}"))?;
                notes.push(match differing.is_empty() {
                    true => (*kind).to_owned(),
                    false => {
                        format!("{kind} ({} of {} within tolerance)", distribution(&differing), values.len())
                    }
                });
            }
        }
        if notes.len() == before {
            return Err(format!("nothing to compare {} with", tensor.name));
        }
    }
    Ok(notes.join(", "))
}

/// The expectations of an output, the strictest first.
fn rules(vector: &Vector, tensor: &Tensor, output: &str) -> Vec<Rule> {
    let has = |kind: &str| vector.has(&format!("{output}.{kind}"));
    let approximation = vector.approximation();
    let sum = if approximation == Approximation::None { ONE_SUM } else { SUMS_IN_A_ROW };
    let exact = Rule { arrays: &["int_even"], step: 0, per_mille: 0, absolute: 0.0, relative: 0.0 };
    let mut interpreter = Rule { arrays: &["refsim"], absolute: sum, ..exact };
    if approximation == Approximation::Table {
        (interpreter.step, interpreter.per_mille) = (1, 50);
    }
    let per_mille = match tensor.dtype.as_str() {
        // A multiplier of 15 bits is off by up to one step of a 16-bit code.
        "i16" => 1000,
        // How many of a vector's outputs lie near a rounding edge is chance: 0.039 % on average, 0.1 % in some.
        _ if has("int_even") => 2,
        _ => 1,
    };
    let vendor = Rule { arrays: VENDOR, step: 1, per_mille, absolute: sum, relative: 0.0 };
    let vendor = match approximation {
        Approximation::None => vendor,
        _ if has("refsim") => return vec![exact, interpreter],
        // Rounded parts of a sum were off by up to 35 steps where inputs leave the calibrated range.
        Approximation::Rounding if vector.splits_sums() => Rule { step: 40, per_mille: 500, ..vendor },
        // At most 15 % by one step, measured where rounded results follow each other.
        Approximation::Rounding => Rule { step: 2, per_mille: 200, ..vendor },
        Approximation::Table => Rule { per_mille: 1000, absolute: TABLE, ..vendor },
        Approximation::Norm => Rule { per_mille: 1000, absolute: NORM, ..vendor },
        Approximation::Softmax => Rule { step: 8, per_mille: 1000, relative: EXPONENTIAL, ..vendor },
        Approximation::Attention => Rule { step: 8, per_mille: 1000, absolute: EXPONENTIAL, ..vendor },
    };
    vec![exact, interpreter, vendor]
}

/// How often elements differ by how many steps (integers) or powers of two of the largest value (floats, rounded up).
type Differences = BTreeMap<i32, usize>;

/// `12 by 1, 3 by 2` of integers, `5 by 2^-12` of floats.
fn distribution(differences: &Differences) -> String {
    let part = |(size, count): (&i32, &usize)| match *size {
        steps @ 1.. => format!("{count} by {steps}"),
        exponent => format!("{count} by 2^{exponent}"),
    };
    differences.iter().map(part).collect::<Vec<_>>().join(", ")
}

/// The differences, all within the rule; else the first that is outside, or that there are too many.
fn compare(tensor: &Tensor, values: &Values, expected: &Values, rule: Rule) -> Result<Differences, String> {
    let (name, bits) = (tensor.name.as_str(), if tensor.dtype == "bf16" { 7 } else { 10 });
    if values.len() != expected.len() {
        return Err(format!("{name} has {} elements, {} are expected", values.len(), expected.len()));
    }
    match (values, expected) {
        (Values::Integers(values), Values::Integers(expected)) => integers(name, values, expected, rule),
        (Values::Floats(values), Values::Floats(expected)) => floats(name, values, expected, rule, bits),
        _ => Err(format!("{name} is of another kind than what is expected")),
    }
}

fn integers(tensor: &str, values: &[i64], expected: &[i64], rule: Rule) -> Result<Differences, String> {
    let pairs = || values.iter().zip(expected).enumerate();
    if let Some((index, (value, want))) = pairs().find(|(_, (a, b))| (**a - **b).abs() > rule.step) {
        return Err(format!("{tensor}[{index}] is {value}, expected {want}"));
    }
    let differing = pairs().filter(|(_, (a, b))| a != b).count();
    let allowed = if rule.step == 0 { 0 } else { values.len() * rule.per_mille / 1000 + GRANTED };
    match pairs().find(|(_, (a, b))| a != b) {
        Some((index, (value, want))) if differing > allowed => Err(format!(
            "{differing} of {} elements differ, {allowed} may; the first: {tensor}[{index}] is {value}, expected {want}",
            values.len()
        )),
        _ => {
            let mut differences = Differences::new();
            for (_, (value, want)) in pairs().filter(|(_, (a, b))| a != b) {
                *differences.entry(value.abs_diff(*want) as i32).or_default() += 1;
            }
            Ok(differences)
        }
    }
}

fn floats(
    tensor: &str,
    values: &[f32],
    expected: &[f32],
    rule: Rule,
    bits: i32,
) -> Result<Differences, String> {
    let largest = expected.iter().filter(|value| value.is_finite()).fold(0.0f32, |a, b| a.max(b.abs()));
    let within = |a: f32, b: f32| {
        let tolerance = (ULPS * ulp(b, bits)).max(largest * rule.absolute).max(b.abs() * rule.relative);
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance
    };
    let mut pairs = values.iter().zip(expected).enumerate();
    match pairs.find(|(_, (a, b))| !within(**a, **b)) {
        Some((index, (value, want))) => Err(format!("{tensor}[{index}] is {value}, expected {want}")),
        None => {
            let mut differences = Differences::new();
            for (value, want) in
                values.iter().zip(expected).filter(|(a, b)| a != b && !(a.is_nan() && b.is_nan()))
            {
                let part = ((value - want).abs() / largest).log2().ceil();
                *differences.entry((part as i32).min(0)).or_default() += 1;
            }
            Ok(differences)
        }
    }
}

/// The distance of neighbouring values of a format with this many bits of fraction at `value`.
fn ulp(value: f32, bits: i32) -> f32 {
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5;
    2.0f32.powi(value.abs().max(SMALLEST_NORMAL).log2().floor() as i32 - bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules for an int8 output of a graph with these operators, one task each, and these expectations.
    fn rules_of(kinds: &[&str], expectations: &[&str]) -> Vec<(&'static str, i64)> {
        let op = |id: usize| serde_json::json!({"id": id, "type": kinds[id], "inputs": [], "outputs": []});
        let task = |op: usize| serde_json::json!({"op": op, "int_mask": 0, "regcfg_amount": 0, "regcmd_byte_offset": 0});
        let array = |kind: &&str| {
            (format!("t0.out.y.{kind}"), serde_json::json!({"dtype": "i1", "offset": 0, "nbytes": 0}))
        };
        let vector: Vector = serde_json::from_value(serde_json::json!({
            "spec": {}, "inputs": [], "outputs": [], "tensors": [], "relocs": [], "core_programs": {},
            "ops": (0..kinds.len()).map(op).collect::<Vec<_>>(),
            "tasks": (0..kinds.len()).map(task).collect::<Vec<_>>(),
            "arrays": expectations.iter().map(array).collect::<serde_json::Map<_, _>>(),
        }))
        .unwrap();
        let tensor = serde_json::json!({
            "id": 0, "name": "y", "dtype": "i8", "mem": "output", "shape": [], "native": [], "bytes": 0, "offset": 0
        });
        let tensor = serde_json::from_value(tensor).unwrap();
        rules(&vector, &tensor, "t0.out.y").into_iter().map(|rule| (rule.arrays[0], rule.step)).collect()
    }

    #[test]
    fn an_exact_expectation_is_never_left_out() {
        let both = rules_of(&["Conv", "Add"], &["int_even", "refsim", "simq"]);
        assert_eq!(both, [("int_even", 0), ("refsim", 0)]);
    }

    #[test]
    fn only_split_sums_may_be_many_steps_off() {
        assert_eq!(rules_of(&["Conv", "ConvAdd"], &["simq"])[2], ("simq", 40));
        assert_eq!(rules_of(&["Conv", "exMatMul"], &["simq"])[2], ("simq", 2));
        assert_eq!(rules_of(&["Conv"], &["simq"])[2], ("simq", 1));
    }
}
