//! Through buffers, bound jobs and a simulated device, as programs do it.

use std::time::Duration;

use rknpu_driver::buffer::{Buffer, BufferKind};
use rknpu_driver::device::{Device, DomainId, Interface};
use rknpu_driver::job::JobBuffer;
use rknpu_driver::layout::weights;
use rknpu_driver::oracle::{Generator, matmul_int};
use rknpu_driver::plan::{BindError, Binding, BoundMatmul, MatmulPlan, Operands, PlanOptions};
use rknpu_driver::shape::{MatmulShape, Precision};
use rknpu_driver::sim::kernel::{SimConfig, device};
use rknpu_driver::timing::Board;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A product with its buffers and the scalar result.
struct Case {
    plan: MatmulPlan,
    operands: Operands,
    a: Vec<i8>,
    expected: Vec<i32>,
}

fn filled(device: &Device, domain: DomainId, bytes: &[u8]) -> Buffer {
    let buffer = device.allocate(domain, bytes.len(), BufferKind::Data).expect("memory");
    buffer.write(..).expect("idle")[..bytes.len()].copy_from_slice(bytes);
    buffer
}

/// Weights, input and output in buffers of `domain`, weights and output not at the start of theirs.
fn case(device: &Device, domain: DomainId, shape: MatmulShape, cores: usize, seed: u64) -> Case {
    case_with(device, domain, shape, &PlanOptions { cores, ..PlanOptions::default() }, seed)
}

fn case_with(
    device: &Device,
    domain: DomainId,
    shape: MatmulShape,
    options: &PlanOptions,
    seed: u64,
) -> Case {
    let mut random = Generator::new(seed);
    let (a, w) = (random.int8(shape.rows * shape.inner), random.int8(shape.outputs * shape.inner));
    let plan = MatmulPlan::new(shape, options).expect("planned");
    let mut tiles = vec![0; 1024 + plan.weight_bytes()];
    weights::pack_i8(shape.outputs, shape.inner, &w, &mut tiles[1024..]);
    let weights = filled(device, domain, &tiles).seal().expect("idle");
    let input = device.allocate(domain, plan.input_bytes(), BufferKind::Data).expect("memory");
    let output = device.allocate(domain, 64 + plan.output_bytes(), BufferKind::Data).expect("memory");
    let operands = Operands {
        weights: (JobBuffer::Sealed(weights), 1024),
        input: (input, 0),
        output: (output, 64),
        per_channel: None,
    };
    let expected = matmul_int(&shape, &a, &w);
    Case { plan, operands, a, expected }
}

impl Case {
    fn write_input(&self) {
        let mut bytes = self.operands.input.0.write(..).expect("idle");
        self.plan.pack_input_i8(&self.a, self.plan.shape().inner, &mut bytes);
    }

    fn check_output(&self) {
        let outputs = self.plan.shape().outputs;
        let bytes = self.operands.output.0.read(self.operands.output.1..).expect("idle");
        let mut out = vec![0; self.expected.len()];
        self.plan.read_output_i32(&bytes, &mut out, outputs);
        assert!(out == self.expected, "{}", self.plan.shape());
    }
}

fn int8(rows: usize, inner: usize, outputs: usize) -> MatmulShape {
    MatmulShape { rows, inner, outputs, precision: Precision::Int8 }
}

#[test]
fn products_run_on_both_kernels() {
    for (interface, cores) in [(Interface::Vendor, 3), (Interface::Rocket, 1)] {
        let device = device(SimConfig::new(interface)).expect("a device");
        for (seed, domain) in device.domains().iter().take(3).enumerate() {
            let case = case(&device, domain.id, int8(20, 4100, 500), cores, seed as u64);
            let bound = case.plan.bind(&device, &case.operands, TIMEOUT).expect("bound");
            // Twice with the same commands: nothing is used up.
            for _ in 0..2 {
                case.write_input();
                let reports = device.run(&[bound.job()]).expect("run");
                assert_eq!(reports[0].tasks_done as usize, case.plan.task_count());
                let work = reports[0].simulated.as_ref().expect("a simulator counts");
                assert_eq!(*work, case.plan.work());
                case.check_output();
            }
        }
    }
}

/// The task counter of the program controller has 12 bits: kernels start longer chains in parts.
#[test]
fn a_chain_may_be_longer_than_the_task_counter() {
    for interface in [Interface::Vendor, Interface::Rocket] {
        let device = device(SimConfig::new(interface)).expect("a device");
        let mut options = PlanOptions::default();
        options.limits.outputs = 32;
        let shape = int8(2, 33, 32 * 4200);
        let case = case_with(&device, device.domains()[0].id, shape, &options, 3);
        assert_eq!(case.plan.task_count(), 4200);
        let bound = case.plan.bind(&device, &case.operands, TIMEOUT).expect("bound");
        case.write_input();
        let reports = device.run(&[bound.job()]).expect("run");
        assert_eq!(reports[0].tasks_done, 4200);
        case.check_output();
    }
}

#[test]
fn several_products_make_one_job() {
    let device = device(SimConfig::new(Interface::Vendor)).expect("a device");
    let domain = device.domains()[0].id;
    let shapes =
        [(int8(3, 896, 896), 3), (int8(3, 896, 128), 1), (int8(3, 896, 128), 1), (int8(40, 64, 70), 2)];
    let cases: Vec<Case> = shapes
        .into_iter()
        .enumerate()
        .map(|(seed, (shape, cores))| case(&device, domain, shape, cores, seed as u64))
        .collect();
    let bindings: Vec<Binding<'_>> =
        cases.iter().map(|case| Binding { plan: &case.plan, operands: &case.operands }).collect();
    let bound = BoundMatmul::new(&device, &bindings, TIMEOUT).expect("bound");
    cases.iter().for_each(Case::write_input);
    let reports = device.run(&[bound.job()]).expect("run");
    let tasks: usize = cases.iter().map(|case| case.plan.task_count()).sum();
    assert_eq!(reports[0].tasks_done as usize, tasks);
    cases.iter().for_each(Case::check_output);
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let device = device(SimConfig::new(Interface::Vendor)).expect("a device");
    let [first, second] = [device.domains()[0].id, device.domains()[1].id];
    let good = case(&device, first, int8(4, 64, 64), 1, 1);
    let bind = |operands: &Operands| good.plan.bind(&device, operands, TIMEOUT).map(|_| ());
    let mut moved = good.operands.clone();
    moved.output.1 += 16;
    assert!(matches!(bind(&moved), Err(BindError::TooShort { operand: "output", .. })));
    let mut moved = good.operands.clone();
    moved.weights.1 += usize::MAX - 1024;
    assert!(matches!(bind(&moved), Err(BindError::TooShort { operand: "weights", .. })));
    let mut foreign = good.operands.clone();
    foreign.input.0 = device.allocate(second, good.plan.input_bytes(), BufferKind::Data).expect("memory");
    assert!(matches!(bind(&foreign), Err(BindError::Domains { .. })));
    assert!(matches!(BoundMatmul::new(&device, &[], TIMEOUT), Err(BindError::Nothing)));
}

#[test]
fn more_cores_than_a_domain_has_are_refused() {
    let device = device(SimConfig::new(Interface::Rocket)).expect("a device");
    let case = case(&device, device.domains()[0].id, int8(512, 512, 2000), 3, 1);
    assert_eq!(case.plan.cores(), 3);
    let refused = case.plan.bind(&device, &case.operands, TIMEOUT);
    assert!(matches!(refused, Err(BindError::Cores { planned: 3, there: 1, .. })));
}

/// Rocket kicks each task alone, and the buffer's contents are not known to outlive a kick.
#[test]
fn nothing_is_reused_across_kicks() {
    let shape = int8(1056, 32, 2048);
    // Small tasks, and bytes alone decide: weights stay while row tiles pass.
    let mut options =
        PlanOptions { board: Board { clock_hz: 1e15, ..Board::vendor_compiler() }, ..PlanOptions::default() };
    (options.limits.rows, options.limits.outputs) = (16, 32);
    for interface in [Interface::Vendor, Interface::Rocket] {
        let device = device(SimConfig::new(interface)).expect("a device");
        let case = case_with(&device, device.domains()[0].id, shape, &options, 9);
        assert!(case.plan.choice().tiling.weight_reuse && case.plan.task_count() == 64 * 66);
        let bound = case.plan.bind(&device, &case.operands, TIMEOUT).expect("bound");
        case.write_input();
        let reports = device.run(&[bound.job()]).expect("run");
        case.check_output();
        let work = &reports[0].simulated.as_ref().expect("a simulator counts")[0];
        // Every task's weights are one tile, the rows 512 bytes.
        let fetching: Vec<usize> = (0..work.len()).filter(|&task| work[task].read_bytes == 1536).collect();
        let expected = (0..work.len()).filter(|task| match interface {
            // The task counter of the program controller ends at 4,095.
            Interface::Vendor => task % 66 == 0 || *task == 4095,
            Interface::Rocket => true,
        });
        assert!(fetching == expected.collect::<Vec<_>>(), "{interface:?}: {fetching:?}");
    }
    let limits = options.limits.clone().on(Interface::Rocket);
    assert_eq!(options.limits.clone().on(Interface::Vendor), options.limits);
    let plan = MatmulPlan::new(shape, &PlanOptions { limits, ..options }).expect("planned");
    assert!(!plan.choice().tiling.weight_reuse);
}
