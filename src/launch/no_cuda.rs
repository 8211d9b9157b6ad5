//! Takes the place of `cuda.rs` in builds without the feature `cuda`: opening GPUs fails, so no value of
//! [`CudaGpus`] exists. Callers need no `cfg`.

use std::time::Duration;

use super::draft::{Groups, LargestMessages};
use crate::comm::{Local, SingleDeviceGroup};
use crate::config::CommunicatorName;
use crate::device::MakeRandomMatrix;
use crate::device::cpu::Cpu;

/// Opened GPUs; no value exists.
pub(crate) enum CudaGpus {}

/// The communicators of a group; no value exists.
#[expect(dead_code, reason = "only a build with CUDA constructs one")]
pub(crate) enum CudaGroup {
    Alone(Groups<SingleDeviceGroup<Cpu>>),
    P2p(Groups<Local>),
    Nccl(Groups<Local>),
}

impl CudaGpus {
    pub(crate) fn open(_gpus: &[usize], _deterministic: bool) -> anyhow::Result<Self> {
        anyhow::bail!(
            "--device cuda: this binary was built without CUDA (cargo build --release --features cuda)"
        )
    }

    pub(crate) fn describe(&self) -> String {
        match *self {}
    }

    pub(crate) fn ranks(&self) -> usize {
        match *self {}
    }

    pub(crate) fn memory(&self, _fraction: Option<f64>) -> anyhow::Result<u64> {
        match *self {}
    }

    pub(crate) fn read_bandwidth(&self) -> anyhow::Result<f64> {
        match *self {}
    }

    pub(crate) fn random_weights(&self) -> MakeRandomMatrix<Cpu> {
        match *self {}
    }

    pub(crate) fn conditions(&self) -> anyhow::Result<fn() -> String> {
        match *self {}
    }

    pub(crate) fn nearby_cpus(&self) -> anyhow::Result<Vec<Vec<usize>>> {
        match *self {}
    }

    pub(crate) fn log_hardware_errors(&self) -> anyhow::Result<()> {
        match *self {}
    }

    pub(crate) fn group(
        &self,
        _name: CommunicatorName,
        _timeout: Duration,
        _largest: LargestMessages,
    ) -> anyhow::Result<CudaGroup> {
        match *self {}
    }

    pub(crate) fn into_devices(self) -> Vec<Cpu> {
        match self {}
    }
}
