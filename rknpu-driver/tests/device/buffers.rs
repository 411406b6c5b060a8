//! Buffers and jobs without faults.

use std::thread;

use rknpu_driver::buffer::BufferKind;
use rknpu_driver::device::{Device, DomainId, Interface};
use rknpu_driver::error::{AllocateError, JobError, ShareError, SyncError};
use rknpu_driver::sim::kernel::Usage;

use crate::product::{BOTH, Product, cores, simulation};

#[test]
fn everything_is_given_back() {
    for interface in BOTH {
        let simulation = simulation(interface, "");
        let device = simulation.device().unwrap();
        let idle = simulation.usage();
        let domains: Vec<DomainId> = device.domains().iter().take(3).map(|domain| domain.id).collect();
        for (seed, &domain) in domains.iter().enumerate() {
            let product = Product::new(&device, domain, cores(interface), 200, seed as u64).unwrap();
            for _ in 0..3 {
                let report = product.run(&device).unwrap();
                assert!(product.is_right());
                assert!(report.elapsed.as_nanos() > 0 && report.simulated.is_some());
            }
            assert!(device.health().buffers >= 4);
        }
        assert_eq!(device.health().buffers, 0);
        assert_eq!(simulation.usage(), idle, "buffers of {interface:?}");
        drop(device);
        assert_eq!(simulation.usage(), Usage::default(), "descriptors of {interface:?}");
    }
}

#[test]
fn addresses_are_never_zero_and_never_overlap() {
    for interface in BOTH {
        let device = simulation(interface, "").device().unwrap();
        for domain in device.domains() {
            let sizes = [1, 4096, 4097, 100_000, 64];
            let buffers: Vec<_> = sizes
                .into_iter()
                .map(|bytes| device.allocate(domain.id, bytes, BufferKind::Data).unwrap())
                .collect();
            let mut spans: Vec<_> =
                buffers.iter().map(|it| (it.iova(), it.iova() + it.len() as u32)).collect();
            spans.sort_unstable();
            assert_ne!(spans[0].0, 0);
            assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{spans:x?}");
        }
        let beyond = DomainId(device.domains().len() as u8);
        let refused = device.allocate(beyond, 1, BufferKind::Data).map(drop);
        assert_eq!(refused, Err(AllocateError::Domain(beyond)));
    }
}

#[test]
fn jobs_of_all_domains_run_in_one_call() {
    for interface in BOTH {
        let device = simulation(interface, "").device().unwrap();
        let domains = device.domains().iter().take(3).cycle().take(6);
        let products: Vec<Product> = domains
            .enumerate()
            .map(|(seed, domain)| Product::new(&device, domain.id, 1, 64, seed as u64).unwrap())
            .collect();
        // Each writes its input first.
        products.iter().for_each(|product| drop(product.run(&device).unwrap()));
        products.iter().for_each(|product| product.output.write(..).unwrap().fill(0));
        let jobs: Vec<_> = products.iter().map(Product::job).collect();
        let reports = device.run(&jobs).unwrap();
        assert_eq!(reports.len(), 6);
        assert!(products.iter().all(Product::is_right), "{interface:?}");
    }
}

#[test]
fn threads_share_a_device() {
    for interface in BOTH {
        let simulation = simulation(interface, "");
        let device = simulation.device().unwrap();
        thread::scope(|scope| {
            for seed in 0..4_u64 {
                let device: Device = device.clone();
                scope.spawn(move || {
                    let domain = device.domains()[seed as usize % 3].id;
                    let product = Product::new(&device, domain, 1, 96, seed).unwrap();
                    for _ in 0..4 {
                        product.run(&device).unwrap();
                        assert!(product.is_right());
                    }
                });
            }
        });
        assert_eq!((device.health().jobs_done, device.health().buffers), (16, 0));
    }
}

#[test]
fn weights_are_read_while_jobs_use_them() {
    for interface in BOTH {
        let device = simulation(interface, "").device().unwrap();
        let product = Product::new(&device, DomainId(0), 1, 500, 3).unwrap();
        let before = product.weights.to_vec();
        thread::scope(|scope| {
            let weights = product.weights.clone();
            let reader = scope.spawn(move || (0..50).all(|_| weights[..] == before[..]));
            for _ in 0..4 {
                product.run(&device).unwrap();
            }
            assert!(reader.join().unwrap());
        });
        assert!(product.is_right());
    }
}

#[test]
fn a_buffer_in_use_is_waited_for() {
    let device = simulation(Interface::Vendor, "").device().unwrap();
    let product = Product::new(&device, DomainId(0), 1, 64, 1).unwrap();
    product.run(&device).unwrap();
    device.set_access_wait(std::time::Duration::ZERO);
    let guard = product.output.read(..).unwrap();
    let busy = device.run(&[product.job()]).unwrap_err();
    assert!(matches!(busy, JobError::Buffer(SyncError::Busy { holder: "another guard", .. })));
    drop(guard);
    device.run(&[product.job()]).unwrap();
    assert!(!device.is_faulted() && product.is_right());
}

#[test]
fn memory_is_exported_by_both_and_imported_by_the_vendors() {
    for interface in BOTH {
        let device = simulation(interface, "").device().unwrap();
        let domain = device.domains()[0].id;
        let buffer = device.allocate(domain, 5000, BufferKind::Data).unwrap();
        buffer.write(..).unwrap().fill(7);
        #[expect(unsafe_code, reason = "this test has the descriptor, and no import succeeds")]
        // SAFETY: nobody writes the memory through the descriptor: importing it is refused.
        let fd = unsafe { buffer.export() }.unwrap();
        #[expect(unsafe_code, reason = "the exporting buffer has no guard while the imported one does")]
        // SAFETY: as the reason says; the memory keeps its length.
        let imported = unsafe { device.import(domain, std::os::fd::AsFd::as_fd(&fd), 5000) };
        match interface {
            // The same device's own memory: the kernel gives the handle it has.
            Interface::Vendor => assert!(
                matches!(imported, Err(ShareError::Memory(AllocateError::LiveHandle { .. }))),
                "{imported:?}"
            ),
            Interface::Rocket => assert!(matches!(imported, Err(ShareError::Unsupported { .. }))),
        }
        assert_eq!(buffer.read(..3).unwrap()[..], [7; 3]);
    }
}
