//! What an evaluation says.

use serde::Serialize;

/// A measured value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The value over all positions.
    pub value: f64,
    /// Its standard error, from the differences between sequences; `None` with fewer than two sequences.
    pub standard_error: Option<f64>,
}

/// All numbers of one evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Positions predicted at.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Tokens of a sequence at most.
    pub sequence_tokens: usize,
    /// Names of the texts.
    pub texts: Vec<String>,
    /// The one that candidates are compared with.
    pub reference: Option<ReferenceReport>,
    /// In the order given.
    pub candidates: Vec<CandidateReport>,
    /// Wall time.
    pub seconds: f64,
}

/// What the reference says of the text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReferenceReport {
    /// Name given.
    pub name: String,
    /// Bytes of all its files.
    pub size_bytes: u64,
    /// Exponential of the mean negative log probability of each next token.
    pub perplexity: Measured,
}

/// One candidate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CandidateReport {
    /// Name given.
    pub name: String,
    /// What computed it, e.g. `cpu/avx512-vnni` or `f32`.
    pub backend: String,
    /// How a bundle kept keys and values.
    pub kv_cache_type: Option<String>,
    /// Bytes of all its files.
    pub size_bytes: u64,
    /// Those bytes in bits, for each parameter of the model (the reference's count where there is one: a rotation unties
    /// a tied head, which stores more and is no larger a model).
    pub bits_per_weight: f64,
    /// As the reference's.
    pub perplexity: Measured,
    /// Perplexity over that of the reference; the standard error is that of the paired difference.
    pub perplexity_ratio: Option<Measured>,
    /// Kullback–Leibler divergence from the reference.
    pub kl: Option<Divergences>,
    /// Share of positions at which both hold the same token for the most likely.
    pub top_1_agreement: Option<Measured>,
}

/// Kullback–Leibler divergence of a candidate's next-token distributions from the reference's, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Divergences {
    /// Mean over positions.
    pub mean: Measured,
    /// Median over positions.
    pub median: Measured,
    /// 99 % of positions are not above it.
    pub p99: Measured,
    /// The largest of all positions.
    pub max: f64,
}
