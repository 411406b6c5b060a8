//! Rockchip's driver.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::plan::Limits;
use crate::sim::faults::Fault;
use crate::sim::kernel::{Usage, VendorFile, VendorNode};
use crate::uapi::vendor::*;
use crate::uapi::{Errno, VendorKernel};

const DATA: u32 = RKNPU_MEM_NON_CONTIGUOUS | RKNPU_MEM_CACHEABLE | RKNPU_MEM_IOMMU;

fn open(faults: &str) -> (Arc<VendorNode>, VendorFile) {
    let node = VendorNode::new(&config(Interface::Vendor, faults));
    let file = node.open().unwrap();
    (node, file)
}

fn make(file: &VendorFile, bytes: usize, flags: u32, domain: i32) -> rknpu_mem_create {
    let mut create =
        rknpu_mem_create { flags, size: bytes as u64, iommu_domain_id: domain, ..Default::default() };
    file.mem_create(&mut create).unwrap();
    create
}

fn fill(file: &VendorFile, memory: &rknpu_mem_create, bytes: &[u8]) {
    file.node().object(memory.obj_addr).unwrap().backing.copy_in(0, bytes);
    let (obj_addr, size) = (memory.obj_addr, memory.size);
    let mut sync = rknpu_mem_sync { flags: RKNPU_MEM_SYNC_TO_DEVICE, obj_addr, size, ..Default::default() };
    if memory.flags & RKNPU_MEM_CACHEABLE != 0 {
        file.mem_sync(&mut sync).unwrap();
    }
}

fn bytes(file: &VendorFile, memory: &rknpu_mem_create, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file.node().object(memory.obj_addr).unwrap().backing.copy_out(0, &mut bytes);
    bytes
}

/// A product in buffers of a domain.
struct Loaded {
    product: Product,
    output: rknpu_mem_create,
    tasks: rknpu_mem_create,
    submit: rknpu_submit,
    memory: Vec<rknpu_mem_create>,
}

impl Loaded {
    fn new(file: &VendorFile, product: Product, domain: i32) -> Self {
        let (program, ranges) = product.program(Chaining::Linked);
        let weights = make(file, product.weights.len(), DATA, domain);
        let input = make(file, product.input.len(), DATA, domain);
        let output = make(file, product.plan.output_bytes(), DATA, domain);
        let commands = make(file, program.len(), RKNPU_MEM_NON_CONTIGUOUS, domain);
        let tasks = make(file, program.tasks().len() * 40, RKNPU_MEM_KERNEL_MAPPING, domain);
        fill(file, &weights, &product.weights);
        fill(file, &input, &product.input);
        let bases = [weights.dma_addr as u32, input.dma_addr as u32, output.dma_addr as u32, 0];
        fill(file, &commands, &program.bind(&bases, commands.dma_addr as u32).unwrap());
        let structs: Vec<u8> = program.tasks().iter().flat_map(|task| task_bytes(task, &commands)).collect();
        fill(file, &tasks, &structs);
        let cores = ranges.len();
        let mut submit = rknpu_submit {
            flags: RKNPU_JOB_PC | RKNPU_JOB_PINGPONG,
            timeout: 1000,
            task_number: program.tasks().len() as u32,
            task_obj_addr: tasks.obj_addr,
            iommu_domain_id: domain as u32,
            core_mask: (1 << cores) - 1,
            fence_fd: -1,
            ..Default::default()
        };
        for (core, range) in ranges.iter().enumerate() {
            let part = rknpu_subcore_task { task_start: range.start as u32, task_number: range.len() as u32 };
            submit.subcore_task[if cores == 3 { core + 2 } else { core }] = part;
        }
        Self { product, output, tasks, submit, memory: vec![weights, input, output, commands, tasks] }
    }

    fn is_right(&self, file: &VendorFile) -> bool {
        self.product.is_result(&bytes(file, &self.output, self.product.plan.output_bytes()))
    }
}

fn task_bytes(task: &crate::regcmd::ProgramTask, commands: &rknpu_mem_create) -> Vec<u8> {
    let address = commands.dma_addr + u64::from(task.offset);
    let words = [0, 0, task.enable, task.interrupt_mask, 0x1ffff, 0, task.words, 0, address as u32, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn one_two_and_three_cores_give_the_product() {
    let (node, file) = open("");
    for cores in 1..=3 {
        let loaded = Loaded::new(&file, Product::new(8, 256, 512, cores), 0);
        let mut submit = loaded.submit;
        file.submit(&mut submit).unwrap();
        assert_eq!(submit.task_counter, submit.task_number, "{cores} cores");
        assert!(
            submit.hw_elapse_time > 100_000,
            "a submission alone takes 167 µs: {}",
            submit.hw_elapse_time
        );
        assert!(loaded.is_right(&file), "{cores} cores");
        let work = file.take_simulated().unwrap();
        assert_eq!(work.chains.len(), loaded.product.plan.cores());
        assert_eq!(work.elapsed.as_nanos() as i64, submit.hw_elapse_time);
        let status = bytes(&file, &loaded.tasks, submit.task_number as usize * 40);
        assert!(status.chunks(40).any(|task| task[20..24] != [0; 4]), "one last task has its status");
    }
    assert!(node.usage().buffers >= 15);
    drop(file);
    assert_eq!(node.usage(), Usage::default());
}

#[test]
fn domains_are_address_spaces_of_their_own() {
    let (_, file) = open("");
    let first = Loaded::new(&file, Product::new(3, 64, 64, 1), 0);
    let second = Loaded::new(&file, Product::new(5, 64, 64, 1), 15);
    assert_eq!(first.memory[0].dma_addr, second.memory[0].dma_addr);
    for loaded in [&first, &second, &first] {
        file.submit(&mut { loaded.submit }).unwrap();
        assert!(loaded.is_right(&file));
        let mut domain = rknpu_action { flags: RKNPU_GET_IOMMU_DOMAIN_ID, value: 0 };
        file.action(&mut domain).unwrap();
        assert_eq!(domain.value, loaded.submit.iommu_domain_id);
    }
}

#[test]
fn a_core_without_a_choice_is_chosen() {
    let (_, file) = open("");
    let loaded = Loaded::new(&file, Product::new(2, 64, 32, 1), 0);
    let mut submit = rknpu_submit { core_mask: 0, ..loaded.submit };
    file.submit(&mut submit).unwrap();
    assert_eq!(submit.core_mask, 1);
    assert!(loaded.is_right(&file));
}

#[test]
fn the_ranges_of_cores_count_and_the_jobs_own_does_not() {
    let (_, file) = open("");
    let loaded = Loaded::new(&file, Product::new(2, 64, 32, 1), 0);
    let mut submit = rknpu_submit { task_start: 999, task_number: 77, ..loaded.submit };
    file.submit(&mut submit).unwrap();
    assert_eq!(submit.task_counter, 77);
    assert!(loaded.is_right(&file));
    let mut empty = loaded.submit;
    empty.subcore_task[0].task_number = 0;
    assert_eq!(file.submit(&mut empty), Err(Errno::ETIMEDOUT));
    let mut beyond = loaded.submit;
    beyond.subcore_task[0].task_start = 200;
    assert_eq!(file.submit(&mut beyond), Err(Errno::EFAULT));
}

#[test]
fn tasks_without_a_kernel_mapping_are_a_wild_pointer() {
    let (_, file) = open("");
    let loaded = Loaded::new(&file, Product::new(2, 64, 32, 1), 0);
    let plain = make(&file, 4096, RKNPU_MEM_NON_CONTIGUOUS, 0);
    let mut submit = rknpu_submit { task_obj_addr: plain.obj_addr, ..loaded.submit };
    assert_eq!(file.submit(&mut submit), Err(Errno::EFAULT));
    submit.task_obj_addr = 0xdead_beef;
    assert_eq!(file.submit(&mut submit), Err(Errno::EFAULT));
    submit.task_obj_addr = 0;
    assert_eq!(file.submit(&mut submit), Err(Errno::EINVAL));
}

#[test]
fn a_stream_that_the_machine_refuses_hangs_its_core_and_says_why() {
    let (node, file) = open("");
    let loaded = Loaded::new(&file, Product::new(2, 64, 32, 1), 0);
    let mut weights = rknpu_mem_destroy {
        handle: loaded.memory[0].handle,
        obj_addr: loaded.memory[0].obj_addr,
        ..Default::default()
    };
    file.mem_destroy(&mut weights).unwrap();
    let mut submit = loaded.submit;
    assert_eq!(file.submit(&mut submit), Err(Errno::ETIMEDOUT));
    assert_eq!(submit.task_counter, 0);
    let why = node.last_stop().unwrap();
    assert!(why.contains("no buffer is mapped"), "{why}");
}

#[test]
fn hangs_end_in_a_reset_and_the_next_job_is_right() {
    for fault in ["timeout@1", "status@1", "interrupt@1"] {
        for cores in [1, 3] {
            let (node, file) = open(fault);
            let loaded = Loaded::new(&file, Product::new(8, 256, 512, cores), 0);
            let mut submit = loaded.submit;
            assert_eq!(file.submit(&mut submit), Err(Errno::ETIMEDOUT), "{fault}");
            assert_eq!(node.faults().total(), 1);
            assert!(!loaded.is_right(&file) || fault != "timeout@1");
            file.submit(&mut { loaded.submit }).unwrap();
            assert!(loaded.is_right(&file), "{fault}");
            assert_eq!(node.usage().jobs, 0);
        }
    }
}

#[test]
fn a_bit_flip_is_one_bit_and_silent() {
    for seed in 0..20 {
        let (node, file) = open(&format!("seed={seed},flip@2"));
        let loaded = Loaded::new(&file, Product::new(8, 64, 64, 1 + seed % 3), 0);
        let length = loaded.product.plan.output_bytes();
        file.submit(&mut { loaded.submit }).unwrap();
        let right = bytes(&file, &loaded.output, length);
        file.submit(&mut { loaded.submit }).unwrap();
        let flipped = bytes(&file, &loaded.output, length);
        let bits: u32 = right.iter().zip(&flipped).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!((bits, node.faults().injected(Fault::BitFlip)), (1, 1), "seed {seed}");
    }
}

#[test]
fn a_device_that_is_gone_stays_gone_until_reopened_or_for_ever() {
    for (fault, again) in [("gone@1", Ok(())), ("dead@1", Err(Errno::ENODEV))] {
        let (node, file) = open(fault);
        let loaded = Loaded::new(&file, Product::new(2, 64, 32, 1), 0);
        assert_eq!(file.submit(&mut { loaded.submit }), Err(Errno::ENODEV));
        assert_eq!(file.version().unwrap_err(), Errno::ENODEV);
        assert_eq!(file.mmap(0, 1).unwrap_err(), Errno::ENODEV);
        assert_eq!(file.reopen().map(drop), again);
        if again.is_ok() {
            let file = node.open().unwrap();
            let loaded = Loaded::new(&file, Product::new(2, 64, 32, 1), 0);
            file.submit(&mut { loaded.submit }).unwrap();
            assert!(loaded.is_right(&file));
        }
        drop(file);
        assert_eq!(node.usage(), Usage::default());
    }
}

#[test]
fn allocations_fail_by_plan() {
    let (node, file) = open("nomem@2");
    make(&file, 1, DATA, 0);
    let mut create = rknpu_mem_create { flags: DATA, size: 1, ..Default::default() };
    assert_eq!(file.mem_create(&mut create), Err(Errno::ENOMEM));
    make(&file, 1, DATA, 0);
    assert_eq!((node.usage().buffers, node.usage().bytes), (2, 8192));
}

#[test]
fn a_job_that_nobody_waits_for_runs_all_the_same() {
    let (node, file) = open("");
    let loaded = Loaded::new(&file, Product::new(8, 256, 256, 1), 0);
    let mut submit = loaded.submit;
    submit.flags |= RKNPU_JOB_NONBLOCK;
    file.submit(&mut submit).unwrap();
    // A blocking job on the same core waits for it.
    while node.usage().jobs > 0 {
        std::thread::yield_now();
    }
    assert!(loaded.is_right(&file));
}

#[test]
fn a_hung_job_that_nobody_waits_for_keeps_its_core_until_a_reset() {
    let (node, file) = open("timeout@1");
    let loaded = Loaded::new(&file, Product::new(8, 256, 256, 1), 0);
    let mut left = loaded.submit;
    left.flags |= RKNPU_JOB_NONBLOCK;
    file.submit(&mut left).unwrap();
    while node.usage().jobs > 0 {
        std::thread::yield_now();
    }
    assert_eq!(file.submit(&mut { loaded.submit }), Err(Errno::EINVAL));
    file.action(&mut rknpu_action { flags: RKNPU_ACT_RESET, value: 0 }).unwrap();
    file.submit(&mut { loaded.submit }).unwrap();
    assert!(loaded.is_right(&file));
}

#[test]
fn a_job_longer_than_its_time_out_is_one_that_hangs() {
    let (_, file) = open("");
    let loaded = Loaded::new(&file, Product::new(64, 1024, 1024, 1), 0);
    let mut submit = rknpu_submit { timeout: 0, ..loaded.submit };
    assert_eq!(file.submit(&mut submit), Err(Errno::ETIMEDOUT));
    let mut submit = rknpu_submit { timeout: 100, ..loaded.submit };
    file.submit(&mut submit).unwrap();
    assert!(Duration::from_nanos(submit.hw_elapse_time as u64) < Duration::from_millis(100));
}

#[test]
fn a_chain_that_outlasts_its_time_out_is_not_computed_to_its_end() {
    let (node, file) = open("");
    let limits = Limits { outputs: 32, ..Limits::default() };
    let product = Product::planned(1, 32, 1000 * 32, &PlanOptions { limits, ..PlanOptions::default() });
    let loaded = Loaded::new(&file, product, 0);
    let mut submit = rknpu_submit { timeout: 1, ..loaded.submit };
    assert_eq!(file.submit(&mut submit), Err(Errno::ETIMEDOUT));
    assert!((1..1000).contains(&submit.task_counter), "{} tasks", submit.task_counter);
    let why = node.last_stop().unwrap();
    assert!(why.contains("still running after 1ms"), "{why}");
    // A job that nobody waits for is not timed.
    let flags = submit.flags | RKNPU_JOB_NONBLOCK;
    file.submit(&mut rknpu_submit { timeout: 1, flags, ..loaded.submit }).unwrap();
    while node.usage().jobs > 0 {
        std::thread::yield_now();
    }
    assert!(loaded.is_right(&file));
}

#[test]
fn more_tasks_than_the_counter_holds_are_committed_in_slices() {
    let (_, file) = open("");
    let limits = Limits { outputs: 32, ..Limits::default() };
    let product = Product::planned(1, 32, 4100 * 32, &PlanOptions { limits, ..PlanOptions::default() });
    assert_eq!(product.plan.task_count(), 4100);
    let loaded = Loaded::new(&file, product, 0);
    let mut submit = loaded.submit;
    file.submit(&mut submit).unwrap();
    assert!(loaded.is_right(&file));
    // The status is written to the last task of the last slice.
    let tasks = bytes(&file, &loaded.tasks, 4100 * 40);
    let with_status: Vec<_> = (0..4100).filter(|task| tasks[task * 40 + 20..][..4] != [0; 4]).collect();
    assert_eq!(with_status, [4099]);
}

#[test]
fn dma_bufs_lead_back_to_their_object() {
    let (_, file) = open("");
    let memory = make(&file, 5000, DATA, 0);
    let exported = file.export_dma_buf(memory.handle).unwrap();
    use std::os::fd::AsFd;
    assert_eq!(file.import_dma_buf(exported.as_fd()), Ok(memory.handle));
    let other = file.node().open().unwrap();
    let handle = other.import_dma_buf(exported.as_fd()).unwrap();
    let mut found = rknpu_mem_create { handle, ..Default::default() };
    other.mem_create(&mut found).unwrap();
    assert_eq!((found.dma_addr, found.size), (memory.dma_addr, 8192));
    assert_eq!(other.import_dma_buf(std::io::stdin().as_fd()), Err(Errno::EINVAL));
    assert_eq!(other.export_dma_buf(99).map(drop), Err(Errno::ENOENT));
}

#[test]
fn questions_are_answered_as_the_driver_answers() {
    let (_, file) = open("");
    let ask = |flags, value| {
        let mut action = rknpu_action { flags, value };
        file.action(&mut action).map(|()| action.value)
    };
    assert_eq!(ask(RKNPU_GET_DRV_VERSION, 0), Ok(908));
    assert_eq!(ask(RKNPU_GET_HW_VERSION, 0), Ok(0x4649_5245));
    assert_eq!(ask(RKNPU_GET_IOMMU_EN, 0), Ok(1));
    assert_eq!(ask(RKNPU_GET_TOTAL_SRAM_SIZE, 5), Ok(0));
    assert_eq!(ask(RKNPU_GET_FREQ, 0), Ok(1_000_000_000));
    for amount in 13..=17 {
        assert_eq!(ask(amount, 4711), Ok(4711), "no counters, and no error");
    }
    for refused in [3, 5, 7, 8, 9, 10, 11, 12, 20, 21, 26, u32::MAX] {
        assert_eq!(ask(refused, 0), Err(Errno::EINVAL), "{refused}");
    }
    assert_eq!(ask(25, 3), Ok(3));
    assert_eq!(ask(RKNPU_GET_IOMMU_DOMAIN_ID, 0), Ok(3));
    assert_eq!(ask(25, 16), Err(Errno::EINVAL));
}
