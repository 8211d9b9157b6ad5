//! The CUDA device does what every device must (`tests/device`): on a GPU where there is one, and with the feature
//! `host-kernels` on the host, where g++ compiled the same kernels.

#![allow(clippy::unwrap_used)]

mod cublaslt_linear;
mod dev;
#[path = "../device/mod.rs"]
mod device;
mod memory;
#[cfg(feature = "cuda")]
mod nccl;
mod p2p;
mod stream_read;
