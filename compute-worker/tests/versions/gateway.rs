//! A gateway of the tests: a folder, a source of blobs with faults, a station and its agent.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::stream;
use rookery_compute_worker::versions::{
    Agent, Board, Report,
    download::{BlobSource, BlobStream, Patience, SourceError},
    station::{Station, StationConfig},
    store::OnStep,
};
use rookery_model::bundle::Digest;
use rookery_proto::{server::Tasks, v1};
use tokio::time::timeout;

use crate::bundles::{MODEL, engine_config};

/// Gives blobs from memory, in small pieces, and cuts the stream where it is told to.
#[derive(Clone, Default)]
pub(crate) struct Blobs {
    pub(crate) blobs: Arc<BTreeMap<Digest, Vec<u8>>>,
    /// Bytes after which each stream is cut; 0: never.
    pub(crate) cut: usize,
    pub(crate) sent: Arc<AtomicU64>,
    pub(crate) streams: Arc<AtomicU64>,
}

impl Blobs {
    pub(crate) fn new(blobs: Arc<BTreeMap<Digest, Vec<u8>>>) -> Self {
        Self { blobs, ..Self::default() }
    }
}

/// Bytes of a message.
const PIECE: usize = 32 << 10;

impl BlobSource for Blobs {
    fn read(&self, digest: &Digest, offset: u64) -> BlobStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let Some(bytes) = self.blobs.get(digest) else {
            return Box::pin(stream::iter([Err(SourceError::Refused("no such blob".to_owned()))]));
        };
        let rest = &bytes[usize::try_from(offset).unwrap().min(bytes.len())..];
        let cut = if self.cut == 0 { rest.len() } else { rest.len().min(self.cut) };
        let mut pieces: Vec<Result<Vec<u8>, SourceError>> =
            rest[..cut].chunks(PIECE).map(|piece| Ok(piece.to_vec())).collect();
        if cut < rest.len() {
            pieces.push(Err(SourceError::Lost("cut by the test".to_owned())));
        }
        self.sent.fetch_add(cut as u64, Ordering::Relaxed);
        Box::pin(stream::iter(pieces))
    }
}

/// Without pauses worth waiting for.
pub(crate) fn patience() -> Patience {
    Patience {
        pause_min: Duration::from_millis(1),
        pause_max: Duration::from_millis(2),
        ..Patience::default()
    }
}

pub(crate) fn config(folder: &Path) -> StationConfig {
    StationConfig {
        engine: engine_config(),
        disk_headroom: 0,
        patience: patience(),
        drain_limit: Duration::from_secs(20),
        ..StationConfig::new(folder.join("versions"), "gw-1".to_owned())
    }
}

/// A system with this much memory, in the folder `root`.
pub(crate) fn board(root: &Path, total: u64, available: u64) -> Board {
    fs::create_dir_all(root.join("proc")).unwrap();
    let kib = |bytes: u64| bytes / 1024;
    let text = format!("MemTotal: {} kB\nMemAvailable: {} kB\n", kib(total), kib(available));
    fs::write(root.join("proc/meminfo"), text).unwrap();
    Board::at(root)
}

/// A running gateway. `stop` it, or it stops by itself once dropped.
pub(crate) struct Gateway {
    pub(crate) agent: Agent<Station>,
    pub(crate) tasks: Tasks,
}

impl Gateway {
    pub(crate) async fn start(config: StationConfig, source: impl BlobSource) -> Self {
        Self::start_observed(config, source, Arc::new(|_| {})).await
    }

    pub(crate) async fn start_observed(
        config: StationConfig,
        source: impl BlobSource,
        on_step: OnStep,
    ) -> Self {
        let tasks = Tasks::new();
        let station = Station::open_observed(config, Arc::new(source), tasks.clone(), on_step).unwrap();
        Self { agent: Agent::start(Arc::new(station), &tasks).await, tasks }
    }

    /// Ends it, so that its folder can be used again.
    pub(crate) async fn stop(self) {
        self.agent.stop().await;
        drop(self.agent);
        assert!(self.tasks.finish(Duration::from_secs(60)).await, "tasks of a stopped gateway go on");
    }

    /// Waits for a report.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Report) -> bool) -> Report {
        let mut changes = self.agent.changes();
        let found = timeout(Duration::from_secs(90), async {
            loop {
                changes.borrow_and_update();
                let report = self.agent.report();
                if holds(&report) {
                    return report;
                }
                changes.changed().await.unwrap();
            }
        });
        found.await.unwrap_or_else(|_| panic!("never {what}: {:#?}", self.agent.report()))
    }

    pub(crate) async fn until_phase(&self, digest: &Digest, phase: v1::Phase) -> v1::VersionStatus {
        let report = self.until(phase.as_str_name(), |report| is_in(report, digest, phase)).await;
        status(&report, digest).unwrap()
    }

    /// Digest of what takes requests.
    pub(crate) fn serving(&self) -> Option<String> {
        self.agent.machine().engine(MODEL).map(|engine| engine.info().digest.clone())
    }
}

pub(crate) fn status(report: &Report, digest: &Digest) -> Option<v1::VersionStatus> {
    report.versions.iter().find(|version| version.digest == digest.as_str()).cloned()
}

pub(crate) fn is_in(report: &Report, digest: &Digest, phase: v1::Phase) -> bool {
    status(report, digest).is_some_and(|version| version.phase() == phase)
}

/// The verdict of a gate on a version.
pub(crate) fn verdict(status: &v1::VersionStatus, gate: &str) -> v1::Verdict {
    let found = status.verdicts.iter().find(|verdict| verdict.gate == gate);
    found.unwrap_or_else(|| panic!("no verdict of {gate}: {status:#?}")).clone()
}
