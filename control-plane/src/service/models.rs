//! `ModelService`: pushes, versions, aliases, signatures and garbage.
//!
//! ```text
//! BeginPush ─► manifest checked, push noted, missing blobs with their offsets
//! UploadBlob ─► appended, hashed when whole, published       (any number, several at once, resumed at will)
//! FinishPush ─► every blob there? config agrees? ─► version in the database ─► no collection under way? still all there?
//! ```
//!
//! What a push has sent is not lost with the connection, the process or the machine; what it has finished is in the
//! database before the answer leaves.

mod convert;
pub(super) mod errors;
mod push;

use std::{collections::HashMap, sync::Arc, time::Duration};

use rookery_proto::{
    server::Gate,
    signing::PublicKey,
    v1::{self, model_service_server::ModelServiceServer},
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::{
    artifacts::{Artifacts, GRACE},
    domain::{AliasName, Digest, Millis, ModelName, VersionName},
    inventory::{Inventory, Phase},
    store::{Store, TrustedKey, Version},
    trust::{Role, require},
};
use convert::name;
use errors::Failure;

/// Largest request: a piece of 1 MiB, or a manifest of 1 MiB, and what is around it.
const MAX_REQUEST_BYTES: usize = (1 << 20) + (64 << 10);

/// Uploads at the same time.
const MAX_UPLOADS: usize = 64;

/// Longest wait for the next piece of an upload.
const STALL: Duration = Duration::from_secs(30);

/// The service. Clones share everything.
#[derive(Clone)]
pub struct Models {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    artifacts: Artifacts,
    inventory: Inventory,
    gate: Gate,
    uploads: Semaphore,
}

impl Models {
    /// The service over a database and its artifacts; the inventory says how many gateways serve a version.
    pub fn new(store: Store, artifacts: Artifacts, inventory: Inventory, gate: Gate) -> Self {
        let uploads = Semaphore::new(MAX_UPLOADS);
        Self { shared: Arc::new(Shared { store, artifacts, inventory, gate, uploads }) }
    }

    /// For a server of gRPC, with the limits that the service keeps to.
    pub fn server(self) -> ModelServiceServer<Self> {
        ModelServiceServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }
}

#[tonic::async_trait]
impl v1::model_service_server::ModelService for Models {
    async fn begin_push(
        &self,
        request: Request<v1::BeginPushRequest>,
    ) -> Result<Response<v1::BeginPushResponse>, Status> {
        require(&request, Role::Deployer)?;
        let _admission = self.shared.gate.admit()?;
        let push = convert::BeginPush::try_from(request.into_inner())?;
        Ok(Response::new(self.shared.begin_push(push).await?))
    }

    async fn upload_blob(
        &self,
        request: Request<Streaming<v1::UploadBlobRequest>>,
    ) -> Result<Response<v1::UploadBlobResponse>, Status> {
        require(&request, Role::Deployer)?;
        let _admission = self.shared.gate.admit()?;
        let _upload = self.shared.uploads.try_acquire().map_err(|_| errors::too_many_uploads(MAX_UPLOADS))?;
        Ok(Response::new(self.shared.upload_blob(request.into_inner()).await?))
    }

    async fn finish_push(
        &self,
        request: Request<v1::FinishPushRequest>,
    ) -> Result<Response<v1::ModelVersion>, Status> {
        let caller = require(&request, Role::Deployer)?;
        let _admission = self.shared.gate.admit()?;
        let push = convert::FinishPush::try_from(request.into_inner())?;
        let version = self.shared.finish_push(push, &caller.name).await?;
        Ok(Response::new(self.shared.describe(version).await?))
    }

    async fn list_versions(
        &self,
        request: Request<v1::ListVersionsRequest>,
    ) -> Result<Response<v1::ListVersionsResponse>, Status> {
        require(&request, Role::Inference)?;
        let model = request.into_inner().model;
        let model: Option<ModelName> = if model.is_empty() { None } else { Some(name("model", &model)?) };
        let versions = self.shared.store.versions(model.as_ref()).await.map_err(Failure::from)?;
        let serving = self.shared.serving().await?;
        let versions = versions.into_iter().map(|version| convert::version(version, &serving)).collect();
        Ok(Response::new(v1::ListVersionsResponse { versions }))
    }

    async fn set_alias(
        &self,
        request: Request<v1::SetAliasRequest>,
    ) -> Result<Response<v1::ModelAlias>, Status> {
        let caller = require(&request, Role::Deployer)?;
        let v1::SetAliasRequest { model, alias, version } = request.into_inner();
        let (model_name, alias_name): (ModelName, AliasName) =
            (name("model", &model)?, name("alias", &alias)?);
        let version_name: VersionName = name("version", &version)?;
        let store = &self.shared.store;
        let set = store.set_alias(&model_name, &alias_name, &version_name, &caller.name).await;
        set.map_err(Failure::from)?;
        info!(%model_name, %alias_name, %version_name, by = caller.name, "an alias was set");
        Ok(Response::new(v1::ModelAlias { model, alias, version }))
    }

    async fn delete_alias(
        &self,
        request: Request<v1::DeleteAliasRequest>,
    ) -> Result<Response<v1::DeleteAliasResponse>, Status> {
        let caller = require(&request, Role::Deployer)?;
        let request = request.into_inner();
        let (model, alias) = (name("model", &request.model)?, name("alias", &request.alias)?);
        self.shared.store.delete_alias(&model, &alias, &caller.name).await.map_err(Failure::from)?;
        info!(%model, %alias, by = caller.name, "an alias was deleted");
        Ok(Response::new(v1::DeleteAliasResponse {}))
    }

    async fn delete_version(
        &self,
        request: Request<v1::DeleteVersionRequest>,
    ) -> Result<Response<v1::DeleteVersionResponse>, Status> {
        let caller = require(&request, Role::Deployer)?;
        let request = request.into_inner();
        let (model, version) = (name("model", &request.model)?, name("version", &request.version)?);
        self.shared.store.delete_version(&model, &version, &caller.name).await.map_err(Failure::from)?;
        info!(%model, %version, by = caller.name, "a version was deleted");
        self.shared.write_index().await;
        Ok(Response::new(v1::DeleteVersionResponse {}))
    }

    async fn add_signature(
        &self,
        request: Request<v1::AddSignatureRequest>,
    ) -> Result<Response<v1::ModelVersion>, Status> {
        let caller = require(&request, Role::Deployer)?;
        let v1::AddSignatureRequest { model, version, signature } = request.into_inner();
        let signature = convert::signature("signature", signature.unwrap_or_default())?;
        let (model, version) = (name("model", &model)?, name("version", &version)?);
        let found = self.shared.store.version(&model, &version).await.map_err(Failure::from)?;
        self.shared.sign(&found.digest, vec![signature], &caller.name).await?;
        let signed = self.shared.store.version(&model, &version).await.map_err(Failure::from)?;
        Ok(Response::new(self.shared.describe(signed).await?))
    }

    async fn collect_garbage(
        &self,
        request: Request<v1::CollectGarbageRequest>,
    ) -> Result<Response<v1::CollectGarbageResponse>, Status> {
        let caller = require(&request, Role::Deployer)?;
        let _admission = self.shared.gate.admit()?;
        let dry_run = request.into_inner().dry_run;
        Ok(Response::new(self.shared.collect(dry_run, &caller.name).await?))
    }

    async fn trust_key(
        &self,
        request: Request<v1::TrustKeyRequest>,
    ) -> Result<Response<v1::TrustedKey>, Status> {
        let caller = require(&request, Role::Admin)?;
        let key = PublicKey::from_bytes(&request.into_inner().public_key)
            .map_err(|error| rookery_proto::status::invalid_field("public_key", &error.to_string()))?;
        let (key_id, public_key) = (key.id().to_string(), key.to_bytes().to_vec());
        let key = TrustedKey { key_id, public_key, added: Millis::now(), added_by: caller.name };
        self.shared.store.put_key(&key).await.map_err(Failure::from)?;
        info!(key = key.key_id, by = key.added_by, "a signing key is trusted");
        Ok(Response::new(convert::trusted_key(key)))
    }

    async fn distrust_key(
        &self,
        request: Request<v1::DistrustKeyRequest>,
    ) -> Result<Response<v1::DistrustKeyResponse>, Status> {
        let caller = require(&request, Role::Admin)?;
        let key = convert::key_id("key_id", &request.into_inner().key_id)?;
        self.shared.store.delete_key(key.as_str(), &caller.name).await.map_err(Failure::from)?;
        info!(%key, by = caller.name, "a signing key is trusted no longer");
        Ok(Response::new(v1::DistrustKeyResponse {}))
    }

    async fn list_trusted_keys(
        &self,
        request: Request<v1::ListTrustedKeysRequest>,
    ) -> Result<Response<v1::ListTrustedKeysResponse>, Status> {
        require(&request, Role::Inference)?;
        let keys = self.shared.store.keys().await.map_err(Failure::from)?;
        let keys = keys.into_iter().map(convert::trusted_key).collect();
        Ok(Response::new(v1::ListTrustedKeysResponse { keys }))
    }
}

impl Shared {
    /// How many gateways serve each version.
    async fn serving(&self) -> Result<HashMap<Digest, u32>, Failure> {
        let mut serving = HashMap::new();
        for view in self.inventory.views().await? {
            for version in view.versions.iter().filter(|version| version.phase == Phase::Serving) {
                *serving.entry(version.digest.clone()).or_default() += 1;
            }
        }
        Ok(serving)
    }

    async fn describe(&self, version: Version) -> Result<v1::ModelVersion, Failure> {
        Ok(convert::version(version, &self.serving().await?))
    }

    async fn collect(&self, dry_run: bool, actor: &str) -> Result<v1::CollectGarbageResponse, Failure> {
        let needed = async || self.store.referenced_blobs().await.map_err(Failure::from);
        let freed = self.artifacts.collect(needed, GRACE, dry_run).await?;
        if !dry_run {
            let detail = format!("{} blobs, {} bytes", freed.blobs, freed.bytes);
            info!(blobs = freed.blobs, bytes = freed.bytes, by = actor, "garbage was collected");
            self.store.audit(actor, "artifacts.collect", "artifacts", &detail).await?;
            self.write_index().await;
        }
        Ok(v1::CollectGarbageResponse { blobs: freed.blobs, bytes: freed.bytes })
    }

    /// Brings `index.json` up to date. Nothing here depends on it, so a failure is told and passed over.
    async fn write_index(&self) {
        let written = async {
            let versions = self.store.versions(None).await?;
            let named = versions.into_iter().map(|version| (version.model, version.version, version.digest));
            Ok::<_, Failure>(self.artifacts.write_index(named).await?)
        };
        if let Err(error) = written.await {
            warn!(error = &error as &dyn std::error::Error, "index.json of the artifacts is out of date");
        }
    }
}
