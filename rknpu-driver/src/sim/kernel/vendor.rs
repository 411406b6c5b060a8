//! The vendor's `rknpu` driver, 0.9.8: memory and questions. Jobs are in `vendor_job`.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use super::SimConfig;
use super::address::{PAGE, Placement};
use super::domain::Domains;
use super::engine::Engine;
use super::objects::{Handles, NoObject, Object, Store, Usage, Wanted, lock};
use super::presence::Presence;
use super::schedule::{Cores, WorkLog};
use crate::buffer::Mapping;
use crate::sim::faults::FaultCounts;
use crate::uapi::vendor::*;
use crate::uapi::{DriverVersion, Errno, NodeDescription, SimulatedWork, VendorKernel};

/// "FIRE": what an RK3588's version register answers (seen in traces of one board).
const HARDWARE_VERSION: u32 = 0x4649_5245;
/// 0.9.8 as the driver packs it.
const DRIVER_VERSION: u32 = 908;
/// Microvolts. No program is known to depend on it.
const NOMINAL_VOLTAGE: u32 = 800_000;
/// The kernel's addresses of objects look like this; a program only hands them back.
const KERNEL_ADDRESS: u64 = 0xffff_ff80_0000_0000;
/// Distance of those addresses.
const OBJECT_BYTES: u64 = 0x400;

// Actions that the program side has no use for.
const RKNPU_ACT_CLR_TOTAL_RW_AMOUNT: u32 = 13;
const RKNPU_GET_TOTAL_RW_AMOUNT: u32 = 17;
const RKNPU_SET_PROC_NICE: u32 = 19;
const RKNPU_SET_IOMMU_DOMAIN_ID: u32 = 25;

/// An RK3588's NPU under the vendor's driver. Every descriptor of it shares the cores, the domains and their addresses.
#[derive(Debug)]
pub struct VendorNode {
    pub(super) engine: Engine,
    pub(super) domains: Domains,
    pub(super) store: Arc<Store>,
    pub(super) presence: Presence,
    pub(super) cores: Cores,
    sram_bytes: u64,
}

impl VendorNode {
    /// A device that nobody has opened; `config.interface` is not looked at.
    #[must_use]
    pub fn new(config: &SimConfig) -> Arc<Self> {
        let store = Store::new(config.sram_bytes);
        Arc::new(Self {
            engine: Engine::new(config),
            domains: Domains::new(config.options.unwritten, &store),
            presence: Presence::default(),
            cores: Cores::default(),
            sram_bytes: config.sram_bytes,
            store,
        })
    }

    /// A descriptor with no memory of its own.
    ///
    /// # Errors
    /// `ENODEV`: the device is gone for good.
    pub fn open(self: &Arc<Self>) -> Result<VendorFile, Errno> {
        let generation = self.presence.open()?;
        self.store.books.files.fetch_add(1, Relaxed);
        Ok(VendorFile {
            node: Arc::clone(self),
            generation,
            handles: Handles::default(),
            log: Mutex::default(),
        })
    }

    /// What it holds now.
    pub fn usage(&self) -> Usage {
        self.store.books.usage()
    }

    /// What was injected so far.
    pub fn faults(&self) -> FaultCounts {
        self.engine.faults.counts()
    }

    /// Why the last stream that stopped did.
    pub fn last_stop(&self) -> Option<String> {
        self.engine.last_stop()
    }

    /// The object at that address of the kernel's. Real ones are not checked: a wrong address is the kernel's own fault.
    pub(super) fn object(&self, address: u64) -> Result<Arc<Object>, Errno> {
        let offset = address.checked_sub(KERNEL_ADDRESS).filter(|offset| offset % OBJECT_BYTES == 0);
        offset.and_then(|offset| self.store.object(offset / OBJECT_BYTES)).ok_or(Errno::EFAULT)
    }
}

/// One open descriptor of a [`VendorNode`]. Dropping it closes it: its handles go, and memory with them.
#[derive(Debug)]
pub struct VendorFile {
    pub(super) node: Arc<VendorNode>,
    generation: u64,
    handles: Handles,
    pub(super) log: Mutex<WorkLog>,
}

impl Drop for VendorFile {
    fn drop(&mut self) {
        self.node.store.books.files.fetch_sub(1, Relaxed);
    }
}

impl VendorFile {
    /// The device.
    pub fn node(&self) -> &Arc<VendorNode> {
        &self.node
    }

    pub(super) fn check(&self) -> Result<(), Errno> {
        self.node.presence.check(self.generation)
    }

    /// `DRM_IOCTL_GEM_CLOSE`, which DRM offers beside the driver's own `RKNPU_MEM_DESTROY`.
    ///
    /// # Errors
    /// `EINVAL`: no such handle.
    pub fn gem_close(&self, handle: u32) -> Result<(), Errno> {
        self.check()?;
        self.handles.remove(handle).map(drop).ok_or(Errno::EINVAL)
    }

    /// The pages behind what mmap finds at `offset`, for a process that maps them itself.
    ///
    /// # Errors
    /// `EINVAL`: no object begins there, or it is shorter than `bytes`.
    pub fn pages(&self, offset: u64, bytes: u64) -> Result<OwnedFd, Errno> {
        self.check()?;
        self.handles.at_offset(offset, bytes)?.export()
    }

    fn create(&self, args: &rknpu_mem_create) -> Result<Arc<Object>, Errno> {
        if args.size == 0 {
            return Err(Errno::EINVAL);
        }
        let domain = u32::try_from(args.iommu_domain_id).map_err(|_| Errno::EINVAL)?;
        let domain_use = self.node.domains.enter(domain)?;
        let wanted = Wanted {
            bytes: args.size,
            placement: Placement::Top { align: alignment(args) },
            flags: args.flags,
            sram: self.sram_wanted(args),
            domain,
        };
        if !self.node.engine.faults.allocation_succeeds() {
            return Err(Errno::ENOMEM);
        }
        let object = domain_use.space().allocate(wanted).map_err(|error| match error {
            // Scattered pages fail where they are mapped, and that is `EFAULT`; contiguous ones fail as a whole.
            NoObject::NoAddress if args.flags & RKNPU_MEM_NON_CONTIGUOUS != 0 => Errno::EFAULT,
            NoObject::NoAddress => Errno::ENOMEM,
            NoObject::NoPages(errno) => errno,
        })?;
        // What the CPU writes to memory that it does not cache arrives without a sync, so no sync will tell of it.
        if args.flags & RKNPU_MEM_CACHEABLE == 0 || args.flags & RKNPU_MEM_ZEROING != 0 {
            object.mark_written(0, object.bytes);
        }
        Ok(object)
    }

    fn sram_wanted(&self, args: &rknpu_mem_create) -> u64 {
        match (args.flags & RKNPU_MEM_TRY_ALLOC_SRAM != 0, args.sram_size) {
            (false, _) => 0,
            (true, 0) => u64::MAX,
            (true, bytes) => bytes.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX),
        }
    }
}

/// The IOVA allocator aligns a range to its own size, up to the next power of two, unless told not to.
fn alignment(args: &rknpu_mem_create) -> u64 {
    if args.flags & RKNPU_MEM_IOMMU_LIMIT_IOVA_ALIGNMENT != 0 {
        PAGE
    } else {
        args.size.checked_next_power_of_two().unwrap_or(1 << 63).max(PAGE)
    }
}

impl VendorKernel for VendorFile {
    fn describe(&self) -> NodeDescription {
        NodeDescription { node: None, simulated: true }
    }

    fn version(&self) -> Result<DriverVersion, Errno> {
        self.check()?;
        Ok(DriverVersion {
            name: DRIVER_NAME.into(),
            major: 0,
            minor: 9,
            patch: 8,
            date: "20240828".into(),
            description: "RKNPU driver (simulated)".into(),
        })
    }

    fn action(&self, args: &mut rknpu_action) -> Result<(), Errno> {
        self.check()?;
        let node = &self.node;
        args.value = match args.flags {
            RKNPU_GET_HW_VERSION => HARDWARE_VERSION,
            RKNPU_GET_DRV_VERSION => DRIVER_VERSION,
            RKNPU_GET_FREQ => node.engine.board.clock_hz as u32,
            RKNPU_GET_VOLT => NOMINAL_VOLTAGE,
            RKNPU_GET_IOMMU_EN => 1,
            RKNPU_GET_TOTAL_SRAM_SIZE => node.sram_bytes as u32,
            RKNPU_GET_FREE_SRAM_SIZE => node.store.sram_free() as u32,
            RKNPU_GET_IOMMU_DOMAIN_ID => node.domains.current(),
            // The RK3588 has no byte counters: all five succeed and leave the value as it came. Niceness is the caller's own affair.
            RKNPU_ACT_CLR_TOTAL_RW_AMOUNT..=RKNPU_GET_TOTAL_RW_AMOUNT | RKNPU_SET_PROC_NICE => args.value,
            RKNPU_ACT_RESET => {
                node.soft_reset();
                args.value
            }
            RKNPU_SET_IOMMU_DOMAIN_ID => {
                node.domains.enter(args.value)?;
                args.value
            }
            // Unknown numbers, and what may not be set from outside: clock and voltage (3 and 5), power on and off (20 and 21), and the bandwidth
            // priorities (7 to 12), which are registers that this chip has not.
            _ => return Err(Errno::EINVAL),
        };
        Ok(())
    }

    fn mem_create(&self, args: &mut rknpu_mem_create) -> Result<(), Errno> {
        self.check()?;
        let object = match self.handles.get(args.handle) {
            Some(object) => object,
            None => {
                let object = self.create(args)?;
                args.handle = self.handles.insert(Arc::clone(&object));
                object
            }
        };
        args.size = object.bytes;
        args.sram_size = object.sram;
        args.obj_addr = KERNEL_ADDRESS + object.serial * OBJECT_BYTES;
        args.dma_addr = u64::from(object.iova);
        Ok(())
    }

    fn mem_map(&self, args: &mut rknpu_mem_map) -> Result<(), Errno> {
        self.check()?;
        args.offset = self.handles.get(args.handle).ok_or(Errno::ENOENT)?.offset;
        Ok(())
    }

    fn mem_destroy(&self, args: &mut rknpu_mem_destroy) -> Result<(), Errno> {
        self.check()?;
        let object = self.handles.get(args.handle).ok_or(Errno::EINVAL)?;
        let _domain = self.node.domains.enter(object.domain)?;
        self.handles.remove(args.handle);
        Ok(())
    }

    fn mem_sync(&self, args: &mut rknpu_mem_sync) -> Result<(), Errno> {
        self.check()?;
        if args.obj_addr == 0 {
            return Err(Errno::EINVAL);
        }
        let object = self.node.object(args.obj_addr)?;
        if object.flags & RKNPU_MEM_CACHEABLE == 0 {
            return Err(Errno::EINVAL);
        }
        let _domain = self.node.domains.enter(object.domain)?;
        if args.flags & RKNPU_MEM_SYNC_TO_DEVICE != 0 {
            object.mark_touched(args.offset, args.size);
        }
        Ok(())
    }

    fn submit(&self, args: &mut rknpu_submit) -> Result<(), Errno> {
        self.submit_job(args)
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

    /// Knows the dma-bufs of this device only, from whichever of its descriptors; another's would need that one's pages.
    fn import_dma_buf(&self, fd: BorrowedFd<'_>) -> Result<u32, Errno> {
        self.check()?;
        let object = self.node.store.object_of(fd).ok_or(Errno::EINVAL)?;
        Ok(self.handles.insert(object))
    }

    fn reopen(&self) -> Result<Arc<dyn VendorKernel>, Errno> {
        Ok(Arc::new(self.node.open()?))
    }

    fn take_simulated(&self) -> Option<SimulatedWork> {
        Some(lock(&self.log).take())
    }
}
