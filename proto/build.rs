//! Compiles the .proto files without `protoc`. Messages become prost types; the two streaming
//! services of the data path carry raw frames, so that a record is encoded once and never again.

use std::{env, path::PathBuf};

const FILES: [&str; 7] = [
    "hutong/sync/v1/delta.proto",
    "hutong/sync/v1/publish.proto",
    "hutong/sync/v1/subscribe.proto",
    "hutong/sync/v1/query.proto",
    "hutong/sync/v1/admin.proto",
    "hutong/sync/v1/report.proto",
    "hutong/sync/v1/control.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let mut descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;

    // The stream services are generated below with frames instead of messages.
    for file in &mut descriptors.file {
        file.service
            .retain(|s| !matches!(s.name(), "PublishService" | "SubscribeService"));
    }
    tonic_prost_build::configure()
        .bytes(".hutong.sync.v1")
        .compile_fds(descriptors)?;

    tonic_build::manual::Builder::new().compile(&[
        stream("PublishService", "publish", "Publish"),
        stream("SubscribeService", "subscribe", "Subscribe"),
    ]);
    Ok(())
}

fn stream(service: &str, name: &str, route: &str) -> tonic_build::manual::Service {
    let method = tonic_build::manual::Method::builder()
        .name(name)
        .route_name(route)
        .input_type("crate::frame::Frame")
        .output_type("crate::frame::Frame")
        .codec_path("crate::frame::FrameCodec")
        .client_streaming()
        .server_streaming()
        .build();
    tonic_build::manual::Service::builder()
        .name(service)
        .package("hutong.sync.v1")
        .method(method)
        .build()
}
