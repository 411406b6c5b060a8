//! Shutdown in good order.

use std::time::{Duration, Instant};

use rookery_proto::status::{self, Reason};
use rookery_tests::{
    client::{channel, collect, generate, ids, text},
    fleet::{Fleet, until_linked},
    within,
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

async fn health(address: std::net::SocketAddr, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    let response = HealthClient::new(channel(address)).check(request).await.unwrap();
    response.into_inner().status()
}

const SERVICE: &str = "rookery.v1.InferenceService";

async fn until_health(address: std::net::SocketAddr, wanted: ServingStatus) {
    within("health changes", async {
        while health(address, "").await != wanted || health(address, SERVICE).await != wanted {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_draining_worker_finishes_its_streams_and_takes_no_more() {
    let mut fleet = Fleet::start(2).await.unwrap();
    let leaving = fleet.workers.remove(0);
    let address = leaving.worker.address();
    until_health(address, ServingStatus::Serving).await;
    leaving.hold.hold_soon();
    let mut stream = leaving.client().generate(ids(vec![4; 9], 0)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    leaving.worker.begin_drain();
    until_health(address, ServingStatus::NotServing).await;
    until_linked(&fleet.control_plane, 1).await;
    let error = generate(&leaving.client(), text("x", 1)).await.unwrap_err();
    assert_eq!((error.code(), status::reason_of(&error)), (Code::Unavailable, Some(Reason::Draining)));
    assert!(status::retry_after(&error).is_some());
    // The control plane has heard of it and asks the other one.
    for _ in 0..4 {
        assert_eq!(generate(&fleet.client(), text("x", 1)).await.unwrap().gateway(), "gw-1");
    }
    leaving.hold.release();
    let (clean, finished) = within("the stream ends and the worker drains", async {
        tokio::join!(leaving.worker.drain(), async {
            while let Some(response) = stream.message().await.unwrap() {
                if let Some(rookery_proto::v1::generate_response::Event::Finished(finished)) = response.event
                {
                    return Some(finished);
                }
            }
            None
        })
    })
    .await;
    assert!(clean && finished.is_some());
    fleet.stop().await;
}

#[tokio::test]
async fn streams_that_do_not_end_are_cut_inside_the_limit() {
    let limit = Duration::from_secs(2);
    let short = |settings: &mut rookery_tests::fleet::WorkerSettings| settings.config.drain_timeout = limit;
    let fleet = Fleet::start_with(1, |config| config.drain_timeout = limit, short).await.unwrap();
    fleet.workers[0].hold.hold_soon();
    let mut stream = fleet.client().generate(ids(vec![4; 9], 0)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let start = Instant::now();
    let (clean, (_, result)) = tokio::join!(fleet.control_plane.drain(), skip_started(stream));
    assert!(!clean);
    assert!(start.elapsed() < limit + Duration::from_millis(500), "{:?}", start.elapsed());
    let error = result.unwrap_err();
    assert_eq!((error.code(), status::reason_of(&error)), (Code::Unavailable, Some(Reason::Draining)));
    for worker in fleet.workers {
        worker.stop().await;
    }
}

/// Collects a stream whose first event was read already.
async fn skip_started(
    mut stream: tonic::Streaming<rookery_proto::v1::GenerateResponse>,
) -> ((), Result<(), tonic::Status>) {
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return ((), Ok(())),
            Err(status) => return ((), Err(status)),
        }
    }
}

#[tokio::test]
async fn a_draining_control_plane_says_so_and_passes_on_what_runs() {
    let fleet = Fleet::start(1).await.unwrap();
    let address = fleet.control_plane.address();
    until_health(address, ServingStatus::Serving).await;
    fleet.workers[0].hold.hold();
    let client = fleet.client();
    let running = tokio::task::JoinSet::from_iter([async move {
        let stream = client.clone().generate(text("The rooks", 6)).await?.into_inner();
        collect(stream).await.1
    }]);
    fleet.until_in_flight(1).await;
    fleet.control_plane.begin_drain();
    until_health(address, ServingStatus::NotServing).await;
    let error = generate(&fleet.client(), text("x", 1)).await.unwrap_err();
    assert_eq!((error.code(), status::reason_of(&error)), (Code::Unavailable, Some(Reason::Draining)));
    fleet.workers[0].hold.release();
    let (clean, answers) =
        within("all ends", async { tokio::join!(fleet.control_plane.drain(), running.join_all()) }).await;
    assert!(clean);
    assert_eq!(answers[0].as_ref().unwrap().token_ids.len(), 6);
    for worker in fleet.workers {
        worker.stop().await;
    }
}
