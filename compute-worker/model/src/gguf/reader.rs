//! Numbers and strings of a GGUF header, in order. Nothing is allocated for a length that the file cannot
//! hold.

use crate::source::ImportError;
use crate::source::bytes::Bytes;

/// Bytes fetched at once; headers are megabytes of short strings.
const WINDOW: usize = 1 << 16;

/// Where a header must end. The largest vocabularies take 15 MB; the bound is on the memory that hostile
/// arrays of small numbers cost once widened.
const HEADER_LIMIT: u64 = 1 << 26;

/// A position in the header.
pub(super) struct Reader<'a> {
    bytes: &'a Bytes,
    /// Bytes `window_start..window_start + window.len()` of the file.
    window: Vec<u8>,
    window_start: u64,
    position: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a Bytes) -> Self {
        Self { bytes, window: Vec::new(), window_start: 0, position: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes left in the file, or up to the header's limit.
    pub(super) fn remaining(&self) -> u64 {
        self.bytes.len().min(HEADER_LIMIT) - self.position
    }

    pub(super) fn array<const N: usize>(&mut self, place: &str) -> Result<[u8; N], ImportError> {
        let mut out = [0; N];
        self.fill(&mut out, place)?;
        Ok(out)
    }

    pub(super) fn u8(&mut self, place: &str) -> Result<u8, ImportError> {
        Ok(self.array::<1>(place)?[0])
    }

    pub(super) fn u32(&mut self, place: &str) -> Result<u32, ImportError> {
        self.array(place).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, place: &str) -> Result<u64, ImportError> {
        self.array(place).map(u64::from_le_bytes)
    }

    /// A count of things of at least `least_bytes` each, checked against what is left of the file.
    pub(super) fn count(&mut self, least_bytes: u64, place: &str) -> Result<usize, ImportError> {
        let count = self.u64(place)?;
        let room = self.remaining() / least_bytes;
        if count > room {
            let fault = format!("count {count} where the rest of the header has room for {room}");
            return Err(ImportError::malformed(place, fault));
        }
        usize::try_from(count)
            .map_err(|_| ImportError::malformed(place, format!("count {count} does not fit memory")))
    }

    /// A length and that many bytes of UTF-8.
    pub(super) fn string(&mut self, place: &str) -> Result<String, ImportError> {
        let len = self.count(1, place)?;
        let mut out = vec![0; len];
        self.fill(&mut out, place)?;
        String::from_utf8(out).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            ImportError::malformed(place, format!("string is not UTF-8 at byte {at}"))
        })
    }

    fn fill(&mut self, out: &mut [u8], place: &str) -> Result<(), ImportError> {
        let (needed, left) = (out.len(), self.remaining());
        if needed as u64 > left {
            let fault = format!("the header is cut off: {needed} bytes needed, {left} left");
            return Err(ImportError::malformed(place, fault));
        }
        if needed >= WINDOW {
            self.bytes.read_at(self.position, out)?;
        } else {
            let start = self.window_at(needed)?;
            out.copy_from_slice(&self.window[start..start + needed]);
        }
        self.position += needed as u64;
        Ok(())
    }

    /// Where in the window the position is, after making sure that `needed` bytes from it on are there.
    fn window_at(&mut self, needed: usize) -> Result<usize, ImportError> {
        let inside = self.position >= self.window_start
            && self.position + needed as u64 <= self.window_start + self.window.len() as u64;
        if !inside {
            let len = self.remaining().min(WINDOW as u64);
            // Lossless: at most WINDOW.
            self.window.resize(len as usize, 0);
            self.bytes.read_at(self.position, &mut self.window)?;
            self.window_start = self.position;
        }
        Ok((self.position - self.window_start) as usize)
    }
}
