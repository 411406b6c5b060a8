//! The conformance suite on the vectors in `tests/fixtures`, and its own refusals.

use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../examples/conformance/suite.rs"]
mod suite;

use suite::Summary;

/// Unpacks the fixture with the system's tar into a folder of this name.
fn unpacked(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).expect("an old copy goes");
    }
    std::fs::create_dir_all(&folder).expect("a folder under target");
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vectors.tar.xz");
    let status = Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(&folder).status();
    assert!(status.expect("tar and xz unpack the fixture").success());
    folder
}

fn run(folder: &Path, fill: u8) -> (Result<(), String>, Summary, String) {
    let (mut summary, mut output) = (Summary::default(), String::new());
    let result = suite::run(folder, fill, &mut |line| output += &format!("{line}\n"), &mut summary);
    (result, summary, output)
}

#[test]
fn streams_of_the_vendors_compiler_give_what_is_expected() {
    let folder = unpacked("vectors");
    for fill in [0, 0x5a] {
        let (result, summary, output) = run(&folder, fill);
        result.unwrap();
        assert_eq!((summary.failed, summary.skipped), (0, 0), "{output}");
        assert!(summary.passed >= 45, "{output}");
    }
}

#[test]
fn only_transposes_read_what_nobody_wrote() {
    let (result, _, output) = run(&unpacked("unwritten"), 0);
    result.unwrap();
    let refilled: Vec<&str> = output
        .lines()
        .filter(|line| line.contains("unwritten bytes read as 0x00"))
        .filter_map(|line| line.split('_').next())
        .collect();
    assert_eq!(refilled, ["c02", "c04", "e20", "f01", "f02", "f12", "i12"], "{output}");
}

#[test]
fn a_folder_without_vectors_is_an_error() {
    let folder = empty("empty");
    let (result, summary, _) = run(&folder, 0);
    assert!(result.unwrap_err().contains("holds no vectors"));
    assert_eq!(summary, Summary::default());
}

#[test]
fn one_wrong_weight_or_expectation_is_seen() {
    let folder = unpacked("wrong");
    for (vector, array) in
        [("a18_conv_i8_7x32x32_w_ch_nobias", "const:w"), ("t03_tie_128x64x64_s6_ch", "t1.out.y.int_even")]
    {
        let json = std::fs::read_to_string(folder.join(vector).with_extension("json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let offset = json["arrays"][array]["offset"].as_u64().unwrap() as usize;
        let file = folder.join(vector).with_extension("bin");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[offset + 5] ^= 0x40;
        std::fs::write(&file, bytes).unwrap();
    }
    let (result, summary, output) = run(&folder, 0);
    result.unwrap();
    assert_eq!(summary.failed, 2, "{output}");
    assert!(
        output.contains("a18_conv_i8_7x32x32_w_ch_nobias: FAILED: 1-core programme, test 0: int_even: y["),
        "{output}"
    );
    assert!(
        output.contains("t03_tie_128x64x64_s6_ch: FAILED: 1-core programme, test 1: int_even: y[5] is"),
        "{output}"
    );
}

fn empty(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).expect("a folder under target");
    folder
}
