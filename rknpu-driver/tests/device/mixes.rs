//! Seeded mixes of faults: whatever goes wrong, no result that is reported as done is wrong, nothing hangs,
//! nothing leaks.

use rknpu_driver::device::{Device, DomainId, Interface, Recovery};
use rknpu_driver::error::JobError;
use rknpu_driver::oracle::Generator;
use rknpu_driver::sim::kernel::Usage;
use rknpu_driver::sim::{Simulation, faults::Fault};

use crate::product::{BOTH, Product, cores, simulation};

/// Jobs tried in one mix.
const ATTEMPTS: usize = 12;

/// What became of a mix.
#[derive(Debug, Default)]
struct Tally {
    right: usize,
    failed: usize,
    recovered: usize,
    lost: bool,
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

#[test]
fn mixes_of_faults_never_lie() {
    let only = number("DEVICE_ONLY");
    let seeds = only.map_or(0..number("DEVICE_MIXES").unwrap_or(1000), |seed| seed..seed + 1);
    let mut sum = Tally::default();
    for seed in seeds {
        let interface = BOTH[seed as usize % 2];
        let tally = run_mix(interface, seed);
        sum.right += tally.right;
        sum.failed += tally.failed;
        sum.recovered += tally.recovered;
    }
    if only.is_none() {
        assert!(sum.right > 0 && sum.failed > 0 && sum.recovered > 0, "the mixes test nothing: {sum:?}");
    }
    println!("{} right, {} failed, {} recoveries", sum.right, sum.failed, sum.recovered);
}

/// A plan of one to three rules in text form.
fn plan(seed: u64) -> String {
    let mut random = Generator::new(seed ^ 0x6d69_7865_7321);
    let names = Fault::ALL.map(Fault::name);
    let mut text = format!("seed={seed}");
    for _ in 0..=seed % 3 {
        // A quarter of a percent to a quarter: rare and frequent ones.
        let drawn = random.int8(2);
        let (name, share) = (drawn[0].unsigned_abs() as usize, f64::from(drawn[1].unsigned_abs()) + 1.0);
        text = format!("{text},{}={}", names[name % names.len()], share / 512.0);
    }
    text
}

fn run_mix(interface: Interface, seed: u64) -> Tally {
    let plan = plan(seed);
    let what = format!("mix {seed} ({interface:?}, {plan})");
    let simulation = simulation(interface, &plan);
    let mut tally = Tally::default();
    if let Ok(device) = simulation.device() {
        let mut product = None;
        for attempt in 0..ATTEMPTS {
            let flips = simulation.faults().injected(Fault::BitFlip);
            if tally.lost || !attempt_one(&device, interface, seed + attempt as u64, &mut product, &mut tally)
            {
                continue;
            }
            // A bit that flipped is for checksums to find, not for the driver.
            let flipped = simulation.faults().injected(Fault::BitFlip) > flips;
            let right = product.as_ref().is_some_and(Product::is_right);
            assert!(right || flipped, "{what}: a wrong result was reported as done");
        }
        drop(product);
        finish(&simulation, &device, &tally, &what);
    }
    assert_eq!(simulation.usage(), Usage::default(), "{what}: something is left");
    tally
}

/// Makes a product if there is none and runs it; true if it was reported as done. Whatever fails is mended,
/// as far as it can be.
fn attempt_one(
    device: &Device,
    interface: Interface,
    seed: u64,
    product: &mut Option<Product>,
    tally: &mut Tally,
) -> bool {
    if product.is_none() {
        let domain = DomainId((seed % 3) as u8);
        *product = Product::new(device, domain, cores(interface), 160, seed).ok();
    }
    let result = match product {
        Some(product) => product.run(device),
        None => Err(JobError::Gone),
    };
    if result.is_ok() {
        tally.right += 1;
        return true;
    }
    tally.failed += 1;
    if device.is_faulted() {
        match device.reset() {
            Ok(Recovery::Kept) => tally.recovered += 1,
            Ok(Recovery::BuffersLost) => {
                tally.recovered += 1;
                *product = None;
            }
            Err(_) => {
                assert!(device.is_faulted());
                tally.lost = device.health().fault == Some(rknpu_driver::error::Fault::Gone);
            }
        }
    }
    false
}

/// All that is left belongs to quarantined jobs, if the device stayed faulted.
fn finish(simulation: &Simulation, device: &Device, tally: &Tally, what: &str) {
    let health = device.health();
    let held = health.quarantined_jobs > 0;
    assert!(health.buffers == 0 || held || tally.lost, "{what}: {health:?}");
    assert_eq!(health.leaked_objects, 0, "{what}");
    assert!(simulation.usage().jobs == 0, "{what}: a job is still queued");
}
