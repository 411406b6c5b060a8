//! `rookery generate`: one generation from any endpoint.

use std::io::{IsTerminal, Read};
use std::time::Duration;

use clap::Args;
use rookery_proto::v1::generate_request::Input;
use rookery_proto::v1::generate_response::Event;
use rookery_proto::v1::{
    Chat, ChatMessage, FinishReason, GenerateRequest, GenerateResponse, LogprobParams, SamplingParams,
    StopParams, TokenIds,
};
use serde_json::{Value, json};

use crate::client::{self, Summary};
use crate::error::{Failure, OrFail};
use crate::output;
use crate::processes::{stop_requests, stopped};

/// Streams one generation from an endpoint.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rookery generate 'def fibonacci(n):' --max-tokens 64
  rookery generate --chat 'What is a rookery?' --temperature 0.7 --seed 1
  git diff | rookery generate - --chat --system 'Write a commit message.'
  rookery generate 'Hello' --endpoint 127.0.0.1:7071 --json | jq .")]
pub struct GenerateArgs {
    /// What the model is to continue or answer; `-`, or nothing and a pipe, reads standard input.
    prompt: Option<String>,
    /// Worker or control plane to ask.
    #[arg(long, default_value = client::DEFAULT_ENDPOINT, env = "ROOKERY_ENDPOINT")]
    endpoint: String,
    /// Model to use; may be left out where only one is served.
    #[arg(long, default_value = "")]
    model: String,
    /// Write every event as one line of JSON instead of the text.
    #[arg(long)]
    json: bool,
    /// Give up after this time, such as `30s`.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    stop: StopArgs,
    /// Also return this many of the most likely tokens at each position (with --json).
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<u32>,
    /// Higher is scheduled first, from -100 to 100.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Requests of one session go to the same gateway where possible.
    #[arg(long, default_value = "")]
    session: String,
    /// Only gateways with this label, such as `site=berlin`; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
}

/// What the prompt is.
#[derive(Args, Debug)]
#[command(next_help_heading = "Input")]
struct InputArgs {
    /// The prompt is a message of a user to an assistant: use the model's chat template.
    #[arg(long)]
    chat: bool,
    /// What the assistant is told first (implies --chat).
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The prompt is a list of token ids, separated by commas or blanks.
    #[arg(long, conflicts_with_all = ["chat", "system"])]
    token_ids: bool,
}

/// How tokens are chosen. What is left out is left to the endpoint: greedy, no penalties.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// Most tokens to generate.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Neither end of text nor stop conditions before this many tokens.
    #[arg(long, value_name = "N")]
    min_tokens: Option<u32>,
    /// 0 always takes the most likely token; higher is more varied.
    #[arg(long)]
    temperature: Option<f32>,
    /// Choose among the K most likely tokens.
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Choose among the most likely tokens that together reach this probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Drop tokens less likely than this share of the most likely one.
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Make tokens that occurred less likely; above 1.
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Subtracted from logits of tokens that occurred in the answer, from -2 to 2.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// The same, times how often they occurred.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Added to the logit of a token: `ID=BIAS`; may be repeated.
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias, allow_hyphen_values = true)]
    logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same answer.
    #[arg(long)]
    seed: Option<u64>,
}

/// When to stop early.
#[derive(Args, Debug)]
#[command(next_help_heading = "Stopping")]
struct StopArgs {
    /// End before this text; may be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// End at this token; may be repeated.
    #[arg(long, value_name = "ID")]
    stop_token: Vec<u32>,
    /// Go on past the end of the text; for measurements.
    #[arg(long)]
    ignore_eos: bool,
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("expected ID=BIAS")?;
    let id = id.trim().parse().map_err(|_| format!("{id:?} is not a token id"))?;
    let bias = bias.trim().parse().map_err(|_| format!("{bias:?} is not a number"))?;
    Ok((id, bias))
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Runs the command.
///
/// # Errors
/// If the prompt cannot be read, or the endpoint refuses or loses the generation.
pub async fn run(args: GenerateArgs) -> Result<(), Failure> {
    let (endpoint, json, timeout) = (args.endpoint.clone(), args.json, args.timeout);
    let request = request(args)?;
    let mut stops = stop_requests(false)?;
    let mut ends_with_newline = true;
    let work = async {
        let mut client = client::connect(&endpoint).await?;
        client::generate(&mut client, request, timeout, |response| {
            if json {
                return output::json_line(&event_json(response));
            }
            if let Some(Event::Delta(delta)) = &response.event
                && !delta.text.is_empty()
            {
                ends_with_newline = delta.text.ends_with('\n');
                output::write(&delta.text)?;
            }
            Ok(())
        })
        .await
    };
    let result = tokio::select! {
        // Polled first so that Ctrl-C wins over a stream that never pauses. Both arms are cancel safe:
        // dropping the call is what cancels the generation.
        biased;
        _ = stopped(&mut stops) => Err(Failure::new("interrupted, the generation was cancelled")),
        result = work => result,
    };
    if !json && !ends_with_newline {
        output::line("")?;
    }
    let summary = result?;
    if !json {
        output::note(describe(&summary));
    }
    Ok(())
}

/// One line about a finished generation.
pub fn describe(summary: &Summary) -> String {
    let usage = summary.finished.usage.unwrap_or_default();
    let speed = summary.tokens_per_second().map(|speed| format!(", {speed:.1} tokens/s")).unwrap_or_default();
    let reason = match summary.finished.reason() {
        FinishReason::EndOfText => "end of text",
        FinishReason::MaxTokens => "token limit",
        FinishReason::StopString => "stop text",
        FinishReason::StopToken => "stop token",
        FinishReason::ContextFull => "context full",
        FinishReason::Unspecified => "unknown end",
    };
    format!(
        "[{} on {}: {} prompt tokens ({} cached), {} generated, first token after {:.0} ms{speed}, {reason}]",
        summary.started.model,
        summary.started.gateway,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.generated_tokens,
        summary.first_token.as_secs_f64() * 1e3,
    )
}

fn request(args: GenerateArgs) -> Result<GenerateRequest, Failure> {
    let prompt = read_prompt(args.prompt)?;
    let input = if args.input.token_ids {
        Input::TokenIds(TokenIds { ids: parse_ids(&prompt)? })
    } else if args.input.chat || args.input.system.is_some() {
        let message = |role: &str, content| ChatMessage { role: role.to_owned(), content };
        let system = args.input.system.map(|text| message("system", text));
        Input::Chat(Chat { messages: system.into_iter().chain([message("user", prompt)]).collect() })
    } else {
        Input::Text(prompt)
    };
    let sampling = args.sampling;
    Ok(GenerateRequest {
        model: args.model,
        input: Some(input),
        sampling: Some(SamplingParams {
            max_tokens: sampling.max_tokens,
            min_tokens: sampling.min_tokens,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias: sampling.logit_bias.into_iter().collect(),
            seed: sampling.seed,
        }),
        stop: Some(StopParams {
            strings: args.stop.stop,
            token_ids: args.stop.stop_token,
            ignore_eos: args.stop.ignore_eos,
        }),
        logprobs: args.logprobs.map(|top| LogprobParams { top }),
        priority: args.priority,
        session_id: args.session,
        labels: args.label.into_iter().collect(),
        continuation: None,
    })
}

fn read_prompt(argument: Option<String>) -> Result<String, Failure> {
    match argument {
        Some(prompt) if prompt != "-" => Ok(prompt),
        None if std::io::stdin().is_terminal() => {
            Err(Failure::usage("there is no prompt").hint("give it as an argument or by a pipe"))
        }
        Some(_) | None => {
            let mut prompt = String::new();
            let read = std::io::stdin().lock().read_to_string(&mut prompt);
            read.or_fail(|| "could not read the prompt from standard input".to_owned())?;
            Ok(prompt)
        }
    }
}

fn parse_ids(text: &str) -> Result<Vec<u32>, Failure> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().map_err(|_| Failure::usage(format!("{part:?} is not a token id"))))
        .collect()
}

/// An event as JSON, with the names of the proto.
fn event_json(response: &GenerateResponse) -> Value {
    match &response.event {
        Some(Event::Started(started)) => json!({ "started": {
            "request_id": started.request_id, "gateway": started.gateway, "model": started.model,
            "model_digest": started.model_digest, "prompt_tokens": started.prompt_tokens,
            "cached_tokens": started.cached_tokens, "seed": started.seed,
        }}),
        Some(Event::Delta(delta)) => {
            let mut event = json!({ "text": delta.text, "token_ids": delta.token_ids });
            if !delta.logprobs.is_empty() {
                let positions = delta.logprobs.iter().map(|position| {
                    let token = |t: &rookery_proto::v1::TokenLogprob| {
                        json!({ "token_id": t.token_id, "logprob": t.logprob, "bytes": t.bytes })
                    };
                    let top: Vec<Value> = position.top.iter().map(token).collect();
                    json!({ "chosen": position.chosen.as_ref().map(token), "top": top })
                });
                event["logprobs"] = positions.collect();
            }
            json!({ "delta": event })
        }
        Some(Event::Finished(finished)) => {
            let usage = finished.usage.unwrap_or_default();
            let timings = finished.timings.unwrap_or_default();
            json!({ "finished": {
                "reason": finished.reason().as_str_name(), "stop_string": finished.stop_string,
                "usage": {
                    "prompt_tokens": usage.prompt_tokens, "cached_tokens": usage.cached_tokens,
                    "generated_tokens": usage.generated_tokens, "preemptions": usage.preemptions,
                },
                "timings": {
                    "queue_us": timings.queue_us, "prefill_us": timings.prefill_us, "decode_us": timings.decode_us,
                },
            }})
        }
        None => json!({}),
    }
}
