//! Databases of other releases: an older one keeps everything, a newer one is left alone.

use rookery_control_plane::{
    domain::{Millis, rollout::RolloutState},
    store::{Admission, JoinTokenRefusal, Store, StoreError, TransitionFilter},
};
use sqlx::{AnyConnection, Connection, Row};

use crate::support::{Db, Targets, digest, gateway, labels, model, next, on_both, prepared, rollout, target};

on_both!(everything_of_the_first_schema_is_kept, replicas_upgrade_once, a_newer_database_is_left_alone,);

/// Schema 1 with rows in every table, as the first release left it.
const FIRST: &str = include_str!("schema1.sql");
/// SHA-384 of the first step's text: it must never change.
const FIRST_CHECKSUM: &str = include_str!("schema1.checksum");
/// The last step that there is.
const KNOWN: i64 = 2;

async fn raw(db: &Db) -> AnyConnection {
    sqlx::any::install_default_drivers();
    let url = match db.url.strip_prefix("sqlite:") {
        Some(path) => format!("sqlite://{path}?mode=rwc"),
        None => db.url.clone(),
    };
    AnyConnection::connect(&url).await.unwrap()
}

/// Puts the first release's database there.
async fn restore(db: &Db) {
    let mut connection = raw(db).await;
    let checksum = FIRST_CHECKSUM.trim();
    let (bytes, literal) = if db.url.starts_with("sqlite:") {
        ("BLOB", format!("x'{checksum}'"))
    } else {
        ("BYTEA", format!("'\\x{checksum}'::bytea"))
    };
    // sqlx's own table is the one thing that differs between the databases.
    let applied = format!(
        "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL, installed_on TIMESTAMP \
         NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL, checksum {bytes} NOT NULL, \
         execution_time BIGINT NOT NULL); \
         INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (1, 'fleet', TRUE, {literal}, 1);"
    );
    sqlx::raw_sql(FIRST).execute(&mut connection).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(applied)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn version(db: &Db) -> i64 {
    let mut connection = raw(db).await;
    let row =
        sqlx::query("SELECT MAX(version) AS found FROM _sqlx_migrations").fetch_one(&mut connection).await;
    let found = row.unwrap().get("found");
    connection.close().await.unwrap();
    found
}

async fn everything_of_the_first_schema_is_kept(db: &Db) {
    restore(db).await;
    assert_eq!(version(db).await, 1);
    let store = db.open().await;
    assert_eq!(version(db).await, KNOWN);

    let chat = model("org/chat");
    let versions = store.versions(None).await.unwrap();
    assert_eq!(versions.len(), 2);
    let second = &versions[0];
    assert_eq!((&second.model, second.version.as_str(), &second.digest), (&chat, "v2", &digest(2)));
    assert_eq!(second.signatures[0].signature, vec![7; 64]);
    assert_eq!(second.aliases[0].as_str(), "stable");
    assert_eq!(store.referenced_blobs().await.unwrap().len(), 7);

    let gateways = store.gateways().await.unwrap();
    assert_eq!(gateways.len(), 2, "the removed one stays removed");
    let first = &gateways[0];
    assert_eq!((&first.id, first.admission, first.generation), (&gateway(0), Admission::Cordoned, 2));
    assert_eq!((&first.labels, first.acknowledged_sequence), (&labels(&[("site", "berlin")]), 2));
    assert_eq!(first.link.as_ref().unwrap().epoch, 3);
    assert!(store.is_revoked("serial-2").await.unwrap() && !store.is_revoked("serial-0").await.unwrap());

    let kept = store.rollouts(false, 10).await.unwrap();
    assert_eq!(kept.len(), 2);
    let (running, done) = (&kept[0], &kept[1]);
    assert_eq!((running.plan.state, running.plan.generation), (RolloutState::Running, 2));
    assert_eq!(running.plan.targets, Targets::from([(gateway(0), target(Some(2), Some(1)))]));
    assert_eq!((done.plan.state, running.traceparent.as_str()), (RolloutState::Done, ""));
    assert_eq!(store.plans(&running.id).await.unwrap().len(), 2);
    let filter = TransitionFilter { gateway: None, rollout: Some(running.id.clone()) };
    assert_eq!(store.transitions(&filter, 10).await.unwrap().len(), 1);
    assert_eq!(store.transitions(&TransitionFilter::default(), 10).await.unwrap().len(), 2);
    assert_eq!(store.token_by_hash("hash-a").await.unwrap().unwrap().role, "admin");
    let replayed = store.take_join_token("hash-j", &gateway(0), Millis(0)).await;
    assert!(matches!(replayed, Err(StoreError::JoinToken(JoinTokenRefusal::Replayed))), "{replayed:?}");
    assert_eq!(store.secret("authority").await.unwrap().as_deref(), Some("key"));
    assert_eq!(store.keys().await.unwrap()[0].public_key, vec![9; 32]);
    assert_eq!(store.audit_entries(10).await.unwrap().len(), 2);

    // And it goes on from there: who owns what is still known.
    let taken = store.create_rollout(&rollout(9, 2, &[0])).await;
    assert!(matches!(taken, Err(StoreError::Overlaps { .. })), "{taken:?}");
    let plan = next(&running.plan, RolloutState::Done, running.plan.targets.clone());
    store.advance(&plan, 2, &[]).await.unwrap();
    store.close().await;
    assert_eq!(db.open().await.rollout(&running.id.0).await.unwrap().plan, plan);
}

async fn replicas_upgrade_once(db: &Db) {
    restore(db).await;
    let (one, two) = tokio::join!(Store::open(&db.url), Store::open(&db.url));
    assert_eq!(one.unwrap().gateways().await.unwrap(), two.unwrap().gateways().await.unwrap());
    assert_eq!(version(db).await, KNOWN);
}

async fn a_newer_database_is_left_alone(db: &Db) {
    let store = prepared(db, 1).await;
    store.close().await;
    let mut connection = raw(db).await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
        SELECT 900, 'of a later release', success, checksum, 1 FROM _sqlx_migrations WHERE version = 1";
    sqlx::raw_sql(newer).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();

    let refused = Store::open(&db.url).await.unwrap_err();
    assert!(matches!(refused, StoreError::Newer { found: 900, known: KNOWN }), "{refused:?}");
    let said = refused.to_string();
    assert!(said.contains("900") && said.contains("newer program"), "{said}");

    let mut connection = raw(db).await;
    sqlx::raw_sql("DELETE FROM _sqlx_migrations WHERE version = 900").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    assert_eq!(db.open().await.gateways().await.unwrap().len(), 1, "nothing was lost by the refusal");
}
