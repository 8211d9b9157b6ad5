//! `octant doctor`: checks that this machine has what serving needs.

use std::path::Path;
use std::process::ExitCode;

use crate::device::cpu::Isa;
use crate::launch::devices::describe_limit;
use crate::machine::{MemoryLimit, cores, memory_limits};
use crate::runner::gib;
use crate::stdio::results;

/// A line of the report.
struct Finding {
    name: &'static str,
    /// Description of what was found, or the reason why it is missing.
    outcome: anyhow::Result<String>,
    /// Whether serving fails if the outcome is an error.
    needed: bool,
}

impl Finding {
    fn needed(name: &'static str, outcome: anyhow::Result<String>) -> Self {
        Self { name, outcome, needed: true }
    }
}

/// Prints the report. Exits with status 1 if something that serving needs is missing.
pub fn run() -> anyhow::Result<ExitCode> {
    let mut findings = vec![cpu(), memory()];
    findings.extend(gpu::findings());
    let missing = findings.iter().any(|finding| finding.needed && finding.outcome.is_err());
    let line = |Finding { name, outcome, needed }| match outcome {
        Ok(text) => format!("ok       {name:12} {text}\n"),
        Err(error) if needed => format!("missing  {name:12} {error:#}\n"),
        Err(error) => format!("absent   {name:12} {error:#}\n"),
    };
    results::print(&findings.into_iter().map(line).collect::<String>())?;
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn cpu() -> Finding {
    Finding::needed("cpu", Ok(format!("{} threads, {:?}", cores(), Isa::available()[0])))
}

/// The available memory, and each limit on it.
fn memory() -> Finding {
    let outcome = memory_limits(Path::new("/")).map(|limits| {
        let available = limits.iter().map(MemoryLimit::available).min().unwrap_or_default();
        let limits: Vec<String> = limits.iter().map(describe_limit).collect();
        format!("{} available; {}", gib(available), limits.join("; "))
    });
    Finding::needed("memory", outcome)
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::Finding;

    /// Reports that this build has no CUDA and therefore needs no GPU.
    pub(super) fn findings() -> Vec<Finding> {
        let text = "this binary was built without CUDA and serves on the CPU".to_owned();
        vec![Finding::needed("cuda", Ok(text))]
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use anyhow::{Context, anyhow};
    use nvml_wrapper::Nvml;
    use nvml_wrapper::error::NvmlError;

    use super::Finding;
    use crate::device::DeviceError;
    use crate::device::cuda::{Cuda, Products, library_loads, nccl_version};
    use crate::launch::nvml::describe;

    pub(super) fn findings() -> Vec<Finding> {
        let mut findings = vec![
            library(
                "cublaslt",
                &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
                "only --deterministic false uses it",
            ),
            nccl(),
        ];
        match Nvml::init() {
            Ok(nvml) => findings.extend(gpus(&nvml)),
            Err(error) => findings.push(Finding::needed("driver", Err(error.into()))),
        }
        findings.push(Finding::needed("kernels", kernels().map_err(anyhow::Error::from)));
        findings
    }

    /// Whether the first GPU loads the kernels, and its products are exact.
    fn kernels() -> Result<String, DeviceError> {
        let gpu = Cuda::new(0, Products::default())?;
        gpu.self_test()?;
        Ok(format!("{} loads the kernels; products of integers are exact", gpu.name()))
    }

    /// Whether a library can be loaded by one of its file names. `user` says which setting uses the library.
    fn library(name: &'static str, files: &[&str], user: &str) -> Finding {
        let found = files.iter().find(|file| library_loads(file));
        let missing = || anyhow!("none of {} can be loaded; {user}", files.join(", "));
        Finding { name, outcome: found.map(|file| (*file).to_owned()).ok_or_else(missing), needed: false }
    }

    fn nccl() -> Finding {
        let version = nccl_version().map(|v| format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100));
        let outcome = version.map_err(|e| anyhow!("{}; only --communicator nccl uses it", e.message));
        Finding { name: "nccl", outcome, needed: false }
    }

    fn gpus(nvml: &Nvml) -> Vec<Finding> {
        let version = |nvml: &Nvml| -> Result<String, NvmlError> {
            let cuda = nvml.sys_cuda_driver_version()?;
            Ok(format!("{}, CUDA {}.{}", nvml.sys_driver_version()?, cuda / 1000, cuda % 1000 / 10))
        };
        let outcome = version(nvml).map_err(anyhow::Error::from);
        let mut findings = vec![Finding::needed("driver", outcome)];
        let count = nvml.device_count().unwrap_or(0);
        if count == 0 {
            findings.push(Finding::needed("gpu", Err(anyhow!("the driver reports no GPU"))));
        }
        for index in 0..count {
            let described = nvml.device_by_index(index).and_then(|gpu| describe(&gpu));
            let outcome = described.with_context(|| format!("GPU {index}"));
            findings.push(Finding::needed("gpu", outcome));
        }
        findings
    }
}
