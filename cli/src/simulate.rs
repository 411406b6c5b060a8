//! `rookery fleet simulate`: many gateways in this process against a real control plane on loopback.

mod faults;
mod gateway;
mod machine;
mod plane;
mod proc;
mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use rookery_proto::server::{OnPanic, Tasks};
use tokio::time::sleep;

use crate::error::{Failure, OrFail};
use crate::output;
use faults::Faults;
use plane::Plane;
use report::{Report, Rollout};

/// Runs many simulated gateways against a control plane of its own, and measures what they cost it.
#[derive(Args, Debug)]
#[command(
    after_help = "Links, TLS, enrolment and the gateways' state machine are the real ones; downloads, engines
and faults are modelled, and drawn from the seed. The control plane is a process of its own.

Examples:
  rookery fleet simulate --gateways 100
  rookery fleet simulate --gateways 2000 --rollout ./qwen-w4 --faults offline=2%,slow=5%,bad-probe=1%"
)]
pub struct SimulateArgs {
    /// How many gateways.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=4000))]
    gateways: u16,
    /// Decides what each gateway is like, and which faults it has.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Push this bundle and roll it out in three waves.
    #[arg(long, value_name = "BUNDLE")]
    rollout: Option<PathBuf>,
    /// Which share of the gateways has which fault: offline, slow, bad-probe, crash, skew.
    #[arg(long, value_name = "FAULT=SHARE%,…", default_value = "")]
    faults: Faults,
    /// Bytes of a version, for modelled downloads.
    #[arg(long, value_name = "SIZE", default_value = "64MB")]
    version_size: bytesize::ByteSize,
    /// How many times as fast as they would be downloads, checks and probes are.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    hurry: f64,
    /// How long an idle control plane is measured.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = humantime::parse_duration)]
    idle: Duration,
    /// Longest time for everything to come about.
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = humantime::parse_duration)]
    give_up_after: Duration,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// How often linked gateways are counted.
const COUNT: Duration = Duration::from_millis(100);

/// Least share of the gateways that must be linked, in percent: those with a fault may be away at any moment.
const ENOUGH: usize = 95;

/// Runs the command.
///
/// # Errors
/// If the control plane cannot be started, or the gateways do not come about in time.
pub async fn run(args: SimulateArgs) -> Result<(), Failure> {
    if !(args.hurry.is_finite() && args.hurry >= 0.01) {
        return Err(Failure::usage("--hurry must be at least 0.01"));
    }
    let folder = tempfile::tempdir().or_fail(|| "could not make a temporary folder".to_owned())?;
    let mut plane = Plane::start(folder.path(), None).await?;
    let count = usize::from(args.gateways);
    let join = plane.join_token(u32::from(args.gateways)).await?;
    let (tasks, linked) = (Tasks::new(), Arc::new(AtomicUsize::new(0)));
    let common = Arc::new(gateway::Common {
        link: plane.link.to_string(),
        join,
        folder: folder.path().join("gateways"),
        seed: args.seed,
        faults: args.faults.clone(),
        hurry: args.hurry,
        version_bytes: args.version_size.as_u64(),
        tasks: tasks.clone(),
        linked: Arc::clone(&linked),
    });
    for index in 0..u64::from(args.gateways) {
        let common = Arc::clone(&common);
        tasks.spawn("simulated gateway", OnPanic::Log, async move {
            if let Err(error) = gateway::run(common, index).await {
                tracing::error!(index, %error, "a simulated gateway cannot start");
            }
        });
    }
    let joined = until_linked(&linked, count, args.give_up_after).await?;
    output::note(format_args!("{count} gateways have joined and are linked after {:.1?}", joined.took));
    let before = plane.usage()?;
    sleep(args.idle).await;
    let after = plane.usage()?;
    let idle_cpu = (after.cpu.saturating_sub(before.cpu)).as_secs_f64() / args.idle.as_secs_f64();
    let rollout = match &args.rollout {
        Some(bundle) => Some(roll_out(&plane, bundle, args.give_up_after).await?),
        None => None,
    };
    let peak = plane.usage()?.peak_bytes;
    output::note("the control plane is killed and started again");
    plane = plane.restart(folder.path()).await?;
    let back = until_linked(&linked, count, args.give_up_after).await?;
    let report = Report {
        gateways: count,
        seed: args.seed,
        faults: args.faults.to_string(),
        joined,
        idle_cpu,
        resident_bytes: after.resident_bytes,
        peak_bytes: peak,
        rollout,
        back,
    };
    drop(plane);
    if args.json { output::json(&report.json()) } else { output::write(&report.table()) }
}

/// How links came about.
#[derive(Clone, Copy, Debug)]
struct Linked {
    /// Until all were there, but for those with a fault.
    took: Duration,
    /// Most in one second.
    most_a_second: usize,
}

async fn until_linked(linked: &AtomicUsize, count: usize, limit: Duration) -> Result<Linked, Failure> {
    let began = Instant::now();
    let enough = (count * ENOUGH).div_ceil(100);
    let mut history = vec![linked.load(Ordering::Relaxed)];
    // Links to a control plane that was killed end within moments; counting begins when they have.
    while history.last().is_some_and(|now| *now >= enough) && began.elapsed() < Duration::from_secs(2) {
        sleep(COUNT).await;
        history = vec![linked.load(Ordering::Relaxed)];
    }
    loop {
        let now = linked.load(Ordering::Relaxed);
        history.push(now);
        if now >= enough {
            let second = (Duration::from_secs(1).as_millis() / COUNT.as_millis()) as usize;
            let gain = |end: usize| history[end].saturating_sub(history[end.saturating_sub(second)]);
            let most_a_second = (0..history.len()).map(gain).max().unwrap_or(0);
            return Ok(Linked { took: began.elapsed(), most_a_second });
        }
        if began.elapsed() > limit {
            return Err(Failure::new(format!("only {now} of {count} gateways are linked after {limit:?}")));
        }
        sleep(COUNT).await;
    }
}

async fn roll_out(plane: &Plane, bundle: &std::path::Path, limit: Duration) -> Result<Rollout, Failure> {
    plane.push(bundle).await?;
    let before = plane.usage()?;
    let began = Instant::now();
    let waves = plane.roll_out(limit).await?;
    let (took, after) = (began.elapsed(), plane.usage()?);
    let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64() / took.as_secs_f64();
    Ok(Rollout { waves, took, cpu })
}
