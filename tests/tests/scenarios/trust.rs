//! Who is let in: over real sockets, with TLS and tokens on both ports, while a healthy gateway serves on.

mod gateway;
mod loris;
mod tokens;
mod world;

use std::time::Duration;

use rookery_proto::{
    status::{Reason, reason_of},
    tls::{ALPN_H2, ALPN_LINK, Credentials, Trust},
    v1::{self, artifact_service_client::ArtifactServiceClient},
};
use rookery_tests::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use gateway::{Behaviour, Dialled};
use rookery_control_plane::{domain::Millis, store::NewJoinToken, trust::Authority};
use world::{LIMIT, World, key, request_of};

#[tokio::test]
async fn a_join_token_lets_in_whom_it_is_for() {
    let world = World::start().await;
    let good = world.token(1, Duration::from_secs(60)).await;
    let enrol = async |token: &str, id: &str, key: &rcgen::KeyPair| world.enrol(token, id, key).await;
    let (first, second) = (key(), key());

    // Wrong in every way that a text can be wrong.
    let other = world.plane().authority().join_token().unwrap().0.expose();
    for text in ["", "nonsense", "rk1.a.b.c", &other] {
        let status = enrol(text, "gw-1", &first).await.unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::Unauthenticated), "{text}: {status:?}");
    }
    let (old, hash) = world.plane().authority().join_token().unwrap();
    let ends = Millis(Millis::now().0 - 1);
    let expired = NewJoinToken { hash, ends, uses: 5, labels: Default::default() };
    world.plane().store().put_join_token(&expired, "test").await.unwrap();
    let status = enrol(&old.expose(), "gw-1", &first).await.unwrap_err();
    assert!(
        reason_of(&status) == Some(Reason::Unauthenticated) && status.message().contains("expired"),
        "{status:?}"
    );

    // Ids and requests that are none.
    for id in ["", "a b", "../gw", &"x".repeat(200)] {
        let status = enrol(&good, id, &first).await.unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::InvalidField), "{id}");
    }
    let status = world.enrol_with(&good, "gw-1", "not a request").await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::InvalidField));

    // None of that used the token up.
    enrol(&good, "gw-1", &first).await.unwrap();
    // The answer was lost: the same key is the same gateway.
    enrol(&good, "gw-1", &first).await.unwrap();
    // Replayed with another key, for the same id and for another one.
    for id in ["gw-1", "gw-2"] {
        let status = enrol(&good, id, &second).await.unwrap_err();
        let reason = reason_of(&status);
        assert!(matches!(reason, Some(Reason::Unauthenticated | Reason::VersionExists)), "{id}: {status:?}");
    }
    // A good token does not make anybody a gateway that is there already.
    let another = world.token(5, Duration::from_secs(60)).await;
    let status = enrol(&another, "gw-1", &second).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::VersionExists));
    assert_eq!(world.told("join token").await, 1, "each address is logged once");
    world.stop().await;
}

#[tokio::test]
async fn a_certificate_that_is_not_good_gets_no_link() {
    let world = World::start().await;
    let authority = world.plane().authority().clone();
    let id = "gw-1".parse().unwrap();

    // Of another authority.
    let (stranger, own) = (Authority::ephemeral().unwrap(), key());
    let issued = stranger.issue_gateway(&request_of(&own), &id, Duration::from_secs(60)).unwrap();
    let credentials = Credentials::from_pem(&issued.pem, &own.serialize_pem()).unwrap();
    let mut link = world.dial(ALPN_LINK, Some(credentials)).await.unwrap();
    assert!(link.read_u8().await.is_err(), "the control plane hangs up");
    assert_eq!(world.told("handshake").await, 1);

    // Of a gateway that never joined, although the authority has signed it.
    let issued = authority.issue_gateway(&request_of(&own), &id, Duration::from_secs(60)).unwrap();
    let credentials = Credentials::from_pem(&issued.pem, &own.serialize_pem()).unwrap();
    let link = Dialled::link(&world, credentials, "gw-1", Behaviour::Fine).await;
    within("the link ends", link.ended()).await;
    assert_eq!(world.told("certificate").await, 1);

    // One that has joined is linked, until its certificate is revoked; then it is cut off, and let in no more.
    let (_, joined) = world.join("gw-1").await;
    let link = Dialled::link(&world, joined.clone(), "gw-1", Behaviour::Fine).await;
    world.until_linked(&["gw-1", "healthy"]).await;
    world.plane().store().remove_gateway(&id, "test").await.unwrap();
    within("the live link is cut", link.ended()).await;
    let link = Dialled::link(&world, joined, "gw-1", Behaviour::Fine).await;
    within("a new one is refused", link.ended()).await;
    world.until_linked(&["healthy"]).await;

    // One that has ended; in its very last second it may still be good.
    let (own, _) = world.join("gw-2").await;
    let id = "gw-2".parse().unwrap();
    let issued = authority.issue_gateway(&request_of(&own), &id, Duration::ZERO).unwrap();
    let credentials = Credentials::from_pem(&issued.pem, &own.serialize_pem()).unwrap();
    let ended = async {
        loop {
            let mut link = world.dial(ALPN_H2, Some(credentials.clone())).await.unwrap();
            let mut bytes = Vec::new();
            if link.read_to_end(&mut bytes).await.is_err_and(|error| error.to_string().contains("xpired")) {
                return;
            }
        }
    };
    within("an expired certificate is refused", ended).await;
    world.stop().await;
}

#[tokio::test]
async fn a_gateway_is_who_its_certificate_says() {
    let world = World::start().await;
    let (_, joined) = world.join("evil").await;
    for _ in 0..3 {
        let link = Dialled::link(&world, joined.clone(), "healthy", Behaviour::Fine).await;
        within("the link of the impostor ends", link.ended()).await;
        world.until_linked(&["healthy"]).await;
    }
    assert_eq!(world.told("gateway id").await, 1, "three attempts, one line");
    assert_eq!(world.generate().await.gateway(), "healthy");
    // A status of another name later ends the link as well.
    let link = Dialled::link(&world, joined, "evil", Behaviour::Rename("healthy")).await;
    within("the renamed link ends", link.ended()).await;
    assert_eq!(world.generate().await.gateway(), "healthy");
    world.stop().await;
}

#[tokio::test]
async fn ports_with_tls_answer_to_nothing_else() {
    let world = World::start().await;
    for address in [world.plane().address(), world.plane().link_address()] {
        for bytes in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 600]] {
            let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
            socket.write_all(bytes).await.unwrap();
            let mut answer = Vec::new();
            // Whether it says so with an alert or not, it ends.
            let _ = within("plain text is refused", socket.read_to_end(&mut answer)).await;
            assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
        }
    }
    assert_eq!(world.told("handshake").await, 1);
    // A link needs a certificate, and so do all services but enrolment.
    let mut link = world.dial(ALPN_LINK, None).await.unwrap();
    let mut bytes = Vec::new();
    let _ = within("a link without certificate ends", link.read_to_end(&mut bytes)).await;
    assert!(bytes.is_empty());
    let nobody = world.channel(None);
    let status = ArtifactServiceClient::new(nobody.clone())
        .read_blob(v1::ReadBlobRequest { digest: format!("sha256:{}", "a".repeat(64)), offset: 0, length: 0 })
        .await
        .unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::Unauthenticated), "{status:?}");
    let mut client = v1::enrolment_service_client::EnrolmentServiceClient::new(nobody.clone());
    let renew = v1::RenewRequest { certificate_request: request_of(&key()) };
    let status = client.renew(renew).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::Unauthenticated), "{status:?}");
    let status = v1::peer_service_client::PeerServiceClient::new(nobody.clone())
        .watch_links(v1::WatchLinksRequest { replica_id: "x".into() })
        .await
        .unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::Unauthenticated), "{status:?}");
    let mut forwarded = v1::inference_service_client::InferenceServiceClient::new(nobody);
    let mut list = tonic::Request::new(v1::ListModelsRequest {});
    list.metadata_mut().insert("rookery-gateway", "healthy".parse().unwrap());
    assert_eq!(forwarded.list_models(list).await.unwrap_err().code(), Code::Unauthenticated);
    world.stop().await;
}

#[tokio::test]
async fn oversized_messages_are_refused_and_hurt_nobody() {
    let world = World::start().await;
    let status = world.enrol_with("rk1", "gw-1", &"x".repeat(40 << 10)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    let (_, joined) = world.join("large").await;
    let link = Dialled::link(&world, joined.clone(), "large", Behaviour::Huge).await;
    within("a link with a huge status ends", link.ended()).await;
    assert_eq!(world.told("link").await, 1);
    let large = "x".repeat(2 << 20);
    let status = world.try_generate(&large, Some(world.admin())).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert_eq!(world.generate().await.gateway(), "healthy");
    world.stop().await;
}

#[tokio::test]
async fn renewing_gives_a_certificate_for_the_same_gateway() {
    let world = World::start().await;
    let (old, joined) = world.join("gw-1").await;
    let new = key();
    let channel = world.channel(Some(joined));
    let mut client = v1::enrolment_service_client::EnrolmentServiceClient::new(channel);
    let renew = v1::RenewRequest { certificate_request: request_of(&new) };
    let answer = client.renew(renew.clone()).await.unwrap().into_inner();
    let renewed = Credentials::from_pem(&answer.certificate, &new.serialize_pem()).unwrap();
    let link = Dialled::link(&world, renewed, "gw-1", Behaviour::Fine).await;
    world.until_linked(&["gw-1", "healthy"]).await;
    assert_ne!(old.serialize_pem(), new.serialize_pem());
    // Whoever was removed meanwhile renews no more, also on a connection that is still there.
    world.plane().store().remove_gateway(&"gw-1".parse().unwrap(), "test").await.unwrap();
    let status = client.renew(renew).await.unwrap_err();
    assert_ne!(status.code(), Code::Ok);
    within("its link is cut", link.ended()).await;
    world.stop().await;
}

#[tokio::test]
async fn a_client_that_trusts_another_authority_hangs_up() {
    let world = World::start().await;
    let stranger = Authority::ephemeral().unwrap();
    let trust = Trust::Authorities(vec![stranger.certificate().clone()]);
    let config = rookery_proto::tls::client_config(trust, None, ALPN_H2, None).unwrap();
    let address = world.plane().address().to_string();
    let dialled = rookery_proto::tls::connect(&address, "localhost", config.into(), LIMIT * 10).await;
    assert!(dialled.is_err_and(|error| error.to_string().contains("handshake")));
    world.stop().await;
}
