use super::*;
use rookery_model::names::{LayerTensor, TensorName};

#[test]
fn the_documented_file_is_the_default_mixed_recipe_but_for_its_pins() {
    let source = include_str!("../recipe.rs");
    let file: String = source
        .lines()
        .skip_while(|line| !line.starts_with("//! ```toml"))
        .skip(1)
        .take_while(|line| !line.starts_with("//! ```"))
        .map(|line| line.trim_start_matches("//!").trim_start().to_owned() + "\n")
        .collect();
    let mut recipe: Recipe = toml::from_str(&file).unwrap();
    recipe.check().unwrap();
    assert_eq!(recipe.pins.len(), 2);
    recipe.pins.clear();
    assert_eq!(recipe.budget.take(), Some(DEFAULT_BUDGET));
    assert_eq!(recipe.smooth.take(), Some(0.5));
    assert_eq!(recipe, Recipe::named("mixed").unwrap());
}

#[test]
fn recipes_survive_toml_and_json() {
    let mut recipe = Recipe::named("mixed").unwrap();
    recipe.budget = Some(Budget::WeightBytes(4_939_212_390));
    recipe.pins = vec!["blk.*.ffn_down=w8".parse().unwrap()];
    recipe.smooth = Some(0.7);
    let toml = toml::to_string(&recipe).unwrap();
    assert_eq!(toml::from_str::<Recipe>(&toml).unwrap(), recipe);
    let json = serde_json::to_string(&recipe).unwrap();
    assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe);
}

#[test]
fn files_are_refused_with_the_field_at_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.toml");
    let refused = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Recipe::read(&path).unwrap_err().to_string()
    };
    assert!(refused("bitz = \"w4\"").contains("unknown field `bitz`"));
    assert!(refused("bits = \"w3\"").contains("w3"));
    assert!(refused("bits = \"mixed\"\nbudget = \"5\"").contains("5.0bits"));
    assert!(refused("budget = \"5bits\"").contains("budget is for mixed"));
    assert!(refused("head = \"f32\"").contains("head is f32"));
    assert!(refused("[calibration]\ntokens = 1").contains("calibration.tokens is 1"));
    assert!(refused("[sensitivity]\nstride = 999").contains("sensitivity.stride is 999"));
    for strength in ["-0.1", "1.01", "2", "inf", "nan"] {
        assert!(refused(&format!("smooth = {strength}")).contains("outside 0..=1"), "{strength}");
    }
    assert!(refused("pins = [\"x=w5\"]").contains("PATTERN=w8"));
    std::fs::write(&path, "bits = \"w4\"\n[calibration]\ntexts = [\"a.txt\"]").unwrap();
    assert_eq!(Recipe::read(&path).unwrap().calibration.texts, [folder.path().join("a.txt")]);
    assert!(Recipe::open("w5").unwrap_err().to_string().contains("neither a file nor one of w8, w4, mixed"));
}

#[test]
fn budgets_are_sizes_or_bits() {
    let budget = |text: &str| text.parse::<Budget>();
    assert_eq!(budget("4.6GiB"), Ok(Budget::WeightBytes(4_939_212_390)));
    assert_eq!(budget("4900MB"), Ok(Budget::WeightBytes(4_900_000_000)));
    assert_eq!(budget(" 5.0 bits "), Ok(Budget::BodyBits(5.0)));
    for text in ["", "5", "5.0", "bits", "17bits", "NaN bits", "-1GB", "0B", "1e99bits"] {
        assert!(budget(text).is_err(), "{text}");
    }
}

#[test]
fn pins_fit_names_with_and_without_weight() {
    let pin = |text: &str| text.parse::<Pin>().unwrap();
    let down = TensorName::Layer(12, LayerTensor::FfnDown);
    for pattern in ["blk.*.ffn_down", "blk.*.ffn_down.weight", "blk.12.*", "blk.??.ffn_d*n", "*", "*12*down*"]
    {
        assert!(pin(&format!("{pattern}=w8")).fits(down), "{pattern}");
    }
    for pattern in ["blk.1.ffn_down", "blk.?.ffn_down", "ffn_down", "blk.*.ffn_dow", "*12*12*"] {
        assert!(!pin(&format!("{pattern}=w8")).fits(down), "{pattern}");
    }
    for text in ["", "x", "=w8", "x=f32", "x=w4x"] {
        assert!(text.parse::<Pin>().is_err(), "{text}");
    }
}
