//! A thousand seeded mixes of faults over planned products: no hang, no wrong result taken for a right one, nothing
//! left behind, and what recovery did is stated.
//!
//! `FAULT_MIXES=100` runs fewer, `FAULT_ONLY=17` the one whose failure named it. A flipped bit is the one fault that no driver can see: where one was
//! injected the result is not looked at here (whoever uses results checks them by checksum).

use std::fmt;
use std::time::{Duration, Instant};

use rknpu_driver::buffer::{Buffer, BufferKind};
use rknpu_driver::device::{Device, DomainId, Interface, Recovery};
use rknpu_driver::layout::weights::{pack_i4, pack_i8};
use rknpu_driver::oracle::{Generator, matmul_int};
use rknpu_driver::plan::{BoundMatmul, MatmulPlan, Operands, PlanOptions};
use rknpu_driver::shape::{MatmulShape, Precision};
use rknpu_driver::sim::faults::{Fault, FaultPlan, Trigger};
use rknpu_driver::sim::kernel::Usage;
use rknpu_driver::sim::{SimConfig, Simulation};

/// Runs in one mix, each of up to three jobs.
const RUNS: usize = 8;
/// Time a job has on the device, where a small product takes less than a millisecond.
const TIMEOUT: Duration = Duration::from_millis(200);
/// Time a mix may take on the host: time-outs do not pass here, so nothing comes near it unless it hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// What became of runs.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    right: usize,
    flipped: usize,
    refused: usize,
    failed: usize,
    /// Recoveries: in place, with memory lost, by a new device, and devices that are gone for good.
    kept: usize,
    lost: usize,
    reopened: usize,
    dead: usize,
    /// Devices given up with memory that a job might still use: the driver keeps it as long as the process lives.
    held: usize,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.right += other.right;
        self.flipped += other.flipped;
        self.refused += other.refused;
        self.failed += other.failed;
        self.kept += other.kept;
        self.lost += other.lost;
        self.reopened += other.reopened;
        self.dead += other.dead;
        self.held += other.held;
    }
}

#[test]
fn a_thousand_mixes() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let only = number("FAULT_ONLY");
    let seeds = only.map_or(0..number("FAULT_MIXES").unwrap_or(1000), |seed| seed..seed + 1);
    let mut sum = Tally::default();
    let mut injected = [0; Fault::ALL.len()];
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let mix = Mix::new(seed);
        sum.add(mix.run());
        for (sum, fault) in injected.iter_mut().zip(Fault::ALL) {
            *sum += mix.simulation.faults().injected(fault);
        }
    }
    println!("{sum:?}");
    for (fault, times) in Fault::ALL.iter().zip(injected) {
        println!("{times} × {fault:?}");
        assert!(times > 0 || count < 1000, "no mix injected {fault:?}");
    }
    let each = [sum.right, sum.flipped, sum.refused, sum.failed, sum.kept, sum.lost, sum.reopened, sum.dead];
    assert!(count < 1000 || each.iter().all(|&times| times > 0), "something never happened: {sum:?}");
}

#[test]
fn threads_share_a_device_that_fails() {
    for seed in 0..40 {
        let mix = Mix::new(seed);
        let began = Instant::now();
        let Ok(device) = mix.simulation.device() else { continue };
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (mix, device) = (&mix, &device);
                scope.spawn(move || {
                    let mut random = Generator::new(seed * 3 + thread);
                    for _ in 0..RUNS {
                        let flips = mix.flips();
                        let Some(product) = Product::new(device, &mut random, mix.interface) else {
                            continue;
                        };
                        let done = device.run(&[product.bound.job()]).is_ok();
                        let wrong = done && product.is_wrong();
                        // Another thread's job may be the one with the flipped bit.
                        assert!(
                            !wrong || mix.flips() > flips,
                            "{mix:?}: a wrong result was reported as done"
                        );
                        if device.is_faulted() {
                            // Other threads may be at work; then the next one that is alone succeeds.
                            let _ = device.reset();
                        }
                    }
                });
            }
        });
        let _ = device.reset();
        let held = device.health().quarantined_jobs > 0;
        drop(device);
        mix.finish(began, held);
    }
}

/// One seeded mix.
struct Mix {
    seed: u64,
    interface: Interface,
    plan: FaultPlan,
    simulation: Simulation,
}

impl fmt::Debug for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mix {} ({:?}, {})", self.seed, self.interface, self.plan)
    }
}

impl Mix {
    fn new(seed: u64) -> Self {
        let interface = if seed.is_multiple_of(2) { Interface::Vendor } else { Interface::Rocket };
        let mut random = Generator::new(seed ^ 0x6661_756c_7473);
        let mut plan = FaultPlan::new(seed);
        for _ in 0..1 + random.below(4) {
            let fault = Fault::ALL[random.below(Fault::ALL.len() as u64) as usize];
            let trigger = match random.below(3) {
                0 => Trigger::Probability((1 + random.below(60)) as f64 / 200.0),
                1 => Trigger::At(1 + random.below(20)),
                _ => Trigger::Every(2 + random.below(8)),
            };
            plan = plan.with(fault, trigger);
        }
        let config = SimConfig { faults: Some(plan.clone()), report: None, ..SimConfig::new(interface) };
        Self { seed, interface, plan, simulation: Simulation::new(config) }
    }

    fn flips(&self) -> u64 {
        self.simulation.faults().injected(Fault::BitFlip)
    }

    fn run(&self) -> Tally {
        let began = Instant::now();
        let mut tally = Tally::default();
        let mut random = Generator::new(self.seed);
        let mut device = None;
        let mut products: Vec<Product> = Vec::new();
        for _ in 0..RUNS {
            if device.is_none() {
                products.clear();
                device = self.simulation.device().ok();
            }
            let Some(open) = &device else {
                tally.refused += 1;
                continue;
            };
            while products.len() < 3
                && let Some(product) = Product::new(open, &mut random, self.interface)
            {
                products.push(product);
            }
            if !self.step(open, &products[..products.len().min(1 + random.below(3) as usize)], &mut tally) {
                match open.reset() {
                    Ok(Recovery::Kept) => tally.kept += 1,
                    Ok(Recovery::BuffersLost) => {
                        tally.lost += 1;
                        products.clear();
                    }
                    Err(_) => {
                        assert!(open.is_faulted(), "{self:?}: a reset failed and the device works");
                        products.clear();
                        tally.held += usize::from(open.health().quarantined_jobs > 0);
                        device = None;
                        match self.simulation.device() {
                            Ok(_) => tally.reopened += 1,
                            Err(_) => tally.dead += 1,
                        }
                    }
                }
            }
        }
        products.clear();
        if let Some(device) = device {
            let _ = device.reset();
            let health = device.health();
            tally.held += usize::from(health.quarantined_jobs > 0);
            assert!(health.buffers == 0 || health.quarantined_jobs > 0, "{self:?}: {health:?}");
            assert_eq!(health.leaked_objects, 0, "{self:?}");
        }
        self.finish(began, tally.held > 0);
        tally
    }

    /// Runs jobs and looks at their results; false if the device needs a reset.
    fn step(&self, device: &Device, products: &[Product], tally: &mut Tally) -> bool {
        if products.is_empty() {
            tally.refused += 1;
            return !device.is_faulted();
        }
        let flips = self.flips();
        let jobs: Vec<_> = products.iter().map(|product| product.bound.job()).collect();
        match device.run(&jobs) {
            Ok(reports) => {
                assert_eq!(reports.len(), jobs.len());
                let wrong = products.iter().any(Product::is_wrong);
                let flipped = self.flips() > flips;
                assert!(!wrong || flipped, "{self:?}: a wrong result was reported as done");
                if flipped {
                    tally.flipped += 1
                } else {
                    tally.right += 1
                }
                true
            }
            Err(_) => {
                tally.failed += 1;
                !device.is_faulted()
            }
        }
    }

    /// Everything that was made is gone, in time, but what had to be `held`.
    fn finish(&self, began: Instant, held: bool) {
        let done = |usage: Usage| usage == Usage::default() || (held && usage.jobs == 0);
        while !done(self.simulation.usage()) {
            assert!(began.elapsed() < LIMIT, "{self:?}: {:?} is left", self.simulation.usage());
            std::thread::yield_now(); // a queue's thread is about to drop its last job
        }
        assert!(began.elapsed() < LIMIT, "{self:?} took {:?}", began.elapsed());
    }
}

/// A product in buffers of one address space.
struct Product {
    plan: MatmulPlan,
    bound: BoundMatmul,
    output: Buffer,
    want: Vec<i32>,
}

impl Product {
    /// A small random one; `None` where the device refuses memory.
    fn new(device: &Device, random: &mut Generator, interface: Interface) -> Option<Self> {
        let precision = if random.below(3) == 0 { Precision::Int4 } else { Precision::Int8 };
        let [rows, inner, outputs] = [8, 200, 300].map(|most| 1 + random.below(most) as usize);
        let shape = MatmulShape { rows, inner, outputs, precision };
        let cores = match interface {
            Interface::Vendor => 1 + random.below(3) as usize,
            Interface::Rocket => 1,
        };
        let domain = DomainId(random.below(3) as u8);
        let plan = MatmulPlan::new(shape, &PlanOptions { cores, ..PlanOptions::default() });
        let plan = plan.expect("a small product has a plan");
        let int4 = precision == Precision::Int4;
        let mut values = |count| if int4 { random.int4(count) } else { random.int8(count) };
        let (a, w) = (values(rows * inner), values(outputs * inner));
        let allocate = |bytes| device.allocate(domain, bytes, BufferKind::Data).ok();
        let (weights, input) = (allocate(plan.weight_bytes())?, allocate(plan.input_bytes())?);
        let output = allocate(plan.output_bytes())?;
        let mut tiles = vec![0; plan.weight_bytes()];
        let pack = if int4 { pack_i4 } else { pack_i8 };
        pack(outputs, inner, &w, &mut tiles);
        fill(&weights, |bytes| bytes[..tiles.len()].copy_from_slice(&tiles))?;
        fill(&input, |bytes| plan.pack_input_i8(&a, inner, &mut bytes[..plan.input_bytes()]))?;
        let operands = Operands {
            weights: (weights.seal().ok()?.into(), 0),
            input: (input, 0),
            output: (output.clone(), 0),
            per_channel: None,
        };
        let bound = plan.bind(device, &operands, TIMEOUT).ok()?;
        Some(Self { want: matmul_int(&shape, &a, &w), plan, bound, output })
    }

    /// Whether the output is that of another product. One that can no longer be read is nobody's.
    fn is_wrong(&self) -> bool {
        let Ok(bytes) = self.output.read(..) else { return false };
        let mut got = vec![0; self.want.len()];
        self.plan.read_output_i32(&bytes, &mut got, self.plan.shape().outputs);
        got != self.want
    }
}

/// `None` where the device is gone.
fn fill(buffer: &Buffer, with: impl FnOnce(&mut [u8])) -> Option<()> {
    let mut guard = buffer.write(..).ok()?;
    with(&mut guard);
    guard.finish().ok()
}
