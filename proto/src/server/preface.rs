//! Reads the HTTP/2 connection preface under a time limit, before any memory is spent on the peer.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::timeout,
};

/// What every HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The peer does not speak HTTP/2.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrefaceError {
    #[error("no HTTP/2 preface within {0:?}")]
    TimedOut(Duration),
    #[error("cannot read the HTTP/2 preface")]
    Read(#[source] io::Error),
    #[error("the peer does not speak HTTP/2")]
    NotHttp2,
}

pin_project_lite::pin_project! {
    /// A stream whose preface was read and will be read again by the HTTP/2 implementation.
    pub(super) struct Checked<S> {
        replayed: usize,
        #[pin]
        stream: S,
    }
}

/// Waits for the preface, at most for `limit`.
pub(super) async fn check<S: AsyncRead + Unpin>(
    mut stream: S,
    limit: Duration,
) -> Result<Checked<S>, PrefaceError> {
    let mut bytes = [0; PREFACE.len()];
    timeout(limit, async {
        // Compared as it arrives, so that a peer that sends something else is not waited for.
        let mut read = 0;
        while read < bytes.len() {
            let count = stream.read(&mut bytes[read..]).await.map_err(PrefaceError::Read)?;
            read += count;
            if count == 0 || bytes[..read] != PREFACE[..read] {
                return Err(PrefaceError::NotHttp2);
            }
        }
        Ok(())
    })
    .await
    .map_err(|_| PrefaceError::TimedOut(limit))??;
    Ok(Checked { replayed: 0, stream })
}

impl<S: AsyncRead> AsyncRead for Checked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        let left = &PREFACE[*this.replayed..];
        if left.is_empty() {
            return this.stream.poll_read(cx, buffer);
        }
        let count = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..count]);
        *this.replayed += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite> AsyncWrite for Checked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.project().stream.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().stream.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn the_preface_is_replayed_in_any_pieces() {
        let (mut peer, ours) = tokio::io::duplex(64);
        peer.write_all(PREFACE).await.unwrap();
        peer.write_all(b"rest").await.unwrap();
        let mut checked = check(ours, LIMIT).await.unwrap();
        let mut all = Vec::new();
        while all.len() < 28 {
            let mut piece = [0; 5];
            let count = checked.read(&mut piece).await.unwrap();
            all.extend_from_slice(&piece[..count]);
        }
        assert_eq!(all, [&PREFACE[..], b"rest"].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn others_are_refused_at_once_and_silence_in_time() {
        let (mut peer, ours) = tokio::io::duplex(64);
        peer.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        assert!(matches!(check(ours, LIMIT).await, Err(PrefaceError::NotHttp2)));
        let (mut peer, ours) = tokio::io::duplex(64);
        peer.write_all(&PREFACE[..10]).await.unwrap();
        assert!(matches!(check(ours, LIMIT).await, Err(PrefaceError::TimedOut(_))));
    }
}
