use proptest::prelude::*;

use super::*;
use crate::v1::generate_request::Input as Raw;

fn text_request() -> v1::GenerateRequest {
    v1::GenerateRequest { input: Some(Raw::Text("hello".into())), ..Default::default() }
}

fn sampling(edit: impl FnOnce(&mut v1::SamplingParams)) -> v1::GenerateRequest {
    let mut params = v1::SamplingParams::default();
    edit(&mut params);
    v1::GenerateRequest { sampling: Some(params), ..text_request() }
}

fn stop(strings: Vec<String>, token_ids: Vec<u32>) -> v1::GenerateRequest {
    let stop = v1::StopParams { strings, token_ids, ignore_eos: false };
    v1::GenerateRequest { stop: Some(stop), ..text_request() }
}

fn chat(roles: &[&str]) -> v1::GenerateRequest {
    let messages =
        roles.iter().map(|role| v1::ChatMessage { role: (*role).into(), content: String::new() }).collect();
    v1::GenerateRequest { input: Some(Raw::Chat(v1::Chat { messages })), ..text_request() }
}

fn fields(request: v1::GenerateRequest) -> Vec<String> {
    match Generate::try_from(request) {
        Ok(_) => vec![],
        Err(error) => error.violations().iter().map(|(field, _)| field.clone()).collect(),
    }
}

#[test]
fn defaults_are_greedy_and_unlimited() {
    let request = Generate::try_from(text_request()).unwrap();
    let expected = Sampling {
        max_tokens: None,
        min_tokens: 0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: vec![],
        seed: None,
    };
    assert_eq!(request.sampling, expected);
    assert_eq!(request.stop, Stop::default());
    assert_eq!(request.logprobs, None);
}

#[test]
fn each_limit_names_its_field() {
    let with = |edit: fn(&mut v1::GenerateRequest)| {
        let mut request = text_request();
        edit(&mut request);
        request
    };
    let no_ids = v1::TokenIds { ids: vec![] };
    let cases = [
        (with(|r| r.input = None), "input"),
        (v1::GenerateRequest { input: Some(Raw::TokenIds(no_ids)), ..text_request() }, "token_ids"),
        (chat(&[]), "chat.messages"),
        (chat(&["user", ""]), "chat.messages[1].role"),
        (chat(&[&"r".repeat(65)]), "chat.messages[0].role"),
        (with(|r| r.model = "m".repeat(257)), "model"),
        (with(|r| r.session_id = "s".repeat(257)), "session_id"),
        (with(|r| r.priority = 101), "priority"),
        (with(|r| r.priority = i32::MIN), "priority"),
        (with(|r| r.logprobs = Some(v1::LogprobParams { top: 21 })), "logprobs.top"),
        (sampling(|s| s.temperature = Some(-0.1)), "sampling.temperature"),
        (sampling(|s| s.temperature = Some(100.1)), "sampling.temperature"),
        (sampling(|s| s.temperature = Some(f32::NAN)), "sampling.temperature"),
        (sampling(|s| s.temperature = Some(f32::INFINITY)), "sampling.temperature"),
        (sampling(|s| s.top_p = Some(0.0)), "sampling.top_p"),
        (sampling(|s| s.top_p = Some(1.1)), "sampling.top_p"),
        (sampling(|s| s.min_p = Some(-0.1)), "sampling.min_p"),
        (sampling(|s| s.repetition_penalty = Some(0.0)), "sampling.repetition_penalty"),
        (sampling(|s| s.repetition_penalty = Some(f32::INFINITY)), "sampling.repetition_penalty"),
        (sampling(|s| s.repetition_penalty = Some(0.009)), "sampling.repetition_penalty"),
        (sampling(|s| s.repetition_penalty = Some(101.0)), "sampling.repetition_penalty"),
        (sampling(|s| s.presence_penalty = Some(2.1)), "sampling.presence_penalty"),
        (sampling(|s| s.frequency_penalty = Some(-2.1)), "sampling.frequency_penalty"),
        (sampling(|s| s.logit_bias = [(7, 100.5)].into()), "sampling.logit_bias[7]"),
        (sampling(|s| s.logit_bias = [(7, f32::NAN)].into()), "sampling.logit_bias[7]"),
        (sampling(|s| s.logit_bias = (0..1025).map(|id| (id, 0.0)).collect()), "sampling.logit_bias"),
        (sampling(|s| (s.max_tokens, s.min_tokens) = (Some(4), Some(5))), "sampling.min_tokens"),
        (stop(vec!["a".into(), String::new()], vec![]), "stop.strings[1]"),
        (stop(vec!["a".repeat(257)], vec![]), "stop.strings[0]"),
        (stop(vec!["a".into(); 17], vec![]), "stop.strings"),
        (stop(vec![], vec![0; 65]), "stop.token_ids"),
    ];
    for (request, field) in cases {
        assert_eq!(fields(request), [field]);
    }
}

#[test]
fn all_violations_are_named_at_once() {
    let mut request = sampling(|s| (s.temperature, s.top_p) = (Some(-1.0), Some(2.0)));
    request.priority = 1000;
    assert_eq!(fields(request), ["priority", "sampling.temperature", "sampling.top_p"]);
}

#[test]
fn ids_outside_the_vocabulary_are_named() {
    let mut request = stop(vec![], vec![5, 100]);
    request.sampling = Some(v1::SamplingParams { logit_bias: [(100, 1.0)].into(), ..Default::default() });
    let request = Generate::try_from(request).unwrap();
    assert!(request.check_vocabulary(101).is_ok());
    let error = request.check_vocabulary(100).unwrap_err();
    let names: Vec<_> = error.violations().iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(names, ["sampling.logit_bias", "stop.token_ids[1]"]);
}

proptest! {
    /// Whatever numbers arrive, what passes is finite and inside the limits.
    #[test]
    fn what_passes_is_in_range(t in any::<f32>(), p in any::<f32>(), m in any::<f32>(), r in any::<f32>(), f in any::<f32>()) {
        let request = sampling(|s| {
            (s.temperature, s.top_p, s.min_p) = (Some(t), Some(p), Some(m));
            (s.repetition_penalty, s.frequency_penalty) = (Some(r), Some(f));
        });
        if let Ok(request) = Generate::try_from(request) {
            let s = request.sampling;
            prop_assert!((0.0..=100.0).contains(&s.temperature) && s.top_p > 0.0 && s.top_p <= 1.0);
            prop_assert!((0.0..=1.0).contains(&s.min_p) && s.repetition_penalty > 0.0);
            prop_assert!(s.repetition_penalty.is_finite() && s.frequency_penalty.abs() <= 2.0);
        }
    }
}

#[test]
fn continuations_and_labels_are_checked() {
    let with = |token_ids: Vec<u32>, temperature: f32, seed: Option<u64>| v1::GenerateRequest {
        continuation: Some(v1::Continuation { token_ids, text_bytes: u64::MAX }),
        ..sampling(|params| (params.temperature, params.seed) = (Some(temperature), seed))
    };
    assert_eq!(fields(with(vec![1], 0.0, None)), Vec::<String>::new());
    assert_eq!(fields(with(vec![1], 0.5, Some(3))), Vec::<String>::new());
    assert_eq!(fields(with(vec![1], 0.5, None)), ["sampling.seed"]);
    assert_eq!(fields(with(vec![], 0.0, None)), ["continuation.token_ids"]);
    let request = Generate::try_from(with(vec![1, 9], 0.0, None)).unwrap();
    assert_eq!(request.check_vocabulary(9).unwrap_err().violations()[0].0, "continuation.token_ids[1]");
    let labels = |labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        fields(v1::GenerateRequest { labels, ..text_request() })
    };
    assert_eq!(labels(&[("site", "berlin")]), Vec::<String>::new());
    assert_eq!(labels(&[("", "berlin")]), ["labels"]);
    assert_eq!(labels(&[("site", &"b".repeat(64))]), ["labels"]);
    let many: Vec<_> = (0..17).map(|n| n.to_string()).collect();
    assert_eq!(labels(&many.iter().map(|name| (&**name, "x")).collect::<Vec<_>>()), ["labels"]);
}
