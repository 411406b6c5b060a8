//! A fixed set of threads that runs one loop at a time, the caller taking part.
//!
//! A decode step enters the pool about 150 times, a few microseconds apart, so workers spin for some tens of
//! microseconds after a loop before they park; an idle pool uses no CPU. While spinning they yield, so that
//! with more threads than cores the one that has work gets the core.
//!
//! One atomic word holds the state: `epoch << 32 | OPEN | workers inside`. A worker may read the loop only
//! after it has counted itself in while OPEN was set; [`Pool::run`] clears OPEN when no index is left and
//! returns when the count is zero. A worker that wakes too late finds the loop closed and costs nothing.
//!
//! Failure: a panic in a task stops the handing out of indices and is raised again by `run` on the caller.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

const OPEN: u64 = 1 << 31;
const EPOCH: u64 = 1 << 32;
const INSIDE: u64 = OPEN - 1;
/// Pauses before yielding: about 40 µs on Zen 4, longer than the serial gaps inside a decode step.
const SPINS: u32 = 3000;
/// Yields before parking: some tens of microseconds more.
const YIELDS: u32 = 40;

thread_local! {
    /// True while this thread runs a task of some pool; a nested `run` then works in place.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// One loop: what every thread inside needs to take part.
#[derive(Clone, Copy)]
struct Loop {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Worker {
    parked: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

struct Shared {
    state: AtomicU64,
    next: AtomicUsize,
    current: UnsafeCell<Option<Loop>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    workers: Vec<Worker>,
    caller: Worker,
}

// SAFETY: `current` is written only by the holder of `Pool::running` while the loop is closed and nobody is
// inside, and read only by threads counted inside; `state` orders the two. All else is Sync by itself. The
// pointer in `Loop` points to a `Sync` closure, so any thread may call it while it lives.
unsafe impl Sync for Shared {}
// SAFETY: as above; moving `Shared` moves no thread-bound state.
unsafe impl Send for Shared {}

/// A fixed set of threads for data-parallel loops; see the module's head.
pub struct Pool {
    shared: Arc<Shared>,
    running: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// Starts a pool in which `threads` threads compute, the caller included: `threads - 1` are spawned
    /// (fewer, if the system refuses to spawn more). 0 counts as 1.
    pub fn new(threads: usize) -> Pool {
        let workers = || Worker { parked: AtomicBool::new(false), thread: Mutex::new(None) };
        let wanted = threads.clamp(1, 1024) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            current: UnsafeCell::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            workers: (0..wanted).map(|_| workers()).collect(),
            caller: workers(),
        });
        let mut handles = Vec::with_capacity(wanted);
        for index in 0..wanted {
            let theirs = Arc::clone(&shared);
            let spawned = thread::Builder::new()
                .name(format!("kernels-{}", index + 1))
                .spawn(move || work(&theirs, index));
            let Ok(handle) = spawned else { break };
            *lock(&shared.workers[index].thread) = Some(handle.thread().clone());
            handles.push(handle);
        }
        Pool { shared, running: Mutex::new(()), threads: handles }
    }

    /// How many threads compute, the caller included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `f(i)` once for each `i` in `0..tasks`, on any of the threads, and returns when all calls have.
    ///
    /// Loops from several threads take turns; inside a task, a further `run` works in place. Nothing is
    /// allocated.
    ///
    /// # Panics
    /// With the first panic of a task, after every started task has ended; later indices may be skipped.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.threads.is_empty() || IN_TASK.get() {
            return (0..tasks).for_each(f);
        }
        let turn = lock(&self.running);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. `finish` below does not return before OPEN is cleared and no
        // worker is inside, on every path (tasks are run under catch_unwind), so no thread can use the
        // pointer after `f`'s borrow has ended.
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(f)
        };
        // SAFETY: we hold `running`, and the loop before ended closed with nobody inside: no reader exists.
        unsafe { *shared.current.get() = Some(Loop { task, tasks }) };
        shared.next.store(0, Ordering::Relaxed);
        *lock(&shared.caller.thread) = Some(thread::current());
        // Publishes the loop. SeqCst, because it must not pass the reads of `parked` below (see `park`).
        let before = shared.state.load(Ordering::Relaxed);
        shared.state.store((before & !(EPOCH - 1)).wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        for worker in shared.workers.iter().take(self.threads.len().min(tasks - 1)) {
            worker.wake();
        }
        shared.take_part(Loop { task, tasks });
        shared.finish();
        let panic = lock(&shared.panic).take();
        drop(turn);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Calls `f(row, out_row)` for each row of `out`, a `[rows][row_len]` matrix.
    ///
    /// # Panics
    /// When `row_len` does not divide `out.len()`, or with the panic of a call.
    pub fn for_each_row(&self, out: &mut [f32], row_len: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        if out.is_empty() {
            return;
        }
        assert!(
            row_len > 0 && out.len().is_multiple_of(row_len),
            "for_each_row: {} values are not rows of {row_len}",
            out.len()
        );
        let rows = out.len() / row_len;
        let base = SharedMut(out.as_mut_ptr());
        self.run(rows, &|row| {
            // SAFETY: row < rows, so the range lies in `out`, which is borrowed mutably until `run` returns;
            // `run` gives each row to one call only, so no two slices overlap.
            f(row, unsafe { std::slice::from_raw_parts_mut(base.get().add(row * row_len), row_len) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.workers.iter().for_each(Worker::wake);
        for handle in self.threads.drain(..) {
            // A worker catches the panics of tasks, so it ends normally; there is nothing to report.
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// Takes indices until none is left. A panic is kept for the caller and ends the loop for all.
    fn take_part(&self, job: Loop) {
        IN_TASK.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: this thread is the caller, or counted inside an open loop: `run` has not returned, so
            // the closure it borrows is alive; it is `Sync`.
            let task = unsafe { &*job.task };
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= job.tasks {
                    return;
                }
                task(index);
            }
        }));
        IN_TASK.set(false);
        if let Err(payload) = outcome {
            // `tasks` more indices at most were or will be drawn: no overflow, and none is below `tasks`.
            self.next.store(job.tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }

    /// Caller's side: closes the loop and waits until no worker is inside.
    fn finish(&self) {
        if self.state.fetch_and(!OPEN, Ordering::SeqCst) & INSIDE != 0 {
            wait(&self.caller, || self.state.load(Ordering::SeqCst) & INSIDE == 0);
        }
    }

    /// Worker's side: counts itself into the open loop whose epoch is not `seen`.
    fn enter(&self, seen: &mut u64) -> Option<Loop> {
        let mut state = self.state.load(Ordering::SeqCst);
        while state & OPEN != 0 && state / EPOCH != *seen {
            match self.state.compare_exchange_weak(state, state + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => {
                    *seen = state / EPOCH;
                    // SAFETY: OPEN was set when we were counted in, so the caller wrote `current` before and
                    // will not write it again before we leave.
                    return unsafe { *self.current.get() };
                }
                Err(now) => state = now,
            }
        }
        None
    }

    fn leave(&self) {
        let before = self.state.fetch_sub(1, Ordering::SeqCst);
        if before & INSIDE == 1 && before & OPEN == 0 {
            self.caller.wake();
        }
    }
}

impl Worker {
    fn wake(&self) {
        if self.parked.swap(false, Ordering::SeqCst)
            && let Some(thread) = lock(&self.thread).as_ref()
        {
            thread.unpark();
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let me = &shared.workers[index];
    let mut seen = 0;
    loop {
        let mut entered = None;
        wait(me, || {
            entered = shared.enter(&mut seen);
            entered.is_some() || shared.stop.load(Ordering::SeqCst)
        });
        let Some(job) = entered else { return };
        shared.take_part(job);
        shared.leave();
    }
}

/// Spins, then yields, then parks until `done`; whoever makes it true calls [`Worker::wake`] afterwards.
fn wait(me: &Worker, mut done: impl FnMut() -> bool) {
    for spin in 0..SPINS + YIELDS {
        if done() {
            return;
        }
        if spin < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
    }
    loop {
        // `parked` is set before `done` is read, the other side changes what `done` reads before it reads
        // `parked`, all SeqCst: one of the two sees the other, so no wake-up is lost.
        me.parked.store(true, Ordering::SeqCst);
        if done() {
            me.parked.store(false, Ordering::SeqCst);
            return;
        }
        thread::park();
    }
}

/// Nothing is left half-done by a panic while these locks are held, so poisoning carries no news.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pointer that tasks of one loop share; each user proves that its range belongs to one task.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(pub(crate) *mut T);

impl<T> SharedMut<T> {
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

// SAFETY: the pointer alone does nothing; every dereference carries its own proof of disjoint ranges.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

#[cfg(test)]
mod tests;
