//! Errors as one line of text, for logs, statuses and reasons.

/// An error with its causes, in one line. Errors of this project never repeat their causes.
pub(crate) fn one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_in_order() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the blob")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk is gone"));
        assert_eq!(one_line(&error), "cannot read the blob: disk is gone");
        assert_eq!(one_line(&error.0), "disk is gone");
    }
}
