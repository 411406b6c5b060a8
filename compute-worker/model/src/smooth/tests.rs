//! Scales and what they do to maxima; that models compute the same is tested with the reference forward pass.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::rotate::{RotateOptions, RotatedSource};
use crate::source::open;

fn tiny(name: &str) -> Box<dyn ModelSource> {
    open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny").join(name)).unwrap()
}

/// Every seventh channel is a hundred times the others.
fn outliers(config: &ModelConfig) -> ChannelMaxima {
    let channels = |count: usize| {
        (0..count).map(|i| (1 + i % 3) as f32 * if i % 7 == 0 { 100.0 } else { 1.0 }).collect()
    };
    let layer = LayerMaxima {
        attention: channels(config.hidden),
        output: channels(config.q_rows()),
        ffn: channels(config.hidden),
        down: channels(config.ffn),
    };
    ChannelMaxima { layers: vec![layer; config.layers] }
}

fn largest(values: &[f32]) -> f32 {
    values.iter().copied().fold(0.0, f32::max)
}

#[test]
fn activations_get_smaller_maxima_and_weights_take_them() {
    let source = tiny("qwen2.gguf");
    let config = source.config();
    let statistics = outliers(config);
    let smoothed = SmoothedSource::new(source.as_ref(), &statistics, 0.5).unwrap();
    let vector = |source: &dyn ModelSource, tensor| source.tensor(TensorName::Layer(1, tensor)).unwrap();
    let maxima =
        |source: &dyn ModelSource, tensors: &[LayerTensor]| column_maxima(source, 1, tensors).unwrap();
    for (norm, inputs, tensors) in [
        (
            LayerTensor::AttnNorm,
            &statistics.layers[1].attention,
            &[LayerTensor::AttnQ, LayerTensor::AttnK, LayerTensor::AttnV][..2],
        ),
        (LayerTensor::FfnNorm, &statistics.layers[1].ffn, &[LayerTensor::FfnGate][..]),
    ] {
        let before = vector(source.as_ref(), norm);
        let after = vector(&smoothed, norm);
        // What the norm is divided by, its output is divided by.
        let inputs_after: Vec<f32> = inputs
            .iter()
            .zip(before.iter().zip(&after))
            .map(|(max, (before, after))| max * after / before)
            .collect();
        let ratio = |maxima: &[f32]| largest(maxima) / (maxima.iter().sum::<f32>() / maxima.len() as f32);
        assert!(ratio(&inputs_after) < 0.6 * ratio(inputs), "{norm:?}: {}", ratio(&inputs_after));
        let (weights, weights_after) = (maxima(source.as_ref(), tensors), maxima(&smoothed, tensors));
        for (j, (input, weight)) in inputs_after.iter().zip(&weights_after).enumerate() {
            // v and up are among what decides the scale, so equality is only an upper bound here.
            assert!(*weight <= input * 1.0001, "{norm:?} channel {j}: {weight} {input}");
            let product = f64::from(*input) * f64::from(*weight);
            let expected = f64::from(inputs[j]) * f64::from(weights[j]);
            assert!((product / expected - 1.0).abs() < 1e-4, "{norm:?} channel {j}");
        }
    }
}

#[test]
fn rows_are_those_of_the_whole_and_untouched_tensors_stay() {
    let source = tiny("qwen3.gguf");
    let statistics = outliers(source.config());
    let smoothed = SmoothedSource::new(source.as_ref(), &statistics, 0.8).unwrap();
    for name in source.config().tensor_names() {
        let (rows, columns) = source.config().shape(name);
        let whole = smoothed.tensor(name).unwrap();
        let part = rows / 3..rows / 3 + rows.div_ceil(2);
        let expected = &whole[part.start * columns..part.end * columns];
        assert_eq!(smoothed.tensor_rows(name, part).unwrap(), expected, "{name}");
        let same = whole == source.tensor(name).unwrap();
        let plain = match name {
            TensorName::Layer(_, tensor) => matches!(tensor, LayerTensor::AttnQNorm | LayerTensor::AttnKNorm),
            TensorName::TokenEmbedding | TensorName::OutputNorm | TensorName::Output => true,
        };
        assert_eq!(same, plain, "{name}");
    }
}

#[test]
fn wrong_statistics_are_refused_by_name() {
    let source = tiny("llama3.gguf");
    let good = outliers(source.config());
    let refused = |statistics: &ChannelMaxima, alpha| {
        SmoothedSource::new(source.as_ref(), statistics, alpha).err().unwrap().to_string()
    };
    assert_eq!(refused(&good, 1.5), "smoothing strength is 1.5, outside 0..=1");
    assert!(refused(&good, f32::NAN).contains("NaN"));
    let mut bad = good.clone();
    bad.layers.pop();
    assert!(refused(&bad, 0.5).starts_with("channel maxima of all layers: 2 found, 3 needed"));
    let mut bad = good.clone();
    bad.layers[1].down.push(1.0);
    assert!(refused(&bad, 0.5).contains("layer 1, down: 209 found, 208 needed"));
    let mut bad = good;
    bad.layers[2].output[5] = f32::INFINITY;
    assert!(refused(&bad, 0.5).contains("maximum inf of layer 2, attention output, channel 5"));
}

#[test]
fn dead_channels_are_left_alone() {
    assert_eq!((scale(0.0, 1.0, 0.5), scale(1.0, 0.0, 0.5)), (1.0, 1.0));
    assert_eq!(scale(4.0, 0.25, 0.5), 4.0);
    assert_eq!((scale(3.0, 0.5, 1.0), scale(3.0, 0.5, 0.0)), (3.0, 2.0));
    assert_eq!(scale(1e-30, 1.0, 1.0), 1e-5);
}

proptest! {
    #[test]
    fn powers_are_powers(x in 1e-6f64..1e6, exponent in 0.0f32..=1.0) {
        let found = power(x, f64::from(exponent));
        prop_assert!((found / x.powf(f64::from(exponent)) - 1.0).abs() < 1e-12, "{found}");
    }
}

#[test]
fn a_model_whose_feed_forward_is_transformed_is_refused() {
    let source = tiny("qwen2.gguf");
    let rotated = RotatedSource::new(source.as_ref(), RotateOptions::default()).unwrap();
    assert!(rotated.config().ffn_hadamard.is_some());
    let refused = SmoothedSource::new(&rotated, &outliers(rotated.config()), 0.5);
    assert!(matches!(refused, Err(SmoothError::Transformed)));
}
