//! Recording with a reference, on tiny random models, which know no answers but their own.

use std::path::PathBuf;
use std::sync::Arc;

use rookery_compute_worker::probes::Topic;
use rookery_model::bundle::{NoProgress, Part};
use rookery_model::pack::{Draft, ExistingTarget, PackOptions, Recipe, pack};
use tempfile::TempDir;

use super::*;

fn source(model: &str) -> Box<dyn ModelSource> {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny");
    rookery_model::source::open(&fixtures.join(format!("{model}.gguf"))).unwrap()
}

fn packed(source: &dyn ModelSource) -> (Arc<Bundle>, TempDir) {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("bundle");
    let (name, existing) = ("tiny".to_owned(), ExistingTarget::Refuse);
    let options = PackOptions { name, recipe: Recipe::W8, threads: 2, existing };
    pack(source, &options, &out, &NoProgress).unwrap();
    (Bundle::open(&out, &NoProgress).unwrap(), folder)
}

fn config() -> EngineConfig {
    EngineConfig { threads: 2, ..EngineConfig::default() }
}

/// What `source` says after `text` in f32, one token at a time.
fn continuation(source: &dyn ModelSource, tokenizer: &Tokenizer, text: &str, count: usize) -> Vec<u32> {
    let mut tokens = tokenizer.encode_text(text).unwrap();
    let prompt = tokens.len();
    for _ in 0..count {
        let mut next = 0;
        let mut last = |_: usize, _: usize, logits: &[f32]| next = most_likely(logits);
        Reference::open(source).logits(&[&tokens], &mut last).unwrap();
        tokens.push(next);
    }
    tokens.split_off(prompt)
}

/// Prompts whose answers are what `source` says: those that text can express.
fn known(source: &dyn ModelSource, tokenizer: &Tokenizer) -> Vec<Prompt> {
    let mut known = Vec::new();
    for index in 0..60 {
        let text = format!("text number {index} says");
        let said = continuation(source, tokenizer, &text, 2);
        let bytes = tokenizer.token_bytes(said[0]).unwrap_or_default();
        let Ok(answer) = std::str::from_utf8(bytes) else { continue };
        let whole = tokenizer.encode_text(&format!("{text}{answer}")).unwrap();
        let expressible = whole == [tokenizer.encode_text(&text).unwrap(), vec![said[0]]].concat();
        if expressible && !answer.trim().is_empty() && is_right(tokenizer, &said, answer) {
            let (name, answer) = (format!("known/{index}"), Some(answer.to_owned()));
            known.push(Prompt { name, topic: Topic::Logic, text, answer, tokens: 3 });
        }
    }
    assert!(known.len() >= 3, "{} prompts that text can express", known.len());
    known
}

#[test]
fn the_reference_knows_what_it_says_and_nothing_else() {
    let source = source("llama3");
    let (bundle, _folder) = packed(source.as_ref());
    let tokenizer = bundle.tokenizer().unwrap();
    let mut prompts = known(source.as_ref(), &tokenizer);
    let wrong =
        Prompt { name: "wrong".to_owned(), answer: Some(" a wrong answer".to_owned()), ..prompts[0].clone() };
    let open = Prompt { name: "open".to_owned(), answer: None, ..prompts[1].clone() };
    prompts.extend([wrong, open]);
    let set = record_prompts(&bundle, source.as_ref(), &prompts, &config(), None).unwrap();
    for probe in &set.probes {
        let knows = probe.answer.as_ref().map(|answer| answer.reference);
        let expected = match probe.name.as_str() {
            "wrong" => Some(Some(false)),
            "open" => None,
            _ => Some(Some(true)),
        };
        assert_eq!(knows, expected, "{}", probe.name);
    }
}

#[test]
fn too_many_lost_answers_are_refused_by_name() {
    let source = source("qwen2");
    let (bundle, _folder) = packed(source.as_ref());
    let tokenizer = bundle.tokenizer().unwrap();
    let prompts = known(source.as_ref(), &tokenizer);
    let set = record_prompts(&bundle, source.as_ref(), &prompts, &config(), None).unwrap();
    let lost: Vec<String> = set.lost(KvType::F16).map(str::to_owned).collect();
    assert!(lost.len() < prompts.len(), "{lost:?}: packing keeps some");
    let broken = Broken(self::source("qwen2"));
    let (broken, _other) = packed(&broken);
    let record = |max_lost| record_prompts(&broken, source.as_ref(), &prompts, &config(), max_lost);
    let lost: Vec<String> = record(None).unwrap().lost(KvType::F16).map(str::to_owned).collect();
    assert!(!lost.is_empty(), "a broken model loses answers");
    assert!(record(Some(lost.len())).is_ok());
    let error = record(Some(lost.len() - 1)).unwrap_err();
    let ProbesError::Lost { names, .. } = &error else { panic!("{error}") };
    assert_eq!(*names, lost);
    let text = error.to_string();
    assert!(text.contains(&lost[0]) && text.contains(&format!("lost {}", lost.len())), "{text}");
}

/// A model whose output norm has the wrong sign.
struct Broken(Box<dyn ModelSource>);

impl ModelSource for Broken {
    fn config(&self) -> &rookery_model::config::ModelConfig {
        self.0.config()
    }

    fn tensor_rows(
        &self,
        name: rookery_model::names::TensorName,
        rows: std::ops::Range<usize>,
    ) -> Result<Vec<f32>, rookery_model::source::ImportError> {
        let mut values = self.0.tensor_rows(name, rows)?;
        if name == rookery_model::names::TensorName::OutputNorm {
            values.iter_mut().for_each(|value| *value = -*value);
        }
        Ok(values)
    }

    fn tokenizer_json(&self) -> &str {
        self.0.tokenizer_json()
    }

    fn tokenizer_config(&self) -> &rookery_model::tokenizer::TokenizerConfig {
        self.0.tokenizer_config()
    }

    fn digest(&self) -> Result<String, rookery_model::source::ImportError> {
        self.0.digest()
    }

    fn description(&self) -> String {
        self.0.description()
    }
}

#[test]
fn the_probes_of_a_bundle_are_replayed_for_both_caches() {
    let source = source("qwen3");
    let (plain, _folder) = packed(source.as_ref());
    assert!(matches!(evaluate(&plain, &config()), Err(ProbesError::None)));
    let mut set = record(&plain, source.as_ref(), &config(), Some(32)).unwrap();
    assert_eq!(set.probes.len(), 32);
    let report = |set: &ProbeSet| {
        let (bundle, _folder) = with_probes(&plain, source.as_ref(), set);
        evaluate(&bundle, &config()).unwrap()
    };
    let right = report(&set);
    assert!(right.reproduces());
    assert_eq!(right.caches.iter().map(|cache| cache.kv_cache_type).collect::<Vec<_>>(), ["f16", "int8"]);
    assert!(right.caches.iter().all(|cache| cache.probes == 32 && cache.tokens == 24 * 8 + 8 * 16));
    set.probes[5].int8.logits.swap(0, 1);
    let wrong = report(&set);
    assert!(!wrong.reproduces() && wrong.caches[0].differing.is_empty());
    let [differing] = wrong.caches[1].differing.as_slice() else { panic!("{wrong:?}") };
    assert!(differing.contains(&set.probes[5].name), "{differing}");
}

fn with_probes(bundle: &Bundle, source: &dyn ModelSource, set: &ProbeSet) -> (Arc<Bundle>, TempDir) {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("bundle");
    let mut draft = Draft::create(&out, ExistingTarget::Refuse, "probes").unwrap();
    let config = &bundle.info().config;
    config.parts().for_each(|part: Part| draft.copy_part(bundle, part).unwrap());
    draft.document(rookery_model::bundle::PROBES_TYPE, recorded::TITLE, &set.to_json()).unwrap();
    draft.publish(config, source).unwrap();
    (Bundle::open(&out, &NoProgress).unwrap(), folder)
}

#[test]
fn calibration_text_and_the_text_that_quality_is_measured_on_share_no_eight_words() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let words = |path: PathBuf| -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap().to_lowercase();
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    let read = |folder: PathBuf, names: &[&str]| -> Vec<Vec<String>> {
        names.iter().map(|name| words(folder.join(name))).collect()
    };
    let measured = read(folder.join("../../tests/data/eval"), &["code.txt", "prose.txt"]);
    let measured: std::collections::HashSet<&[String]> =
        measured.iter().flat_map(|text| text.windows(8)).collect();
    let names = ["chat.txt", "code.txt", "prose.txt", "world.txt"];
    let calibration = read(folder.join("data/calibration"), &names);
    assert!(measured.len() > 5000 && calibration.iter().all(|text| text.len() > 1000), "both were read");
    for (name, text) in names.iter().zip(&calibration) {
        let shared = text.windows(8).find(|words| measured.contains(words));
        assert_eq!(shared, None, "{name}");
    }
}
