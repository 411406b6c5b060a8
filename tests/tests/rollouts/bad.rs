//! Versions that must not serve: each stops at the first wave and is taken back without a person, and says why.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use rookery_model::pack::Recipe;
use rookery_proto::v1::{GatewayTransition, GenerateRequest, Phase, RolloutState, Verdict};
use rookery_tests::{
    bundles::MODEL,
    client,
    rollouts::{Access, Version, VersionedFleet, until},
    within,
};
use tokio::task::JoinSet;

/// Generates one answer after the other until told to stop; each must be the first version's.
struct Clients {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Clients {
    async fn start(access: &Access, version: &Version) -> Self {
        let request = GenerateRequest { model: MODEL.to_owned(), ..client::text("one two three", 24) };
        let right = access.generate(request.clone()).await.unwrap();
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..2 {
            let (access, request, right) = (access.clone(), request.clone(), right.clone());
            let (stop, served, digest) =
                (Arc::clone(&stop), Arc::clone(&served), version.digest().to_owned());
            tasks.spawn(async move {
                while !stop.load(Relaxed) {
                    let answer = access.generate(request.clone()).await.unwrap();
                    assert_eq!(answer.started.unwrap().model_digest, digest);
                    assert_eq!(
                        (answer.text, answer.token_ids),
                        (right.text.clone(), right.token_ids.clone())
                    );
                    served.fetch_add(1, Relaxed);
                }
            });
        }
        Self { stop, served, tasks }
    }

    fn served(&self) -> usize {
        self.served.load(Relaxed)
    }

    async fn stop(self) {
        self.stop.store(true, Relaxed);
        within("the clients end", self.tasks.join_all()).await;
    }
}

/// Rolls a version out that its first gateway refuses at `gate`; what the gate said.
async fn is_taken_back(
    fleet: &VersionedFleet,
    clients: &Clients,
    bad: &Version,
    called: &str,
    gate: &str,
) -> Verdict {
    let (access, before) = (fleet.access(), clients.served());
    access.push(bad, called).await.unwrap();
    let id = access.roll_out(called).await.unwrap();
    let over = access.until_over(&id).await;
    assert_eq!(over.state(), RolloutState::RolledBack, "{called}: {over:#?}");
    assert_eq!(over.wave, 0, "{called}: it came no further than the first wave");
    // The gateway tells of it with its next status.
    let transitions = until(&format!("{called}: the history has its end"), async || {
        let kept = access.transitions("", &id).await.map_err(|status| status.to_string())?;
        let ended = |kept: &GatewayTransition| {
            kept.transition.as_ref().is_some_and(|t| t.digest == bad.digest() && t.to() == Phase::Failed)
        };
        if kept.iter().any(ended) { Ok(kept) } else { Err(format!("{kept:#?}")) }
    })
    .await;
    let verdict = refusal(called, bad, &transitions);
    assert_eq!(verdict.gate, gate, "{called}: {verdict:?}");
    assert!(gate.is_empty() || !verdict.expected.is_empty(), "{called}: {verdict:?}");
    assert!(!verdict.seen.is_empty(), "{called}: {verdict:?}");
    // One gateway tried; the others never heard of it, and all serve what they served.
    let tried: Vec<_> = over.gateways.iter().filter(|gateway| !gateway.previous_digest.is_empty()).collect();
    assert_eq!(tried.len(), 1, "{called}: {over:#?}");
    let all = access.transitions("", "").await.unwrap();
    let strangers = all.iter().filter(|kept| kept.gateway != tried[0].gateway);
    let names_it =
        |kept: &&GatewayTransition| kept.transition.as_ref().is_some_and(|t| t.digest == bad.digest());
    assert_eq!(strangers.filter(names_it).count(), 0, "{called}: others were touched");
    let gateways = access.gateways().await.unwrap();
    for gateway in gateways.iter().filter(|gateway| gateway.id != tried[0].gateway) {
        assert!(
            !gateway.versions.iter().any(|version| version.digest == bad.digest()),
            "{called}: {gateway:#?}"
        );
    }
    // The history says so, by itself and as a command.
    let plans = access.plans(&id).await.unwrap();
    let turned = plans.iter().find(|plan| plan.state() == RolloutState::RollingBack).unwrap();
    assert_eq!(turned.actor, "control plane", "{called}: no person was needed");
    for words in [gate, verdict.expected.as_str(), verdict.seen.as_str()] {
        assert!(turned.reason.contains(words), "{called}: {words:?} in {:?}", turned.reason);
    }
    let history = access.run(&["rollouts", "history", &id]).await.unwrap();
    assert!(history.contains(verdict.seen.as_str()), "{called}: {history}");
    assert!(clients.served() > before, "{called}: clients were served");
    verdict
}

/// The verdict that ended the version's way.
fn refusal(called: &str, bad: &Version, transitions: &[GatewayTransition]) -> Verdict {
    let mine = transitions.iter().filter_map(|kept| kept.transition.as_ref());
    let mine: Vec<_> = mine.filter(|transition| transition.digest == bad.digest()).collect();
    assert!(
        mine.iter().all(|transition| transition.to() != Phase::Serving),
        "{called}: it served: {mine:#?}"
    );
    let failed = mine.iter().find(|transition| transition.to() == Phase::Failed);
    let failed = failed.unwrap_or_else(|| panic!("{called}: nobody refused it: {mine:#?}"));
    let verdict = failed.verdicts.iter().find(|verdict| !verdict.passed);
    // What is damaged is told in words: there is no gate for it.
    let words = || Verdict { seen: failed.reason.clone(), ..Verdict::default() };
    verdict.cloned().unwrap_or_else(words)
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_fail_a_gate_stop_at_the_first_wave_and_are_taken_back_without_a_person() {
    let good = Version::pack("qwen2", Recipe::W8, |_| {}).unwrap();
    let other = Version::pack("qwen2", Recipe::W4, |_| {}).unwrap();
    // What nothing but probes can tell, and what a sum beside it tells.
    let flipped = other.with_flipped_bit("token_embd.weight.scales").unwrap();
    let torn = other.with_flipped_bit("blk.1.attn_output.weight.tiles").unwrap();
    let wrong = Version::pack("qwen2", Recipe::W4, |set| {
        let token = &mut set.probes[1].f16.tokens[3];
        *token = (*token + 1) % 512;
    })
    .unwrap();
    // What is there is 0.6 of what is promised, and 80 % of that is asked for.
    let promised = other.speed().unwrap() / 0.6;
    let slow = Version::pack("qwen2", Recipe::W4, |set| {
        set.profile.insert("*".to_owned(), promised);
    });
    let slow = slow.unwrap();
    let large = Version::pack("llama3", Recipe::W8, |_| {}).unwrap();

    let fleet = VersionedFleet::start(3).await.unwrap();
    let access = fleet.access();
    access.push(&good, "good").await.unwrap();
    let id = access.roll_out("good").await.unwrap();
    assert_eq!(access.until_over(&id).await.state(), RolloutState::Done);
    access.until_all_serve(3, good.digest()).await;
    let clients = Clients::start(access, &good).await;

    let verdict = is_taken_back(&fleet, &clients, &flipped, "flipped", "probes").await;
    assert!(verdict.seen.contains("differ"), "{verdict:?}");
    let reason = is_taken_back(&fleet, &clients, &torn, "torn", "").await.seen;
    assert!(reason.contains("row_sums") && reason.contains("its weights add up to"), "{reason}");
    let verdict = is_taken_back(&fleet, &clients, &wrong, "wrong", "probes").await;
    assert!(verdict.seen.contains("1 of 3 differ"), "{verdict:?}");
    let verdict = is_taken_back(&fleet, &clients, &slow, "slow", "speed").await;
    assert!(verdict.expected.contains("80 % of the profile's"), "{verdict:?}");
    // Room for one like what serves, and not for the large one, not even alone.
    let (small, most) = (good.memory().unwrap(), large.memory().unwrap());
    assert!(small + 8192 < most, "{small} {most}");
    fleet.set_memory(u64::midpoint(small, most)).unwrap();
    is_taken_back(&fleet, &clients, &large, "large", "memory").await;

    // None of it has left anything behind that a good one would stumble over.
    fleet.set_memory(64 << 30).unwrap();
    clients.stop().await;
    access.until_all_serve(3, good.digest()).await;
    access.push(&other, "other").await.unwrap();
    let id = access.roll_out("other").await.unwrap();
    let over = access.until_over(&id).await;
    assert_eq!(over.state(), RolloutState::Done, "{over:#?}");
    access.until_all_serve(3, other.digest()).await;
}
