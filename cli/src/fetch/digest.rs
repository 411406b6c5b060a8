//! SHA-256 of files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rookery_model::bundle::Progress;
use sha2::{Digest, Sha256};

/// SHA-256 of what `input` yields, in lower-case hexadecimal; every byte is reported to `progress`.
///
/// # Errors
/// Whatever `input` fails with.
pub fn of_reader(mut input: impl Read, progress: &dyn Progress) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..read]);
        progress.advance(read as u64);
    }
    Ok(hex(&hasher.finalize()))
}

/// SHA-256 of a file, in lower-case hexadecimal.
///
/// # Errors
/// If the file cannot be opened or read.
pub fn of_file(path: &Path, progress: &dyn Progress) -> io::Result<String> {
    let file = File::open(path)?;
    progress.start("verifying", file.metadata()?.len());
    let digest = of_reader(file, progress)?;
    progress.finish();
    Ok(digest)
}

/// SHA-256 of a text, in lower-case hexadecimal.
pub fn of_text(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the text is a SHA-256 digest in lower-case hexadecimal.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}
