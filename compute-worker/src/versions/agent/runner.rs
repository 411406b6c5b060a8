//! The one task behind an [`super::Agent`].

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{
    FutureExt,
    future::{AbortHandle, Abortable, pending},
    stream::{FuturesUnordered, StreamExt},
};
use rookery_model::bundle::Digest;
use rookery_proto::{semconv, trace_context};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tracing::{Instrument, Span, info, info_span, warn};

use super::{AssignError, Reply, Shared, take};
use crate::versions::{
    core::{Action, Core, Event, Step},
    machine::{Machine, NotKept, Outcome},
    state::{Assignment, MAX_TOLD, Wanted},
    wire,
};

/// Pause before state that could not be kept is tried again; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What an agent asks of its task.
pub(super) enum Command {
    Assign { assignment: Assignment, acknowledged: u64, reply: Reply },
    Stop(oneshot::Sender<()>),
}

type Work = Pin<Box<dyn Future<Output = Event> + Send>>;

/// State that could not be kept.
struct Unkept {
    pause: Duration,
    again: Instant,
}

pub(super) struct Runner<M: Machine> {
    core: Core,
    shared: Arc<Shared<M>>,
    commands: mpsc::Receiver<Command>,
    running: FuturesUnordered<Work>,
    /// By model.
    aborts: BTreeMap<String, AbortHandle>,
    unkept: Option<Unkept>,
}

impl<M: Machine> Runner<M> {
    pub(super) fn new(core: Core, shared: Arc<Shared<M>>, commands: mpsc::Receiver<Command>) -> Self {
        let (running, aborts) = (FuturesUnordered::new(), BTreeMap::new());
        Self { core, shared, commands, running, aborts, unkept: None }
    }

    pub(super) async fn run(mut self) {
        loop {
            self.advance().await;
            let again = self.unkept.as_ref().map(|unkept| unkept.again);
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Assign { assignment, acknowledged, reply }) => {
                        // Who asked may be gone; the assignment holds all the same.
                        let _ = reply.send(self.assign(assignment, acknowledged).await);
                    }
                    Some(Command::Stop(reply)) => {
                        let _ = reply.send(());
                        return;
                    }
                    None => return,
                },
                Some(event) = self.running.next() => self.take_in(event),
                () = wait(again) => self.unkept_is_due(),
            }
        }
    }

    /// Keeps the state, begins what follows from it, and says so.
    async fn advance(&mut self) {
        self.keep().await;
        let actions = self.core.settle();
        self.keep().await;
        self.publish();
        for action in actions {
            self.act(action).await;
        }
    }

    async fn assign(&mut self, offered: Assignment, acknowledged: u64) -> Result<u64, AssignError> {
        take(&self.core, self.shared.machine.as_ref(), &offered).await?;
        let now = self.now();
        if offered != *self.core.assignment() || self.core.generation() == 0 {
            self.core.assign(offered, now);
        }
        self.core.acknowledge(acknowledged);
        Ok(self.core.generation())
    }

    fn take_in(&mut self, event: Event) {
        let model = match &event {
            Event::Done { model, .. } | Event::Cancelled { model } => Some(model),
            Event::Kept | Event::NotKept(_) => None,
        };
        if let Some(model) = model {
            self.aborts.remove(model);
        }
        let now = self.now();
        self.core.on(event, now);
    }

    /// Keeps the state if it has changed. A state that cannot be kept is tried again later.
    async fn keep(&mut self) {
        if !self.core.is_dirty() || self.unkept.as_ref().is_some_and(|unkept| unkept.again > Instant::now()) {
            return;
        }
        let kept = self.shared.machine.keep_state(self.core.state()).instrument(self.commit_span()).await;
        let now = self.now();
        match kept {
            Ok(()) => {
                self.unkept = None;
                self.core.on(Event::Kept, now);
            }
            Err(NotKept(why)) => {
                let before = self.unkept.as_ref().map(|unkept| unkept.pause);
                let pause = before.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
                warn!(why, ?pause, "the state of versions could not be kept");
                self.unkept = Some(Unkept { pause, again: Instant::now() + pause });
                self.core.on(Event::NotKept(why), now);
            }
        }
    }

    /// A span where keeping the state commits a version.
    fn commit_span(&self) -> Span {
        let Some(wanted) = self.core.committing() else { return Span::none() };
        let span = info_span!(semconv::span::VERSION_COMMIT, model = wanted.model, digest = %wanted.digest);
        trace_context::set_parent_text(&span, &wanted.traceparent);
        span
    }

    fn unkept_is_due(&mut self) {
        if let Some(unkept) = &mut self.unkept {
            unkept.again = Instant::now();
        }
    }

    /// What is told from now on. Transitions that were not kept are not told.
    pub(super) fn publish(&mut self) {
        let (core, shared) = (&self.core, &self.shared);
        let versions = core.views().iter().map(wire::status).collect();
        let told = core.state().transitions.iter().take(MAX_TOLD).map(wire::transition);
        let transitions = if core.is_dirty() { None } else { Some(told.collect()) };
        let generation = core.generation();
        let changed = shared.told.send_if_modified(|told| {
            let before = told.report.clone();
            told.report.generation = generation;
            told.report.versions = versions;
            if let Some(transitions) = transitions {
                told.report.transitions = transitions;
            }
            let changed = told.report != before;
            told.changes += u64::from(changed);
            changed
        });
        if changed {
            shared.changes.send_modify(|changes| *changes += 1);
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Prune(kept) => {
                self.shared.forget_downloads(&kept);
                self.shared.machine.prune(&kept).await;
            }
            Action::Cancel { model } => {
                if let Some(abort) = self.aborts.get(&model) {
                    abort.abort();
                }
            }
            Action::Start { model, digest, step } => self.start(model, digest, step),
        }
    }

    fn start(&mut self, model: String, digest: Digest, step: Step) {
        let wanted = self.core.assignment().versions.get(&model);
        let wanted = wanted.filter(|wanted| wanted.digest == digest).cloned().map(Arc::new);
        let span = span(step, &model, &digest, wanted.as_deref());
        span.in_scope(|| info!(?step, model, %digest, "a version goes on"));
        let work = perform(Arc::clone(&self.shared), step, model.clone(), digest, wanted).instrument(span);
        let (abort, registration) = AbortHandle::new_pair();
        self.aborts.insert(model.clone(), abort);
        let work = Abortable::new(work, registration);
        self.running.push(Box::pin(work.map(move |ended| match ended {
            Ok(outcome) => Event::Done { model, outcome },
            Err(_) => Event::Cancelled { model },
        })));
    }

    fn now(&self) -> u64 {
        millis(self.shared.machine.now())
    }
}

/// Milliseconds since 1970.
pub(super) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}

async fn perform<M: Machine>(
    shared: Arc<Shared<M>>,
    step: Step,
    model: String,
    digest: Digest,
    wanted: Option<Arc<Wanted>>,
) -> Outcome {
    let machine = &shared.machine;
    let outcome = match (step, &wanted) {
        (Step::Activate, _) => machine.activate(&model, &digest).await,
        (Step::Restore, _) => machine.restore(&model, &digest).await,
        (Step::Drain, _) => {
            machine.drain(&model, &digest).await;
            Outcome::passed()
        }
        (Step::Discard, _) => {
            machine.discard(&model, &digest).await;
            Outcome::passed()
        }
        (Step::Download, Some(wanted)) => machine.download(wanted, &shared.progress(&digest)).await,
        (Step::Verify, Some(wanted)) => machine.verify(wanted).await,
        (Step::Stage(room), Some(wanted)) => machine.stage(wanted, room).await,
        (Step::Probe, Some(wanted)) => machine.probe(wanted).await,
        (Step::Download | Step::Verify | Step::Stage(_) | Step::Probe, None) => {
            Outcome::failed("the assignment does not have it")
        }
    };
    match &outcome {
        Outcome::Passed { .. } => {}
        Outcome::Failed { reason, .. } | Outcome::Damaged { reason, .. } | Outcome::NoRoom { reason } => {
            warn!(?step, model, %digest, reason, "a version does not go on");
        }
    }
    outcome
}

/// A child of the roll-out's span, if the assignment has one.
fn span(step: Step, model: &str, digest: &Digest, wanted: Option<&Wanted>) -> Span {
    use semconv::span as name;
    let span = match step {
        Step::Download => info_span!(name::VERSION_DOWNLOAD, model, %digest),
        Step::Verify => info_span!(name::VERSION_VERIFY, model, %digest),
        Step::Stage(_) => info_span!(name::VERSION_STAGE, model, %digest),
        Step::Probe => info_span!(name::VERSION_PROBE, model, %digest),
        Step::Activate => info_span!(name::VERSION_SWITCH, model, %digest),
        Step::Restore => info_span!(name::VERSION_RESTORE, model, %digest),
        Step::Drain | Step::Discard => info_span!(name::VERSION_DRAIN, model, %digest),
    };
    if let Some(traceparent) = wanted.map(|wanted| &wanted.traceparent).filter(|text| !text.is_empty()) {
        trace_context::set_parent_text(&span, traceparent);
    }
    span
}
