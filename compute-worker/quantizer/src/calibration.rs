//! Text to calibrate on.
//!
//! Texts are cut into sequences of equal length; where there are more than needed, those taken are spread evenly over all
//! of it, so that every file and kind of text has its share.

use std::path::{Path, PathBuf};

use rookery_model::bundle::Digest;
use rookery_model::source::ModelSource;
use rookery_model::tokenizer::{Tokenizer, TokenizerError};

/// The text that is built in: code, prose, dialogue, facts.
const BUILT_IN: [&str; 4] = [
    include_str!("../data/calibration/chat.txt"),
    include_str!("../data/calibration/code.txt"),
    include_str!("../data/calibration/prose.txt"),
    include_str!("../data/calibration/world.txt"),
];

/// Calibration text cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// A text file cannot be read, or is not UTF-8.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is too little of it.
    #[error(
        "{found} tokens of text, at least {needed} are needed; give more files or ask for shorter sequences"
    )]
    TooShort {
        /// Tokens found.
        found: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// The tokenizer gave a token that the model does not have.
    #[error("the tokenizer gives token {token}, and the model has {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Tokens of the model.
        vocabulary: usize,
    },
    /// The model's tokenizer cannot be used.
    #[error("tokenizer")]
    Tokenizer(#[from] TokenizerError),
}

/// Sequences of tokens that go through a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// All sequences, one after another.
    pub tokens: Vec<u32>,
    /// Tokens of each.
    pub length: usize,
}

impl Sequences {
    /// Tokens of `texts`, of the built-in text where there are none: about `tokens` of them in sequences of `length`, fewer
    /// where the text has fewer.
    ///
    /// # Errors
    /// When a file cannot be read or there is not one whole sequence.
    pub fn read(
        source: &dyn ModelSource,
        texts: &[PathBuf],
        tokens: usize,
        length: usize,
    ) -> Result<Self, CalibrationError> {
        let length = length.min(source.config().context).max(1);
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path)
                .map_err(|source| CalibrationError::Io { path: Path::to_owned(path), source })
        };
        if texts.is_empty() {
            return Self::of(source, &BUILT_IN, tokens, length);
        }
        let texts = texts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Self::of(source, &texts, tokens, length)
    }

    fn of(
        source: &dyn ModelSource,
        texts: &[impl AsRef<str>],
        tokens: usize,
        length: usize,
    ) -> Result<Self, CalibrationError> {
        let tokenizer = Tokenizer::new(source.tokenizer_json(), source.tokenizer_config().clone())?;
        let mut found = 0;
        let mut all: Vec<Vec<u32>> = Vec::new();
        for text in texts {
            let encoded = tokenizer.encode_text(text.as_ref())?;
            found += encoded.len();
            all.extend(encoded.chunks_exact(length).map(<[u32]>::to_vec));
        }
        if all.is_empty() {
            return Err(CalibrationError::TooShort { found, needed: length });
        }
        let taken = tokens.div_ceil(length).min(all.len());
        // The middle of each of `taken` equal shares.
        let spread = (0..taken).map(|i| &all[(2 * i + 1) * all.len() / (2 * taken)]);
        let tokens: Vec<u32> = spread.flatten().copied().collect();
        let vocabulary = source.config().vocab;
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            Some(&token) => Err(CalibrationError::Token { token, vocabulary }),
            None => Ok(Self { tokens, length }),
        }
    }

    /// Number of sequences.
    pub fn count(&self) -> usize {
        self.tokens.len() / self.length
    }

    /// SHA-256 of length and tokens.
    pub fn digest(&self) -> Digest {
        let mut bytes = (self.length as u64).to_le_bytes().to_vec();
        bytes.extend(self.tokens.iter().flat_map(|token| token.to_le_bytes()));
        Digest::of(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Box<dyn ModelSource> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny");
        rookery_model::source::open(&fixtures.join("llama3.gguf")).unwrap()
    }

    #[test]
    fn sequences_are_whole_and_spread_over_all_files() {
        let source = tiny();
        let texts = ["one two three ".repeat(50), "x y z ".repeat(50)];
        let all = Sequences::of(source.as_ref(), &texts, usize::MAX, 16).unwrap();
        assert!(all.count() > 8 && all.tokens.len() == all.count() * 16);
        let some = Sequences::of(source.as_ref(), &texts, 32, 16).unwrap();
        assert_eq!(some.count(), 2);
        let whole: Vec<&[u32]> = all.tokens.chunks(16).collect();
        let places: Vec<usize> =
            some.tokens.chunks(16).map(|one| whole.iter().position(|other| *other == one).unwrap()).collect();
        assert!(places[0] < whole.len() / 2);
        assert_ne!(all.digest(), some.digest());
    }

    #[test]
    fn the_built_in_text_is_enough_and_faults_are_named() {
        let source = tiny();
        let built_in = Sequences::read(source.as_ref(), &[], 1024, 128).unwrap();
        assert_eq!(built_in.tokens.len(), 1024);
        let missing = Sequences::read(source.as_ref(), &["no-such-file".into()], 64, 16).unwrap_err();
        assert_eq!(missing.to_string(), "cannot read no-such-file");
        let short = Sequences::of(source.as_ref(), &["x"], 64, 16).unwrap_err();
        assert!(short.to_string().contains("at least 16 are needed"), "{short}");
    }
}
