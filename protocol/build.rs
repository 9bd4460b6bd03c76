//! Compiles the published contract into Rust types, without a protoc binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let contract = "proto/hyperfactory/v1/hyperfactory.proto";
    println!("cargo:rerun-if-changed={contract}");
    let files = protox::compile([contract], ["proto"])?;
    prost_build::Config::new().compile_fds(files)?;
    Ok(())
}
