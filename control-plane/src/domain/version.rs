//! Names of models, versions and aliases, and the digests that they stand for.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The text is no such name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} must {rule}")]
pub struct InvalidName {
    what: &'static str,
    text: String,
    rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $most:literal, $allowed:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let allowed: fn(&str) -> bool = $allowed;
                if (1..=$most).contains(&text.len()) && allowed(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    // Others choose this text, and it ends up in logs.
                    let text = text.chars().take($most).collect();
                    Err(InvalidName { what: $what, text, rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

name!(
    /// Name of a model: parts of letters, digits, `.`, `_` and `-`, joined by `/`. At most 128 bytes.
    ModelName, "model name", 128,
    |text| text.split('/').all(|part| !matches!(part, "" | "." | "..") && plain(part)),
    "have 1 to 128 letters, digits, '.', '_' or '-', in parts joined by '/'"
);
name!(
    /// Name of a version of a model: 1 to 128 letters, digits, `.`, `_` and `-`.
    VersionName, "version", 128, plain, "have 1 to 128 letters, digits, '.', '_' or '-'"
);
name!(
    /// Name of an alias of a model: 1 to 64 letters, digits, `.`, `_` and `-`.
    AliasName, "alias", 64, plain, "have 1 to 64 letters, digits, '.', '_' or '-'"
);
name!(
    /// `sha256:` and 64 lower-case hexadecimal digits: of a manifest, which names a version, or of a blob.
    Digest, "digest", 71,
    |text| text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    }),
    "be \"sha256:\" and 64 lower-case hexadecimal digits"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for text in ["", "..", "a//b", "/a", "a/", "a/../b", "a b", "ä", "a\0"] {
            assert!(text.parse::<ModelName>().is_err(), "{text:?}");
        }
        assert_eq!("org/qwen-2.5".parse::<ModelName>().unwrap().as_str(), "org/qwen-2.5");
        assert!("a/b".parse::<VersionName>().is_err());
        assert!(format!("sha256:{}", "A".repeat(64)).parse::<Digest>().is_err());
        assert!(format!("sha256:{}", "a".repeat(64)).parse::<Digest>().is_ok());
    }
}
