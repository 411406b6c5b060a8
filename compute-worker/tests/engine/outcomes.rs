//! How generations end and what they say: finish reasons, stops, limits, log-probabilities, usage.

use rookery_compute_worker::engine::{FinishReason, GenerationError, Sampling, Stop};
use rookery_model::pack::Recipe;

use crate::support::{CONTEXT, Driver, Outcome, VOCABULARY, bundle, config, prompt, request};

fn driver() -> Driver {
    Driver::new(&bundle("qwen2", Recipe::W8), config())
}

/// What the model says by itself: forty greedy tokens.
fn plain() -> Outcome {
    driver().run(request("plain", prompt(20, 1), 40))
}

fn text_of(tokens: &[u32]) -> String {
    let driver = driver();
    let bytes = tokens.iter().flat_map(|token| driver.core.tokenizer().token_bytes(*token).unwrap_or(&[]));
    String::from_utf8_lossy(&bytes.copied().collect::<Vec<_>>()).into_owned()
}

#[test]
fn max_tokens_ends_it_and_the_text_is_that_of_the_tokens() {
    let outcome = plain();
    assert_eq!(outcome.reason, Some(FinishReason::MaxTokens));
    assert_eq!(outcome.started, Some((20, 0)));
    assert_eq!(outcome.tokens.len(), 40);
    assert_eq!(outcome.deltas, 40, "a reader that keeps up sees every token by itself");
    assert_eq!(outcome.text, text_of(&outcome.tokens));
    assert_eq!((outcome.usage.prompt_tokens, outcome.usage.generated_tokens), (20, 40));
}

#[test]
fn a_full_context_ends_it() {
    let mut request = request("long", prompt(CONTEXT - 5, 1), 0);
    request.sampling.max_tokens = None;
    let outcome = driver().run(request);
    assert_eq!((outcome.reason, outcome.tokens.len()), (Some(FinishReason::ContextFull), 5));
}

#[test]
fn a_stop_token_ends_it_and_has_no_text() {
    let plain = plain();
    let index = 7;
    let first = plain.tokens.iter().position(|token| *token == plain.tokens[index]).unwrap();
    let mut request = request("stop", prompt(20, 1), 40);
    request.stop.token_ids = vec![plain.tokens[index]];
    let outcome = driver().run(request);
    assert_eq!(outcome.reason, Some(FinishReason::StopToken));
    assert_eq!(outcome.tokens, plain.tokens[..=first]);
    assert_eq!(outcome.text, text_of(&plain.tokens[..first]));
}

#[test]
fn a_stop_string_ends_it_and_is_not_returned() {
    let plain = plain();
    let (start, _) = plain.text.char_indices().nth(plain.text.chars().count() / 2).unwrap();
    let stop: String = plain.text[start..].chars().take(3).collect();
    let mut request = request("stop", prompt(20, 1), 40);
    request.stop.strings = vec!["never in a text of tiny models".to_owned(), stop.clone()];
    let outcome = driver().run(request);
    assert_eq!(outcome.reason, Some(FinishReason::StopString));
    assert_eq!(outcome.text, plain.text[..plain.text.find(&stop).unwrap()]);
    assert_eq!(outcome.stop_string, Some(stop));
}

#[test]
fn the_models_own_end_ends_it_unless_it_is_ignored_or_too_early() {
    let mut driver = driver();
    let end = driver.core.tokenizer().config().eos[0];
    let mut run = |id: &str, min_tokens, ignore_eos| {
        let mut request = request(id, prompt(20, 1), 6);
        request.sampling = Sampling { min_tokens, logit_bias: vec![(end, 99.0)], ..request.sampling };
        request.stop = Stop { ignore_eos, ..Stop::default() };
        driver.run(request)
    };
    let ended = run("a", 0, false);
    assert_eq!(
        (ended.reason, ended.tokens, ended.text.as_str()),
        (Some(FinishReason::EndOfText), vec![end], "")
    );
    let ignored = run("b", 0, true);
    assert_eq!((ignored.reason, ignored.tokens), (Some(FinishReason::MaxTokens), vec![end; 6]));
    let later = run("c", 3, false);
    assert_eq!((later.reason, later.tokens.len()), (Some(FinishReason::EndOfText), 4));
    assert!(!later.tokens[..3].contains(&end));
}

#[test]
fn logprobs_come_with_every_token() {
    let mut request = request("logprobs", prompt(20, 1), 5);
    request.logprobs = Some(3);
    let outcome = driver().run(request);
    assert_eq!(outcome.logprobs.len(), 5);
    for (position, token) in outcome.logprobs.iter().zip(&outcome.tokens) {
        assert_eq!(position.chosen.token_id, *token);
        assert_eq!(position.top[0], position.chosen, "greedy takes the most likely");
        assert_eq!(position.top.len(), 3);
        assert!(position.top.is_sorted_by(|a, b| a.logprob >= b.logprob) && position.chosen.logprob < 0.0);
    }
}

#[test]
fn a_seed_repeats_itself_and_another_differs() {
    let mut driver = driver();
    let mut run = |id: &str, seed| {
        let mut request = request(id, prompt(20, 1), 30);
        request.sampling = Sampling { temperature: 1.0, seed, ..request.sampling };
        driver.run(request).tokens
    };
    let first = run("a", 1);
    assert_eq!(first, run("b", 1));
    assert_ne!(first, run("c", 2));
}

#[test]
fn forbidding_every_token_is_the_requests_own_fault() {
    let mut request = request("none", prompt(20, 1), 5);
    request.sampling.logit_bias = (0..VOCABULARY).map(|id| (id, -100.0)).collect();
    let mut driver = driver();
    assert_eq!(driver.run(request).error, Some(GenerationError::AllForbidden));
    assert!(!driver.core.load().failed);
}
