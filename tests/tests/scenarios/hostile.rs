//! Peers that do not keep to the protocol, on every port.

use std::{net::SocketAddr, time::Duration};

use rookery_proto::v1::{self, generate_request::Input};
use rookery_tests::{
    client::{client, generate, text},
    fleet::{Fleet, until_linked},
    within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that look like noise and are the same in every run.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..count).map(|_| byte()).collect()
}

/// Sends `bytes` and reads until the peer closes; what it answers does not matter.
async fn send(address: SocketAddr, bytes: &[u8]) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    // The peer may have closed already, which is its right.
    let _ = socket.write_all(bytes).await;
    let _ = socket.shutdown().await;
    let mut answer = Vec::new();
    let _ = within("the peer closes", socket.read_to_end(&mut answer)).await;
}

#[tokio::test]
async fn noise_on_any_port_disturbs_nobody() {
    let fleet = Fleet::start(1).await.unwrap();
    let expected = generate(&fleet.client(), text("The rooks", 12)).await.unwrap();
    let ports = [
        fleet.control_plane.address(),
        fleet.control_plane.link_address(),
        fleet.workers[0].worker.address(),
    ];
    for seed in 0..12 {
        for port in ports {
            send(port, &noise(seed, 1 + 97 * seed as usize)).await;
            send(port, &[PREFACE, &noise(seed, 500)].concat()).await;
            // A server's side of HTTP/2, for the port whose clients are servers: empty settings, then noise.
            send(port, &[&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], &noise(seed, 300)].concat()).await;
        }
    }
    send(ports[0], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    until_linked(&fleet.control_plane, 1).await;
    let again = generate(&fleet.client(), text("The rooks", 12)).await.unwrap();
    assert_eq!(again.token_ids, expected.token_ids);
    fleet.stop().await;
}

#[tokio::test]
async fn peers_that_say_nothing_are_closed() {
    let quick = Duration::from_millis(300);
    let settings = |settings: &mut rookery_tests::fleet::WorkerSettings| {
        settings.config.server.handshake_timeout = quick;
    };
    let edit = |config: &mut rookery_control_plane::config::ControlPlaneConfig| {
        config.server.handshake_timeout = quick;
        config.link.handshake_timeout = quick;
    };
    let fleet = Fleet::start_with(1, edit, settings).await.unwrap();
    let ports = [
        fleet.control_plane.address(),
        fleet.control_plane.link_address(),
        fleet.workers[0].worker.address(),
    ];
    for port in ports {
        for said in [&b""[..], &PREFACE[..11]] {
            let mut socket = TcpStream::connect(port).await.unwrap();
            socket.write_all(said).await.unwrap();
            let mut answer = Vec::new();
            let _ = within("a silent peer is closed", socket.read_to_end(&mut answer)).await;
        }
    }
    generate(&fleet.client(), text("x", 1)).await.unwrap();
    fleet.stop().await;
}

#[tokio::test]
async fn messages_that_are_too_large_are_refused() {
    let fleet = Fleet::start(1).await.unwrap();
    for address in [fleet.control_plane.address(), fleet.workers[0].worker.address()] {
        let large = v1::GenerateRequest { input: Some(Input::Text("x".repeat(2 << 20))), ..text("", 1) };
        let error = generate(&client(address), large).await.unwrap_err();
        assert_eq!(error.code(), Code::OutOfRange, "{error:?}");
        // Just inside the limit: read, tokenised off the async threads, and found too long.
        let long = v1::GenerateRequest { input: Some(Input::Text("x ".repeat(500_000))), ..text("", 1) };
        let error = generate(&client(address), long).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        generate(&client(address), text("x", 1)).await.unwrap();
    }
    fleet.stop().await;
}
