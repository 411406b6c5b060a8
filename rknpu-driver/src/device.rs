//! One NPU, whatever drives it.
//!
//! A [`Device`] is a handle, cheap to clone and shared by threads. It owns one address space per [`Domain`];
//! buffers and jobs belong to a domain. When a job hangs or ends wrongly the device counts as faulted: it
//! refuses jobs, and the memory of a job that may still run is kept, until [`Device::reset`] succeeds.

pub(crate) mod allocate;
mod ids;
pub(crate) mod link;
mod open;
mod reset;
mod run;
mod run_rocket;
mod run_vendor;
mod share;
#[cfg(test)]
pub(crate) mod tests;

use std::mem;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

pub use ids::{CoreId, CoreMask, Domain, DomainId};

use allocate::{Purpose, Request, SPACE_BYTES};
use link::{Kernel, Link, Shared, lock};

use crate::buffer::{Buffer, BufferKind};
use crate::error::{AllocateError, Fault, JobError, OpenError, ResetError};
use crate::job::{Job, JobReport, Prepared, PreparedJob, prepare};
use crate::uapi::{DriverVersion, RocketKernel, VendorKernel, vendor};

/// How long a simulator's work may take on the host, whatever it would take on the device.
const SIMULATED_PATIENCE: Duration = Duration::from_secs(600);
/// How long guards wait there: a job of theirs may be what computes.
const SIMULATED_ACCESS_WAIT: Duration = Duration::from_secs(120);

/// Which kernel interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum InterfaceChoice {
    /// Whichever is found, the vendor's first.
    #[default]
    Auto,
    /// Rockchip's `rknpu`.
    Vendor,
    /// Mainline's `rocket`.
    Rocket,
}

/// What drives the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interface {
    /// Rockchip's `rknpu`.
    Vendor,
    /// Mainline's `rocket`.
    Rocket,
}

/// How to open a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Which interface.
    pub interface: InterfaceChoice,
    /// The node; the usual places are tried otherwise.
    pub node: Option<PathBuf>,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What drives it.
    pub interface: Interface,
    /// Its node; none for a simulator inside the process.
    pub node: Option<PathBuf>,
    /// Name and version of the driver.
    pub driver: DriverVersion,
    /// The hardware's version register; rocket does not tell.
    pub hardware_version: Option<u32>,
    /// Cores.
    pub cores: u8,
    /// On-chip SRAM that the device tree grants, bytes.
    pub sram_bytes: u64,
    /// True where results and times are a simulator's.
    pub simulated: bool,
}

/// How a device is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why it is set aside, if it is.
    pub fault: Option<Fault>,
    /// Buffers alive, those of the driver itself not counted.
    pub buffers: usize,
    /// Their bytes.
    pub buffer_bytes: u64,
    /// Jobs that could not be stopped; their memory is kept.
    pub quarantined_jobs: usize,
    /// Objects that the kernel would not take back.
    pub leaked_objects: usize,
    /// Jobs that completed.
    pub jobs_done: u64,
    /// Jobs that failed.
    pub jobs_failed: u64,
    /// Resets that succeeded.
    pub resets: u64,
}

/// What a reset left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// Buffers and prepared jobs can be used as before.
    Kept,
    /// The node was opened anew: buffers of some domains are stale and must be allocated again
    /// ([`Buffer::is_stale`]).
    BuffersLost,
}

/// One NPU.
#[derive(Clone, Debug)]
pub struct Device(Arc<DeviceInner>);

#[derive(Debug)]
struct DeviceInner {
    info: DeviceInfo,
    /// Whether memory goes through an IOMMU (always, but for the vendor's driver without one).
    iommu: bool,
    domains: Vec<Domain>,
    shared: Arc<Shared>,
    /// The open descriptor of each domain; the vendor's domains share one.
    links: RwLock<Vec<Arc<Link>>>,
    /// Held while jobs run: one for all of the vendor's domains, one for each of rocket's.
    turns: Vec<Mutex<()>>,
    /// Jobs that may still run, with all their memory.
    quarantine: Mutex<Vec<Arc<Prepared>>>,
    /// Rocket's pages at address 0.
    scratch: Mutex<Vec<Buffer>>,
}

impl Device {
    /// Finds and opens an NPU: the node that is named, or the first that works of /dev/dri/renderD128–135,
    /// /dev/rknpu and /dev/accel/accel0–7.
    ///
    /// # Errors
    /// [`OpenError`]: what was found and what to do.
    pub fn open(options: &OpenOptions) -> Result<Device, OpenError> {
        match open::find(options)? {
            open::Opened::Vendor(kernel) => Self::over_vendor(kernel),
            open::Opened::Rocket(kernels) => Self::over_rocket(kernels),
        }
    }

    /// A device over the vendor driver's calls.
    ///
    /// # Errors
    /// [`OpenError`]: version, layout, or a question failed.
    pub fn over_vendor(kernel: Arc<dyn VendorKernel>) -> Result<Device, OpenError> {
        let (info, iommu) = open::vendor_info(&*kernel)?;
        let shared = Arc::new(Shared::default());
        let link = Link::new(Kernel::Vendor(kernel), shared.clone());
        // Without an IOMMU there is one address space, that of physical memory.
        let count = if iommu { vendor::RKNPU_MAX_IOMMU_DOMAIN_NUM as u8 } else { 1 };
        let cores = CoreMask::first(info.cores);
        let domains = (0..count).map(|id| Domain { id: DomainId(id), bytes: SPACE_BYTES, cores }).collect();
        let links = vec![link; usize::from(count)];
        Ok(Self::new(info, iommu, domains, shared, links, 1))
    }

    /// A device over rocket's calls, one descriptor a core: 1–3.
    ///
    /// # Errors
    /// [`OpenError`]: version, layout, or a question failed.
    pub fn over_rocket(kernels: Vec<Arc<dyn RocketKernel>>) -> Result<Device, OpenError> {
        let info = open::rocket_info(&kernels)?;
        let shared = Arc::new(Shared::default());
        let count = kernels.len();
        let links: Vec<_> =
            kernels.into_iter().map(|kernel| Link::new(Kernel::Rocket(kernel), shared.clone())).collect();
        let domain = |id| Domain { id: DomainId(id), bytes: SPACE_BYTES, cores: CoreMask::of(CoreId(id)) };
        let domains = (0..info.cores).map(domain).collect();
        let device = Self::new(info, true, domains, shared, links.clone(), count);
        for (domain, link) in device.0.domains.iter().zip(&links) {
            let scratch = device.0.scratch(link, domain.id).map_err(OpenError::Space)?;
            lock(&device.0.scratch).push(scratch);
        }
        Ok(device)
    }

    fn new(
        info: DeviceInfo,
        iommu: bool,
        domains: Vec<Domain>,
        shared: Arc<Shared>,
        links: Vec<Arc<Link>>,
        turns: usize,
    ) -> Self {
        if info.simulated {
            shared.set_access_wait(SIMULATED_ACCESS_WAIT);
        }
        let turns = (0..turns).map(|_| Mutex::new(())).collect();
        let links = RwLock::new(links);
        let (quarantine, scratch) = Default::default();
        Device(Arc::new(DeviceInner { info, iommu, domains, shared, links, turns, quarantine, scratch }))
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// Its address spaces. Vendor: 16 IOMMU domains, each for all cores, and using another than the last one
    /// drains the device. Rocket: one a descriptor, of one core each.
    #[must_use]
    pub fn domains(&self) -> &[Domain] {
        &self.0.domains
    }

    /// Makes a buffer of at least one byte. What its bytes are is not said.
    ///
    /// # Errors
    /// [`AllocateError`]: no such domain, no memory, no addresses.
    pub fn allocate(
        &self,
        domain: DomainId,
        bytes: usize,
        kind: BufferKind,
    ) -> Result<Buffer, AllocateError> {
        if self.0.shared.fault() == Some(Fault::Gone) {
            return Err(AllocateError::Gone);
        }
        let link = self.link(domain).ok_or(AllocateError::Domain(domain))?;
        let request = Request { domain, bytes, purpose: Purpose::Buffer(kind), iommu: self.0.iommu };
        allocate::allocate(&link, request)
    }

    /// Checks a job and builds its task objects.
    ///
    /// # Errors
    /// [`JobError`]: which rule the job breaks.
    ///
    /// # Safety
    /// Executing the commands, tails and whatever they lead to included, writes nothing outside the buffers in
    /// [`Job::writes`](crate::job::Job::writes). The hardware writes wherever it is told to in the job's
    /// address space, and slices of sealed buffers and of guards rely on its not doing so. What the commands
    /// say of themselves is checked, but that does not prove it: registers keep values of earlier tasks.
    #[expect(unsafe_code, reason = "unsafe to call: the commands are trusted; no block here")]
    pub unsafe fn prepare(&self, job: Job) -> Result<PreparedJob, JobError> {
        let DeviceInner { domains, info, iommu, .. } = &*self.0;
        let domain = domains.get(usize::from(job.domain.0)).ok_or(JobError::Domain(job.domain))?;
        let link = self.link(job.domain).ok_or(JobError::Domain(job.domain))?;
        let prepared = prepare::prepare(job, domain, &link, info.interface, *iommu)?;
        Ok(PreparedJob(Arc::new(prepared)))
    }

    /// Runs jobs and waits for all, bounded by their time-outs. Rocket's domains run at the same time, and so
    /// do a job's chains; jobs of one domain run in the order given, so a later one may read what an earlier
    /// one wrote. Reports are in the order of the jobs. On an error no result can be used.
    ///
    /// # Errors
    /// [`JobError`]: the first thing that went wrong.
    pub fn run(&self, jobs: &[&PreparedJob]) -> Result<Vec<JobReport>, JobError> {
        run::run(&self.0, jobs)
    }

    /// True while the device refuses jobs.
    #[must_use]
    pub fn is_faulted(&self) -> bool {
        self.0.shared.fault().is_some()
    }

    /// Brings a faulted device back and frees what was quarantined, once no other thread runs a job. Harmless
    /// on a device that works.
    ///
    /// # Errors
    /// [`ResetError`]: the device stays faulted.
    pub fn reset(&self) -> Result<Recovery, ResetError> {
        reset::reset(&self.0)
    }

    /// Sets how long guards and jobs wait for others to leave a buffer before they give up. Unless set it is
    /// 30 s, and two minutes on a simulator.
    pub fn set_access_wait(&self, wait: Duration) {
        self.0.shared.set_access_wait(wait);
    }

    /// How it is.
    #[must_use]
    pub fn health(&self) -> Health {
        let Shared { buffers, buffer_bytes, jobs_done, jobs_failed, resets, leaked, .. } = &*self.0.shared;
        Health {
            fault: self.0.shared.fault(),
            buffers: buffers.load(Ordering::Relaxed),
            buffer_bytes: buffer_bytes.load(Ordering::Relaxed),
            quarantined_jobs: lock(&self.0.quarantine).len(),
            leaked_objects: leaked.load(Ordering::Relaxed),
            jobs_done: jobs_done.load(Ordering::Relaxed),
            jobs_failed: jobs_failed.load(Ordering::Relaxed),
            resets: resets.load(Ordering::Relaxed),
        }
    }

    fn link(&self, domain: DomainId) -> Option<Arc<Link>> {
        self.0.link(domain)
    }
}

impl Drop for DeviceInner {
    fn drop(&mut self) {
        if lock(&self.quarantine).is_empty() || reset::reset(self).is_ok() {
            return;
        }
        // The hardware may still be at work in this memory, and nothing stops it: it stays mapped as long as
        // the process lives.
        mem::forget(mem::take(&mut *lock(&self.quarantine)));
    }
}

impl DeviceInner {
    fn link(&self, domain: DomainId) -> Option<Arc<Link>> {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        links.get(usize::from(domain.0)).cloned()
    }

    /// Puts new descriptors in the place of old ones, whose objects are the device's no longer.
    fn replace_links(&self, fresh: impl Fn(DomainId) -> Option<Arc<Link>>) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        for (id, link) in (0..).map(DomainId).zip(links.iter_mut()) {
            if let Some(fresh) = fresh(id) {
                link.retire();
                *link = fresh;
            }
        }
        lock(&self.scratch).retain(|page| !page.is_stale());
    }

    /// Closes a job's buffers to everyone.
    fn close(&self, job: &Prepared) {
        for it in &job.uses {
            it.inner.set_quarantined(true);
        }
    }

    /// Keeps a job that may still run, with all its memory.
    fn quarantine(&self, job: Arc<Prepared>) {
        lock(&self.quarantine).push(job);
    }

    /// Lets go of jobs that no longer run: those of a domain, or all.
    fn release_quarantine(&self, domain: Option<DomainId>) {
        let free = |job: &mut Arc<Prepared>| domain.is_none_or(|domain| job.domain == domain);
        let released: Vec<_> = lock(&self.quarantine).extract_if(.., free).collect();
        for it in released.iter().flat_map(|job| &job.uses) {
            it.inner.set_quarantined(false);
        }
    }

    /// Lets go of a domain's jobs that were never seen to end. Their buffers stay closed for good: the hardware
    /// may still write them.
    fn abandon_quarantine(&self, domain: DomainId) {
        let _jobs: Vec<_> = lock(&self.quarantine).extract_if(.., |job| job.domain == domain).collect();
    }

    /// Rocket: waits for the jobs of a domain that did not end in time; true if all are over now.
    fn await_quarantined(&self, domain: DomainId, limit: Duration) -> bool {
        let jobs: Vec<_> =
            lock(&self.quarantine).iter().filter(|job| job.domain == domain).cloned().collect();
        let started = Instant::now();
        jobs.iter().all(|job| {
            let written = job.uses.iter().find(|it| it.write);
            let left = limit.saturating_sub(started.elapsed());
            written.is_some_and(|it| it.inner.object.prep(left).is_ok())
        })
    }
}
