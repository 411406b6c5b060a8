//! Requests that are refused or run out of time.

use std::time::Duration;

use rookery_proto::{
    status::{self, Reason},
    v1::{self, generate_request::Input},
};
use rookery_tests::{
    bundles::{CONTEXT_TOKENS, VOCABULARY},
    client::{collect, generate, ids, text},
    fleet::Fleet,
    within,
};
use tonic::{Code, Request};

#[tokio::test]
async fn a_full_queue_says_when_to_try_again() {
    let limits = |settings: &mut rookery_tests::fleet::WorkerSettings| {
        (settings.engine.max_batch, settings.engine.max_queued_requests) = (1, 2);
    };
    let fleet = Fleet::start_with(1, |_| {}, limits).await.unwrap();
    let worker = &fleet.workers[0];
    worker.hold.hold();
    let mut waiting = tokio::task::JoinSet::new();
    let mut refused = Vec::new();
    // One runs, two wait; what comes after is refused. How soon the first one runs is up to the engine.
    while refused.len() < 2 {
        for client in [fleet.client(), worker.client()] {
            match within(
                "an answer or a refusal",
                tokio::time::timeout(Duration::from_millis(500), {
                    let client = client.clone();
                    async move { generate(&client, text("The rooks", 2)).await }
                }),
            )
            .await
            {
                Ok(Err(error)) => refused.push(error),
                Ok(Ok(_)) => panic!("a held engine answered"),
                Err(_) => {
                    waiting.spawn(async move { generate(&client, text("The rooks", 2)).await });
                }
            }
        }
    }
    for error in refused {
        assert_eq!(
            (error.code(), status::reason_of(&error)),
            (Code::ResourceExhausted, Some(Reason::QueueFull))
        );
        assert!(status::retry_after(&error).is_some_and(|after| after > Duration::ZERO), "{error:?}");
    }
    waiting.abort_all();
    worker.hold.release();
    worker.until_idle().await;
    fleet.stop().await;
}

fn with_deadline(request: v1::GenerateRequest, deadline: Duration) -> Request<v1::GenerateRequest> {
    let mut request = Request::new(request);
    request.set_timeout(deadline);
    request
}

/// Sent without the client library's own timer, so that the status is the server's.
fn with_header(request: v1::GenerateRequest, timeout: &str) -> Request<v1::GenerateRequest> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    request
}

#[tokio::test]
async fn a_deadline_is_honoured_in_the_queue_and_while_tokens_are_produced() {
    let fleet = Fleet::start(1).await.unwrap();
    let worker = &fleet.workers[0];
    for mut client in [fleet.client(), worker.client()] {
        worker.hold.hold();
        // The channel's own timer covers only the time to the response's head, and may win that race.
        let error =
            match client.generate(with_deadline(text("The rooks", 2), Duration::from_millis(200))).await {
                Ok(response) => collect(response.into_inner()).await.1.unwrap_err(),
                Err(error) => error,
            };
        assert!(matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled), "{error:?}");
        worker.hold.release();
        worker.until_idle().await;

        worker.hold.hold_soon();
        let mut stream =
            client.generate(with_header(ids(vec![5; 8], 0), "1500m")).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        let error = collect_rest(stream).await;
        assert_eq!(
            (error.code(), status::reason_of(&error)),
            (Code::DeadlineExceeded, Some(Reason::DeadlineExceeded))
        );
        worker.hold.release();
        worker.until_idle().await;
    }
    fleet.stop().await;
}

async fn collect_rest(mut stream: tonic::Streaming<v1::GenerateResponse>) -> tonic::Status {
    within("the stream ends with an error", async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without an error"),
                Err(status) => return status,
            }
        }
    })
    .await
}

#[tokio::test]
async fn bad_parameters_are_named_by_worker_and_control_plane() {
    let fleet = Fleet::start(1).await.unwrap();
    let sampling = |edit: fn(&mut v1::SamplingParams)| {
        let mut request = text("x", 1);
        edit(request.sampling.get_or_insert_default());
        request
    };
    let stop = |stop: v1::StopParams| v1::GenerateRequest { stop: Some(stop), ..text("x", 1) };
    let chat =
        |messages| v1::GenerateRequest { input: Some(Input::Chat(v1::Chat { messages })), ..text("", 1) };
    let cases = [
        (v1::GenerateRequest { input: None, ..text("x", 1) }, "input"),
        (v1::GenerateRequest { priority: 1000, ..text("x", 1) }, "priority"),
        (v1::GenerateRequest { session_id: "s".repeat(300), ..text("x", 1) }, "session_id"),
        (
            v1::GenerateRequest { logprobs: Some(v1::LogprobParams { top: 50 }), ..text("x", 1) },
            "logprobs.top",
        ),
        (ids(vec![], 1), "token_ids"),
        (ids(vec![1, VOCABULARY], 1), "token_ids"),
        (text("", 1), "text"),
        (chat(vec![]), "chat.messages"),
        (chat(vec![v1::ChatMessage::default()]), "chat.messages[0].role"),
        (sampling(|s| s.temperature = Some(f32::NAN)), "sampling.temperature"),
        (sampling(|s| s.temperature = Some(-1.0)), "sampling.temperature"),
        (sampling(|s| s.top_p = Some(0.0)), "sampling.top_p"),
        (sampling(|s| s.min_p = Some(2.0)), "sampling.min_p"),
        (sampling(|s| s.repetition_penalty = Some(0.0)), "sampling.repetition_penalty"),
        (sampling(|s| s.repetition_penalty = Some(1e30)), "sampling.repetition_penalty"),
        (sampling(|s| s.presence_penalty = Some(3.0)), "sampling.presence_penalty"),
        (sampling(|s| s.frequency_penalty = Some(f32::INFINITY)), "sampling.frequency_penalty"),
        (sampling(|s| s.min_tokens = Some(2)), "sampling.min_tokens"),
        (sampling(|s| s.logit_bias = [(1, 101.0)].into()), "sampling.logit_bias[1]"),
        (sampling(|s| s.logit_bias = [(VOCABULARY, 1.0)].into()), "sampling.logit_bias"),
        (stop(v1::StopParams { strings: vec![String::new()], ..Default::default() }), "stop.strings[0]"),
        (stop(v1::StopParams { token_ids: vec![VOCABULARY], ..Default::default() }), "stop.token_ids[0]"),
    ];
    for client in [fleet.client(), fleet.workers[0].client()] {
        for (request, field) in &cases {
            let error = generate(&client, request.clone()).await.expect_err(field);
            assert_eq!(error.code(), Code::InvalidArgument, "{field}: {error:?}");
            assert_eq!(status::reason_of(&error), Some(Reason::InvalidField), "{field}");
            let fields: Vec<_> = status::field_violations(&error).into_iter().map(|(name, _)| name).collect();
            assert_eq!(fields, [*field]);
            assert!(error.message().contains(field), "{error:?}");
        }
        let mut late = Request::new(text("x", 1));
        late.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
        let error = client.clone().generate(late).await.unwrap_err();
        assert_eq!(status::field_violations(&error)[0].0, "grpc-timeout");
    }
    fleet.stop().await;
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_refused_with_both_numbers() {
    let fleet = Fleet::start(1).await.unwrap();
    for client in [fleet.client(), fleet.workers[0].client()] {
        for (request, field) in
            [(ids(vec![1; 700], 1), "token_ids"), (text(&"\u{1F426}".repeat(700), 1), "text")]
        {
            let error = generate(&client, request).await.unwrap_err();
            assert_eq!(
                (error.code(), status::reason_of(&error)),
                (Code::InvalidArgument, Some(Reason::PromptTooLong))
            );
            assert_eq!(status::field_violations(&error)[0].0, field);
            assert!(error.message().contains(&CONTEXT_TOKENS.to_string()), "{error}");
            assert!(field == "text" || error.message().contains("700"), "{error}");
        }
    }
    fleet.stop().await;
}

#[tokio::test]
async fn text_to_tokenise_is_limited_and_the_answer_fits_everywhere() {
    let fleet = Fleet::start(1).await.unwrap();
    let request = |bytes: usize| v1::TokenizeRequest {
        input: Some(v1::tokenize_request::Input::Text("~ ".repeat(bytes / 2))),
        ..Default::default()
    };
    let mut answers = Vec::new();
    for mut client in [fleet.client(), fleet.workers[0].client()] {
        let error = client.tokenize(request((512 << 10) + 2)).await.unwrap_err();
        assert_eq!(status::field_violations(&error)[0].0, "text", "{error:?}");
        answers.push(client.tokenize(request(512 << 10)).await.unwrap().into_inner());
    }
    assert!(answers[0] == answers[1] && answers[0].token_ids.len() > 100_000);
    fleet.stop().await;
}

#[tokio::test]
async fn the_limit_on_calls_is_a_refusal_too() {
    let limit = |settings: &mut rookery_tests::fleet::WorkerSettings| {
        settings.config.server.max_calls = std::num::NonZeroU32::MIN;
    };
    let fleet = Fleet::start_with(1, |_| {}, limit).await.unwrap();
    let worker = &fleet.workers[0];
    worker.hold.hold();
    let _running = worker.client().generate(text("x", 1)).await.unwrap();
    let error = generate(&worker.client(), text("x", 1)).await.unwrap_err();
    assert_eq!((error.code(), status::reason_of(&error)), (Code::ResourceExhausted, Some(Reason::QueueFull)));
    worker.hold.release();
    drop(_running);
    fleet.stop().await;
}
