use rookery_model::names::LayerTensor;

use super::*;

fn model() -> ModelConfig {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny/llama3.gguf");
    let config = rookery_model::source::open(fixtures.as_ref()).unwrap().config().clone();
    ModelConfig {
        hidden: 256,
        heads: 8,
        kv_heads: 4,
        head_dim: 64,
        ffn: 512,
        layers: 2,
        tied_head: false,
        qkv_bias: false,
        qk_norm: false,
        ..config
    }
}

fn plan(recipe: &str, pins: &[&str]) -> Plan {
    let mut recipe = Recipe::named(recipe).unwrap();
    recipe.pins = pins.iter().map(|pin| pin.parse().unwrap()).collect();
    Plan::new(&model(), &recipe).unwrap()
}

#[test]
fn the_last_pin_that_fits_decides() {
    let plan = plan("mixed", &["blk.*=w4", "blk.*.ffn_down=w8", "output=w4"]);
    let form = |name| plan.form(name).unwrap();
    assert_eq!(form(TensorName::Layer(1, LayerTensor::FfnDown)), Form::Given(Precision::W8, true));
    assert_eq!(form(TensorName::Layer(1, LayerTensor::FfnUp)), Form::Given(Precision::W4, true));
    assert_eq!(form(TensorName::Output), Form::Given(Precision::W4, true));
    assert_eq!(form(TensorName::TokenEmbedding), Form::Given(Precision::W8, false));
    assert_eq!(plan.form(TensorName::OutputNorm), None);
    assert!(!plan.is_mixed() && plan.calibrates());
    let mut recipe = Recipe::named("w8").unwrap();
    recipe.pins = vec!["attn_q=w8".parse().unwrap()];
    let error = Plan::new(&model(), &recipe).err().unwrap().to_string();
    assert!(error.contains("attn_q=w8 fits no tensor") && error.contains("blk.0.attn_q"), "{error}");
}

#[test]
fn w8_needs_no_calibration_and_a_pin_to_w4_does() {
    assert!(!plan("w8", &[]).calibrates());
    assert!(plan("w8", &["blk.0.ffn_up=w4"]).calibrates());
    let w4 = plan("w4", &["blk.0.ffn_up=w8"]);
    assert_eq!(w4.calibrated(TensorName::Layer(0, LayerTensor::FfnUp)), None);
    assert_eq!(w4.calibrated(TensorName::Layer(1, LayerTensor::FfnUp)), Some(Precision::W4));
    assert_eq!(w4.calibrated(TensorName::TokenEmbedding), None);
}

#[test]
fn neighbours_that_are_alike_become_one_segment() {
    let plan = plan("mixed", &[]);
    let q = TensorName::Layer(0, LayerTensor::AttnQ);
    let mut chosen = vec![Precision::W4; plan.units.len()];
    assert_eq!(plan.chosen_entries(Part::Block(0), &chosen), plan.low_entries(Part::Block(0)));
    // Heads 2, 3 and 7 of the first q.
    for head in [2, 3, 7] {
        assert_eq!((plan.units[head].tensor, plan.units[head].rows.start), (q, head * 64));
        chosen[head] = Precision::W8;
    }
    let entries = plan.chosen_entries(Part::Block(0), &chosen);
    let q = entries.iter().find(|entry| entry.name == q).unwrap();
    let segments: Vec<_> = q.segments.iter().map(|s| (s.first_row, s.rows, s.precision)).collect();
    let (w4, w8) = (Precision::W4, Precision::W8);
    assert_eq!(segments, [(0, 128, w4), (128, 128, w8), (256, 192, w4), (448, 64, w8)]);
}

#[test]
fn budgets_below_the_least_are_refused_with_it_and_the_least_is_accepted() {
    let mut plan = plan("mixed", &["blk.0.*=w8"]);
    for (small, unit) in [(Budget::BodyBits(4.0), "bits"), (Budget::WeightBytes(1000), "MB")] {
        plan.recipe.budget = Some(small);
        let QuantizeError::BudgetTooSmall { least, .. } = plan.capacity().unwrap_err() else { panic!() };
        assert!(least.ends_with(unit), "{least}");
        plan.recipe.budget = Some(least.parse().unwrap());
        let capacity = plan.capacity().unwrap();
        assert!(capacity < 60_000, "{capacity}");
    }
    plan.recipe.budget = Some(Budget::BodyBits(16.0));
    let extra: u64 = plan.units.iter().map(|unit| unit.w8_bytes - unit.w4_bytes).sum();
    assert!(plan.capacity().unwrap() >= extra);
}
