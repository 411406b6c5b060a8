//! The cache folder that runs share: downloads and packed bundles.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Neither `XDG_CACHE_HOME` nor `HOME` says where caches live.
    #[error("neither XDG_CACHE_HOME nor HOME is set to an absolute path, so there is no cache folder")]
    NoHome,
    /// A folder or lock file could not be made.
    #[error("could not use {path}")]
    Io {
        /// What was being made or locked.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// `$XDG_CACHE_HOME/rookery`, or `~/.cache/rookery`.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Finds the cache folder as the XDG base directory specification says: relative values are ignored.
    ///
    /// # Errors
    /// [`CacheError::NoHome`].
    pub fn locate() -> Result<Cache, CacheError> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .ok_or(CacheError::NoHome)?;
        Ok(Cache { root: base.join("rookery") })
    }

    /// A cache in this folder, for tests.
    pub fn at(root: PathBuf) -> Cache {
        Cache { root }
    }

    /// Downloaded models.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// Packed bundles.
    pub fn bundles(&self) -> PathBuf {
        self.root.join("bundles")
    }
}

/// Makes a folder and its parents.
///
/// # Errors
/// [`CacheError::Io`] with the path.
pub fn make_folder(path: &Path) -> Result<(), CacheError> {
    fs::create_dir_all(path).map_err(|source| CacheError::Io { path: path.to_owned(), source })
}

/// Holds a file lock; other processes wait. The operating system lets go of it however the holder dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Locks the hidden file `.<target>.lock` beside the target, calling `on_wait` once if another process holds it now.
    ///
    /// # Errors
    /// [`CacheError::Io`] with the path of the lock file.
    pub fn acquire(target: &Path, on_wait: impl FnOnce()) -> Result<Lock, CacheError> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = target.with_file_name(format!(".{name}.lock"));
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        let failed = |source| CacheError::Io { path: path.clone(), source };
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                on_wait();
                file.lock().map_err(failed)?;
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        Ok(Lock { _file: file })
    }
}

/// The path with text appended to its file name.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_waits_and_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("deep/model.gguf");
        let first = Lock::acquire(&target, || panic!("nobody holds it")).unwrap();
        let (waiting, is_waiting) = std::sync::mpsc::channel();
        let second = std::thread::spawn({
            let target = target.clone();
            move || Lock::acquire(&target, || waiting.send(()).unwrap()).map(drop)
        });
        is_waiting.recv().unwrap();
        drop(first);
        second.join().unwrap().unwrap();
    }
}
