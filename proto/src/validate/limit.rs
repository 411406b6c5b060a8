//! The limits of request fields, as the `.proto` comments give them.

/// Bytes of a model's name.
pub const MODEL_BYTES: usize = 256;
/// Bytes of a session id.
pub const SESSION_ID_BYTES: usize = 256;
/// Bytes of the role of a chat message.
pub const ROLE_BYTES: usize = 64;
/// Messages of a chat.
pub const CHAT_MESSAGES: usize = 4096;
/// Absolute value of a priority.
pub const PRIORITY: i32 = 100;
/// Highest temperature.
pub const TEMPERATURE: f32 = 100.0;
/// Absolute value of presence and frequency penalty.
pub const PENALTY: f32 = 2.0;
/// Repetition penalties: wide enough for any use, and no logit becomes infinite by them.
pub const REPETITION_PENALTY: std::ops::RangeInclusive<f32> = 0.01..=100.0;
/// Bytes of text to tokenise.
pub const TOKENIZE_BYTES: usize = 512 << 10;
/// Bytes of an answer's message: what gRPC clients take by default.
pub const ANSWER_BYTES: usize = 4 << 20;
/// Entries of `logit_bias`.
pub const LOGIT_BIAS_ENTRIES: usize = 1024;
/// Absolute value of a logit bias.
pub const LOGIT_BIAS: f32 = 100.0;
/// Stop strings.
pub const STOP_STRINGS: usize = 16;
/// Bytes of a stop string.
pub const STOP_STRING_BYTES: usize = 256;
/// Stop token ids.
pub const STOP_TOKEN_IDS: usize = 64;
/// Most likely tokens returned with each position.
pub const TOP_LOGPROBS: u32 = 20;
/// Labels that a request may ask for.
pub const LABELS: usize = 16;
/// Bytes of the name or value of a label.
pub const LABEL_BYTES: usize = 63;
/// Heartbeat interval in milliseconds.
pub const HEARTBEAT_MS: std::ops::RangeInclusive<u32> = 100..=60_000;
