//! Over a fake of the vendor's driver.

use nix::errno::Errno;

use super::fake::{Fake, Jobs};
use super::*;
use crate::error::SyncError;
use crate::uapi::vendor;

const DOMAIN: DomainId = DomainId(0);

fn open() -> (Fake, Device) {
    let fake = Fake::default();
    let device = Device::over_vendor(Arc::new(fake.clone())).unwrap();
    (fake, device)
}

#[test]
fn other_drivers_and_versions_are_refused() {
    let refused = |name, version| {
        let fake = Fake::default();
        (fake.world().name, fake.world().version) = (name, version);
        Device::over_vendor(Arc::new(fake)).unwrap_err()
    };
    assert!(
        matches!(refused(Some("panthor"), None), OpenError::OtherDriver { found, .. } if found == "panthor")
    );
    let old = refused(None, Some((0, 8, 2)));
    assert!(matches!(&old, OpenError::Version { found, .. } if found == "0.8.2"));
    assert!(old.to_string().contains("install a kernel"));
    // The two versions disagree.
    assert!(matches!(refused(None, Some((0, 9, 9))), OpenError::Layout { .. }));
    let fake = Fake::default();
    fake.fail("action", Errno::EINVAL);
    assert!(matches!(Device::over_vendor(Arc::new(fake)).unwrap_err(), OpenError::Call { .. }));
}

#[test]
fn the_device_describes_itself() {
    let (_, device) = open();
    let info = device.info();
    assert_eq!((info.interface, info.cores, info.sram_bytes), (Interface::Vendor, 3, 956 << 10));
    assert_eq!(info.hardware_version, Some(0x4649_5245));
    assert_eq!(device.domains().len(), 16);
    assert!(device.domains().iter().all(|domain| domain.cores == CoreMask(7) && domain.bytes == 1 << 32));

    let fake = Fake::default();
    fake.world().no_iommu = true;
    let device = Device::over_vendor(Arc::new(fake.clone())).unwrap();
    assert_eq!(device.domains().len(), 1);
    let buffer = device.allocate(DOMAIN, 1, BufferKind::Data).unwrap();
    let flags = fake.world().memory.values().next().unwrap().flags;
    assert_eq!(flags, vendor::RKNPU_MEM_DMA32 | vendor::RKNPU_MEM_CACHEABLE);
    drop(buffer);
}

#[test]
fn flags_follow_the_kind() {
    let (fake, device) = open();
    let common = vendor::RKNPU_MEM_NON_CONTIGUOUS
        | vendor::RKNPU_MEM_IOMMU
        | vendor::RKNPU_MEM_IOMMU_LIMIT_IOVA_ALIGNMENT
        | vendor::RKNPU_MEM_CACHEABLE;
    let sram = common | vendor::RKNPU_MEM_TRY_ALLOC_SRAM;
    let kinds = [(BufferKind::Data, common), (BufferKind::Commands, common), (BufferKind::Sram, sram)];
    for (kind, flags) in kinds {
        let buffer = device.allocate(DOMAIN, 5000, kind).unwrap();
        let memory: Vec<_> = fake.world().memory.values().map(|it| (it.flags, it.size)).collect();
        assert_eq!(memory, [(flags, 8192)]);
        assert_eq!((buffer.len(), buffer.kind()), (5000, kind));
    }
    // Each came clean and went.
    assert_eq!((fake.count("mem_sync"), fake.count("mem_destroy")), (3, 3));
    assert!(fake.world().memory.is_empty());
}

#[test]
fn allocation_fails_with_its_reason() {
    let (fake, device) = open();
    let allocate = |bytes| device.allocate(DOMAIN, bytes, BufferKind::Data).map(drop);
    assert_eq!(allocate(0), Err(AllocateError::Size(0)));
    assert_eq!(allocate(1 << 32), Err(AllocateError::Size(1 << 32)));
    let other = device.allocate(DomainId(16), 1, BufferKind::Data);
    assert_eq!(other.map(drop), Err(AllocateError::Domain(DomainId(16))));
    fake.fail("mem_create", Errno::ENOMEM);
    assert!(matches!(allocate(1), Err(AllocateError::NoMemory { bytes: 1, .. })));
    // What was made goes back where a later step fails.
    for call in ["mem_map", "mmap", "mem_sync"] {
        fake.fail(call, Errno::EINVAL);
        assert!(matches!(allocate(1), Err(AllocateError::Call { source: Errno::EINVAL, .. })), "{call}");
    }
    for _ in 0..3 {
        fake.fail("mem_create", Errno::EINTR);
    }
    assert_eq!(allocate(1), Ok(()));
    assert!(fake.world().memory.is_empty());
    assert_eq!(device.health(), Health::default());
}

#[test]
fn jobs_run_on_one_to_three_cores() {
    // Which task object writes each atom: objects are in the order of cores, atoms in that of chains.
    on_cores(&[(0, 3)], 1, 0, &[0, 1, 2]);
    on_cores(&[(1, 1)], 2, 1, &[0]);
    on_cores(&[(2, 2)], 4, 2, &[0, 1]);
    on_cores(&[(1, 2), (0, 1)], 3, 0, &[1, 2, 0]);
    on_cores(&[(0, 1), (1, 2), (2, 3)], 7, 2, &[0, 1, 2, 3, 4, 5]);
}

/// Runs chains of tasks twice; `mask` and the first core's `entry` of `subcore_task` are what the kernel must
/// see.
fn on_cores(cores: &[(u8, usize)], mask: u32, entry: usize, writers: &[usize]) {
    let (fake, device) = open();
    let (output, job) = simple(&device, DomainId(3), cores);
    let prepared = prepare(&device, job).unwrap();
    for _ in 0..2 {
        let reports = device.run(&[&prepared]).unwrap();
        assert_eq!(reports[0].elapsed, Duration::from_nanos(1_234_000));
    }
    let submit = fake.world().last_submit;
    assert_eq!((submit.core_mask, submit.iommu_domain_id, submit.timeout), (mask, 3, 200));
    assert_eq!(submit.flags, vendor::RKNPU_JOB_PC | vendor::RKNPU_JOB_PINGPONG);
    assert_eq!(submit.subcore_task[entry].task_start, 0);
    let numbers: u32 = submit.subcore_task.iter().map(|range| range.task_number).sum();
    assert_eq!(numbers, submit.task_number);
    let atoms: Vec<u8> = writers.iter().flat_map(|&task| expected(task)).collect();
    assert_eq!(output.read(..atoms.len()).unwrap()[..], atoms);
    assert_eq!(fake.count("mem_map"), 4, "task objects are built once");
    drop((prepared, output, device));
    assert!(fake.world().memory.is_empty());
}

#[test]
fn a_job_must_be_well_formed() {
    let (_, device) = open();
    let other = Device::over_vendor(Arc::new(Fake::default())).unwrap();
    let refused = |change: &dyn Fn(&mut Job)| {
        let (_, mut job) = simple(&device, DOMAIN, &[(0, 2)]);
        change(&mut job);
        prepare(&device, job).unwrap_err()
    };
    let foreign = device.allocate(DomainId(1), 64, BufferKind::Data).unwrap();
    let of_other = other.allocate(DOMAIN, 64, BufferKind::Data).unwrap();
    let malformed = |error: JobError, text: &str| {
        assert!(matches!(&error, JobError::Malformed(what) if what.contains(text)), "{error}");
    };
    assert_eq!(refused(&|job| job.domain = DomainId(99)), JobError::Domain(DomainId(99)));
    assert_eq!(refused(&|job| job.chains[0].core = CoreId(3)), JobError::Core(CoreId(3)));
    malformed(refused(&|job| job.chains.clear()), "no chain");
    malformed(refused(&|job| job.chains[0].tasks.clear()), "no task");
    malformed(refused(&|job| job.chains.push(job.chains[0].clone())), "two chains");
    malformed(refused(&|job| job.writes.clear()), "writes no buffer");
    malformed(refused(&|job| job.timeout = Duration::ZERO), "time-out");
    malformed(refused(&|job| job.chains[0].tasks[1].offset += 8), "multiple of 16");
    malformed(refused(&|job| job.chains[0].tasks[1].words += 1), "ends at byte");
    malformed(refused(&|job| job.chains[0].tasks[1].words = u32::MAX), "words");
    malformed(refused(&|job| job.chains[0].tasks[1].offset = u32::MAX - 15), "ends at byte");
    malformed(refused(&|job| job.chains[0].tasks[1].interrupt_mask = 0x100), "pairs");
    malformed(refused(&|job| job.reads.push(of_other.clone().into())), "another device");
    assert!(matches!(refused(&|job| job.reads.push(foreign.clone().into())), JobError::ForeignBuffer { .. }));
    let twice: [&dyn Fn(&mut Job); 3] = [
        &|job| job.reads.push(job.writes[0].clone().into()),
        &|job| job.writes.push(job.writes[0].clone()),
        &|job| job.reads.push(job.commands.clone().into()),
    ];
    for change in twice {
        assert!(matches!(refused(change), JobError::ListedTwice { .. }));
    }
    let sealed = refused(&|job| drop(job.writes[0].clone().seal().unwrap()));
    assert!(matches!(sealed, JobError::Sealed { .. }));
    // The destination lies in a buffer that is only read, or in none.
    malformed(refused(&|job| job.reads = vec![job.writes.remove(0).into()]), "no buffer");
    let (_, mut job) = simple(&device, DOMAIN, &[(0, 1)]);
    job.writes = vec![device.allocate(DOMAIN, 64, BufferKind::Data).unwrap()];
    malformed(prepare(&device, job).unwrap_err(), "in no buffer listed as written");
    // Words 1 and 6 of a task of eight: its destination, and one of its tail.
    let with_words = |change: &dyn Fn(&mut [u64], u64)| {
        let (_, job) = simple(&device, DOMAIN, &[(0, 1)]);
        let input = match &job.reads[0] {
            crate::job::JobBuffer::Buffer(buffer) => u64::from(buffer.iova()),
            crate::job::JobBuffer::Sealed(_) => 0,
        };
        let mut bytes = job.commands.write(..).unwrap();
        let mut words: Vec<u64> = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        change(&mut words, input);
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        drop(bytes);
        prepare(&device, job).unwrap_err()
    };
    malformed(with_words(&|words, _| words[1] = 0), "does not say where it writes");
    malformed(with_words(&|words, input| words[6] = 0x1001_0000_0000_4020 | input << 16), "in no buffer");
    // Of 256 bytes: 17 pixels, two lines of nine, and two surfaces of one whose second is beyond.
    let shape = |register: u64, value: u64| 0x1001_0000_0000_0000 | value << 16 | register;
    malformed(with_words(&|words, _| words[2] = shape(0x405c, 16)), "writes 272 bytes");
    malformed(with_words(&|words, _| words[2] = shape(0x405c, 1 << 16 | 8)), "writes 288 bytes");
    malformed(
        with_words(&|words, _| (words[2], words[3]) = (shape(0x4024, 256), shape(0x4058, 31))),
        "writes 272 bytes",
    );
    let (_, mut job) = simple(&device, DOMAIN, &[(0, 1), (1, 1)]);
    job.chains[1].core = CoreId(2);
    assert_eq!(prepare(&device, job).unwrap_err(), JobError::CoreSet(0b101));
}

#[test]
fn commands_written_after_preparing_stop_the_job() {
    let (_, device) = open();
    let (_, job) = simple(&device, DOMAIN, &[(0, 1)]);
    let commands = job.commands.clone();
    let prepared = prepare(&device, job).unwrap();
    drop(commands.write(0..8).unwrap());
    assert_eq!(device.run(&[&prepared]).unwrap_err(), JobError::CommandsChanged);
    assert!(!device.is_faulted());
}

#[test]
fn a_job_that_hangs_keeps_its_memory_until_the_reset() {
    let (fake, device) = open();
    let (output, job) = simple(&device, DOMAIN, &[(0, 1)]);
    let prepared = prepare(&device, job).unwrap();
    fake.set_jobs(Jobs::Hang);
    let after = Duration::from_millis(200);
    assert_eq!(device.run(&[&prepared]).unwrap_err(), JobError::TimedOut { after });
    assert!(device.is_faulted());
    assert_eq!(device.run(&[&prepared]).unwrap_err(), JobError::Faulted(Fault::TimedOut));
    assert_eq!(output.read(..).map(drop), Err(SyncError::Quarantined));
    assert_eq!(output.clone().seal().map(drop), Err(SyncError::Quarantined));
    // Nothing of it goes back while the job may run: the fake would panic.
    drop((prepared, output));
    assert_eq!((device.health().quarantined_jobs, fake.count("mem_destroy")), (1, 0));

    fake.set_jobs(Jobs::Run);
    assert_eq!(device.reset(), Ok(Recovery::Kept));
    assert!(fake.world().memory.is_empty());
    let (output, job) = simple(&device, DOMAIN, &[(0, 1)]);
    let prepared = prepare(&device, job).unwrap();
    device.run(&[&prepared]).unwrap();
    assert_eq!(output.read(..16).unwrap()[..], expected(0));
    let health = device.health();
    assert_eq!((health.fault, health.resets, health.jobs_done, health.jobs_failed), (None, 1, 1, 1));
}

#[test]
fn memory_outlives_a_device_that_cannot_be_reset() {
    for fails in [false, true] {
        let (fake, device) = open();
        let (_, job) = simple(&device, DOMAIN, &[(0, 1)]);
        let prepared = prepare(&device, job).unwrap();
        fake.set_jobs(Jobs::Hang);
        device.run(&[&prepared]).unwrap_err();
        if fails {
            fake.fail("reset", Errno::EIO);
            fake.fail("reopen", Errno::EIO);
        }
        // The fake would panic if memory went back under the job.
        drop((prepared, device));
        assert_eq!(fake.world().memory.is_empty(), !fails);
    }
}

#[test]
fn memory_of_a_stopped_job_can_be_used_after_the_reset() {
    let (fake, device) = open();
    let (output, job) = simple(&device, DOMAIN, &[(0, 1)]);
    let prepared = prepare(&device, job).unwrap();
    fake.set_jobs(Jobs::Hang);
    device.run(&[&prepared]).unwrap_err();
    fake.set_jobs(Jobs::Run);
    device.reset().unwrap();
    device.run(&[&prepared]).unwrap();
    assert_eq!(output.read(..16).unwrap()[..], expected(0));
}

#[test]
fn a_wrong_status_is_never_a_success() {
    for (jobs, text) in [
        (Jobs::Skip, "no interrupt status"),
        (Jobs::ShortCounter, "1 of 2 tasks"),
        (Jobs::Status(0xc00), "0xc00"),
        (Jobs::Status(0x301), "0x301"),
    ] {
        let (fake, device) = open();
        let (_, job) = simple(&device, DOMAIN, &[(0, 2)]);
        let prepared = prepare(&device, job).unwrap();
        fake.set_jobs(jobs);
        let error = device.run(&[&prepared]).unwrap_err();
        assert!(matches!(&error, JobError::WrongStatus { what } if what.contains(text)), "{error}");
        assert_eq!(device.health().fault, Some(Fault::WrongStatus));
        assert_eq!(device.reset(), Ok(Recovery::Kept));
    }
}

#[test]
fn later_jobs_do_not_run_after_a_failure() {
    let (fake, device) = open();
    let (_, first) = simple(&device, DOMAIN, &[(0, 1)]);
    let (_, second) = simple(&device, DOMAIN, &[(0, 1)]);
    let (first, second) = (prepare(&device, first).unwrap(), prepare(&device, second).unwrap());
    fake.fail("submit", Errno::EINVAL);
    let error = device.run(&[&first, &second]).unwrap_err();
    assert_eq!(error, JobError::Call { call: "RKNPU_SUBMIT", source: Errno::EINVAL });
    assert_eq!((fake.count("submit"), device.health().fault), (1, Some(Fault::Call(Errno::EINVAL))));
}

#[test]
fn calls_that_did_nothing_leave_the_device_alone() {
    let (fake, device) = open();
    let (_, job) = simple(&device, DOMAIN, &[(0, 1)]);
    let prepared = prepare(&device, job).unwrap();
    fake.fail("submit", Errno::ENOMEM);
    device.run(&[&prepared]).unwrap_err();
    assert!(!device.is_faulted());
    for _ in 0..5 {
        fake.fail("submit", Errno::EINTR);
    }
    device.run(&[&prepared]).unwrap();
    assert_eq!(fake.count("submit"), 7);
}

#[test]
fn a_reset_that_fails_opens_the_node_anew() {
    let (fake, device) = open();
    let weights = device.allocate(DOMAIN, 64, BufferKind::Data).unwrap();
    weights.write(..).unwrap().fill(7);
    let weights = weights.seal().unwrap();
    let (output, job) = simple(&device, DOMAIN, &[(0, 1)]);
    let prepared = prepare(&device, job).unwrap();
    fake.fail("reset", Errno::EIO);
    fake.fail("reopen", Errno::EACCES);
    let failed = ResetError::Failed { reset: Errno::EIO, reopen: Errno::EACCES };
    assert_eq!(device.reset(), Err(failed));
    fake.fail("reset", Errno::EIO);
    assert_eq!(device.reset(), Ok(Recovery::BuffersLost));
    assert_eq!(fake.world().reopened[0].count("reset"), 1, "the new descriptor carries the reset out");
    assert!(output.is_stale() && weights.is_stale());
    assert_eq!(weights[..], [7; 64], "the CPU still reads what it wrote");
    assert_eq!(device.run(&[&prepared]).unwrap_err(), JobError::Stale(DOMAIN));
    let (_, mut job) = simple(&device, DOMAIN, &[(0, 1)]);
    job.reads.push(weights.clone().into());
    assert_eq!(prepare(&device, job).unwrap_err(), JobError::Stale(DOMAIN));
    let (output, job) = simple(&device, DOMAIN, &[(0, 1)]);
    device.run(&[&prepare(&device, job).unwrap()]).unwrap();
    assert_eq!(output.read(..16).unwrap()[..], expected(0));
}

#[test]
fn a_device_that_is_gone_says_so() {
    let (fake, device) = open();
    let (output, job) = simple(&device, DOMAIN, &[(0, 1)]);
    let prepared = prepare(&device, job).unwrap();
    fake.world().gone = true;
    assert_eq!(device.run(&[&prepared]).unwrap_err(), JobError::Gone);
    assert_eq!(device.run(&[&prepared]).unwrap_err(), JobError::Gone);
    assert_eq!(device.allocate(DOMAIN, 1, BufferKind::Data).map(drop), Err(AllocateError::Gone));
    assert_eq!(device.health().fault, Some(Fault::Gone));
    let failed = ResetError::Failed { reset: Errno::ENODEV, reopen: Errno::ENODEV };
    assert_eq!(device.reset(), Err(failed));
    assert!(device.is_faulted());
    drop(output);
    fake.world().gone = false;
    assert_eq!(device.reset(), Ok(Recovery::Kept));
}

#[test]
fn memory_is_shared_as_dma_bufs() {
    let (fake, device) = open();
    let buffer = device.allocate(DOMAIN, 4096, BufferKind::Data).unwrap();
    buffer.write(..).unwrap().fill(3);
    let other = Fake::default();
    let importer = Device::over_vendor(Arc::new(other.clone())).unwrap();
    #[expect(unsafe_code, reason = "this test has the descriptor, and touches one side at a time")]
    // SAFETY: as below.
    let exported = unsafe { buffer.export() }.unwrap();
    #[expect(unsafe_code, reason = "the exporter is this test, which touches one side at a time")]
    // SAFETY: no guard of the exporting side lives while one of the importing side does, and the memory keeps
    // its length.
    let import = |bytes| unsafe { importer.import(DOMAIN, std::os::fd::AsFd::as_fd(&exported), bytes) };
    assert!(matches!(import(4097), Err(crate::error::ShareError::Memory(AllocateError::Size(4097)))));
    let imported = import(4096).unwrap();
    assert_eq!(imported.read(..).unwrap()[..], [3; 4096]);
    imported.write(0..4).unwrap().fill(9);
    assert_eq!(buffer.read(..5).unwrap()[..], [9, 9, 9, 9, 3]);
    // Imported memory has no CACHEABLE flag: the fake would fail a sync.
    assert_eq!(other.count("mem_sync"), 0);
    drop((imported, buffer));
    assert!(fake.world().memory.is_empty() && other.world().memory.is_empty());
}
