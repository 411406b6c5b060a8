//! Each injected fault, on both interfaces: what is reported, what is kept, how it is mended.

use rknpu_driver::buffer::BufferKind;
use rknpu_driver::device::{Device, DomainId, Interface, Recovery};
use rknpu_driver::error::{AllocateError, Fault, JobError, ResetError};
use rknpu_driver::sim::Simulation;
use rknpu_driver::sim::kernel::Usage;

use crate::product::{BOTH, Product, cores, simulation};

const DOMAIN: DomainId = DomainId(0);

/// A device whose second job meets a fault, and a product that ran once.
fn ready(interface: Interface, faults: &str) -> (Simulation, Device, Product) {
    let simulation = simulation(interface, faults);
    let device = simulation.device().expect("a device");
    let product = Product::new(&device, DOMAIN, cores(interface), 200, 9).expect("room");
    product.run(&device).expect("no fault now");
    assert!(product.is_right());
    (simulation, device, product)
}

/// The device works as if nothing had been.
fn works(simulation: &Simulation, device: Device, product: Product) {
    product.run(&device).expect("no fault now");
    assert!(product.is_right());
    drop((product, device));
    assert_eq!(simulation.usage(), Usage::default());
}

#[test]
fn a_hung_or_silent_job_is_an_error_and_a_reset_mends_it() {
    for interface in BOTH {
        for fault in ["timeout@2", "status@2", "interrupt@2"] {
            let (simulation, device, product) = ready(interface, fault);
            let error = product.run(&device).unwrap_err();
            let named = matches!(error, JobError::TimedOut { .. } | JobError::WrongStatus { .. });
            assert!(named, "{interface:?}, {fault}: {error}");
            let health = device.health();
            assert!(health.fault.is_some() && health.jobs_failed == 1);
            assert!(matches!(device.run(&[product.job()]), Err(JobError::Faulted(_))));
            assert_eq!(device.reset(), Ok(Recovery::Kept), "{interface:?}, {fault}");
            assert_eq!(simulation.faults().total(), 1);
            works(&simulation, device, product);
        }
    }
}

#[test]
fn memory_that_a_hung_job_may_use_is_kept() {
    let (simulation, device, product) = ready(Interface::Vendor, "timeout@2");
    product.run(&device).unwrap_err();
    let held = simulation.usage().bytes;
    drop(product);
    assert_eq!((simulation.usage().bytes, device.health().quarantined_jobs), (held, 1));
    assert_eq!(device.reset(), Ok(Recovery::Kept));
    assert_eq!((simulation.usage().bytes, device.health().buffers), (0, 0));
}

#[test]
fn no_memory_is_an_error_of_the_allocation_alone() {
    for interface in BOTH {
        // Rocket's three descriptors have a page each.
        let first = if interface == Interface::Rocket { 4 } else { 1 };
        let simulation = simulation(interface, &format!("nomem@{first}"));
        let device = simulation.device().unwrap();
        let refused = device.allocate(DOMAIN, 4096, BufferKind::Data).map(drop);
        assert!(matches!(refused, Err(AllocateError::NoMemory { bytes: 4096, .. })), "{refused:?}");
        assert!(!device.is_faulted());
        let product = Product::new(&device, DOMAIN, 1, 64, 1).unwrap();
        works(&simulation, device, product);
    }
}

#[test]
fn a_device_that_comes_back_is_opened_anew() {
    for interface in BOTH {
        let (simulation, device, product) = ready(interface, "gone@2");
        assert_eq!(product.run(&device).map(drop), Err(JobError::Gone));
        assert_eq!(device.health().fault, Some(Fault::Gone));
        let refused = device.allocate(DOMAIN, 1, BufferKind::Data).map(drop);
        assert_eq!(refused, Err(AllocateError::Gone));
        let weights = product.weights.to_vec();
        assert_eq!(device.reset(), Ok(Recovery::BuffersLost), "{interface:?}");
        assert!(product.weights.is_stale() && product.weights[..] == weights[..]);
        assert!(matches!(product.run(&device), Err(JobError::Stale(DOMAIN))));
        drop(product);
        let product = Product::new(&device, DOMAIN, cores(interface), 200, 10).unwrap();
        works(&simulation, device, product);
    }
}

#[test]
fn a_device_that_stays_away_stays_faulted() {
    for interface in BOTH {
        let (simulation, device, product) = ready(interface, "dead@2");
        assert_eq!(product.run(&device).map(drop), Err(JobError::Gone));
        assert!(matches!(device.reset(), Err(ResetError::Failed { .. })), "{interface:?}");
        assert!(device.is_faulted());
        assert_eq!(product.run(&device).map(drop), Err(JobError::Gone));
        assert!(simulation.device().is_err());
        drop((product, device));
        assert_eq!(simulation.usage(), Usage::default(), "{interface:?}");
    }
}

#[test]
fn rockets_other_domains_keep_their_results() {
    let simulation = simulation(Interface::Rocket, "timeout@5");
    let device = simulation.device().unwrap();
    let products: Vec<Product> = (0..3)
        .map(|domain| Product::new(&device, DomainId(domain), 1, 64, u64::from(domain)).unwrap())
        .collect();
    products.iter().for_each(|product| drop(product.run(&device).unwrap()));
    let jobs: Vec<_> = products.iter().map(Product::job).collect();
    // Of these three jobs the second hangs.
    assert!(device.run(&jobs).is_err());
    let health = device.health();
    assert_eq!((health.jobs_done, health.jobs_failed), (5, 1));
    assert!(products[0].is_right() && products[2].is_right());
    assert_eq!(device.reset(), Ok(Recovery::Kept));
    device.run(&jobs).unwrap();
    assert!(products.iter().all(Product::is_right));
}
