//! The few operators that the vendor's compiler leaves to the CPU.

use super::program::{Placed, RunError};
use super::vector::{Op, Tensor, Values, Vector};

/// Evaluates an operator on tensors in memory: in f64, with one rounding into the output's format.
pub(crate) fn run(vector: &Vector, op: &Op, placed: &Placed) -> Result<(), RunError> {
    let [output] = op.outputs.as_slice() else { return Err(unknown(op)) };
    let output = vector.tensor(*output)?;
    let input = |index: usize| -> Result<(Vec<f64>, &[usize]), RunError> {
        let id = op.inputs.get(index).ok_or_else(|| unknown(op))?;
        let tensor = vector.tensor(*id)?;
        Ok((real(tensor, &placed.load(tensor)?), &tensor.shape))
    };
    let each = |f: fn(f64) -> f64| Ok::<_, RunError>(input(0)?.0.into_iter().map(f).collect());
    let both = |f: fn(f64, f64) -> f64| Ok::<_, RunError>(zip(&output.shape, input(0)?, input(1)?, f));
    let result: Vec<f64> = match op.kind.as_str() {
        "Reshape" => each(|x| x)?,
        "Log" => each(f64::ln)?,
        "Exp" => each(f64::exp)?,
        "Sqrt" => each(f64::sqrt)?,
        "Reciprocal" => each(f64::recip)?,
        "Add" => both(|a, b| a + b)?,
        "Sub" => both(|a, b| a - b)?,
        "Mul" => both(|a, b| a * b)?,
        "Div" => both(|a, b| a / b)?,
        "Min" => both(f64::min)?,
        "Max" => both(f64::max)?,
        _ => return Err(unknown(op)),
    };
    placed.store(output, &quantised(output, &result))
}

fn unknown(op: &Op) -> RunError {
    RunError::Vector(format!("operator {} ({}) has no tasks and no host version", op.id, op.kind))
}

/// Element by element; dimensions of 1 are stretched, shapes aligned at their ends.
fn zip(
    shape: &[usize],
    (a, a_shape): (Vec<f64>, &[usize]),
    (b, b_shape): (Vec<f64>, &[usize]),
    f: fn(f64, f64) -> f64,
) -> Vec<f64> {
    let at = |index: usize, of: &[usize]| {
        let (mut rest, mut offset, mut step) = (index, 0, 1);
        for (axis, size) in shape.iter().rev().enumerate() {
            let own = of.len().checked_sub(axis + 1).map_or(1, |axis| of[axis]);
            offset += if own == 1 { 0 } else { rest % size * step };
            (rest, step) = (rest / size, step * own);
        }
        offset
    };
    let element = |index: usize| f(a[at(index, a_shape) % a.len()], b[at(index, b_shape) % b.len()]);
    (0..shape.iter().product()).map(element).collect()
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
