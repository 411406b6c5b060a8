//! The few operators that the vendor's compiler leaves to the CPU.

use super::program::{Placed, RunError};
use super::vector::{Op, Tensor, Values, Vector};

/// Evaluates an operator on tensors in memory: in f64, with one rounding into the output's format.
pub(crate) fn run(vector: &Vector, op: &Op, placed: &Placed) -> Result<(), RunError> {
    let [output] = op.outputs.as_slice() else { return Err(unknown(op)) };
    let output = vector.tensor(*output)?;
    let input = |index: usize| -> Result<Vec<f64>, RunError> {
        let id = op.inputs.get(index).ok_or_else(|| unknown(op))?;
        let tensor = vector.tensor(*id)?;
        Ok(real(tensor, &placed.load(tensor)?))
    };
    let result = match op.kind.as_str() {
        "Reshape" => input(0)?,
        "Div" => zip(&input(0)?, &input(1)?, |a, b| a / b),
        "Min" => zip(&input(0)?, &input(1)?, f64::min),
        "Log" => input(0)?.into_iter().map(f64::ln).collect(),
        "Exp" => input(0)?.into_iter().map(f64::exp).collect(),
        "Reciprocal" => input(0)?.into_iter().map(f64::recip).collect(),
        _ => return Err(unknown(op)),
    };
    placed.store(output, &quantised(output, &result))
}

fn unknown(op: &Op) -> RunError {
    RunError::Vector(format!("operator {} ({}) has no tasks and no host version", op.id, op.kind))
}

fn zip(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let length = a.len().max(b.len());
    (0..length).map(|index| f(a[index % a.len().max(1)], b[index % b.len().max(1)])).collect()
}

fn real(tensor: &Tensor, values: &Values) -> Vec<f64> {
    let (scale, zero) = tensor.quantisation();
    match values {
        Values::Integers(values) => values.iter().map(|value| (value - zero) as f64 * scale).collect(),
        Values::Floats(values) => values.iter().map(|value| f64::from(*value)).collect(),
    }
}

/// Ties to even, saturating.
fn quantised(tensor: &Tensor, values: &[f64]) -> Values {
    let limit = match tensor.dtype.as_str() {
        "i8" => 128.0,
        "i16" => 32768.0,
        _ => return Values::Floats(values.iter().map(|value| *value as f32).collect()),
    };
    let (scale, zero) = tensor.quantisation();
    let code =
        |value: &f64| ((value / scale).round_ties_even() + zero as f64).clamp(-limit, limit - 1.0) as i64;
    Values::Integers(values.iter().map(code).collect())
}
