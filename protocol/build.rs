//! Compiles the published contract into Rust types, without a protoc binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let contract = "proto/hyperfactory/v1/hyperfactory.proto";
    println!("cargo:rerun-if-changed={contract}");
    let files = protox::compile([contract], ["proto"])?;
    // An agent's batches do not carry the room for what bridges alone tell.
    prost_build::Config::new().boxed(".hyperfactory.v1.NodeStatus.bridge").compile_fds(files)?;
    Ok(())
}
