//! What a control plane finds or makes in its state folder before it serves.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::ControlPlaneError;
use crate::{
    artifacts::Artifacts,
    config::{ArtifactsSection, StateSection},
    domain::Millis,
    store::{Store, StoreError, TokenRecord},
    trust::{Authority, BearerToken, Role},
};

/// Name of the token that the first start makes.
const FIRST_TOKEN: &str = "admin";

/// The folder, and all that it leads to.
pub(super) struct State {
    pub(super) folder: PathBuf,
    pub(super) store: Store,
    pub(super) artifacts: Artifacts,
    pub(super) authority: Authority,
    /// Deleted at the end.
    pub(super) temporary: Option<TempDir>,
    /// The file with a token for administrators, if this start made it.
    pub(super) first_token: Option<PathBuf>,
}

impl State {
    /// Opens everything, and makes what is missing.
    pub(super) async fn open(
        state: &StateSection,
        artifacts: &ArtifactsSection,
    ) -> Result<Self, ControlPlaneError> {
        let (folder, temporary) = match &state.folder {
            Some(folder) => {
                // What is in there is as good as every key.
                let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
                made.map_err(|source| file("make", folder, source))?;
                (folder.clone(), None)
            }
            None => {
                let made = tempfile::Builder::new().prefix("rookery-").tempdir();
                let made = made.map_err(|source| file("make", &std::env::temp_dir(), source))?;
                (made.path().to_owned(), Some(made))
            }
        };
        let database = format!("sqlite:{}", folder.join("rookery.db").display());
        let store = Store::open(state.url.as_deref().unwrap_or(&database)).await?;
        let opened = Self::with_store(folder, temporary, &store, artifacts).await;
        if opened.is_err() {
            store.close().await;
        }
        opened
    }

    async fn with_store(
        folder: PathBuf,
        temporary: Option<TempDir>,
        store: &Store,
        artifacts: &ArtifactsSection,
    ) -> Result<Self, ControlPlaneError> {
        let usual = folder.join("artifacts").display().to_string();
        let url = artifacts.url.as_deref().unwrap_or(&usual);
        let artifacts = Artifacts::open(url, &folder.join("uploads")).await?;
        let authority = Authority::open(store).await?;
        write(&folder.join("ca.pem"), authority.certificate_pem(), 0o644)?;
        let first_token = match temporary {
            None => first_token(store, &folder.join("admin-token")).await?,
            Some(_) => None,
        };
        Ok(Self { folder, store: store.clone(), artifacts, authority, temporary, first_token })
    }
}

/// Makes a token for administrators if there is no token at all: without one nobody could make the first. Who can write
/// the state folder can do everything anyway.
async fn first_token(store: &Store, path: &Path) -> Result<Option<PathBuf>, ControlPlaneError> {
    if !store.tokens().await?.is_empty() {
        return Ok(None);
    }
    let token = BearerToken::random()?;
    // First the file: a token that nobody knows would lock everybody out.
    write(path, &format!("{}\n", token.expose()), 0o600)?;
    let record = TokenRecord {
        name: FIRST_TOKEN.to_owned(),
        role: Role::Admin.to_string(),
        hash: token.hash(),
        created: Millis::now(),
        ends: None,
    };
    match store.put_token(&record, "control plane").await {
        Ok(()) => Ok(Some(path.to_owned())),
        // Another replica that starts was faster, and has written its own file.
        Err(StoreError::Exists { .. }) => {
            let _ = fs::remove_file(path);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes beside, then renames, so that nobody reads half of it.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), ControlPlaneError> {
    let new = path.with_extension("new");
    let written = fs::remove_file(&new)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) });
    let written = written.and_then(|()| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    });
    written.map_err(|source| file("write", path, source))
}

fn file(what: &'static str, path: &Path, source: io::Error) -> ControlPlaneError {
    ControlPlaneError::File { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::trust::hash_of;

    #[tokio::test]
    async fn the_first_start_makes_a_token_and_later_ones_find_everything() {
        let folder = tempfile::tempdir().unwrap();
        let section = StateSection { folder: Some(folder.path().join("state")), url: None };
        let open = async || State::open(&section, &ArtifactsSection::default()).await.unwrap();
        let first = open().await;
        let path = first.first_token.clone().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&first.folder).unwrap().permissions().mode() & 0o777, 0o700);
        let token = fs::read_to_string(&path).unwrap();
        let found = first.store.token_by_hash(&hash_of(token.trim())).await.unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.role.as_str()), ("admin", "admin"));
        let second = open().await;
        assert_eq!(second.first_token, None);
        assert_eq!(fs::read_to_string(&path).unwrap(), token);
        assert_eq!(second.authority.fingerprint(), first.authority.fingerprint());
        assert_eq!(
            fs::read_to_string(second.folder.join("ca.pem")).unwrap(),
            first.authority.certificate_pem()
        );
    }

    #[tokio::test]
    async fn without_a_folder_everything_is_temporary() {
        let state = State::open(&StateSection::default(), &ArtifactsSection::default()).await.unwrap();
        let folder = state.folder.clone();
        assert!(folder.join("rookery.db").exists() && state.first_token.is_none());
        state.store.close().await;
        drop(state);
        assert!(!folder.exists());
    }
}
