//! Talking to an endpoint, worker or control plane alike.

use std::time::{Duration, Instant};

use rookery_proto::semconv::{PROVIDER, attribute, span};
use rookery_proto::status::{field_violations, reason_of, retry_after};
use rookery_proto::trace_context;
use rookery_proto::v1::generate_response::Event;
use rookery_proto::v1::inference_service_client::InferenceServiceClient;
use rookery_proto::v1::{Finished, GenerateRequest, GenerateResponse, ListModelsRequest, Model, Started};
use tonic::{Code, Request, Status};
use tracing::{Instrument, field};

use crate::error::{Failure, OrFail};

mod access;

pub use access::{Access, Bearer, Channel, channel, channel_as, use_access};

/// Where the client goes unless told otherwise: the control plane's usual address.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7070";

/// A connected client.
pub type Client = InferenceServiceClient<Channel>;

/// Connects to `http://host:port`, `https://host:port`, or just `host:port`.
///
/// # Errors
/// If that is no address, or nobody answers there.
pub async fn connect(endpoint: &str) -> Result<Client, Failure> {
    Ok(InferenceServiceClient::new(channel(endpoint).await?))
}

/// The models that an endpoint serves now.
///
/// # Errors
/// If the call fails.
pub async fn list_models(client: &mut Client) -> Result<Vec<Model>, Failure> {
    let answer = client.list_models(ListModelsRequest {}).await.map_err(|status| explain(&status))?;
    Ok(answer.into_inner().models)
}

/// What a complete generation was like.
#[derive(Clone, Debug)]
pub struct Summary {
    /// As sent by the endpoint.
    pub started: Started,
    /// As sent by the endpoint.
    pub finished: Finished,
    /// From the call to the first event with a token, seen from here.
    pub first_token: Duration,
    /// From the call to the end, seen from here.
    pub total: Duration,
}

impl Summary {
    /// Tokens per second after the first one, seen from here; none for a single token.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let tokens = self.finished.usage.as_ref()?.generated_tokens;
        let decode = self.total.saturating_sub(self.first_token).as_secs_f64();
        (tokens > 1 && decode > 0.0).then(|| f64::from(tokens - 1) / decode)
    }
}

/// Runs one generation under a root span of its own, passing on every event as it comes.
///
/// # Errors
/// If the endpoint refuses or loses the generation, or if `on_event` fails.
pub async fn generate(
    client: &mut Client,
    request: GenerateRequest,
    timeout: Option<Duration>,
    on_event: impl FnMut(&GenerateResponse) -> Result<(), Failure>,
) -> Result<Summary, Failure> {
    let span = tracing::info_span!(
        span::CLIENT,
        otel.kind = "client",
        { attribute::PROVIDER_NAME } = PROVIDER,
        { attribute::REQUEST_MODEL } = request.model,
        { attribute::RESPONSE_ID } = field::Empty,
        { attribute::USAGE_OUTPUT_TOKENS } = field::Empty,
        { attribute::ERROR_TYPE } = field::Empty,
    );
    let mut call = Request::new(request);
    if let Some(timeout) = timeout {
        call.set_timeout(timeout);
    }
    trace_context::inject(&span, call.metadata_mut());
    let result = follow(client, call, on_event).instrument(span.clone()).await;
    match &result {
        Ok(summary) => {
            span.record(attribute::RESPONSE_ID, &summary.started.request_id);
            let tokens = summary.finished.usage.as_ref().map_or(0, |usage| usage.generated_tokens);
            span.record(attribute::USAGE_OUTPUT_TOKENS, tokens);
        }
        Err(failure) => {
            span.record(attribute::ERROR_TYPE, field::display(failure));
        }
    }
    result
}

async fn follow(
    client: &mut Client,
    call: Request<GenerateRequest>,
    mut on_event: impl FnMut(&GenerateResponse) -> Result<(), Failure>,
) -> Result<Summary, Failure> {
    let began = Instant::now();
    let mut stream = client.generate(call).await.map_err(|status| explain(&status))?.into_inner();
    let (mut started, mut first_token) = (None, None);
    while let Some(response) = stream.message().await.map_err(|status| explain(&status))? {
        on_event(&response)?;
        match response.event {
            Some(Event::Started(event)) => started = Some(event),
            Some(Event::Delta(_)) => {
                first_token.get_or_insert_with(|| began.elapsed());
            }
            Some(Event::Finished(finished)) => {
                let total = began.elapsed();
                let started = started.or_fail_missing()?;
                return Ok(Summary { started, finished, first_token: first_token.unwrap_or(total), total });
            }
            None => {}
        }
    }
    Err(Failure::new("the endpoint ended the stream without saying why"))
}

trait OrFailMissing<T> {
    fn or_fail_missing(self) -> Result<T, Failure>;
}

impl<T> OrFailMissing<T> for Option<T> {
    fn or_fail_missing(self) -> Result<T, Failure> {
        self.ok_or("the stream finished without having started")
            .or_fail(|| "the endpoint broke the protocol".to_owned())
    }
}

/// A refusal in words, with what to do about it where the endpoint says so.
pub fn explain(status: &Status) -> Failure {
    let code = status.code();
    let reason = reason_of(status).map(|reason| format!(", {reason}")).unwrap_or_default();
    let failure = Failure::new(format!("{} ({code:?}{reason})", status.message()));
    if let Some(wait) = retry_after(status) {
        return failure.hint(format!("try again in {}", humantime::format_duration(wait)));
    }
    let fields: Vec<String> = field_violations(status).into_iter().map(|(field, _)| field).collect();
    if !fields.is_empty() {
        return failure.hint(format!("change {}", fields.join(", ")));
    }
    match code {
        Code::NotFound => failure.hint("`rookery models list` shows what the endpoint serves"),
        Code::Unimplemented => failure.hint("is this a Rookery endpoint?"),
        Code::Unauthenticated => failure.hint("set ROOKERY_TOKEN, or give --token"),
        Code::PermissionDenied => failure.hint("use a token with a higher role"),
        // Rookery's own have a reason. TLS that is called without it answers like this.
        Code::Internal if reason_of(status).is_none() => {
            failure.hint("does the endpoint speak TLS? Then call https://HOST:PORT, with --ca where its certificate is its own")
        }
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => failure,
    }
}
