//! The device's memory layouts: feature cubes (NC1HWC2) and weight tiles, both ways.
