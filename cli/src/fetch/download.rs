//! One file from one URL, resumed where an earlier attempt stopped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rookery_model::bundle::Progress;
use serde::{Deserialize, Serialize};
use ureq::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};

use super::digest;
use super::http::{Client, FetchError, shown};
use crate::cache::with_suffix;

/// A file to fetch and what is known of it beforehand.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where it is.
    pub url: Uri,
    /// What to call it in progress bars.
    pub label: String,
    /// Its version as the hub names it (entity tag): a partial file of another version is thrown away.
    pub version: Option<String>,
    /// Its SHA-256 in hexadecimal.
    pub sha256: Option<String>,
    /// Its length in bytes.
    pub size: Option<u64>,
}

/// What is remembered beside a partial file.
#[derive(Default, Debug, PartialEq, Serialize, Deserialize)]
struct Resume {
    url: String,
    version: Option<String>,
    etag: Option<String>,
}

/// Fetches `remote` to `destination`, which then is complete and, where a checksum is known, right.
/// An earlier attempt's partial file is continued if the server says that it is of the same version.
///
/// # Errors
/// [`FetchError`]; the partial file stays for the next attempt unless its content is wrong.
pub fn download(
    client: &Client,
    remote: &Remote,
    destination: &Path,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    let mut partial = Partial::open(remote, destination)?;
    let mut failures = 0;
    let mut begun = false;
    loop {
        let before = partial.length;
        match attempt(client, remote, &mut partial, progress, &mut begun) {
            Ok(()) => break,
            Err(error) => {
                failures = if partial.length > before { 1 } else { failures + 1 };
                let Some(wait) = client.retry.wait(failures, &error) else { return Err(error) };
                std::thread::sleep(wait);
            }
        }
    }
    progress.finish();
    partial.complete(remote, destination, progress)
}

/// One request, continued from what is there.
fn attempt(
    client: &Client,
    remote: &Remote,
    partial: &mut Partial,
    progress: &dyn Progress,
    begun: &mut bool,
) -> Result<(), FetchError> {
    if remote.size.is_some_and(|size| partial.length == size && size > 0) {
        return Ok(());
    }
    let response = match client.send(&Method::GET, &remote.url, &partial.range_headers(), false) {
        Err(error) if error.status() == Some(StatusCode::RANGE_NOT_SATISFIABLE) && partial.length > 0 => {
            // What is there is no prefix of what the server has now.
            partial.restart()?;
            client.send(&Method::GET, &remote.url, &HeaderMap::new(), false)?
        }
        other => other?,
    };
    let total = partial.agree(remote, &response)?;
    if !*begun {
        progress.start(&remote.label, total.unwrap_or(0));
        progress.advance(partial.length);
        *begun = true;
    }
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(FetchError::Broken { url: shown(&remote.url), source }),
        };
        partial.append(&buffer[..read])?;
        progress.advance(read as u64);
    }
    match total {
        Some(total) if partial.length < total => Err(FetchError::Broken {
            url: shown(&remote.url),
            source: io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection early"),
        }),
        _ => Ok(()),
    }
}

/// A file on its way.
struct Partial {
    path: PathBuf,
    notes: PathBuf,
    file: File,
    length: u64,
    resume: Resume,
}

impl Partial {
    fn open(remote: &Remote, destination: &Path) -> Result<Partial, FetchError> {
        let path = with_suffix(destination, ".partial");
        let notes = with_suffix(destination, ".partial.json");
        let local = |source| FetchError::Local { path: path.clone(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(local)?;
        }
        let kept: Resume =
            fs::read(&notes).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let same = kept.url == shown(&remote.url) && kept.version == remote.version;
        let checkable = remote.sha256.is_some() || kept.etag.is_some();
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(local)?;
        let length = file.metadata().map_err(local)?.len();
        let resume = Resume {
            url: shown(&remote.url),
            version: remote.version.clone(),
            etag: kept.etag.filter(|_| same),
        };
        let mut partial = Partial { path, notes, file, length, resume };
        let too_long = remote.size.is_some_and(|size| length > size);
        if length > 0 && (!same || !checkable || too_long) {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn local(&self, source: io::Error) -> FetchError {
        FetchError::Local { path: self.path.clone(), source }
    }

    fn restart(&mut self) -> Result<(), FetchError> {
        self.file.set_len(0).map_err(|source| self.local(source))?;
        self.length = 0;
        self.resume.etag = None;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.file.write_all(bytes).map_err(|source| self.local(source))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn range_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.length > 0 {
            if let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", self.length)) {
                headers.insert(header::RANGE, range);
            }
            if let Some(etag) = self.resume.etag.as_deref().and_then(|etag| HeaderValue::from_str(etag).ok())
            {
                headers.insert(header::IF_RANGE, etag);
            }
        }
        headers
    }

    /// Makes the partial file fit what the server is about to send, and returns the whole length
    /// where the server tells it.
    fn agree(&mut self, remote: &Remote, response: &Response<ureq::Body>) -> Result<Option<u64>, FetchError> {
        let text = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let announced = if response.status() == StatusCode::PARTIAL_CONTENT {
            let (start, total) =
                text(header::CONTENT_RANGE).and_then(content_range).ok_or_else(|| FetchError::Nonsense {
                    url: shown(&remote.url),
                    reason: "a partial answer without a usable Content-Range".to_owned(),
                })?;
            if start != self.length {
                let reason = format!("asked for bytes from {}, got bytes from {start}", self.length);
                return Err(FetchError::Nonsense { url: shown(&remote.url), reason });
            }
            total
        } else {
            // The server ignores ranges or has another version by now: from the beginning.
            self.restart()?;
            text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok())
        };
        if let (Some(expected), Some(actual)) = (remote.size, announced)
            && expected != actual
        {
            let (expected, actual) = (expected.to_string(), actual.to_string());
            self.restart()?;
            return Err(FetchError::Mismatch { what: "size", url: shown(&remote.url), expected, actual });
        }
        // Weak tags may not be used with If-Range.
        self.resume.etag = text(header::ETAG).filter(|etag| !etag.starts_with("W/")).map(str::to_owned);
        let notes = serde_json::to_vec(&self.resume).map_err(|error| self.local(error.into()))?;
        fs::write(&self.notes, notes).map_err(|source| self.local(source))?;
        Ok(announced.or(remote.size))
    }

    /// Checks the whole file and moves it to its final name.
    fn complete(
        self,
        remote: &Remote,
        destination: &Path,
        progress: &dyn Progress,
    ) -> Result<(), FetchError> {
        let local = |source| FetchError::Local { path: self.path.clone(), source };
        self.file.sync_all().map_err(local)?;
        if let Some(expected) = &remote.sha256 {
            let actual = digest::of_file(&self.path, progress).map_err(local)?;
            if actual != *expected {
                fs::remove_file(&self.path).map_err(local)?;
                let expected = expected.clone();
                return Err(FetchError::Mismatch {
                    what: "sha256",
                    url: shown(&remote.url),
                    expected,
                    actual,
                });
            }
        }
        fs::rename(&self.path, destination).map_err(local)?;
        // Only a leftover; the next download of this name would see that it does not fit.
        let _ = fs::remove_file(&self.notes);
        Ok(())
    }
}

/// `bytes 5-9/10` → (5, Some(10)).
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.parse().ok()?;
    Some((start, if total == "*" { None } else { Some(total.parse().ok()?) }))
}
