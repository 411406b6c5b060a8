use rookery_control_plane::store::{Store, StoreError};
use tokio::task::JoinSet;

use crate::support::{Db, on_both};

on_both!(replicas_that_start_at_once_make_one_schema, what_was_written_is_there_again);

async fn replicas_that_start_at_once_make_one_schema(db: &Db) {
    let mut replicas = JoinSet::new();
    for _ in 0..6 {
        let url = db.url.clone();
        replicas.spawn(async move { Store::open(&url).await });
    }
    while let Some(opened) = replicas.join_next().await {
        opened.unwrap().unwrap().audit("ada", "start", "replica", "").await.unwrap();
    }
    assert_eq!(db.open().await.audit_entries(100).await.unwrap().len(), 6);
}

async fn what_was_written_is_there_again(db: &Db) {
    let store = crate::support::prepared(db, 1).await;
    store.close().await;
    assert!(matches!(store.gateways().await, Err(StoreError::Database(_))), "closed is closed");
    assert_eq!(db.open().await.gateways().await.unwrap().len(), 1);
}

#[tokio::test]
async fn urls_that_make_no_sense_are_refused_without_their_password() {
    for url in ["", "state.db", "mysql://root:secret@host/db", "sqlite:", "sqlite::memory:"] {
        let refused = Store::open(url).await.unwrap_err();
        assert!(matches!(refused, StoreError::Url { .. }), "{url}: {refused:?}");
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }
    let nowhere = Store::open("sqlite:/nowhere/at/all/state.db").await.unwrap_err();
    assert!(matches!(nowhere, StoreError::File { .. }), "{nowhere:?}");
}

#[tokio::test]
async fn a_file_may_have_any_name_and_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    for name in ["plain.db", "a b?mode=memory#x%41 ü.db"] {
        let path = folder.path().join(name);
        let store = Store::open(&format!("sqlite:{}", path.display())).await.unwrap();
        store.audit("ada", "start", "replica", "").await.unwrap();
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(path.is_file());
    }
}
