//! What the system says of the NPU: clocks, temperatures, driver, SRAM; and what is wrong with it.
