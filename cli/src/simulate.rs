//! `rookery fleet simulate`: many gateways in this process against a real control plane on loopback.
//!
//! ```text
//!  join ─► first version ─► idle, measured ─► second version in three waves ─► kill and restart ─► report
//!          └ only with --rollout               └ with faults, only with --rollout
//! ```

mod bundle;
mod faults;
mod gateway;
mod generate;
mod machine;
mod outcome;
mod plane;
mod proc;
mod report;
mod rollout;
mod roster;
mod service;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rookery_proto::server::{OnPanic, Tasks};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::commands::rollouts::state_name;
use crate::error::{Failure, OrFail};
use crate::{open_files, output};
use faults::Faults;
use gateway::{Common, Gateway};
use plane::Plane;
use report::{Back, Idle, Report};
use rollout::{Plan, Rollout, VERSIONS};
use roster::Roster;

/// Runs many simulated gateways against a control plane of its own, and measures what they cost it.
#[derive(Args, Debug)]
#[command(
    after_help = "Links, TLS, enrolment and the gateways' state machine are the real ones; downloads, engines
and faults are modelled, and drawn from the seed. The control plane is a process of its own.

Examples:
  rookery fleet simulate --gateways 100
  rookery fleet simulate --gateways 2000 --rollout --faults offline=2%,slow=5%,bad-probe=1%
  rookery fleet simulate --gateways 200 --rollout --faults bad-probe=40%
  rookery fleet simulate --gateways 20 --control-plane plane:7072 --endpoint https://plane:7070 --ca ca.pem"
)]
pub struct SimulateArgs {
    /// How many gateways.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=4000))]
    gateways: u16,
    /// Decides what each gateway is like, and which faults it has.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Roll a second version out in three waves over a first one: this bundle, or one that is made up.
    #[arg(long, value_name = "BUNDLE", num_args = 0..=1)]
    rollout: Option<Option<PathBuf>>,
    /// Which share of the gateways has which fault: offline, slow, bad-probe, crash, skew.
    #[arg(long, value_name = "FAULT=SHARE%,…", default_value = "")]
    faults: Faults,
    /// Share of the gateways that may fail before the roll-out goes back.
    #[arg(long, value_name = "PERCENT", default_value_t = 20.0)]
    max_failed: f64,
    /// How long each wave must serve, in whole seconds.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    soak: Duration,
    /// Bytes of the second version, for modelled downloads.
    #[arg(long, value_name = "SIZE", default_value = "64MB")]
    version_size: bytesize::ByteSize,
    /// How many times as fast as they would be things take place on gateways: downloads, checks, probes, absences.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    hurry: f64,
    /// How long the idle control plane is measured. Some of its work comes once a minute.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    idle: Duration,
    /// Longest time for each step to come about.
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = humantime::parse_duration)]
    give_up_after: Duration,
    /// Dial this control plane, `host:port` of its link port, instead of one that is started. It is neither measured nor
    /// killed, and the gateways leave it in the end.
    #[arg(long, value_name = "ADDRESS", requires = "endpoint")]
    control_plane: Option<String>,
    /// Where that control plane is called; --ca and --token go with it, of an administrator.
    #[arg(long, value_name = "URL", requires = "control_plane")]
    endpoint: Option<String>,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Files that a gateway may have open at a time: its link, and the connection that it joins by. As many as the control plane
/// has for it.
const FILES: u64 = 2;

/// Files that everything else has open.
const OTHER_FILES: u64 = 256;

/// How long what gateways have begun may take to end.
const LEAVE: Duration = Duration::from_secs(5);

/// Runs the command.
///
/// # Errors
/// If the control plane cannot be started, or something does not come about in time.
pub async fn run(args: SimulateArgs) -> Result<(), Failure> {
    check(&args)?;
    let gateways = u64::from(args.gateways);
    open_files::need(FILES * gateways + OTHER_FILES, &format!("{gateways} simulated gateways"))?;
    let folder = tempfile::tempdir().or_fail(|| "could not make a temporary folder".to_owned())?;
    let mut plane = match (&args.endpoint, &args.control_plane) {
        (Some(endpoint), Some(link)) => Plane::existing(endpoint, link),
        _ => Plane::start(folder.path()).await?,
    };
    let fleet = Fleet::switch_on(&args, &plane, folder.path()).await?;
    let result = fleet.simulate(&args, &mut plane, folder.path()).await;
    fleet.switch_off().await;
    let model = model(&plane);
    let versions: &[&str] = if args.rollout.is_some() { &VERSIONS } else { &[] };
    let tidied = plane.tidy(&model, versions).await;
    let report = result?;
    tidied?;
    drop(plane);
    if args.json { output::json(&report.json()) } else { output::write(&report.table()) }
}

fn check(args: &SimulateArgs) -> Result<(), Failure> {
    if !(args.hurry.is_finite() && args.hurry >= 0.01) {
        return Err(Failure::usage("--hurry must be at least 0.01"));
    }
    if !(0.0..=100.0).contains(&args.max_failed) {
        return Err(Failure::usage("--max-failed must be from 0 to 100"));
    }
    Ok(())
}

/// What the model is called: real models of a control plane that stays are left alone.
fn model(plane: &Plane) -> String {
    format!("{}-model", plane.name)
}

/// The simulated gateways.
struct Fleet {
    common: Arc<Common>,
    /// They are switched off.
    off: CancellationToken,
    on_since: Instant,
}

impl Fleet {
    /// Switches all of them on at the same moment.
    async fn switch_on(args: &SimulateArgs, plane: &Plane, folder: &Path) -> Result<Self, Failure> {
        let count = usize::from(args.gateways);
        let common = Arc::new(Common {
            link: plane.link.clone(),
            join: plane.join_token(u32::from(args.gateways)).await?,
            name: plane.name.clone(),
            folder: folder.join("gateways"),
            seed: args.seed,
            hurry: args.hurry,
            version_bytes: args.version_size.as_u64(),
            tasks: Tasks::new(),
            roster: Arc::new(Roster::new(count, &args.faults, args.seed)),
        });
        let gateways: Result<Vec<_>, _> =
            (0..count).map(|index| Gateway::new(Arc::clone(&common), index)).collect();
        let gateways = gateways.or_fail(|| "a simulated gateway cannot be made".to_owned())?;
        let (off, on_since) = (CancellationToken::new(), Instant::now());
        for gateway in gateways {
            let off = off.clone();
            common.tasks.spawn("simulated gateway", OnPanic::Log, async move {
                // Both arms end the gateway.
                tokio::select! {
                    () = off.cancelled() => {}
                    () = gateway.run() => {}
                }
            });
        }
        Ok(Self { common, off, on_since })
    }

    /// Lets everything happen to them.
    async fn simulate(
        &self,
        args: &SimulateArgs,
        plane: &mut Plane,
        folder: &Path,
    ) -> Result<Report, Failure> {
        let roster = &self.common.roster;
        roster.all_there(args.give_up_after).await?;
        let joined = self.on_since.elapsed();
        output::note(format_args!(
            "{} gateways have joined and are linked after {joined:.1?}",
            args.gateways
        ));
        let (idle, rollout) = match &args.rollout {
            Some(bundle) => {
                let (idle, rollout) = self.roll_out(args, plane, bundle.as_deref(), folder).await?;
                (idle, Some(rollout))
            }
            None => (idle(plane, args.idle).await?, None),
        };
        roster.let_loose();
        let peak_bytes = plane.usage()?.map(|usage| usage.peak_bytes);
        let (links_lost, crashes) = (roster.losses(), roster.crashes());
        let back = self.restart(args, plane, folder).await?;
        Ok(Report {
            gateways: usize::from(args.gateways),
            seed: args.seed,
            faults: args.faults.to_string(),
            hurry: args.hurry,
            joined,
            idle,
            peak_bytes,
            rollout,
            links_lost,
            crashes,
            back,
        })
    }

    /// Brings them to one version, looks at the idle control plane, and brings them to another.
    async fn roll_out(
        &self,
        args: &SimulateArgs,
        plane: &Plane,
        bundle: Option<&Path>,
        folder: &Path,
    ) -> Result<(Option<Idle>, Rollout), Failure> {
        let (factory, made_up) = (folder.join("factory"), folder.join("made-up"));
        bundle::make(1, &factory)?;
        if bundle.is_none() {
            bundle::make(2, &made_up)?;
        }
        let plan = Plan {
            model: model(plane),
            soak: args.soak,
            max_failed: args.max_failed,
            limit: args.give_up_after,
        };
        let versions = rollout::push(plane, &plan, &factory, bundle.unwrap_or(&made_up)).await?;
        rollout::install(plane, &plan).await?;
        output::note("all gateways serve the first version");
        self.common.roster.all_told(args.give_up_after).await?;
        let idle = idle(plane, args.idle).await?;
        self.common.roster.let_loose();
        let faults = |gateway: &rookery_proto::v1::Gateway| {
            let index = self.common.index(&gateway.id);
            index.map(|index| self.common.roster.faults(index).to_vec()).unwrap_or_default()
        };
        let rollout = rollout::roll_out(plane, &plan, &versions, faults).await?;
        output::note(format_args!(
            "the roll-out of the second version is over after {:.1?}: {}",
            rollout.took,
            state_name(rollout.state)
        ));
        Ok((idle, rollout))
    }

    /// Kills the control plane, starts it again, and waits for all links.
    async fn restart(
        &self,
        args: &SimulateArgs,
        plane: &mut Plane,
        folder: &Path,
    ) -> Result<Option<Back>, Failure> {
        let roster = &self.common.roster;
        let restarted = plane.restart(folder, || roster.all_gone()).await?;
        let Some((killed, down)) = restarted else { return Ok(None) };
        output::note(format_args!("the control plane was killed and serves again after {down:.1?}"));
        roster.all_there(args.give_up_after).await?;
        let (took, most_a_second) = (killed.elapsed(), roster.most_links_a_second(killed));
        let resident_bytes = plane.usage()?.map_or(0, |usage| usage.resident_bytes);
        Ok(Some(Back { down, took, most_a_second, resident_bytes }))
    }

    async fn switch_off(&self) {
        self.off.cancel();
        self.common.tasks.finish(LEAVE).await;
    }
}

/// What the control plane uses with nothing but heartbeats; `None` if that cannot be measured.
async fn idle(plane: &Plane, over: Duration) -> Result<Option<Idle>, Failure> {
    let Some(before) = plane.usage()? else { return Ok(None) };
    sleep(over).await;
    let Some(after) = plane.usage()? else { return Ok(None) };
    let cpu = after.share_since(&before, over);
    Ok(Some(Idle { over, cpu, resident_bytes: after.resident_bytes }))
}
