//! Plans checked by structure, and executed by a model that knows only cubes, tiles and products.

mod vendor;

use proptest::prelude::*;

use super::encode::TaskForm;
use super::geometry::{BANKS, data_banks, resident_groups};
use super::*;
use crate::layout::weights;
use crate::oracle::{Generator, matmul_int};
use crate::regcmd::{self, ProgramOptions};

fn precisions() -> impl Strategy<Value = Precision> {
    prop::sample::select(&Precision::ALL[..])
}

/// Sizes with small ones, multiples of tiles and their neighbours well represented.
fn sides(most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![
        1..=most.min(70),
        1..=most,
        (1..=most / 32, 0usize..3).prop_map(|(tiles, off)| tiles * 32 + off - 1)
    ]
}

prop_compose! {
    fn problems(rows: usize, inner: usize, outputs: usize)(
        precision in precisions(),
        rows in sides(rows),
        inner in sides(inner),
        outputs in sides(outputs),
        cores in 1usize..=3,
        data_reuse: bool,
        slow_tasks: bool,
        sliced: bool,
        narrow in prop::sample::select(&[64usize, 480, 3072, 10_240][..]),
    ) -> (MatmulShape, PlanOptions) {
        let shape = MatmulShape { rows, inner, outputs, precision };
        let mut options = PlanOptions { cores, ..PlanOptions::default() };
        options.limits.data_reuse = data_reuse;
        options.limits.int8_inner = narrow;
        options.limits.fp16_inner = narrow;
        options.limits.int4_inner = narrow.min(480);
        if sliced {
            options.weights = WeightOrder::Sliced;
        }
        if !slow_tasks {
            options.board = crate::timing::Board::vendor_compiler();
        }
        (shape, options)
    }
}

fn check_blocks(plan: &MatmulPlan) -> Result<(), TestCaseError> {
    let shape = plan.shape();
    let (mut input_end, mut output_end) = (0, 0);
    let mut cells = 0;
    for block in &plan.blocks {
        prop_assert!(block.input_at >= input_end && block.output_at >= output_end, "cubes overlap");
        prop_assert!(block.input_at.is_multiple_of(64) && block.output_at.is_multiple_of(64));
        input_end = block.input_at + block.input.bytes();
        output_end = block.output_at + block.output.bytes();
        prop_assert_eq!(block.input.pixels, block.rows.len() * block.stack.slices);
        cells += block.rows.len() * block.stack.range().len();
    }
    prop_assert_eq!((input_end, output_end), (plan.input_bytes(), plan.output_bytes()));
    prop_assert_eq!(cells, shape.rows * shape.inner_tiles(), "rows and K are covered once");
    Ok(())
}

fn check_task(plan: &MatmulPlan, task: &PlannedTask) -> Result<(), TestCaseError> {
    let (shape, limits) = (plan.shape(), &plan.options.limits);
    let TaskForm { size, data_banks: banks, reuse } = task.form;
    prop_assert!(size.pixels <= limits.rows && size.kernels() <= limits.outputs);
    prop_assert!(size.tiles <= limits.inner_tiles(shape.precision));
    prop_assert!(banks < BANKS && data_banks(size.channel_bytes(), size.pixels) <= banks, "features fit");
    prop_assert!(resident_groups(banks, size.tiles) >= 1, "a kernel group fits");
    prop_assert!(!reuse.weights || resident_groups(banks, size.tiles) >= size.groups, "reused weights fit");
    prop_assert!(task.weights_at + size.weight_bytes() <= plan.weight_bytes());
    let block = &plan.blocks[task.block];
    let first = task.output_at(&shape, &plan.blocks);
    let surfaces = size.kernels() / block.output.atom;
    let last = first + ((surfaces - 1) * block.output.surface + size.pixels) * 16;
    prop_assert!(first >= block.output_at && last <= block.output_at + block.output.bytes());
    Ok(())
}

fn check_chains(plan: &MatmulPlan) -> Result<(), TestCaseError> {
    let groups = plan.shape().groups();
    let mut covered = vec![0u8; plan.blocks.len() * groups];
    for chain in &plan.chains {
        prop_assert!(!chain.is_empty(), "a core without tasks");
        let mut before: Option<&PlannedTask> = None;
        for task in chain {
            check_task(plan, task)?;
            for group in task.groups.clone() {
                covered[task.block * groups + group] += 1;
            }
            let reuse = task.form.reuse;
            let same = |same: fn(&PlannedTask, &PlannedTask) -> bool| {
                before.is_some_and(|before| {
                    same(before, task) && before.form.data_banks == task.form.data_banks
                })
            };
            let weights = same(|a, b| {
                a.weights_at == b.weights_at && a.form.size.weight_bytes() == b.form.size.weight_bytes()
            });
            prop_assert!(!reuse.weights || weights, "weights reused that are not there");
            prop_assert!(
                !reuse.features || same(|a, b| a.block == b.block),
                "features reused that are not there"
            );
            before = Some(task);
        }
    }
    prop_assert!(covered.iter().all(|&count| count == 1), "every block and group once");
    Ok(())
}

fn check_cost(plan: &MatmulPlan) -> Result<(), TestCaseError> {
    let work = plan.work();
    let first: TaskWork = work[0].iter().copied().sum();
    prop_assert_eq!(plan.cost().work, first, "closed form and tasks agree");
    let most = work.iter().map(|chain| chain.iter().map(TaskWork::bytes).sum::<u64>()).max();
    prop_assert_eq!(most, Some(first.bytes()), "the first core has most to do");
    Ok(())
}

fn check_words(plan: &MatmulPlan) -> Result<(), TestCaseError> {
    let (program, _) = plan.program(ProgramOptions::default()).expect("tasks are short");
    let words = program.bind_words(&[0; 4], 0);
    let words: Vec<u64> = words.expect("addresses fit").into_iter().map(|word| word.0).collect();
    prop_assert!(regcmd::decode(&words).is_ok());
    Ok(())
}

/// What the tasks would leave in the output buffer, by the definition of a product.
fn execute(plan: &MatmulPlan, tiles: &[i8], input: &[u8]) -> Vec<u8> {
    let mut output = vec![0; plan.output_bytes()];
    for task in plan.chains.iter().flatten() {
        let (size, block) = (task.form.size, &plan.blocks[task.block]);
        let mut features = vec![0i8; size.columns()];
        for pixel in 0..size.pixels {
            block.input.read_i8(&input[block.input_at..], pixel, 0, &mut [&mut features]);
            for kernel in 0..size.kernels() {
                let tile = task.weights_at + kernel / 32 * size.tiles * 1024 + kernel % 32 * 32;
                let products = (0..size.columns())
                    .map(|k| i32::from(features[k]) * i32::from(tiles[tile + k / 32 * 1024 + k % 32]));
                let at =
                    task.output_at(&plan.shape(), &plan.blocks) + block.output.atom_offset(pixel, kernel);
                output[at + kernel % 4 * 4..][..4].copy_from_slice(&products.sum::<i32>().to_le_bytes());
            }
        }
    }
    output
}

proptest! {
    #[test]
    fn plans_cover_everything_once_within_limits((shape, options) in problems(3000, 20_000, 20_000)) {
        let plan = match MatmulPlan::new(shape, &options) {
            Ok(plan) => plan,
            // Thousands of rows and columns in many slices can outgrow an address space; nothing else may
            // fail.
            Err(PlanError::TooManyBytes { .. }) => return Ok(()),
            // Nor, of the largest shapes or with kernels cut to a few tiles, more tasks than are planned.
            Err(PlanError::TooManyTasks { .. })
                if shape.rows * shape.inner * shape.outputs > 1 << 37
                    || options.limits.inner_tiles(shape.precision) <= 15 =>
            {
                return Ok(());
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        check_blocks(&plan)?;
        check_chains(&plan)?;
        check_cost(&plan)?;
        if plan.task_count() < 500 {
            check_words(&plan)?;
        }
    }

    #[test]
    fn wild_shapes_and_options_get_a_plan_or_an_error(
        precision in precisions(),
        sides in prop::array::uniform3(0usize..40),
        cores in 0usize..5,
        limits in prop::array::uniform5(
            prop::sample::select(&[0usize, 1, 31, 64, 500, 2047, 9000, 1 << 40][..])
        ),
        slice in prop::option::of(prop::sample::select(&[0usize, 32, 128, 129, 480, 1 << 30][..])),
        rate in prop::sample::select(&[0.0, 1.0, 1e9, f64::INFINITY, f64::NAN][..]),
        requantised: bool,
    ) {
        let [rows, inner, outputs] = sides.map(|bits| (1usize << bits).wrapping_mul(3) >> 2);
        let shape = MatmulShape { rows, inner, outputs, precision };
        let [int8_inner, fp16_inner, int4_inner, outputs, rows] = limits;
        let mut options = PlanOptions { cores, slice, ..PlanOptions::default() };
        options.limits = Limits { int8_inner, fp16_inner, int4_inner, outputs, rows, ..Limits::default() };
        options.board.ddr_bytes_per_s = rate;
        if requantised {
            let requantise = Requantise { scale: 1, shift: 63, offset: i32::MIN, per_channel: true };
            options.output = OutputStage::Requantised(requantise);
        }
        // Small limits make millions of tasks of large shapes: refused before they are made.
        if let Ok(plan) = MatmulPlan::new(shape, &options) {
            prop_assert!(plan.input_bytes() < 1 << 32 && plan.task_count() <= 3 << 18);
        }
    }

    #[test]
    fn tasks_compute_the_product((shape, options) in problems(40, 600, 200), seed: u64) {
        let shape = MatmulShape { precision: Precision::Int8, ..shape };
        let plan = MatmulPlan::new(shape, &options).expect("a small shape has a plan");
        let mut random = Generator::new(seed);
        let (a, w) = (random.int8(shape.rows * shape.inner), random.int8(shape.outputs * shape.inner));
        let mut stored = vec![0; plan.weight_bytes()];
        weights::pack_i8(shape.outputs, shape.inner, &w, &mut stored);
        let mut tiles = vec![0; plan.weight_bytes()];
        weights::retile(&stored, shape.inner_tiles(), &plan.weight_regions(), &mut tiles);
        let mut input = vec![0x55; plan.input_bytes()];
        plan.pack_input_i8(&a, shape.inner, &mut input);
        let tiles: Vec<i8> = tiles.into_iter().map(|byte| byte as i8).collect();
        let output = execute(&plan, &tiles, &input);
        let mut out = vec![0; shape.rows * shape.outputs];
        plan.read_output_i32(&output, &mut out, shape.outputs);
        let expected = matmul_int(&shape, &a, &w);
        prop_assert_eq!(&out, &expected);
        // Slice by slice, rows at random.
        let row = random.below(shape.rows as u64) as usize;
        let mut sum = vec![0; shape.outputs];
        let mut part = vec![0; shape.outputs];
        for slice in 0..plan.slices() {
            plan.read_slice_i32(&output, slice, row, &mut part);
            sum.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
        }
        prop_assert_eq!(&sum[..], &expected[row * shape.outputs..][..shape.outputs]);
    }
}

fn plan(rows: usize, inner: usize, outputs: usize, precision: Precision, cores: usize) -> MatmulPlan {
    let shape = MatmulShape { rows, inner, outputs, precision };
    let options = PlanOptions { cores, ..PlanOptions::default() };
    MatmulPlan::new(shape, &options).expect("the shape has a plan")
}

#[test]
fn a_decoding_step_streams_its_weights_once_in_one_task_a_core() {
    for (inner, outputs) in [(896, 896), (896, 4864), (2048, 8128)] {
        let plan = plan(1, inner, outputs, Precision::Int8, 3);
        assert_eq!((plan.task_count(), plan.slices()), (plan.cores(), 1), "{}", plan.shape());
    }
}

#[test]
fn a_long_k_is_stacked_while_rows_are_free() {
    for inner in [4096, 14_336] {
        let plan = plan(1, inner, 4096, Precision::Int8, 3);
        let Choice { stacks, .. } = plan.choice();
        assert!(stacks.len() == 1 && stacks[0].tiles * 32 <= 3072, "{:?}", plan.choice());
        assert!(plan.task_count() <= 12, "{:?}", plan.choice());
        let bytes: u64 = plan.work().iter().flatten().map(|work| work.read_bytes).sum();
        assert!(bytes < inner as u64 * 4096 * 101 / 100, "{bytes} bytes read");
    }
}

#[test]
fn bad_options_are_refused() {
    let shape = MatmulShape { rows: 1, inner: 64, outputs: 64, precision: Precision::Int8 };
    let with = |change: fn(&mut PlanOptions)| {
        let mut options = PlanOptions::default();
        change(&mut options);
        MatmulPlan::new(shape, &options).map(|_| ())
    };
    assert_eq!(with(|options| options.cores = 0), Err(PlanError::Cores(0)));
    assert_eq!(with(|options| options.cores = 4), Err(PlanError::Cores(4)));
    assert!(matches!(with(|options| options.slice = Some(33)), Err(PlanError::Slice { .. })));
    assert!(matches!(with(|options| options.limits.rows = 0), Err(PlanError::NoFit { .. })));
    assert!(matches!(with(|options| options.limits.outputs = 31), Err(PlanError::NoFit { .. })));
    let converter = |scale, shift| {
        let requantise = Requantise { scale, shift, offset: 0, per_channel: false };
        let output = OutputStage::Requantised(requantise);
        MatmulPlan::new(shape, &PlanOptions { output, ..PlanOptions::default() }).map(|_| ())
    };
    assert_eq!(converter(32_767, 63), Ok(()));
    assert_eq!(converter(32_768, 20), Err(PlanError::Converter { scale: 32_768, shift: 20 }));
    assert_eq!(converter(1, 64), Err(PlanError::Converter { scale: 1, shift: 64 }));
    let empty = MatmulShape { rows: 0, ..shape };
    assert!(matches!(MatmulPlan::new(empty, &PlanOptions::default()), Err(PlanError::Shape(_))));
}

#[test]
fn a_cache_keeps_the_plans_used_last() {
    let cache = PlanCache::new(2);
    let options = PlanOptions::default();
    let shape = |rows| MatmulShape { rows, inner: 64, outputs: 64, precision: Precision::Int8 };
    let first = cache.plan(shape(1), &options).expect("planned");
    cache.plan(shape(2), &options).expect("planned");
    assert!(std::sync::Arc::ptr_eq(&first, &cache.plan(shape(1), &options).expect("planned")));
    cache.plan(shape(3), &options).expect("planned");
    assert_eq!(cache.len(), 2);
    assert!(std::sync::Arc::ptr_eq(&first, &cache.plan(shape(1), &options).expect("planned")));
}
