//! Builds the complete message that tells a gateway what to serve.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rookery_proto::v1;
use tokio::sync::Mutex;

use super::DownloadLimits;
use crate::{
    domain::{
        Digest, GatewayId, ModelName,
        rollout::{GateLimits, RolloutId},
    },
    store::{AssignmentRecord, Store, StoreError},
};

/// How old signatures, keys and gates may be: a wave asks for the same ones many times.
const OLDEST: Duration = Duration::from_secs(2);

/// Versions and roll-outs that are kept; a wave needs one of each.
const MOST: usize = 64;

/// What the messages of many gateways have in common.
#[derive(Default)]
pub(super) struct Parts {
    last: Mutex<Option<Cache>>,
}

struct Cache {
    read: Instant,
    /// Public keys, one of which must have signed; none: no signature is asked for.
    keys: Vec<Vec<u8>>,
    versions: BTreeMap<(ModelName, Digest), Arc<VersionParts>>,
    gates: BTreeMap<RolloutId, GateLimits>,
}

struct VersionParts {
    version: String,
    manifest: Vec<u8>,
    signatures: Vec<v1::Signature>,
}

impl Parts {
    /// Everything that a gateway is to serve.
    pub(super) async fn assignment(
        &self,
        store: &Store,
        limits: &DownloadLimits,
        id: &GatewayId,
        acknowledged_sequence: u64,
    ) -> Result<v1::Assignment, StoreError> {
        let (generation, records) = store.assignments_of(id).await?;
        let mut versions = Vec::with_capacity(records.len());
        for record in records {
            let (parts, keys, gates) = self.of(store, &record).await?;
            versions.push(version(record, &parts, keys, &gates, limits));
        }
        Ok(v1::Assignment { generation, versions, acknowledged_sequence })
    }

    async fn of(
        &self,
        store: &Store,
        record: &AssignmentRecord,
    ) -> Result<(Arc<VersionParts>, Vec<Vec<u8>>, GateLimits), StoreError> {
        let mut last = self.last.lock().await;
        let cache = match last.take().filter(|cache| cache.read.elapsed() < OLDEST) {
            Some(cache) => last.insert(cache),
            None => {
                let keys = store.keys().await?.into_iter().map(|key| key.public_key).collect();
                let (versions, gates) = (BTreeMap::new(), BTreeMap::new());
                last.insert(Cache { read: Instant::now(), keys, versions, gates })
            }
        };
        let key = (record.model.clone(), record.digest.clone());
        let parts = match cache.versions.get(&key) {
            Some(parts) => Arc::clone(parts),
            None => {
                let parts = Arc::new(read(store, &record.model, &record.digest).await?);
                if cache.versions.len() < MOST {
                    cache.versions.insert(key, Arc::clone(&parts));
                }
                parts
            }
        };
        // A gateway that was away is held to what its roll-out asked even when that is over.
        let rollout = &record.assigned_by;
        let gates = match cache.gates.get(rollout) {
            Some(gates) => gates.clone(),
            None => {
                let gates = store.spec(rollout).await?.gates;
                if cache.gates.len() < MOST {
                    cache.gates.insert(rollout.clone(), gates.clone());
                }
                gates
            }
        };
        Ok((parts, cache.keys.clone(), gates))
    }
}

async fn read(store: &Store, model: &ModelName, digest: &Digest) -> Result<VersionParts, StoreError> {
    let version = store.version_by_digest(Some(model), digest).await?;
    let version =
        version.ok_or_else(|| StoreError::NotFound { what: format!("version {digest} of {model}") })?;
    let signature = |signature: crate::store::SignatureRecord| v1::Signature {
        key_id: signature.key_id,
        signature: signature.signature,
    };
    Ok(VersionParts {
        version: version.version.into(),
        manifest: store.manifest(digest).await?.into_bytes(),
        signatures: version.signatures.into_iter().map(signature).collect(),
    })
}

fn version(
    record: AssignmentRecord,
    parts: &VersionParts,
    trusted_keys: Vec<Vec<u8>>,
    gates: &GateLimits,
    limits: &DownloadLimits,
) -> v1::VersionAssignment {
    // What goes back was here before and is urgent.
    let start_spread = if record.rolls_back { Duration::ZERO } else { limits.start_spread };
    v1::VersionAssignment {
        model: record.model.into(),
        version: parts.version.clone(),
        digest: record.digest.into(),
        manifest: parts.manifest.clone(),
        signatures: parts.signatures.clone(),
        trusted_keys,
        min_speed_percent: gates.min_speed_percent,
        max_celsius: gates.max_celsius,
        start_spread_ms: u64::try_from(start_spread.as_millis()).unwrap_or(u64::MAX),
        bandwidth_limit: limits.bandwidth_bytes,
        rolls_back: record.rolls_back,
        traceparent: record.traceparent,
    }
}
