//! The `octant` binary: wiring only.

fn main() {}
