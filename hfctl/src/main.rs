//! The operators' command line for a Hyperfactory hub.

fn main() {}
