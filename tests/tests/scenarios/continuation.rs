//! Answers that go on with another gateway after the first is lost: what clients see is what an undisturbed one sees.

use std::time::Duration;

use rookery_proto::{
    status::{self, Reason},
    v1::{self, generate_response::Event},
};
use rookery_tests::{
    client::{Answer, Client, collect, generate, ids, text},
    fleet::{Fleet, TestWorker, WorkerSettings, control_plane, until_linked},
    relay::Relay,
    within,
};
use tonic::Code;

/// Numbers that follow from a seed.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

const PROMPTS: [&str; 4] =
    ["The rooks came back to", "Krähen über 北京 🦀 und", "{\"rook\": [1, 2,", "def nest(twigs):"];

/// A request with everything on which an answer can depend. Its seed may be left to the gateway.
fn request(seeded: &mut Seeded) -> v1::GenerateRequest {
    let mut request = text(PROMPTS[seeded.below(4) as usize], 40 + seeded.below(160) as u32);
    let sampling = request.sampling.as_mut().unwrap();
    if !seeded.one_in(3) {
        sampling.temperature = Some(0.5 + seeded.below(10) as f32 / 5.0);
        sampling.top_k = seeded.one_in(2).then(|| 5 + seeded.below(300) as u32);
        sampling.top_p = seeded.one_in(2).then_some(0.9);
        sampling.seed = seeded.one_in(2).then(|| seeded.below(u64::MAX));
    }
    if seeded.one_in(2) {
        sampling.repetition_penalty = Some(1.2);
        sampling.frequency_penalty = Some(0.4);
        sampling.presence_penalty = Some(-0.3);
    }
    sampling.min_tokens = Some(seeded.below(30) as u32);
    let stop = request.stop.as_mut().unwrap();
    stop.ignore_eos = !seeded.one_in(3);
    if seeded.one_in(2) {
        let letters = ["e", "th", "\u{fffd}\u{fffd}", "rook", "qzx", "a b", "é"];
        stop.strings =
            (0..2).map(|_| letters[seeded.below(letters.len() as u64) as usize].to_owned()).collect();
    }
    if seeded.one_in(4) {
        stop.token_ids = vec![seeded.below(512) as u32];
    }
    request.logprobs = seeded.one_in(2).then_some(v1::LogprobParams { top: 3 });
    request
}

/// What must not depend on where an answer was made.
fn same(answer: &Answer, expected: &Answer, what: &str) {
    assert_eq!(answer.text, expected.text, "{what}");
    assert_eq!(answer.token_ids, expected.token_ids, "{what}");
    assert_eq!(answer.logprobs, expected.logprobs, "{what}");
    let (end, wanted) = (answer.finished.as_ref().unwrap(), expected.finished.as_ref().unwrap());
    assert_eq!((end.reason(), &end.stop_string), (wanted.reason(), &wanted.stop_string), "{what}");
    let (usage, wanted) = (end.usage.unwrap(), wanted.usage.unwrap());
    assert_eq!(usage.prompt_tokens, wanted.prompt_tokens, "{what}");
    assert_eq!(usage.generated_tokens, wanted.generated_tokens, "{what}");
}

/// The same request, with the seed that the answer was made with.
fn seeded_as(request: &v1::GenerateRequest, answer: &Answer) -> v1::GenerateRequest {
    let mut request = request.clone();
    request.sampling.as_mut().unwrap().seed = answer.started.as_ref().map(|started| started.seed);
    request
}

/// The undisturbed answer: what the worker itself says, asked alone.
async fn undisturbed(worker: &TestWorker, request: &v1::GenerateRequest, answer: &Answer) -> Answer {
    generate(&worker.client(), seeded_as(request, answer)).await.unwrap()
}

#[tokio::test]
async fn a_worker_goes_on_wherever_another_one_stopped() {
    let worker = TestWorker::start("alone", None, |_| {}).await.unwrap();
    let client = worker.client();
    for seed in 0..6 {
        let mut seeded = Seeded(seed);
        let first = request(&mut seeded);
        let whole = generate(&client, first.clone()).await.unwrap();
        let again = seeded_as(&first, &whole);
        let texts = texts_so_far(&client, &again).await;
        for cut in 1..=whole.token_ids.len() {
            // What was passed on may be less than what the tokens make, down to nothing.
            let sent = if seeded.one_in(4) { 0 } else { texts[cut - 1] };
            let continuation =
                v1::Continuation { token_ids: whole.token_ids[..cut].to_vec(), text_bytes: sent as u64 };
            let rest = v1::GenerateRequest { continuation: Some(continuation), ..again.clone() };
            let rest = generate(&client, rest).await.unwrap();
            let mut answer = Answer {
                text: whole.text[..sent].to_owned(),
                token_ids: whole.token_ids[..cut].to_vec(),
                logprobs: whole.logprobs.iter().take(cut).cloned().collect(),
                ..rest.clone()
            };
            answer.text.push_str(&rest.text);
            answer.token_ids.extend(rest.token_ids);
            answer.logprobs.extend(rest.logprobs);
            same(&answer, &whole, &format!("seed {seed}, cut after {cut} of {}", whole.token_ids.len()));
        }
    }
    worker.until_idle().await;
    worker.stop().await;
}

/// Bytes of text that each further token has made certain.
async fn texts_so_far(client: &Client, request: &v1::GenerateRequest) -> Vec<usize> {
    let mut stream = client.clone().generate(request.clone()).await.unwrap().into_inner();
    let (mut bytes, mut all) = (0, Vec::new());
    while let Some(response) = stream.message().await.unwrap() {
        if let Some(Event::Delta(delta)) = response.event {
            bytes += delta.text.len();
            // Of tokens that came together, only the last is known; less is always right to claim.
            let before = bytes - delta.text.len();
            all.extend(std::iter::repeat_n(before, delta.token_ids.len() - 1));
            all.push(bytes);
        }
    }
    all
}

#[tokio::test]
async fn a_continuation_that_cannot_be_is_refused() {
    let fleet = Fleet::start(1).await.unwrap();
    let worker = fleet.workers[0].client();
    let whole = generate(&worker, text("The rooks", 8)).await.unwrap();
    let with = |token_ids: &[u32], text_bytes: usize| v1::GenerateRequest {
        continuation: Some(v1::Continuation { token_ids: token_ids.to_vec(), text_bytes: text_bytes as u64 }),
        ..text("The rooks", 8)
    };
    let longer = [&whole.token_ids[..], &[1]].concat();
    let long = vec![1; 600];
    let drawn = |request: v1::GenerateRequest| {
        let sampling = v1::SamplingParams { temperature: Some(1.0), ..request.sampling.unwrap() };
        v1::GenerateRequest { sampling: Some(sampling), ..request }
    };
    for (request, field) in [
        (with(&[512], 0), "continuation.token_ids[0]"),
        (with(&[], 0), "continuation.token_ids"),
        (with(&longer, 0), "continuation.token_ids"),
        (with(&long, 0), "continuation.token_ids"),
        (with(&whole.token_ids[..2], 1000), "continuation.text_bytes"),
        (drawn(with(&whole.token_ids[..2], 0)), "sampling.seed"),
    ] {
        let error = generate(&worker, request).await.unwrap_err();
        assert_eq!(status::reason_of(&error), Some(Reason::InvalidField), "{error:?}");
        assert_eq!(status::field_violations(&error)[0].0, field);
    }
    // Clients have no business with it.
    let error = generate(&fleet.client(), with(&whole.token_ids[..2], 0)).await.unwrap_err();
    assert_eq!(
        (error.code(), status::field_violations(&error)[0].0.as_str()),
        (Code::InvalidArgument, "continuation")
    );
    fleet.stop().await;
}

/// How many answers to disturb: few as a rule, more by `ROOKERY_TEST_KILLS`.
fn kills() -> u32 {
    std::env::var("ROOKERY_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

#[tokio::test]
async fn links_cut_at_random_bytes_change_no_answer() {
    let plane =
        control_plane(|config| config.routing.wait_for_gateway = Duration::from_secs(20)).await.unwrap();
    let (mut relays, mut workers) = (Vec::new(), Vec::new());
    for index in 0..2 {
        let relay = Relay::start(plane.link_address()).await.unwrap();
        let id = format!("gw-{index}");
        workers.push(TestWorker::start(&id, Some(relay.address()), |_| {}).await.unwrap());
        relays.push(relay);
    }
    let client = rookery_tests::client::client(plane.address());
    let (mut cut, mut disturbed, mut seed) = (0, 0, 0);
    while disturbed < kills() {
        assert!(seed < 6 * kills(), "only {disturbed} of {seed} answers were disturbed");
        seed += 1;
        until_linked(&plane, 2).await;
        let mut seeded = Seeded(u64::from(seed) ^ 0x5eed);
        let request = request(&mut seeded);
        let before: u32 = relays.iter().map(Relay::severed).sum();
        // The second may be cut as well, after the answer has moved there.
        relays[0].sever_after(200 + seeded.below(4000) as u32);
        relays[1].sever_after(200 + seeded.below(4000) as u32);
        let answer = within(&format!("seed {seed}"), generate(&client, request.clone())).await;
        let answer = answer.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        relays.iter().for_each(Relay::leave_alone);
        let after: u32 = relays.iter().map(Relay::severed).sum();
        cut += after - before;
        disturbed += u32::from(after > before);
        same(&answer, &undisturbed(&workers[0], &request, &answer).await, &format!("seed {seed}"));
    }
    println!("{seed} answers, {disturbed} of them disturbed, {cut} links cut");
    for worker in &workers {
        worker.until_idle().await;
    }
    Fleet { control_plane: plane, workers }.stop().await;
}

#[tokio::test]
async fn many_streams_survive_one_gateway() {
    let plane = control_plane(|_| {}).await.unwrap();
    let link = plane.link_address();
    let relay = Relay::start(link).await.unwrap();
    let workers = vec![
        TestWorker::start("gw-0", Some(relay.address()), |_| {}).await.unwrap(),
        TestWorker::start("gw-1", Some(link), |_| {}).await.unwrap(),
    ];
    until_linked(&plane, 2).await;
    relay.sever_after(5000);
    let mut running = tokio::task::JoinSet::new();
    for seed in 0..16 {
        let (client, request) = (rookery_tests::client::client(plane.address()), request(&mut Seeded(seed)));
        running.spawn(async move { (generate(&client, request.clone()).await.unwrap(), request) });
    }
    let answers = within("all answers are complete", running.join_all()).await;
    assert_eq!(relay.severed(), 1);
    for (answer, request) in answers {
        same(&answer, &undisturbed(&workers[1], &request, &answer).await, &format!("{request:?}"));
    }
    Fleet { control_plane: plane, workers }.stop().await;
}

/// Begins an answer that stands still in its middle, on a fleet of two.
async fn half_an_answer() -> (Fleet, usize, tonic::Streaming<v1::GenerateResponse>, Answer) {
    let short = |settings: &mut WorkerSettings| settings.config.drain_timeout = Duration::from_secs(1);
    let fleet = Fleet::start_with(2, |_| {}, short).await.unwrap();
    fleet.workers.iter().for_each(|worker| worker.hold.hold_soon());
    let mut stream = fleet.client().generate(ids(vec![4; 9], 60)).await.unwrap().into_inner();
    let mut answer = Answer::default();
    while answer.token_ids.is_empty() {
        answer.add(stream.message().await.unwrap().unwrap());
    }
    let home =
        fleet.workers.iter().position(|worker| worker.worker.gateway_id() == answer.gateway()).unwrap();
    fleet.workers[1 - home].hold.release();
    (fleet, home, stream, answer)
}

async fn finish(mut answer: Answer, mut stream: tonic::Streaming<v1::GenerateResponse>) -> Answer {
    while let Some(response) = stream.message().await.unwrap() {
        answer.add(response);
    }
    answer
}

#[tokio::test]
async fn a_draining_gateway_that_cuts_its_streams_costs_none() {
    let (mut fleet, home, stream, answer) = half_an_answer().await;
    let TestWorker { worker, hold, .. } = fleet.workers.remove(home);
    let drained = tokio::task::JoinSet::from_iter([async move { worker.drain().await }]);
    let answer = within("the answer ends", finish(answer, stream)).await;
    same(&answer, &undisturbed(&fleet.workers[0], &ids(vec![4; 9], 60), &answer).await, "drained");
    let timings = answer.finished.unwrap().timings.unwrap();
    assert!(timings.prefill_us > 0 && timings.decode_us > 0, "{timings:?}");
    drop(hold);
    drained.join_all().await;
    fleet.stop().await;
}

#[tokio::test]
async fn an_engine_that_fails_half_way_is_followed_by_another() {
    let (fleet, home, stream, answer) = half_an_answer().await;
    fleet.workers[home].engine().stop_admitting();
    fleet.workers[home].hold.release();
    let answer = within("the answer ends", finish(answer, stream)).await;
    same(&answer, &undisturbed(&fleet.workers[1 - home], &ids(vec![4; 9], 60), &answer).await, "failed");
    fleet.stop().await;
}

#[tokio::test]
async fn a_deadline_holds_while_no_gateway_is_left() {
    let plane =
        control_plane(|config| config.routing.wait_for_gateway = Duration::from_secs(50)).await.unwrap();
    let relay = Relay::start(plane.link_address()).await.unwrap();
    let worker = TestWorker::start("gw-0", Some(relay.address()), |_| {}).await.unwrap();
    until_linked(&plane, 1).await;
    worker.hold.hold_soon();
    let mut request = tonic::Request::new(ids(vec![4; 9], 0));
    request.set_timeout(Duration::from_secs(3));
    let mut stream =
        rookery_tests::client::client(plane.address()).generate(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    drop(relay);
    worker.hold.release();
    let error = within("the stream ends", async {
        loop {
            if let Err(error) = stream.message().await {
                return error;
            }
        }
    })
    .await;
    assert_eq!(status::reason_of(&error), Some(Reason::DeadlineExceeded), "{error:?}");
    worker.stop().await;
    plane.drain().await;
}

#[tokio::test]
async fn when_none_is_left_the_tokens_so_far_are_told() {
    let plane =
        control_plane(|config| config.routing.wait_for_gateway = Duration::from_millis(100)).await.unwrap();
    let relay = Relay::start(plane.link_address()).await.unwrap();
    let worker = TestWorker::start("gw-0", Some(relay.address()), |_| {}).await.unwrap();
    until_linked(&plane, 1).await;
    worker.hold.hold_soon();
    let stream = rookery_tests::client::client(plane.address()).generate(ids(vec![4; 9], 0)).await.unwrap();
    let lost = async {
        worker.until("the engine stands still", |load| load.running == 1).await;
        within("it holds", async {
            while !worker.hold.is_holding() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        drop(relay);
    };
    let ((), (answer, result)) = tokio::join!(lost, collect(stream.into_inner()));
    let error = result.unwrap_err();
    assert_eq!((error.code(), status::reason_of(&error)), (Code::Unavailable, Some(Reason::GatewayLost)));
    let tokens = answer.token_ids.len().to_string();
    assert_eq!(status::metadata_of(&error, "generatedTokens"), Some(tokens));
    assert_eq!(status::metadata_of(&error, "gateway").as_deref(), Some("gw-0"));
    worker.stop().await;
    plane.drain().await;
}
