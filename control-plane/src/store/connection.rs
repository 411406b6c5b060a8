//! Connections and transactions, and what the two databases need to behave alike.
//!
//! | | SQLite | PostgreSQL |
//! |---|---|---|
//! | one writer at a time | one connection writes, `BEGIN IMMEDIATE` against other processes | an advisory lock, held to the end of the transaction |
//! | durable when confirmed | write-ahead log, `synchronous = FULL` | `synchronous_commit` is not off |
//! | a reader's consistent view | snapshot of the write-ahead log | `REPEATABLE READ` |
//! | waits have an end | `busy_timeout`, the pool's | `lock_timeout`, `statement_timeout`, the pool's |

use std::{
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use sqlx::{
    Any, AnyConnection, AnyPool, Transaction,
    any::{AnyConnectOptions, AnyPoolOptions},
};

use super::StoreError;

/// Longest wait for a free connection.
const ACQUIRE: Duration = Duration::from_secs(30);
/// How often a lock of SQLite is waited for, each time for its `busy_timeout`.
const BUSY_TRIES: u32 = 3;
/// A session with SQLite: how long it waits for another process's lock, when it is durable, how large its log may stay.
const SQLITE: &str =
    "PRAGMA busy_timeout = 10000; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 67108864";
/// Bounds of a session with PostgreSQL. A replica that stalls in a transaction loses it, and with it the lock.
const POSTGRES: &str = "SET lock_timeout = '10s'; SET statement_timeout = '30s'; \
    SET idle_in_transaction_session_timeout = '30s'; \
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";
/// Connections that read. Readers do not wait for writers.
const READERS: u32 = 6;
/// Connections that write to PostgreSQL; most wait for the lock.
const WRITERS: u32 = 4;
/// Key of the lock of writers: "rookery" in ASCII.
const WRITE_LOCK: i64 = 0x72_6f_6f_6b_65_72_79;
/// Key of the lock of migrations.
const MIGRATION_LOCK: i64 = WRITE_LOCK + 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sqlite,
    Postgres,
}

/// What a write may not run beside. SQLite has one writer at a time anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// Anything that rests on more than one row: nothing else of this kind runs at the same time.
    All,
    /// Changes to single rows, which begin with the change that locks the row. Several rows: sorted by id.
    Row,
}

/// The pools of one database.
#[derive(Clone, Debug)]
pub(super) struct Database {
    kind: Kind,
    readers: AnyPool,
    writers: AnyPool,
}

/// A transaction; rolled back unless committed.
pub(super) struct Tx(Transaction<'static, Any>);

impl Tx {
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        Ok(self.0.commit().await?)
    }
}

impl Deref for Tx {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.0
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.0
    }
}

impl Database {
    pub(super) async fn connect(url: &str) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let database = if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.starts_with(':') {
                return Err(unsound(url));
            }
            let path = Path::new(path);
            create(path)?;
            Self {
                kind: Kind::Sqlite,
                readers: pool(Kind::Sqlite, &sqlite_url(path), READERS)?,
                writers: pool(Kind::Sqlite, &sqlite_url(path), 1)?,
            }
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Self {
                kind: Kind::Postgres,
                readers: pool(Kind::Postgres, url, READERS)?,
                writers: pool(Kind::Postgres, url, WRITERS)?,
            }
        } else {
            return Err(unsound(url));
        };
        if database.kind == Kind::Sqlite {
            database.write_ahead().await?;
        }
        Ok(database)
    }

    /// Lasts: the file remembers it. Others that open the file at the same moment make it fail at once, without a wait.
    async fn write_ahead(&self) -> Result<(), StoreError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut connection = self.writers.acquire().await?;
            match sqlx::raw_sql("PRAGMA journal_mode = WAL").execute(&mut *connection).await {
                Ok(_) => return Ok(()),
                Err(error) if is_busy(&error) && tries < 100 => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A connection for a single statement that reads.
    pub(super) fn reader(&self) -> &AnyPool {
        &self.readers
    }

    /// A transaction in which all statements read the same state.
    pub(super) async fn snapshot(&self) -> Result<Tx, StoreError> {
        let begin = match self.kind {
            Kind::Sqlite => "BEGIN",
            Kind::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        Ok(Tx(self.readers.begin_with(begin).await?))
    }

    /// A transaction that writes.
    pub(super) async fn write(&self, lock: Lock) -> Result<Tx, StoreError> {
        let mut tx = self.begin().await?;
        if self.kind == Kind::Postgres && lock == Lock::All {
            hold(&mut tx, WRITE_LOCK).await?;
        }
        Ok(tx)
    }

    /// A transaction that changes the schema, with time to do it and to wait for another replica that does.
    pub(super) async fn begin_migration(&self) -> Result<Tx, StoreError> {
        let mut tx = self.begin().await?;
        if self.kind == Kind::Postgres {
            sqlx::raw_sql("SET LOCAL lock_timeout = '10min'; SET LOCAL statement_timeout = '1h'")
                .execute(&mut *tx)
                .await?;
            hold(&mut tx, MIGRATION_LOCK).await?;
            // Not beside a write either.
            hold(&mut tx, WRITE_LOCK).await?;
        }
        Ok(tx)
    }

    async fn begin(&self) -> Result<Tx, StoreError> {
        let begin = match self.kind {
            Kind::Sqlite => "BEGIN IMMEDIATE",
            Kind::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED",
        };
        let mut tries = 0;
        loop {
            tries += 1;
            match self.writers.begin_with(begin).await {
                Ok(tx) => return Ok(Tx(tx)),
                // Another process writes. SQLite has waited in between.
                Err(error) if is_busy(&error) && tries < BUSY_TRIES => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.writers.close().await;
    }
}

async fn hold(tx: &mut Tx, key: i64) -> Result<(), StoreError> {
    // At READ COMMITTED each statement sees what was committed before it, so all after this one see the writer before.
    // The function's result is of type void, which has no counterpart here.
    sqlx::query("SELECT CAST(pg_advisory_xact_lock($1) AS TEXT)").bind(key).execute(&mut **tx).await?;
    Ok(())
}

fn pool(kind: Kind, url: &str, most: u32) -> Result<AnyPool, StoreError> {
    let options = AnyConnectOptions::from_str(url)?;
    let set_up = match kind {
        Kind::Sqlite => SQLITE,
        Kind::Postgres => POSTGRES,
    };
    Ok(AnyPoolOptions::new()
        .max_connections(most)
        .acquire_timeout(ACQUIRE)
        // A file is there or it is not; a server may have restarted.
        .test_before_acquire(kind == Kind::Postgres)
        .after_connect(move |connection, _| {
            Box::pin(async move { sqlx::raw_sql(set_up).execute(connection).await.map(drop) })
        })
        .connect_lazy_with(options))
}

/// Makes the file if there is none. It holds the authority's key: nobody else may read it. SQLite gives its other files the
/// same mode.
fn create(path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::File { path: PathBuf::from(path), source };
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop).map_err(failed)
}

/// The URL of a file whatever its name: `?`, `#` and `%` mean something in URLs.
fn sqlite_url(path: &Path) -> String {
    let mut url = "sqlite://".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                url.push(char::from(*byte))
            }
            other => url.push_str(&format!("%{other:02X}")),
        }
    }
    url
}

/// A URL that makes no sense, without what might be a password.
fn unsound(url: &str) -> StoreError {
    let scheme = url.split_once(':').map_or(url, |(scheme, _)| scheme);
    StoreError::Url { url: format!("{}:…", scheme.chars().take(32).collect::<String>()) }
}

/// Whether SQLite's file is locked by another process: SQLITE_BUSY in one of its forms.
fn is_busy(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.code()?.parse::<u32>().ok())
        .is_some_and(|code| code & 0xff == 5)
}

#[cfg(test)]
mod tests {
    use sqlx::Row;

    use super::*;

    #[tokio::test]
    async fn every_connection_to_sqlite_is_durable_and_waits() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("state.db").display());
        let database = Database::connect(&url).await.unwrap();
        for pool in [&database.readers, &database.writers] {
            for (pragma, expected) in [
                ("SELECT journal_mode AS kept FROM pragma_journal_mode", "wal"),
                ("SELECT CAST(synchronous AS TEXT) AS kept FROM pragma_synchronous", "2"),
                ("SELECT CAST(timeout AS TEXT) AS kept FROM pragma_busy_timeout", "10000"),
            ] {
                let row = sqlx::query(pragma).fetch_one(pool).await;
                assert_eq!(row.unwrap().get::<String, _>("kept"), expected, "{pragma}");
            }
        }
    }

    #[test]
    fn paths_become_urls_whatever_is_in_them() {
        assert_eq!(sqlite_url(Path::new("/a b/c?d#e%f.db")), "sqlite:///a%20b/c%3Fd%23e%25f.db");
        assert_eq!(sqlite_url(Path::new("state.db")), "sqlite://state.db");
    }
}
