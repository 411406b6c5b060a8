//! Pushes: begin, upload, finish.

use std::time::Duration;

use rookery_proto::{
    server::Gate,
    signing::{PublicKey, SignatureError},
    v1,
};
use tonic::{Status, Streaming};
use tracing::info;

use super::{
    STALL, Shared, convert,
    convert::{BeginPush, FinishPush, UploadHead},
    errors::{self, Failure},
};
use crate::{
    artifacts::{ArtifactError, Manifest, Upload},
    domain::{Digest, Millis, ModelName, VersionName},
    store::{NewVersion, SignatureRecord, StoreError, Version, VersionSummary},
};

/// Largest config that readers of bundles take.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// How often to look whether garbage is still being collected, and how many times.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const LOOKS: u32 = 100;

impl Shared {
    pub(super) async fn begin_push(&self, push: BeginPush) -> Result<v1::BeginPushResponse, Failure> {
        let BeginPush { model, version, manifest } = push;
        self.existing(&model, &version, manifest.digest()).await?;
        let aliases = self.store.aliases().await?;
        if aliases.iter().any(|one| one.model == model && one.alias.as_str() == version.as_str()) {
            let what = format!("alias {version} of {model}");
            return Err(StoreError::Exists { what }.into());
        }
        // Before looking what is here: what is found from then on is not collected.
        self.artifacts.begin_push(&manifest).await?;
        let absent = self.artifacts.missing(manifest.blobs()).await?;
        let mut missing = Vec::with_capacity(absent.len());
        for (digest, size) in absent {
            let offset = self.artifacts.staged_bytes(&digest, size)?;
            missing.push(v1::MissingBlob { digest: digest.to_string(), size, offset });
        }
        let total_bytes = manifest.blobs().map(|(_, size)| size).sum();
        let to_come: u64 = missing.iter().map(|blob| blob.size - blob.offset).sum();
        info!(%model, %version, digest = %manifest.digest(), missing = missing.len(), to_come, "a push began");
        Ok(v1::BeginPushResponse {
            digest: manifest.digest().to_string(),
            missing,
            total_bytes,
            present_bytes: total_bytes - to_come,
        })
    }

    pub(super) async fn upload_blob(
        &self,
        mut stream: Streaming<v1::UploadBlobRequest>,
    ) -> Result<v1::UploadBlobResponse, Failure> {
        let Some(first) = next(&mut stream, &self.gate).await? else {
            return Err(rookery_proto::status::invalid_field("digest", "must be in the first message").into());
        };
        let head = UploadHead::try_from(first)?;
        self.artifacts.check_awaited(&head.digest, head.size).await?;
        if self.artifacts.size(&head.digest).await? == Some(head.size) {
            return Ok(v1::UploadBlobResponse { offset: head.size, complete: true });
        }
        let mut upload = self.artifacts.begin_upload(&head.digest, head.size, head.offset)?;
        if let Err(failure) = append(&mut upload, head.data, &mut stream, &self.gate).await {
            // Asked next, the offset is that of what came: a disk that fails now has failed before.
            let _ = upload.pause().await;
            return Err(failure);
        }
        let offset = upload.offset();
        let complete = upload.finish().await?;
        Ok(v1::UploadBlobResponse { offset, complete })
    }

    pub(super) async fn finish_push(&self, push: FinishPush, actor: &str) -> Result<Version, Failure> {
        let FinishPush { model, version, digest, signatures } = push;
        self.check_signatures(&digest, &signatures).await?;
        let existing = self.existing(&model, &version, &digest).await?;
        let manifest = self.pushed_manifest(&digest, existing.is_some()).await?;
        self.check_present(&manifest).await?;
        if existing.is_none() {
            let new = self.new_version(&model, &version, &manifest, actor).await?;
            self.artifacts.put_manifest(&manifest).await?;
            self.store.insert_version(&new).await?;
        }
        // A collection that began before the version was there may have taken a blob of it.
        self.wait_for_collection().await?;
        if let Err(error) = self.check_whole(&manifest).await {
            if existing.is_none() {
                self.store.delete_version(&model, &version, actor).await?;
            }
            return Err(error);
        }
        self.sign(&digest, signatures, actor).await?;
        self.artifacts.end_push(&digest).await?;
        self.write_index().await;
        info!(%model, %version, %digest, by = actor, "a version was pushed");
        Ok(self.store.version(&model, &version).await?)
    }

    /// The version, if it is there with this digest.
    async fn existing(
        &self,
        model: &ModelName,
        version: &VersionName,
        digest: &Digest,
    ) -> Result<Option<Version>, Failure> {
        match self.store.version(model, version).await {
            Ok(found) if found.digest == *digest => Ok(Some(found)),
            Ok(found) => {
                let what = format!("version {version} of {model}, with the digest {},", found.digest);
                Err(StoreError::Exists { what }.into())
            }
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn pushed_manifest(&self, digest: &Digest, kept: bool) -> Result<Manifest, Failure> {
        match self.artifacts.push(digest).await {
            Err(ArtifactError::NotBegun(_)) if kept => {
                // The same call again, after one that was answered.
                Ok(Manifest::parse(self.store.manifest(digest).await?.into_bytes())?)
            }
            other => Ok(other?),
        }
    }

    /// The row of a version whose manifest and config agree.
    async fn new_version(
        &self,
        model: &ModelName,
        version: &VersionName,
        manifest: &Manifest,
        actor: &str,
    ) -> Result<NewVersion, Failure> {
        let config = self.artifacts.read_whole(manifest.config(), MAX_CONFIG_BYTES).await?;
        let pushed = manifest.check(&config)?;
        Ok(NewVersion {
            model: model.clone(),
            version: version.clone(),
            digest: manifest.digest().clone(),
            size_bytes: pushed.size_bytes,
            manifest: manifest.text().to_owned(),
            summary: VersionSummary {
                architecture: pushed.architecture,
                recipe: pushed.recipe,
                parameters: pushed.parameters,
            },
            created: Millis::now(),
            created_by: actor.to_owned(),
        })
    }

    async fn check_present(&self, manifest: &Manifest) -> Result<(), Failure> {
        let missing = self.artifacts.missing(manifest.blobs()).await?;
        match missing.first() {
            None => Ok(()),
            Some((first, _)) => {
                let (count, first) = (missing.len(), first.clone());
                Err(ArtifactError::Incomplete { count, first }.into())
            }
        }
    }

    /// The same, and the manifest itself.
    async fn check_whole(&self, manifest: &Manifest) -> Result<(), Failure> {
        if !self.artifacts.has(manifest.digest()).await? {
            return Err(ArtifactError::Incomplete { count: 1, first: manifest.digest().clone() }.into());
        }
        self.check_present(manifest).await
    }

    async fn wait_for_collection(&self) -> Result<(), Failure> {
        for _ in 0..LOOKS {
            if !self.artifacts.collecting().await? {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err(ArtifactError::Collecting.into())
    }

    /// Refuses signatures that claim to be by a trusted key and are not. Those of other keys cannot be checked here;
    /// gateways go by the keys that are trusted when they look.
    async fn check_signatures(&self, digest: &Digest, signatures: &[SignatureRecord]) -> Result<(), Failure> {
        if signatures.is_empty() {
            return Ok(());
        }
        for key in self.store.keys().await? {
            let Ok(public) = PublicKey::from_bytes(&key.public_key) else { continue };
            let of_key = signatures.iter().filter(|one| one.key_id == key.key_id);
            if of_key.into_iter().any(|one| !public.verifies(digest.as_str(), &one.signature)) {
                return Err(SignatureError::Wrong(public.id()).into());
            }
        }
        Ok(())
    }

    pub(super) async fn sign(
        &self,
        digest: &Digest,
        signatures: Vec<SignatureRecord>,
        actor: &str,
    ) -> Result<(), Failure> {
        self.check_signatures(digest, &signatures).await?;
        for one in signatures {
            self.store.add_signature(digest, &one.key_id, &one.signature, actor).await?;
            info!(%digest, key = one.key_id, by = actor, "a version was signed");
        }
        Ok(())
    }
}

/// Appends everything that a call sends.
async fn append(
    upload: &mut Upload,
    first: Vec<u8>,
    stream: &mut Streaming<v1::UploadBlobRequest>,
    gate: &Gate,
) -> Result<(), Failure> {
    upload.append(&first).await?;
    while let Some(message) = next(stream, gate).await? {
        upload.append(&convert::piece(message)?).await?;
    }
    Ok(())
}

/// The next message of an upload. Its bytes so far stay where they are, whatever this fails with.
async fn next(
    stream: &mut Streaming<v1::UploadBlobRequest>,
    gate: &Gate,
) -> Result<Option<v1::UploadBlobRequest>, Status> {
    tokio::select! {
        biased;
        // Cancel safe: a token's wait has no state.
        () = gate.draining() => Err(Gate::draining_status()),
        // Cancel safe: a message that is half read stays in the stream, and the call ends anyway.
        message = tokio::time::timeout(STALL, stream.message()) => match message {
            Ok(message) => message,
            Err(_) => Err(errors::stalled(STALL)),
        },
    }
}
