//! Reports a host and its Compose services to a Hyperfactory hub.

fn main() {}
