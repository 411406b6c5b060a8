//! Names of spans, attributes and metrics. Dashboards and alerts depend on them, so they change like a wire format.
//!
//! Names of the OpenTelemetry semantic conventions (GenAI, RPC) are used where they exist; the rest start with
//! `rookery.`. Durations are in seconds, as the conventions ask.

pub mod span {
    //! Names of spans. One generation through the control plane is
    //! client → [`ROUTE`] → [`ATTEMPT`] → [`GENERATE`] → [`QUEUE`], [`PREFILL`], [`DECODE`].

    /// What a command-line client does, from its call to the end of the stream.
    pub const CLIENT: &str = "rookery.client";
    /// The control plane's part of one generation, from the request's arrival to the end of the stream.
    pub const ROUTE: &str = "rookery.route";
    /// One try of the control plane on one gateway.
    pub const ATTEMPT: &str = "rookery.attempt";
    /// A worker's part of one generation.
    pub const GENERATE: &str = "rookery.generate";
    /// From submission to the first step that works on the request.
    pub const QUEUE: &str = "rookery.queue";
    /// From there to the first generated token.
    pub const PREFILL: &str = "rookery.prefill";
    /// From the first generated token to the last.
    pub const DECODE: &str = "rookery.decode";
}

/// Names of attributes of spans and metrics.
pub mod attribute {
    /// What is done: `chat` or `text_completion`.
    pub const OPERATION_NAME: &str = "gen_ai.operation.name";
    /// Who does it: always [`super::PROVIDER`].
    pub const PROVIDER_NAME: &str = "gen_ai.provider.name";
    /// Model that the request names.
    pub const REQUEST_MODEL: &str = "gen_ai.request.model";
    /// Most tokens to generate.
    pub const REQUEST_MAX_TOKENS: &str = "gen_ai.request.max_tokens";
    /// Sampling temperature.
    pub const REQUEST_TEMPERATURE: &str = "gen_ai.request.temperature";
    /// Nucleus sampling threshold.
    pub const REQUEST_TOP_P: &str = "gen_ai.request.top_p";
    /// Most likely tokens kept.
    pub const REQUEST_TOP_K: &str = "gen_ai.request.top_k";
    /// Seed in use.
    pub const REQUEST_SEED: &str = "gen_ai.request.seed";
    /// Id of the request, as in `Started.request_id`.
    pub const RESPONSE_ID: &str = "gen_ai.response.id";
    /// Model that answers.
    pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
    /// Why the generation ended, one string in an array.
    pub const RESPONSE_FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
    /// Tokens in the prompt.
    pub const USAGE_INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
    /// Tokens generated.
    pub const USAGE_OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
    /// Prompt tokens found in the cache.
    pub const USAGE_CACHED_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
    /// `input` or `output`, on the token metric.
    pub const TOKEN_TYPE: &str = "gen_ai.token.type";
    /// Reason of a failure: a [`crate::status::Reason`] or a gRPC code.
    pub const ERROR_TYPE: &str = "error.type";
    /// `grpc`.
    pub const RPC_SYSTEM: &str = "rpc.system";
    /// Full name of the service.
    pub const RPC_SERVICE: &str = "rpc.service";
    /// Name of the method.
    pub const RPC_METHOD: &str = "rpc.method";
    /// Canonical code, as a number.
    pub const RPC_GRPC_STATUS_CODE: &str = "rpc.grpc.status_code";
    /// Digest of the model version.
    pub const MODEL_DIGEST: &str = "rookery.model.digest";
    /// Id of a gateway.
    pub const GATEWAY_ID: &str = "rookery.gateway.id";
    /// Number of a try, from 1.
    pub const ATTEMPT_NUMBER: &str = "rookery.attempt.number";
    /// How a try ended: `ok`, `retry`, `error` or `cancelled`.
    pub const ATTEMPT_OUTCOME: &str = "rookery.attempt.outcome";
    /// How often the generation lost its cache blocks.
    pub const PREEMPTIONS: &str = "rookery.preemptions";
    /// How a request ended, on metrics: its finish reason in lower case, a [`crate::status::Reason`], or `cancelled`.
    pub const OUTCOME: &str = "rookery.outcome";
    /// Why a request was refused: a [`crate::status::Reason`].
    pub const REFUSAL_REASON: &str = "rookery.refusal.reason";
}

/// Value of [`attribute::PROVIDER_NAME`].
pub const PROVIDER: &str = "rookery";

/// Names of metrics, with kind and unit.
pub mod metric {
    /// Histogram, seconds: from a request's arrival to the end of its stream.
    pub const REQUEST_DURATION: &str = "gen_ai.server.request.duration";
    /// Histogram, seconds: from a request's arrival to its first token.
    pub const TIME_TO_FIRST_TOKEN: &str = "gen_ai.server.time_to_first_token";
    /// Histogram, seconds: time per generated token after the first.
    pub const TIME_PER_OUTPUT_TOKEN: &str = "gen_ai.server.time_per_output_token";
    /// Counter, tokens, by [`super::attribute::TOKEN_TYPE`].
    pub const TOKENS: &str = "rookery.tokens";
    /// Counter, requests refused before they ran, by [`super::attribute::REFUSAL_REASON`].
    pub const REFUSALS: &str = "rookery.refusals";
    /// Gauge, generations in the current batch.
    pub const BATCH_REQUESTS: &str = "rookery.batch.requests";
    /// Gauge, generations that wait.
    pub const QUEUE_REQUESTS: &str = "rookery.queue.requests";
    /// Gauge, prompt tokens of those that wait.
    pub const QUEUE_TOKENS: &str = "rookery.queue.tokens";
    /// Gauge, cache blocks that are free or hold only reusable prefixes.
    pub const CACHE_BLOCKS_FREE: &str = "rookery.cache.blocks.free";
    /// Gauge, all cache blocks.
    pub const CACHE_BLOCKS: &str = "rookery.cache.blocks";
    /// Gauge, gateways that are linked and live.
    pub const GATEWAYS: &str = "rookery.gateways";
    /// Counter, tries on gateways, by [`super::attribute::ATTEMPT_OUTCOME`].
    pub const ATTEMPTS: &str = "rookery.attempts";
    /// Histogram, seconds: from a request's arrival at the control plane to the first event passed on.
    pub const ROUTE_TIME_TO_FIRST_EVENT: &str = "rookery.route.time_to_first_event";
    /// Counter, spans that could not be exported.
    pub const SPANS_DROPPED: &str = "rookery.telemetry.spans_dropped";
}
