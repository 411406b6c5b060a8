//! Scales of weights: which channels have wrong ones, and what explains them.
//!
//! Two kinds of matrices are told apart by their own numbers:
//!
//! - **Rounded to the nearest.** For each channel there is an interval of scales that round the source's weights to the
//!   stored integers. A right scale lies in it: no chance is involved, and one channel's scale that is off by 1/128 shows.
//! - **Rounded to make up for errors** (GPTQ), whose intervals are empty. Their scales were fitted so that each channel's
//!   slope is 1 on the calibration text; on other text it strays by noise. Of one channel that is what [`Channel::slope`]
//!   says at most; of many channels together, their own spread over the root of their number. And it falls short of 1, for
//!   errors were made up for on the calibration text only: by a share of the error's energy ε², which is much the same in
//!   all layers and at most all of it (that of a least-squares fit). So a matrix is compared with its like in other layers.

use std::ops::Range;

use rookery_model::bundle::Precision;
use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};

use super::spread::{location, median_error};
use crate::eval::layers::measure::Channel;
use crate::eval::layers::report::{Fault, Finding, order};

/// A channel or a median this many standard errors away is wrong: of a million normal numbers none is 6 away.
const SIGMAS: f64 = 6.0;
/// Slopes of right matrices stray by less than this from what is expected, whatever the number of channels: by 0.0016 at
/// most over the demo model's. A scale that is off by 1/128 is three times as far.
const LEAST_SHIFT: f64 = 2.5e-3;
/// Layers that tell what share of ε² is expected.
const PEERS: usize = 5;
/// With another source than the bundle's own, weights differ by that file's own rounding.
const LEAST_SHIFT_OF_OTHERS: f64 = 0.1;
/// |y − slope·y_ref|² over what rounding makes of it: 1 for noise, up to 2 for what clips, and far more for other weights.
const MOST_EXCESS: f64 = 6.0;
/// The same of one channel, where few strong inputs decide.
const MOST_CHANNEL_EXCESS: f64 = 60.0;
/// Rows of a matrix that are looked at together where there are no heads.
const BLOCK: usize = 64;
/// Fewer channels have no telling median.
const FEW: usize = 16;
/// Runs of wrong rows that get findings of their own.
const MOST_RUNS: usize = 6;
/// Rows by which scales may have been moved.
const MOST_ROLLED: isize = 4;

impl Channel {
    /// Whether there is anything to compare.
    pub(super) fn is_live(&self) -> bool {
        self.weight_energy > 0.0 && self.slope().0.is_finite()
    }
}

/// What one channel's numbers say.
#[derive(Clone, Copy)]
struct Verdict {
    /// Stored scale over the right one.
    ratio: f64,
    wrong: Option<Wrong>,
}

#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Scale,
    Weights,
}

/// How far slopes of right matrices fall short of 1, for each kind of matrix and precision.
pub(super) struct Shortfalls(Vec<(LayerTensor, Precision, Shortfall)>);

/// As a share of ε².
#[derive(Clone, Copy)]
struct Shortfall {
    share: f64,
    /// From layer to layer, as a standard deviation.
    spread: f64,
}

/// What is expected of the median slope of a right matrix, less 1, but for noise.
struct Expected {
    lowest: f64,
    highest: f64,
    /// Room for what layers differ by.
    room: f64,
}

impl Shortfalls {
    /// From all layers; with few of them nothing is known.
    pub(super) fn of(matrices: &[(TensorName, Vec<Channel>)]) -> Self {
        let mut found: Vec<(LayerTensor, Precision, Vec<f64>)> = Vec::new();
        for (tensor, channels) in matrices {
            let TensorName::Layer(_, kind) = *tensor else { continue };
            for (precision, group) in groups(channels) {
                let (shift, energy) = shift(channels, &group);
                let share = shift / energy;
                match found.iter_mut().find(|(other, at, _)| (*other, *at) == (kind, precision)) {
                    _ if !share.is_finite() => {}
                    Some((_, _, shares)) => shares.push(share),
                    None => found.push((kind, precision, vec![share])),
                }
            }
        }
        let known = found.into_iter().filter(|(_, _, shares)| shares.len() >= PEERS);
        let shortfall = |shares: Vec<f64>| {
            let (share, spread) = location(&shares);
            Shortfall { share: share.clamp(-1.0, 0.0), spread }
        };
        Self(known.map(|(kind, precision, shares)| (kind, precision, shortfall(shares))).collect())
    }

    /// For a matrix with the error energy ε².
    fn expected(&self, tensor: TensorName, precision: Precision, energy: f64) -> Expected {
        let known = self.0.iter().find(|(kind, at, _)| {
            matches!(tensor, TensorName::Layer(_, ours) if ours == *kind) && *at == precision
        });
        match known {
            None => Expected { lowest: -energy, highest: 0.0, room: 0.0 },
            Some((_, _, Shortfall { share, spread })) => {
                let shift = share * energy;
                // Less than all of ε² whatever layers differ by, as without them.
                let room = (SIGMAS * spread * energy).min(energy);
                Expected { lowest: shift, highest: shift, room }
            }
        }
    }
}

/// Channels that can be compared, by precision.
fn groups(channels: &[Channel]) -> Vec<(Precision, Vec<usize>)> {
    [Precision::W8, Precision::W4]
        .into_iter()
        .map(|precision| {
            let ours = |row: &usize| channels[*row].precision == precision && channels[*row].is_live();
            (precision, (0..channels.len()).filter(ours).collect::<Vec<_>>())
        })
        .filter(|(_, group)| !group.is_empty())
        .collect()
}

/// Whether a channel's weights are off in the same direction and about as far as its outputs are: a scale moves both, text
/// that is unlike the calibration's moves only the outputs.
fn weights_agree(channel: &Channel) -> bool {
    let ((outputs, _), (weights, noise)) = (channel.slope(), channel.weight_slope());
    let (outputs, weights) = (outputs - 1.0, weights - 1.0);
    // Errors that make up for each other are larger than those of rounding alone, by up to a factor of two.
    weights.abs() > 2.0 * SIGMAS * noise && (outputs - weights).abs() < 0.5 * outputs.abs()
}

/// Median of the rows' slopes less 1, and of their errors' share of energy.
fn shift(channels: &[Channel], rows: &[usize]) -> (f64, f64) {
    let of =
        |f: fn(&Channel) -> f64| location(&rows.iter().map(|&row| f(&channels[row])).collect::<Vec<_>>()).0;
    (of(|channel| channel.slope().0) - 1.0, of(Channel::error_share))
}

/// What is wrong with a matrix's scales and weights.
pub(super) fn findings(
    tensor: TensorName,
    channels: &[Channel],
    config: &ModelConfig,
    same_source: bool,
    shortfalls: &Shortfalls,
) -> Vec<Finding> {
    let has_heads =
        matches!(tensor, TensorName::Layer(_, LayerTensor::AttnQ | LayerTensor::AttnK | LayerTensor::AttnV));
    let head = has_heads.then_some(config.head_dim);
    let matrix = Matrix { tensor, channels, head, config, same_source, shortfalls };
    let verdicts = matrix.verdicts();
    if let Some(weights) = matrix.wrong_weights(&verdicts) {
        return vec![weights];
    }
    if let Some(rolled) = matrix.rolled(&verdicts) {
        return vec![rolled];
    }
    matrix.wrong_scales(&verdicts)
}

struct Matrix<'a> {
    tensor: TensorName,
    channels: &'a [Channel],
    /// Rows of a head, of matrices that have heads.
    head: Option<usize>,
    config: &'a ModelConfig,
    same_source: bool,
    shortfalls: &'a Shortfalls,
}

impl Matrix<'_> {
    fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts = vec![Verdict { ratio: 1.0, wrong: None }; self.channels.len()];
        for (precision, group) in groups(self.channels) {
            let nearest = group.iter().filter(|&&row| self.channels[row].is_nearest()).count();
            if self.same_source && 2 * nearest > group.len() {
                self.by_interval(&group, &mut verdicts);
            } else {
                self.by_slope(precision, &group, &mut verdicts);
            }
        }
        verdicts
    }

    /// Of matrices that were rounded to the nearest.
    fn by_interval(&self, group: &[usize], verdicts: &mut [Verdict]) {
        for &row in group {
            let channel = &self.channels[row];
            let wrong = if channel.fits() {
                None
            } else if channel.is_nearest() {
                Some(Wrong::Scale)
            } else {
                Some(Wrong::Weights)
            };
            let ratio = if channel.is_nearest() { channel.scale_ratio() } else { channel.slope().0 };
            verdicts[row] = Verdict { ratio, wrong };
        }
    }

    /// Of matrices whose integers make up for each other's errors.
    fn by_slope(&self, precision: Precision, group: &[usize], verdicts: &mut [Verdict]) {
        let least = if self.same_source { LEAST_SHIFT } else { LEAST_SHIFT_OF_OTHERS };
        let excess: Vec<f64> = group.iter().map(|&row| self.channels[row].excess()).collect();
        let all_wrong = group.len() >= FEW && location(&excess).0 > MOST_EXCESS;
        for &row in group {
            let channel = &self.channels[row];
            let (slope, noise) = channel.slope();
            let far = (slope - 1.0).abs() > (SIGMAS * noise).max(least) && weights_agree(channel);
            let wrong = if all_wrong || channel.excess() > MOST_CHANNEL_EXCESS {
                Some(Wrong::Weights)
            } else {
                far.then_some(Wrong::Scale)
            };
            verdicts[row] = Verdict { ratio: slope, wrong };
        }
        let slopes: Vec<f64> = group.iter().map(|&row| self.channels[row].slope().0).collect();
        let (centre, spread) = location(&slopes);
        let (_, energy) = shift(self.channels, group);
        let mut mark = |rows: &[usize], Expected { lowest, highest, room }: Expected| {
            let (shift, _) = shift(self.channels, rows);
            let room = (SIGMAS * median_error(spread, rows.len())).max(least).max(room);
            let shifted = rows.len() >= FEW && (shift < lowest - room || shift > highest + room);
            if shifted {
                rows.iter().for_each(|&row| {
                    verdicts[row].wrong.get_or_insert(Wrong::Scale);
                });
            }
            shifted
        };
        if mark(group, self.shortfalls.expected(self.tensor, precision, energy)) {
            return;
        }
        let block = self.head.unwrap_or(BLOCK);
        group.chunk_by(|a, b| a / block == b / block).for_each(|rows| {
            mark(rows, Expected { lowest: centre - 1.0, highest: centre - 1.0, room: 0.0 });
        });
    }

    /// Integers that no scale brings close to the source.
    fn wrong_weights(&self, verdicts: &[Verdict]) -> Option<Finding> {
        let rows: Vec<usize> =
            (0..verdicts.len()).filter(|&row| verdicts[row].wrong == Some(Wrong::Weights)).collect();
        let (&first, &last) = (rows.first()?, rows.last()?);
        let whole = rows.len() == verdicts.len();
        let message = format!(
            "{}: the weights of {} of {} channels (first {first}) are not the source's, whatever their scales",
            self.tensor,
            rows.len(),
            verdicts.len()
        );
        let mut finding = self.finding(Fault::Weights, (!whole).then_some(first..last + 1), message);
        finding.severity = self.share(rows.iter().map(|&row| (row, 1.0)));
        Some(finding)
    }

    /// Scales that belong to the rows beside theirs: the spread of stored over right scales falls to less than half when
    /// they are moved.
    fn rolled(&self, verdicts: &[Verdict]) -> Option<Finding> {
        let whole = 0..verdicts.len();
        let wrong = verdicts.iter().filter(|verdict| verdict.wrong.is_some()).count();
        let wide = |shift: isize, rows: &Range<usize>| -> f64 {
            let inside = |row: usize| rows.contains(&row).then_some(row);
            let log = rows.clone().filter_map(|row| {
                let from = inside(row.checked_add_signed(-shift)?)?;
                let (taken, own) = (&self.channels[row], &self.channels[from]);
                if !taken.is_live() || !own.is_live() || taken.precision != own.precision {
                    return None;
                }
                let right = own.scale / verdicts[from].ratio;
                let log = (taken.scale / right).ln();
                log.is_finite().then_some(log)
            });
            let log: Vec<f64> = log.collect();
            if log.len() < FEW { f64::INFINITY } else { location(&log).1 + location(&log).0.abs() }
        };
        let moved = |rows: &Range<usize>| -> Option<isize> {
            let stay = wide(0, rows);
            let shifts = (1..=MOST_ROLLED).flat_map(|shift| [shift, -shift]);
            let best = shifts.min_by(|a, b| wide(*a, rows).total_cmp(&wide(*b, rows)))?;
            (wide(best, rows) < 0.5 * stay).then_some(best)
        };
        let say = |shift: isize, rows: Option<Range<usize>>| {
            let place = self.place(rows.as_ref());
            let (by, side) = (shift.unsigned_abs(), if shift > 0 { "before" } else { "after" });
            let message = format!(
                "{place}: each channel has the scale of the channel {by} {side} it (scales rolled by {shift})"
            );
            let each =
                rows.clone().unwrap_or(whole.clone()).map(|row| (row, (verdicts[row].ratio - 1.0).abs()));
            let severity = self.share(each);
            Finding { severity, ..self.finding(Fault::RolledScales(shift), rows, message) }
        };
        if wrong == 0 && verdicts.len() < FEW {
            return None;
        }
        if let Some(shift) = moved(&whole) {
            return Some(say(shift, None));
        }
        let block = self.head.unwrap_or(BLOCK);
        let blocks = whole.clone().step_by(block).map(|start| start..whole.end.min(start + block));
        let moved: Vec<(isize, Range<usize>)> =
            blocks.filter_map(|rows| Some((moved(&rows)?, rows))).collect();
        let ((shift, first), (_, last)) = (moved.first()?, moved.last()?);
        Some(say(*shift, Some(first.start..last.end)))
    }

    fn wrong_scales(&self, verdicts: &[Verdict]) -> Vec<Finding> {
        let rows: Vec<usize> = (0..verdicts.len()).filter(|&row| verdicts[row].wrong.is_some()).collect();
        if rows.is_empty() {
            return Vec::new();
        }
        let logs: Vec<f64> =
            rows.iter().map(|&row| verdicts[row].ratio.max(f64::MIN_POSITIVE).ln()).collect();
        let (centre, _) = location(&logs);
        // Rows that look right and would with the same factor taken off again: their numbers cannot tell.
        let could = |row: usize| {
            let channel = &self.channels[row];
            let scale = channel.scale / centre.exp();
            !channel.is_live() || (channel.least_scale <= scale && scale <= channel.largest_scale)
        };
        let runs = runs(&rows, verdicts.len(), &could);
        if let [whole] = &runs[..]
            && whole.len() == verdicts.len()
        {
            return vec![self.scale_finding(verdicts, &rows, None)];
        }
        if runs.len() > MOST_RUNS {
            let hull = runs[0].start..runs[runs.len() - 1].end;
            return vec![self.scale_finding(verdicts, &rows, Some(hull))];
        }
        let of_run = |run: &Range<usize>| {
            let inside: Vec<usize> = rows.iter().copied().filter(|row| run.contains(row)).collect();
            self.scale_finding(verdicts, &inside, Some(run.clone()))
        };
        runs.iter().map(of_run).collect()
    }

    fn scale_finding(&self, verdicts: &[Verdict], rows: &[usize], range: Option<Range<usize>>) -> Finding {
        let ratios: Vec<f64> = rows.iter().map(|&row| verdicts[row].ratio).collect();
        let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.max(f64::MIN_POSITIVE).ln()).collect();
        let (centre, spread) = location(&logs);
        let common = spread < 0.03 + 0.1 * centre.abs();
        let factor = location(&ratios).0;
        let place = self.place(range.as_ref());
        let count = match &range {
            Some(range) if range.len() > rows.len() => format!(", {} of these rows", rows.len()),
            _ => String::new(),
        };
        let message = if common {
            format!("{place}: scales are {factor:.4} times what they should be ({}){count}", percent(factor))
        } else {
            format!("{place}: scales are wrong by no common factor{count}")
        };
        let fault = if common { Fault::Scale } else { Fault::Scales };
        let severity = self.share(rows.iter().map(|&row| (row, (verdicts[row].ratio - 1.0).abs())));
        Finding { severity, factor: common.then_some(factor), ..self.finding(fault, range, message) }
    }

    fn finding(&self, fault: Fault, rows: Option<Range<usize>>, message: String) -> Finding {
        Finding {
            order: order(self.tensor, self.config),
            tensors: vec![self.tensor],
            heads: self.heads(rows.as_ref()),
            rows,
            fault,
            factor: None,
            severity: 0.0,
            message,
        }
    }

    fn heads(&self, rows: Option<&Range<usize>>) -> Option<Range<usize>> {
        let (head, rows) = (self.head?, rows?);
        let whole = rows.start.is_multiple_of(head) && rows.end.is_multiple_of(head);
        whole.then(|| rows.start / head..rows.end / head)
    }

    fn place(&self, rows: Option<&Range<usize>>) -> String {
        let tensor = self.tensor;
        match (rows, self.heads(rows)) {
            (None, _) => tensor.to_string(),
            (_, Some(heads)) if heads.len() == 1 => format!("{tensor} head {}", heads.start),
            (_, Some(heads)) => format!("{tensor} heads {}–{}", heads.start, heads.end - 1),
            (Some(rows), None) if rows.len() == 1 => format!("{tensor} channel {}", rows.start),
            (Some(rows), None) => format!("{tensor} channels {}–{}", rows.start, rows.end - 1),
        }
    }

    /// Relative error of all outputs when some rows have a relative error.
    fn share(&self, rows: impl Iterator<Item = (usize, f64)>) -> f64 {
        let energy = |channel: &Channel| {
            if channel.energy > 0.0 { channel.energy } else { channel.weight_energy }
        };
        let whole: f64 = self.channels.iter().map(energy).sum();
        let wrong: f64 = rows.map(|(row, error)| energy(&self.channels[row]) * error * error).sum();
        if whole > 0.0 { (wrong / whole).sqrt() } else { 0.0 }
    }
}

/// `1.0078` → `0.8 % too large`.
fn percent(factor: f64) -> String {
    let off = 100.0 * (factor - 1.0);
    format!("{:.1} % too {}", off.abs(), if off > 0.0 { "large" } else { "small" })
}

/// Wrong rows as runs; rows in between that cannot tell belong to the run around them.
fn runs(rows: &[usize], len: usize, could: &dyn Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for &row in rows {
        match runs.last_mut() {
            Some(run) if (run.end..row).all(could) => run.end = row + 1,
            _ => runs.push(row..row + 1),
        }
    }
    if let Some(first) = runs.first_mut()
        && (0..first.start).all(could)
    {
        first.start = 0;
    }
    if let Some(last) = runs.last_mut()
        && (last.end..len).all(could)
    {
        last.end = len;
    }
    runs
}
