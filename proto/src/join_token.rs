//! The text that a person carries to a new gateway.

use std::{fmt, str::FromStr};

/// `rk1.<id>.<secret>.<sha256 of the authority's certificate>`: lets a gateway join, and tells it whom to trust, so that
/// already the first contact is safe.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: String,
    authority: String,
}

/// The text is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a join token has the form rk1.ID.SECRET.FINGERPRINT; make one with `rookery tokens join`")]
pub struct InvalidJoinToken;

const VERSION: &str = "rk1";

impl JoinToken {
    /// A token of these parts: 12 hexadecimal digits, 43 of base64url, and 64 hexadecimal digits, all lower case.
    ///
    /// # Errors
    /// If one has another form.
    pub fn new(id: &str, secret: &str, authority: &str) -> Result<Self, InvalidJoinToken> {
        let hexadecimal = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let secret_fits = secret.len() == 43 && secret.bytes().all(plain);
        if !hexadecimal(id, 12) || !secret_fits || !hexadecimal(authority, 64) {
            return Err(InvalidJoinToken);
        }
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), authority: authority.to_owned() })
    }

    /// Names the token in logs and in the audit; no secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Who shows it may join.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// SHA-256 of the authority's certificate (DER), lower-case hexadecimal.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The whole text, to be shown once.
    pub fn expose(&self) -> String {
        format!("{VERSION}.{}.{}.{}", self.id, self.secret, self.authority)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

impl FromStr for JoinToken {
    type Err = InvalidJoinToken;

    fn from_str(text: &str) -> Result<Self, InvalidJoinToken> {
        let mut parts = text.trim().split('.');
        let parts = [(); 5].map(|()| parts.next());
        match parts {
            [Some(VERSION), Some(id), Some(secret), Some(authority), None] => {
                Self::new(id, secret, authority)
            }
            _ => Err(InvalidJoinToken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_everything_and_is_not_printed() {
        let token = JoinToken::new("0123456789ab", &"S".repeat(43), &"ab".repeat(32)).unwrap();
        let text = token.expose();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(token.authority(), "ab".repeat(32));
        assert!(!format!("{token:?}").contains(token.secret()));
        let shorter = &text[..text.len() - 1];
        for text in ["", "rk1", "rk1...", shorter, &text.replacen("rk1", "rk2", 1), &format!("{text}.x")] {
            assert!(text.parse::<JoinToken>().is_err(), "{text}");
        }
    }
}
