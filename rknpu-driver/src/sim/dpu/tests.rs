//! Tests of the DPU: each stage by numbers worked out by hand, properties against small formulas, streams that mean
//! harm.

mod bulk;
mod floating;
mod hostile;
mod integer;
mod layout;
mod operands;
