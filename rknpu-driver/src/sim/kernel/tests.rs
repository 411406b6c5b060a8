//! Both models at the level of kernel calls, with products of the planner as their jobs.

mod rocket;
mod unwritten;
mod vendor;

use super::SimConfig;
use crate::device::Interface;
use crate::layout::weights::pack_i8;
use crate::oracle::{Generator, matmul_int};
use crate::plan::{MatmulPlan, PlanOptions};
use crate::regcmd::{Chaining, Program, ProgramOptions};
use crate::shape::{MatmulShape, Precision};

/// An int8 product: operands packed, results known.
struct Product {
    plan: MatmulPlan,
    input: Vec<u8>,
    weights: Vec<u8>,
    want: Vec<i32>,
}

impl Product {
    fn new(rows: usize, inner: usize, outputs: usize, cores: usize) -> Self {
        Self::planned(rows, inner, outputs, &PlanOptions { cores, ..PlanOptions::default() })
    }

    fn planned(rows: usize, inner: usize, outputs: usize, options: &PlanOptions) -> Self {
        let shape = MatmulShape::new(rows, inner, outputs, Precision::Int8).unwrap();
        let plan = MatmulPlan::new(shape, options).unwrap();
        let mut generator = Generator::new(7);
        let (a, w) = (generator.int8(rows * inner), generator.int8(outputs * inner));
        let (mut input, mut weights) = (vec![0; plan.input_bytes()], vec![0; plan.weight_bytes()]);
        plan.pack_input_i8(&a, inner, &mut input);
        pack_i8(outputs, inner, &w, &mut weights);
        Self { want: matmul_int(&shape, &a, &w), plan, input, weights }
    }

    /// The program, and which of its tasks are whose core's.
    fn program(&self, chaining: Chaining) -> (Program, Vec<std::ops::Range<usize>>) {
        self.plan.program(ProgramOptions { chaining, ..ProgramOptions::default() }).unwrap()
    }

    fn is_result(&self, output: &[u8]) -> bool {
        let mut out = vec![0; self.want.len()];
        self.plan.read_output_i32(output, &mut out, self.plan.shape().outputs);
        out == self.want
    }
}

/// A quiet simulator with these faults.
fn config(interface: Interface, faults: &str) -> SimConfig {
    SimConfig { faults: Some(faults.parse().unwrap()), report: None, ..SimConfig::new(interface) }
}
