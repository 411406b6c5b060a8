//! How a command fails: one type, one adapter that prints the whole chain.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};

/// What the process exits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Exit code 1: the command was understood and did not succeed.
    Failed,
    /// Exit code 2: the command line makes no sense.
    Usage,
    /// Exit code 64: the configuration is wrong.
    Config,
    /// Exit code 0 without a word: the reader of standard output has gone away.
    OutputClosed,
}

impl Exit {
    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Config => 64,
            Exit::OutputClosed => 0,
        }
    }
}

/// A failed command: what was being done, why it did not work, and what to try next.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// A failure with exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Failure { exit: Exit::Failed, message: message.into(), hint: None, source: None }
    }

    /// A command line that cannot be carried out: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure { exit: Exit::Usage, ..Failure::new(message) }
    }

    /// A configuration that cannot be used: exit code 64.
    pub fn config(message: impl Into<String>) -> Self {
        Failure { exit: Exit::Config, ..Failure::new(message) }
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds what the person can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What the process should exit with.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints the chain to `out`: the error, each cause on its own line, then the hint.
    ///
    /// # Errors
    /// Whatever `out` fails with.
    pub fn report(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.exit == Exit::OutputClosed {
            return Ok(());
        }
        writeln!(out, "error: {}", self.message)?;
        let mut said = self.message.clone();
        let mut cause: Option<&(dyn Error + 'static)> = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some foreign errors repeat their source in their own message; once is enough.
            if !said.contains(&text) {
                writeln!(out, "  cause: {text}")?;
            }
            said = text;
            cause = error.source();
        }
        if let Some(hint) = &self.hint {
            writeln!(out, "  hint: {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn Error + 'static))
    }
}

/// Turns a result of a library into a result of a command.
pub trait OrFail<T> {
    /// Says what was being done when the error came up.
    ///
    /// # Errors
    /// A [`Failure`] with exit code 1 and the error as its cause.
    fn or_fail(self, doing: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> OrFail<T> for Result<T, E> {
    fn or_fail(self, doing: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(doing()).caused_by(error))
    }
}

/// A failure to write to standard output. A reader that went away (`| head`) is no error.
pub fn output_failure(error: io::Error) -> Failure {
    let exit = if error.kind() == io::ErrorKind::BrokenPipe { Exit::OutputClosed } else { Exit::Failed };
    Failure { exit, ..Failure::new("could not write to standard output").caused_by(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(failure: &Failure) -> String {
        let mut out = Vec::new();
        failure.report(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_chain_is_printed_once_each_with_the_hint_last() {
        let inner = Failure::new("disk full");
        let failure = Failure::new("could not pack x").caused_by(inner).hint("make room");
        assert_eq!(text(&failure), "error: could not pack x\n  cause: disk full\n  hint: make room\n");
    }

    #[test]
    fn a_closed_pipe_is_silent_and_no_failure() {
        let failure = output_failure(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(text(&failure), "");
        assert_eq!(failure.exit().code(), 0);
    }
}
