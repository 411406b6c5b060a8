//! Buffers against shadow models.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::state::{LINE, Refusal, Users};
use super::{Buffer, BufferKind};
use crate::device::tests::fake::{Fake, Jobs};
use crate::device::tests::{expected, job, prepare};
use crate::device::{Device, DomainId};
use crate::error::{JobError, SyncError};

/// Lines of the modelled buffer.
const LINES: usize = 6;

/// What may happen to a buffer's users.
#[derive(Clone, Debug)]
enum Step {
    EnterGuard { start: usize, len: usize, write: bool },
    LeaveGuard(prop::sample::Index),
    EnterJob { write: bool },
    LeaveJob(prop::sample::Index),
    Seal,
    Quarantine(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..LINES * LINE, 0..3 * LINE, any::<bool>());
    prop_oneof![
        4 => range.prop_map(|(start, len, write)| Step::EnterGuard { start, len, write }),
        3 => any::<prop::sample::Index>().prop_map(Step::LeaveGuard),
        3 => any::<bool>().prop_map(|write| Step::EnterJob { write }),
        3 => any::<prop::sample::Index>().prop_map(Step::LeaveJob),
        1 => Just(Step::Seal),
        1 => any::<bool>().prop_map(Step::Quarantine),
    ]
}

/// The rules said once more, line by line and without ranges.
#[derive(Default)]
struct Shadow {
    guards: Vec<(usize, usize, bool)>,
    jobs: Vec<bool>,
    sealed: bool,
    quarantined: bool,
}

impl Shadow {
    fn closed(&self, write: bool) -> Option<Refusal> {
        match (self.sealed, write, self.quarantined) {
            (true, true, _) => Some(Refusal::Sealed),
            (false, _, true) => Some(Refusal::Quarantined),
            (true, false, _) | (false, _, false) => None,
        }
    }

    /// Readers and writers among the guards that touch a line.
    fn on_line(&self, line: usize) -> impl Iterator<Item = bool> {
        let touches = move |start: usize, len: usize| (start..start + len).any(|byte| byte / LINE == line);
        self.guards.iter().filter(move |&&(start, len, _)| touches(start, len)).map(|&(_, _, write)| write)
    }

    fn guard(&self, start: usize, len: usize, write: bool) -> Option<Refusal> {
        let job = self.jobs.iter().any(|&writes| writes || write);
        let mut lines = (start..start + len).map(|byte| byte / LINE);
        let guard = lines.any(|line| self.on_line(line).any(|other| other || write));
        self.closed(write).or(job.then_some(Refusal::Job)).or(guard.then_some(Refusal::Guard))
    }

    fn job(&self, write: bool) -> Option<Refusal> {
        let guard = self.guards.iter().any(|&(_, _, writes)| writes || write);
        let job = self.jobs.iter().any(|&writes| writes || write);
        self.closed(write).or(guard.then_some(Refusal::Guard)).or(job.then_some(Refusal::Job))
    }

    fn seal(&self) -> Option<Refusal> {
        if self.sealed {
            return None;
        }
        let guard = self.guards.iter().any(|&(_, _, writes)| writes);
        let quarantined = self.quarantined.then_some(Refusal::Quarantined);
        quarantined.or(guard.then_some(Refusal::Guard)).or(self.jobs.contains(&true).then_some(Refusal::Job))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn users_follow_the_shadow(steps in prop::collection::vec(step(), 1..40)) {
        let (mut users, mut shadow) = (Users::default(), Shadow::default());
        for step in steps {
            match step {
                Step::EnterGuard { start, len, write } => {
                    let expected = shadow.guard(start, len, write);
                    prop_assert_eq!(users.enter_guard(start..start + len, write).err(), expected);
                    if expected.is_none() {
                        shadow.guards.push((start, len, write));
                    }
                }
                Step::LeaveGuard(index) => {
                    if !shadow.guards.is_empty() {
                        let (start, len, write) = shadow.guards.remove(index.index(shadow.guards.len()));
                        users.leave_guard(start..start + len, write);
                    }
                }
                Step::EnterJob { write } => {
                    let expected = shadow.job(write);
                    prop_assert_eq!(users.enter_job(write).err(), expected);
                    if expected.is_none() {
                        shadow.jobs.push(write);
                    }
                }
                Step::LeaveJob(index) => {
                    if !shadow.jobs.is_empty() {
                        let write = shadow.jobs.remove(index.index(shadow.jobs.len()));
                        users.leave_job(write);
                    }
                }
                Step::Seal => {
                    let expected = shadow.seal();
                    prop_assert_eq!(users.may_seal().err(), expected);
                    if expected.is_none() {
                        users.seal();
                        shadow.sealed = true;
                    }
                }
                Step::Quarantine(on) => {
                    users.set_quarantined(on);
                    shadow.quarantined = on;
                }
            }
            prop_assert_eq!(users.guards(), shadow.guards.len());
            prop_assert_eq!(users.is_sealed(), shadow.sealed);
        }
    }
}

/// What may happen to a device's buffers.
#[derive(Clone, Debug)]
enum Deed {
    Allocate(usize),
    Write { buffer: prop::sample::Index, at: prop::sample::Index, byte: u8 },
    Read(prop::sample::Index),
    Seal(prop::sample::Index),
    Run { input: prop::sample::Index, output: prop::sample::Index, hangs: bool },
    Drop(prop::sample::Index),
    Reset,
}

fn deed() -> impl Strategy<Value = Deed> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        3 => (16..600_usize).prop_map(Deed::Allocate),
        4 => (index(), index(), any::<u8>()).prop_map(|(buffer, at, byte)| Deed::Write { buffer, at, byte }),
        2 => index().prop_map(Deed::Read),
        1 => index().prop_map(Deed::Seal),
        4 => (index(), index(), prop::bool::weighted(0.2))
            .prop_map(|(input, output, hangs)| Deed::Run { input, output, hangs }),
        1 => index().prop_map(Deed::Drop),
        1 => Just(Deed::Reset),
    ]
}

/// What a buffer must hold, and what it must refuse.
struct Model {
    buffer: Buffer,
    bytes: Vec<u8>,
    sealed: bool,
    quarantined: bool,
}

impl Model {
    fn refusal(&self, write: bool) -> Option<SyncError> {
        match (self.sealed, self.quarantined) {
            (true, _) => write.then_some(SyncError::Sealed),
            (false, quarantined) => quarantined.then_some(SyncError::Quarantined),
        }
    }
}

fn run_deeds(deeds: Vec<Deed>) -> Result<(), TestCaseError> {
    const DOMAIN: DomainId = DomainId(0);
    let fake = Fake::default();
    let device = Device::over_vendor(Arc::new(fake.clone())).unwrap();
    device.set_access_wait(Duration::ZERO);
    let mut models: Vec<Model> = Vec::new();
    let mut faulted = false;
    for deed in deeds {
        if models.is_empty() && !matches!(deed, Deed::Allocate(_) | Deed::Reset) {
            continue;
        }
        match deed {
            Deed::Allocate(len) => {
                let buffer = device.allocate(DOMAIN, len, BufferKind::Data).unwrap();
                models.push(Model { buffer, bytes: vec![0; len], sealed: false, quarantined: false });
            }
            Deed::Write { buffer, at, byte } => {
                let model = buffer.get_mut_in(&mut models);
                let at = at.index(model.bytes.len());
                let written = model.buffer.write(at..).map(|mut guard| guard.fill(byte));
                prop_assert_eq!(&written.err(), &model.refusal(true));
                if model.refusal(true).is_none() {
                    model.bytes[at..].fill(byte);
                }
            }
            Deed::Read(buffer) => {
                let model = buffer.get_in(&models);
                let read = model.buffer.read(..).map(|guard| guard.to_vec());
                prop_assert_eq!(read, model.refusal(false).map_or(Ok(model.bytes.clone()), Err));
            }
            Deed::Seal(buffer) => {
                let model = buffer.get_mut_in(&mut models);
                let sealed = model.buffer.clone().seal().map(|sealed| sealed.to_vec());
                let expected = model.refusal(false).map_or(Ok(model.bytes.clone()), Err);
                prop_assert_eq!(&sealed, &expected);
                model.sealed |= expected.is_ok();
            }
            Deed::Run { input, output, hangs } => {
                let (input, output) = (input.index(models.len()), output.index(models.len()));
                run_one(&device, &fake, &mut models, &mut faulted, (input, output, hangs))?;
            }
            Deed::Drop(buffer) => {
                models.swap_remove(buffer.index(models.len()));
            }
            Deed::Reset => {
                device.reset().unwrap();
                faulted = false;
                models.iter_mut().for_each(|model| model.quarantined = false);
            }
        }
        prop_assert_eq!(device.is_faulted(), faulted);
    }
    device.reset().unwrap();
    drop(models);
    prop_assert_eq!(device.health().buffers, 0);
    prop_assert_eq!(device.health().buffer_bytes, 0);
    prop_assert!(fake.world().memory.is_empty());
    Ok(())
}

/// Prepares and runs a job of one task, and says what must become of it.
fn run_one(
    device: &Device,
    fake: &Fake,
    models: &mut [Model],
    faulted: &mut bool,
    (input, output, hangs): (usize, usize, bool),
) -> Result<(), TestCaseError> {
    let (from, to) = (models[input].buffer.clone(), models[output].buffer.clone());
    let (from_iova, to_iova) = (from.iova(), to.iova());
    let prepared = prepare(device, job(device, DomainId(0), &[(0, 1)], from, to));
    let expected_error = if input == output {
        Some(JobError::ListedTwice { iova: from_iova })
    } else {
        models[output].sealed.then_some(JobError::Sealed { iova: to_iova })
    };
    if expected_error.is_some() {
        prop_assert_eq!(prepared.map(drop).err(), expected_error);
        return Ok(());
    }
    fake.set_jobs(if hangs { Jobs::Hang } else { Jobs::Run });
    let ran = device.run(&[&prepared.unwrap()]).map(drop);
    if *faulted {
        prop_assert!(matches!(ran, Err(JobError::Faulted(_))));
    } else if hangs {
        prop_assert!(matches!(ran, Err(JobError::TimedOut { .. })), "{ran:?}");
        *faulted = true;
        models[input].quarantined = true;
        models[output].quarantined = true;
    } else {
        prop_assert_eq!(ran, Ok(()));
        models[output].bytes[..16].copy_from_slice(&expected(0));
    }
    Ok(())
}

trait GetIn {
    fn get_in<T>(self, items: &[T]) -> &T;
    fn get_mut_in<T>(self, items: &mut [T]) -> &mut T;
}

impl GetIn for prop::sample::Index {
    fn get_in<T>(self, items: &[T]) -> &T {
        &items[self.index(items.len())]
    }

    fn get_mut_in<T>(self, items: &mut [T]) -> &mut T {
        let index = self.index(items.len());
        &mut items[index]
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn buffers_hold_what_the_shadow_says(deeds in prop::collection::vec(deed(), 1..60)) {
        run_deeds(deeds)?;
    }
}

fn open() -> (Fake, Device) {
    let fake = Fake::default();
    let device = Device::over_vendor(Arc::new(fake.clone())).unwrap();
    (fake, device)
}

#[test]
fn ranges_are_checked_and_kept_apart_by_lines() {
    let (_, device) = open();
    device.set_access_wait(Duration::ZERO);
    let buffer = device.allocate(DomainId(0), 200, BufferKind::Data).unwrap();
    assert_eq!(buffer.read(10..201).unwrap_err(), SyncError::Range { start: 10, end: 201, len: 200 });
    #[expect(clippy::reversed_empty_ranges, reason = "refused")]
    let reversed = buffer.write(9..3).map(drop);
    assert_eq!(reversed, Err(SyncError::Range { start: 9, end: 3, len: 200 }));
    assert_eq!(
        buffer.read(..=usize::MAX).map(drop),
        Err(SyncError::Range { start: 0, end: usize::MAX, len: 200 })
    );
    let guard = buffer.write(0..64).unwrap();
    assert!(buffer.write(64..200).is_ok(), "the next line is free");
    let busy = SyncError::Busy { holder: "another guard", waited: Duration::ZERO };
    assert_eq!(buffer.read(63..65).map(drop), Err(busy.clone()));
    assert_eq!(buffer.clone().seal().map(drop), Err(busy));
    assert!(buffer.read(5..5).is_ok_and(|empty| empty.is_empty()));
    guard.finish().unwrap();
    let (first, second) = (buffer.read(..).unwrap(), buffer.read(..).unwrap());
    assert_eq!(first[..], second[..]);
}

#[test]
fn only_what_changed_is_synced() {
    let (fake, device) = open();
    let buffer = device.allocate(DomainId(0), 4096, BufferKind::Data).unwrap();
    let before = fake.count("mem_sync");
    drop(buffer.read(..).unwrap());
    assert_eq!(fake.count("mem_sync"), before, "the device wrote nothing");
    drop(buffer.write(100..200).unwrap());
    assert_eq!(fake.count("mem_sync"), before + 1);
    let sealed = buffer.clone().seal().unwrap();
    assert_eq!(sealed[100..200], [0; 100]);
    drop(buffer.read(..).unwrap());
    assert_eq!(fake.count("mem_sync"), before + 1);
}

#[test]
fn a_guard_that_waits_comes_in_when_the_other_leaves() {
    let (_, device) = open();
    let buffer = device.allocate(DomainId(0), 64, BufferKind::Data).unwrap();
    let mut guard = buffer.write(..).unwrap();
    let other = buffer.clone();
    let reader = thread::spawn(move || other.read(..).map(|bytes| bytes[0]));
    guard[0] = 42;
    drop(guard);
    assert_eq!(reader.join().unwrap(), Ok(42));
}

#[test]
fn a_buffer_outlives_its_device() {
    let (fake, device) = open();
    let buffer = device.allocate(DomainId(0), 64, BufferKind::Data).unwrap();
    drop(device);
    buffer.write(..).unwrap().fill(1);
    assert_eq!(buffer.seal().unwrap()[..], [1; 64]);
    assert!(fake.world().memory.is_empty());
}
