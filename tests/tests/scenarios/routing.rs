//! Where requests go, and what happens when gateways fail.

use std::time::{Duration, Instant};

use rookery_proto::{
    status::{self, Reason},
    v1,
};
use rookery_tests::{
    bundles::MODEL,
    client::{client, collect, generate, text},
    fleet::{Fleet, TestWorker, WorkerSettings, control_plane, until_linked},
    prefixes::{self, Traffic},
    scripted::{Script, ScriptedGateway},
    within,
};
use tonic::Code;

#[tokio::test]
async fn requests_spread_over_the_least_loaded() {
    let fleet = Fleet::start(3).await.unwrap();
    fleet.workers.iter().for_each(|worker| worker.hold.hold());
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..9 {
        let client = fleet.client();
        running.spawn(async move { generate(&client, text("The rooks", 4)).await.unwrap() });
    }
    fleet.until_in_flight(3).await;
    fleet.workers.iter().for_each(|worker| worker.hold.release());
    let answers = running.join_all().await;
    for worker in &fleet.workers {
        assert_eq!(answers.iter().filter(|answer| answer.gateway() == worker.worker.gateway_id()).count(), 3);
    }
    fleet.stop().await;
}

#[tokio::test]
async fn a_session_stays_on_its_gateway_while_load_permits() {
    let fleet = Fleet::start(3).await.unwrap();
    let client = fleet.client();
    let session = |id: &str| v1::GenerateRequest {
        session_id: id.into(),
        ..text("The rooks came back to the elms in", 4)
    };
    let mut homes = std::collections::BTreeSet::new();
    for id in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let home = generate(&client, session(id)).await.unwrap().gateway().to_owned();
        for _ in 0..4 {
            let again = generate(&client, session(id)).await.unwrap();
            assert_eq!(again.gateway(), home);
        }
        homes.insert(home);
    }
    assert!(homes.len() > 1, "eight sessions are all on {homes:?}");
    fleet.stop().await;
}

#[tokio::test]
async fn prompts_go_where_their_beginning_was_read_and_nobody_is_swamped() {
    let roomy = |settings: &mut WorkerSettings| settings.engine.kv_cache_bytes = 64 << 20;
    let fleet = Fleet::start_with(4, |_| {}, roomy).await.unwrap();
    let traffic = Traffic {
        requests: 400,
        streams: 16,
        groups: 16,
        shared_tokens: 256,
        own_tokens: 24,
        answer_tokens: 4,
        seed: 5,
    };
    let outcome = prefixes::run(&fleet, traffic).await.unwrap();
    assert!(outcome.hit_rate() >= 0.9, "{} {outcome:?}", outcome.hit_rate());
    assert!(outcome.heaviest_requests(4) <= 1.5, "{outcome:?}");
    fleet.stop().await;
}

/// A fleet of one worker and one scripted gateway, which is tried first because it looks idle and roomy.
async fn with_scripted(script: Script) -> (Fleet, ScriptedGateway) {
    let fleet = Fleet::start(1).await.unwrap();
    let link = fleet.control_plane.link_address();
    let scripted = ScriptedGateway::start("scripted", link, script).await.unwrap();
    until_linked(&fleet.control_plane, 2).await;
    (fleet, scripted)
}

#[tokio::test]
async fn a_gateway_that_fails_before_the_first_event_costs_only_time() {
    let scripts = [
        Script::DropBeforeFirst,
        Script::EndAfter(0),
        Script::Refuse(|| status::refuse_with(Reason::QueueFull, "full", &[], Some(Duration::from_secs(9)))),
        Script::Refuse(|| status::refuse(Reason::Draining, "leaving")),
    ];
    for script in scripts {
        let (fleet, scripted) = with_scripted(script).await;
        let expected = generate(&fleet.workers[0].client(), text("The rooks", 8)).await.unwrap();
        let answer = generate(&fleet.client(), text("The rooks", 8)).await.unwrap();
        assert_eq!(scripted.calls(), 1, "the scripted gateway was not tried");
        assert_eq!(answer.token_ids, expected.token_ids);
        assert_eq!(answer.gateway(), "gw-0");
        fleet.stop().await;
    }
}

#[tokio::test]
async fn a_real_worker_that_stops_before_the_first_token_costs_only_time() {
    let short = |settings: &mut WorkerSettings| settings.config.drain_timeout = Duration::from_secs(1);
    let mut fleet = Fleet::start_with(2, |_| {}, short).await.unwrap();
    fleet.workers.iter().for_each(|worker| worker.hold.hold());
    let client = fleet.client();
    let request =
        tokio::task::JoinSet::from_iter([async move { generate(&client, text("The rooks", 8)).await }]);
    let busy = within("one of the workers has the request", async {
        loop {
            if let Some(index) = fleet.workers.iter().position(|worker| worker.hold.is_holding()) {
                return index;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let dying = fleet.workers.remove(busy);
    fleet.workers[0].hold.release();
    // Its engine stands still, so the drain has to cut the request, which has produced nothing yet.
    let hold = dying.hold;
    let drained = tokio::task::JoinSet::from_iter([async move { dying.worker.drain().await }]);
    let answer = within("the other worker answers", request.join_all()).await.remove(0).unwrap();
    assert_eq!(answer.gateway(), fleet.workers[0].worker.gateway_id());
    drop(hold);
    assert_eq!(within("the worker drains", drained.join_all()).await, [false]);
    fleet.stop().await;
}

#[tokio::test]
async fn a_gateway_lost_after_the_first_event_is_an_error_where_no_other_has_the_version() {
    for script in [Script::DropAfter(3), Script::EndAfter(3)] {
        let (fleet, _scripted) = with_scripted(script).await;
        let stream = fleet.client().generate(text("The rooks", 8)).await.unwrap().into_inner();
        let (answer, result) = collect(stream).await;
        assert_eq!(answer.token_ids, [1, 2]);
        let error = result.unwrap_err();
        assert_eq!((error.code(), status::reason_of(&error)), (Code::Unavailable, Some(Reason::GatewayLost)));
        assert!(error.message().contains("scripted"), "{error}");
        assert_eq!(status::metadata_of(&error, "generatedTokens").as_deref(), Some("2"));
        fleet.stop().await;
    }
}

#[tokio::test]
async fn attempts_are_bounded_and_errors_of_the_request_are_not_retried() {
    let control_plane =
        control_plane(|config| config.routing.wait_for_gateway = Duration::ZERO).await.unwrap();
    let full =
        Script::Refuse(|| status::refuse_with(Reason::QueueFull, "full", &[], Some(Duration::from_secs(9))));
    let mut gateways = Vec::new();
    for index in 0..5 {
        let id = format!("full-{index}");
        gateways.push(ScriptedGateway::start(&id, control_plane.link_address(), full.clone()).await.unwrap());
    }
    until_linked(&control_plane, 5).await;
    let error = generate(&client(control_plane.address()), text("x", 1)).await.unwrap_err();
    assert_eq!((error.code(), status::reason_of(&error)), (Code::ResourceExhausted, Some(Reason::QueueFull)));
    assert_eq!(status::retry_after(&error), Some(Duration::from_secs(9)));
    assert_eq!(gateways.iter().map(ScriptedGateway::calls).sum::<u32>(), 3);
    drop(gateways);
    until_linked(&control_plane, 0).await;
    let bad = Script::Refuse(|| status::refuse(Reason::Internal, "no"));
    let gateways = [
        ScriptedGateway::start("bad-0", control_plane.link_address(), bad.clone()).await.unwrap(),
        ScriptedGateway::start("bad-1", control_plane.link_address(), bad).await.unwrap(),
    ];
    until_linked(&control_plane, 2).await;
    let error = generate(&client(control_plane.address()), text("x", 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    assert_eq!(gateways.iter().map(ScriptedGateway::calls).sum::<u32>(), 1);
    control_plane.drain().await;
}

#[tokio::test]
async fn an_engine_that_fails_is_followed_by_one_other() {
    let control_plane =
        control_plane(|config| config.routing.wait_for_gateway = Duration::from_secs(50)).await.unwrap();
    let failed = Script::Refuse(|| status::refuse(Reason::EngineFailed, "out of order"));
    let link = control_plane.link_address();
    let gateways = [
        ScriptedGateway::start("failed-0", link, failed.clone()).await.unwrap(),
        ScriptedGateway::start("failed-1", link, failed.clone()).await.unwrap(),
        ScriptedGateway::start("failed-2", link, failed).await.unwrap(),
    ];
    until_linked(&control_plane, 3).await;
    let since = Instant::now();
    let error = generate(&client(control_plane.address()), text("x", 1)).await.unwrap_err();
    assert_eq!((error.code(), status::reason_of(&error)), (Code::Unavailable, Some(Reason::EngineFailed)));
    assert_eq!(gateways.iter().map(ScriptedGateway::calls).sum::<u32>(), 2);
    assert!(since.elapsed() < Duration::from_secs(20), "waited for another gateway");
    control_plane.drain().await;
}

#[tokio::test]
async fn a_full_gateway_tells_more_than_a_lost_one() {
    let control_plane =
        control_plane(|config| config.routing.wait_for_gateway = Duration::from_secs(50)).await.unwrap();
    let full =
        Script::Refuse(|| status::refuse_with(Reason::QueueFull, "full", &[], Some(Duration::from_secs(9))));
    let link = control_plane.link_address();
    let full = ScriptedGateway::start("full", link, full).await.unwrap();
    let lost = ScriptedGateway::start("lost", link, Script::DropBeforeFirst).await.unwrap();
    until_linked(&control_plane, 2).await;
    let since = Instant::now();
    let mut calls = 0;
    // Either may be the first; the one that is lost is tried once.
    while lost.calls() == 0 {
        let error = generate(&client(control_plane.address()), text("x", 1)).await.unwrap_err();
        assert_eq!(status::reason_of(&error), Some(Reason::QueueFull), "{error:?}");
        assert_eq!(status::retry_after(&error), Some(Duration::from_secs(9)));
        calls += 1;
    }
    assert_eq!(full.calls(), calls);
    assert!(since.elapsed() < Duration::from_secs(20), "waited for another gateway");
    control_plane.drain().await;
}

#[tokio::test]
async fn unknown_models_and_missing_gateways_are_told_apart() {
    let mut fleet =
        Fleet::start_with(1, |c| c.routing.wait_for_gateway = Duration::ZERO, |_| {}).await.unwrap();
    let client = fleet.client();
    let unknown = v1::GenerateRequest { model: "nonesuch".into(), ..text("x", 1) };
    for client in [&client, &fleet.workers[0].client()] {
        let error = generate(client, unknown.clone()).await.unwrap_err();
        assert_eq!((error.code(), status::reason_of(&error)), (Code::NotFound, Some(Reason::ModelNotFound)));
        assert!(error.message().contains("nonesuch") && error.message().contains(MODEL), "{error}");
    }
    fleet.workers.remove(0).stop().await;
    until_linked(&fleet.control_plane, 0).await;
    let error = generate(&client, text("x", 1)).await.unwrap_err();
    assert_eq!((error.code(), status::reason_of(&error)), (Code::Unavailable, Some(Reason::NoGateway)));
    assert!(status::retry_after(&error).is_some());
    fleet.stop().await;
}

#[tokio::test]
async fn a_request_waits_for_a_gateway_that_is_about_to_come() {
    let control_plane =
        control_plane(|c| c.routing.wait_for_gateway = Duration::from_secs(50)).await.unwrap();
    let client = client(control_plane.address());
    let link = control_plane.link_address();
    let (answer, worker) =
        tokio::join!(generate(&client, text("x", 3)), TestWorker::start("late", Some(link), |_| {}));
    assert_eq!(answer.unwrap().gateway(), "late");
    worker.unwrap().stop().await;
    control_plane.drain().await;
}

#[tokio::test]
async fn workers_come_back_to_a_restarted_control_plane() {
    let Fleet { control_plane: first, workers } = Fleet::start(2).await.unwrap();
    let (address, link) = (first.address(), first.link_address());
    assert!(within("the first control plane drains", first.drain()).await);
    let second = control_plane(|config| (config.listen, config.link.listen) = (address, link)).await.unwrap();
    until_linked(&second, 2).await;
    generate(&client(address), text("x", 3)).await.unwrap();
    Fleet { control_plane: second, workers }.stop().await;
}

#[tokio::test]
async fn a_newer_link_of_the_same_gateway_replaces_the_older() {
    let (fleet, old) = with_scripted(Script::Hang).await;
    let link = fleet.control_plane.link_address();
    let again = Script::Refuse(|| status::refuse(Reason::Internal, "the new one"));
    let new = ScriptedGateway::start("scripted", link, again).await.unwrap();
    let client = fleet.client();
    within("the new link is used", async {
        loop {
            let error = generate(&client, text("x", 1)).await;
            if error.is_err_and(|error| error.message() == "the new one") {
                return;
            }
        }
    })
    .await;
    assert!(new.calls() >= 1);
    drop(old);
    until_linked(&fleet.control_plane, 2).await;
    fleet.stop().await;
}

#[tokio::test]
async fn a_gateway_that_falls_silent_is_lost() {
    let fleet = Fleet::start(0).await.unwrap();
    let gateway =
        ScriptedGateway::start("silent", fleet.control_plane.link_address(), Script::Hang).await.unwrap();
    until_linked(&fleet.control_plane, 1).await;
    let since = Instant::now();
    gateway.fall_silent();
    until_linked(&fleet.control_plane, 0).await;
    assert!(since.elapsed() < Duration::from_secs(10));
    fleet.stop().await;
}
