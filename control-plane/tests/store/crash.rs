//! A control plane that is killed in the middle of writing: what it had confirmed is there.
//!
//! The writer is this test program again, run as a child for one test. SQLite only: PostgreSQL is another process, which the
//! death of its client does not touch.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use rookery_control_plane::{
    domain::rollout::{Plan, RolloutState},
    store::Store,
};

use crate::support::{Db, change, digest, gateway, id, next, prepare, rollout, target, version};

/// Where the child finds its database.
const CHILD: &str = "ROOKERY_STORE_TEST_CHILD";
const ROUNDS: u64 = 12;

/// Not a test of its own: what the child runs. Without a database it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(url) = std::env::var(CHILD) else { return };
    let store = Store::open(&url).await.unwrap();
    let mut current = store.rollout(&id(1).0).await.unwrap().plan;
    let mut versions = u64::try_from(store.versions(None).await.unwrap().len()).unwrap();
    // The parent kills this.
    loop {
        let plan = follow(&current);
        store
            .advance(&plan, current.generation, &[change(&gateway(0), Some(version_of(&plan)))])
            .await
            .unwrap();
        confirm("plan", plan.generation);
        current = plan;
        versions += 1;
        store.insert_version(&version("org/chat", versions)).await.unwrap();
        confirm("version", versions);
        store.audit("child", "count", &current.generation.to_string(), "").await.unwrap();
        confirm("audit", current.generation);
    }
}

/// Says on standard output, at once, that something is durable.
fn confirm(what: &str, number: u64) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "confirmed {what} {number}").unwrap();
    output.flush().unwrap();
}

/// The plan after another, which says what is in it by its generation.
fn follow(parent: &Plan) -> Plan {
    let mut plan = next(parent, RolloutState::Running, [].into());
    let version = version_of(&plan);
    plan.targets = [(gateway(0), target(Some(version), None))].into();
    plan
}

fn version_of(plan: &Plan) -> u64 {
    1 + plan.generation % 3
}

#[derive(Debug, Default)]
struct Confirmed {
    plan: u64,
    version: u64,
    audit: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_survives_being_killed() {
    let db = Db::sqlite();
    let store = db.open().await;
    prepare(&store, 1).await;
    let mut first = rollout(1, 1, &[0]);
    first.plan.targets = [(gateway(0), target(Some(2), None))].into();
    first.changes = vec![change(&gateway(0), Some(2))];
    first.spec.digest = digest(2);
    store.create_rollout(&first).await.unwrap();
    store.close().await;

    let mut confirmed = Confirmed { plan: 1, version: 3, audit: 0 };
    for round in 0..ROUNDS {
        // Seeded: after how many confirmed writes the child dies.
        let lines = 1 + (round * 7919 + 13) % 47;
        let url = db.url.clone();
        confirmed =
            tokio::task::spawn_blocking(move || write_and_kill(&url, lines, confirmed)).await.unwrap();
        check(&db, &confirmed).await;
    }
}

/// Runs the child, kills it with SIGKILL after so many confirmed writes, and reads what else it has confirmed.
fn write_and_kill(url: &str, lines: u64, mut confirmed: Confirmed) -> Confirmed {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--nocapture", "--test-threads=1"])
        .env(CHILD, url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        // libtest's own "test … " has no line end, so the first one begins with it.
        let Some((_, entry)) = line.split_once("confirmed ") else { continue };
        let (what, number) = entry.split_once(' ').unwrap();
        let number = number.parse().unwrap();
        match what {
            "plan" => confirmed.plan = number,
            "version" => confirmed.version = number,
            "audit" => confirmed.audit = number,
            other => panic!("{other}"),
        }
        seen += 1;
        if seen == lines {
            child.kill().unwrap();
        }
    }
    assert!(seen >= lines, "the child ended by itself: {:?}", child.wait());
    child.wait().unwrap();
    confirmed
}

async fn check(db: &Db, confirmed: &Confirmed) {
    let store = db.open().await;
    let plan = store.rollout(&id(1).0).await.unwrap().plan;
    // One more of each may have been written whose confirmation was not.
    assert!((confirmed.plan..=confirmed.plan + 1).contains(&plan.generation), "{confirmed:?}: {plan:?}");
    let plans = store.plans(&id(1)).await.unwrap();
    let generations: Vec<_> = plans.iter().map(|plan| plan.generation).collect();
    assert_eq!(
        generations,
        (1..=plan.generation).collect::<Vec<_>>(),
        "none is missing, none is there in part"
    );
    assert_eq!(plans.last(), Some(&plan));
    let (generation, assigned) = store.assignments_of(&gateway(0)).await.unwrap();
    assert_eq!(generation, plan.generation, "the plan and what it assigns are one");
    assert_eq!(assigned[0].digest, digest(version_of(&plan)));
    let versions = u64::try_from(store.versions(None).await.unwrap().len()).unwrap();
    assert!((confirmed.version..=confirmed.version + 1).contains(&versions), "{confirmed:?}: {versions}");
    let entries = store.audit_entries(100_000).await.unwrap();
    let counted = |number: u64| {
        entries.iter().any(|entry| entry.actor == "child" && entry.object == number.to_string())
    };
    assert!(confirmed.audit == 0 || counted(confirmed.audit), "{confirmed:?}");
    let planned = entries.iter().filter(|entry| entry.action == "rollout.plan").count();
    assert_eq!(u64::try_from(planned).unwrap(), plan.generation, "a plan and its audit row are one");
    store.close().await;
}
