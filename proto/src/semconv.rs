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
    /// A roll-out: its beginning. Everything that it leads to is a child, down to the gateways' own spans:
    /// [`ROLLOUT`] → [`ROLLOUT_PLAN`]; [`ROLLOUT`] → [`ROLLOUT_GATEWAY`] → [`ROLLOUT_DOWNLOAD`] … [`ROLLOUT_COMMIT`].
    pub const ROLLOUT: &str = "rookery.rollout";
    /// A new plan of a roll-out.
    pub const ROLLOUT_PLAN: &str = "rookery.rollout.plan";
    /// A gateway on its way to a version or back, from the assignment to serving or giving up. By the gateway's clock, put
    /// right by the moment at which the end became known.
    pub const ROLLOUT_GATEWAY: &str = "rookery.rollout.gateway";
    /// It fetches the version.
    pub const ROLLOUT_DOWNLOAD: &str = "rookery.rollout.download";
    /// It checks digests and signatures.
    pub const ROLLOUT_VERIFY: &str = "rookery.rollout.verify";
    /// The version lies beside what is served, until its probes begin.
    pub const ROLLOUT_STAGE: &str = "rookery.rollout.stage";
    /// It replays the version's probes.
    pub const ROLLOUT_PROBE: &str = "rookery.rollout.probe";
    /// Requests are moved to the version.
    pub const ROLLOUT_SWITCH: &str = "rookery.rollout.switch";
    /// The version serves for good: a moment.
    pub const ROLLOUT_COMMIT: &str = "rookery.rollout.commit";
    /// One step of an engine on an accelerator: child of the phase of the step's first generation, linked to the phases of
    /// the others.
    pub const NPU_STEP: &str = "rookery.npu.step";
    /// A gateway's part of a roll-out, child of the roll-out's span: fetching a version's blobs.
    pub const VERSION_DOWNLOAD: &str = "rookery.version.download";
    /// Checking their digests.
    pub const VERSION_VERIFY: &str = "rookery.version.verify";
    /// Loading the version's engine.
    pub const VERSION_STAGE: &str = "rookery.version.stage";
    /// Replaying its probes.
    pub const VERSION_PROBE: &str = "rookery.version.probe";
    /// Moving requests to it.
    pub const VERSION_SWITCH: &str = "rookery.version.switch";
    /// Keeping the state that says so.
    pub const VERSION_COMMIT: &str = "rookery.version.commit";
    /// Serving a committed version again after a start or a failure.
    pub const VERSION_RESTORE: &str = "rookery.version.restore";
    /// Letting the last streams of a version end.
    pub const VERSION_DRAIN: &str = "rookery.version.drain";
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
    /// Id of a roll-out.
    pub const ROLLOUT_ID: &str = "rookery.rollout.id";
    /// State that a plan brings a roll-out to.
    pub const ROLLOUT_STATE: &str = "rookery.rollout.state";
    /// Current wave, from 1.
    pub const ROLLOUT_WAVE: &str = "rookery.rollout.wave";
    /// Generation of a plan or an assignment.
    pub const ROLLOUT_GENERATION: &str = "rookery.rollout.generation";
    /// Why, in words.
    pub const ROLLOUT_REASON: &str = "rookery.rollout.reason";
    /// Who or what made a plan.
    pub const ROLLOUT_ACTOR: &str = "rookery.rollout.actor";
    /// Version of a model, as people call it.
    pub const MODEL_VERSION: &str = "rookery.model.version";
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
    /// Rows of a step.
    pub const STEP_ROWS: &str = "rookery.step.rows";
    /// Where linear layers are computed.
    pub const BACKEND: &str = "rookery.backend";
    /// Calls of the backend in a step.
    pub const NPU_CALLS: &str = "rookery.npu.calls";
    /// Of those, computed by the processor alone because it is faster.
    pub const NPU_CPU_CALLS: &str = "rookery.npu.calls.cpu";
    /// Of those, computed by both.
    pub const NPU_SPLIT_CALLS: &str = "rookery.npu.calls.split";
    /// Jobs submitted.
    pub const NPU_JOBS: &str = "rookery.npu.jobs";
    /// Tasks of those jobs.
    pub const NPU_TASKS: &str = "rookery.npu.tasks";
    /// Most cores that worked at the same time.
    pub const NPU_CORES: &str = "rookery.npu.cores";
    /// Bytes across the memory interface, as planned.
    pub const NPU_BYTES: &str = "rookery.npu.bytes";
    /// Seconds to lay out activations and submit jobs.
    pub const NPU_SUBMIT: &str = "rookery.npu.submit";
    /// Seconds from submitting jobs until they ended.
    pub const NPU_WAIT: &str = "rookery.npu.wait";
    /// Seconds to verify results and make outputs of them.
    pub const NPU_FINISH: &str = "rookery.npu.finish";
    /// Seconds that the device says it worked; simulated time on the simulator.
    pub const NPU_BUSY: &str = "rookery.npu.busy";
    /// Cycles of the multiply-accumulators; only on the simulator, which counts them.
    pub const NPU_SIMULATED_CYCLES: &str = "rookery.npu.simulated_cycles";
    /// Calls that the processor computed because the device failed or is out of use.
    pub const NPU_FALLBACKS: &str = "rookery.npu.fallbacks";
    /// Kind of a fault: `timeout`, `job`, `memory`, `wrong_result`, `device_gone` or `reset`; on spans a list.
    pub const NPU_FAULT: &str = "rookery.npu.fault";
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
    /// Gauge, tokens that those which wait have to read: prompts, and after preemption the answers so far too.
    pub const QUEUE_TOKENS: &str = "rookery.queue.tokens";
    /// Histogram, seconds: replaying a model's probes before it is served.
    pub const SELF_CHECK_DURATION: &str = "rookery.engine.self_check.duration";
    /// Counter, steps of engines.
    pub const STEPS: &str = "rookery.engine.steps";
    /// Counter, how often generations lost their cache blocks to others.
    pub const PREEMPTIONS: &str = "rookery.engine.preemptions";
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
    /// Counter, jobs submitted to the NPU.
    pub const NPU_JOBS: &str = "rookery.npu.jobs";
    /// Counter, seconds that the NPU says it worked; simulated time on the simulator.
    pub const NPU_BUSY: &str = "rookery.npu.busy";
    /// Counter, bytes of the NPU's jobs across the memory interface, as planned. Its unit is not part of its name, since
    /// Prometheus adds it.
    pub const NPU_TRANSFERRED: &str = "rookery.npu.transferred";
    /// Counter, faults of the NPU, by [`super::attribute::NPU_FAULT`].
    pub const NPU_FAULTS: &str = "rookery.npu.faults";
    /// Counter, resets of the NPU that succeeded.
    pub const NPU_RESETS: &str = "rookery.npu.resets";
    /// Counter, calls of linear layers that the processor computed because the NPU failed or is out of use.
    pub const NPU_FALLBACKS: &str = "rookery.npu.fallbacks";
    /// Gauge, 1 while an engine computes slower than it should because its accelerator failed.
    pub const DEGRADED: &str = "rookery.degraded";
    /// Gauge, linked gateways that report a degraded engine.
    pub const GATEWAYS_DEGRADED: &str = "rookery.gateways.degraded";
    /// Counter, spans that could not be exported.
    pub const SPANS_DROPPED: &str = "rookery.telemetry.spans_dropped";
}
