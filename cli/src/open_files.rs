//! How many files, and with them connections, this process may have open.
//!
//! Systems start programs with a low limit for the sake of very old ones, and let them raise it up to a second, hard one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::Failure;

/// Raises this process's limit to the hard one, and gives what it is then. Children have it too.
pub fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return u64::MAX };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// Raises the limit, and refuses to begin what needs more.
///
/// # Errors
/// If `needed` are more than this process may have.
pub fn need(needed: u64, what: &str) -> Result<(), Failure> {
    let limit = raise();
    if limit >= needed {
        return Ok(());
    }
    let message = format!("{what} need {needed} open files, and this process may have {limit}");
    Err(Failure::new(message)
        .hint(format!("raise the hard limit, as root: `ulimit -Hn {needed}`, or LimitNOFILE= of systemd")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_and_told() {
        let limit = raise();
        assert!(limit >= 256);
        assert!(need(limit, "tests").is_ok());
        if let Some(more) = limit.checked_add(1) {
            let error = need(more, "tests").unwrap_err().to_string();
            assert!(error.contains(&format!("tests need {more} open files")), "{error}");
        }
    }
}
