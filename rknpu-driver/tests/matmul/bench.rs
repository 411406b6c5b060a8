//! A simulated machine with a product's four buffers, and the comparison with the scalar result.

use std::sync::Arc;

use half::f16;
use rknpu_driver::layout::weights;
use rknpu_driver::oracle::{Generator, matmul_f16, matmul_int};
use rknpu_driver::plan::{MatmulPlan, PlanOptions};
use rknpu_driver::regcmd::ProgramOptions;
use rknpu_driver::shape::{MatmulShape, Precision};
use rknpu_driver::sim::{Backing, Kick, Machine, Memory, Options};

/// Where the bases of a plan lie in the simulated address space: far apart, in their order, commands last.
const BASES: [u32; 4] = [0x1000_0000, 0x6000_0000, 0x8000_0000, 0xe000_0000];
const COMMANDS: u32 = 0xf000_0000;

/// A product on a machine of its own.
pub(crate) struct Bench {
    machine: Machine,
    memory: Memory,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let options = Options::default();
        Bench { memory: Memory::new(options.unwritten), machine: Machine::new(options) }
    }

    /// Runs a plan over packed operands and returns the output buffer; the work counted must be the work
    /// planned. Cores start as after a reset, so that no register is left over from another product.
    pub(crate) fn run(
        &self,
        plan: &MatmulPlan,
        tiles: &[u8],
        input: &[u8],
        per_channel: &[u8],
    ) -> Result<Vec<u8>, String> {
        let (program, chains) = plan.program(ProgramOptions::default()).expect("laid out");
        let commands = program.bind(&BASES, COMMANDS).expect("bound");
        let output = Backing::new(plan.output_bytes()).expect("memory");
        let output = Arc::new(output);
        let mut mapped = vec![BASES[2]];
        self.memory.map(BASES[2], Arc::clone(&output)).expect("mapped");
        for (at, bytes) in
            [(BASES[0], tiles), (BASES[1], input), (BASES[3], per_channel), (COMMANDS, &commands[..])]
        {
            if bytes.is_empty() {
                continue;
            }
            let backing = Backing::new(bytes.len()).expect("memory");
            backing.copy_in(0, bytes);
            backing.mark_written(0..bytes.len());
            self.memory.map(at, Arc::new(backing)).expect("mapped");
            mapped.push(at);
        }
        let kicks: Vec<(usize, Kick)> = chains
            .into_iter()
            .enumerate()
            .map(|(core, range)| {
                let tasks = &program.tasks()[range];
                let kick = Kick::new(COMMANDS + tasks[0].offset, tasks[0].words, tasks.len() as u32, 0x300);
                (core, kick)
            })
            .collect();
        for &(core, _) in &kicks {
            self.machine.reset(core);
        }
        let reports = self.machine.run_chains(&self.memory, &kicks);
        for at in mapped {
            self.memory.unmap(at);
        }
        let mut work = Vec::with_capacity(reports.len());
        for (core, report) in reports.into_iter().enumerate() {
            work.push(
                report
                    .map_err(|stopped| format!("{}: core {core}: {}", plan.shape(), chain(&*stopped)))?
                    .work(),
            );
        }
        if work != plan.work() {
            return Err(format!("{}: work counted {work:?}, planned {:?}", plan.shape(), plan.work()));
        }
        let mut bytes = vec![0; plan.output_bytes()];
        output.copy_out(0, &mut bytes);
        Ok(bytes)
    }

    /// Computes a product of seeded values and compares; says what differs first.
    pub(crate) fn check(
        &self,
        shape: MatmulShape,
        options: &PlanOptions,
        values: &mut Values,
    ) -> Result<(), String> {
        let plan = MatmulPlan::new(shape, options).map_err(|error| error.to_string())?;
        let wrong = |index: usize, got: String, expected: String| {
            let (m, n) = (index / shape.outputs, index % shape.outputs);
            format!("{shape}: row {m}, column {n} is {got}, not {expected}; {:?}", plan.choice())
        };
        let mut tiles = vec![0; plan.weight_bytes()];
        let mut input = vec![0; plan.input_bytes()];
        let (a_len, w_len) = (shape.rows * shape.inner, shape.outputs * shape.inner);
        let len = shape.rows * shape.outputs;
        if shape.precision == Precision::Fp16 {
            let (a, w) = (values.fp16(a_len), values.fp16(w_len));
            weights::pack_f16(shape.outputs, shape.inner, &w, &mut tiles);
            plan.pack_input_f16(&a, shape.inner, &mut input);
            let output = self.run(&plan, &tiles, &input, &[])?;
            let mut out = vec![0.0; len];
            plan.read_output_f32(&output, &mut out, shape.outputs);
            let expected = matmul_f16(&shape, &a, &w, &plan.slice_columns());
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
            return match out.iter().zip(&expected).position(|pair| !same(pair)) {
                Some(index) => Err(wrong(index, out[index].to_string(), expected[index].to_string())),
                None => Ok(()),
            };
        }
        let (a, w) = (values.integers(a_len, shape.precision), values.integers(w_len, shape.precision));
        match shape.precision {
            Precision::Int4 => weights::pack_i4(shape.outputs, shape.inner, &w, &mut tiles),
            Precision::Int8 | Precision::Fp16 => weights::pack_i8(shape.outputs, shape.inner, &w, &mut tiles),
        }
        plan.pack_input_i8(&a, shape.inner, &mut input);
        let output = self.run(&plan, &tiles, &input, &[])?;
        let mut out = vec![0; len];
        plan.read_output_i32(&output, &mut out, shape.outputs);
        let expected = matmul_int(&shape, &a, &w);
        match out.iter().zip(&expected).position(|(a, b)| a != b) {
            Some(index) => Err(wrong(index, out[index].to_string(), expected[index].to_string())),
            None => Ok(()),
        }
    }
}

/// An error and everything behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Where values come from.
pub(crate) enum Values {
    /// Seeded.
    Random(Generator),
    /// The value of the format whose products are largest, everywhere.
    Extreme,
}

impl Values {
    fn fp16(&mut self, len: usize) -> Vec<f16> {
        match self {
            Values::Random(random) => random.fp16(len),
            Values::Extreme => vec![f16::from_f32(-2.0); len],
        }
    }

    fn integers(&mut self, len: usize, precision: Precision) -> Vec<i8> {
        match (self, precision) {
            (Values::Random(random), Precision::Int4) => random.int4(len),
            (Values::Random(random), Precision::Int8 | Precision::Fp16) => random.int8(len),
            (Values::Extreme, Precision::Int4) => vec![-8; len],
            (Values::Extreme, Precision::Int8 | Precision::Fp16) => vec![-128; len],
        }
    }
}
