//! Roll-outs of a simulation: one that brings every gateway to the version that it has from the factory, and one in three
//! waves on which faults are let loose.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rookery_proto::v1::rollout_service_client::RolloutServiceClient;
use rookery_proto::v1::{
    CreateRolloutRequest, Gateway, GetRolloutRequest, Rollout as Seen, RolloutSpec, RolloutState,
};
use tokio::time::{sleep, timeout};

use super::faults::Fault;
use super::machine::FACTORY;
use super::outcome::Outcome;
use super::plane::Plane;
use crate::client::{Channel, explain};
use crate::error::Failure;

/// The version on which faults are let loose.
const NEW: &str = "2";

/// Both.
pub(super) const VERSIONS: [&str; 2] = [FACTORY, NEW];

/// The phase of a version that a gateway refuses.
const FAILED: &str = "failed";

/// How often it is looked whether late gateways have caught up.
const LOOK: Duration = Duration::from_secs(1);

/// What is rolled out, and how carefully.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Name of the model.
    pub(super) model: String,
    /// How long a wave must serve.
    pub(super) soak: Duration,
    /// Share of the gateways that may fail, in percent.
    pub(super) max_failed: f64,
    /// Longest time for each of them.
    pub(super) limit: Duration,
}

/// A wave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wave {
    /// Since the roll-out began.
    pub(super) began: Duration,
    /// Likewise.
    pub(super) ended: Duration,
    /// Gateways that served the version at its end.
    pub(super) serving: u32,
    /// Gateways that did not make it.
    pub(super) failed: u32,
}

/// What became of the roll-out.
#[derive(Clone, Debug)]
pub(super) struct Rollout {
    /// Where it ended.
    pub(super) state: RolloutState,
    /// Why, in words.
    pub(super) reason: String,
    pub(super) waves: Vec<Wave>,
    /// Until it was over.
    pub(super) took: Duration,
    /// Processors that the control plane used; `None` if it cannot be measured.
    pub(super) cpu: Option<f64>,
    /// Until the last late gateway was where it belongs; `None`: some are not.
    pub(super) settled: Option<Duration>,
    /// Where all gateways are then.
    pub(super) outcome: Outcome,
}

/// Digests of the two versions.
pub(super) struct Versions {
    pub(super) factory: String,
    pub(super) new: String,
}

/// Pushes both bundles.
///
/// # Errors
/// If the control plane refuses one.
pub(super) async fn push(
    plane: &Plane,
    plan: &Plan,
    factory: &Path,
    new: &Path,
) -> Result<Versions, Failure> {
    let factory = plane.push(factory, &plan.model, FACTORY).await?;
    let new = plane.push(new, &plan.model, NEW).await?;
    if factory == new {
        return Err(Failure::usage("the bundle is the one that gateways have already"));
    }
    Ok(Versions { factory, new })
}

/// Brings all gateways to the version that they have on their disks.
///
/// # Errors
/// If that does not come about in time.
pub(super) async fn install(plane: &Plane, plan: &Plan) -> Result<(), Failure> {
    let spec = spec(plane, plan, FACTORY, &["100%"]);
    let end = follow(plane, spec, plan.limit, |_| {}).await?;
    if end.state() == RolloutState::Done {
        return Ok(());
    }
    Err(Failure::new(format!("the first version was not rolled out: {}", end.reason)))
}

/// Rolls the new version out in three waves and waits for the late ones.
///
/// # Errors
/// If it is not over in time, one way or the other.
pub(super) async fn roll_out(
    plane: &Plane,
    plan: &Plan,
    versions: &Versions,
    faults: impl Fn(&Gateway) -> Vec<Fault>,
) -> Result<Rollout, Failure> {
    let before = plane.usage()?;
    let began = Instant::now();
    let (mut waves, mut refused) = (Vec::new(), BTreeSet::new());
    let spec = spec(plane, plan, NEW, &["1%", "20%", "100%"]);
    let end = follow(plane, spec, plan.limit, |seen| {
        note(&mut waves, seen, began.elapsed());
        let failed = seen.gateways.iter().filter(|gateway| gateway.phase == FAILED);
        refused.extend(failed.map(|gateway| gateway.gateway.clone()));
    })
    .await?;
    let took = began.elapsed();
    let after = plane.usage()?;
    let cpu = before.zip(after).map(|(before, after)| after.share_since(&before, took));
    let state = end.state();
    let (settled, gateways) = settle(plane, plan, versions, state, began).await?;
    // On the way back a gateway does not tell any more that it had failed, and of a large fleet not all transitions are listed.
    refused.extend(plane.refusals(&end.id).await?);
    let outcome = Outcome::new(&gateways, versions, &refused, faults);
    Ok(Rollout { state, reason: end.reason, waves, took, cpu, settled, outcome })
}

fn spec(plane: &Plane, plan: &Plan, version: &str, waves: &[&str]) -> RolloutSpec {
    RolloutSpec {
        model: plan.model.clone(),
        version: version.to_owned(),
        selector: plane.selector(),
        waves: waves.iter().map(|wave| (*wave).to_owned()).collect(),
        soak_s: plan.soak.as_secs(),
        max_failed_percent: plan.max_failed,
        max_unavailable_percent: 100.0,
        ..RolloutSpec::default()
    }
}

/// Creates a roll-out and follows it to its end.
async fn follow(
    plane: &Plane,
    spec: RolloutSpec,
    limit: Duration,
    seen: impl FnMut(&Seen),
) -> Result<Seen, Failure> {
    let mut client = plane.rollouts().await?;
    let request = CreateRolloutRequest { spec: Some(spec), dry_run: false };
    let created = client.create_rollout(request).await.map_err(|status| explain(&status))?.into_inner();
    let ended = timeout(limit, watch(&mut client, created.id, seen)).await;
    ended.unwrap_or_else(|_| {
        let limit = humantime::format_duration(limit);
        Err(Failure::new(format!("a roll-out is not over after {limit}")))
    })
}

async fn watch(
    client: &mut RolloutServiceClient<Channel>,
    id: String,
    mut seen: impl FnMut(&Seen),
) -> Result<Seen, Failure> {
    let changes = client.watch_rollout(GetRolloutRequest { id }).await;
    let mut changes = changes.map_err(|status| explain(&status))?.into_inner();
    while let Some(rollout) = changes.message().await.map_err(|status| explain(&status))? {
        seen(&rollout);
        match rollout.state() {
            RolloutState::Done | RolloutState::RolledBack | RolloutState::Aborted => return Ok(rollout),
            RolloutState::Unspecified
            | RolloutState::Running
            | RolloutState::Soaking
            | RolloutState::AwaitingApproval
            | RolloutState::AwaitingWindow
            | RolloutState::Paused
            | RolloutState::RollingBack => {}
        }
    }
    Err(Failure::new("the control plane stopped telling of a roll-out"))
}

/// Notes how far the current wave is. On the way back it counts no more.
fn note(waves: &mut Vec<Wave>, seen: &Seen, at: Duration) {
    if matches!(seen.state(), RolloutState::RollingBack | RolloutState::RolledBack) {
        return;
    }
    let counts = seen.counts.unwrap_or_default();
    while waves.len() <= seen.wave as usize {
        waves.push(Wave { began: at, ended: at, serving: 0, failed: 0 });
    }
    if let Some(wave) = waves.last_mut() {
        (wave.ended, wave.serving, wave.failed) = (at, counts.serving, counts.failed);
    }
}

/// Waits until every gateway serves what it should after an end in `state`: those that were away, too.
async fn settle(
    plane: &Plane,
    plan: &Plan,
    versions: &Versions,
    state: RolloutState,
    began: Instant,
) -> Result<(Option<Duration>, Vec<Gateway>), Failure> {
    let over = Instant::now();
    loop {
        let gateways = plane.gateways().await?;
        if gateways.iter().all(|gateway| versions.is_settled(gateway, state)) {
            return Ok((Some(began.elapsed()), gateways));
        }
        if over.elapsed() > plan.limit {
            return Ok((None, gateways));
        }
        sleep(LOOK).await;
    }
}
