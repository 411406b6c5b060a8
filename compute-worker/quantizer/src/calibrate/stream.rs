//! The residual stream on disk, so that an interrupted pass can go on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::pack::QuantizeError;

/// A folder with the residual stream before the layer that is being worked on.
#[derive(Debug)]
pub struct StreamStore {
    folder: PathBuf,
}

impl StreamStore {
    /// In `folder`, which exists.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn path(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("stream.{layer}"))
    }

    /// Keeps `x` as the stream before `layer`, in place of that before an earlier one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn keep(&self, layer: usize, x: &[f32]) -> io::Result<()> {
        let (path, unfinished) = (self.path(layer), self.folder.join("stream.unfinished"));
        if path.exists() {
            return Ok(());
        }
        let bytes: Vec<u8> = x.iter().flat_map(|value| value.to_le_bytes()).collect();
        fs::write(&unfinished, bytes)?;
        fs::rename(&unfinished, &path)?;
        if let Some(before) = layer.checked_sub(1) {
            let _ = fs::remove_file(self.path(before));
        }
        Ok(())
    }

    /// The latest stream before `layer` or an earlier one, if there is one of `values` values.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn latest(&self, layer: usize, values: usize) -> Result<Option<(usize, Vec<f32>)>, QuantizeError> {
        let Some((found, path)) =
            (1..=layer).rev().map(|layer| (layer, self.path(layer))).find(|(_, path)| path.exists())
        else {
            return Ok(None);
        };
        let bytes = fs::read(&path).map_err(|source| QuantizeError::Io { path, source })?;
        let (chunks, rest) = bytes.as_chunks::<4>();
        let complete = rest.is_empty() && chunks.len() == values;
        Ok(complete.then(|| (found, chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())))
    }
}
