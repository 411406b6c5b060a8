//! Generations that succeed.

use rookery_proto::v1::{self, FinishReason, generate_request::Input};
use rookery_tests::{
    bundles::{CONTEXT_TOKENS, MODEL, VOCABULARY},
    client::{Answer, generate, ids, text},
    fleet::Fleet,
};

fn sampled(request: v1::GenerateRequest, seed: Option<u64>) -> v1::GenerateRequest {
    let sampling = request.sampling.unwrap_or_default();
    let sampling = v1::SamplingParams { temperature: Some(1.0), seed, ..sampling };
    v1::GenerateRequest { sampling: Some(sampling), ..request }
}

fn chat(messages: &[(&str, &str)], max_tokens: u32) -> v1::GenerateRequest {
    let message =
        |(role, content): &(&str, &str)| v1::ChatMessage { role: (*role).into(), content: (*content).into() };
    let messages = messages.iter().map(message).collect();
    v1::GenerateRequest { input: Some(Input::Chat(v1::Chat { messages })), ..text("", max_tokens) }
}

/// What must be the same wherever a request runs.
fn essence(answer: &Answer) -> (&str, &[u32], i32) {
    (&answer.text, &answer.token_ids, answer.finished.as_ref().unwrap().reason)
}

#[tokio::test]
async fn a_worker_and_the_control_plane_give_the_same_answer() {
    let fleet = Fleet::start(2).await.unwrap();
    let requests = [
        text("The rooks came back", 40),
        sampled(text("fn main() {", 40), Some(7)),
        ids(vec![1, 2, 3, 500], 20),
        chat(&[("system", "Be brief."), ("user", "Why do rooks nest in elms?")], 20),
    ];
    for request in requests {
        let through = generate(&fleet.client(), request.clone()).await.unwrap();
        let usage = through.finished.as_ref().unwrap().usage.unwrap();
        assert_eq!(usage.generated_tokens as usize, through.token_ids.len());
        assert_eq!(usage.prompt_tokens, through.started.as_ref().unwrap().prompt_tokens);
        for worker in &fleet.workers {
            let direct = generate(&worker.client(), request.clone()).await.unwrap();
            assert_eq!(essence(&direct), essence(&through));
            assert_eq!(direct.gateway(), worker.worker.gateway_id());
        }
    }
    fleet.stop().await;
}

#[tokio::test]
async fn a_drawn_seed_is_reported_and_repeats_the_answer() {
    let fleet = Fleet::start(1).await.unwrap();
    let client = fleet.client();
    let first = generate(&client, sampled(text("Das Nest", 30), None)).await.unwrap();
    let seed = first.started.as_ref().unwrap().seed;
    let again = generate(&client, sampled(text("Das Nest", 30), Some(seed))).await.unwrap();
    assert_eq!(essence(&first), essence(&again));
    let other = generate(&client, sampled(text("Das Nest", 30), Some(seed ^ 1))).await.unwrap();
    assert_ne!(first.token_ids, other.token_ids);
    fleet.stop().await;
}

#[tokio::test]
async fn every_reason_to_stop_is_told() {
    let fleet = Fleet::start(1).await.unwrap();
    let client = fleet.client();
    let whole = generate(&client, text("The rooks", 24)).await.unwrap();
    let reason = |answer: &Answer| answer.finished.as_ref().unwrap().reason();
    assert_eq!(reason(&whole), FinishReason::MaxTokens);
    assert_eq!(whole.token_ids.len(), 24);

    let last = *whole.token_ids.last().unwrap();
    let first_at = whole.token_ids.iter().position(|&id| id == last).unwrap();
    let stop = v1::StopParams { token_ids: vec![last], ignore_eos: true, ..Default::default() };
    let stopped =
        generate(&client, v1::GenerateRequest { stop: Some(stop), ..text("The rooks", 24) }).await.unwrap();
    assert_eq!(reason(&stopped), FinishReason::StopToken);
    assert_eq!(stopped.token_ids, whole.token_ids[..=first_at]);

    let characters: Vec<_> = whole.text.chars().filter(|c| *c != '\u{fffd}').collect();
    if let Some(middle) = characters.get(characters.len() / 2) {
        let stop =
            v1::StopParams { strings: vec![middle.to_string()], ignore_eos: true, ..Default::default() };
        let request = v1::GenerateRequest { stop: Some(stop), ..text("The rooks", 24) };
        let stopped = generate(&client, request).await.unwrap();
        assert_eq!(reason(&stopped), FinishReason::StopString);
        assert_eq!(stopped.finished.as_ref().unwrap().stop_string, middle.to_string());
        assert_eq!(stopped.text, whole.text[..whole.text.find(*middle).unwrap()]);
    }

    let long = generate(&client, ids(vec![3; CONTEXT_TOKENS - 8], 0)).await.unwrap();
    assert_eq!(reason(&long), FinishReason::ContextFull);
    fleet.stop().await;
}

#[tokio::test]
async fn logprobs_come_with_every_token() {
    let fleet = Fleet::start(1).await.unwrap();
    let request =
        v1::GenerateRequest { logprobs: Some(v1::LogprobParams { top: 3 }), ..text("When the", 12) };
    let answer = generate(&fleet.client(), request).await.unwrap();
    assert_eq!(answer.logprobs.len(), answer.token_ids.len());
    for (position, id) in answer.logprobs.iter().zip(&answer.token_ids) {
        let chosen = position.chosen.as_ref().unwrap();
        assert_eq!(chosen.token_id, *id);
        assert_eq!(position.top.len(), 3);
        assert_eq!(position.top[0].token_id, *id, "greedy takes the most likely token");
        assert!(position.top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
        assert!(position.top.iter().all(|token| token.logprob <= 0.0));
    }
    fleet.stop().await;
}

#[tokio::test]
async fn tokenize_gives_the_ids_that_generate_would_use() {
    let fleet = Fleet::start(1).await.unwrap();
    let mut client = fleet.client();
    let input = v1::tokenize_request::Input::Text("Гнездо на дереве. 🐦".repeat(100));
    let request = v1::TokenizeRequest { model: MODEL.into(), input: Some(input) };
    let tokens = client.tokenize(request).await.unwrap().into_inner();
    assert!(tokens.token_ids.iter().all(|&id| id < VOCABULARY));
    assert_eq!(tokens.token_bytes.concat(), "Гнездо на дереве. 🐦".repeat(100).into_bytes());

    let messages = vec![v1::ChatMessage { role: "user".into(), content: "hi".into() }];
    let input = v1::tokenize_request::Input::Chat(v1::Chat { messages });
    let request = v1::TokenizeRequest { model: MODEL.into(), input: Some(input) };
    let tokens = client.tokenize(request).await.unwrap().into_inner();
    let from_chat = generate(&client, chat(&[("user", "hi")], 8)).await.unwrap();
    let from_ids = generate(&client, ids(tokens.token_ids, 8)).await.unwrap();
    assert_eq!(essence(&from_chat), essence(&from_ids));
    fleet.stop().await;
}

#[tokio::test]
async fn list_models_counts_gateways() {
    let fleet = Fleet::start(2).await.unwrap();
    let models = fleet.client().list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().models;
    let direct =
        fleet.workers[0].client().list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().models;
    assert_eq!(models.len(), 1);
    assert_eq!((&*models[0].name, models[0].gateways), (MODEL, 2));
    assert_eq!(direct, [v1::Model { gateways: 1, ..models[0].clone() }]);
    assert_eq!(models[0].context_tokens as usize, CONTEXT_TOKENS);
    assert!(models[0].digest.starts_with("sha256:"));
    fleet.stop().await;
}

#[tokio::test]
async fn the_only_model_need_not_be_named() {
    let fleet = Fleet::start(1).await.unwrap();
    let request = v1::GenerateRequest { model: String::new(), ..text("x", 2) };
    generate(&fleet.client(), request.clone()).await.unwrap();
    generate(&fleet.workers[0].client(), request).await.unwrap();
    fleet.stop().await;
}
