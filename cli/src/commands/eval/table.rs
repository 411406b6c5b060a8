//! An evaluation for people.

use rookery_quantizer::eval::{CandidateReport, Measured, Report};

use crate::output::{self, Table};

/// What was measured on, then a row for each model.
pub(super) fn render(report: &Report) -> String {
    let mut text = format!(
        "{} tokens of {}, {} sequences of up to {}, {:.0} s\n\n",
        output::grouped(report.tokens as u64),
        report.texts.join(", "),
        report.sequences,
        report.sequence_tokens,
        report.seconds
    );
    let mut headings = vec!["MODEL", "BACKEND", "KV", ">SIZE", ">BITS", ">PERPLEXITY", ">±"];
    if report.reference.is_some() {
        headings.extend([">RATIO", ">±", ">KL MEAN", ">±", ">MEDIAN", ">99 %", ">MAX", ">TOP-1 %", ">±"]);
    }
    let mut table = Table::new(&headings);
    if let Some(reference) = &report.reference {
        let size = output::bytes(reference.size_bytes);
        let empty = String::new;
        let mut row = vec![format!("{} (reference)", reference.name), empty(), empty(), size, empty()];
        row.extend(measured(&reference.perplexity, 4));
        table.row(row);
    }
    for candidate in &report.candidates {
        table.row(row(candidate));
    }
    text.push_str(&table.render());
    text
}

fn row(candidate: &CandidateReport) -> Vec<String> {
    let mut row = vec![
        candidate.name.clone(),
        candidate.backend.clone(),
        candidate.kv_cache_type.clone().unwrap_or_default(),
        output::bytes(candidate.size_bytes),
        format!("{:.2}", candidate.bits_per_weight),
    ];
    row.extend(measured(&candidate.perplexity, 4));
    if let (Some(ratio), Some(kl), Some(top)) =
        (&candidate.perplexity_ratio, &candidate.kl, &candidate.top_1_agreement)
    {
        row.extend(measured(ratio, 5));
        row.extend(measured(&kl.mean, 6));
        row.extend([
            format!("{:.6}", kl.median.value),
            format!("{:.5}", kl.p99.value),
            format!("{:.4}", kl.max),
        ]);
        let percent = |value| 100.0 * value;
        let top = Measured { value: percent(top.value), standard_error: top.standard_error.map(percent) };
        row.extend(measured(&top, 2));
    }
    row
}

/// The value and its error; no error with a single sequence.
fn measured(measured: &Measured, digits: usize) -> [String; 2] {
    let error = measured.standard_error.map(|error| format!("{error:.digits$}"));
    [format!("{:.digits$}", measured.value), error.unwrap_or_default()]
}
