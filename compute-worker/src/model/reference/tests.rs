//! Transformed models compute what their source computes.

use std::path::Path;

use rookery_model::rotate::{RotateOptions, RotatedSource};
use rookery_model::smooth::{ChannelMaxima, LayerMaxima, SmoothedSource};
use rookery_model::source::open;

use super::*;

/// Largest difference of a logit that rounding may make.
const LIMIT: f32 = 1e-3;

fn tiny(name: &str) -> Box<dyn ModelSource> {
    open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(name)).unwrap()
}

fn logits(source: &dyn ModelSource) -> Vec<f32> {
    let sequence = |length: u32, step: u32| (0..length).map(|i| (i * step + 3) % 512).collect::<Vec<_>>();
    let sequences = [sequence(40, 37), sequence(9, 101)];
    let mut all = Vec::new();
    let mut each = |_: usize, _: usize, logits: &[f32]| all.extend_from_slice(logits);
    Reference::open(source).logits(&[&sequences[0], &sequences[1]], &mut each).unwrap();
    all
}

/// Checks the largest difference, and that there is one: a transform that does nothing proves nothing.
fn assert_same(expected: &[f32], found: &[f32], what: &str) {
    assert_eq!(expected.len(), found.len(), "{what}");
    let differences = expected.iter().zip(found).map(|(a, b)| (a - b).abs());
    let largest = differences.fold(0.0, f32::max);
    let size = expected.iter().fold(0.0, |size: f32, logit| size.max(logit.abs()));
    assert!(size > 1.0, "{what}: logits too small to tell");
    assert!(largest > 0.0 && largest < LIMIT, "{what}: {largest} of {size}");
}

#[test]
fn rotated_models_compute_the_same() {
    let none = RotateOptions { residual: false, heads: false, ffn: false };
    let options = [
        RotateOptions { residual: true, ..none },
        RotateOptions { heads: true, ..none },
        RotateOptions { ffn: true, ..none },
        RotateOptions::default(),
    ];
    for name in ["llama3.gguf", "qwen2.gguf", "qwen3.gguf"] {
        let source = tiny(name);
        let expected = logits(source.as_ref());
        for options in options {
            let rotated = RotatedSource::new(source.as_ref(), options).unwrap();
            assert_same(&expected, &logits(&rotated), &format!("{name} {options:?}"));
        }
    }
}

/// Maxima that span four orders of magnitude.
fn maxima(config: &ModelConfig) -> ChannelMaxima {
    let channels = |count: usize, salt: usize| {
        (0..count).map(|i| [0.01, 0.3, 1.0, 7.0, 150.0][(i * 31 + salt) % 5]).collect()
    };
    let layer = |layer| LayerMaxima {
        attention: channels(config.hidden, layer),
        output: channels(config.q_rows(), layer + 1),
        ffn: channels(config.hidden, layer + 2),
        down: channels(config.ffn, layer + 3),
    };
    ChannelMaxima { layers: (0..config.layers).map(layer).collect() }
}

#[test]
fn smoothed_models_compute_the_same() {
    for name in ["llama3.gguf", "qwen2.gguf", "qwen3.gguf"] {
        let source = tiny(name);
        let expected = logits(source.as_ref());
        let statistics = maxima(source.config());
        for alpha in [0.25, 0.5, 0.8] {
            let smoothed = SmoothedSource::new(source.as_ref(), &statistics, alpha).unwrap();
            assert_same(&expected, &logits(&smoothed), &format!("{name} at {alpha}"));
        }
        let smoothed = SmoothedSource::new(source.as_ref(), &statistics, 0.5).unwrap();
        let rotated = RotatedSource::new(&smoothed, RotateOptions::default()).unwrap();
        assert_same(&expected, &logits(&rotated), &format!("{name} smoothed and rotated"));
    }
}

#[test]
fn the_transform_of_activations_is_hadamards() {
    for order in [16usize, 256] {
        for unit in 0..order {
            let mut x = vec![0.0; order];
            x[unit] = 1.0;
            walsh_hadamard(&mut x);
            let sign = |i: usize| if (i & unit).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            assert_eq!(x, (0..order).map(sign).collect::<Vec<f32>>());
        }
    }
}
