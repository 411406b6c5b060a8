//! From numbers of channels to the faults that explain them.

use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};

use super::measure::Channel;
use super::report::{CallReport, Fault, Finding, LayerReport, TensorReport, order};
use super::rounding::Rule;
use super::{Seen, watch::Piece};

mod scales;
mod spread;

use scales::Shortfalls;

/// Everything that is wrong with what was seen. With `same_source` stored integers are held against the weights that they
/// were rounded from.
pub(super) fn diagnose(seen: Seen, config: &ModelConfig, same_source: bool) -> LayerReport {
    let mut tensors = matrices(seen.pieces);
    tensors.sort_by_key(|(tensor, _)| order(*tensor, config));
    let reports: Vec<TensorReport> = tensors.iter().map(|(tensor, all)| numbers(*tensor, all)).collect();
    let mut findings = activations(&seen.calls, &reports, seen.ties_to_even, config);
    let shortfalls = Shortfalls::of(&tensors);
    for ((tensor, channels), report) in tensors.iter().zip(&reports) {
        findings.extend(products(*tensor, channels, report, config));
        findings.extend(scales::findings(*tensor, channels, config, same_source, &shortfalls));
    }
    LayerReport { tokens: 0, same_source, findings, tensors: reports, roundings: seen.calls, seconds: 0.0 }
}

/// Pieces put together, in the order in which their matrices were first seen.
fn matrices(mut pieces: Vec<Piece>) -> Vec<(TensorName, Vec<Channel>)> {
    let mut matrices: Vec<(TensorName, Vec<Channel>)> = Vec::new();
    pieces.sort_by_key(|piece| piece.first_row);
    for Piece { tensor, channels, .. } in pieces {
        match matrices.iter_mut().find(|(name, _)| *name == tensor) {
            Some((_, all)) => all.extend(channels),
            None => matrices.push((tensor, channels)),
        }
    }
    matrices
}

fn numbers(tensor: TensorName, channels: &[Channel]) -> TensorReport {
    let sum = |f: fn(&Channel) -> f64| channels.iter().map(f).sum::<f64>();
    let outputs = sum(|channel| channel.energy) > 0.0;
    let share = |of: f64, whole: f64| if whole > 0.0 { of / whole } else { 0.0 };
    let mut precisions: Vec<String> = channels.iter().map(|channel| channel.precision.to_string()).collect();
    precisions.sort();
    precisions.dedup();
    let slopes: Vec<f64> = channels.iter().filter(|channel| channel.is_live()).map(|c| c.slope().0).collect();
    let (median_slope, slope_spread) = spread::location(&slopes);
    let distance = |channel: &Channel| if channel.is_live() { (channel.slope().0 - 1.0).abs() } else { 0.0 };
    let furthest =
        (0..channels.len()).max_by(|&a, &b| distance(&channels[a]).total_cmp(&distance(&channels[b])));
    let furthest_channel = furthest.unwrap_or(0);
    let furthest_slope =
        channels.get(furthest_channel).filter(|channel| channel.is_live()).map_or(1.0, |c| c.slope().0);
    let (slope, relative_error, weight_error) = if outputs {
        (
            share(sum(|channel| channel.cross), sum(|channel| channel.energy)),
            share(sum(|channel| channel.full_error), sum(|channel| channel.full_energy)).sqrt(),
            share(sum(|channel| channel.error), sum(|channel| channel.energy)).sqrt(),
        )
    } else {
        let energy = sum(|channel| channel.weight_energy);
        let error = share(sum(|channel| channel.weight_error), energy).sqrt();
        (share(sum(|channel| channel.weight_cross), energy), error, error)
    };
    TensorReport {
        tensor,
        precision: precisions.join("+"),
        channels: channels.len(),
        slope,
        median_slope,
        slope_spread,
        furthest_channel,
        furthest_slope,
        relative_error,
        weight_error,
        bias_share: share(sum(Channel::constant_error), sum(|channel| channel.full_error)),
    }
}

/// Outputs that are not what integers and scales give.
fn products(
    tensor: TensorName,
    channels: &[Channel],
    report: &TensorReport,
    config: &ModelConfig,
) -> Option<Finding> {
    let wrong: Vec<usize> = (0..channels.len()).filter(|&row| !channels[row].exact).collect();
    let (&first, &last) = (wrong.first()?, wrong.last()?);
    let message = format!(
        "{tensor}: outputs of {} of {} channels (first {first}) are not what the stored weights and the activations \
         give; the backend computes wrongly",
        wrong.len(),
        channels.len()
    );
    Some(Finding {
        order: order(tensor, config),
        tensors: vec![tensor],
        rows: (wrong.len() < channels.len()).then_some(first..last + 1),
        heads: None,
        fault: Fault::Products,
        factor: None,
        severity: report.weight_error,
        message,
    })
}

/// Inputs of linear calls that come from the same kind of place.
const SITES: [(LayerTensor, &str); 4] = [
    (LayerTensor::AttnQ, "activations between the norm and q, k, v"),
    (LayerTensor::AttnOutput, "requantised attention outputs"),
    (LayerTensor::FfnGate, "activations between the norm and gate, up"),
    (LayerTensor::FfnDown, "requantised inner activations of the feed-forward"),
];

fn site(tensor: TensorName) -> &'static str {
    let TensorName::Layer(_, tensor) = tensor else {
        return "activations between the last norm and the head";
    };
    SITES.iter().find(|(first, _)| *first == tensor).map_or("activations", |(_, what)| what)
}

/// Activations that are not rounded to the nearest step: one finding for each rule and kind of place.
fn activations<'a>(
    calls: &'a [CallReport],
    reports: &[TensorReport],
    ties_to_even: bool,
    config: &ModelConfig,
) -> Vec<Finding> {
    let mut found: Vec<(&'static str, Fault, Vec<&'a CallReport>)> = Vec::new();
    let mut add = |call: &'a CallReport, fault| {
        let what = site(call.tensor);
        match found.iter_mut().find(|(other, kind, _)| (*other, *kind) == (what, fault)) {
            Some((_, _, calls)) => calls.push(call),
            None => found.push((what, fault, vec![call])),
        }
    };
    for call in calls {
        if let Some(rule) = call.rounding.fault() {
            add(call, Fault::Rounding(rule));
        }
        if call.rounding.other_scales > 0 {
            add(call, Fault::ActivationScale);
        }
    }
    if found.is_empty() && !ties_to_even {
        found.extend(
            calls.first().map(|call| ("all activations", Fault::Rounding(Rule::OtherTies), vec![call])),
        );
    }
    let severity = |tensor: TensorName| {
        reports.iter().find(|report| report.tensor == tensor).map_or(0.0, |report| report.relative_error)
    };
    let finding = |(what, fault, calls): (&str, Fault, Vec<&CallReport>)| {
        let tensors: Vec<TensorName> = calls.iter().map(|call| call.tensor).collect();
        let mean = calls.iter().map(|call| call.rounding.mean).sum::<f64>() / calls.len() as f64;
        let how = if let Fault::Rounding(rule) = fault {
            let rule = rule.name();
            format!(
                "are rounded by {rule} instead of to the nearest step, ties to even (mean error {mean:.3} steps)"
            )
        } else {
            "have scales other than the largest magnitude over 127".to_owned()
        };
        Finding {
            // Before the first matrix that takes them.
            order: order(tensors[0], config) - 1,
            rows: None,
            heads: None,
            factor: None,
            severity: tensors.iter().map(|tensor| severity(*tensor)).fold(0.0, f64::max),
            message: format!("{what} {how}; first inputs of {}, {} in all", tensors[0], tensors.len()),
            fault,
            tensors,
        }
    };
    found.into_iter().map(finding).collect()
}
