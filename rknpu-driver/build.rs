//! Generates the table of registers.

fn main() {}
