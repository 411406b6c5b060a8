//! Prints docs/npu-timing.md: the timing model beside the figures that others published.
//!
//! ```text
//! cargo run --release -p rknpu-driver --example timing_table > docs/npu-timing.md
//! ```
#![expect(clippy::print_stdout, reason = "this program's output is the page")]

mod published;
mod report;

fn main() {
    print!("{}", report::page());
}
