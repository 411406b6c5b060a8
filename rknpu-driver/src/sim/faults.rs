//! Faults put into the simulated device on purpose: seeded, composable, counted.
//!
//! A [`FaultPlan`] is a list of rules, each a [`Fault`] and a [`Trigger`]. Every rule sees the events of its fault's
//! kind, numbered from 1: jobs as the kernel accepts them, allocations as they are asked for. Whether a rule fires on
//! event `n` is a function of (seed, rule, n) alone, so a run is repeated by its seed and its order of events.
//!
//! ```
//! use rknpu_driver::sim::faults::{Fault, FaultPlan, Trigger};
//!
//! // Every job has a 1 % chance of hanging a core, and the third allocation fails.
//! let plan = FaultPlan::new(7).with(Fault::TimeOut, Trigger::Probability(0.01)).with(Fault::OutOfMemory, Trigger::At(3));
//! assert_eq!("seed=7,timeout=0.01,nomem@3".parse::<FaultPlan>().unwrap(), plan);
//! ```

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// One core of the job stops before one of its tasks and stays stopped until it is reset: later tasks write nothing.
    TimeOut,
    /// All tasks run, but the interrupt carries a status that is not the one asked for, so the kernel ignores it.
    WrongStatus,
    /// All tasks run, but one core's interrupt never arrives.
    LostInterrupt,
    /// The kernel has no memory for a buffer (`ENOMEM`).
    OutOfMemory,
    /// The device goes away as the job is submitted: `ENODEV` from every call until it is opened again.
    GoneUntilReopened,
    /// The device goes away for good: `ENODEV` from every call, and from every attempt to open it.
    GoneForEver,
    /// The job succeeds, with one bit of its output inverted.
    BitFlip,
}

impl Fault {
    /// Every kind of fault.
    pub const ALL: [Self; 7] = [
        Self::TimeOut,
        Self::WrongStatus,
        Self::LostInterrupt,
        Self::OutOfMemory,
        Self::GoneUntilReopened,
        Self::GoneForEver,
        Self::BitFlip,
    ];

    /// The name in a plan's text form.
    pub fn name(self) -> &'static str {
        match self {
            Self::TimeOut => "timeout",
            Self::WrongStatus => "status",
            Self::LostInterrupt => "interrupt",
            Self::OutOfMemory => "nomem",
            Self::GoneUntilReopened => "gone",
            Self::GoneForEver => "dead",
            Self::BitFlip => "flip",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// When a rule fires. Events are numbered from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trigger {
    /// Each event with this probability, 0 to 1.
    Probability(f64),
    /// The event of this number, once.
    At(u64),
    /// Every event whose number is a multiple of this one (0: none).
    Every(u64),
}

/// Which faults a simulated device has, and when. Empty by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultPlan {
    seed: u64,
    rules: Vec<(Fault, Trigger)>,
}

impl FaultPlan {
    /// A plan without faults whose rules will draw from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, rules: Vec::new() }
    }

    /// The plan with one rule more.
    #[must_use]
    pub fn with(mut self, fault: Fault, trigger: Trigger) -> Self {
        self.rules.push((fault, trigger));
        self
    }

    /// What all draws depend on.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The rules in the order they were added.
    pub fn rules(&self) -> &[(Fault, Trigger)] {
        &self.rules
    }
}

/// A plan's text form is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseFaultPlanError {
    /// No fault or setting of this name.
    #[error(
        "`{0}` is no fault; the faults are timeout, status, interrupt, nomem, gone, dead, flip, and `seed=N` sets the seed"
    )]
    UnknownName(String),
    /// What follows the name is neither a probability, a number of an event, nor a period.
    #[error("`{0}` is no rule; rules are NAME=PROBABILITY, NAME@EVENT and NAME%PERIOD")]
    BadRule(String),
}

/// `seed=7,timeout=0.01,nomem@3,flip%100`: a seed, each job hanging with probability 0.01, the third allocation
/// failing, a bit flipped in every hundredth job. Blanks around commas are ignored.
impl FromStr for FaultPlan {
    type Err = ParseFaultPlanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut plan = Self::default();
        for rule in text.split(',').map(str::trim).filter(|rule| !rule.is_empty()) {
            let bad = || ParseFaultPlanError::BadRule(rule.to_owned());
            let at = rule.find(['=', '@', '%']).ok_or_else(bad)?;
            let (name, value) = (&rule[..at], &rule[at + 1..]);
            if name == "seed" && rule.as_bytes()[at] == b'=' {
                plan.seed = value.parse().map_err(|_| bad())?;
                continue;
            }
            let fault = Fault::ALL.into_iter().find(|fault| fault.name() == name);
            let fault = fault.ok_or_else(|| ParseFaultPlanError::UnknownName(name.to_owned()))?;
            let trigger = match rule.as_bytes()[at] {
                b'=' => Trigger::Probability(
                    value.parse().ok().filter(|p| (0.0..=1.0).contains(p)).ok_or_else(bad)?,
                ),
                b'@' => Trigger::At(value.parse().map_err(|_| bad())?),
                _ => Trigger::Every(value.parse().map_err(|_| bad())?),
            };
            plan.rules.push((fault, trigger));
        }
        Ok(plan)
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed={}", self.seed)?;
        for (fault, trigger) in &self.rules {
            match trigger {
                Trigger::Probability(p) => write!(f, ",{}={p}", fault.name())?,
                Trigger::At(event) => write!(f, ",{}@{event}", fault.name())?,
                Trigger::Every(period) => write!(f, ",{}%{period}", fault.name())?,
            }
        }
        Ok(())
    }
}

/// What was put into a device so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Jobs the kernel accepted.
    pub jobs: u64,
    /// Allocations asked for.
    pub allocations: u64,
    injected: [u64; Fault::ALL.len()],
}

impl FaultCounts {
    /// How often this fault was injected.
    pub fn injected(&self, fault: Fault) -> u64 {
        self.injected[fault.index()]
    }

    /// How many faults were injected, of every kind.
    pub fn total(&self) -> u64 {
        self.injected.iter().sum()
    }
}

/// A plan at work in one device: numbers the events, draws, counts.
#[derive(Debug, Default)]
pub(crate) struct FaultInjector {
    plan: FaultPlan,
    counts: Mutex<FaultCounts>,
}

/// What is to go wrong with one job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct JobFaults {
    pub(crate) time_out: bool,
    pub(crate) wrong_status: bool,
    pub(crate) lost_interrupt: bool,
    pub(crate) gone: Option<Absence>,
    pub(crate) bit_flip: bool,
    /// Draws the details: which core, which task, which bit.
    pub(crate) draw: u64,
}

/// How long a device that went away stays away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absence {
    UntilReopened,
    ForEver,
}

impl FaultInjector {
    pub(crate) fn new(plan: FaultPlan) -> Self {
        Self { plan, counts: Mutex::default() }
    }

    pub(crate) fn counts(&self) -> FaultCounts {
        *self.lock()
    }

    /// The next job: what happens to it. A device that goes away takes the job with it, so nothing else is drawn then;
    /// a hang comes before what only the interrupt would show, and both before a flipped bit.
    pub(crate) fn job(&self) -> JobFaults {
        let mut counts = self.lock();
        counts.jobs += 1;
        let event = counts.jobs;
        let mut faults =
            JobFaults { draw: mix(self.plan.seed ^ event.wrapping_mul(JOB_STEP)), ..JobFaults::default() };
        let mut fires = |fault: Fault| {
            let fires = self.fires(fault, event);
            counts.injected[fault.index()] += u64::from(fires);
            fires
        };
        if fires(Fault::GoneForEver) {
            faults.gone = Some(Absence::ForEver);
        } else if fires(Fault::GoneUntilReopened) {
            faults.gone = Some(Absence::UntilReopened);
        } else if fires(Fault::TimeOut) {
            faults.time_out = true;
        } else if fires(Fault::WrongStatus) {
            faults.wrong_status = true;
        } else if fires(Fault::LostInterrupt) {
            faults.lost_interrupt = true;
        } else if fires(Fault::BitFlip) {
            faults.bit_flip = true;
        }
        faults
    }

    /// The next allocation: whether there is memory for it.
    pub(crate) fn allocation_succeeds(&self) -> bool {
        let mut counts = self.lock();
        counts.allocations += 1;
        let fails = self.fires(Fault::OutOfMemory, counts.allocations);
        counts.injected[Fault::OutOfMemory.index()] += u64::from(fails);
        !fails
    }

    fn fires(&self, fault: Fault, event: u64) -> bool {
        let rules = self.plan.rules.iter().enumerate().filter(|(_, rule)| rule.0 == fault);
        rules.into_iter().any(|(index, (_, trigger))| match *trigger {
            Trigger::Probability(p) => {
                let draw = mix(self.plan.seed ^ mix(event ^ ((index as u64 + 1) << 48)));
                ((draw >> 11) as f64) < p * (1u64 << 53) as f64
            }
            Trigger::At(at) => at == event,
            Trigger::Every(period) => period != 0 && event.is_multiple_of(period),
        })
    }

    fn lock(&self) -> MutexGuard<'_, FaultCounts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner) // plain counters are whole after any panic
    }
}

const JOB_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// splitmix64's finaliser.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(JOB_STEP);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
