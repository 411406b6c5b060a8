//! Hugging Face: names of files in repositories, and what the hub tells about them.

use std::path::{Path, PathBuf};

use rookery_model::bundle::Progress;
use serde::Deserialize;
use ureq::http::{HeaderMap, Method, Response, Uri};

use super::digest::is_sha256;
use super::download::{Remote, download};
use super::http::{Client, FetchError, Retry, parse_url};
use crate::cache::{CacheError, Lock};
use crate::output;

/// Where the hub is unless `HF_ENDPOINT` says otherwise.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Why something could not be pulled from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The reference is not of the form that is understood.
    #[error("{reference} is not of the form hf://owner/repo[/file][@revision]")]
    Reference {
        /// What was given.
        reference: String,
    },
    /// The request or transfer failed.
    #[error("could not fetch from the hub")]
    Fetch(#[from] FetchError),
    /// The hub's answer could not be read.
    #[error("the hub's list of files could not be read: {reason}")]
    Listing {
        /// Why not.
        reason: String,
    },
    /// The repository holds nothing that can be packed.
    #[error("{repo} holds no safetensors with a config.json{}", gguf_files(.gguf))]
    NoModel {
        /// Which repository.
        repo: String,
        /// GGUF files that it does hold.
        gguf: Vec<String>,
    },
    /// The cache cannot be used.
    #[error("the cache cannot be used")]
    Cache(#[from] CacheError),
}

fn gguf_files(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; it holds {}", names.join(", ")) }
}

/// `hf://owner/repo/path/to/file@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `owner/repo`.
    pub repo: String,
    /// Path of a file in it; none means the whole model.
    pub file: Option<String>,
    /// Branch, tag or commit; `main` if none is given.
    pub revision: String,
}

impl Reference {
    /// Parses a reference.
    ///
    /// # Errors
    /// [`HubError::Reference`].
    pub fn parse(text: &str) -> Result<Reference, HubError> {
        let refuse = || HubError::Reference { reference: text.to_owned() };
        let rest = text.strip_prefix("hf://").ok_or_else(refuse)?;
        let (rest, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let mut parts = rest.splitn(3, '/');
        let (owner, repo) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let file = parts.next().filter(|file| !file.is_empty());
        let clean = |part: &str| {
            !part.is_empty()
                && part != ".."
                && part != "."
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+ ".contains(&byte))
        };
        let sound = clean(owner)
            && clean(repo)
            && revision.split('/').all(clean)
            && file.is_none_or(|file| file.split('/').all(clean));
        if !sound {
            return Err(refuse());
        }
        Ok(Reference {
            repo: format!("{owner}/{repo}"),
            file: file.map(str::to_owned),
            revision: revision.to_owned(),
        })
    }
}

/// The hub, with the token of this person if there is one.
pub struct Hub {
    client: Client,
    endpoint: String,
}

/// An entry of the hub's file list.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    lfs: Option<LargeFile>,
}

#[derive(Debug, Deserialize)]
struct LargeFile {
    oid: String,
}

#[derive(Debug, Deserialize)]
struct Revision {
    sha: String,
}

impl Hub {
    /// The hub at `endpoint`; the token goes there and nowhere else, redirects included.
    ///
    /// # Errors
    /// If the endpoint is not a URL.
    pub fn new(endpoint: &str, token: Option<String>, retry: Retry) -> Result<Hub, HubError> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let base = parse_url(&endpoint)?;
        let client = Client::new(retry);
        let client = match token.filter(|token| !token.is_empty()) {
            Some(token) => client.with_token(base, token),
            None => client,
        };
        Ok(Hub { client, endpoint })
    }

    /// The hub as the environment describes it: `HF_ENDPOINT`, `HF_TOKEN`.
    ///
    /// # Errors
    /// If `HF_ENDPOINT` is not a URL.
    pub fn from_environment() -> Result<Hub, HubError> {
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        Hub::new(&endpoint, variable("HF_TOKEN"), Retry::default())
    }

    /// Fetches one file. `place` says where it goes, given the commit that the revision stands for.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn pull_file(
        &self,
        reference: &Reference,
        file: &str,
        place: impl FnOnce(&str) -> PathBuf,
        progress: &dyn Progress,
    ) -> Result<PathBuf, HubError> {
        let url = self.resolve_url(&reference.repo, &reference.revision, file)?;
        let answer = self.client.send_patiently(&Method::HEAD, &url, &HeaderMap::new(), true)?;
        let told = Told::from(&answer);
        let commit = told.commit.clone().unwrap_or_else(|| reference.revision.clone());
        // From here on by commit, so that a push in between cannot mix two versions.
        let url = self.resolve_url(&reference.repo, &commit, file)?;
        let destination = place(&commit);
        let remote =
            Remote { url, label: name_of(file), version: told.etag, sha256: told.sha256, size: told.size };
        self.fetch(&remote, &destination, progress)?;
        Ok(destination)
    }

    /// Fetches what a model folder needs: config, tokenizer and safetensors, all of one commit.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn pull_model(
        &self,
        reference: &Reference,
        place: impl FnOnce(&str) -> PathBuf,
        progress: &dyn Progress,
    ) -> Result<PathBuf, HubError> {
        let api = format!("{}/api/models/{}", self.endpoint, reference.repo);
        let revision: Revision = self.json(&format!("{api}/revision/{}", encode(&reference.revision)))?;
        let entries: Vec<Entry> = self.json(&format!("{api}/tree/{}", encode(&revision.sha)))?;
        let files: Vec<&Entry> =
            entries.iter().filter(|entry| entry.kind == "file" && is_model_file(&entry.path)).collect();
        let has = |suffix: &str| files.iter().any(|entry| entry.path.ends_with(suffix));
        if !has(".safetensors") || !has("config.json") {
            let gguf = entries.iter().map(|entry| entry.path.clone()).filter(|path| path.ends_with(".gguf"));
            return Err(HubError::NoModel { repo: reference.repo.clone(), gguf: gguf.collect() });
        }
        let folder = place(&revision.sha);
        for entry in files {
            let sha256 = entry.lfs.as_ref().map(|lfs| lfs.oid.clone()).filter(|oid| is_sha256(oid));
            let url = self.resolve_url(&reference.repo, &revision.sha, &entry.path)?;
            let label = name_of(&entry.path);
            let remote =
                Remote { url, label, version: Some(revision.sha.clone()), sha256, size: Some(entry.size) };
            self.fetch(&remote, &folder.join(&entry.path), progress)?;
        }
        Ok(folder)
    }

    fn fetch(&self, remote: &Remote, destination: &Path, progress: &dyn Progress) -> Result<(), HubError> {
        fetch_once(&self.client, remote, destination, progress)
    }

    fn resolve_url(&self, repo: &str, revision: &str, file: &str) -> Result<Uri, FetchError> {
        let file: Vec<String> = file.split('/').map(encode).collect();
        parse_url(&format!("{}/{repo}/resolve/{}/{}", self.endpoint, encode(revision), file.join("/")))
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, url: &str) -> Result<T, HubError> {
        let url = parse_url(url)?;
        let mut answer = self.client.send_patiently(&Method::GET, &url, &HeaderMap::new(), false)?;
        let unreadable = |reason: String| HubError::Listing { reason };
        let text = answer.body_mut().with_config().limit(16 << 20).read_to_string();
        serde_json::from_str(&text.map_err(|error| unreadable(error.to_string()))?)
            .map_err(|error| unreadable(error.to_string()))
    }
}

/// Fetches a file unless it is there already; runs that want the same file at the same time share the work.
///
/// # Errors
/// [`HubError`].
pub fn fetch_once(
    client: &Client,
    remote: &Remote,
    destination: &Path,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    let waiting = || output::note(format_args!("another run is fetching {}, waiting for it", remote.label));
    let _lock = Lock::acquire(destination, waiting)?;
    // Under its final name a file is whole. A server may have another one by now under the same URL,
    // which the caller shows by another destination (the commit is part of the path).
    if !destination.is_file() {
        download(client, remote, destination, progress)?;
    }
    Ok(())
}

/// What the hub's headers tell about a file.
#[derive(Debug, Default, PartialEq)]
struct Told {
    commit: Option<String>,
    etag: Option<String>,
    sha256: Option<String>,
    size: Option<u64>,
}

impl<T> From<&Response<T>> for Told {
    fn from(answer: &Response<T>) -> Told {
        let text = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        // Large files lie elsewhere: then the hub itself answers with a redirect, whose own ETag and
        // Content-Length are of no use, and tells those of the file in headers of their own.
        let redirected = answer.status().is_redirection();
        let own = |name: &str| if redirected { None } else { text(name) };
        let tag = |etag: &str| etag.trim_start_matches("W/").trim_matches('"').to_owned();
        let etag = text("x-linked-etag").or_else(|| own("etag")).map(tag);
        let commit = text("x-repo-commit").filter(|commit| commit.bytes().all(|b| b.is_ascii_hexdigit()));
        Told {
            commit: commit.map(str::to_owned),
            sha256: etag.clone().filter(|etag| is_sha256(etag)),
            etag,
            size: text("x-linked-size").or_else(|| own("content-length")).and_then(|size| size.parse().ok()),
        }
    }
}

fn is_model_file(path: &str) -> bool {
    const NAMES: [&str; 7] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ];
    NAMES.contains(&path) || (path.ends_with(".safetensors") && !path.contains('/'))
}

/// The last part of a path.
pub fn name_of(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

/// Percent-encodes one path segment.
fn encode(segment: impl AsRef<str>) -> String {
    let mut text = String::new();
    for byte in segment.as_ref().bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_parse() {
        let parsed = Reference::parse("hf://Qwen/Qwen3-0.6B-GGUF/sub/a.gguf@v1").unwrap();
        assert_eq!(parsed.repo, "Qwen/Qwen3-0.6B-GGUF");
        assert_eq!(parsed.file.as_deref(), Some("sub/a.gguf"));
        assert_eq!(parsed.revision, "v1");
        assert_eq!(Reference::parse("hf://a/b").unwrap().file, None);
        for bad in ["hf://a", "hf://a/../b", "hf://a/b/../../c", "hf://a/b/c@", "http://a/b", "hf://a/b?c"] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers_of_large_and_small_files_are_told_apart() {
        let sha = "a".repeat(64);
        let large = Response::builder()
            .status(302)
            .header("etag", "\"redirect\"")
            .header("content-length", "17")
            .header("x-linked-etag", format!("\"{sha}\""))
            .header("x-linked-size", "1000")
            .header("x-repo-commit", "0123abcd")
            .body(())
            .unwrap();
        let told = Told::from(&large);
        assert_eq!((told.sha256.as_deref(), told.size), (Some(sha.as_str()), Some(1000)));
        assert_eq!(told.commit.as_deref(), Some("0123abcd"));
        let small =
            Response::builder().header("etag", "W/\"abc\"").header("content-length", "5").body(()).unwrap();
        let told = Told::from(&small);
        assert_eq!((told.etag.as_deref(), told.sha256, told.size), (Some("abc"), None, Some(5)));
    }
}
