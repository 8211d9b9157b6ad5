//! Tests of the CUDA device, with those that every device must pass (`tests/device`). They run on a GPU if
//! the machine has one, and with the feature `host-kernels` on the host, with the same kernels compiled by
//! g++.

#![allow(clippy::unwrap_used)]

mod cublaslt_linear;
mod dev;
#[path = "../device/mod.rs"]
mod device;
#[cfg(feature = "host-kernels")]
mod emulator;
mod memory;
#[cfg(feature = "cuda")]
mod nccl;
mod p2p;
mod required;
mod self_test;
mod stream_read;
