//! Versions of models, their aliases and signatures.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD};
use sqlx::{AssertSqlSafe, any::AnyRow};

use crate::domain::{AliasName, Digest, Millis, ModelName, VersionName};

use super::{
    Lock, Store, StoreError, Tx,
    audit::note,
    exists, invalid, not_found,
    row::{Columns, corrupt, plain, signed},
};

mod aliases;
mod blobs;

/// Everything but the manifest, which is large.
const COLUMNS: &str = "SELECT model, version, digest, size_bytes, architecture, recipe, parameters, created, created_by FROM versions";

/// What a bundle says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionSummary {
    /// Such as `qwen2`.
    pub architecture: String,
    /// Packing recipe.
    pub recipe: String,
    /// Number of weights.
    pub parameters: u64,
}

/// A version to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVersion {
    /// The model.
    pub model: ModelName,
    /// The version's name.
    pub version: VersionName,
    /// Of the manifest.
    pub digest: Digest,
    /// Bytes of all blobs.
    pub size_bytes: u64,
    /// The bundle's manifest, as its blob has it.
    pub manifest: String,
    /// What the bundle says about itself.
    pub summary: VersionSummary,
    /// When it was pushed.
    pub created: Millis,
    /// Who pushed it.
    pub created_by: String,
}

/// A version. Its manifest is read by [`Store::manifest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The model.
    pub model: ModelName,
    /// The version's name.
    pub version: VersionName,
    /// Of the manifest. Several versions may have the same.
    pub digest: Digest,
    /// Bytes of all blobs.
    pub size_bytes: u64,
    /// What the bundle says about itself.
    pub summary: VersionSummary,
    /// When it was pushed.
    pub created: Millis,
    /// Who pushed it.
    pub created_by: String,
    /// Of the digest, by key.
    pub signatures: Vec<SignatureRecord>,
    /// Those that point here, sorted.
    pub aliases: Vec<AliasName>,
}

/// A detached signature of a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureRecord {
    /// Which key made it.
    pub key_id: String,
    /// Its bytes.
    pub signature: Vec<u8>,
}

/// A name that points at a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The model.
    pub model: ModelName,
    /// The alias.
    pub alias: AliasName,
    /// The version.
    pub version: VersionName,
    /// The version's digest.
    pub digest: Digest,
}

impl Store {
    /// Keeps a version. The same again does nothing.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if the name stands for another digest or is an alias; [`StoreError::Invalid`] if the manifest
    /// is none.
    pub async fn insert_version(&self, version: &NewVersion) -> Result<(), StoreError> {
        let blobs = blobs::of(&version.digest, &version.manifest)?;
        let name = format!("{}@{}", version.model, version.version);
        let mut tx = self.write(Lock::All).await?;
        if let Some(kept) = digest_of(&mut tx, &version.model, &version.version).await? {
            return if kept == version.digest { Ok(()) } else { Err(exists(format!("version {name}"))) };
        }
        let alias = sqlx::query("SELECT alias FROM aliases WHERE model = $1 AND alias = $2")
            .bind(version.model.as_str())
            .bind(version.version.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        if alias.is_some() {
            return Err(exists(format!("alias {name}")));
        }
        insert(&mut tx, version).await?;
        blobs::insert(&mut tx, &version.digest, &blobs).await?;
        note(&mut tx, &version.created_by, "version.push", &name, version.digest.as_str()).await?;
        self.commit(tx).await
    }

    /// Versions of a model, or of all, by model and newest first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn versions(&self, model: Option<&ModelName>) -> Result<Vec<Version>, StoreError> {
        match model {
            Some(model) => self.select("WHERE model = $1", &[model.as_str()]).await,
            None => self.select("", &[]).await,
        }
    }

    /// A version by name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn version(&self, model: &ModelName, version: &VersionName) -> Result<Version, StoreError> {
        let mut found =
            self.select("WHERE model = $1 AND version = $2", &[model.as_str(), version.as_str()]).await?;
        found.pop().ok_or_else(|| not_found(format!("version {model}@{version}")))
    }

    /// The oldest version with a digest, of `model` if it is given.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn version_by_digest(
        &self,
        model: Option<&ModelName>,
        digest: &Digest,
    ) -> Result<Option<Version>, StoreError> {
        let mut found = match model {
            Some(model) => {
                self.select("WHERE digest = $1 AND model = $2", &[digest.as_str(), model.as_str()]).await?
            }
            None => self.select("WHERE digest = $1", &[digest.as_str()]).await?,
        };
        found.sort_by(|one, other| (one.created, &one.version).cmp(&(other.created, &other.version)));
        Ok(found.into_iter().next())
    }

    /// The manifest with a digest.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if no version has it.
    pub async fn manifest(&self, digest: &Digest) -> Result<String, StoreError> {
        let row = sqlx::query("SELECT manifest FROM versions WHERE digest = $1 LIMIT 1")
            .bind(digest.as_str())
            .fetch_optional(self.database.reader())
            .await?;
        row.ok_or_else(|| not_found(format!("version with digest {digest}")))?.text("manifest")
    }

    /// Forgets a version.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::InUse`] while an alias, an unfinished roll-out or a gateway's assignment
    /// refers to it.
    pub async fn delete_version(
        &self,
        model: &ModelName,
        version: &VersionName,
        actor: &str,
    ) -> Result<(), StoreError> {
        let name = format!("version {model}@{version}");
        let mut tx = self.write(Lock::All).await?;
        let digest = digest_of(&mut tx, model, version).await?.ok_or_else(|| not_found(name.clone()))?;
        if let Some(by) = user_of(&mut tx, model, version, &digest).await? {
            return Err(StoreError::InUse { what: name, by });
        }
        sqlx::query("DELETE FROM versions WHERE model = $1 AND version = $2")
            .bind(model.as_str())
            .bind(version.as_str())
            .execute(&mut *tx)
            .await?;
        for forget in [
            "DELETE FROM version_blobs WHERE digest = $1 AND $1 NOT IN (SELECT digest FROM versions)",
            "DELETE FROM signatures WHERE digest = $1 AND $1 NOT IN (SELECT digest FROM versions)",
        ] {
            sqlx::query(forget).bind(digest.as_str()).execute(&mut *tx).await?;
        }
        note(&mut tx, actor, "version.delete", &format!("{model}@{version}"), digest.as_str()).await?;
        self.commit(tx).await
    }

    /// Adds a signature to a digest; one by the same key is replaced.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if no version has the digest.
    pub async fn add_signature(
        &self,
        digest: &Digest,
        key_id: &str,
        signature: &[u8],
        actor: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::All).await?;
        let known = sqlx::query("SELECT digest FROM versions WHERE digest = $1 LIMIT 1")
            .bind(digest.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        if known.is_none() {
            return Err(not_found(format!("version with digest {digest}")));
        }
        sqlx::query(
            "INSERT INTO signatures (digest, key_id, signature) VALUES ($1, $2, $3) \
             ON CONFLICT (digest, key_id) DO UPDATE SET signature = excluded.signature",
        )
        .bind(digest.as_str())
        .bind(plain(key_id))
        .bind(STANDARD.encode(signature))
        .execute(&mut *tx)
        .await?;
        note(&mut tx, actor, "version.sign", digest.as_str(), key_id).await?;
        self.commit(tx).await
    }

    /// Every blob of every version, manifests among them.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn referenced_blobs(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let rows =
            sqlx::query("SELECT DISTINCT blob FROM version_blobs").fetch_all(self.database.reader()).await?;
        rows.iter().map(|row| row.parsed("blob")).collect()
    }

    /// Whether a blob belongs to a version.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn is_referenced(&self, blob: &Digest) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT blob FROM version_blobs WHERE blob = $1 LIMIT 1")
            .bind(blob.as_str())
            .fetch_optional(self.database.reader())
            .await?;
        Ok(row.is_some())
    }

    async fn select(&self, filter: &'static str, values: &[&str]) -> Result<Vec<Version>, StoreError> {
        let mut tx = self.database.snapshot().await?;
        // Only constants of this file.
        let mut query = sqlx::query(AssertSqlSafe(format!("{COLUMNS} {filter}")));
        for value in values {
            query = query.bind(*value);
        }
        let rows = query.fetch_all(&mut *tx).await?;
        let mut versions = rows.iter().map(version).collect::<Result<Vec<_>, _>>()?;
        let mut signatures = signatures(&mut tx).await?;
        let mut aliases = BTreeMap::<_, Vec<AliasName>>::new();
        for row in sqlx::query("SELECT model, version, alias FROM aliases").fetch_all(&mut *tx).await? {
            let key: (ModelName, VersionName) = (row.parsed("model")?, row.parsed("version")?);
            aliases.entry(key).or_default().push(row.parsed("alias")?);
        }
        for version in &mut versions {
            version.signatures = signatures.get_mut(&version.digest).cloned().unwrap_or_default();
            version.signatures.sort_by(|one, other| one.key_id.cmp(&other.key_id));
            version.aliases =
                aliases.remove(&(version.model.clone(), version.version.clone())).unwrap_or_default();
            version.aliases.sort();
        }
        versions.sort_by(|one, other| {
            (&one.model, other.created, &other.version).cmp(&(&other.model, one.created, &one.version))
        });
        Ok(versions)
    }
}

async fn insert(tx: &mut Tx, version: &NewVersion) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO versions (model, version, digest, size_bytes, manifest, architecture, recipe, parameters, \
         created, created_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(version.model.as_str())
    .bind(version.version.as_str())
    .bind(version.digest.as_str())
    .bind(signed("size", version.size_bytes)?)
    .bind(&version.manifest)
    .bind(plain(&version.summary.architecture))
    .bind(plain(&version.summary.recipe))
    .bind(signed("number of weights", version.summary.parameters)?)
    .bind(version.created.0)
    .bind(plain(&version.created_by))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn digest_of(
    tx: &mut Tx,
    model: &ModelName,
    version: &VersionName,
) -> Result<Option<Digest>, StoreError> {
    let row = sqlx::query("SELECT digest FROM versions WHERE model = $1 AND version = $2")
        .bind(model.as_str())
        .bind(version.as_str())
        .fetch_optional(&mut **tx)
        .await?;
    row.map(|row| row.parsed("digest")).transpose()
}

/// What keeps a version from being deleted. Another version of the same digest does not help: people know it by name.
async fn user_of(
    tx: &mut Tx,
    model: &ModelName,
    version: &VersionName,
    digest: &Digest,
) -> Result<Option<String>, StoreError> {
    let alias = sqlx::query("SELECT alias FROM aliases WHERE model = $1 AND version = $2 LIMIT 1")
        .bind(model.as_str())
        .bind(version.as_str())
        .fetch_optional(&mut **tx)
        .await?;
    if let Some(row) = alias {
        return Ok(Some(format!("alias {}", row.text("alias")?)));
    }
    let rollout = sqlx::query(
        "SELECT id FROM rollouts WHERE is_over = 0 AND model = $1 AND (digest = $2 OR id IN \
         (SELECT rollout FROM targets WHERE previous = $2)) LIMIT 1",
    )
    .bind(model.as_str())
    .bind(digest.as_str())
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(row) = rollout {
        return Ok(Some(format!("roll-out {}", row.text("id")?)));
    }
    let gateway = sqlx::query("SELECT gateway FROM assignments WHERE model = $1 AND digest = $2 LIMIT 1")
        .bind(model.as_str())
        .bind(digest.as_str())
        .fetch_optional(&mut **tx)
        .await?;
    gateway.map(|row| Ok(format!("gateway {}", row.text("gateway")?))).transpose()
}

async fn signatures(tx: &mut Tx) -> Result<BTreeMap<Digest, Vec<SignatureRecord>>, StoreError> {
    let rows = sqlx::query("SELECT digest, key_id, signature FROM signatures").fetch_all(&mut **tx).await?;
    let mut signatures = BTreeMap::<Digest, Vec<SignatureRecord>>::new();
    for row in rows {
        let signature =
            STANDARD.decode(row.text("signature")?).map_err(|error| corrupt("signature", error))?;
        let record = SignatureRecord { key_id: row.text("key_id")?, signature };
        signatures.entry(row.parsed("digest")?).or_default().push(record);
    }
    Ok(signatures)
}

fn version(row: &AnyRow) -> Result<Version, StoreError> {
    Ok(Version {
        model: row.parsed("model")?,
        version: row.parsed("version")?,
        digest: row.parsed("digest")?,
        size_bytes: row.unsigned("size_bytes")?,
        summary: VersionSummary {
            architecture: row.text("architecture")?,
            recipe: row.text("recipe")?,
            parameters: row.unsigned("parameters")?,
        },
        created: row.millis("created")?,
        created_by: row.text("created_by")?,
        signatures: Vec::new(),
        aliases: Vec::new(),
    })
}
