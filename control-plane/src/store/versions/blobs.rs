//! Which blobs a manifest names.

use std::collections::BTreeSet;

use serde::Deserialize;
use sqlx::AssertSqlSafe;

use crate::domain::Digest;

use super::{StoreError, Tx, invalid};
use crate::store::row::{MOST_ROWS, tuples};

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
}

/// The blobs of a version, its manifest among them.
pub(super) fn of(digest: &Digest, manifest: &str) -> Result<BTreeSet<Digest>, StoreError> {
    let manifest: Manifest =
        serde_json::from_str(manifest).map_err(|error| invalid(format!("the manifest is none: {error}")))?;
    let named = manifest.layers.into_iter().chain([manifest.config]).map(|descriptor| descriptor.digest);
    Ok(named.chain([digest.clone()]).collect())
}

pub(super) async fn insert(tx: &mut Tx, digest: &Digest, blobs: &BTreeSet<Digest>) -> Result<(), StoreError> {
    let blobs: Vec<_> = blobs.iter().collect();
    for chunk in blobs.chunks(MOST_ROWS) {
        let sql = format!(
            "INSERT INTO version_blobs (digest, blob) VALUES {} ON CONFLICT (digest, blob) DO NOTHING",
            tuples(chunk.len(), 2)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for blob in chunk {
            query = query.bind(digest.as_str()).bind(blob.as_str());
        }
        query.execute(&mut **tx).await?;
    }
    Ok(())
}
