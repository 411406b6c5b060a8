//! Mainline's `rocket` driver: one address space and one queue a descriptor. The cores' threads are in `queue`.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::SimConfig;
use super::address::Placement;
use super::engine::Engine;
use super::fence::{Fence, Waited};
use super::objects::{Handles, NoObject, Object, Space, Store, Usage, Wanted, lock};
use super::presence::Presence;
use super::queue::{Entity, Queue, Queued};
use super::schedule::WorkLog;
use crate::buffer::Mapping;
use crate::sim::faults::FaultCounts;
use crate::sim::{Kick, Unwritten};
use crate::uapi::rocket::*;
use crate::uapi::{DriverVersion, Errno, NodeDescription, RocketKernel, SimulatedWork};

/// The interrupts that the driver asks for, whatever the task: both groups of the DPU.
const DPU_INTERRUPTS: u32 = 0x300;
/// TASK_CON as the driver writes it: one task, counter cleared, ping-pong fetch.
const ONE_TASK: u32 = 0x7 << 12 | 1;

/// An RK3588's NPU under mainline's driver.
#[derive(Debug)]
pub struct RocketNode {
    queue: Queue,
    store: Arc<Store>,
    presence: Presence,
    unwritten: Unwritten,
}

impl RocketNode {
    /// A device that nobody has opened; `config.interface` is not looked at.
    #[must_use]
    pub fn new(config: &SimConfig) -> Arc<Self> {
        let store = Store::new(0);
        Arc::new(Self {
            queue: Queue::new(Engine::new(config), &store),
            store,
            presence: Presence::default(),
            unwritten: config.options.unwritten,
        })
    }

    /// A descriptor: an empty address space, a queue of its own.
    ///
    /// # Errors
    /// `ENODEV`: the device is gone for good.
    pub fn open(self: &Arc<Self>) -> Result<RocketFile, Errno> {
        let generation = self.presence.open()?;
        self.store.books.files.fetch_add(1, Relaxed);
        Ok(RocketFile {
            node: Arc::clone(self),
            generation,
            space: Space::new(self.unwritten, &self.store),
            handles: Handles::default(),
            entity: Entity::default(),
            log: Arc::default(),
        })
    }

    /// What it holds now.
    pub fn usage(&self) -> Usage {
        self.store.books.usage()
    }

    /// What was injected so far.
    pub fn faults(&self) -> FaultCounts {
        self.queue.engine().faults.counts()
    }

    /// Why the last stream that stopped did.
    pub fn last_stop(&self) -> Option<String> {
        self.queue.engine().last_stop()
    }
}

/// One open descriptor of a [`RocketNode`]. Dropping it closes it: its handles go, and memory as soon as no job uses it.
#[derive(Debug)]
pub struct RocketFile {
    node: Arc<RocketNode>,
    generation: u64,
    space: Arc<Space>,
    handles: Handles,
    entity: Entity,
    log: Arc<Mutex<WorkLog>>,
}

impl Drop for RocketFile {
    fn drop(&mut self) {
        self.node.store.books.files.fetch_sub(1, Relaxed);
    }
}

impl RocketFile {
    /// The device.
    pub fn node(&self) -> &Arc<RocketNode> {
        &self.node
    }

    /// The pages behind what mmap finds at `offset`, for a process that maps them itself.
    ///
    /// # Errors
    /// `EINVAL`: no object begins there, or it is shorter than `bytes`.
    pub fn pages(&self, offset: u64, bytes: u64) -> Result<OwnedFd, Errno> {
        self.check()?;
        self.handles.at_offset(offset, bytes)?.export()
    }

    /// `DRM_IOCTL_PRIME_FD_TO_HANDLE`. The handle is the exporter's object itself: its bus address stays that of the exporter's address
    /// space, and is mapped in no other.
    ///
    /// # Errors
    /// `EINVAL`: not a dma-buf of this device.
    pub fn import_dma_buf(&self, fd: BorrowedFd<'_>) -> Result<u32, Errno> {
        self.check()?;
        let object = self.node.store.object_of(fd).ok_or(Errno::EINVAL)?;
        Ok(self.handles.insert(object))
    }

    #[cfg(test)]
    pub(super) fn object(&self, handle: u32) -> Option<Arc<Object>> {
        self.handles.get(handle)
    }

    fn check(&self) -> Result<(), Errno> {
        self.node.presence.check(self.generation)
    }

    /// Every object of a list, each at most once in both lists: DRM locks them all and gives up on one it holds already.
    fn lookup(&self, reads: &[u32], writes: &[u32]) -> Option<[Vec<Arc<Object>>; 2]> {
        let find = |handles: &[u32]| {
            handles.iter().map(|handle| self.handles.get(*handle)).collect::<Option<Vec<_>>>()
        };
        let lists = [find(reads)?, find(writes)?];
        let mut serials: Vec<_> = lists.iter().flatten().map(|object| object.serial).collect();
        serials.sort_unstable();
        serials.windows(2).all(|pair| pair[0] != pair[1]).then_some(lists)
    }
}

impl RocketKernel for RocketFile {
    fn describe(&self) -> NodeDescription {
        NodeDescription { node: None, simulated: true }
    }

    /// The driver states no numbers, and DRM has no dates any more.
    fn version(&self) -> Result<DriverVersion, Errno> {
        self.check()?;
        Ok(DriverVersion {
            name: DRIVER_NAME.into(),
            date: "0".into(),
            description: "rocket DRM (simulated)".into(),
            ..DriverVersion::default()
        })
    }

    fn create_bo(&self, args: &mut drm_rocket_create_bo) -> Result<(), Errno> {
        self.check()?;
        if args.size == 0 {
            return Err(Errno::EINVAL);
        }
        if !self.node.queue.engine().faults.allocation_succeeds() {
            return Err(Errno::ENOMEM);
        }
        let bytes = u64::from(args.size);
        let wanted = Wanted { bytes, placement: Placement::Bottom, flags: 0, sram: 0, domain: 0 };
        let object = self.space.allocate(wanted).map_err(|error| match error {
            NoObject::NoAddress => Errno::ENOSPC,
            NoObject::NoPages(errno) => errno,
        })?;
        args.dma_address = u64::from(object.iova);
        args.offset = object.offset;
        args.handle = self.handles.insert(object);
        Ok(())
    }

    /// Everything that is wrong with a job is swallowed: the driver's loop over jobs drops their errors.
    fn submit(
        &self,
        tasks: &[drm_rocket_task],
        in_handles: &[u32],
        out_handles: &[u32],
    ) -> Result<(), Errno> {
        self.check()?;
        if tasks.is_empty() || tasks.iter().any(|task| task.regcmd_count == 0) {
            return Ok(());
        }
        let Some([reads, writes]) = self.lookup(in_handles, out_handles) else { return Ok(()) };
        let faults = self.node.queue.engine().faults.job();
        if let Some(absence) = faults.gone {
            self.node.presence.leave(absence);
            return Err(Errno::ENODEV);
        }
        let kick = |task: &drm_rocket_task| Kick {
            base_address: task.regcmd,
            register_amounts: task.regcmd_count.div_ceil(2) - 1,
            task_con: ONE_TASK,
            interrupt_mask: DPU_INTERRUPTS,
            ..Kick::new(0, 0, 1, 0)
        };
        let job = Queued {
            kicks: tasks.iter().map(kick).collect(),
            space: Arc::clone(&self.space),
            after: reads.iter().chain(&writes).filter_map(|object| lock(&object.writer).clone()).collect(),
            fence: Arc::new(Fence::default()),
            objects: reads.into_iter().chain(writes.iter().cloned()).collect(),
            faults,
            log: Arc::clone(&self.log),
        };
        for object in &writes {
            *lock(&object.writer) = Some(Arc::clone(&job.fence));
        }
        self.node.queue.push(&self.entity, job)
    }

    /// Waits for writers only: a job leaves no mark on what it reads. How they ended is not told.
    fn prep_bo(&self, args: &mut drm_rocket_prep_bo) -> Result<(), Errno> {
        self.check()?;
        if args.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        let object = self.handles.get(args.handle).ok_or(Errno::ENOENT)?;
        let Some(fence) = lock(&object.writer).clone() else { return Ok(()) };
        let left = time_left(args.timeout_ns);
        match fence.wait(left.map(|left| Instant::now() + left)) {
            Waited::Signalled => Ok(()),
            Waited::TimedOut if left == Some(Duration::ZERO) => Err(Errno::EBUSY),
            Waited::TimedOut => Err(Errno::ETIMEDOUT),
        }
    }

    fn fini_bo(&self, args: &mut drm_rocket_fini_bo) -> Result<(), Errno> {
        self.check()?;
        if args.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        let object = self.handles.get(args.handle).ok_or(Errno::ENOENT)?;
        object.mark_touched(0, object.bytes);
        Ok(())
    }

    fn gem_close(&self, handle: u32) -> Result<(), Errno> {
        self.check()?;
        self.handles.remove(handle).map(drop).ok_or(Errno::EINVAL)
    }

    fn mmap(&self, offset: u64, len: usize) -> Result<Mapping, Errno> {
        self.check()?;
        let object = self.handles.at_offset(offset, len as u64)?;
        Mapping::shared(object.backing.fd(), 0, len)
    }

    fn export_dma_buf(&self, handle: u32) -> Result<OwnedFd, Errno> {
        self.check()?;
        self.handles.get(handle).ok_or(Errno::ENOENT)?.export()
    }

    fn reopen(&self) -> Result<Arc<dyn RocketKernel>, Errno> {
        Ok(Arc::new(self.node.open()?))
    }

    fn take_simulated(&self) -> Option<SimulatedWork> {
        Some(lock(&self.log).take())
    }
}

/// Time until an absolute moment of CLOCK_MONOTONIC: none if it has passed. `None`: so far off that nobody will see it.
fn time_left(timeout_ns: i64) -> Option<Duration> {
    let now =
        clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| now.tv_sec() * 1_000_000_000 + now.tv_nsec());
    let left = Duration::from_nanos(timeout_ns.saturating_sub(now).max(0).unsigned_abs());
    Instant::now().checked_add(left).map(|_| left)
}
