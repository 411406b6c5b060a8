//! Measures the router: what it adds to time and work, and how well it uses the workers' caches. docs/routing.md has the
//! commands and what they gave.
//!
//! ```text
//!  overhead:  this process: 16 streams and a worker ── directly ──┐   the same worker
//!                    └── control plane, a process of its own ─────┴─► (paced like a real model)
//!  prefixes:  16 streams ─► control plane ─► 4 workers, all in this process, with real caches
//! ```

#![expect(clippy::print_stdout, reason = "it reports to whoever runs it")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rookery_proto::v1::generate_response::Event;
use rookery_tests::{
    client::{Client, client, ids},
    fleet::{Fleet, TestWorker},
    prefixes::{self, Traffic},
    processes::Serving,
};
use tokio::task::JoinSet;

const STREAMS: usize = 16;

/// Rounds of two phases each.
const ROUNDS: u32 = 6;

/// Seconds of a phase.
const PHASE: u64 = 6;

/// Ticks of `/proc/PID/stat` in a second, on every Linux of today.
const TICKS: f64 = 100.0;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("overhead") => overhead().await,
        Some("prefixes") => shared_prefixes().await,
        _ => bail!("say what to measure: overhead or prefixes"),
    }
}

/// What one way to the worker gave.
#[derive(Default)]
struct Way {
    /// Seconds from the call to the first event with a token.
    first_tokens: Vec<f64>,
    tokens: u64,
}

impl Way {
    fn add(&mut self, other: Way) {
        self.first_tokens.extend(other.first_tokens);
        self.tokens += other.tokens;
    }

    fn millis(&mut self, share: f64) -> f64 {
        self.first_tokens.sort_by(f64::total_cmp);
        let last = self.first_tokens.len() - 1;
        self.first_tokens[(last as f64 * share).round() as usize] * 1e3
    }
}

async fn overhead() -> anyhow::Result<()> {
    const ANY: &str = "127.0.0.1:0";
    let plane = Serving::start(&["control-plane", "--listen", ANY, "--link-listen", ANY]).await?;
    let pid = plane.pid().context("the control plane runs")?;
    let worker = TestWorker::start("gw-0", plane.link, |_| {}).await?;
    worker.hold.pace(Duration::from_micros(500));
    until_served(plane.listen).await?;
    let ways = [worker.worker.address(), plane.listen];
    phase(ways, 1).await?;
    // What it uses with nothing to route: statuses, heartbeats, its loop over the database.
    let before = processor_seconds(pid)?;
    tokio::time::sleep(Duration::from_secs(PHASE)).await;
    let idle = processor_seconds(pid)? - before;
    let (mut directly, mut routed) = (Way::default(), Way::default());
    let (mut seconds, mut tokens) = (0.0, 0);
    println!("round  direct p50/p99 ms   routed p50/p99 ms   added p50/p99 ms   all routed: µs a token");
    for round in 1..=ROUNDS {
        let [mut one, mut other] = phase(ways, PHASE).await?;
        // All of them through the control plane, so that all that it does is theirs.
        let before = processor_seconds(pid)?;
        let all = phase([plane.listen; 2], PHASE).await?;
        let (used, passed) = (processor_seconds(pid)? - before - idle, all[0].tokens + all[1].tokens);
        print_row(&round.to_string(), &mut one, &mut other, (used, passed));
        directly.add(one);
        routed.add(other);
        (seconds, tokens) = (seconds + used, tokens + passed);
    }
    print_row("all", &mut directly, &mut routed, (seconds, tokens));
    let answers = routed.first_tokens.len();
    println!("times of {answers} answers each way, or nearly; processor time over {tokens} tokens");
    println!("without requests the control plane uses {:.1} % of a processor", idle * 100.0 / PHASE as f64);
    worker.stop().await;
    Ok(())
}

fn print_row(name: &str, direct: &mut Way, routed: &mut Way, (seconds, tokens): (f64, u64)) {
    let [a, b] = [direct.millis(0.5), direct.millis(0.99)];
    let [c, d] = [routed.millis(0.5), routed.millis(0.99)];
    let (p50, p99, micros) = (c - a, d - b, seconds * 1e6 / tokens as f64);
    println!("{name:>5}  {a:8.2} {b:8.2}   {c:8.2} {d:8.2}   {p50:8.2} {p99:8.2}   {micros:12.1}");
}

/// All streams, one generation after the other, this way and that in turns, for so many seconds: whatever else the machine does
/// falls on both.
async fn phase(ways: [SocketAddr; 2], seconds: u64) -> anyhow::Result<[Way; 2]> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let clients = ways.map(client);
    let mut streams = JoinSet::new();
    for stream in 0..STREAMS as u32 {
        let clients = clients.clone();
        streams.spawn(async move {
            let mut ways = [Way::default(), Way::default()];
            for number in 0.. {
                if Instant::now() >= end {
                    break;
                }
                let prompt = (0..24).map(|token| 1 + (stream * 97 + number * 31 + token * 7) % 500).collect();
                let way = (stream + number) as usize % 2;
                generation(&clients[way], prompt, &mut ways[way]).await?;
            }
            Ok::<_, anyhow::Error>(ways)
        });
    }
    let mut all = [Way::default(), Way::default()];
    for ways in streams.join_all().await {
        for (sum, way) in all.iter_mut().zip(ways?) {
            sum.add(way);
        }
    }
    Ok(all)
}

async fn generation(client: &Client, prompt: Vec<u32>, way: &mut Way) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut stream = client.clone().generate(ids(prompt, 48)).await?.into_inner();
    let mut first = None;
    while let Some(response) = stream.message().await? {
        if let Some(Event::Delta(delta)) = response.event {
            first.get_or_insert_with(|| began.elapsed());
            way.tokens += delta.token_ids.len() as u64;
        }
    }
    way.first_tokens.push(first.context("an answer without tokens")?.as_secs_f64());
    Ok(())
}

async fn until_served(address: SocketAddr) -> anyhow::Result<()> {
    let mut client = client(address);
    for _ in 0..200 {
        let models = client.list_models(rookery_proto::v1::ListModelsRequest {}).await?.into_inner().models;
        if !models.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("the worker did not link within 10 s")
}

/// User and system time of a process.
fn processor_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may have blanks.
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    ensure!(fields.len() > 13, "stat is short");
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / TICKS)
}

async fn shared_prefixes() -> anyhow::Result<()> {
    const WORKERS: usize = 4;
    println!("groups  shared  requests  hit rate  heaviest by requests, by work   requests of each");
    for (groups, shared_tokens) in [(8, 256), (32, 256), (64, 128), (48, 256)] {
        let roomy = |settings: &mut rookery_tests::fleet::WorkerSettings| {
            settings.engine.kv_cache_bytes = 64 << 20;
        };
        let fleet = Fleet::start_with(WORKERS, |_| {}, roomy).await?;
        fleet.workers.iter().for_each(|worker| worker.hold.pace(Duration::from_micros(200)));
        let traffic = Traffic {
            requests: 1200,
            streams: STREAMS,
            groups,
            shared_tokens,
            own_tokens: 24,
            answer_tokens: 8,
            seed: 7,
        };
        let outcome = prefixes::run(&fleet, traffic).await?;
        let requests: BTreeMap<_, _> = outcome.requests.clone();
        println!(
            "{groups:6}  {shared_tokens:6}  {:8}  {:7.1}%  {:20.2}, {:7.2}   {requests:?}",
            traffic.requests,
            100.0 * outcome.hit_rate(),
            outcome.heaviest_requests(WORKERS),
            outcome.heaviest_work(WORKERS),
        );
        fleet.stop().await;
    }
    Ok(())
}
