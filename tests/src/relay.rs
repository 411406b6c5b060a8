//! A relay between a gateway and its control plane, which breaks the connection at a chosen byte: a gateway that dies.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::fleet::ANY_PORT;

/// Passes connections on to one address until dropped.
pub struct Relay {
    address: SocketAddr,
    state: Arc<State>,
    _task: JoinSet<()>,
}

struct State {
    /// Where new connections go.
    target: Mutex<SocketAddr>,
    /// Bytes from the dialling side that still pass.
    left: AtomicI64,
    severed: AtomicU32,
}

/// More than ever passes.
const UNLIMITED: i64 = i64::MAX / 2;

impl Relay {
    /// A relay to `target`.
    ///
    /// # Errors
    /// When no port is to be had.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(ANY_PORT)).await?;
        let address = listener.local_addr()?;
        let target = Mutex::new(target);
        let state = Arc::new(State { target, left: AtomicI64::new(UNLIMITED), severed: AtomicU32::new(0) });
        let shared = Arc::clone(&state);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(pass(socket, Arc::clone(&shared)));
            }
        });
        Ok(Self { address, state, _task: task })
    }

    /// Where to dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Passes new connections on to `target` from now on, as a load balancer does whose server has gone.
    pub fn redirect(&self, target: SocketAddr) {
        *self.state.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Breaks the connection after so many more bytes of the side that dialled. It may dial again, and is then left alone.
    pub fn sever_after(&self, bytes: u32) {
        self.state.left.store(bytes.into(), Ordering::SeqCst);
    }

    /// Takes the last order back.
    pub fn leave_alone(&self) {
        self.state.left.store(UNLIMITED, Ordering::SeqCst);
    }

    /// Connections broken so far.
    pub fn severed(&self) -> u32 {
        self.state.severed.load(Ordering::SeqCst)
    }
}

async fn pass(dialled: TcpStream, state: Arc<State>) {
    let target = *state.target.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(to) = TcpStream::connect(target).await else { return };
    // As the real ends do; else small frames would wait for each other.
    let _ = (dialled.set_nodelay(true), to.set_nodelay(true));
    let (mut from_worker, mut to_worker) = dialled.into_split();
    let (mut from_plane, mut to_plane) = to.into_split();
    // Whichever ends first drops both sockets.
    tokio::select! {
        () = count(&mut from_worker, &mut to_plane, &state) => {}
        _ = tokio::io::copy(&mut from_plane, &mut to_worker) => {}
    }
}

async fn count(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), state: &State) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let left = state.left.fetch_sub(read as i64, Ordering::SeqCst);
        if left <= read as i64 {
            let _ = to.write_all(&buffer[..left.max(0) as usize]).await;
            let _ = to.flush().await;
            state.left.store(UNLIMITED, Ordering::SeqCst);
            state.severed.fetch_add(1, Ordering::SeqCst);
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
