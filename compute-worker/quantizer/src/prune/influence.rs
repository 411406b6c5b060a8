//! Block influence: how much a layer turns the stream that passes through it (ShortGPT, Men et al. 2024).

use rookery_compute_worker::model::reference::Reference;
use rookery_model::config::ModelConfig;

use super::PruneError;
use super::meter::Meter;
use crate::calibration::Sequences;

/// `1 − E cos(x, layer(x))` over all tokens, for each layer: 0 for one that does nothing.
pub(super) fn influences(
    reference: &Reference<'_>,
    config: &ModelConfig,
    sequences: &Sequences,
    meter: &Meter<'_>,
) -> Result<Vec<f64>, PruneError> {
    let inputs: Vec<&[u32]> = sequences.tokens.chunks(sequences.length).collect();
    let lengths: Vec<usize> = inputs.iter().map(|sequence| sequence.len()).collect();
    let mut x = reference.embed(&inputs)?;
    let mut influences = Vec::with_capacity(config.layers);
    for layer in 0..config.layers {
        let before = x.clone();
        reference.attention(layer, &lengths, &mut x)?;
        reference.feed_forward(layer, &mut x, &mut |_| {})?;
        let rows = before.chunks_exact(config.hidden).zip(x.chunks_exact(config.hidden));
        let influence = 1.0 - rows.map(|(a, b)| cosine(a, b)).sum::<f64>() / sequences.tokens.len() as f64;
        if !influence.is_finite() {
            return Err(PruneError::NotFinite { layer });
        }
        influences.push(influence);
        meter.layer();
    }
    Ok(influences)
}

/// Cosine of the angle between two rows; 1 if both are zero, 0 if one is.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let (aa, bb) = (dot(a, a), dot(b, b));
    if aa == 0.0 || bb == 0.0 {
        return if aa == bb { 1.0 } else { 0.0 };
    }
    dot(a, b) / (aa.sqrt() * bb.sqrt())
}

#[cfg(test)]
mod tests {
    use super::cosine;

    #[test]
    fn cosines_are_of_angles() {
        assert_eq!(cosine(&[3.0, 4.0], &[6.0, 8.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 5.0]), 0.0);
        assert_eq!(cosine(&[1.0, 0.0], &[-2.0, 0.0]), -1.0);
        assert_eq!((cosine(&[0.0], &[0.0]), cosine(&[0.0], &[1.0])), (1.0, 0.0));
        assert!(cosine(&[f32::NAN], &[1.0]).is_nan());
    }
}
