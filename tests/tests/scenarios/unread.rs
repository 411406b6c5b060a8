//! Clients that do not read their answers.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use rookery_proto::{
    status::{self, Reason},
    v1,
};
use rookery_tests::{
    client::{client, ids, narrow_client, text},
    fleet::{Fleet, TestWorker, control_plane, until_linked},
    scripted::{Script, ScriptedGateway},
    within,
};
use tonic::{Request, Streaming};

#[tokio::test]
async fn they_do_not_hold_up_their_gateways_link() {
    let control_plane = control_plane(|_| {}).await.unwrap();
    let link = control_plane.link_address();
    let _gateway = ScriptedGateway::start("flood", link, Script::Flood).await.unwrap();
    until_linked(&control_plane, 1).await;
    let address = control_plane.address();
    let mut unread = Vec::new();
    for _ in 0..8 {
        unread.push(narrow_client(address).generate(text("x", 1)).await.unwrap().into_inner());
    }
    let mut read = client(address).generate(text("x", 1)).await.unwrap().into_inner();
    // Twice as long as a silent gateway stays linked.
    let (start, mut events) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(3) {
        within("an event", read.message()).await.unwrap().unwrap();
        events += 1;
    }
    assert!(events > 100, "{events}");
    assert_eq!(control_plane.fleet().gateways().len(), 1);
    drop((unread, read));
    control_plane.drain().await;
}

async fn start_unread(
    address: std::net::SocketAddr,
    timeout: Option<&str>,
) -> Streaming<v1::GenerateResponse> {
    let mut request = Request::new(ids(vec![5; 8], 100));
    if let Some(timeout) = timeout {
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    }
    narrow_client(address).generate(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn their_deadline_frees_their_place() {
    let one = |settings: &mut rookery_tests::fleet::WorkerSettings| {
        settings.config.server.max_calls = NonZeroU32::MIN;
    };
    let fleet = Fleet::start_with(1, |config| config.server.max_calls = NonZeroU32::MIN, one).await.unwrap();
    for address in [fleet.control_plane.address(), fleet.workers[0].worker.address()] {
        fleet.workers[0].hold.hold_soon();
        let unread = start_unread(address, Some("3S")).await;
        // Another call that needs a place, though not the engine.
        let input = v1::tokenize_request::Input::Text("x".into());
        let request = v1::TokenizeRequest { input: Some(input), ..Default::default() };
        let mut client = client(address);
        let error = client.tokenize(request.clone()).await.unwrap_err();
        assert_eq!(status::reason_of(&error), Some(Reason::QueueFull));
        within("the place is free", async {
            while let Err(error) = client.tokenize(request.clone()).await {
                assert_eq!(status::reason_of(&error), Some(Reason::QueueFull), "{error:?}");
            }
        })
        .await;
        fleet.workers[0].hold.release();
        fleet.workers[0].until_idle().await;
        drop(unread);
    }
    fleet.stop().await;
}

#[tokio::test]
async fn a_drain_cuts_them_in_time() {
    let limit = Duration::from_secs(2);
    let short = |settings: &mut rookery_tests::fleet::WorkerSettings| settings.config.drain_timeout = limit;
    let TestWorker { worker, hold, .. } = TestWorker::start("alone", None, short).await.unwrap();
    hold.hold_soon();
    let mut unread = start_unread(worker.address(), None).await;
    let start = Instant::now();
    // Read only after the cut: what the worker has left to say is the status.
    let (clean, end) = tokio::join!(worker.drain(), async {
        tokio::time::sleep(limit - Duration::from_millis(450)).await;
        let end = loop {
            match unread.message().await {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        hold.release();
        end
    });
    assert!(!clean && start.elapsed() < limit + Duration::from_millis(500), "{:?}", start.elapsed());
    assert!(end.is_some(), "the answer ended as if it were complete");
}
