//! The device that `octant bench` `rank` and `kernels` measure.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::read_bandwidth::read_bandwidth;
use crate::config::MeasuredRankArgs;
use crate::launch::{DeviceChoice, Devices};
use crate::machine;
use crate::stdio::results::print_line;

/// An open device.
pub(super) struct MeasuredDevice {
    /// The device alone.
    pub(super) devices: Devices,
    pub(super) record: DeviceRecord,
}

/// The device in a report.
pub(super) struct DeviceRecord {
    name: String,
    /// Queries clocks, temperature, power and errors of a GPU.
    conditions: Option<Box<dyn Fn() -> String>>,
    before: Option<String>,
    /// Bytes per second that a kernel reads from memory.
    pub(super) read: f64,
}

impl MeasuredDevice {
    /// Opens the device, logs its name and state, and measures its read bandwidth.
    pub(super) fn open(args: &MeasuredRankArgs, deterministic: bool) -> anyhow::Result<Self> {
        let devices = Devices::open(&DeviceChoice {
            device: args.device,
            gpus: vec![0],
            threads: machine::cores(),
            isa: None,
            deterministic,
        })?;
        let name = devices.describe();
        let conditions: Option<Box<dyn Fn() -> String>> = match &devices {
            Devices::Cuda(gpus) => Some(Box::new(gpus.conditions()?)),
            Devices::Cpu(_) | Devices::Simulated(_) => None,
        };
        let before = conditions.as_ref().map(|conditions| conditions());
        tracing::info!("{name}{}", before.as_ref().map_or(String::new(), |before| format!(": {before}")));
        let read = read_bandwidth(&devices)?;
        Ok(Self { devices, record: DeviceRecord { name, conditions, before, read } })
    }
}

impl DeviceRecord {
    /// Logs the device's state after the measurement. With `json` prints `figures`, an object, with what they
    /// were measured on.
    pub(super) fn end(self, args: &MeasuredRankArgs, json: bool, figures: Value) -> anyhow::Result<ExitCode> {
        let Self { name, conditions, before, read } = self;
        let after = conditions.map(|conditions| conditions());
        if let Some(after) = &after {
            tracing::info!("after: {after}");
        }
        if json {
            let mut report = json!({
                "device": name, "before": before, "after": after, "config": args.config, "tp": args.tp,
                "read_bytes_per_s": read,
            });
            if let (Value::Object(report), Value::Object(figures)) = (&mut report, figures) {
                report.extend(figures);
            }
            print_line!("{report:#}")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
