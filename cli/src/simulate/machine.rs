//! A gateway's machine as a model: nothing is fetched or computed, everything takes the time that it would take.
//!
//! What a real gateway keeps on disk is in [`Disk`], which outlives the simulated program: a crash drops the agent and
//! its machine, and the next one starts on the same disk.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use rookery_compute_worker::versions::{
    Assignment, Gate, Kept, Machine, NotKept, Numbers, Outcome, Progress, Room, Saved, State, Verdict, Wanted,
};
use rookery_model::bundle::Digest;
use rookery_proto::v1;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::faults::{Dice, Fault};

/// The version that gateways have on their disks from the factory: no fault concerns it.
pub(crate) const FACTORY: &str = "1";

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

/// Least and most seconds by which a wrong clock is wrong.
const SKEW: (f64, f64) = (3600.0, 86_400.0);

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
    pub(crate) fn new(seed: u64, index: u64, faults: &[Fault]) -> Self {
        let mut dice = Dice::new(seed, index, 100);
        let uplink = UPLINK.0 + (UPLINK.1 - UPLINK.0) * dice.unit();
        let has = |fault| faults.contains(&fault);
        let skew = (SKEW.0 + (SKEW.1 - SKEW.0) * dice.unit()) as i64;
        let skew = if dice.unit() < 0.5 { -skew } else { skew };
        Self {
            uplink: if has(Fault::Slow) { uplink / SLOW } else { uplink },
            speed_percent: 92.0 + 16.0 * dice.unit(),
            celsius: 48.0 + 20.0 * dice.unit(),
            bad_probe: has(Fault::BadProbe),
            crashes: has(Fault::Crash),
            skew_s: if has(Fault::Skew) { skew } else { 0 },
            hurry: 1.0,
            version_bytes: 0,
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
    /// Whether there is an uplink to fetch by.
    uplink: watch::Receiver<bool>,
    /// Versions that requests may reach, the newest last.
    loaded: Mutex<Vec<Loaded>>,
}

/// A version that requests may reach.
#[derive(Clone, Debug)]
struct Loaded {
    model: String,
    digest: Digest,
    counts: Arc<Counts>,
}

/// Requests of one version.
#[derive(Debug, Default)]
struct Counts {
    running: AtomicU32,
    requests: AtomicU64,
    ttft_us: AtomicU64,
}

/// A request that a version works on, until this is dropped.
pub(crate) struct Running(Loaded);

impl Running {
    /// Model and version.
    pub(crate) fn version(&self) -> (&str, &Digest) {
        (&self.0.model, &self.0.digest)
    }

    /// Its answer has begun so long after it came.
    pub(crate) fn began(&self, after: Duration) {
        let us = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        self.0.counts.ttft_us.store(us, Ordering::Relaxed);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.counts.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SimulatedMachine {
    /// A machine that was just switched on; `crash` is notified when its program dies.
    pub(crate) fn new(
        profile: Profile,
        disk: Arc<Disk>,
        dice: Dice,
        crash: Arc<Notify>,
        uplink: watch::Receiver<bool>,
    ) -> Self {
        Self { profile, disk, dice: Mutex::new(dice), crash, uplink, loaded: Mutex::default() }
    }

    /// A request for a model, by name or digest, or for whatever there is. `None` if that is not served.
    pub(crate) fn run(&self, wanted: &str) -> Option<Running> {
        let loaded = lock(&self.loaded);
        let fits = |one: &&Loaded| wanted.is_empty() || one.model == wanted || one.digest.as_str() == wanted;
        let one = loaded.iter().rev().find(fits)?.clone();
        one.counts.running.fetch_add(1, Ordering::Relaxed);
        one.counts.requests.fetch_add(1, Ordering::Relaxed);
        Some(Running(one))
    }

    /// What is served, as the control plane is told.
    pub(crate) fn loads(&self) -> Vec<v1::ModelLoad> {
        let load = |one: &Loaded| v1::ModelLoad {
            model: Some(v1::Model {
                name: one.model.clone(),
                digest: one.digest.to_string(),
                architecture: "simulated".to_owned(),
                recipe: "none".to_owned(),
                context_tokens: 4096,
                vocabulary: 512,
                gateways: 1,
                ..v1::Model::default()
            }),
            running: one.counts.running.load(Ordering::Relaxed),
            free_blocks: 256,
            total_blocks: 256,
            backend: "simulated".to_owned(),
            ..v1::ModelLoad::default()
        };
        lock(&self.loaded).iter().map(load).collect()
    }

    fn let_in(&self, model: &str, digest: &Digest) {
        let mut loaded = lock(&self.loaded);
        // As on a real gateway, streams of the version before go on, and new requests go to this one.
        loaded.retain(|one| one.model != model);
        let (model, digest) = (model.to_owned(), digest.clone());
        loaded.push(Loaded { model, digest, counts: Arc::default() });
    }

    fn shut_out(&self, digest: &Digest) {
        lock(&self.loaded).retain(|one| one.digest != *digest);
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
    async fn perhaps_crash(&self, wanted: &Wanted) {
        if self.profile.crashes
            && wanted.version != FACTORY
            && !self.disk.crashed.swap(true, Ordering::Relaxed)
        {
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
        if wanted.version == FACTORY {
            lock(&self.disk.blobs).insert(wanted.digest.clone(), total);
        }
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
            // An error means that the gateway has ended, and this with it.
            let _ = self.uplink.clone().wait_for(|up| *up).await;
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
        self.perhaps_crash(wanted).await;
        let expected = "tokens 11 12 13".to_owned();
        if self.profile.bad_probe && wanted.version != FACTORY {
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
        self.let_in(model, digest);
        Outcome::passed()
    }

    async fn restore(&self, model: &str, digest: &Digest) -> Outcome {
        self.take(Duration::from_millis(300)).await;
        self.let_in(model, digest);
        Outcome::passed()
    }

    async fn drain(&self, _model: &str, digest: &Digest) {
        self.shut_out(digest);
        self.take(DRAINING).await;
    }

    async fn discard(&self, _model: &str, digest: &Digest) {
        self.shut_out(digest);
    }

    async fn prune(&self, kept: &Kept) {
        let keep = |digest: &Digest| kept.needed.contains(digest) || kept.previous.contains(digest);
        lock(&self.disk.blobs).retain(|digest, _| keep(digest));
    }

    fn numbers(&self, digest: &Digest) -> Numbers {
        let loaded = lock(&self.loaded);
        let found = loaded.iter().find(|one| one.digest == *digest);
        found.map_or_else(Numbers::default, |one| Numbers {
            requests: one.counts.requests.load(Ordering::Relaxed),
            failures: 0,
            ttft_us: one.counts.ttft_us.load(Ordering::Relaxed),
        })
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
        let faults = [Fault::Slow, Fault::Skew];
        let fleet = |seed, faults: &[Fault]| {
            (0..64).map(|index| Profile::new(seed, index, faults)).collect::<Vec<_>>()
        };
        assert_eq!(fleet(1, &faults), fleet(1, &faults));
        assert_ne!(fleet(1, &faults), fleet(2, &faults));
        assert!(fleet(1, &faults).iter().all(|it| it.uplink < UPLINK.0 && it.skew_s.abs() >= 3600));
        assert!(fleet(1, &[]).iter().all(|it| it.uplink >= UPLINK.0 && it.skew_s == 0));
    }
}
