//! Workers whose linear layers run on the NPU's simulator.

use rknpu_driver::{
    device::Interface,
    sim::{
        faults::{Fault, FaultPlan, Trigger},
        kernel::{SimConfig, Simulation},
    },
};
use rookery_compute_worker::{
    backend::{
        BackendChoice,
        npu::{NpuBackend, NpuSettings},
    },
    config::{NpuInterface, WorkerConfig},
    engine::{Engine, EngineConfig},
    worker::{RunningWorker, Worker},
};
use rookery_kernels::Kernels;
use rookery_model::{
    bundle::{Bundle, NoProgress},
    pack::Recipe,
};
use rookery_proto::v1::{self, LogprobParams};
use rookery_tests::{
    bundles::{MODEL, Packed, pack_recipe, tiny},
    client::{Answer, channel, client, generate, text},
    fleet::{ANY_PORT, control_plane, until_linked},
    within,
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

fn requests() -> [v1::GenerateRequest; 2] {
    let logprobs = Some(LogprobParams { top: 3 });
    [
        v1::GenerateRequest { logprobs, ..text("The rooks came back", 12) },
        text("fn main() { println!(\"a longer prompt, so that more rows go through at once\"); }", 6),
    ]
}

/// A worker of `packed` on `backend`.
async fn worker(packed: &Packed, backend: BackendChoice, interface: NpuInterface) -> RunningWorker {
    let mut config = WorkerConfig {
        listen: ANY_PORT.into(),
        gateway_id: Some("gw-npu".to_owned()),
        bundles: vec![packed.path().to_owned()],
        ..WorkerConfig::default()
    };
    config.engine.backend = backend;
    config.engine.threads = Some(1);
    config.engine.kv_cache = "4MiB".parse().unwrap();
    config.npu.interface = interface;
    Worker::start(config.validate().unwrap()).await.unwrap()
}

async fn answers(worker: &RunningWorker) -> Vec<Answer> {
    let client = client(worker.address());
    let mut answers = Vec::new();
    for request in requests() {
        answers.push(generate(&client, request).await.unwrap());
    }
    answers
}

#[tokio::test]
async fn the_whole_path_on_the_simulator_gives_the_processors_answers() {
    for recipe in [Recipe::W8, Recipe::W4] {
        let packed = pack_recipe("qwen2", MODEL, recipe).unwrap();
        let processor = worker(&packed, BackendChoice::Cpu, NpuInterface::Auto).await;
        let expected = answers(&processor).await;
        within("the worker drains", processor.drain()).await;
        for (interface, name) in
            [(NpuInterface::Vendor, "npu-sim/vendor"), (NpuInterface::Rocket, "npu-sim/rocket")]
        {
            let simulated = worker(&packed, BackendChoice::NpuSim, interface).await;
            let backend = simulated.engines().next().unwrap().info().backend.clone();
            assert!(backend.starts_with(name), "{backend}");
            for (answer, expected) in answers(&simulated).await.iter().zip(&expected) {
                assert_eq!(answer.token_ids, expected.token_ids, "{recipe} {name}");
                assert_eq!(answer.logprobs, expected.logprobs, "{recipe} {name}");
            }
            within("the worker drains", simulated.drain()).await;
        }
    }
}

#[tokio::test]
async fn a_gateway_whose_npu_dies_stays_in_service_and_says_why() {
    let packed = tiny().unwrap();
    let processor = worker(&packed, BackendChoice::Cpu, NpuInterface::Auto).await;
    let expected = answers(&processor).await;
    within("the worker drains", processor.drain()).await;

    // In the middle of the first generation.
    let faults = FaultPlan::new(1).with(Fault::GoneForEver, Trigger::At(30));
    let config = SimConfig { faults: Some(faults), report: None, ..SimConfig::new(Interface::Vendor) };
    let simulation = Simulation::new(config);
    let backend = NpuBackend::new(simulation.device().unwrap(), Kernels::detect(), &NpuSettings::default());
    let bundle = Bundle::open(packed.path(), &NoProgress).unwrap();
    let engine_config = EngineConfig { threads: 1, kv_cache_bytes: 4 << 20, ..EngineConfig::default() };
    let engine = Engine::start_with_backend(bundle, engine_config, Box::new(backend)).unwrap();
    let plane = control_plane(|_| {}).await.unwrap();
    let mut config = WorkerConfig {
        listen: ANY_PORT.into(),
        gateway_id: Some("gw-npu".to_owned()),
        bundles: vec![packed.path().to_owned()],
        ..WorkerConfig::default()
    };
    config.link.control_plane = Some(plane.link_address().to_string());
    let worker = Worker::start_with_engines(config.validate().unwrap(), vec![engine]).await.unwrap();
    until_linked(&plane, 1).await;
    for (request, expected) in requests().into_iter().zip(&expected) {
        let answer = generate(&client(plane.address()), request).await.unwrap();
        assert_eq!((&answer.token_ids, &answer.logprobs), (&expected.token_ids, &expected.logprobs));
    }
    assert_eq!(simulation.faults().injected(Fault::GoneForEver), 1, "nothing died, so nothing was tested");
    let mut changes = plane.fleet().changes();
    within("the control plane hears that the gateway is degraded", async {
        loop {
            let reasons = plane.fleet().gateways();
            let reasons = reasons.iter().filter_map(|(_, _, state)| state.degraded());
            if reasons.into_iter().any(|reason| reason == (MODEL, "NPU: the device is gone")) {
                return;
            }
            let _ = tokio::time::timeout(std::time::Duration::from_millis(50), changes.changed()).await;
        }
    })
    .await;
    for (address, reason) in
        [(plane.address(), "gw-npu: NPU: the device is gone"), (worker.address(), "NPU: the device is gone")]
    {
        let models = client(address).list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().models;
        let [model] = &models[..] else { panic!("{models:?}") };
        assert_eq!((model.degraded_gateways, &*model.degraded), (1, reason));
        assert!(model.backends[0].starts_with("npu"), "{:?}", model.backends);
    }
    let mut health = HealthClient::new(channel(worker.address()));
    let request = HealthCheckRequest { service: String::new() };
    let status = health.check(request).await.unwrap().into_inner().status;
    assert_eq!(status, i32::from(ServingStatus::Serving));
    within("the worker drains", worker.drain()).await;
    within("the control plane drains", plane.drain()).await;
}
