//! One trace for each roll-out: its plans, and every gateway's way with its phases.
//!
//! A roll-out may last for weeks and its replicas may come and go, so no span stays open: a plan's is made when it is stored, and a
//! gateway's with those of its phases when its way has ended, out of its transitions, by the replica that it is linked to.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context, KeyValue, global,
    trace::{Span as _, SpanBuilder, Status, TraceContextExt, Tracer as _},
};
use rookery_proto::{
    semconv::{attribute, span},
    trace_context,
};
use tonic::metadata::MetadataMap;
use tracing::debug;

use crate::{
    domain::{
        GatewayId, Millis,
        rollout::{Plan, RolloutId},
    },
    inventory::{GatewayView, Phase},
    store::{GatewayTransition, RolloutRecord, Store, StoreError, TransitionFilter, TransitionRecord},
};

use super::{plan, waves};

/// Name of the instrumentation, as everywhere in the program.
const TRACER: &str = "rookery";

/// Transitions read at once; twice as many if those are all new, up to [`MOST_READ`].
const FIRST_READ: u32 = 64;

/// Most transitions read at once.
const MOST_READ: u32 = 8192;

/// Transitions of one gateway's way that are looked at.
const MOST_OF_ONE: u32 = 64;

/// Begins the trace of a roll-out, and gives its context for gateways.
pub(super) fn begin(record: &RolloutRecord) -> String {
    let mut root = global::tracer(TRACER).build_with_context(
        SpanBuilder::from_name(span::ROLLOUT).with_attributes([
            KeyValue::new(attribute::ROLLOUT_ID, record.id.to_string()),
            KeyValue::new(attribute::REQUEST_MODEL, record.spec.model.to_string()),
            KeyValue::new(attribute::MODEL_VERSION, record.spec.version.to_string()),
            KeyValue::new(attribute::MODEL_DIGEST, record.spec.digest.to_string()),
            KeyValue::new(attribute::ROLLOUT_ACTOR, record.created_by.clone()),
        ]),
        &Context::new(),
    );
    let context = root.span_context().clone();
    root.end();
    if context.is_valid() {
        let flags = context.trace_flags().to_u8();
        return format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id());
    }
    // Nobody collects traces here, but gateways may have theirs collected: the id of a roll-out is one of a trace too.
    format!("00-{}-{:016x}-01", record.id, waves::spread(record.id.0.bytes()).max(1))
}

fn context(traceparent: &str) -> Context {
    let mut metadata = MetadataMap::new();
    if let Ok(value) = traceparent.parse() {
        metadata.insert("traceparent", value);
    }
    trace_context::extract(&metadata)
}

/// A roll-out has a new plan.
pub(super) fn stepped(record: &RolloutRecord, plan: &Plan) {
    let parent = context(&record.traceparent);
    if !parent.span().span_context().is_valid() {
        return;
    }
    let builder = SpanBuilder::from_name(span::ROLLOUT_PLAN).with_attributes([
        KeyValue::new(attribute::ROLLOUT_ID, record.id.to_string()),
        KeyValue::new(attribute::ROLLOUT_STATE, plan::name(plan.state)),
        KeyValue::new(attribute::ROLLOUT_WAVE, i64::from(plan.wave) + 1),
        KeyValue::new(attribute::ROLLOUT_GENERATION, i64::try_from(plan.generation).unwrap_or(i64::MAX)),
        KeyValue::new(attribute::ROLLOUT_ACTOR, plan.actor.clone()),
        KeyValue::new(attribute::ROLLOUT_REASON, plan.reason.clone()),
    ]);
    global::tracer(TRACER).build_with_context(builder, &parent).end();
}

/// Makes spans of transitions as they come in.
pub(super) struct Tracer {
    replica: String,
    /// Transitions up to here have been looked at.
    until: Millis,
    /// Those of that moment and later ones, by gateway and sequence.
    known: BTreeMap<(GatewayId, u64), Millis>,
}

impl Tracer {
    /// Looks at what comes in from now on.
    pub(super) fn new(replica: String) -> Self {
        Self { replica, until: Millis::now(), known: BTreeMap::new() }
    }

    /// Makes the spans of every gateway here whose way has ended since the last time.
    pub(super) async fn follow(&mut self, store: &Store, views: &[GatewayView]) {
        if let Err(error) = self.try_follow(store, views).await {
            // Spans are lost, not roll-outs.
            debug!(%error, "transitions cannot be read for traces");
        }
    }

    async fn try_follow(&mut self, store: &Store, views: &[GatewayView]) -> Result<(), StoreError> {
        let new = self.read(store).await?;
        let here: BTreeSet<_> = views
            .iter()
            .filter(|view| view.record.link.as_ref().is_some_and(|link| link.replica == self.replica))
            .map(|view| &view.record.id)
            .collect();
        // A wave ends many ways at a time.
        let mut parents = BTreeMap::new();
        for end in new {
            let Some(rollout) = &end.rollout else { continue };
            if !(ends(&end.transition) && here.contains(&end.gateway)) {
                continue;
            }
            if !parents.contains_key(rollout) {
                parents.insert(rollout.clone(), context(&store.traceparent(rollout).await?));
            }
            if let Some(parent) =
                parents.get(rollout).filter(|parent| parent.span().span_context().is_valid())
            {
                way(store, rollout, parent, &end).await?;
            }
        }
        Ok(())
    }

    /// What has come in since the last time.
    async fn read(&mut self, store: &Store) -> Result<Vec<GatewayTransition>, StoreError> {
        let mut limit = FIRST_READ;
        let new = loop {
            let read = store.transitions(&TransitionFilter::default(), limit).await?;
            let all = read.len() < limit as usize;
            let fresh = |kept: &GatewayTransition| {
                kept.received >= self.until
                    && !self.known.contains_key(&(kept.gateway.clone(), kept.transition.sequence))
            };
            let some_known = read.iter().any(|kept| !fresh(kept));
            if all || some_known || limit >= MOST_READ {
                break read.into_iter().filter(fresh).collect::<Vec<_>>();
            }
            limit *= 2;
        };
        for kept in &new {
            self.until = self.until.max(kept.received);
            self.known.insert((kept.gateway.clone(), kept.transition.sequence), kept.received);
        }
        // Replicas' clocks and transactions are not in step: a transition may come to light a little later than newer ones.
        let old = Millis(self.until.0.saturating_sub(5000));
        self.until = old.max(Millis(0));
        self.known.retain(|_, received| *received >= old);
        Ok(new)
    }
}

/// Whether a way ends with it.
fn ends(transition: &TransitionRecord) -> bool {
    match transition.to.parse::<Phase>() {
        Ok(Phase::Serving | Phase::Failed | Phase::RolledBack) => true,
        Ok(
            Phase::Assigned
            | Phase::Downloading
            | Phase::Verifying
            | Phase::Staged
            | Phase::Probing
            | Phase::Activating
            | Phase::Draining,
        )
        | Err(_) => false,
    }
}

/// Makes the span of a gateway's way and those of its phases.
async fn way(
    store: &Store,
    rollout: &RolloutId,
    parent: &Context,
    end: &GatewayTransition,
) -> Result<(), StoreError> {
    let filter = TransitionFilter { gateway: Some(end.gateway.clone()), rollout: Some(rollout.clone()) };
    let mut steps = store.transitions(&filter, MOST_OF_ONE).await?;
    let last = &end.transition;
    steps.retain(|step| {
        step.transition.digest == last.digest
            && step.transition.generation == last.generation
            && step.transition.sequence <= last.sequence
    });
    steps.sort_by_key(|step| step.transition.sequence);
    // By its own clock, which may be anywhere: the end is taken to be when it became known.
    let moment = |at: Millis| {
        let ago = Duration::from_millis(u64::try_from(last.at.0.saturating_sub(at.0)).unwrap_or(0));
        let end = SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(end.received.0).unwrap_or(0));
        end.checked_sub(ago).unwrap_or(end)
    };
    let tracer = global::tracer(TRACER);
    let begin = steps.first().map_or(last.at, |step| step.transition.at);
    let builder =
        SpanBuilder::from_name(span::ROLLOUT_GATEWAY).with_start_time(moment(begin)).with_attributes([
            KeyValue::new(attribute::GATEWAY_ID, end.gateway.to_string()),
            KeyValue::new(attribute::ROLLOUT_ID, rollout.to_string()),
            KeyValue::new(attribute::REQUEST_MODEL, last.model.to_string()),
            KeyValue::new(attribute::MODEL_DIGEST, last.digest.to_string()),
            KeyValue::new(attribute::ROLLOUT_GENERATION, i64::try_from(last.generation).unwrap_or(i64::MAX)),
            KeyValue::new(attribute::ROLLOUT_REASON, last.reason.clone()),
        ]);
    let mut gateway = tracer.build_with_context(builder, parent);
    if last.to != Phase::Serving.as_str() {
        gateway.set_status(Status::error(last.reason.clone()));
    }
    let inside = Context::new().with_remote_span_context(gateway.span_context().clone());
    let starts = steps.iter().map(|step| &step.transition);
    let stops = steps.iter().skip(1).map(|step| step.transition.at).chain([last.at]);
    for (step, stop) in starts.zip(stops) {
        let Some(name) = step.to.parse().ok().and_then(phase_span) else { continue };
        let builder = SpanBuilder::from_name(name).with_start_time(moment(step.at));
        tracer.build_with_context(builder, &inside).end_with_timestamp(moment(stop));
    }
    gateway.end_with_timestamp(moment(last.at));
    Ok(())
}

/// The span of a phase, if it has one.
fn phase_span(phase: Phase) -> Option<&'static str> {
    match phase {
        Phase::Downloading => Some(span::ROLLOUT_DOWNLOAD),
        Phase::Verifying => Some(span::ROLLOUT_VERIFY),
        Phase::Staged => Some(span::ROLLOUT_STAGE),
        Phase::Probing => Some(span::ROLLOUT_PROBE),
        Phase::Activating => Some(span::ROLLOUT_SWITCH),
        Phase::Serving => Some(span::ROLLOUT_COMMIT),
        Phase::Assigned | Phase::Failed | Phase::RolledBack | Phase::Draining => None,
    }
}
