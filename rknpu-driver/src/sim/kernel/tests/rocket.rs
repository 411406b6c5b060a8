//! Mainline's driver.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::*;
use crate::regcmd::ProgramTask;
use crate::sim::kernel::{RocketFile, RocketNode, Usage};
use crate::uapi::rocket::*;
use crate::uapi::{Errno, RocketKernel};

/// How long a job can be seen to hang: a test that the host held up for so long sees it over.
const HUNG: Duration = Duration::from_millis(JOB_TIMEOUT_MS);
/// Words of a task's tail.
const TAIL: u32 = 4;

fn open(faults: &str) -> (Arc<RocketNode>, RocketFile) {
    let node = RocketNode::new(&config(Interface::Rocket, faults));
    let file = node.open().unwrap();
    (node, file)
}

fn make(file: &RocketFile, bytes: usize) -> drm_rocket_create_bo {
    let mut create = drm_rocket_create_bo { size: bytes as u32, ..Default::default() };
    file.create_bo(&mut create).unwrap();
    create
}

fn fill(file: &RocketFile, object: &drm_rocket_create_bo, bytes: &[u8]) {
    file.object(object.handle).unwrap().backing.copy_in(0, bytes);
    file.fini_bo(&mut drm_rocket_fini_bo { handle: object.handle, reserved: 0 }).unwrap();
}

fn prepare(file: &RocketFile, handle: u32, from_now_ms: i64) -> Result<(), Errno> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    let timeout_ns = now.tv_sec() * 1_000_000_000 + now.tv_nsec() + from_now_ms * 1_000_000;
    file.prep_bo(&mut drm_rocket_prep_bo { handle, reserved: 0, timeout_ns })
}

struct Loaded {
    product: Product,
    tasks: Vec<drm_rocket_task>,
    reads: Vec<u32>,
    output: drm_rocket_create_bo,
}

impl Loaded {
    fn new(file: &RocketFile, product: Product) -> Self {
        let (program, _) = product.program(Chaining::Separate);
        let weights = make(file, product.weights.len());
        let input = make(file, product.input.len());
        let output = make(file, product.plan.output_bytes());
        let commands = make(file, program.len());
        fill(file, &weights, &product.weights);
        fill(file, &input, &product.input);
        let bases = [&weights, &input, &output].map(|object| object.dma_address as u32);
        let bytes = program.bind(&[bases[0], bases[1], bases[2], 0], commands.dma_address as u32).unwrap();
        fill(file, &commands, &bytes);
        let task = |task: &ProgramTask| drm_rocket_task {
            regcmd: commands.dma_address as u32 + task.offset,
            regcmd_count: task.words + TAIL,
        };
        let tasks = program.tasks().iter().map(task).collect();
        Self { product, tasks, reads: vec![weights.handle, input.handle, commands.handle], output }
    }

    fn submit(&self, file: &RocketFile) {
        file.submit(&self.tasks, &self.reads, &[self.output.handle]).unwrap();
    }

    fn wait(&self, file: &RocketFile) -> Result<(), Errno> {
        prepare(file, self.output.handle, 60_000)
    }

    fn output(&self, file: &RocketFile) -> Vec<u8> {
        let mut bytes = vec![0; self.product.plan.output_bytes()];
        file.object(self.output.handle).unwrap().backing.copy_out(0, &mut bytes);
        bytes
    }

    fn is_right(&self, file: &RocketFile) -> bool {
        self.product.is_result(&self.output(file))
    }
}

#[test]
fn every_descriptor_has_its_space_and_its_queue() {
    let (node, first) = open("");
    let files = [first, node.open().unwrap(), node.open().unwrap()];
    let loaded: Vec<_> =
        (0..3).map(|n| Loaded::new(&files[n], Product::new(4 + n, 256, 128 * (n + 1), 1))).collect();
    assert!(loaded.iter().all(|loaded| loaded.reads[0] == 1));
    for _ in 0..3 {
        for (file, loaded) in files.iter().zip(&loaded) {
            loaded.submit(file);
        }
        for (file, loaded) in files.iter().zip(&loaded) {
            loaded.wait(file).unwrap();
            assert!(loaded.is_right(file));
        }
    }
    let work = files[2].take_simulated().unwrap();
    let tasks: usize = work.chains.iter().map(Vec::len).sum();
    assert_eq!(tasks, 3 * loaded[2].tasks.len());
    drop(files);
    assert_eq!(node.usage(), Usage::default());
}

#[test]
fn the_first_object_lies_at_address_0() {
    let (_, file) = open("");
    assert_eq!(make(&file, 1).dma_address, 0);
    assert_eq!(make(&file, 5000).dma_address, 4096);
    assert_eq!(make(&file, 1).dma_address, 3 * 4096);
    let mut rest = drm_rocket_create_bo { size: u32::MAX, ..Default::default() };
    assert_eq!(file.create_bo(&mut rest), Err(Errno::ENOSPC));
    assert_eq!(file.create_bo(&mut drm_rocket_create_bo::default()), Err(Errno::EINVAL));
}

#[test]
fn what_is_wrong_with_a_job_is_passed_over_in_silence() {
    let (node, file) = open("");
    let loaded = Loaded::new(&file, Product::new(4, 64, 64, 1));
    let output = loaded.output.handle;
    let mut both = loaded.reads.clone();
    both.push(output);
    let no_words = [drm_rocket_task { regcmd_count: 0, ..loaded.tasks[0] }];
    for (tasks, reads) in [
        (&loaded.tasks[..], &both[..]),
        (&[], &loaded.reads),
        (&no_words, &loaded.reads),
        (&loaded.tasks, &[99]),
    ] {
        file.submit(tasks, reads, &[output]).unwrap();
        prepare(&file, output, 0).unwrap();
        assert_eq!(loaded.output(&file), vec![0; loaded.product.plan.output_bytes()]);
    }
    assert_eq!(node.faults().jobs, 0);
    loaded.submit(&file);
    loaded.wait(&file).unwrap();
    assert!(loaded.is_right(&file));
}

#[test]
fn waiting_for_what_is_only_read_does_not_wait() {
    let (node, file) = open("timeout@1");
    let loaded = Loaded::new(&file, Product::new(4, 64, 64, 1));
    let began = Instant::now();
    loaded.submit(&file);
    while node.usage().jobs > 0 {
        std::thread::yield_now();
    }
    // A moment of the past: only what is not written to is ready.
    let past = |handle| file.prep_bo(&mut drm_rocket_prep_bo { handle, reserved: 0, timeout_ns: 1 });
    assert_eq!(past(loaded.reads[0]), Ok(()));
    let waited = past(loaded.output.handle);
    assert!(waited == Err(Errno::EBUSY) || began.elapsed() >= HUNG, "{waited:?}");
    loaded.wait(&file).unwrap();
    assert_eq!(past(loaded.output.handle), Ok(()));
}

#[test]
fn a_hang_ends_after_half_a_second_as_if_all_were_well() {
    for fault in ["timeout@1", "status@1", "interrupt@1"] {
        let (node, file) = open(fault);
        let loaded = Loaded::new(&file, Product::new(4, 64, 64, 1));
        let began = Instant::now();
        loaded.submit(&file);
        while node.usage().jobs > 0 {
            std::thread::yield_now();
        }
        let waited = prepare(&file, loaded.output.handle, 100);
        assert!(
            waited == Err(Errno::ETIMEDOUT) || began.elapsed() >= HUNG - Duration::from_millis(100),
            "{waited:?}"
        );
        assert_eq!(loaded.wait(&file), Ok(()), "{fault}");
        assert!(!loaded.is_right(&file) || fault != "timeout@1");
        assert!(file.take_simulated().unwrap().elapsed.as_millis() >= 500);
        loaded.submit(&file);
        loaded.wait(&file).unwrap();
        assert!(loaded.is_right(&file));
        assert_eq!(node.faults().total(), 1);
    }
}

#[test]
fn a_hang_leaves_the_later_tasks_of_its_job_undone() {
    for seed in 0..8 {
        let (node, file) = open(&format!("seed={seed},timeout@1"));
        let loaded = Loaded::new(&file, Product::new(2, 64, 20_000, 1));
        assert!(loaded.tasks.len() > 1);
        loaded.submit(&file);
        loaded.wait(&file).unwrap();
        assert!(!loaded.is_right(&file));
        let done: usize = file.take_simulated().unwrap().chains.iter().map(Vec::len).sum();
        assert!(done < loaded.tasks.len(), "{done} of {}", loaded.tasks.len());
        assert_eq!(node.usage().jobs, 0);
    }
}

#[test]
fn closed_objects_live_as_long_as_the_jobs_that_use_them() {
    let (node, file) = open("");
    let loaded = Loaded::new(&file, Product::new(64, 512, 512, 1));
    loaded.submit(&file);
    for handle in &loaded.reads {
        file.gem_close(*handle).unwrap();
        assert_eq!(file.gem_close(*handle), Err(Errno::EINVAL));
    }
    loaded.wait(&file).unwrap();
    assert!(loaded.is_right(&file));
    assert_eq!(node.usage().buffers, 1);
}

#[test]
fn a_closed_descriptors_jobs_end_and_its_memory_goes() {
    let (node, file) = open("");
    let loaded = Loaded::new(&file, Product::new(64, 512, 512, 1));
    loaded.submit(&file);
    drop(file);
    while node.usage() != Usage::default() {
        std::thread::yield_now();
    }
}

#[test]
fn an_imported_object_is_the_exporters() {
    use std::os::fd::AsFd;
    let (node, file) = open("");
    make(&file, 4096);
    let object = make(&file, 4096);
    let exported = file.export_dma_buf(object.handle).unwrap();
    let other = node.open().unwrap();
    let handle = other.import_dma_buf(exported.as_fd()).unwrap();
    assert_eq!(other.object(handle).unwrap().iova, 4096);
    assert_eq!(node.usage().buffers, 2);
    assert_eq!(make(&other, 1).dma_address, 0);
}

#[test]
fn a_device_that_is_gone_stays_gone_until_reopened_or_for_ever() {
    for (fault, again) in [("gone@1", Ok(())), ("dead@1", Err(Errno::ENODEV))] {
        let (node, file) = open(fault);
        let loaded = Loaded::new(&file, Product::new(4, 64, 64, 1));
        let submitted = file.submit(&loaded.tasks, &loaded.reads, &[loaded.output.handle]);
        assert_eq!(submitted, Err(Errno::ENODEV));
        assert_eq!(loaded.wait(&file), Err(Errno::ENODEV));
        assert_eq!(file.reopen().map(drop), again);
        drop(file);
        assert_eq!(node.usage(), Usage::default());
    }
}
