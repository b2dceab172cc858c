use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let set = std::fs::read(format!("{}/dinemesh.binpb", std::env::var("CONTRACTS")?))?;
    tonic_prost_build::configure()
        .build_server(false)
        .include_file("contracts.rs")
        .compile_fds(prost_types::FileDescriptorSet::decode(&*set)?)?;
    Ok(())
}
