//! How fast an engine decodes, measured where its probes are replayed.

use std::time::Instant;

use super::prober::{self, Ask};
use super::{ProbeError, ProbeSet};
use crate::engine::EngineCore;

/// Steps that are needed for a median worth telling.
const FEWEST_STEPS: usize = 4;

/// Tokens a second of one generation alone: the reciprocal of the median time of a step, over `tokens` steps after the first
/// probe's prompt. The median, because what else the machine does for a moment is nothing of the version's. `None` if no
/// probe fits the engine's context. Nothing may have been submitted to `core` yet.
///
/// # Errors
/// When a step fails.
pub fn decode_speed(core: &mut EngineCore, set: &ProbeSet, tokens: usize) -> Result<Option<f64>, ProbeError> {
    let limits = *core.forward.limits();
    let room = |prompt: &[u32]| tokens.min(limits.positions.saturating_sub(prompt.len()));
    let asks = set.probes.iter().map(|probe| Ask { prompt: &probe.prompt, tokens: room(&probe.prompt) });
    let Some(ask) = asks.filter(|ask| ask.fits(&limits)).max_by_key(|ask| ask.tokens) else {
        return Ok(None);
    };
    let mut times = Vec::with_capacity(ask.tokens);
    prober::answer(&mut core.forward, core.backend.as_mut(), &[ask], &mut |_, _| {
        times.push(Instant::now());
        true
    })?;
    let mut steps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    if steps.len() < FEWEST_STEPS {
        return Ok(None);
    }
    let middle = steps.len() / 2;
    let median = *steps.select_nth_unstable_by(middle, f64::total_cmp).1;
    Ok((median > 0.0).then(|| 1.0 / median))
}
