//! Removing what nobody needs.

use std::{
    collections::BTreeSet,
    fs,
    sync::{MutexGuard, PoisonError},
};

use rookery_model::bundle::{Digest, check_manifest};
use tracing::{info, warn};

use super::{Store, StoreError, io_error, names, remove};
use crate::versions::machine::Kept;

impl Store {
    /// Removes every version that is not in `kept`, the blobs that only they had, and what was fetched of them.
    ///
    /// # Errors
    /// What the system says; then some of it may be left, and the next time tries again.
    pub fn prune(&self, kept: &Kept) -> Result<(), StoreError> {
        let mut held = self.kept();
        held.clone_from(kept);
        let all: Vec<&Digest> = kept.needed.iter().chain(&kept.previous).collect();
        self.keep_only(&all)
    }

    /// Gives up versions that served before, one after the other, until `bytes` are free. True if they are.
    ///
    /// # Errors
    /// As [`Store::prune`].
    pub fn make_room(&self, bytes: u64) -> Result<bool, StoreError> {
        let mut held = self.kept();
        while self.free_bytes()? < bytes {
            let Some(given_up) = held.previous.pop() else { return Ok(false) };
            info!(version = %given_up, "a version that served before makes room on disk");
            let all: Vec<&Digest> = held.needed.iter().chain(&held.previous).collect();
            self.keep_only(&all)?;
        }
        Ok(true)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_only(&self, versions: &[&Digest]) -> Result<(), StoreError> {
        let Some(blobs) = self.blobs_of(versions) else { return Ok(()) };
        for layout in self.layouts()? {
            if !versions.iter().any(|version| version.hex() == layout) {
                (self.on_step)("remove layout");
                let path = self.root.join("layouts").join(&layout);
                fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
            }
        }
        for folder in ["blobs/sha256", "partial"] {
            let folder = self.root.join(folder);
            for name in names(&folder)? {
                if !blobs.contains(&name) {
                    (self.on_step)("remove blob");
                    remove(&folder.join(name))?;
                }
            }
        }
        Ok(())
    }

    /// Hex digits of every blob of the versions; `None` if one's manifest is damaged, as then nobody knows.
    fn blobs_of(&self, versions: &[&Digest]) -> Option<BTreeSet<String>> {
        let mut blobs = BTreeSet::new();
        for version in versions {
            let named = match self.read(version) {
                Ok(manifest) => check_manifest(&manifest),
                // Not fetched yet, or given up: there is nothing of it alone.
                Err(StoreError::Missing(_)) => continue,
                Err(error) => {
                    warn!(%version, %error, "nothing is removed while a manifest cannot be read");
                    return None;
                }
            };
            blobs.insert(version.hex().to_owned());
            // A manifest that names nothing usable keeps nothing.
            blobs.extend(named.into_iter().flatten().map(|blob| blob.digest.hex().to_owned()));
        }
        Some(blobs)
    }
}
