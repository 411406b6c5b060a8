//! Scenarios of a fleet in one process.

mod cancel;
mod drain;
mod generate;
mod hostile;
mod protocols;
mod refusals;
mod routing;
