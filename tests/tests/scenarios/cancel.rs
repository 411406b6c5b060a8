//! Clients that go away.

use rookery_tests::{
    client::{client, generate, ids},
    fleet::Fleet,
    within,
};

#[tokio::test]
async fn a_client_that_goes_away_frees_everything_along_the_path() {
    let fleet = Fleet::start(1).await.unwrap();
    let worker = &fleet.workers[0];
    let expected = generate(&worker.client(), ids(vec![7; 20], 16)).await.unwrap();
    // Events to read before dropping the stream; 0 is before anything came.
    for events in [0, 1, 2, 5, 0, 3, 1, 0, 8, 2] {
        for address in [fleet.control_plane.address(), worker.worker.address()] {
            // A connection of its own, dropped whole every second time.
            let client = client(address);
            let mut call = client.clone();
            let mut stream = call.generate(ids(vec![7; 20 + events], 0)).await.unwrap().into_inner();
            for _ in 0..events {
                within("an event", stream.message()).await.unwrap();
            }
            if events % 2 == 0 {
                drop(client);
                drop(call);
            }
            drop(stream);
            worker.until_idle().await;
        }
    }
    let after = generate(&fleet.client(), ids(vec![7; 20], 16)).await.unwrap();
    assert_eq!(after.token_ids, expected.token_ids);
    let in_flight: u64 =
        fleet.control_plane.fleet().gateways().iter().map(|(_, in_flight, _)| in_flight).sum();
    assert_eq!(in_flight, 0);
    fleet.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_while_it_waits_leaves_the_queue() {
    let one = |settings: &mut rookery_tests::fleet::WorkerSettings| settings.engine.max_batch = 1;
    let fleet = Fleet::start_with(1, |_| {}, one).await.unwrap();
    let worker = &fleet.workers[0];
    worker.hold.hold();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = fleet.client();
        waiting.spawn(async move { generate(&client, ids(vec![9; 30], 4)).await });
    }
    // The fourth is in the step that is held.
    worker.until("three requests wait", |load| load.queued == 3).await;
    waiting.abort_all();
    while waiting.join_next().await.is_some() {}
    worker.hold.release();
    worker.until_idle().await;
    fleet.stop().await;
}
