//! Between messages and what they mean: one function each.

use std::{collections::HashMap, fmt::Display, str::FromStr};

use rookery_proto::{
    signing::{KeyId, MAX_SIGNATURES},
    status::invalid_field,
    v1,
};
use tonic::Status;

use super::errors;
use crate::{
    artifacts::Manifest,
    domain::{Digest, ModelName, VersionName},
    service::stored::timestamp,
    store::{SignatureRecord, TrustedKey, Version},
};

/// Most bytes of a blob in a message.
const MAX_PIECE_BYTES: usize = 1 << 20;

/// A name or digest in a field.
pub(super) fn name<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|error: T::Err| invalid_field(field, &error.to_string()))
}

/// A checked [`v1::BeginPushRequest`].
pub(super) struct BeginPush {
    pub(super) model: ModelName,
    pub(super) version: VersionName,
    pub(super) manifest: Manifest,
}

impl TryFrom<v1::BeginPushRequest> for BeginPush {
    type Error = Status;

    fn try_from(request: v1::BeginPushRequest) -> Result<Self, Status> {
        Ok(Self {
            model: name("model", &request.model)?,
            version: name("version", &request.version)?,
            manifest: Manifest::parse(request.manifest).map_err(errors::artifacts)?,
        })
    }
}

/// A checked [`v1::FinishPushRequest`].
pub(super) struct FinishPush {
    pub(super) model: ModelName,
    pub(super) version: VersionName,
    pub(super) digest: Digest,
    pub(super) signatures: Vec<SignatureRecord>,
}

impl TryFrom<v1::FinishPushRequest> for FinishPush {
    type Error = Status;

    fn try_from(request: v1::FinishPushRequest) -> Result<Self, Status> {
        if request.signatures.len() > MAX_SIGNATURES {
            return Err(invalid_field("signatures", &format!("must be at most {MAX_SIGNATURES}")));
        }
        let signatures = request.signatures.into_iter().enumerate();
        Ok(Self {
            model: name("model", &request.model)?,
            version: name("version", &request.version)?,
            digest: name("digest", &request.digest)?,
            signatures: signatures
                .map(|(at, one)| signature(&format!("signatures[{at}]"), one))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The first message of an upload, which says what it is of.
pub(super) struct UploadHead {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) offset: u64,
    pub(super) data: Vec<u8>,
}

impl TryFrom<v1::UploadBlobRequest> for UploadHead {
    type Error = Status;

    fn try_from(request: v1::UploadBlobRequest) -> Result<Self, Status> {
        let v1::UploadBlobRequest { digest, size, offset, data } = request;
        let digest = name("digest", &digest)?;
        if offset > size {
            return Err(invalid_field("offset", &format!("must be at most the size, {size}, is {offset}")));
        }
        Ok(Self { digest, size, offset, data: piece_of(data)? })
    }
}

/// The bytes of a later message of an upload.
pub(super) fn piece(request: v1::UploadBlobRequest) -> Result<Vec<u8>, Status> {
    if !request.digest.is_empty() || request.size != 0 || request.offset != 0 {
        return Err(invalid_field("digest", "must be in the first message only, with size and offset"));
    }
    piece_of(request.data)
}

fn piece_of(data: Vec<u8>) -> Result<Vec<u8>, Status> {
    if data.len() > MAX_PIECE_BYTES {
        return Err(invalid_field("data", &format!("must have at most {MAX_PIECE_BYTES} bytes a message")));
    }
    Ok(data)
}

/// A signature as it is kept.
pub(super) fn signature(field: &str, signature: v1::Signature) -> Result<SignatureRecord, Status> {
    let key_id = key_id(&format!("{field}.key_id"), &signature.key_id)?.to_string();
    if signature.signature.len() != 64 {
        return Err(invalid_field(&format!("{field}.signature"), "must have 64 bytes"));
    }
    Ok(SignatureRecord { key_id, signature: signature.signature })
}

/// A key's id.
pub(super) fn key_id(field: &str, text: &str) -> Result<KeyId, Status> {
    name(field, text)
}

/// A version for the wire.
pub(super) fn version(version: Version, serving: &HashMap<Digest, u32>) -> v1::ModelVersion {
    let gateways = serving.get(&version.digest).copied().unwrap_or(0);
    let signatures = version.signatures.into_iter();
    v1::ModelVersion {
        model: version.model.to_string(),
        version: version.version.to_string(),
        digest: version.digest.to_string(),
        size_bytes: version.size_bytes,
        architecture: version.summary.architecture,
        recipe: version.summary.recipe,
        parameters: version.summary.parameters,
        created: Some(timestamp(version.created)),
        created_by: version.created_by,
        signatures: signatures
            .map(|one| v1::Signature { key_id: one.key_id, signature: one.signature })
            .collect(),
        aliases: version.aliases.iter().map(ToString::to_string).collect(),
        gateways,
    }
}

/// A trusted key for the wire.
pub(super) fn trusted_key(key: TrustedKey) -> v1::TrustedKey {
    v1::TrustedKey {
        key_id: key.key_id,
        public_key: key.public_key,
        created: Some(timestamp(key.added)),
        created_by: key.added_by,
    }
}
