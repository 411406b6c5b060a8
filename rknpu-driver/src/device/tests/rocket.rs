//! Over fakes of mainline's driver.

use nix::errno::Errno;

use super::fake::{Fake, Hook, Jobs};
use super::*;
use crate::error::{ShareError, SyncError};

const DOMAIN: DomainId = DomainId(1);

fn open() -> (Vec<Fake>, Device) {
    let fakes = vec![Fake::default(), Fake::default(), Fake::default()];
    let kernels = fakes.iter().map(|fake| Arc::new(fake.clone()) as Arc<dyn RocketKernel>).collect();
    (fakes, Device::over_rocket(kernels).unwrap())
}

#[test]
fn each_descriptor_is_a_domain_of_one_core() {
    let (fakes, device) = open();
    assert_eq!((device.info().interface, device.info().cores), (Interface::Rocket, 3));
    let cores: Vec<_> = device.domains().iter().map(|domain| (domain.id.0, domain.cores.0)).collect();
    assert_eq!(cores, [(0, 1), (1, 2), (2, 4)]);
    // Address 0 is the driver's own page.
    let buffer = device.allocate(DOMAIN, 1, BufferKind::Sram).unwrap();
    assert_ne!(buffer.iova(), 0);
    assert_eq!(fakes.iter().map(|fake| fake.world().memory.len()).collect::<Vec<_>>(), [1, 2, 1]);
    drop((device, buffer));
    assert!(fakes.iter().all(|fake| fake.world().memory.is_empty()));
    assert!(matches!(Device::over_rocket(Vec::new()), Err(OpenError::Cores(0))));
}

#[test]
fn the_driver_and_its_version_are_checked() {
    let refused = |name, version| {
        let fake = Fake::default();
        (fake.world().name, fake.world().version) = (name, version);
        Device::over_rocket(vec![Arc::new(fake)]).unwrap_err()
    };
    assert!(matches!(refused(Some("etnaviv"), None), OpenError::OtherDriver { .. }));
    assert!(matches!(refused(None, Some((2, 0, 0))), OpenError::Version { .. }));
}

#[test]
fn jobs_of_several_domains_run_and_are_seen_to_have_run() {
    let (fakes, device) = open();
    let mut outputs = Vec::new();
    let mut jobs = Vec::new();
    // Two in domain 0, one in each of the others.
    for domain in [0, 1, 0, 2] {
        let (output, job) = simple(&device, DomainId(domain), &[(domain, 3)]);
        outputs.push(output);
        jobs.push(prepare(&device, job).unwrap());
    }
    let jobs: Vec<_> = jobs.iter().collect();
    let reports = device.run(&jobs).unwrap();
    assert_eq!(reports.iter().map(|report| report.tasks_done).collect::<Vec<_>>(), [3; 4]);
    let atoms: Vec<u8> = (0..3).flat_map(expected).collect();
    for output in &outputs {
        assert_eq!(output.read(..48).unwrap()[..], atoms);
    }
    assert_eq!(fakes.iter().map(|fake| fake.count("submit")).collect::<Vec<_>>(), [2, 1, 1]);
    let (reads, writes) = fakes[1].world().last_lists.clone();
    assert_eq!((reads.len(), writes.len()), (2, 1));
}

#[test]
fn a_job_that_ran_nothing_is_an_error() {
    let (fakes, device) = open();
    let (output, job) = simple(&device, DOMAIN, &[(1, 2)]);
    let prepared = prepare(&device, job).unwrap();
    device.run(&[&prepared]).unwrap();
    // The same results lie there already: only the mark tells.
    fakes[1].set_jobs(Jobs::Skip);
    assert!(matches!(device.run(&[&prepared]).unwrap_err(), JobError::WrongStatus { .. }));
    assert_eq!(device.health().fault, Some(Fault::WrongStatus));
    assert_eq!(device.reset(), Ok(Recovery::Kept));
    fakes[1].set_jobs(Jobs::Run);
    device.run(&[&prepared]).unwrap();
    assert_eq!(output.read(16..32).unwrap()[..], expected(1));
}

#[test]
fn a_mark_is_not_overwritten_before_the_job_starts() {
    let (fakes, device) = open();
    // Jobs take their buffers in the order of memory: here the input first.
    let at = |buffer: &Buffer| Arc::as_ptr(&buffer.0).addr();
    let mut buffers = [0; 2].map(|_| device.allocate(DOMAIN, 256, BufferKind::Data).unwrap());
    buffers.sort_by_key(at);
    let [input, output] = buffers;
    let job = job(&device, DOMAIN, &[(1, 1)], input.clone(), output.clone());
    let prepared = prepare(&device, job).unwrap();
    fakes[1].fail("fini_bo", Errno::EIO);
    drop(input.write(..).unwrap());
    // As the job takes its input, which has still to be handed over, someone writes the output.
    let handle = input.0.object.handle;
    let deed = Box::new(move || output.write(..).unwrap().fill(9));
    fakes[1].world().before_fini = Some((handle, Hook(deed)));
    fakes[1].set_jobs(Jobs::Skip);
    assert!(matches!(device.run(&[&prepared]).unwrap_err(), JobError::WrongStatus { .. }));
    assert!(fakes[1].world().before_fini.is_none(), "it was done");
}

#[test]
fn a_job_that_could_not_be_seen_to_run_is_refused() {
    let (_, device) = open();
    let refused = |job: Job, text: &str| {
        let error = prepare(&device, job).unwrap_err();
        assert!(matches!(&error, JobError::Malformed(what) if what.contains(text)), "{error}");
    };
    let (output, mut job) = simple(&device, DOMAIN, &[(1, 1)]);
    job.commands = device.allocate(DOMAIN, 64, BufferKind::Commands).unwrap();
    let own = commands(&[(output.iova() + 64, output.iova())]);
    job.commands.write(..).unwrap().copy_from_slice(&own);
    refused(job.clone(), "reads the buffer that its last task writes");
    let nowhere = commands(&[(0, 0)]);
    job.commands.write(..).unwrap().copy_from_slice(&nowhere);
    refused(job, "no output");
}

#[test]
fn a_wait_in_vain_keeps_the_memory() {
    let (fakes, device) = open();
    let (output, job) = simple(&device, DOMAIN, &[(1, 1)]);
    let (other, other_job) = simple(&device, DomainId(2), &[(2, 1)]);
    let (prepared, beside) = (prepare(&device, job).unwrap(), prepare(&device, other_job).unwrap());
    fakes[1].set_jobs(Jobs::Hang);
    assert!(matches!(device.run(&[&prepared, &beside]).unwrap_err(), JobError::TimedOut { .. }));
    // The job beside it was waited for, and its memory is free.
    assert_eq!(other.read(..16).unwrap()[..], expected(0));
    assert_eq!(output.read(..).map(drop), Err(SyncError::Quarantined));
    let health = device.health();
    assert_eq!((health.quarantined_jobs, health.jobs_done, health.jobs_failed), (1, 1, 1));

    // The job ends after all: nothing is lost.
    fakes[1].unhang();
    assert_eq!(device.reset(), Ok(Recovery::Kept));
    assert_eq!(fakes[1].count("reopen"), 0);
    assert!(output.read(..).is_ok());
}

#[test]
fn a_domain_that_stays_hung_gets_a_new_descriptor() {
    let (fakes, device) = open();
    let (output, job) = simple(&device, DOMAIN, &[(1, 1)]);
    let (other, other_job) = simple(&device, DomainId(2), &[(2, 1)]);
    let (prepared, beside) = (prepare(&device, job).unwrap(), prepare(&device, other_job).unwrap());
    fakes[1].set_jobs(Jobs::Hang);
    device.run(&[&prepared]).unwrap_err();
    fakes[1].fail("reopen", Errno::ENOENT);
    let failed = ResetError::Failed { reset: Errno::ETIMEDOUT, reopen: Errno::ENOENT };
    assert_eq!(device.reset(), Err(failed));
    assert_eq!(device.health().quarantined_jobs, 1);
    assert_eq!(device.reset(), Ok(Recovery::BuffersLost));
    assert!(output.is_stale() && !other.is_stale());
    // The job may still write.
    assert_eq!(output.read(..).map(drop), Err(SyncError::Quarantined));
    assert_eq!(output.clone().seal().map(drop), Err(SyncError::Quarantined));
    assert_eq!(device.health().quarantined_jobs, 0);
    assert_eq!(device.run(&[&prepared]).unwrap_err(), JobError::Stale(DOMAIN));
    device.run(&[&beside]).unwrap();
    let fresh = fakes[1].world().reopened[0].clone();
    let (output_anew, job) = simple(&device, DOMAIN, &[(1, 1)]);
    device.run(&[&prepare(&device, job).unwrap()]).unwrap();
    assert_eq!(output_anew.read(..16).unwrap()[..], expected(0));
    drop((prepared, output, output_anew));
    assert!(fakes[1].world().memory.is_empty());
    assert_eq!(fresh.world().memory.len(), 1, "the page at address 0");
}

#[test]
fn guards_sync_the_whole_buffer_once() {
    let (fakes, device) = open();
    let buffer = device.allocate(DOMAIN, 4096, BufferKind::Data).unwrap();
    let counts = || (fakes[1].count("prep_bo"), fakes[1].count("fini_bo"));
    let first = buffer.write(0..64).unwrap();
    let second = buffer.write(64..128).unwrap();
    assert_eq!(counts(), (1, 0));
    drop(first);
    assert_eq!(counts(), (1, 0));
    second.finish().unwrap();
    assert_eq!(counts(), (1, 1));
    let sealed = buffer.seal().unwrap();
    assert_eq!(sealed.len(), 4096);
    assert_eq!(counts(), (1, 1));
}

#[test]
fn what_could_not_be_handed_over_stops_the_job() {
    let (fakes, device) = open();
    let (_, job) = simple(&device, DOMAIN, &[(1, 1)]);
    let crate::job::JobBuffer::Buffer(input) = job.reads[0].clone() else {
        unreachable!("simple reads a buffer")
    };
    let prepared = prepare(&device, job).unwrap();
    fakes[1].fail("fini_bo", Errno::EIO);
    drop(input.write(..).unwrap());
    // The mark's hand-over comes first, then the input's.
    let skip = ("prep_bo", Errno::EINTR);
    fakes[1].world().failures.push_back(skip);
    device.run(&[&prepared]).unwrap();
    fakes[1].fail("fini_bo", Errno::EIO);
    let guard = input.write(..).unwrap();
    let failed = SyncError::Call { call: "DRM_IOCTL_ROCKET_FINI_BO", source: Errno::EIO };
    assert_eq!(guard.finish(), Err(failed));
}

#[test]
fn tasks_must_end_in_the_dpu_and_chains_on_the_domains_core() {
    let (_, device) = open();
    let (_, mut job) = simple(&device, DOMAIN, &[(1, 2)]);
    job.chains[0].tasks[1].interrupt_mask = 0xc00;
    assert_eq!(prepare(&device, job).unwrap_err(), JobError::InterruptMask { task: 1, mask: 0xc00 });
    let (_, mut job) = simple(&device, DOMAIN, &[(1, 1)]);
    job.chains[0].core = CoreId(0);
    assert_eq!(prepare(&device, job).unwrap_err(), JobError::Core(CoreId(0)));
}

#[test]
fn memory_is_exported_and_not_imported() {
    let (_, device) = open();
    let buffer = device.allocate(DOMAIN, 10, BufferKind::Data).unwrap();
    #[expect(unsafe_code, reason = "nothing maps the descriptor")]
    // SAFETY: nobody touches the memory through the descriptor.
    let fd = unsafe { buffer.export() }.unwrap();
    #[expect(unsafe_code, reason = "refused before anything is mapped")]
    // SAFETY: the call is refused; nothing is mapped.
    let imported = unsafe { device.import(DOMAIN, std::os::fd::AsFd::as_fd(&fd), 10) };
    assert_eq!(imported.map(drop), Err(ShareError::Unsupported { interface: "rocket", what: "import" }));
}

#[test]
fn a_device_that_is_gone_comes_back_with_new_descriptors() {
    let (fakes, device) = open();
    let (output, job) = simple(&device, DOMAIN, &[(1, 1)]);
    let prepared = prepare(&device, job).unwrap();
    fakes[1].fail("submit", Errno::ENODEV);
    assert_eq!(device.run(&[&prepared]).unwrap_err(), JobError::Gone);
    assert_eq!(device.reset(), Ok(Recovery::BuffersLost));
    assert!(output.is_stale() && !device.is_faulted());
}
