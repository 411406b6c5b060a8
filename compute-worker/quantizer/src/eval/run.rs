//! Everybody over the same sequences, side by side.

use std::thread::Scope;
use std::time::Instant;

use rookery_model::bundle::Bundle;
use rookery_model::source::ModelSource;
use rookery_model::tokenizer::Tokenizer;

use super::score::{Block, Scores};
use super::stream::{Engine, Logits, ROWS, Rows, engine_work, source_work};
use super::texts::sequences;
use super::watched::Meter;
use super::{
    CandidateReport, EvalError, EvalOptions, EvalProgress, Model, ReferenceReport, Report, Subject, Text,
};

/// Measures `candidates` on `texts`; without a reference, perplexity only.
///
/// # Errors
/// See [`EvalError`].
pub fn evaluate(
    candidates: Vec<Subject<'_>>,
    reference: Option<Subject<'_>>,
    texts: &[Text],
    options: &EvalOptions,
    progress: &dyn EvalProgress,
) -> Result<Report, EvalError> {
    let began = Instant::now();
    let everybody: Vec<&Subject<'_>> = reference.iter().chain(&candidates).collect();
    let sequences = sequences(&tokens(&everybody, texts)?, options.tokens, options.sequence);
    let tokens = sequences.iter().map(Vec::len).sum();
    if tokens == 0 {
        return Err(EvalError::NoTokens);
    }
    let meter = Meter::new(everybody.iter().map(|subject| work(subject, tokens)).sum(), progress);
    let cards: Vec<Card> = everybody.iter().map(|subject| Card::of(subject)).collect();
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let run = Run { sequences: &sequences, meter: &meter, threads, has_reference: reference.is_some() };
    let models =
        reference.into_iter().chain(candidates).map(|subject| (subject.name, subject.model)).collect();
    let (scores, backends) = std::thread::scope(|scope| {
        let result = run.score(scope, models);
        if result.is_err() {
            meter.stop();
        }
        result
    })?;
    let mut cards = cards.into_iter().zip(backends);
    let reference = run.has_reference.then(|| cards.next()).flatten().map(|(card, _)| card);
    let parameters = |card: &Card| reference.as_ref().unwrap_or(card).parameters as f64;
    let candidates = cards.zip(&scores.candidates).map(|((card, backend), scores)| CandidateReport {
        bits_per_weight: card.size_bytes as f64 * 8.0 / parameters(&card),
        name: card.name,
        backend,
        kv_cache_type: card.kv_cache_type,
        size_bytes: card.size_bytes,
        perplexity: scores.surprise.exponential(),
        perplexity_ratio: scores.extra_surprise.as_ref().map(|extra| extra.exponential()),
        kl: scores.divergences(),
        top_1_agreement: scores.same_top.as_ref().map(|same| same.mean()),
    });
    Ok(Report {
        tokens,
        sequences: sequences.len(),
        sequence_tokens: sequences.iter().map(Vec::len).max().unwrap_or(0),
        texts: texts.iter().map(|text| text.name.clone()).collect(),
        candidates: candidates.collect(),
        reference: reference.map(|card| ReferenceReport {
            name: card.name,
            size_bytes: card.size_bytes,
            perplexity: scores.reference.exponential(),
        }),
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// What the report says of a subject whatever it computes.
struct Card {
    name: String,
    size_bytes: u64,
    parameters: u64,
    kv_cache_type: Option<String>,
}

impl Card {
    fn of(subject: &Subject<'_>) -> Self {
        let (parameters, kv_cache_type) = match &subject.model {
            Model::Bundle { bundle, kv_type, .. } => {
                (bundle.info().config.parameters, Some(kv_type.to_string()))
            }
            Model::Source(source) => (source.parameters(), None),
        };
        Self { name: subject.name.clone(), size_bytes: subject.size_bytes, parameters, kv_cache_type }
    }
}

fn work(subject: &Subject<'_>, tokens: usize) -> u64 {
    match &subject.model {
        Model::Bundle { bundle, .. } => engine_work(&bundle.info().config.model, tokens),
        Model::Source(source) => source_work(source.config(), tokens),
    }
}

/// The texts as the subjects read them, who must agree.
fn tokens(subjects: &[&Subject<'_>], texts: &[Text]) -> Result<Vec<Vec<u32>>, EvalError> {
    let mut agreed: Option<(&str, usize, Vec<Vec<u32>>)> = None;
    for subject in subjects {
        let name = || subject.name.clone();
        let (tokenizer, vocabulary) = match &subject.model {
            Model::Bundle { bundle, .. } => bundle_tokenizer(bundle, &subject.name)?,
            Model::Source(source) => source_tokenizer(*source, &subject.name)?,
        };
        let encode = |text: &Text| tokenizer.encode_text(&text.text);
        let read = texts.iter().map(encode).collect::<Result<Vec<_>, _>>();
        let read = read.map_err(|source| EvalError::Tokenizer { name: name(), source })?;
        match &agreed {
            None => agreed = Some((&subject.name, vocabulary, read)),
            Some((other, size, tokens)) if *size != vocabulary || *tokens != read => {
                return Err(EvalError::OtherTokens { name: name(), other: (*other).to_owned() });
            }
            Some(_) => {}
        }
    }
    Ok(agreed.map(|(_, _, tokens)| tokens).unwrap_or_default())
}

fn bundle_tokenizer(bundle: &Bundle, name: &str) -> Result<(Tokenizer, usize), EvalError> {
    let failed = |source| EvalError::Bundle { name: name.to_owned(), source };
    Ok((bundle.tokenizer().map_err(failed)?, bundle.info().config.model.vocab))
}

fn source_tokenizer(source: &dyn ModelSource, name: &str) -> Result<(Tokenizer, usize), EvalError> {
    let failed = |source| EvalError::Tokenizer { name: name.to_owned(), source };
    let vocabulary = source.config().vocab;
    let config = source.tokenizer_config().clone();
    let tokenizer = Tokenizer::new(source.tokenizer_json(), config).map_err(failed)?;
    Ok((tokenizer, vocabulary))
}

/// What all models run over.
struct Run<'a> {
    sequences: &'a [Vec<u32>],
    meter: &'a Meter<'a>,
    threads: usize,
    /// The first model is the one that the others are compared with.
    has_reference: bool,
}

impl<'env> Run<'env> {
    /// All scores, and what computed each model.
    fn score<'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        models: Vec<(String, Model<'env>)>,
    ) -> Result<(Scores, Vec<String>), EvalError> {
        let names: Vec<String> = models.iter().map(|(name, _)| name.clone()).collect();
        let streams = models.into_iter().map(|(name, model)| self.stream(scope, name, model));
        let mut streams = streams.collect::<Result<Vec<_>, _>>()?;
        let mut scores = Scores::new(streams.len() - usize::from(self.has_reference), self.has_reference);
        for (index, sequence) in self.sequences.iter().enumerate() {
            for first in (0..sequence.len()).step_by(ROWS) {
                let range = first..sequence.len().min(first + ROWS);
                let logits = streams.iter_mut().map(|stream| stream.next(sequence, range.clone()));
                let logits = logits.collect::<Result<Vec<_>, _>>()?;
                let block = Block { sequence, first, logits: &logits, has_reference: self.has_reference };
                scores.add(index, &block, self.threads, &names)?;
            }
        }
        Ok((scores, streams.iter().map(Logits::backend).collect()))
    }

    fn stream<'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        name: String,
        model: Model<'env>,
    ) -> Result<Logits<'scope>, EvalError> {
        let positions = self.sequences.iter().map(Vec::len).max().unwrap_or(0);
        Ok(match model {
            Model::Source(source) => {
                Logits::Source(Rows::start(name, source, self.sequences, self.meter, scope))
            }
            Model::Bundle { bundle, backend, kv_type } => {
                let limits = [positions, self.threads];
                let engine = Engine::new(name, bundle, backend, kv_type, limits, self.meter)?;
                Logits::Engine(Box::new(engine))
            }
        })
    }
}
