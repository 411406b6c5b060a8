//! Peers that take their time: each stage has a limit, and all of them together leave room for others.

use std::time::{Duration, Instant};

use rookery_proto::tls::{ALPN_H2, ALPN_LINK};
use rookery_tests::within;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::{
    gateway::{Behaviour, Dialled},
    world::{LIMIT, World},
};

/// More than the port takes before a certificate is shown.
const MANY: usize = 20;

/// How long a batch may be held: those that had to wait for a place got theirs after the first ones had lost it.
const AT_MOST: Duration = LIMIT.saturating_mul(8);

#[tokio::test]
async fn who_says_nothing_before_tls_loses_the_place() {
    let world = World::start().await;
    for address in [world.plane().link_address(), world.plane().address()] {
        let began = Instant::now();
        let mut silent = JoinSet::new();
        for number in 0..MANY {
            let mut socket = TcpStream::connect(address).await.unwrap();
            silent.spawn(async move {
                // Some begin a handshake and stop in the middle of the first record.
                if number % 2 == 0 {
                    socket.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap();
                }
                let mut answer = Vec::new();
                let _ = socket.read_to_end(&mut answer).await;
            });
        }
        // Those who are linked notice nothing, and who comes later gets a turn.
        assert_eq!(world.generate().await.gateway(), "healthy");
        within("all are hung up on", silent.join_all()).await;
        assert!(began.elapsed() < AT_MOST, "{:?}", began.elapsed());
    }
    assert_eq!(world.told("handshake").await, 1, "however many there were");
    assert_eq!(world.told("crowded").await, 1, "and however many had to make room");
    world.join("later").await;
    world.stop().await;
}

#[tokio::test]
async fn who_says_nothing_after_tls_loses_the_place() {
    let world = World::start().await;
    let (_, joined) = world.join("slow").await;
    let began = Instant::now();
    let mut silent = JoinSet::new();
    // No HTTP/2 at all: as a link, as a caller, and as a caller without a certificate.
    for number in 0..MANY {
        let alpn = if number % 2 == 0 { ALPN_LINK } else { ALPN_H2 };
        let credentials = (number % 4 != 1).then(|| joined.clone());
        // With all places taken, the handshake itself has to be tried again.
        let mut stream = loop {
            if let Ok(stream) = world.dial(alpn, credentials.clone()).await {
                break stream;
            }
        };
        silent.spawn(async move {
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
        });
    }
    assert_eq!(world.generate().await.gateway(), "healthy");
    within("all are hung up on", silent.join_all()).await;
    assert!(began.elapsed() < AT_MOST, "{:?}", began.elapsed());
    world.until_linked(&["healthy"]).await;
    world.stop().await;
}

#[tokio::test]
async fn who_never_says_who_it_is_loses_the_link() {
    let world = World::start().await;
    let (_, joined) = world.join("slow").await;
    let began = Instant::now();
    let mut links = Vec::new();
    for _ in 0..MANY {
        links.push(Dialled::link(&world, joined.clone(), "slow", Behaviour::Silent).await);
    }
    assert_eq!(world.generate().await.gateway(), "healthy");
    for link in links {
        within("a silent link ends", link.ended()).await;
    }
    assert!(began.elapsed() < AT_MOST, "{:?}", began.elapsed());
    assert_eq!(world.told("link").await, 1);
    let link = Dialled::link(&world, joined, "slow", Behaviour::Fine).await;
    world.until_linked(&["healthy", "slow"]).await;
    drop(link);
    world.stop().await;
}
