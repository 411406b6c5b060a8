//! Faults put into tiny models are found and named by the comparison of layers, and right models have none.
#![expect(clippy::unwrap_used, reason = "helpers of tests may stop it")]

mod altered;
mod backends;
mod careless;
mod support;

use rookery_kernels::KvType;
use rookery_model::names::{LayerTensor, TensorName};
use rookery_quantizer::eval::layers::{Fault, Rule};

use backends::{Faulty, Where};
use support::{Packed, RECIPES, healthy_backend};

const DOWN: TensorName = TensorName::Layer(1, LayerTensor::FfnDown);
const QUERY: TensorName = TensorName::Layer(0, LayerTensor::AttnQ);

#[test]
fn right_models_have_no_faults() {
    for model in ["llama3", "qwen2", "qwen3"] {
        for recipe in RECIPES {
            let packed = Packed::new(model, recipe);
            for kv_type in KvType::ALL {
                let report = packed.judge(healthy_backend(), kv_type);
                assert_eq!(report.findings, [], "{model} {recipe} {kv_type}");
                assert!(report.same_source && !report.tensors.is_empty());
            }
        }
    }
}

/// Recipes whose weights are rounded in different ways, and whose scales mean different things.
const FAULTED: [&str; 4] = ["plain w8", "plain w4", "w8", "w4"];

#[test]
fn doubled_and_halved_scales_are_named() {
    for recipe in FAULTED {
        for (tensor, factor) in [(DOWN, 2.0), (QUERY, 0.5), (TensorName::Output, 2.0)] {
            let packed = Packed::new("llama3", recipe);
            let report =
                packed.altered(tensor, |scales| scales.iter_mut().for_each(|scale| *scale *= factor));
            let [finding] = &report.findings[..] else { panic!("{recipe}: {:#?}", report.findings) };
            assert_eq!((&finding.tensors[..], finding.fault), (&[tensor][..], Fault::Scale), "{recipe}");
            assert_eq!((&finding.rows, &finding.heads), (&None, &None), "{recipe}: the whole tensor");
            let found = finding.factor.unwrap();
            assert!((found / f64::from(factor) - 1.0).abs() < 0.05, "{recipe}: factor {found}");
            let at = report.tensors.iter().find(|numbers| numbers.tensor == tensor).unwrap();
            assert!((at.slope / f64::from(factor) - 1.0).abs() < 0.05, "{recipe}: {at:?}");
        }
    }
}

#[test]
fn a_scale_off_by_a_128th_is_named() {
    for recipe in ["plain w8", "w8"] {
        for factor in [1.0 + 1.0 / 128.0, 1.0 - 1.0 / 128.0] {
            let packed = Packed::new("qwen2", recipe);
            let report = packed.altered(DOWN, |scales| scales.iter_mut().for_each(|scale| *scale *= factor));
            let [finding] = &report.findings[..] else { panic!("{recipe}: {:#?}", report.findings) };
            assert_eq!((&finding.tensors[..], finding.fault), (&[DOWN][..], Fault::Scale), "{recipe}");
            let found = finding.factor.unwrap();
            assert!((found - f64::from(factor)).abs() < 0.004, "{recipe}: factor {found}");
            // Of a single channel too: what rounds to the stored integers is no matter of chance.
            let report = packed.altered(DOWN, |scales| scales[37] *= factor);
            let [finding] = &report.findings[..] else { panic!("{recipe}: {:#?}", report.findings) };
            assert_eq!((finding.rows.clone(), finding.fault), (Some(37..38), Fault::Scale), "{recipe}");
        }
    }
}

#[test]
fn one_head_is_named() {
    for recipe in FAULTED {
        let packed = Packed::new("llama3", recipe);
        let head = packed.head_dim();
        let double =
            |scales: &mut [f32]| scales[2 * head..3 * head].iter_mut().for_each(|scale| *scale *= 2.0);
        let report = packed.altered(QUERY, double);
        let [finding] = &report.findings[..] else { panic!("{recipe}: {:#?}", report.findings) };
        assert_eq!(
            (finding.heads.clone(), finding.fault),
            (Some(2..3), Fault::Scale),
            "{recipe}: {finding:?}"
        );
        assert!(finding.message.contains("head 2"), "{}", finding.message);
    }
}

#[test]
fn rolled_scales_are_named() {
    for recipe in FAULTED {
        for (tensor, roll) in [(DOWN, 1), (QUERY, -1)] {
            let packed = Packed::new("llama3", recipe);
            let rolled = |scales: &mut [f32]| {
                if roll > 0 { scales.rotate_right(1) } else { scales.rotate_left(1) }
            };
            let report = packed.altered(tensor, rolled);
            let [finding] = &report.findings[..] else { panic!("{recipe}: {:#?}", report.findings) };
            assert_eq!(
                (&finding.tensors[..], finding.fault),
                (&[tensor][..], Fault::RolledScales(roll)),
                "{recipe}"
            );
        }
    }
}

#[test]
fn wrong_rounding_is_named_with_its_place() {
    for recipe in ["plain w8", "w4"] {
        for rule in [Rule::Floor, Rule::Truncation] {
            let packed = Packed::new("qwen2", recipe);
            let everywhere = packed.judge(Box::new(Faulty::new(rule, Where::Everywhere)), KvType::F16);
            assert!(
                everywhere.findings.iter().all(|finding| finding.fault == Fault::Rounding(rule)),
                "{recipe}"
            );
            let calls: usize = everywhere.findings.iter().map(|finding| finding.tensors.len()).sum();
            assert_eq!(calls, everywhere.roundings.len(), "{recipe}: every call is in one of the findings");
            let requantised = packed.judge(Box::new(Faulty::new(rule, Where::Requantisation)), KvType::F16);
            let place = |tensor: &TensorName| {
                matches!(tensor, TensorName::Layer(_, LayerTensor::AttnOutput | LayerTensor::FfnDown))
            };
            assert_eq!(requantised.findings.len(), 2, "{recipe}: {:#?}", requantised.findings);
            for finding in &requantised.findings {
                assert_eq!(finding.fault, Fault::Rounding(rule), "{recipe}");
                assert!(finding.tensors.iter().all(place) && finding.message.contains("requantised"));
            }
            let floor = requantised.roundings.iter().find(|call| place(&call.tensor)).unwrap();
            assert!(floor.rounding.beyond_half > floor.rounding.values / 4, "{floor:?}");
        }
    }
}

#[test]
fn a_wrong_rule_for_ties_is_seen_though_no_input_is_a_tie() {
    let packed = Packed::new("llama3", "plain w8");
    let report = packed.judge(Box::new(Faulty::new(Rule::OtherTies, Where::Everywhere)), KvType::F16);
    let [finding] = &report.findings[..] else { panic!("{:#?}", report.findings) };
    assert_eq!(finding.fault, Fault::Rounding(Rule::OtherTies));
}

#[test]
fn a_backend_that_computes_wrongly_is_not_blamed_on_weights() {
    let packed = Packed::new("llama3", "plain w8");
    let report = packed.judge(Box::new(careless::Careless::default()), KvType::F16);
    assert!(report.findings.iter().any(|finding| finding.fault == Fault::Products), "{:#?}", report.findings);
    assert!(report.findings.iter().all(|finding| finding.fault == Fault::Products), "{:#?}", report.findings);
}

#[test]
fn faults_upstream_do_not_hide_or_blame_others() {
    let packed = Packed::new("qwen3", "plain w8");
    let report =
        packed.altered_all(&[QUERY, DOWN], |scales| scales.iter_mut().for_each(|scale| *scale *= 2.0));
    let named: Vec<_> = report.findings.iter().map(|finding| finding.tensors[0]).collect();
    assert_eq!(named, [QUERY, DOWN], "in the order of the forward pass");
}

#[test]
fn another_model_is_refused() {
    let packed = Packed::new("llama3", "plain w8");
    let message = packed.judge_against("qwen2").unwrap_err().to_string();
    assert!(message.contains("not that of the bundle"), "{message}");
}
