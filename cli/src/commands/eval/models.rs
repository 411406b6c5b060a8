//! Models from wherever they lie, as subjects of an evaluation.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rookery_kernels::KvType;
use rookery_model::bundle::Bundle;
use rookery_model::source::{self, ModelSource};
use rookery_quantizer::eval::{Model, Subject};

use super::Setting;
use crate::commands::worker::KvCacheFlag;
use crate::error::{Failure, OrFail};
use crate::progress::TerminalProgress;

/// A model that was opened.
pub(super) struct Opened {
    /// Its file's or folder's.
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) form: Form,
}

/// What it is.
pub(super) enum Form {
    Bundle(Arc<Bundle>),
    Source(Box<dyn ModelSource>),
}

impl Opened {
    /// Opens a bundle folder, a Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// When it is none of them, or damaged.
    pub(super) fn open(path: impl AsRef<Path>) -> Result<Self, Failure> {
        let path = path.as_ref();
        let doing = || format!("could not open {}", path.display());
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = file.unwrap_or_else(|| path.display().to_string());
        // Every bundle has this file, and nothing else does.
        if path.join("oci-layout").exists() {
            let bundle = Bundle::open(path, &TerminalProgress::new()).or_fail(doing)?;
            let size_bytes = bundle.info().total_bytes;
            return Ok(Self { name, size_bytes, form: Form::Bundle(bundle) });
        }
        let source = source::open(path).or_fail(doing)?;
        let size_bytes = size(path).or_fail(doing)?;
        Ok(Self { name, size_bytes, form: Form::Source(source) })
    }

    /// One subject for each type of cache; a source has none.
    pub(super) fn subjects<'a>(&'a self, setting: &Setting, caches: &[KvCacheFlag]) -> Vec<Subject<'a>> {
        match &self.form {
            Form::Source(_) => vec![self.subject(setting, KvCacheFlag::F16)],
            Form::Bundle(_) => caches.iter().map(|cache| self.subject(setting, *cache)).collect(),
        }
    }

    pub(super) fn subject(&self, setting: &Setting, cache: KvCacheFlag) -> Subject<'_> {
        let model = match &self.form {
            Form::Source(source) => Model::Source(source.as_ref()),
            Form::Bundle(bundle) => Model::Bundle {
                bundle,
                backend: setting.backends.backend(setting.kernels),
                kv_type: kv_type(cache),
            },
        };
        Subject { name: self.name.clone(), size_bytes: self.size_bytes, model }
    }
}

/// The engine's name for it.
pub(super) fn kv_type(cache: KvCacheFlag) -> KvType {
    match cache {
        KvCacheFlag::F16 => KvType::F16,
        KvCacheFlag::Int8 => KvType::Int8,
    }
}

/// Bytes of a file, or of all files of a folder and the folders in it.
fn size(path: &Path) -> std::io::Result<u64> {
    let (mut bytes, mut open) = (0, vec![PathBuf::from(path)]);
    while let Some(path) = open.pop() {
        // Of a link, what it points to: caches of Hugging Face's tools are full of them.
        let metadata = std::fs::metadata(&path)?;
        if metadata.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?;
                // A link to a folder may lead back here.
                if !(entry.file_type()?.is_symlink() && entry.path().is_dir()) {
                    open.push(entry.path());
                }
            }
        } else {
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}
