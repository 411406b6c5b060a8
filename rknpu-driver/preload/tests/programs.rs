//! Programs that know nothing of the simulator, run under the library: C programs with their own declarations of both
//! kernel interfaces (`programs/`), and this project's own ioctl layer.
//!
//! Needs a C compiler (`cc`, or what `CC` names). Where the tests themselves run in an emulator, `RKNPU_SIM_TEST_RUNNER` is the emulator's
//! command with its arguments, and programs are started with it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Seconds after which a program counts as hung.
const LIMIT: &str = "120";

/// The library lies beside this test: it was built with it.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let places: Vec<_> =
        test.ancestors().skip(1).take(2).map(|place| place.join("librknpu_sim.so")).collect();
    let found = places.iter().find(|place| place.exists());
    found
        .unwrap_or_else(|| panic!("none of {places:?} exists: cargo build --release -p rknpu-sim-preload"))
        .clone()
}

/// The emulator's command, if there is one.
fn runner() -> Vec<String> {
    let runner = std::env::var("RKNPU_SIM_TEST_RUNNER").unwrap_or_default();
    runner.split_whitespace().map(str::to_owned).collect()
}

/// Compiles `programs/NAME.c`, without a warning.
fn compile(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name).with_extension("c");
    // Tests run side by side, some of them over the same program.
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", unique()));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let mut command = Command::new(&compiler);
    command
        .args(["-std=gnu11", "-pthread", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg(&source);
    let output = command.env_remove("LD_LIBRARY_PATH").output();
    let output =
        output.unwrap_or_else(|error| panic!("a C compiler is needed, `{compiler}` cannot be run: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Starts a program under the library, for at most [`LIMIT`].
fn start(program: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Child {
    let mut command = Command::new("timeout");
    // `env` sets the variables for the program alone: an emulated program's library is not one for these helpers.
    command.args([LIMIT, "env"]).env_remove("LD_LIBRARY_PATH");
    command.arg(format!("LD_PRELOAD={}", library().display()));
    command.args(settings.iter().map(|(name, value)| format!("{name}={value}")));
    command.args(runner()).arg(program).args(arguments);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("coreutils are there")
}

fn run(program: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    start(program, arguments, settings).wait_with_output().expect("a child is waited for once")
}

fn assert_well(output: &Output, what: &str) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out == "well\n", "{what}: {}\n{out}{err}", output.status);
}

const VENDOR: (&str, &str) = ("RKNPU_SIM", "vendor");
const ROCKET: (&str, &str) = ("RKNPU_SIM", "rocket");

#[test]
fn a_c_program_uses_rockchips_driver() {
    let program = compile("vendor");
    for mode in ["product", "errors", "files", "vforks", "threads"] {
        assert_well(&run(&program, &[mode], &[]), mode);
        assert_well(&run(&program, &[mode], &[VENDOR, ("RKNPU_SIM_THREADS", "3")]), mode);
    }
    let faults = ("RKNPU_SIM_FAULTS", "nomem@2,timeout@1,gone@3");
    assert_well(&run(&program, &["faults"], &[faults]), "faults");
}

#[test]
fn a_c_program_uses_mainlines_driver() {
    let program = compile("rocket");
    for mode in ["product", "errors", "files", "threads"] {
        assert_well(&run(&program, &[mode], &[ROCKET]), mode);
    }
}

#[test]
fn every_process_has_a_device_of_its_own() {
    let (vendor, rocket) = (compile("vendor"), compile("rocket"));
    let children: Vec<_> = (0..3)
        .flat_map(|_| [start(&vendor, &["product"], &[VENDOR]), start(&rocket, &["product"], &[ROCKET])])
        .collect();
    for child in children {
        assert_well(&child.wait_with_output().unwrap(), "one of six processes");
    }
}

#[test]
fn without_a_node_there_is_none() {
    let program = compile("vendor");
    for settings in [[("RKNPU_SIM", "neither")], [("RKNPU_SIM_NODE", "/dev/npu-of-another-name")]] {
        if Path::new("/dev/dri/renderD128").exists() {
            return; // the program would find a real device's node
        }
        let output = run(&program, &["product"], &settings);
        assert_eq!(output.status.code(), Some(1), "{settings:?}");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(err.contains("not so: fd >= 0"), "{err}");
        assert_eq!(
            err.contains("RKNPU_SIM=neither is neither vendor nor rocket"),
            settings[0].0 == "RKNPU_SIM"
        );
    }
}

#[test]
fn this_projects_own_calls_go_the_same_way() {
    let program = Path::new(env!("CARGO_BIN_EXE_rknpu-device-matmul"));
    for (interface, setting, driver) in [
        ("vendor", VENDOR, "rknpu 0.9.8"),
        ("rocket", ROCKET, "rocket 0.0.0"),
        ("auto", ROCKET, "rocket 0.0.0"),
    ] {
        let output = run(program, &[interface], &[setting]);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{interface}: {out}{err}");
        assert!(out.starts_with(driver), "{out}");
        assert_eq!(out.matches(" right, ").count(), 3, "{out}");
    }
}

#[test]
fn this_projects_own_calls_see_the_faults() {
    let program = Path::new(env!("CARGO_BIN_EXE_rknpu-device-matmul"));
    // Mainline's kernel lets waiters go when an interrupt is lost or wrong, and by then every result is in memory.
    let vendor = ["timeout@1", "status@1", "interrupt@1", "gone@1", "dead@1", "nomem@4"];
    let rocket = ["timeout@1", "gone@1", "dead@1", "nomem@4"];
    for (setting, faults) in [(VENDOR, &vendor[..]), (ROCKET, &rocket)] {
        for fault in faults {
            let output = run(program, &[setting.1], &[setting, ("RKNPU_SIM_FAULTS", fault)]);
            let err = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{setting:?}, {fault}: {err}");
            assert!(err.starts_with("device_matmul: "), "{err}");
        }
    }
}
