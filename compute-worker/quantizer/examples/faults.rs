//! Puts faults into a bundle of any size and prints what the comparison of layers says of each.
//!
//! ```text
//! cargo run --release -p rookery-quantizer --example faults -- BUNDLE SOURCE
//! ```
//! Copies of the bundle are made beside it, one after another; most of their blobs are links. The last line says how many
//! faults were found and named, and the exit code is 1 unless that is all of them.
#![expect(clippy::unwrap_used, reason = "a tool for developers, which may stop with a trace")]
#![expect(clippy::print_stdout, reason = "its output")]

use std::path::Path;
use std::process::ExitCode;

use rookery_compute_worker::backend::{Backend, CpuBackend};
use rookery_kernels::{Kernels, KvType};
use rookery_model::bundle::{Bundle, NoProgress};
use rookery_model::names::TensorName;
use rookery_model::source::ModelSource;
use rookery_quantizer::eval::layers::{Fault, Finding, LayerOptions, Rule, by_layer};
use rookery_quantizer::eval::{NoEvalProgress, Text};

use altered::altered;
use backends::{Faulty, Where};

#[path = "../tests/faults/altered.rs"]
mod altered;
#[path = "../tests/faults/backends.rs"]
mod backends;

const TOKENS: usize = 256;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, source] = &arguments[..] else {
        println!("usage: faults BUNDLE SOURCE");
        return ExitCode::from(2);
    };
    let folder = Path::new(bundle);
    let bundle = Bundle::open(folder, &NoProgress).unwrap();
    let source = rookery_model::source::open(source.as_ref()).unwrap();
    let judge = Judge { bundle: &bundle, source: source.as_ref(), folder };
    let mut named = vec![judge.nothing()];
    named.extend(judge.scales());
    named.extend(judge.rounding());
    let good = named.iter().filter(|named| **named).count();
    println!("{good} of {} as they should be", named.len());
    ExitCode::from(u8::from(good < named.len()))
}

struct Judge<'a> {
    bundle: &'a Bundle,
    source: &'a dyn ModelSource,
    folder: &'a Path,
}

impl Judge<'_> {
    /// The bundle as it is.
    fn nothing(&self) -> bool {
        let findings = self.findings(self.bundle, Box::new(CpuBackend::new(Kernels::detect())));
        say("as it is", findings.is_empty(), &findings)
    }

    /// Faults of one tensor's scales, at the beginning, in the middle and at the end.
    fn scales(&self) -> Vec<bool> {
        type Change = (&'static str, fn(&mut [f32]), fn(&Fault) -> bool);
        let changes: [Change; 5] = [
            (
                "scales doubled",
                |scales| scales.iter_mut().for_each(|s| *s *= 2.0),
                |fault| *fault == Fault::Scale,
            ),
            (
                "scales halved",
                |scales| scales.iter_mut().for_each(|s| *s *= 0.5),
                |fault| *fault == Fault::Scale,
            ),
            (
                "scales rolled by one",
                |scales| scales.rotate_right(1),
                |fault| *fault == Fault::RolledScales(1),
            ),
            (
                "scales 1/128 too large",
                |scales| scales.iter_mut().for_each(|s| *s *= 1.0 + 1.0 / 128.0),
                |fault| *fault == Fault::Scale,
            ),
            (
                "scales 1/128 too small",
                |scales| scales.iter_mut().for_each(|s| *s *= 1.0 - 1.0 / 128.0),
                |fault| *fault == Fault::Scale,
            ),
        ];
        let last = self.bundle.info().config.model.layers - 1;
        let places = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
        let mut named = Vec::new();
        for (index, place) in places.into_iter().enumerate() {
            let layer = index * last / (places.len() - 1);
            let tensor: TensorName = format!("blk.{layer}.{place}.weight").parse().unwrap();
            for (what, change, right) in changes {
                let out = self.folder.with_file_name("with-a-fault");
                let bundle = altered(self.bundle, self.source, &out, &[tensor], &change);
                let findings = self.findings(&bundle, Box::new(CpuBackend::new(Kernels::detect())));
                drop(bundle);
                std::fs::remove_dir_all(&out).unwrap();
                let found = matches!(&findings[..], [one]
                    if one.tensors == [tensor] && one.rows.is_none() && right(&one.fault));
                named.push(say(&format!("{tensor}: {what}"), found, &findings));
            }
        }
        named
    }

    /// Wrong rounding of activations.
    fn rounding(&self) -> Vec<bool> {
        let mut named = Vec::new();
        for (rule, place, what) in [
            (Rule::Floor, Where::Everywhere, "floor everywhere"),
            (Rule::Truncation, Where::Everywhere, "truncation everywhere"),
            (Rule::Floor, Where::Requantisation, "floor in requantisation"),
            (Rule::Truncation, Where::Requantisation, "truncation in requantisation"),
            (Rule::OtherTies, Where::Everywhere, "ties away from zero"),
        ] {
            let findings = self.findings(self.bundle, Box::new(Faulty::new(rule, place)));
            let kind = findings.iter().all(|finding| finding.fault == Fault::Rounding(rule));
            let requantised = findings.iter().all(|finding| finding.message.starts_with("requantised"));
            let found = !findings.is_empty() && kind && requantised == (place == Where::Requantisation);
            named.push(say(what, found, &findings));
        }
        named
    }

    fn findings(&self, bundle: &Bundle, backend: Box<dyn Backend>) -> Vec<Finding> {
        let tokenizer = bundle.tokenizer().unwrap();
        let texts = Text::builtin();
        let read = |text: &Text| tokenizer.encode_text(&text.text).unwrap();
        let tokens =
            texts.iter().flat_map(|text| read(text).into_iter().take(TOKENS / texts.len())).collect();
        let options = LayerOptions { tokens, kv_type: KvType::F16, threads: 0 };
        by_layer(bundle, self.source, backend, &options, &NoEvalProgress).unwrap().findings
    }
}

fn say(what: &str, good: bool, findings: &[Finding]) -> bool {
    println!("{} {what}", if good { "ok   " } else { "WRONG" });
    for finding in findings {
        println!("        {}", finding.message);
    }
    good
}
