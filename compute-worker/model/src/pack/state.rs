//! What a staging folder says of itself: whose it is, and which parts are done.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::blob_writer::{StagedBlob, write_atomically};
use super::error::{PackError, io_error};
use crate::bundle::{Digest, Part};

/// Name of the file.
pub(super) const STATE_FILE: &str = "state.json";
/// Raised with every change of what lies in a staging folder.
const VERSION: u32 = 1;
/// Largest state that is read; a part takes about 120 bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The parts of an interrupted bundle and what they depend on.
#[derive(Debug, PartialEq)]
pub(super) struct State {
    key: Digest,
    pub(super) parts: BTreeMap<Part, StagedBlob>,
}

/// As it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    /// Digest of the caller's key and the packer's version.
    key: Digest,
    /// By [`Part`]'s name.
    parts: BTreeMap<String, StagedBlob>,
}

impl State {
    /// No parts yet.
    pub(super) fn new(key: &str) -> Self {
        let key = Digest::of(format!("{} {key}", super::PACKER_VERSION).as_bytes());
        Self { key, parts: BTreeMap::new() }
    }

    /// The state in `folder` if it has this one's key; the reason why not otherwise. Says nothing of the blobs.
    pub(super) fn load(&self, folder: &Path) -> Result<Self, String> {
        let mut bytes = Vec::new();
        match File::open(folder.join(STATE_FILE)) {
            Ok(file) => {
                file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?
            }
            Err(error) => return Err(error.to_string()),
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(format!("{STATE_FILE} has more than {MAX_BYTES} bytes"));
        }
        let Stored { version, key, parts } =
            serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        if version != VERSION {
            return Err(format!("{STATE_FILE} is of version {version} instead of {VERSION}"));
        }
        if key != self.key {
            return Err("it is of another source, recipe or version".to_owned());
        }
        let part = |(name, blob): (String, StagedBlob)| match parse_part(&name) {
            Some(part) => Ok((part, blob)),
            None => Err(format!("{STATE_FILE} names the part {name:?}")),
        };
        Ok(Self { key, parts: parts.into_iter().map(part).collect::<Result<_, _>>()? })
    }

    /// Forgets parts whose blobs are not what the state says of them. Reads all of them: what a file system lost must not be
    /// found out when the bundle is opened, which would be after all other parts have been packed.
    pub(super) fn forget_damaged(&mut self, bundle: &Path) {
        self.parts.retain(|part, blob| {
            let path = bundle.join(blob.digest.path());
            // Not following links: a link is nothing that a packer made.
            let whole = fs::symlink_metadata(&path)
                .is_ok_and(|metadata| metadata.is_file() && metadata.len() == blob.size)
                && digest(&path).is_ok_and(|digest| digest == blob.digest);
            if !whole {
                tracing::warn!(%part, path = %path.display(), "a packed part is missing or damaged; packing it again");
            }
            whole
        });
    }

    /// Replaces the state in `folder` in one step.
    pub(super) fn save(&self, folder: &Path) -> Result<(), PackError> {
        let path = folder.join(STATE_FILE);
        let parts = self.parts.iter().map(|(part, blob)| (part.to_string(), blob.clone())).collect();
        let stored = Stored { version: VERSION, key: self.key.clone(), parts };
        let json = serde_json::to_vec(&stored).map_err(|error| io_error(&path)(io::Error::from(error)))?;
        write_atomically(&path, &json)
    }
}

/// Digest of a file's contents.
fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Digest::finish(hasher)),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The inverse of [`Part`]'s `Display`; no other spelling of it.
fn parse_part(name: &str) -> Option<Part> {
    let part = match name {
        "embedding" => Part::Embedding,
        "head" => Part::Head,
        _ => Part::Block(name.strip_prefix("block.")?.parse().ok()?),
    };
    (part.to_string() == name).then_some(part)
}
