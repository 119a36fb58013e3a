//! The generated messages and services. Only edges use them: they convert once, here nothing does.

#![allow(missing_debug_implementations, clippy::pedantic, clippy::all)]

tonic::include_proto!("hutong.sync.v1");

/// The two services of the data path; they carry [`crate::frame::Frame`]s.
pub mod stream {
    include!(concat!(
        env!("OUT_DIR"),
        "/hutong.sync.v1.PublishService.rs"
    ));
    include!(concat!(
        env!("OUT_DIR"),
        "/hutong.sync.v1.SubscribeService.rs"
    ));
}

/// The compiled descriptors, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
