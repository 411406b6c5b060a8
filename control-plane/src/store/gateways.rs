//! Gateways that have joined, their certificates and their links.

use std::{fmt, str::FromStr};

use sqlx::{AssertSqlSafe, any::AnyRow};

use crate::domain::{GatewayId, Labels, Millis};

use super::{
    Lock, Store, StoreError, Tx, access,
    audit::note,
    exists, not_found,
    row::{Columns, to_json},
};

mod certificates;
mod reports;

use certificates::certify;

const COLUMNS: &str = "SELECT id, labels, admission, joined, last_seen, facts, versions, serial, not_after, generation, \
    acknowledged_sequence, link_replica, link_epoch, link_since FROM gateways";

/// Whether a gateway is given work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Admission {
    /// It takes assignments and requests.
    #[default]
    Open,
    /// It keeps serving what it serves and is given no new versions.
    Cordoned,
    /// Neither new versions nor new requests.
    Drained,
}

impl Admission {
    /// As it is stored and written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cordoned => "cordoned",
            Self::Drained => "drained",
        }
    }
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Admission {
    type Err = InvalidAdmission;

    fn from_str(text: &str) -> Result<Self, InvalidAdmission> {
        [Self::Open, Self::Cordoned, Self::Drained]
            .into_iter()
            .find(|admission| admission.as_str() == text)
            .ok_or_else(|| InvalidAdmission(text.chars().take(32).collect()))
    }
}

/// The text is no admission.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("admission {0:?} must be \"open\", \"cordoned\" or \"drained\"")]
pub struct InvalidAdmission(String);

/// A gateway that joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewGateway {
    /// Its id.
    pub id: GatewayId,
    /// Labels.
    pub labels: Labels,
    /// When it joins.
    pub joined: Millis,
    /// Serial number of its certificate.
    pub serial: String,
    /// When that ends.
    pub not_after: Millis,
}

/// A gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayRecord {
    /// Its id.
    pub id: GatewayId,
    /// Labels that people gave it.
    pub labels: Labels,
    /// Whether it is given work.
    pub admission: Admission,
    /// When it joined.
    pub joined: Millis,
    /// When it was last heard of, about to the minute; `None`: never since it joined.
    pub last_seen: Option<Millis>,
    /// What it is, as last saved, JSON.
    pub facts_json: Option<String>,
    /// Its versions, as last saved, JSON.
    pub versions_json: Option<String>,
    /// Serial number of its newest certificate.
    pub serial: String,
    /// When that ends.
    pub not_after: Millis,
    /// Of its assignments: grows with each change, also over removal and joining again.
    pub generation: u64,
    /// Transitions up to this sequence are kept.
    pub acknowledged_sequence: u64,
    /// Which replica holds its connection, if one does. A replica that died cannot take this back: look whether it is seen.
    pub link: Option<LinkRecord>,
}

/// Which replica holds a gateway's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRecord {
    /// Id of the replica.
    pub replica: String,
    /// Grows with every link of the gateway.
    pub epoch: u64,
    /// Since when.
    pub since: Millis,
}

/// A link that was written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkUp {
    /// Grows with every link of the gateway.
    pub epoch: u64,
    /// Of the gateway's assignments.
    pub generation: u64,
    /// Transitions up to this sequence are kept.
    pub acknowledged_sequence: u64,
}

/// What a gateway reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The gateway.
    pub gateway: GatewayId,
    /// What it is, JSON; `None`: as before.
    pub facts_json: Option<String>,
    /// Its versions, JSON; `None`: as before.
    pub versions_json: Option<String>,
    /// When.
    pub seen: Millis,
}

impl Store {
    /// Keeps a gateway that joins, or joins again after its removal.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if a gateway has that id.
    pub async fn put_gateway(&self, gateway: &NewGateway, actor: &str) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::All).await?;
        put(&mut tx, gateway, &gateway.labels, actor).await?;
        self.commit(tx).await
    }

    /// Takes a join token and keeps the gateway, both or neither. The gateway gets the token's labels beside its own.
    ///
    /// # Errors
    /// [`StoreError::JoinToken`]; [`StoreError::Exists`].
    pub async fn enrol(&self, token_hash: &str, gateway: &NewGateway) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::All).await?;
        let mut labels = gateway.labels.clone();
        labels.extend(access::take(&mut tx, token_hash, &gateway.id, gateway.joined).await?);
        put(&mut tx, gateway, &labels, &format!("gateway {}", gateway.id)).await?;
        self.commit(tx).await
    }

    /// A gateway.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if it was removed.
    pub async fn gateway(&self, id: &GatewayId) -> Result<GatewayRecord, StoreError> {
        let sql = format!("{COLUMNS} WHERE id = $1 AND removed IS NULL");
        let row =
            sqlx::query(AssertSqlSafe(sql)).bind(id.as_str()).fetch_optional(self.database.reader()).await?;
        record(&row.ok_or_else(|| unknown(id))?)
    }

    /// All gateways, by id.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn gateways(&self) -> Result<Vec<GatewayRecord>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!("{COLUMNS} WHERE removed IS NULL")))
            .fetch_all(self.database.reader())
            .await?;
        let mut gateways = rows.iter().map(record).collect::<Result<Vec<_>, _>>()?;
        gateways.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(gateways)
    }

    /// Sets labels and removes others.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn set_labels(
        &self,
        id: &GatewayId,
        set: &Labels,
        remove: &[String],
        actor: &str,
    ) -> Result<GatewayRecord, StoreError> {
        let mut tx = self.write(Lock::All).await?;
        let mut gateway = locked(&mut tx, id).await?;
        let before = gateway.labels.clone();
        gateway.labels.retain(|name, _| !remove.contains(name));
        gateway.labels.extend(set.clone());
        if gateway.labels == before {
            return Ok(gateway);
        }
        let labels = to_json("labels", &gateway.labels)?;
        sqlx::query("UPDATE gateways SET labels = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(&labels)
            .execute(&mut *tx)
            .await?;
        note(&mut tx, actor, "gateway.label", id.as_str(), &labels).await?;
        self.commit(tx).await?;
        Ok(gateway)
    }

    /// Says whether a gateway is given work.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn set_admission(
        &self,
        id: &GatewayId,
        admission: Admission,
        actor: &str,
    ) -> Result<GatewayRecord, StoreError> {
        let mut tx = self.write(Lock::All).await?;
        let mut gateway = locked(&mut tx, id).await?;
        if gateway.admission == admission {
            return Ok(gateway);
        }
        gateway.admission = admission;
        sqlx::query("UPDATE gateways SET admission = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(admission.as_str())
            .execute(&mut *tx)
            .await?;
        note(&mut tx, actor, "gateway.admission", id.as_str(), admission.as_str()).await?;
        self.commit(tx).await?;
        Ok(gateway)
    }

    /// Forgets a gateway with its assignments, and revokes all its certificates. Its transitions are kept.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn remove_gateway(&self, id: &GatewayId, actor: &str) -> Result<(), StoreError> {
        let now = Millis::now().0;
        let mut tx = self.write(Lock::All).await?;
        // The generation grows, so that a gateway that joins again under this id takes what it is told then.
        let removed = sqlx::query(
            "UPDATE gateways SET removed = $2, link_replica = NULL, generation = generation + 1 \
             WHERE id = $1 AND removed IS NULL",
        )
        .bind(id.as_str())
        .bind(now)
        .execute(&mut *tx)
        .await?;
        if removed.rows_affected() == 0 {
            return Err(unknown(id));
        }
        for forget in ["DELETE FROM assignments WHERE gateway = $1", "DELETE FROM owners WHERE gateway = $1"]
        {
            sqlx::query(forget).bind(id.as_str()).execute(&mut *tx).await?;
        }
        sqlx::query("UPDATE certificates SET revoked = $2 WHERE gateway = $1 AND revoked IS NULL")
            .bind(id.as_str())
            .bind(now)
            .execute(&mut *tx)
            .await?;
        note(&mut tx, actor, "gateway.remove", id.as_str(), "its certificates are revoked").await?;
        self.commit(tx).await
    }
}

/// Keeps a gateway with its first certificate; a removed one keeps its generation.
async fn put(tx: &mut Tx, gateway: &NewGateway, labels: &Labels, actor: &str) -> Result<(), StoreError> {
    let put = sqlx::query(
        "INSERT INTO gateways (id, labels, admission, joined, enrolment, serial, not_after, generation, \
         acknowledged_sequence, link_epoch, link_since) VALUES ($1, $2, 'open', $3, 1, $4, $5, 0, 0, 0, 0) \
         ON CONFLICT (id) DO UPDATE SET labels = excluded.labels, admission = excluded.admission, \
         joined = excluded.joined, enrolment = gateways.enrolment + 1, removed = NULL, last_seen = NULL, facts = NULL, \
         versions = NULL, serial = excluded.serial, not_after = excluded.not_after, acknowledged_sequence = 0 \
         WHERE gateways.removed IS NOT NULL",
    )
    .bind(gateway.id.as_str())
    .bind(to_json("labels", labels)?)
    .bind(gateway.joined.0)
    .bind(&gateway.serial)
    .bind(gateway.not_after.0)
    .execute(&mut **tx)
    .await?;
    if put.rows_affected() == 0 {
        return Err(exists(format!("gateway {}", gateway.id)));
    }
    certify(tx, &gateway.id, &gateway.serial, gateway.not_after).await?;
    note(tx, actor, "gateway.join", gateway.id.as_str(), &gateway.serial).await
}

/// A gateway that is about to be changed.
async fn locked(tx: &mut Tx, id: &GatewayId) -> Result<GatewayRecord, StoreError> {
    let sql = format!("{COLUMNS} WHERE id = $1 AND removed IS NULL");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(id.as_str()).fetch_optional(&mut **tx).await?;
    record(&row.ok_or_else(|| unknown(id))?)
}

pub(super) fn unknown(id: &GatewayId) -> StoreError {
    not_found(format!("gateway {id}"))
}

fn record(row: &AnyRow) -> Result<GatewayRecord, StoreError> {
    let link = row.maybe_text("link_replica")?.map(|replica| {
        Ok::<_, StoreError>(LinkRecord {
            replica,
            epoch: row.unsigned("link_epoch")?,
            since: row.millis("link_since")?,
        })
    });
    Ok(GatewayRecord {
        id: row.parsed("id")?,
        labels: row.json("labels")?,
        admission: row.parsed("admission")?,
        joined: row.millis("joined")?,
        last_seen: row.maybe_number("last_seen")?.map(Millis),
        facts_json: row.maybe_text("facts")?,
        versions_json: row.maybe_text("versions")?,
        serial: row.text("serial")?,
        not_after: row.millis("not_after")?,
        generation: row.unsigned("generation")?,
        acknowledged_sequence: row.unsigned("acknowledged_sequence")?,
        link: link.transpose()?,
    })
}
