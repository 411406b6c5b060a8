//! Small kernels of both drivers: memory in memfds, jobs that write one atom a task, calls counted, failures
//! on demand.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::expected;
use crate::buffer::Mapping;
use crate::uapi::{DriverVersion, NodeDescription, RocketKernel, VendorKernel, rocket, vendor};

/// What the next jobs do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Jobs {
    /// Run.
    #[default]
    Run,
    /// Succeed without running.
    Skip,
    /// Hang until a reset (vendor) or for good (rocket).
    Hang,
    /// Run, and say that a task less was done.
    ShortCounter,
    /// Run, and leave this status.
    Status(u32),
}

#[derive(Debug)]
pub(crate) struct Memory {
    file: File,
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) flags: u32,
}

/// Something to be done within a call, once.
pub(crate) struct Hook(pub(crate) Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

/// What a fake kernel knows.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) memory: HashMap<u32, Memory>,
    next: u32,
    /// Names of calls in order.
    pub(crate) calls: Vec<&'static str>,
    /// The next call of that name fails so.
    pub(crate) failures: VecDeque<(&'static str, Errno)>,
    pub(crate) jobs: Jobs,
    pub(crate) version: Option<(u32, u32, u32)>,
    pub(crate) name: Option<&'static str>,
    /// Live objects of descriptors that were replaced.
    pub(crate) gone: bool,
    pub(crate) reopened: Vec<Fake>,
    pub(crate) last_submit: vendor::rknpu_submit,
    pub(crate) last_lists: (Vec<u32>, Vec<u32>),
    pub(crate) no_iommu: bool,
    /// The next hand-over of that object does this first.
    pub(crate) before_fini: Option<(u32, Hook)>,
    /// Handles that the job which hangs may use; none with no such job.
    hung: Vec<u32>,
}

/// A fake kernel of either driver.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake(Arc<Mutex<World>>);

impl Fake {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often a call was made.
    pub(crate) fn count(&self, call: &str) -> usize {
        self.world().calls.iter().filter(|name| **name == call).count()
    }

    pub(crate) fn fail(&self, call: &'static str, errno: Errno) {
        self.world().failures.push_back((call, errno));
    }

    pub(crate) fn set_jobs(&self, jobs: Jobs) {
        self.world().jobs = jobs;
    }

    fn enter(&self, call: &'static str) -> Result<MutexGuard<'_, World>, Errno> {
        let mut world = self.world();
        world.calls.push(call);
        if world.gone {
            return Err(Errno::ENODEV);
        }
        match world.failures.iter().position(|(name, _)| *name == call) {
            Some(index) => Err(world.failures.remove(index).unwrap().1),
            None => Ok(world),
        }
    }

    fn version(&self, name: &'static str, version: (u32, u32, u32)) -> Result<DriverVersion, Errno> {
        let world = self.enter("version")?;
        let (major, minor, patch) = world.version.unwrap_or(version);
        let name = world.name.unwrap_or(name).to_owned();
        Ok(DriverVersion { name, major, minor, patch, ..DriverVersion::default() })
    }

    fn export(&self, handle: u32) -> Result<OwnedFd, Errno> {
        let world = self.enter("export")?;
        Ok(world.memory.get(&handle).ok_or(Errno::ENOENT)?.file.as_fd().try_clone_to_owned().unwrap())
    }

    fn map(&self, offset: u64, len: usize) -> Result<Mapping, Errno> {
        let world = self.enter("mmap")?;
        let memory = world.memory.get(&((offset >> 12) as u32)).ok_or(Errno::EINVAL)?;
        if len as u64 > memory.size {
            return Err(Errno::EINVAL);
        }
        Mapping::shared(memory.file.as_fd(), 0, len)
    }
}

impl World {
    fn create(&mut self, size: u64, flags: u32, file: Option<File>) -> Result<u32, Errno> {
        if size == 0 {
            return Err(Errno::EINVAL);
        }
        let size = size.next_multiple_of(4096);
        let file = match file {
            Some(file) => file,
            None => {
                let file = File::from(memfd_create("fake", MFdFlags::MFD_CLOEXEC)?);
                file.set_len(size).map_err(|_| Errno::ENOMEM)?;
                file
            }
        };
        self.next += 1;
        // Like the real ones: rocket's first address is 0.
        let address = u64::from(self.next - 1) << 20;
        self.memory.insert(self.next, Memory { file, address, size, flags });
        Ok(self.next)
    }

    fn find(&self, address: u64) -> Option<(&Memory, u64)> {
        let within = |it: &&Memory| (it.address..it.address + it.size).contains(&address);
        self.memory.values().find(within).map(|it| (it, address - it.address))
    }

    /// Handles of a vendor job: its task objects, its commands, and whatever their words name.
    fn used_by(&self, tasks: u32, count: u32) -> Vec<u32> {
        let mut used = vec![tasks];
        let mut add = |address: u64| {
            let within = |it: &Memory| (it.address..it.address + it.size).contains(&address);
            used.extend(self.memory.iter().find(|(_, it)| within(it)).map(|(handle, _)| *handle));
        };
        for index in 0..u64::from(count) {
            let mut task = [0; 40];
            self.memory[&tasks].file.read_exact_at(&mut task, index * 40).unwrap();
            let commands = u64::from_le_bytes(task[32..].try_into().unwrap());
            add(commands);
            let (memory, at) = self.find(commands).unwrap();
            let mut words = vec![0; task[24] as usize * 8];
            memory.file.read_exact_at(&mut words, at).unwrap();
            let words = words.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
            words.filter(|word| *word != 0).for_each(|word| add(word >> 16 & 0xffff_ffff));
        }
        used
    }

    /// Runs one task: every destination among its commands gets an atom.
    fn run_task(&self, commands: u64, words: u32, task: usize) {
        let (memory, at) = self.find(commands).unwrap();
        let mut bytes = vec![0; words as usize * 8];
        memory.file.read_exact_at(&mut bytes, at).unwrap();
        for word in bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())) {
            if (word >> 48, word & 0xffff) == (0x1001, 0x4020) {
                let (memory, at) = self.find(word >> 16 & 0xffff_ffff).unwrap();
                memory.file.write_all_at(&expected(task), at).unwrap();
            }
        }
    }
}

fn object_address(handle: u32) -> u64 {
    0xffff_0000_0000_0000 | u64::from(handle) << 8
}

impl VendorKernel for Fake {
    fn describe(&self) -> NodeDescription {
        NodeDescription::default()
    }

    fn version(&self) -> Result<DriverVersion, Errno> {
        Fake::version(self, "rknpu", (0, 9, 8))
    }

    fn action(&self, args: &mut vendor::rknpu_action) -> Result<(), Errno> {
        let reset = args.flags == vendor::RKNPU_ACT_RESET;
        let mut world = self.enter(if reset { "reset" } else { "action" })?;
        if reset {
            world.hung.clear();
        }
        args.value = match args.flags {
            vendor::RKNPU_GET_DRV_VERSION => 908,
            vendor::RKNPU_GET_HW_VERSION => 0x4649_5245,
            vendor::RKNPU_GET_IOMMU_EN => u32::from(!world.no_iommu),
            vendor::RKNPU_GET_TOTAL_SRAM_SIZE => 956 << 10,
            _ => 0,
        };
        Ok(())
    }

    fn mem_create(&self, args: &mut vendor::rknpu_mem_create) -> Result<(), Errno> {
        let mut world = self.enter("mem_create")?;
        if args.handle == 0 {
            args.handle = world.create(args.size, args.flags, None)?;
        }
        let memory = world.memory.get(&args.handle).ok_or(Errno::EINVAL)?;
        (args.size, args.dma_addr) = (memory.size, memory.address);
        args.obj_addr = object_address(args.handle);
        Ok(())
    }

    fn mem_map(&self, args: &mut vendor::rknpu_mem_map) -> Result<(), Errno> {
        drop(self.enter("mem_map")?);
        args.offset = u64::from(args.handle) << 12;
        Ok(())
    }

    fn mem_destroy(&self, args: &mut vendor::rknpu_mem_destroy) -> Result<(), Errno> {
        let mut world = self.enter("mem_destroy")?;
        assert!(!world.hung.contains(&args.handle), "memory was given back under a job that runs");
        assert_eq!(args.obj_addr, object_address(args.handle));
        world.memory.remove(&args.handle).map(drop).ok_or(Errno::EINVAL)
    }

    fn mem_sync(&self, args: &mut vendor::rknpu_mem_sync) -> Result<(), Errno> {
        let world = self.enter("mem_sync")?;
        let mut memory = world.memory.iter().filter(|(handle, _)| object_address(**handle) == args.obj_addr);
        let (_, memory) = memory.next().ok_or(Errno::EINVAL)?;
        let cacheable = memory.flags & vendor::RKNPU_MEM_CACHEABLE != 0;
        let tasks = memory.flags & vendor::RKNPU_MEM_KERNEL_MAPPING != 0;
        assert!(!tasks, "task objects are the CPU's alone");
        if cacheable && args.offset + args.size <= memory.size { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn submit(&self, args: &mut vendor::rknpu_submit) -> Result<(), Errno> {
        let mut world = self.enter("submit")?;
        world.last_submit = *args;
        let handle =
            *world.memory.keys().find(|handle| object_address(**handle) == args.task_obj_addr).unwrap();
        assert_ne!(world.memory[&handle].flags & vendor::RKNPU_MEM_KERNEL_MAPPING, 0);
        if world.jobs == Jobs::Hang {
            world.hung = world.used_by(handle, args.task_number);
            return Err(Errno::ETIMEDOUT);
        }
        let first = if args.core_mask.count_ones() == 3 { 2 } else { 0 };
        let mut last = 0;
        for core in (0..3).filter(|core| args.core_mask >> core & 1 == 1) {
            let range = args.subcore_task[first + core];
            for index in range.task_start..range.task_start + range.task_number {
                let mut task = [0; 40];
                world.memory[&handle].file.read_exact_at(&mut task, u64::from(index) * 40).unwrap();
                let field = |at: usize| u32::from_le_bytes(task[at..at + 4].try_into().unwrap());
                assert_eq!((field(20), field(12), field(16)), (0, 0x300, 0x1ffff));
                if world.jobs != Jobs::Skip {
                    world.run_task(u64::from(field(32)), field(24), index as usize);
                }
                last = index;
            }
        }
        let status = match world.jobs {
            Jobs::Status(status) => status,
            Jobs::Skip => 0,
            Jobs::Run | Jobs::Hang | Jobs::ShortCounter => 0x100,
        };
        let at = u64::from(last) * 40 + 20;
        world.memory[&handle].file.write_all_at(&status.to_le_bytes(), at).unwrap();
        args.task_counter = args.task_number - u32::from(world.jobs == Jobs::ShortCounter);
        args.hw_elapse_time = 1_234_000;
        Ok(())
    }

    fn mmap(&self, offset: u64, len: usize) -> Result<Mapping, Errno> {
        self.map(offset, len)
    }

    fn export_dma_buf(&self, handle: u32) -> Result<OwnedFd, Errno> {
        self.export(handle)
    }

    fn import_dma_buf(&self, fd: BorrowedFd<'_>) -> Result<u32, Errno> {
        let mut world = self.enter("import")?;
        let file = File::from(fd.try_clone_to_owned().unwrap());
        let size = file.metadata().unwrap().len();
        world.create(size, 0, Some(file))
    }

    fn reopen(&self) -> Result<Arc<dyn VendorKernel>, Errno> {
        let mut world = self.enter("reopen")?;
        let fresh = Fake::default();
        world.reopened.push(fresh.clone());
        Ok(Arc::new(fresh))
    }
}

impl RocketKernel for Fake {
    fn describe(&self) -> NodeDescription {
        NodeDescription::default()
    }

    fn version(&self) -> Result<DriverVersion, Errno> {
        Fake::version(self, "rocket", (0, 0, 0))
    }

    fn create_bo(&self, args: &mut rocket::drm_rocket_create_bo) -> Result<(), Errno> {
        let mut world = self.enter("create_bo")?;
        args.handle = world.create(u64::from(args.size), 0, None)?;
        args.dma_address = world.memory[&args.handle].address;
        args.offset = u64::from(args.handle) << 12;
        Ok(())
    }

    fn submit(
        &self,
        tasks: &[rocket::drm_rocket_task],
        in_handles: &[u32],
        out_handles: &[u32],
    ) -> Result<(), Errno> {
        let mut world = self.enter("submit")?;
        world.last_lists = (in_handles.to_vec(), out_handles.to_vec());
        if world.jobs == Jobs::Skip || in_handles.iter().any(|handle| out_handles.contains(handle)) {
            return Ok(());
        }
        if world.jobs == Jobs::Hang {
            world.hung = [in_handles, out_handles].concat();
            return Ok(());
        }
        for (index, task) in tasks.iter().enumerate() {
            world.run_task(u64::from(task.regcmd), task.regcmd_count, index);
        }
        Ok(())
    }

    fn prep_bo(&self, args: &mut rocket::drm_rocket_prep_bo) -> Result<(), Errno> {
        let world = self.enter("prep_bo")?;
        assert!(args.timeout_ns > 1_000_000 && args.reserved == 0);
        if !world.memory.contains_key(&args.handle) {
            return Err(Errno::ENOENT);
        }
        let waits = !world.hung.is_empty() && world.last_lists.1.contains(&args.handle);
        if waits { Err(Errno::ETIMEDOUT) } else { Ok(()) }
    }

    fn fini_bo(&self, args: &mut rocket::drm_rocket_fini_bo) -> Result<(), Errno> {
        let hook = self.world().before_fini.take_if(|(handle, _)| *handle == args.handle);
        if let Some((_, Hook(deed))) = hook {
            deed();
        }
        let world = self.enter("fini_bo")?;
        if world.memory.contains_key(&args.handle) { Ok(()) } else { Err(Errno::ENOENT) }
    }

    fn gem_close(&self, handle: u32) -> Result<(), Errno> {
        self.enter("gem_close")?.memory.remove(&handle).map(drop).ok_or(Errno::EINVAL)
    }

    fn mmap(&self, offset: u64, len: usize) -> Result<Mapping, Errno> {
        self.map(offset, len)
    }

    fn export_dma_buf(&self, handle: u32) -> Result<OwnedFd, Errno> {
        self.export(handle)
    }

    fn reopen(&self) -> Result<Arc<dyn RocketKernel>, Errno> {
        let mut world = self.enter("reopen")?;
        let fresh = Fake::default();
        world.reopened.push(fresh.clone());
        Ok(Arc::new(fresh))
    }
}

impl Fake {
    /// Rocket: the job that hung is over at last.
    pub(crate) fn unhang(&self) {
        self.world().hung.clear();
    }
}
