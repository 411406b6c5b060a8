//! Processes that are killed at random moments through a roll-out of a good version and one of a bad one.
//!
//! A seed decides what is killed and when; `ROOKERY_KILL_SEEDS` says how many seeds are tried (6), or which, such as
//! `17..18`.

mod watch;

use std::{ops::Range, sync::Arc, time::Duration};

use rookery_model::pack::Recipe;
use rookery_proto::v1::{Rollout, RolloutState};
use rookery_tests::{
    rollouts::{Access, Version, VersionedFleet, until},
    within,
};
use tokio::{sync::watch as signal, time::sleep};

use watch::{Addresses, Watcher};

const GATEWAYS: usize = 3;

/// Longer than anything is down, so that a roll-out is not over while somebody is missing.
const GRACE: Duration = Duration::from_secs(20);

/// Part of what makes logits; nothing but probes can tell if it is altered.
const HEAD: &str = "token_embd.weight.scales";

/// Most kills for each seed.
const MOST_KILLS: usize = 10;

/// A small generator: what is random here is a function of the seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn moment(&mut self, limit_ms: u64) -> Duration {
        Duration::from_millis(self.below(limit_ms))
    }
}

fn seeds() -> Range<u64> {
    let text = std::env::var("ROOKERY_KILL_SEEDS").unwrap_or_else(|_| "6".to_owned());
    let number = |text: &str| text.parse().expect("ROOKERY_KILL_SEEDS is a number or FROM..TO");
    text.split_once("..").map_or_else(|| 0..number(&text), |(from, to)| number(from)..number(to))
}

struct Versions {
    first: Version,
    second: Version,
    bad: Version,
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments_everything_converges_and_nothing_is_lost() {
    let second = Version::pack("qwen2", Recipe::W4, |_| {}).unwrap();
    let bad = second.with_flipped_bit(HEAD).unwrap();
    let versions = Versions { first: Version::pack("qwen2", Recipe::W8, |_| {}).unwrap(), second, bad };
    for seed in seeds() {
        println!("seed {seed}");
        one(seed, &versions).await;
    }
}

async fn one(seed: u64, versions: &Versions) {
    let mut fleet = VersionedFleet::start_with(GATEWAYS, GRACE, &[]).await.unwrap();
    let access = fleet.access().clone();
    access.push(&versions.first, "1").await.unwrap();
    let id = access.roll_out("1").await.unwrap();
    assert_eq!(access.until_over(&id).await.state(), RolloutState::Done, "seed {seed}");
    access.until_all_serve(GATEWAYS, versions.first.digest()).await;

    let allowed = [&versions.first, &versions.second].map(|version| version.digest().to_owned());
    let addresses = Arc::new(Addresses::of(&fleet));
    let watcher = Watcher::start(seed, &fleet, Arc::clone(&addresses), allowed.into());
    let (done, mut over) = signal::channel(false);
    let killer = async {
        let mut random = Random(seed);
        for _ in 0..MOST_KILLS {
            tokio::select! {
                () = sleep(random.moment(700)) => {}
                _ = over.wait_for(|over| *over) => break,
            }
            // The control plane, a gateway, or both.
            let what = random.below(10);
            let index = usize::try_from(random.below(GATEWAYS as u64)).unwrap();
            if what < 5 {
                fleet.kill_plane().await.unwrap();
            }
            if what >= 4 {
                addresses.clear(index);
                fleet.kill_worker(index).await.unwrap();
            }
            sleep(random.moment(250)).await;
            fleet.start_all().await.unwrap();
            addresses.set(&fleet);
        }
    };
    let driver = async {
        let ends = drive(seed, &access, versions).await;
        done.send_replace(true);
        ends
    };
    let ((), [good, bad]) = tokio::join!(killer, driver);
    assert_eq!(good.state(), RolloutState::Done, "seed {seed}: {good:#?}");
    assert_eq!(bad.state(), RolloutState::RolledBack, "seed {seed}: {bad:#?}");
    assert!(bad.reason.contains("probes: expected"), "seed {seed}: {bad:#?}");
    access.until_all_serve(GATEWAYS, versions.second.digest()).await;
    let pushed = [("1", &versions.first), ("2", &versions.second), ("bad", &versions.bad)];
    within("the watcher ends", watcher.stop(&pushed.map(|(name, v)| (name, v.digest())))).await;
}

/// Pushes and rolls out; whatever is cut off is tried again. How both roll-outs ended.
async fn drive(seed: u64, access: &Access, versions: &Versions) -> [Rollout; 2] {
    push(access, &versions.second, "2").await;
    let good = begin(access, "2").await;
    push(access, &versions.bad, "bad").await;
    // While the first is not over, a second one of the same gateways is refused, by name.
    if let Err(status) = access.create("bad").await
        && status.message().contains("is not over")
    {
        assert!(status.message().contains(&good[..12]), "seed {seed}: {status}");
    }
    let good = access.until_over(&good).await;
    let bad = begin(access, "bad").await;
    [good, access.until_over(&bad).await]
}

async fn push(access: &Access, version: &Version, called: &str) {
    until(&format!("{called} is pushed"), async || {
        access.push(version, called).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

/// Creates the roll-out once, though the answer may be lost: then it is there.
async fn begin(access: &Access, called: &str) -> String {
    until(&format!("a roll-out of {called} begins"), async || {
        let all = access.all_rollouts().await.map_err(|status| status.to_string())?;
        let of = |rollout: &&Rollout| rollout.spec.as_ref().is_some_and(|spec| spec.version == called);
        if let Some(begun) = all.iter().find(of) {
            return Ok(begun.id.clone());
        }
        access.create(called).await.map(|made| made.id).map_err(|status| status.to_string())
    })
    .await
}
