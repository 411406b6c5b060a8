//! The engine on tiny random models, driven step by step or through its handle.

mod identity;
mod lifecycle;
mod outcomes;
mod support;
mod threaded;
