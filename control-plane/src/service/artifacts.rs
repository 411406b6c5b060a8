//! `ArtifactService`: blobs of versions, for gateways that download them.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt};
use rookery_proto::{
    server::{Gate, OnPanic, Tasks},
    status::{Reason, refuse, refuse_with},
    v1::{self, artifact_service_server::ArtifactServiceServer},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Request, Response, Status};

use super::models::errors::{self, Failure};
use crate::{artifacts::Artifacts, domain::Digest, store::Store, trust::require_gateway};

/// Pieces between the store and a gateway's connection: one is sent while the next is read.
const AHEAD: usize = 1;

/// A gateway that takes no piece for so long gives its place to another. At 256 KiB a piece this is 4 KiB/s, below which
/// no download ends.
const STALL: Duration = Duration::from_secs(60);

/// When a gateway that found no place should ask again: it spreads that by itself.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The service. Clones share everything.
#[derive(Clone)]
pub struct Blobs {
    store: Store,
    artifacts: Artifacts,
    places: Arc<Semaphore>,
    most: usize,
    tasks: Tasks,
    gate: Gate,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<v1::ReadBlobResponse, Status>> + Send>>;

impl Blobs {
    /// The service with at most `most` downloads at the same time.
    pub fn new(store: Store, artifacts: Artifacts, most: usize, tasks: Tasks, gate: Gate) -> Self {
        let places = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Self { store, artifacts, places, most, tasks, gate }
    }

    /// For a server of gRPC, with the limits that the service keeps to.
    pub fn server(self) -> ArtifactServiceServer<Self> {
        ArtifactServiceServer::new(self).max_decoding_message_size(4 << 10)
    }

    async fn open(&self, request: v1::ReadBlobRequest) -> Result<crate::artifacts::Pieces, Failure> {
        let digest: Digest =
            request.digest.parse().map_err(|error: crate::domain::version::InvalidName| {
                rookery_proto::status::invalid_field("digest", &error.to_string())
            })?;
        if !self.store.is_referenced(&digest).await? {
            let message = format!("no version has a blob {digest}");
            return Err(refuse(Reason::ObjectNotFound, message).into());
        }
        Ok(self.artifacts.read(&digest, request.offset, request.length).await?)
    }
}

#[tonic::async_trait]
impl v1::artifact_service_server::ArtifactService for Blobs {
    type ReadBlobStream = Pieces;

    async fn read_blob(&self, request: Request<v1::ReadBlobRequest>) -> Result<Response<Pieces>, Status> {
        require_gateway(&request)?;
        if self.gate.is_draining() {
            return Err(Gate::draining_status());
        }
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let message = format!("{} downloads run already, which is the limit", self.most);
            refuse_with(Reason::QueueFull, message, &[], Some(RETRY_AFTER))
        })?;
        let pieces = self.open(request.into_inner()).await?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        self.tasks.spawn("download", OnPanic::Log, send(pieces, sender, place, self.gate.clone()));
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Reads ahead of the connection; ends with the blob, with the gateway, or when one of the two stalls.
async fn send(
    mut pieces: crate::artifacts::Pieces,
    sender: mpsc::Sender<Result<v1::ReadBlobResponse, Status>>,
    _place: OwnedSemaphorePermit,
    gate: Gate,
) {
    loop {
        let piece = tokio::select! {
            biased;
            // Cancel safe: a token's wait has no state.
            () = gate.cut() => Some(Err(Gate::draining_status())),
            // Cancel safe: nothing is read for a gateway that has gone.
            () = sender.closed() => None,
            // Cancel safe: the download ends with the other branches.
            piece = tokio::time::timeout(STALL, pieces.next()) => match piece {
                Ok(Some(Ok(data))) => Some(Ok(v1::ReadBlobResponse { data })),
                Ok(Some(Err(error))) => Some(Err(errors::artifacts(error))),
                Ok(None) => None,
                Err(_) => Some(Err(refuse(Reason::StorageFailed, "the artifact store fell silent"))),
            },
        };
        let Some(piece) = piece else { return };
        let last = piece.is_err();
        if sender.send_timeout(piece, STALL).await.is_err() || last {
            return;
        }
    }
}
