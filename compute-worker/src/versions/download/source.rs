//! Where blobs come from.

use std::{pin::Pin, time::Duration};

use futures_util::{
    Stream,
    future::{Either, ready},
    stream::{self, StreamExt},
};
use rookery_model::bundle::Digest;
use rookery_proto::{
    status::{Reason, reason_of, retry_after},
    v1::{ReadBlobRequest, artifact_service_client::ArtifactServiceClient},
};
use tonic::{Code, Status};

use crate::agent::Upstream;

/// Largest message that is read: one MiB of a blob, and what is around it.
const MESSAGE_BYTES: usize = 2 << 20;

/// Pause where the control plane says that it is busy and not for how long.
const BUSY: Duration = Duration::from_secs(5);

/// Bytes of a blob, in order.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Vec<u8>, SourceError>> + Send>>;

/// Why bytes do not come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Too many ask at the same time.
    #[error("busy, again in {retry:?}")]
    Busy {
        /// When to ask again.
        retry: Duration,
    },
    /// The connection is gone, or never was.
    #[error("{0}")]
    Lost(String),
    /// There is no such blob.
    #[error("{0}")]
    Refused(String),
}

/// Gives blobs.
pub trait BlobSource: Send + Sync + 'static {
    /// The bytes of a blob from `offset` on.
    fn read(&self, digest: &Digest, offset: u64) -> BlobStream;
}

/// The control plane gives blobs.
impl BlobSource for Upstream {
    fn read(&self, digest: &Digest, offset: u64) -> BlobStream {
        let request = ReadBlobRequest { digest: digest.to_string(), offset, length: 0 };
        let channel = self.channel();
        let opened = async move {
            let channel = channel.map_err(|error| SourceError::Refused(error.to_string()))?;
            let mut client = ArtifactServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
            client.read_blob(request).await.map(tonic::Response::into_inner).map_err(|s| source_error(&s))
        };
        Box::pin(stream::once(opened).flat_map(|opened| match opened {
            Ok(messages) => Either::Left(messages.map(|message| match message {
                Ok(message) => Ok(message.data),
                Err(status) => Err(source_error(&status)),
            })),
            Err(error) => Either::Right(stream::once(ready(Err(error)))),
        }))
    }
}

fn source_error(status: &Status) -> SourceError {
    if status.code() == Code::ResourceExhausted {
        return SourceError::Busy { retry: retry_after(status).unwrap_or(BUSY) };
    }
    let absent = [Code::NotFound, Code::InvalidArgument, Code::PermissionDenied, Code::Unimplemented];
    let why = format!("{:?}: {}", status.code(), status.message());
    if absent.contains(&status.code()) || reason_of(status) == Some(Reason::ObjectNotFound) {
        return SourceError::Refused(why);
    }
    SourceError::Lost(why)
}
