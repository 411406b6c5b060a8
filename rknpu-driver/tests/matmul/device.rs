//! Through buffers, bound jobs and a simulated device, as programs do it.
