//! GPU state and hardware errors from NVML, NVIDIA's management library.

use std::thread;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::device::Device;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::{NvmlError, NvmlErrorWithSource};

use crate::runner::gib;

/// NVLinks of a GPU to query: an H100 has 18.
const LINKS: u32 = 18;
/// Milliseconds between queries of the clocks while no event arrives.
const POLL_MS: u32 = 2000;
/// Throttle reasons that an operator should fix. A power cap is normal under load and is not among them.
const THROTTLE_REASONS: [(ThrottleReasons, &str); 4] = [
    (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, "thermal slowdown (hardware)"),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, "thermal slowdown (driver)"),
    (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
];

/// One line on the state of a GPU. Omits what the GPU does not report.
pub(crate) fn describe(gpu: &Device<'_>) -> Result<String, NvmlError> {
    let (memory, capability) = (gpu.memory_info()?, gpu.cuda_compute_capability()?);
    let ecc = gpu.is_ecc_enabled().map_or("unknown", |ecc| if ecc.currently_enabled { "on" } else { "off" });
    let links = (0..LINKS).filter(|link| gpu.link_wrapper_for(*link).is_active().unwrap_or(false)).count();
    Ok(format!(
        "{}: {}, capability {}.{}, {} of {} free, ECC {ecc}, {links} NVLinks, {}",
        gpu.index()?,
        gpu.name()?,
        capability.major,
        capability.minor,
        gib(memory.free),
        gib(memory.total),
        conditions(gpu),
    ))
}

/// Clocks, temperature, power and memory errors, which a measurement depends on.
fn conditions(gpu: &Device<'_>) -> String {
    let mut parts = Vec::new();
    if let (Ok(now), Ok(most)) = (gpu.clock_info(Clock::SM), gpu.max_clock_info(Clock::SM)) {
        parts.push(format!("{now} of {most} MHz"));
    }
    if let Ok(mhz) = gpu.clock_info(Clock::Memory) {
        parts.push(format!("memory {mhz} MHz"));
    }
    if let Ok(celsius) = gpu.temperature(TemperatureSensor::Gpu) {
        parts.push(format!("{celsius} C"));
    }
    if let Ok(milliwatts) = gpu.power_usage() {
        parts.push(format!("{} W", milliwatts / 1000));
    }
    if let Ok(errors) = gpu.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile) {
        parts.push(format!("{errors} uncorrected memory errors"));
    }
    parts.extend(throttle_reasons(gpu).map(str::to_owned));
    parts.join(", ")
}

/// Current throttle reasons.
fn throttle_reasons(gpu: &Device<'_>) -> impl Iterator<Item = &'static str> {
    let reasons = gpu.current_throttle_reasons().unwrap_or(ThrottleReasons::NONE);
    THROTTLE_REASONS.into_iter().filter(move |(reason, _)| reasons.contains(*reason)).map(|(_, name)| name)
}

/// Clocks, temperature, power and errors of the GPU at this PCI address, or `unknown` with the reason.
pub(crate) fn conditions_at(pci: &str) -> String {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => return format!("unknown ({error})"),
    };
    nvml.device_by_pci_bus_id(pci).map_or_else(|error| format!("unknown ({error})"), |gpu| conditions(&gpu))
}

/// Starts a thread that logs hardware errors of the GPU at this PCI address until the process ends: Xid
/// errors, uncorrectable memory errors, and throttled clocks. A lost GPU fails the next step or lets it time
/// out, which ends the server; this log says why.
pub(crate) fn log_hardware_errors(pci: String) {
    let thread = thread::Builder::new().name("gpu-watch".to_owned()).spawn(move || {
        if let Err(error) = log_events(&pci) {
            tracing::warn!(gpu = pci, %error, "Xid errors of the GPU are not logged");
        }
    });
    if let Err(error) = thread {
        tracing::warn!(%error, "Xid errors of the GPU are not logged");
    }
}

fn log_events(pci: &str) -> Result<(), NvmlErrorWithSource> {
    let nvml = Nvml::init()?;
    let gpu = nvml.device_by_pci_bus_id(pci)?;
    tracing::info!(gpu = pci, state = conditions(&gpu), "logging hardware errors of the GPU");
    let wanted = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
    let events = gpu.register_events(wanted & gpu.supported_event_types()?, nvml.create_event_set()?)?;
    let mut before = Vec::new();
    loop {
        match events.wait(POLL_MS) {
            Ok(event) => match event.event_data {
                Some(XidError::Value(xid)) => {
                    tracing::error!(
                        gpu = pci,
                        xid,
                        meaning = meaning(xid),
                        "the driver reports an Xid error"
                    );
                }
                Some(XidError::Unknown) => {
                    tracing::error!(gpu = pci, "the driver reports an unknown Xid error")
                }
                None => tracing::error!(gpu = pci, "an uncorrectable memory error"),
            },
            Err(NvmlError::Timeout) => {}
            Err(error) => return Err(error.into()),
        }
        let reasons: Vec<&str> = throttle_reasons(&gpu).collect();
        if reasons != before {
            tracing::warn!(
                gpu = pci,
                reasons = reasons.join(", "),
                "throttling of the GPU's clocks has changed"
            );
        }
        before = reasons;
    }
}

/// Meaning of an Xid and the action it needs (NVIDIA, "Xid Errors", GPU deployment and management
/// documentation).
fn meaning(xid: u64) -> &'static str {
    match xid {
        13 | 31 | 43 => "illegal operation in a kernel: probably a bug of the server",
        48 | 95 => "uncorrectable or uncontained memory error: reset the GPU",
        63 | 64 => "memory rows are pending remapping: reset the GPU soon",
        74 => "NVLink error: check links and switches",
        79 => "the GPU has fallen off the bus: restart the machine",
        94 => "contained memory error: restart the server",
        119 | 120 => "the GPU's system processor does not answer: reset the GPU",
        _ => "see NVIDIA's list of Xid errors",
    }
}
