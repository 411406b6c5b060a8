//! A gateway's machine as a model: nothing is fetched or computed, everything takes the time that it would take.
//!
//! What a real gateway keeps on disk is in [`Disk`], which outlives the simulated program: a crash drops the agent and
//! its machine, and the next one starts on the same disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use rookery_compute_worker::versions::{
    Assignment, Gate, Kept, Machine, NotKept, Numbers, Outcome, Progress, Room, Saved, State, Verdict, Wanted,
};
use rookery_model::bundle::Digest;
use tokio::{sync::Notify, time::sleep};

use super::faults::{Dice, Fault, Faults};

/// Least and most bytes a second of a simulated uplink.
const UPLINK: (f64, f64) = (2.5e6, 12.5e6);

/// How much slower a slow uplink is.
const SLOW: f64 = 10.0;

/// How many pieces a download is modelled in: progress is reported after each, and a crash loses at most one.
const PIECES: u32 = 10;

/// Bytes a second that a board hashes.
const HASHING: f64 = 400e6;

/// Bytes a second that a board maps weights with.
const LOADING: f64 = 800e6;

/// How long its probes take.
const PROBING: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));

/// How long streams of a version go on after the switch.
const DRAINING: Duration = Duration::from_millis(500);

/// What is special about one gateway.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Profile {
    /// Bytes a second of its uplink.
    pub uplink: f64,
    /// Decode speed in percent of what versions promise.
    pub speed_percent: f64,
    /// Temperature after probes, in degrees Celsius.
    pub celsius: f64,
    /// It answers probes wrong.
    pub bad_probe: bool,
    /// Its program dies once during a switch.
    pub crashes: bool,
    /// Its clock is early by so many seconds.
    pub skew_s: i64,
    /// Modelled times are divided by this.
    pub hurry: f64,
    /// Bytes of a version, whatever its manifest says.
    pub version_bytes: u64,
}

impl Profile {
    /// Gateway `index` of the fleet that `seed` makes.
    pub(crate) fn new(seed: u64, index: u64, faults: &Faults, hurry: f64, version_bytes: u64) -> Self {
        let mut dice = Dice::new(seed, index, 100);
        let uplink = UPLINK.0 + (UPLINK.1 - UPLINK.0) * dice.unit();
        let has = |fault| faults.has(fault, seed, index);
        let skew = ((dice.unit() * 2.0 - 1.0) * 86_400.0) as i64;
        Self {
            uplink: if has(Fault::Slow) { uplink / SLOW } else { uplink },
            speed_percent: 92.0 + 16.0 * dice.unit(),
            celsius: 48.0 + 20.0 * dice.unit(),
            bad_probe: has(Fault::BadProbe),
            crashes: has(Fault::Crash),
            skew_s: if has(Fault::Skew) { skew } else { 0 },
            hurry,
            version_bytes,
        }
    }
}

/// What a gateway keeps while it is off.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    saved: Mutex<Saved>,
    /// Bytes of each version that are here.
    blobs: Mutex<BTreeMap<Digest, u64>>,
    /// The crash has happened: a gateway that crashed on every try would never get anywhere.
    crashed: AtomicBool,
}

/// The machine of one simulated gateway.
pub(crate) struct SimulatedMachine {
    profile: Profile,
    disk: Arc<Disk>,
    dice: Mutex<Dice>,
    /// The program is to die.
    crash: Arc<Notify>,
    /// Versions that requests may reach.
    loaded: Mutex<BTreeSet<(String, Digest)>>,
}

impl SimulatedMachine {
    /// A machine that was just switched on; `crash` is notified when its program dies.
    pub(crate) fn new(profile: Profile, disk: Arc<Disk>, dice: Dice, crash: Arc<Notify>) -> Self {
        Self { profile, disk, dice: Mutex::new(dice), crash, loaded: Mutex::default() }
    }

    /// What it is like.
    pub(crate) fn profile(&self) -> &Profile {
        &self.profile
    }

    async fn take(&self, time: Duration) {
        sleep(time.div_f64(self.profile.hurry)).await;
    }

    fn between(&self, least: Duration, most: Duration) -> Duration {
        lock(&self.dice).between(least, most)
    }

    /// Dies here, once, if this gateway is one that does. What runs is dropped from outside.
    async fn perhaps_crash(&self) {
        if self.profile.crashes && !self.disk.crashed.swap(true, Ordering::Relaxed) {
            self.crash.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

impl Machine for SimulatedMachine {
    async fn load(&self) -> Saved {
        lock(&self.disk.saved).clone()
    }

    async fn keep_assignment(&self, assignment: &Assignment) -> Result<(), NotKept> {
        lock(&self.disk.saved).assignment = assignment.clone();
        Ok(())
    }

    async fn keep_state(&self, state: &State) -> Result<(), NotKept> {
        lock(&self.disk.saved).state = state.clone();
        Ok(())
    }

    fn now(&self) -> SystemTime {
        let skew = Duration::from_secs(self.profile.skew_s.unsigned_abs());
        let now = SystemTime::now();
        if self.profile.skew_s < 0 { now.checked_sub(skew).unwrap_or(now) } else { now + skew }
    }

    async fn download(&self, wanted: &Arc<Wanted>, progress: &Progress) -> Outcome {
        let total = self.profile.version_bytes;
        self.take(self.between(Duration::ZERO, Duration::from_millis(wanted.start_spread_ms))).await;
        let rate = match wanted.bandwidth_limit {
            0 => self.profile.uplink,
            limit => self.profile.uplink.min(limit as f64),
        };
        let piece = total.div_ceil(u64::from(PIECES)).max(1);
        loop {
            let here = *lock(&self.disk.blobs).entry(wanted.digest.clone()).or_default();
            progress.set(here, total);
            if here >= total {
                return Outcome::passed();
            }
            let next = piece.min(total - here);
            self.take(Duration::from_secs_f64(next as f64 / rate)).await;
            lock(&self.disk.blobs).insert(wanted.digest.clone(), here + next);
        }
    }

    async fn verify(&self, wanted: &Arc<Wanted>) -> Outcome {
        let total = self.profile.version_bytes;
        self.take(Duration::from_secs_f64(total as f64 / HASHING)).await;
        let here = lock(&self.disk.blobs).get(&wanted.digest).copied().unwrap_or(0);
        if here < total {
            let reason = format!("{here} of {total} bytes are here");
            return Outcome::Damaged { reason, verdicts: Vec::new() };
        }
        let bytes = format!("{total} bytes");
        Outcome::Passed { verdicts: vec![verdict(Gate::Digests, true, bytes.clone(), bytes)] }
    }

    async fn stage(&self, _wanted: &Arc<Wanted>, _room: Room) -> Outcome {
        self.take(Duration::from_secs_f64(self.profile.version_bytes as f64 / LOADING)).await;
        Outcome::passed()
    }

    async fn probe(&self, wanted: &Arc<Wanted>) -> Outcome {
        self.take(self.between(PROBING.0, PROBING.1)).await;
        self.perhaps_crash().await;
        let expected = "tokens 11 12 13".to_owned();
        if self.profile.bad_probe && !wanted.rolls_back {
            let verdicts = vec![verdict(Gate::Probes, false, expected, "tokens 11 12 14".to_owned())];
            return Outcome::Failed { reason: "probe 1 gives other tokens".to_owned(), verdicts };
        }
        let (least, speed) = (wanted.min_speed_percent, self.profile.speed_percent);
        let (most, celsius) = (wanted.max_celsius, self.profile.celsius);
        let fast = least <= 0.0 || speed >= least;
        let cool = most <= 0.0 || celsius <= most;
        let verdicts = vec![
            verdict(Gate::Probes, true, expected.clone(), expected),
            verdict(Gate::Speed, fast, format!("at least {least:.0} %"), format!("{speed:.0} %")),
            verdict(Gate::Temperature, cool, format!("at most {most:.0} °C"), format!("{celsius:.0} °C")),
        ];
        match (fast, cool) {
            (true, true) => Outcome::Passed { verdicts },
            (false, _) => Outcome::Failed { reason: "it decodes too slowly".to_owned(), verdicts },
            (true, false) => Outcome::Failed { reason: "it gets too hot".to_owned(), verdicts },
        }
    }

    async fn activate(&self, model: &str, digest: &Digest) -> Outcome {
        self.take(Duration::from_millis(20)).await;
        lock(&self.loaded).insert((model.to_owned(), digest.clone()));
        Outcome::passed()
    }

    async fn restore(&self, model: &str, digest: &Digest) -> Outcome {
        self.take(Duration::from_millis(300)).await;
        lock(&self.loaded).insert((model.to_owned(), digest.clone()));
        Outcome::passed()
    }

    async fn drain(&self, model: &str, digest: &Digest) {
        self.take(DRAINING).await;
        lock(&self.loaded).remove(&(model.to_owned(), digest.clone()));
    }

    async fn discard(&self, model: &str, digest: &Digest) {
        lock(&self.loaded).remove(&(model.to_owned(), digest.clone()));
    }

    async fn prune(&self, kept: &Kept) {
        let keep = |digest: &Digest| kept.needed.contains(digest) || kept.previous.contains(digest);
        lock(&self.disk.blobs).retain(|digest, _| keep(digest));
    }

    fn numbers(&self, _digest: &Digest) -> Numbers {
        Numbers::default()
    }
}

fn verdict(gate: Gate, passed: bool, expected: String, seen: String) -> Verdict {
    Verdict { gate, passed, expected, seen }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_gateway() {
        let faults: Faults = "slow=50%,skew=50%,crash=50%".parse().unwrap_or_default();
        let fleet =
            |seed| (0..64).map(|index| Profile::new(seed, index, &faults, 1.0, 1)).collect::<Vec<_>>();
        assert_eq!(fleet(1), fleet(1));
        assert_ne!(fleet(1), fleet(2));
        assert!(fleet(1).iter().any(|profile| profile.uplink < UPLINK.0));
        assert!(fleet(1).iter().any(|profile| profile.skew_s != 0));
    }
}
