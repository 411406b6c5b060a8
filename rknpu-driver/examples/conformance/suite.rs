//! The conformance suite: loads vectors, runs them, compares.

mod compare;
mod generate;
mod host;
mod layout;
mod program;
mod vector;

use std::path::{Path, PathBuf};

use rknpu_driver::sim::{SimError, UndecodedKind};

use program::RunError;
use vector::Vector;

/// How many vectors ended how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Vectors whose outputs are all as expected.
    pub(crate) passed: usize,
    /// Vectors that differ, or that could not be run.
    pub(crate) failed: usize,
    /// Vectors that cannot be judged, for a reason that is printed.
    pub(crate) skipped: usize,
}

/// How one vector ended.
enum Outcome {
    Passed(String),
    Failed(String),
    Skipped(String),
}

/// Runs all vectors of a folder, with a line for each and a last one with the numbers.
///
/// Reading what nobody wrote is an error, but for graphs with transposes: the compiler's read rows that nobody wrote and drop
/// them again. Such a vector runs once more, with `fill` in all of the arena of inputs, outputs and intermediate results;
/// its line says so. A kernel's fresh pages are zero, and any other value must give the same.
pub(crate) fn run(
    folder: &Path,
    fill: u8,
    print: &mut dyn FnMut(&str),
    summary: &mut Summary,
) -> Result<(), String> {
    let files = vectors(folder)?;
    if files.is_empty() {
        return Err(format!("{} holds no vectors", folder.display()));
    }
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let line = match judge(&file, fill) {
            Outcome::Passed(how) => {
                summary.passed += 1;
                format!("{name}: passed: {how}")
            }
            Outcome::Failed(why) => {
                summary.failed += 1;
                format!("{name}: FAILED: {why}")
            }
            Outcome::Skipped(why) => {
                summary.skipped += 1;
                format!("{name}: skipped: {why}")
            }
        };
        print(&line);
    }
    print(&format!("{} passed, {} failed, {} skipped", summary.passed, summary.failed, summary.skipped));
    Ok(())
}

fn vectors(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let fail = |error| format!("{}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn judge(file: &Path, fill: u8) -> Outcome {
    let mut vector = match Vector::load(file) {
        Ok(vector) => vector,
        Err(error) => return Outcome::Failed(error),
    };
    if let Err(constant) = generate::complete(&mut vector) {
        return Outcome::Skipped(format!(
            "constant {constant} is not stored and does not follow from the seed"
        ));
    }
    let mut notes = Vec::new();
    for test in 0..vector.tests() {
        match judge_test(&vector, test, fill) {
            Ok(note) => notes.push(note),
            Err(outcome) => return outcome,
        }
    }
    if notes.is_empty() {
        return Outcome::Failed("it holds no test".to_owned());
    }
    notes.sort();
    notes.dedup();
    let programs = vector.programs();
    if programs.len() > 1 {
        notes.push(format!("programmes for {programs:?} cores agree"));
    }
    Outcome::Passed(notes.join("; "))
}

/// Every programme with the inputs of one test: each as expected, and all with the very same outputs.
fn judge_test(vector: &Vector, test: usize, fill: u8) -> Result<String, Outcome> {
    let (mut first, mut note) = (None, None);
    for cores in vector.programs() {
        let fail = |why: String| Outcome::Failed(format!("{cores}-core programme, test {test}: {why}"));
        let mut outputs = program::run(vector, cores, test, None);
        let refill = vector.transposes() && outputs.as_ref().is_err_and(RunError::is_unwritten);
        if refill {
            outputs = program::run(vector, cores, test, Some(fill));
        }
        let outputs = outputs.map_err(|error| stopped(&error))?;
        let matches = compare::check(vector, test, &outputs).map_err(fail)?;
        let unwritten = if refill { format!(", unwritten bytes read as {fill:#04x}") } else { String::new() };
        note = Some(matches + &unwritten);
        let values: Vec<_> = outputs.into_iter().map(|(_, values)| values).collect();
        if *first.get_or_insert_with(|| values.clone()) != values {
            return Err(fail("its outputs differ from the first programme's".to_owned()));
        }
    }
    note.ok_or_else(|| Outcome::Failed("it holds no programme".to_owned()))
}

/// A stream that stopped has failed, unless nobody knows what it asks for: the DPU's orders of the output that are left
/// over, and compressed weights.
fn stopped(error: &RunError) -> Outcome {
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    let text = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    let unknown = matches!(error, RunError::Stopped { source, .. } if matches!(
        source.error.root(),
        SimError::Undecoded { kind: UndecodedKind::Layout | UndecodedKind::Compressed, .. }
    ));
    if unknown { Outcome::Skipped(text) } else { Outcome::Failed(text) }
}

#[cfg(test)]
mod tests {
    use rknpu_driver::sim::{ChainReport, RegisterId, Stopped};

    use super::*;

    #[test]
    fn only_layouts_and_compression_are_skipped() {
        for (kind, skipped) in
            [(UndecodedKind::Layout, true), (UndecodedKind::Compressed, true), (UndecodedKind::Other, false)]
        {
            let error = SimError::Undecoded { register: RegisterId(0x4010), value: 1, kind, mode: "a mode" };
            let source = Box::new(Stopped { report: ChainReport::default(), error });
            match stopped(&RunError::Stopped { core: 0, source }) {
                Outcome::Skipped(text) => assert!(skipped && text.contains("a mode"), "{text}"),
                Outcome::Failed(text) => assert!(!skipped && text.contains("a mode"), "{text}"),
                Outcome::Passed(text) => panic!("{text}"),
            }
        }
    }
}
