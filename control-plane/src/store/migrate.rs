//! Brings a schema up to date.
//!
//! All steps run in one transaction behind one lock: of several replicas that start at once, one does the work and the others
//! find it done, and a step that fails leaves the database as it was. Steps never change once released; they only add, so
//! that replicas of the release before go on working during an upgrade.

use std::borrow::Cow;

use sqlx::{
    AnyConnection, Row, SqlSafeStr,
    migrate::{Migrate, Migration, MigrationType, Migrator},
};

use super::{StoreError, connection::Database};

/// What has been applied, in sqlx's own form.
const TABLE: &str = "_sqlx_migrations";

fn migrator() -> Migrator {
    let step = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(vec![
        step(1, "fleet", include_str!("../../migrations/0001_fleet.sql")),
        step(2, "rollout traces", include_str!("../../migrations/0002_rollout_traces.sql")),
    ]);
    // The transaction's own lock is enough, and works the same for both databases.
    migrator.set_locking(false);
    migrator
}

/// Applies the steps that are missing. On [`StoreError::Newer`] nothing has been touched.
pub(super) async fn run(database: &Database) -> Result<(), StoreError> {
    let mut tx = database.begin_migration().await?;
    let connection: &mut AnyConnection = &mut tx;
    let migrator = migrator();
    let known = migrator.iter().map(|step| step.version).max().unwrap_or(0);
    connection.ensure_migrations_table(TABLE).await.map_err(StoreError::Migrate)?;
    let row =
        sqlx::query("SELECT MAX(version) AS found FROM _sqlx_migrations").fetch_one(&mut *connection).await?;
    let found: i64 = row.try_get::<Option<i64>, _>("found")?.unwrap_or(0);
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    if found < known {
        migrator.run_direct(None, connection, false).await.map_err(StoreError::Migrate)?;
        tracing::info!(from = found, to = known, "the database's schema is up to date");
    }
    tx.commit().await?;
    Ok(())
}
