//! Which tensors and heads keep eight bits, under a byte budget.
