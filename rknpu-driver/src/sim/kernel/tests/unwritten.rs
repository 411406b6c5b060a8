//! Memory that nobody wrote, through a [`Device`]: allocating, syncing and looking at other buffers do not make it written.

use std::time::Duration;

use super::*;
use crate::buffer::BufferKind;
use crate::device::DomainId;
use crate::error::JobError;
use crate::job::JobBuffer;
use crate::plan::Operands;
use crate::sim::Simulation;

const BOTH: [Interface; 2] = [Interface::Vendor, Interface::Rocket];

fn why_it_stopped(simulation: &Simulation) -> String {
    match simulation {
        Simulation::Vendor(node) => node.last_stop(),
        Simulation::Rocket(node) => node.last_stop(),
    }
    .unwrap_or_default()
}

#[test]
fn an_input_that_was_never_written_stops_the_job_and_one_of_zeros_does_not() {
    for interface in BOTH {
        let simulation = Simulation::new(config(interface, ""));
        let device = simulation.device().unwrap();
        let product = Product::new(5, 96, 64, 1);
        let make = |bytes: usize| device.allocate(DomainId(0), bytes, BufferKind::Data).unwrap();
        let weights = make(product.weights.len());
        weights.write(..).unwrap().copy_from_slice(&product.weights);
        let weights = JobBuffer::Sealed(weights.seal().unwrap());
        let (input, output) = (make(product.input.len()), make(product.plan.output_bytes()));
        let operands = Operands {
            weights: (weights, 0),
            input: (input.clone(), 0),
            output: (output.clone(), 0),
            per_channel: None,
        };
        let bound = product.plan.bind(&device, &operands, Duration::from_millis(300)).unwrap();
        let error = device.run(&[bound.job()]).unwrap_err();
        assert!(matches!(error, JobError::TimedOut { .. }), "{interface:?}: {error}");
        let why = why_it_stopped(&simulation);
        assert!(why.contains("never written"), "{interface:?}: {why}");
        device.reset().unwrap();

        input.write(..).unwrap().fill(0);
        device.run(&[bound.job()]).unwrap();
        let mut out = vec![1; product.want.len()];
        product.plan.read_output_i32(&output.read(..).unwrap(), &mut out, 64);
        assert!(out.iter().all(|value| *value == 0), "{interface:?}");
    }
}
