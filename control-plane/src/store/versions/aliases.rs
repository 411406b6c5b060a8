//! Names that point at versions.

use crate::domain::{AliasName, ModelName, VersionName};

use super::{Alias, digest_of};
use crate::store::{Lock, Store, StoreError, audit::note, exists, not_found, row::Columns};

impl Store {
    /// Points an alias at a version.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without that version; [`StoreError::Exists`] if a version has the alias's name.
    pub async fn set_alias(
        &self,
        model: &ModelName,
        alias: &AliasName,
        version: &VersionName,
        actor: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::All).await?;
        if digest_of(&mut tx, model, version).await?.is_none() {
            return Err(not_found(format!("version {model}@{version}")));
        }
        let same = sqlx::query("SELECT version FROM versions WHERE model = $1 AND version = $2")
            .bind(model.as_str())
            .bind(alias.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        if same.is_some() {
            return Err(exists(format!("version {model}@{alias}")));
        }
        sqlx::query(
            "INSERT INTO aliases (model, alias, version) VALUES ($1, $2, $3) \
             ON CONFLICT (model, alias) DO UPDATE SET version = excluded.version",
        )
        .bind(model.as_str())
        .bind(alias.as_str())
        .bind(version.as_str())
        .execute(&mut *tx)
        .await?;
        note(&mut tx, actor, "alias.set", &format!("{model}@{alias}"), version.as_str()).await?;
        self.commit(tx).await
    }

    /// Deletes an alias.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_alias(
        &self,
        model: &ModelName,
        alias: &AliasName,
        actor: &str,
    ) -> Result<(), StoreError> {
        let name = format!("{model}@{alias}");
        let mut tx = self.write(Lock::All).await?;
        let deleted = sqlx::query("DELETE FROM aliases WHERE model = $1 AND alias = $2")
            .bind(model.as_str())
            .bind(alias.as_str())
            .execute(&mut *tx)
            .await?;
        if deleted.rows_affected() == 0 {
            return Err(not_found(format!("alias {name}")));
        }
        note(&mut tx, actor, "alias.delete", &name, "").await?;
        self.commit(tx).await
    }

    /// All aliases, by model and name.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn aliases(&self) -> Result<Vec<Alias>, StoreError> {
        let rows = sqlx::query(
            "SELECT a.model AS model, a.alias AS alias, a.version AS version, v.digest AS digest \
             FROM aliases a JOIN versions v ON v.model = a.model AND v.version = a.version",
        )
        .fetch_all(self.database.reader())
        .await?;
        let mut aliases = rows
            .iter()
            .map(|row| {
                Ok(Alias {
                    model: row.parsed("model")?,
                    alias: row.parsed("alias")?,
                    version: row.parsed("version")?,
                    digest: row.parsed("digest")?,
                })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        aliases.sort_by(|one, other| (&one.model, &one.alias).cmp(&(&other.model, &other.alias)));
        Ok(aliases)
    }
}
