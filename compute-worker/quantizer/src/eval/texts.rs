//! Text to measure on, cut into sequences.

/// Text with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// File name or the like.
    pub name: String,
    /// Contents.
    pub text: String,
}

impl Text {
    /// The texts that come with the program: code and prose, about 12,000 tokens together.
    pub fn builtin() -> Vec<Self> {
        let text = |name: &str, text: &str| Self { name: name.to_owned(), text: text.to_owned() };
        vec![
            text("code.txt", include_str!("../../../../tests/data/eval/code.txt")),
            text("prose.txt", include_str!("../../../../tests/data/eval/prose.txt")),
        ]
    }
}

/// Cuts each text's tokens, of all texts together at most `limit`, into sequences of `length`. A rest of less than two
/// tokens predicts nothing and is left out.
pub(super) fn sequences(texts: &[Vec<u32>], limit: Option<usize>, length: usize) -> Vec<Vec<u32>> {
    let share = limit.map_or(usize::MAX, |limit| limit / texts.len().max(1));
    let cut = texts.iter().flat_map(|tokens| tokens[..tokens.len().min(share)].chunks(length.max(2)));
    cut.filter(|sequence| sequence.len() >= 2).map(<[u32]>::to_vec).collect()
}
