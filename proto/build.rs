//! Generates the gRPC code from the `.proto` files. protox compiles them, so no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use tonic_prost_build::FileDescriptorSet;

const FILES: [&str; 6] = [
    "rookery/v1/inference.proto",
    "rookery/v1/gateway.proto",
    "rookery/v1/models.proto",
    "rookery/v1/fleet.proto",
    "rookery/v1/rollouts.proto",
    "rookery/v1/enrolment.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors: FileDescriptorSet = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("rookery.v1.descriptors.bin");
    fs::write(out, prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
