//! Scenarios with real processes: traces across all of them, and a worker that is killed.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use rookery_proto::{
    semconv::{attribute, span},
    v1::{self, ListModelsRequest},
};
use rookery_tests::{
    bundles::{MODEL, tiny},
    client::{Answer, Client, client, generate, text},
    otlp::{Collector, Received},
    processes::{ProcessFleet, Serving, rookery, simulated_node},
    within,
};

fn named<'a>(spans: &'a [Received], name: &str) -> Vec<&'a Received> {
    spans.iter().filter(|received| received.span.name == name).collect()
}

#[tokio::test]
async fn one_generation_is_one_trace_parent_by_parent() {
    let collector = Collector::start().await.unwrap();
    let endpoint = collector.endpoint();
    let packed = tiny().unwrap();
    let fleet = ProcessFleet::start(&packed, 1, &["--otlp-endpoint", &endpoint]).await.unwrap();
    let mut command = rookery().unwrap();
    let target = format!("http://{}", fleet.control_plane.listen);
    command.args(["generate", "The rooks came back", "--endpoint", &target, "--model", MODEL]);
    command.args(["--max-tokens", "8", "--json", "--otlp-endpoint", &endpoint]);
    let output = within("rookery generate", command.output()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    const NAMES: [&str; 7] =
        [span::CLIENT, span::ROUTE, span::ATTEMPT, span::GENERATE, span::QUEUE, span::PREFILL, span::DECODE];
    let all = |spans: &[Received]| NAMES.iter().all(|name| !named(spans, name).is_empty());
    let spans = collector.until("a span of every part", all).await;
    let one = |name: &str| {
        let found = named(&spans, name);
        assert_eq!(found.len(), 1, "{name}");
        found[0]
    };
    let tree = [
        (span::CLIENT, None, "rookery-generate", SpanKind::Client),
        (span::ROUTE, Some(span::CLIENT), "rookery-control-plane", SpanKind::Server),
        (span::ATTEMPT, Some(span::ROUTE), "rookery-control-plane", SpanKind::Client),
        (span::GENERATE, Some(span::ATTEMPT), "rookery-worker", SpanKind::Server),
        (span::QUEUE, Some(span::GENERATE), "rookery-worker", SpanKind::Internal),
        (span::PREFILL, Some(span::GENERATE), "rookery-worker", SpanKind::Internal),
        (span::DECODE, Some(span::GENERATE), "rookery-worker", SpanKind::Internal),
    ];
    let trace = &one(span::CLIENT).span.trace_id;
    for (name, parent, service, kind) in tree {
        let received = one(name);
        assert_eq!(&received.span.trace_id, trace, "{name}");
        let parent_id = parent.map(|parent| one(parent).span.span_id.clone()).unwrap_or_default();
        assert_eq!(received.span.parent_span_id, parent_id, "{name} is not a child of {parent:?}");
        assert_eq!(received.service, service, "{name}");
        assert_eq!(received.span.kind(), kind, "{name}");
        assert!(received.span.start_time_unix_nano <= received.span.end_time_unix_nano, "{name}");
    }
    assert_eq!(one(span::ATTEMPT).text(attribute::GATEWAY_ID), "gw-0");
    let generate = one(span::GENERATE);
    assert_eq!(generate.text(attribute::REQUEST_MODEL), MODEL);
    assert_eq!(generate.text(attribute::OPERATION_NAME), "text_completion");
    assert_eq!(generate.integer(attribute::REQUEST_MAX_TOKENS), Some(8));
    let generated = generate.integer(attribute::USAGE_OUTPUT_TOKENS).unwrap();
    assert!((1..=8).contains(&generated), "{generated}");
    assert!(generate.integer(attribute::USAGE_INPUT_TOKENS).is_some_and(|tokens| tokens > 0));
}

/// The median time of a few generations, and their tokens.
async fn measure(client: &Client, rounds: usize) -> (Duration, Vec<u32>) {
    let mut times = Vec::new();
    let mut tokens = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        tokens = generate(client, text("The rooks came back", 64)).await.unwrap().token_ids;
        times.push(start.elapsed());
    }
    times.sort();
    (times[times.len() / 2], tokens)
}

#[tokio::test]
async fn a_dead_collector_changes_neither_tokens_nor_latency() {
    // It takes connections, by the kernel, and never answers: worse than a port that refuses.
    let black_hole = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", black_hole.local_addr().unwrap());
    let packed = tiny().unwrap();
    let without = ProcessFleet::start(&packed, 1, &[]).await.unwrap();
    let with = ProcessFleet::start(&packed, 1, &["--otlp-endpoint", &endpoint]).await.unwrap();
    let (quiet, dead) = (client(without.control_plane.listen), client(with.control_plane.listen));
    let (_, expected) = measure(&quiet, 5).await;
    assert_eq!(measure(&dead, 5).await.1, expected);
    // In turns, so that whatever else the machine does falls on both.
    let mut slower = Vec::new();
    for _ in 0..7 {
        let (base, _) = measure(&quiet, 9).await;
        let (time, tokens) = measure(&dead, 9).await;
        assert_eq!(tokens, expected);
        slower.push(time.as_secs_f64() / base.as_secs_f64());
    }
    slower.sort_by(f64::total_cmp);
    assert!(slower[3] < 1.5, "generations take {slower:?} times as long");
}

/// How many workers to kill: few as a rule, more by `ROOKERY_TEST_KILLS`.
fn kills() -> u64 {
    std::env::var("ROOKERY_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

/// A long answer that depends on everything that came before each token.
fn drawn(seed: u64) -> v1::GenerateRequest {
    let drawn = v1::SamplingParams {
        max_tokens: Some(400),
        temperature: Some(1.3),
        seed: Some(seed),
        frequency_penalty: Some(0.3),
        ..v1::SamplingParams::default()
    };
    v1::GenerateRequest { sampling: Some(drawn), ..text("The rooks", 400) }
}

#[tokio::test]
async fn a_worker_killed_at_any_token_changes_no_stream() {
    const STREAMS: u64 = 6;
    let packed = tiny().unwrap();
    let mut fleet = ProcessFleet::start(&packed, 2, &[]).await.unwrap();
    let address = fleet.control_plane.listen;
    let mut expected = Vec::new();
    for seed in 0..STREAMS {
        expected.push(generate(&client(address), drawn(seed)).await.unwrap());
    }
    let mut elsewhere = 0;
    for kill in 0..kills() {
        let (tokens, counted) = tokio::sync::watch::channel(0);
        let mut streams = tokio::task::JoinSet::new();
        for seed in 0..STREAMS {
            let tokens = tokens.clone();
            streams.spawn(async move {
                let mut stream = client(address).generate(drawn(seed)).await.unwrap().into_inner();
                let mut answer = Answer::default();
                while let Some(response) = stream.message().await.unwrap_or_else(|error| panic!("{error:?}"))
                {
                    answer.add(response);
                    tokens.send_modify(|count| *count = answer.token_ids.len().max(*count));
                }
                (seed, answer)
            });
        }
        // In the middle: 7919 is prime, so that the places differ from kill to kill.
        let place = usize::try_from(kill * 7919 % 350).unwrap();
        within("so many tokens", counted.clone().wait_for(|count| *count > place)).await.unwrap();
        fleet.replace(usize::try_from(kill % 2).unwrap()).await.unwrap();
        for (seed, answer) in within("all streams end", streams.join_all()).await {
            let whole = &expected[usize::try_from(seed).unwrap()];
            let same = (&answer.token_ids, &answer.text) == (&whole.token_ids, &whole.text);
            assert!(same, "kill {kill}, seed {seed}: {} is not {}", answer.text, whole.text);
            // Two gateways made it: each has its own clock, and the control plane tells its own time.
            elsewhere += u32::from(answer.finished.unwrap().timings.unwrap().queue_us == 0);
        }
        fleet.until_gateways(2).await;
    }
    println!("{} kills, {elsewhere} of {} streams went on elsewhere", kills(), kills() * STREAMS);
    assert!(u64::from(elsewhere) >= kills() / 2, "only {elsewhere} streams were in the middle");
}

/// Starts a worker of the tiny model with these flags and variables.
async fn worker(flags: &[&str], variables: &[(&str, &str)]) -> Serving {
    let packed = tiny().unwrap();
    let bundle = packed.path().to_str().unwrap();
    let own = ["worker", bundle, "--listen", "127.0.0.1:0", "--gateway-id", "gw-0", "--threads", "1"];
    Serving::start_with(&[&own[..], &["--kv-cache", "4MiB"], flags].concat(), variables).await.unwrap()
}

#[tokio::test]
async fn a_worker_generates_on_the_simulated_nodes_of_both_drivers() {
    let request = || text("The rooks came back", 24);
    let processor = worker(&["--backend", "cpu"], &[]).await;
    let expected = generate(&client(processor.listen), request()).await.unwrap().token_ids;
    let library = simulated_node().unwrap();
    let library = library.to_str().unwrap();
    // A worker told to use the NPU starts only if the node is there and the self-check over it passes; bits are flipped
    // in jobs that come after its.
    for (interface, faults) in [
        ("vendor", ""),
        ("rocket", ""),
        ("vendor", "seed=3,flip@40,flip@55"),
        ("rocket", "seed=4,flip@70,flip@90"),
    ] {
        let variables = [("LD_PRELOAD", library), ("RKNPU_SIM", interface), ("RKNPU_SIM_FAULTS", faults)];
        let worker = worker(&["--backend", "npu"], &variables).await;
        let answer = generate(&client(worker.listen), request()).await.unwrap();
        assert_eq!(answer.token_ids, expected, "{interface} {faults}");
    }
}

#[tokio::test]
async fn a_step_on_an_npu_is_one_span_with_sums() {
    let collector = Collector::start().await.unwrap();
    let endpoint = collector.endpoint();
    let worker = worker(&["--backend", "npu-sim", "--otlp-endpoint", &endpoint], &[]).await;
    let answer = generate(&client(worker.listen), text("The rooks came back", 5)).await.unwrap();
    let steps = answer.token_ids.len();
    let enough = |spans: &[Received]| {
        !named(spans, span::GENERATE).is_empty() && named(spans, span::NPU_STEP).len() >= steps
    };
    let spans = collector.until("a span of every step", enough).await;
    let found = named(&spans, span::NPU_STEP);
    assert_eq!(found.len(), steps, "one for the prompt and its token, one for each further token");
    let phase = |name| named(&spans, name)[0].span.span_id.clone();
    let parents = [phase(span::PREFILL), phase(span::DECODE)];
    for step in found {
        assert!(parents.contains(&step.span.parent_span_id));
        for name in
            [attribute::NPU_JOBS, attribute::NPU_TASKS, attribute::NPU_BYTES, attribute::NPU_SIMULATED_CYCLES]
        {
            assert!(step.integer(name).is_some_and(|sum| sum > 0), "{name}");
        }
        assert_eq!(step.integer(attribute::NPU_FALLBACKS), Some(0));
        assert!(step.text(attribute::BACKEND).starts_with("npu-sim/vendor"));
    }
}

/// The sum of a metric's values on a Prometheus page, over the samples that have this label.
fn sample(page: &str, metric: &str, label: &str) -> f64 {
    let mine = |line: &&str| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{'));
    let values = page.lines().filter(mine).filter(|line| line.contains(label));
    values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// Reads a process's Prometheus page until it satisfies `wanted`: the engine tells its load after a token is sent.
async fn page_with(process: &Serving, what: &str, wanted: impl Fn(&str) -> bool) -> String {
    let reading = async {
        loop {
            let page = process.metrics().await.unwrap();
            if wanted(&page) {
                return page;
            }
        }
    };
    within(what, reading).await
}

#[tokio::test]
async fn a_fault_of_the_npu_is_in_the_trace_the_metrics_and_the_list_of_models() {
    let request = || text("The rooks came back", 8);
    let processor = worker(&["--backend", "cpu"], &[]).await;
    let expected = generate(&client(processor.listen), request()).await.unwrap().token_ids;
    let collector = Collector::start().await.unwrap();
    let endpoint = collector.endpoint();
    let library = simulated_node().unwrap();
    for (fault, kind, words, resets) in [
        ("timeout@40", "timeout", "NPU: a job did not end in time", 1.0),
        ("dead@40", "device_gone", "NPU: the device is gone", 0.0),
        ("seed=3,flip@40", "wrong_result", "NPU: a result failed its checksum", 1.0),
    ] {
        let any = "127.0.0.1:0";
        let page = ["--prometheus-listen", any];
        let plane = [&["control-plane", "--listen", any, "--link-listen", any], &page[..]].concat();
        let plane = Serving::start(&plane).await.unwrap();
        let link = plane.link.unwrap().to_string();
        let flags = ["--backend", "npu", "--control-plane", &link, "--otlp-endpoint", &endpoint];
        let variables = [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("RKNPU_SIM", "vendor"),
            ("RKNPU_SIM_FAULTS", fault),
            ("ROOKERY_WORKER__NPU__JOB_TIMEOUT", "1s"),
        ];
        let worker = worker(&[&flags[..], &page].concat(), &variables).await;
        let answer = generate(&client(worker.listen), request()).await.unwrap();
        assert_eq!(answer.token_ids, expected, "{fault}");

        let faulty = |received: &&Received| {
            let told = received.span.name == span::NPU_STEP;
            told && received.texts(attribute::NPU_FAULT).iter().any(|told| told == kind)
        };
        let any_faulty = |spans: &[Received]| spans.iter().any(|received| faulty(&received));
        let spans = collector.until(&format!("a step's span says {kind}"), any_faulty).await;
        let step = spans.iter().find(faulty).unwrap();
        assert!(step.integer(attribute::NPU_FALLBACKS).is_some_and(|calls| calls > 0), "{fault}");

        let degraded = |page: &str| sample(page, "rookery_degraded", "") == 1.0;
        let page = page_with(&worker, "the metrics say that the engine is degraded", degraded).await;
        let label = format!("rookery_npu_fault=\"{kind}\"");
        assert!(sample(&page, "rookery_npu_faults_total", &label) >= 1.0, "{fault}: {page}");
        assert!(sample(&page, "rookery_npu_resets_total", "") >= resets, "{fault}: {page}");
        assert!(sample(&page, "rookery_npu_fallbacks_total", "") >= 1.0, "{fault}: {page}");
        for counter in ["rookery_npu_transferred_bytes_total", "rookery_engine_steps_total"] {
            assert!(sample(&page, counter, "") > 0.0, "{counter}: {page}");
        }
        page_with(&plane, "the control plane counts the gateway", |page| {
            page.lines().any(|line| line.starts_with("rookery_gateways_degraded") && line.ends_with(" 1"))
        })
        .await;

        let models =
            client(plane.listen).list_models(ListModelsRequest {}).await.unwrap().into_inner().models;
        assert_eq!(
            (models[0].degraded_gateways, &models[0].degraded),
            (1, &format!("gw-0: {words}")),
            "{fault}"
        );
        let mut command = rookery().unwrap();
        command.args(["models", "list", "--endpoint", &format!("http://{}", worker.listen)]);
        let output = within("rookery models list", command.output()).await.unwrap();
        let table = String::from_utf8(output.stdout).unwrap();
        assert!(table.contains(&format!("degraded: {words}")), "{table}");
    }
}
