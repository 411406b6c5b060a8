//! The sampler against a definition that sorts the whole vocabulary, and the rules one by one.

use proptest::prelude::*;
use rookery_kernels::Kernels;

use super::nucleus::keep;
use super::*;

fn sampler(sampling: Sampling) -> Sampler {
    Sampler::new(sampling, None, &[], Vec::new())
}

fn choose(sampler: &Sampler, logits: &[f32]) -> u32 {
    sampler.sample(Kernels::detect(), 0, &mut logits.to_vec()).unwrap().token
}

#[test]
fn greedy_takes_the_highest_and_the_lowest_id_of_equals() {
    let mut logits = vec![0.5; 100];
    assert_eq!(choose(&sampler(Sampling::default()), &logits), 0);
    logits[40] = 2.0;
    logits[77] = 2.0;
    assert_eq!(choose(&sampler(Sampling::default()), &logits), 40);
}

#[test]
fn what_is_not_finite_is_an_error_wherever_it_stands() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, 15, 16, 98, 99] {
            let mut logits = vec![1.0; 100];
            logits[place] = bad;
            let result = sampler(Sampling::default()).sample(Kernels::detect(), 0, &mut logits);
            assert_eq!(result, Err(SampleError::NotFinite), "{bad} at {place}");
        }
    }
}

#[test]
fn bias_shifts_and_forbids() {
    let logits = [1.0, 2.0, 3.0];
    let biased = |logit_bias: Vec<(u32, f32)>, temperature| {
        choose(&sampler(Sampling { logit_bias, temperature, ..Sampling::default() }), &logits)
    };
    assert_eq!(biased(vec![(0, 5.0)], 0.0), 0);
    assert_eq!(biased(vec![(2, -100.0)], 0.0), 1);
    assert_eq!(
        biased(vec![(2, -100.0), (1, -100.0)], 50.0),
        0,
        "forbidden tokens have no probability at all"
    );
    let all = Sampling { logit_bias: vec![(0, -100.0), (1, -100.0), (2, -100.0)], ..Sampling::default() };
    let result = sampler(all).sample(Kernels::detect(), 0, &mut logits.to_vec());
    assert_eq!(result, Err(SampleError::AllForbidden));
}

#[test]
fn penalties_follow_their_definitions() {
    let sampling = Sampling {
        repetition_penalty: 2.0,
        presence_penalty: 0.25,
        frequency_penalty: 0.5,
        ..Sampling::default()
    };
    let mut sampler = Sampler::new(sampling.clone(), None, &[0, 1, 1], Vec::new());
    for token in [1, 2, 2] {
        sampler.accept(token);
    }
    let mut logits = [4.0, 4.0, -4.0, 4.0];
    sampler.penalties.apply(&sampling, &mut logits);
    assert_eq!(logits, [2.0, 2.0 - 0.75, -8.0 - 1.25, 4.0]);
}

#[test]
fn what_would_end_the_answer_waits_for_min_tokens() {
    let sampling = Sampling { min_tokens: 2, ..Sampling::default() };
    let mut sampler = Sampler::new(sampling, None, &[], vec![2]);
    let logits = [1.0, 2.0, 3.0];
    assert_eq!(choose(&sampler, &logits), 1);
    sampler.accept(1);
    assert_eq!(choose(&sampler, &logits), 1);
    sampler.accept(1);
    assert_eq!(choose(&sampler, &logits), 2);
}

#[test]
fn an_end_that_the_model_does_not_have_is_no_reason_to_panic() {
    for temperature in [0.0, 1.0] {
        let sampling = Sampling { min_tokens: 2, temperature, ..Sampling::default() };
        let sampler = Sampler::new(sampling, None, &[], vec![3, 1]);
        assert_eq!(choose(&sampler, &[1.0, 200.0, 100.0]), 2);
    }
}

#[test]
fn logprobs_are_of_the_raw_distribution() {
    let sampling = Sampling { logit_bias: vec![(0, 50.0)], ..Sampling::default() };
    let sampler = Sampler::new(sampling, Some(2), &[], Vec::new());
    let mut logits = [0.0_f32, 1.0, 2.0, 2.0];
    let sampled = sampler.sample(Kernels::detect(), 0, &mut logits).unwrap();
    assert_eq!(sampled.token, 0);
    let report = sampled.logprobs.unwrap();
    let log_sum = (1.0_f64 + 1.0_f64.exp() + 2.0 * 2.0_f64.exp()).ln() as f32;
    assert!((report.chosen.logprob + log_sum).abs() < 1e-5);
    assert_eq!(report.top.iter().map(|top| top.token_id).collect::<Vec<_>>(), [2, 3]);
    assert!((report.top[0].logprob - (2.0 - log_sum)).abs() < 1e-5);
}

#[test]
fn the_most_likely_are_in_order_for_any_count() {
    let values = [3.0, 1.0, 3.0, 2.0, 5.0];
    assert_eq!(most_likely(&values, 0), [0_u32; 0]);
    assert_eq!(most_likely(&values, 3), [4, 0, 2]);
    assert_eq!(most_likely(&values, 9), [4, 0, 2, 3, 1]);
}

#[test]
fn draws_follow_the_distribution_and_repeat_by_seed_and_position() {
    let logits: Vec<f32> = [0.5_f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
    let sampler = sampler(Sampling { temperature: 1.0, seed: 42, ..Sampling::default() });
    let draw = |position| sampler.sample(Kernels::detect(), position, &mut logits.clone()).unwrap().token;
    let mut counts = [0_i32; 3];
    for position in 0..10_000 {
        counts[draw(position) as usize] += 1;
    }
    for (count, expected) in counts.iter().zip([5000, 3000, 2000]) {
        assert!((*count - expected).abs() < 200, "{counts:?}");
    }
    assert!((0..100).all(|position| draw(position) == draw(position)));
}

#[test]
fn a_high_temperature_flattens_and_a_low_one_sharpens() {
    let logits = [1.0, 2.0, 3.0];
    let hits = |temperature| {
        let sampler = sampler(Sampling { temperature, ..Sampling::default() });
        let draw =
            |position| sampler.sample(Kernels::detect(), position, &mut logits.to_vec()).unwrap().token;
        (0..1000).filter(|position| draw(*position) == 2).count()
    };
    assert_eq!(hits(1e-6), 1000);
    assert!((600..730).contains(&hits(1.0)), "e²/(1+e+e²) is 0.665");
    assert!((280..390).contains(&hits(100.0)));
}

/// The definition of top-k, then top-p of what is left, then min-p.
fn kept_by_definition(sampling: &Sampling, probabilities: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..probabilities.len() as u32).collect();
    order.retain(|id| probabilities[*id as usize] > 0.0);
    order.sort_by(|a, b| probabilities[*b as usize].total_cmp(&probabilities[*a as usize]).then(a.cmp(b)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k as usize);
    }
    let p = |id: &u32| f64::from(probabilities[*id as usize]);
    let whole: f64 = order.iter().map(p).sum();
    if sampling.top_p < 1.0 {
        let mut mass = 0.0;
        let reaches = order.iter().position(|id| {
            mass += p(id);
            mass >= f64::from(sampling.top_p) * whole
        });
        order.truncate(reaches.map_or(order.len(), |index| index + 1));
    }
    let highest = probabilities[order[0] as usize];
    order.retain(|id| probabilities[*id as usize] >= sampling.min_p * highest);
    order
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn top_k_top_p_and_min_p_keep_what_the_definition_keeps(
        // Multiples of a power of two: sums are exact in any order, so both sides must agree to the token.
        weights in prop::collection::vec(prop_oneof![0..4_u32, 0..2000_u32], 1..200),
        top_k in 0..40_u32,
        top_p in prop_oneof![Just(1.0_f32), 0.01..1.0_f32],
        min_p in prop_oneof![Just(0.0_f32), 0.0..1.0_f32],
    ) {
        prop_assume!(weights.iter().any(|w| *w > 0));
        let probabilities: Vec<f32> = weights.iter().map(|w| *w as f32 / 65_536.0).collect();
        let sampling = Sampling { top_k, top_p, min_p, ..Sampling::default() };
        let kept: Vec<u32> = keep(&sampling, &probabilities).into_iter().map(|(_, id)| id).collect();
        prop_assert_eq!(kept, kept_by_definition(&sampling, &probabilities));
    }

    #[test]
    fn every_instruction_set_chooses_the_same_token(
        logits in prop::collection::vec(-20.0..20.0_f32, 1..300),
        temperature in 0.1..3.0_f32,
        top_k in 0..50_u32,
        top_p in 0.1..1.0_f32,
        seed: u64,
    ) {
        let sampler = sampler(Sampling { temperature, top_k, top_p, seed, ..Sampling::default() });
        let tokens: Vec<_> = Kernels::available()
            .into_iter()
            .map(|kernels| sampler.sample(kernels, 9, &mut logits.clone()).unwrap().token)
            .collect();
        prop_assert!(tokens.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", tokens);
    }
}
