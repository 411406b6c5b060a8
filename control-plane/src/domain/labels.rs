//! Labels of gateways, and selectors that match them.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// Labels by name. Beside its own, a gateway has `id`, and `board`, `driver` and `processor` where it reports them.
pub type Labels = BTreeMap<String, String>;

/// Most terms of a selector.
const MOST_TERMS: usize = 32;

/// Which gateways: terms joined by commas, all of which must hold. `site=berlin`, `board!=dev`, `site=berlin|bonn`
/// (one of), `gpu` (has the label), `!gpu` (has it not). The empty selector matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    name: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    OneOf(Vec<String>),
    NoneOf(Vec<String>),
    Present,
    Absent,
}

/// The text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSelector {
    /// A term has another form.
    #[error(
        "selector term {0:?} must be NAME=VALUE, NAME!=VALUE, NAME or !NAME; values may be joined by '|'"
    )]
    Term(String),
    /// Too many terms.
    #[error("a selector has at most {MOST_TERMS} terms")]
    Long,
}

/// Whether a text can be the name or value of a label: 1 to 63 letters, digits, `.`, `_`, `-` and `/`.
pub fn is_label_text(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
    (1..=63).contains(&text.len()) && text.bytes().all(plain)
}

impl Selector {
    /// Whether all terms hold.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|term| {
            let value = labels.get(&term.name);
            match &term.test {
                Test::OneOf(values) => value.is_some_and(|value| values.contains(value)),
                Test::NoneOf(values) => !value.is_some_and(|value| values.contains(value)),
                Test::Present => value.is_some(),
                Test::Absent => value.is_none(),
            }
        })
    }
}

impl FromStr for Selector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let terms: Vec<_> = text.split(',').map(str::trim).filter(|term| !term.is_empty()).collect();
        if terms.len() > MOST_TERMS {
            return Err(InvalidSelector::Long);
        }
        terms.into_iter().map(term).collect::<Result<_, _>>().map(Self)
    }
}

fn term(text: &str) -> Result<Term, InvalidSelector> {
    let values = |list: &str| list.split('|').map(|value| value.trim().to_owned()).collect::<Vec<_>>();
    let (name, test) = if let Some((name, list)) = text.split_once("!=") {
        (name, Test::NoneOf(values(list)))
    } else if let Some((name, list)) = text.split_once('=') {
        (name, Test::OneOf(values(list)))
    } else if let Some(name) = text.strip_prefix('!') {
        (name, Test::Absent)
    } else {
        (text, Test::Present)
    };
    let name = name.trim().to_owned();
    let sound = match &test {
        Test::OneOf(values) | Test::NoneOf(values) => values.iter().all(|value| is_label_text(value)),
        Test::Present | Test::Absent => true,
    };
    if !sound || !is_label_text(&name) {
        return Err(InvalidSelector::Term(text.chars().take(128).collect()));
    }
    Ok(Term { name, test })
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Term { name, test }) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match test {
                Test::OneOf(values) => write!(f, "{comma}{name}={}", values.join("|"))?,
                Test::NoneOf(values) => write!(f, "{comma}{name}!={}", values.join("|"))?,
                Test::Present => write!(f, "{comma}{name}")?,
                Test::Absent => write!(f, "{comma}!{name}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_mean_what_they_say() {
        let labels: Labels = [("site".to_owned(), "berlin".to_owned())].into();
        for (text, expected) in [
            ("", true),
            ("site=berlin", true),
            ("site=bonn|berlin", true),
            ("site!=berlin", false),
            ("board!=dev", true),
            ("site,!board", true),
            ("site=berlin, board=dev", false),
        ] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.matches(&labels), expected, "{text}");
            assert_eq!(selector.to_string().parse(), Ok(selector));
        }
        for text in ["=", "a=", "a=b=c d", "!", "a b"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }
}
