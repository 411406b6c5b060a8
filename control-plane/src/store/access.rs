//! Tokens: of people and programs, and of gateways that are to join. Only their hashes are kept.

use crate::domain::{GatewayId, Labels, Millis};

use sqlx::any::AnyRow;

use super::{
    JoinTokenRefusal, Lock, Store, StoreError, Tx,
    audit::note,
    exists, not_found,
    row::{Columns, to_json},
};

/// A bearer token without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// Whose it is.
    pub name: String,
    /// What it may do, in the caller's words.
    pub role: String,
    /// Of the secret.
    pub hash: String,
    /// When it was made.
    pub created: Millis,
    /// When it ends; `None`: it does not. Callers compare.
    pub ends: Option<Millis>,
}

/// A token to join with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJoinToken {
    /// Of the secret.
    pub hash: String,
    /// When it ends.
    pub ends: Millis,
    /// How many gateways may join with it.
    pub uses: u32,
    /// Labels of those that do.
    pub labels: Labels,
}

impl Store {
    /// Keeps a bearer token.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if one has the name or the hash.
    pub async fn put_token(&self, token: &TokenRecord, actor: &str) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::All).await?;
        let kept = sqlx::query("SELECT name FROM tokens WHERE name = $1 OR hash = $2")
            .bind(&token.name)
            .bind(&token.hash)
            .fetch_optional(&mut *tx)
            .await?;
        if kept.is_some() {
            return Err(exists(format!("token {}", token.name)));
        }
        sqlx::query("INSERT INTO tokens (name, role, hash, created, ends) VALUES ($1, $2, $3, $4, $5)")
            .bind(&token.name)
            .bind(&token.role)
            .bind(&token.hash)
            .bind(token.created.0)
            .bind(token.ends.map(|ends| ends.0))
            .execute(&mut *tx)
            .await?;
        note(&mut tx, actor, "token.create", &token.name, &token.role).await?;
        self.commit(tx).await
    }

    /// The bearer token with a hash, also if it has ended.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn token_by_hash(&self, hash: &str) -> Result<Option<TokenRecord>, StoreError> {
        let row = sqlx::query("SELECT name, role, hash, created, ends FROM tokens WHERE hash = $1")
            .bind(hash)
            .fetch_optional(self.database.reader())
            .await?;
        row.as_ref().map(token).transpose()
    }

    /// All bearer tokens, by name.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        let rows = sqlx::query("SELECT name, role, hash, created, ends FROM tokens")
            .fetch_all(self.database.reader())
            .await?;
        let mut tokens = rows.iter().map(token).collect::<Result<Vec<_>, _>>()?;
        // Databases sort texts in ways of their own.
        tokens.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(tokens)
    }

    /// Forgets a bearer token.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn revoke_token(&self, name: &str, actor: &str) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::All).await?;
        let deleted = sqlx::query("DELETE FROM tokens WHERE name = $1").bind(name).execute(&mut *tx).await?;
        if deleted.rows_affected() == 0 {
            return Err(not_found(format!("token {name}")));
        }
        note(&mut tx, actor, "token.revoke", name, "").await?;
        self.commit(tx).await
    }

    /// Keeps a join token.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if one has the hash.
    pub async fn put_join_token(&self, token: &NewJoinToken, actor: &str) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::All).await?;
        let inserted = sqlx::query(
            "INSERT INTO join_tokens (hash, ends, uses, labels) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (hash) DO NOTHING",
        )
        .bind(&token.hash)
        .bind(token.ends.0)
        .bind(i64::from(token.uses))
        .bind(to_json("labels", &token.labels)?)
        .execute(&mut *tx)
        .await?;
        if inserted.rows_affected() == 0 {
            return Err(exists("the join token"));
        }
        let detail = format!("{} uses", token.uses);
        note(&mut tx, actor, "join-token.create", &short(&token.hash), &detail).await?;
        self.commit(tx).await
    }

    /// Takes one use of a join token for a gateway. [`Store::enrol`] does this and keeps the gateway in one step.
    ///
    /// # Errors
    /// [`StoreError::JoinToken`].
    ///
    /// # Returns
    /// Labels of gateways that join with it.
    pub async fn take_join_token(
        &self,
        hash: &str,
        gateway: &GatewayId,
        now: Millis,
    ) -> Result<Labels, StoreError> {
        let mut tx = self.write(Lock::All).await?;
        let labels = take(&mut tx, hash, gateway, now).await?;
        self.commit(tx).await?;
        Ok(labels)
    }
}

/// Takes one use of a join token.
pub(super) async fn take(
    tx: &mut Tx,
    hash: &str,
    gateway: &GatewayId,
    now: Millis,
) -> Result<Labels, StoreError> {
    let row = sqlx::query("SELECT ends, uses, labels FROM join_tokens WHERE hash = $1")
        .bind(hash)
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(JoinTokenRefusal::Unknown)?;
    if row.millis("ends")? <= now {
        return Err(JoinTokenRefusal::Expired.into());
    }
    let used = sqlx::query(
        "INSERT INTO join_uses (hash, gateway, at) VALUES ($1, $2, $3) ON CONFLICT (hash, gateway) DO NOTHING",
    )
    .bind(hash)
    .bind(gateway.as_str())
    .bind(now.0)
    .execute(&mut **tx)
    .await?;
    if used.rows_affected() == 0 {
        return Err(JoinTokenRefusal::Replayed.into());
    }
    let taken = sqlx::query("UPDATE join_tokens SET uses = uses - 1 WHERE hash = $1 AND uses > 0")
        .bind(hash)
        .execute(&mut **tx)
        .await?;
    if taken.rows_affected() == 0 {
        return Err(JoinTokenRefusal::UsedUp.into());
    }
    note(tx, &format!("gateway {gateway}"), "join-token.use", &short(hash), "").await?;
    row.json("labels")
}

fn token(row: &AnyRow) -> Result<TokenRecord, StoreError> {
    Ok(TokenRecord {
        name: row.text("name")?,
        role: row.text("role")?,
        hash: row.text("hash")?,
        created: row.millis("created")?,
        ends: row.maybe_number("ends")?.map(Millis),
    })
}

/// Enough of a hash to tell tokens apart in the audit log.
fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}
