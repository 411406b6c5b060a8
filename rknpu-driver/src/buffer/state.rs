//! Who uses a buffer: the rules, without memory, clocks or threads.

use std::ops::Range;

/// Ranges of guards that live at once share no line of this many bytes (the A76's and A55's cache line), so
/// that cleaning one's lines never meets another's half-written ones.
pub(crate) const LINE: usize = 64;

/// Users of one buffer.
#[derive(Debug, Default)]
pub(crate) struct Users {
    /// Guards: lines, and whether they write.
    guards: Vec<(Range<usize>, bool)>,
    /// Jobs that read.
    job_readers: usize,
    /// Jobs that write: 0 or 1.
    job_writers: usize,
    sealed: bool,
    quarantined: bool,
}

/// Why someone must wait or cannot have the buffer at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A guard holds it; it will go.
    Guard,
    /// A job holds it; it will end.
    Job,
    /// Nobody writes it any more.
    Sealed,
    /// A job that could not be stopped may still use it.
    Quarantined,
}

impl Refusal {
    /// Who holds the buffer.
    pub(crate) fn holder(self) -> &'static str {
        match self {
            Refusal::Guard => "another guard",
            Refusal::Job | Refusal::Quarantined => "a job",
            Refusal::Sealed => "nobody",
        }
    }
}

impl Users {
    /// A guard over `bytes` comes.
    pub(crate) fn enter_guard(&mut self, bytes: Range<usize>, write: bool) -> Result<(), Refusal> {
        self.usable(write)?;
        if self.job_writers > 0 || write && self.job_readers > 0 {
            return Err(Refusal::Job);
        }
        let lines = lines(&bytes);
        let conflicts = |(other, writes): &(Range<usize>, bool)| {
            (write || *writes) && other.start < lines.end && lines.start < other.end
        };
        if self.guards.iter().any(conflicts) {
            return Err(Refusal::Guard);
        }
        self.guards.push((lines, write));
        Ok(())
    }

    /// A guard that came goes.
    pub(crate) fn leave_guard(&mut self, bytes: Range<usize>, write: bool) {
        let lines = lines(&bytes);
        if let Some(index) = self.guards.iter().position(|guard| *guard == (lines.clone(), write)) {
            self.guards.swap_remove(index);
        }
    }

    /// A job comes.
    pub(crate) fn enter_job(&mut self, write: bool) -> Result<(), Refusal> {
        self.usable(write)?;
        if self.guards.iter().any(|(_, writes)| write || *writes) {
            return Err(Refusal::Guard);
        }
        if self.job_writers > 0 || write && self.job_readers > 0 {
            return Err(Refusal::Job);
        }
        *self.jobs(write) += 1;
        Ok(())
    }

    /// A job that came goes.
    pub(crate) fn leave_job(&mut self, write: bool) {
        let count = self.jobs(write);
        *count = count.saturating_sub(1);
    }

    /// Whether the buffer can be sealed now: nobody writes it, or it is sealed already.
    pub(crate) fn may_seal(&mut self) -> Result<(), Refusal> {
        if self.sealed {
            return Ok(());
        }
        if self.quarantined {
            return Err(Refusal::Quarantined);
        }
        if self.guards.iter().any(|(_, writes)| *writes) {
            return Err(Refusal::Guard);
        }
        if self.job_writers > 0 { Err(Refusal::Job) } else { Ok(()) }
    }

    /// Nobody may write from now on.
    pub(crate) fn seal(&mut self) {
        self.sealed = true;
    }

    /// A job that holds the buffer may never end (or no longer does).
    pub(crate) fn set_quarantined(&mut self, quarantined: bool) {
        self.quarantined = quarantined;
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Guards inside.
    pub(crate) fn guards(&self) -> usize {
        self.guards.len()
    }

    /// Sealed memory is never written by the device, so even a hung job leaves it readable.
    fn usable(&self, write: bool) -> Result<(), Refusal> {
        if self.sealed {
            return if write { Err(Refusal::Sealed) } else { Ok(()) };
        }
        if self.quarantined { Err(Refusal::Quarantined) } else { Ok(()) }
    }

    fn jobs(&mut self, write: bool) -> &mut usize {
        if write { &mut self.job_writers } else { &mut self.job_readers }
    }
}

/// The lines that hold `bytes`; none for an empty range.
fn lines(bytes: &Range<usize>) -> Range<usize> {
    if bytes.is_empty() { 0..0 } else { bytes.start / LINE..bytes.end.div_ceil(LINE) }
}
