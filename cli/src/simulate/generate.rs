//! `InferenceService` of a simulated gateway: no model answers, but something that takes its time and says what it is.
//!
//! Tokens depend on the version and their place alone, so an answer that goes on with another gateway is what it would
//! have been, as with real ones.

use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::{Stream, stream};
use rookery_compute_worker::versions::Agent;
use rookery_proto::server::{Admission, Gate};
use rookery_proto::status::{Reason, refuse};
use rookery_proto::v1;
use rookery_proto::v1::generate_request::Input;
use rookery_proto::v1::generate_response::Event;
use rookery_proto::v1::inference_service_server::InferenceService;
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use super::machine::{Running, SimulatedMachine};

/// The answer, again and again.
const WORDS: [&str; 8] = ["this ", "gateway ", "is ", "simulated ", "and ", "has ", "no ", "model. "];

/// Tokens of an answer without a limit.
const USUAL_TOKENS: u32 = 64;

/// Bytes of text that count as a token.
const BYTES_A_TOKEN: usize = 4;

/// Tokens a second that a board reads and writes.
const PREFILL: f64 = 200.0;
const DECODE: f64 = 10.0;

/// Answers for one gateway. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Inference {
    id: String,
    agent: Agent<SimulatedMachine>,
    gate: Gate,
}

impl Inference {
    /// Of the gateway `id`.
    pub(crate) fn new(id: String, agent: Agent<SimulatedMachine>, gate: Gate) -> Self {
        Self { id, agent, gate }
    }
}

/// An answer on its way.
struct Generation {
    id: String,
    running: Running,
    _admission: Admission,
    arrived: Instant,
    hurry: f64,
    seed: u64,
    prompt_tokens: u32,
    /// Tokens that another gateway sent before.
    from: u32,
    /// Number of the next token.
    next: u32,
    most: u32,
    began: Option<Instant>,
    finished: bool,
}

impl Generation {
    async fn next(&mut self) -> Option<v1::GenerateResponse> {
        let event = if self.began.is_none() {
            let reading = f64::from(self.prompt_tokens.saturating_add(self.from)) / PREFILL;
            self.take(reading).await;
            self.began = Some(Instant::now());
            self.running.began(self.arrived.elapsed());
            Event::Started(self.started())
        } else if self.next < self.most {
            self.take(1.0 / DECODE).await;
            let place = self.next;
            self.next += 1;
            let text = WORDS[place as usize % WORDS.len()].to_owned();
            Event::Delta(v1::Delta { text, token_ids: vec![place % 512], logprobs: Vec::new() })
        } else if !self.finished {
            self.finished = true;
            Event::Finished(self.end())
        } else {
            return None;
        };
        Some(v1::GenerateResponse { event: Some(event) })
    }

    async fn take(&self, seconds: f64) {
        sleep(Duration::from_secs_f64(seconds / self.hurry)).await;
    }

    fn started(&self) -> v1::Started {
        let (model, digest) = self.running.version();
        v1::Started {
            request_id: format!("{}-{:x}", self.id, self.seed),
            gateway: self.id.clone(),
            model: model.to_owned(),
            model_digest: digest.to_string(),
            prompt_tokens: self.prompt_tokens,
            cached_tokens: 0,
            seed: self.seed,
        }
    }

    fn end(&self) -> v1::Finished {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let began = self.began.unwrap_or(self.arrived);
        v1::Finished {
            reason: v1::FinishReason::MaxTokens.into(),
            stop_string: String::new(),
            usage: Some(v1::Usage {
                prompt_tokens: self.prompt_tokens,
                cached_tokens: 0,
                generated_tokens: self.most,
                preemptions: 0,
            }),
            timings: Some(v1::Timings {
                queue_us: 0,
                prefill_us: micros(began.duration_since(self.arrived)),
                decode_us: micros(began.elapsed()),
            }),
        }
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<v1::GenerateResponse, Status>> + Send>>;

#[tonic::async_trait]
impl InferenceService for Inference {
    type GenerateStream = Answers;

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<Answers>, Status> {
        let admission = self.gate.admit()?;
        let request = request.into_inner();
        let machine = self.agent.machine();
        let running = machine.run(&request.model).ok_or_else(|| {
            let message = format!("model {:?} is not served here", request.model);
            refuse(Reason::ModelNotFound, message)
        })?;
        let sampling = request.sampling.unwrap_or_default();
        let limit = sampling.max_tokens.filter(|most| *most > 0).unwrap_or(USUAL_TOKENS);
        let from = request.continuation.map_or(0, |before| before.token_ids.len());
        let from = u32::try_from(from).unwrap_or(u32::MAX);
        let generation = Generation {
            id: self.id.clone(),
            running,
            _admission: admission,
            arrived: Instant::now(),
            hurry: machine.profile().hurry,
            seed: sampling.seed.unwrap_or(1),
            prompt_tokens: prompt_tokens(request.input.as_ref()),
            from,
            next: from,
            most: limit.max(from),
            began: None,
            finished: false,
        };
        let answers = stream::unfold(generation, |mut generation| async {
            let event = generation.next().await?;
            Some((Ok(event), generation))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn tokenize(
        &self,
        _request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        Err(Status::unimplemented("a simulated gateway has no tokenizer"))
    }

    async fn list_models(
        &self,
        _request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let loads = self.agent.machine().loads().into_iter();
        let models = loads.filter_map(|load| load.model).collect();
        Ok(Response::new(v1::ListModelsResponse { models }))
    }
}

fn prompt_tokens(input: Option<&Input>) -> u32 {
    let of = |bytes: usize| bytes.div_ceil(BYTES_A_TOKEN).max(1);
    let tokens = match input {
        Some(Input::Text(text)) => of(text.len()),
        Some(Input::TokenIds(tokens)) => tokens.ids.len(),
        Some(Input::Chat(chat)) => of(chat.messages.iter().map(|message| message.content.len()).sum()),
        None => 1,
    };
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
