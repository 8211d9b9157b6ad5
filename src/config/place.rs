//! The settings of where to run: what each kind of device can be told.

use super::{CommunicatorName, ConfigError, DeviceName};

pub(super) fn ranks(size: usize) -> Result<usize, ConfigError> {
    match size {
        1 | 2 | 4 | 8 => Ok(size),
        _ => Err(ConfigError::new("--tensor-parallel-size", format!("expected 1, 2, 4 or 8, got {size}"))),
    }
}

/// A device that knows one way only cannot be told to take another.
pub(super) fn deterministic(wanted: Option<bool>, device: DeviceName) -> Result<bool, ConfigError> {
    match (wanted.unwrap_or(true), device) {
        (false, DeviceName::Cpu) => {
            let message = format!("expected true with --device {}, got false", device.as_str());
            Err(ConfigError::new("--deterministic", message))
        }
        (wanted, _) => Ok(wanted),
    }
}

/// One for each rank.
pub(super) fn gpus(
    named: Option<Vec<usize>>,
    device: DeviceName,
    ranks: usize,
) -> Result<Vec<usize>, ConfigError> {
    let wrong = |message| Err(ConfigError::new("--gpus", message));
    match (named, device) {
        (Some(gpus), DeviceName::Cuda) if gpus.len() == ranks => Ok(gpus),
        (Some(gpus), DeviceName::Cuda) => {
            wrong(format!("expected one for each of {ranks} ranks, got {}", gpus.len()))
        }
        (Some(_), _) => wrong(format!("expected --device cuda, got {}", device.as_str())),
        (None, _) => Ok((0..ranks).collect()),
    }
}

pub(super) fn communicator(
    named: Option<CommunicatorName>,
    device: DeviceName,
    deterministic: bool,
) -> Result<CommunicatorName, ConfigError> {
    let wrong = |message: &str| Err(ConfigError::new("--communicator", message));
    match named {
        Some(_) if device != DeviceName::Cuda => {
            wrong(&format!("expected --device cuda, got {}", device.as_str()))
        }
        Some(CommunicatorName::Nccl) if deterministic => {
            wrong("nccl adds up in an order of its own; expected --deterministic false with it")
        }
        named => Ok(named.unwrap_or(CommunicatorName::P2p)),
    }
}
