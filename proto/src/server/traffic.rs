//! The thread that moves a server's bytes.
//!
//! A token on its way through is a few bytes from an engine or a link, handed over by three tasks, and a few bytes to a client.
//! Threads that share such tasks wake each other for every one of them, which costs more than the tasks do. One thread takes
//! all the tokens that came together, and writes them together. What computes or blocks runs elsewhere.
//!
//! ```text
//!  link ─► one read ─► 16 frames ─► 16 answers ─► 16 frames ─► one write ─► client
//! ```

use std::{io, net::SocketAddr, thread};

use tokio::{
    net::TcpListener,
    runtime::{Builder, EnterGuard, Handle},
    sync::oneshot,
};

/// A thread with a runtime of its own. Dropping this ends it, and with it whatever still runs there.
pub struct TrafficThread {
    handle: Handle,
    _alive: oneshot::Sender<()>,
}

impl TrafficThread {
    /// A thread that waits for something to do.
    ///
    /// # Errors
    /// If the system gives no thread or nothing to wait with.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().thread_name("rookery-traffic").enable_all().build()?;
        let handle = runtime.handle().clone();
        let (alive, dropped) = oneshot::channel::<()>();
        thread::Builder::new().name("rookery-traffic".to_owned()).spawn(move || {
            // Nothing is ever sent.
            let _ = runtime.block_on(dropped);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _alive: alive })
    }

    /// Tasks that are spawned while the guard lives run on this thread, and so do those that they spawn.
    pub fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }

    /// A port whose connections this thread serves.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
        let bound = self.handle.spawn(TcpListener::bind(address)).await;
        let listener = bound.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use tokio::sync::mpsc;

    use super::*;
    use crate::server::{OnPanic, Tasks};

    #[tokio::test]
    async fn what_is_spawned_inside_runs_on_the_thread_and_ends_with_it() {
        let (traffic, tasks) = (TrafficThread::start().unwrap(), Tasks::new());
        let (names, mut seen) = mpsc::channel(2);
        {
            let _inside = traffic.enter();
            let inner = tasks.clone();
            tasks.spawn("outer", OnPanic::Log, async move {
                let name = || thread::current().name().map(str::to_owned);
                names.send(name()).await.unwrap();
                inner.spawn("inner", OnPanic::Log, async move { names.send(name()).await.unwrap() });
            });
            tasks.spawn("endless", OnPanic::Log, pending());
        }
        for _ in 0..2 {
            assert_eq!(seen.recv().await.unwrap().as_deref(), Some("rookery-traffic"));
        }
        let (listener, address) = traffic.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let taken = traffic.listen(address).await.unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        drop(traffic);
        assert!(tasks.finish(Duration::from_secs(5)).await, "the endless task ends with the thread");
    }
}
