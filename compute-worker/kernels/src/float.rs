//! The f32 kernels: one generic body each, instantiated per instruction set.

pub(crate) mod attention;
pub(crate) mod body;
pub(crate) mod table;
