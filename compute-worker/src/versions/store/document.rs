//! Documents that are replaced as a whole: a line with the SHA-256 of the rest, then JSON.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use rookery_model::bundle::Digest;
use serde::{Serialize, de::DeserializeOwned};
use tracing::{error, warn};

use super::{Store, StoreError, io_error, remove, sync_folder};

/// Largest document that is read; manifests of all models that can be assigned fit.
const MOST_BYTES: u64 = 256 << 20;

/// Reads the newest copy that is whole.
pub(super) fn load<T: DeserializeOwned>(root: &Path, name: &str) -> Option<T> {
    let newest = root.join(format!("{name}.json"));
    match read(&newest) {
        Ok(document) => document,
        Err(fault) => {
            error!(file = %newest.display(), fault, "a document is damaged; the one before is used");
            read(&root.join(format!("{name}.old.json"))).unwrap_or_else(|fault| {
                error!(name, fault, "the one before is damaged, too: as if there had never been one");
                None
            })
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    let Ok(metadata) = path.metadata() else { return Ok(None) };
    if metadata.len() > MOST_BYTES {
        return Err(format!("it has {} bytes", metadata.len()));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let newline = bytes.iter().position(|&byte| byte == b'\n').ok_or("it has no first line")?;
    let (head, body) = (&bytes[..newline], &bytes[newline + 1..]);
    if head != Digest::of(body).as_str().as_bytes() {
        return Err("its contents do not have the digest that it begins with".to_owned());
    }
    serde_json::from_slice(body).map(Some).map_err(|error| error.to_string())
}

/// Replaces a document.
pub(super) fn keep<T: Serialize>(store: &Store, name: &'static str, document: &T) -> Result<(), StoreError> {
    let path = |suffix: &str| store.root.join(format!("{name}{suffix}"));
    let (current, old) = (path(".json"), path(".old.json"));
    let (new, old_new) = (path(".new"), path(".old.new"));
    let json = serde_json::to_vec(document).map_err(|error| io_error("write", &current)(error.into()))?;
    let mut bytes = Digest::of(&json).as_str().as_bytes().to_vec();
    bytes.push(b'\n');
    bytes.extend_from_slice(&json);
    (store.on_step)("write document");
    let mut file = File::create(&new).map_err(io_error("create", &new))?;
    let (half, rest) = bytes.split_at(bytes.len() / 2);
    file.write_all(half).map_err(io_error("write", &new))?;
    (store.on_step)("write rest of document");
    file.write_all(rest).map_err(io_error("write", &new))?;
    (store.on_step)("sync document");
    file.sync_all().map_err(io_error("sync", &new))?;
    if is_whole(&current) {
        (store.on_step)("link old document");
        remove(&old_new)?;
        fs::hard_link(&current, &old_new).map_err(io_error("link", &old_new))?;
        (store.on_step)("rename old document");
        fs::rename(&old_new, &old).map_err(io_error("rename", &old))?;
    }
    (store.on_step)("rename document");
    fs::rename(&new, &current).map_err(io_error("rename", &current))?;
    (store.on_step)("sync folder of document");
    sync_folder(&store.root)?;
    (store.on_step)("document kept");
    Ok(())
}

/// Whether the newest copy may take the place of the one before. Documents are small.
fn is_whole(path: &Path) -> bool {
    match read::<serde::de::IgnoredAny>(path) {
        Ok(found) => found.is_some(),
        Err(fault) => {
            warn!(file = %path.display(), fault, "a damaged document is replaced");
            false
        }
    }
}
