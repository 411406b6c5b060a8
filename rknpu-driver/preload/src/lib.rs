//! `librknpu_sim.so`: preloaded into a program, it puts a simulated NPU behind the device nodes that the program opens.
//!
//! ```text
//! LD_PRELOAD=target/release/librknpu_sim.so RKNPU_SIM=rocket PROGRAM
//! ```
//!
//! | variable | meaning |
//! |---|---|
//! | `RKNPU_SIM` | `vendor` (default): `/dev/dri/renderD128` is Rockchip's driver; `rocket`: `/dev/accel/accel0` is mainline's |
//! | `RKNPU_SIM_NODE` | another path for that node |
//! | `RKNPU_SIM_FAULTS` | faults to inject, e.g. `seed=7,timeout=0.01,nomem@3`; see `rknpu_driver::sim::faults` |
//! | `RKNPU_SIM_THREADS` | cores that compute at once, 1 to 3 |
//! | `RKNPU_SIM_UNWRITTEN` | `zero`: memory that nobody wrote reads as zeros; otherwise a job that reads such memory hangs |
//!
//! Each process has a device of its own, shared by all its descriptors. Descriptors are real ones (timers that never expire: poll never
//! reports them, as it never does an NPU's), so numbers, duplicates and `select` work as they would. Buffers are memfds, and what the program
//! maps is the very memory that the simulator computes on. Why a stream hangs goes to standard error, in one line.
//!
//! # What is replaced
//! `open`, `openat`, `close`, `close_range`, `dup*`, `fcntl`, `ioctl`, `mmap`, `stat*`, `fstat*`, `lstat*`, `statx`, `access`, `faccessat` and their variants
//! in glibc. Calls that do not concern the node go on to the next definition. Not replaced: raw system calls, statically linked programs, listing
//! of directories, `/sys`.
//!
//! # Fork
//! A child begins without a device: descriptors inherited from its parent are dead timers there (`ioctl` gives `ENOTTY`), and it may open the node
//! anew. On a board the child would share the parent's. Inherited mappings stay mapped to the parent's buffers.
//!
//! A child made by `vfork`, or by a bare `clone`, which run no handlers of fork, has no device at all: every call there goes on to the next definition. It can
//! close, duplicate and exec, and its parent's descriptors stay what they are; it cannot open the node.
//!
//! # Variadic functions
//! `open`, `openat`, `fcntl` and `ioctl` are variadic in C, and stable Rust cannot define such functions. They are defined here with all their parameters
//! fixed. That is the same to the caller: in the System V ABI of x86-64 (3.2.3, 3.5.7) and in AAPCS64 as Linux uses it (6.4, 6.8), integer and
//! pointer arguments of a variadic call travel in the same registers as those of an ordinary call (`rdi rsi rdx rcx`, `x0`–`x3`), in the same
//! order; a variadic caller on x86-64 additionally sets `al`, which an ordinary callee does not look at. A caller that leaves the last argument out leaves
//! garbage in its register; it is passed on only where the kernel would not look at it either (`open` without `O_CREAT`, an `fcntl` or `ioctl` without an
//! argument). Going on to the real functions, calls are made through variadic types, as their definitions demand. Apple's AAPCS64
//! variant passes variadic arguments on the stack; this library is for Linux.
#![expect(unsafe_code, reason = "defines C functions over raw pointers and descriptors")]

mod calls;
mod ioctl;
mod process;
mod real;
mod settings;
mod stat;
mod user;

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!(
    "the NPU's kernel interfaces and this library's calling conventions are those of 64-bit Linux"
);
