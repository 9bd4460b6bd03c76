//! The centre of a Hyperfactory fleet.

fn main() {}
