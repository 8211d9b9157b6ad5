//! What NVIDIA's management library says of a GPU: its state, and what goes wrong with it while it serves.

use std::thread;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::device::Device;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::{NvmlError, NvmlErrorWithSource};

use crate::runner::gib;

/// Links of a GPU that are looked at: an H100 has 18.
const LINKS: u32 = 18;
/// How often clocks are looked at, where nothing happens.
const LOOK_MS: u32 = 2000;
/// What slows a GPU down though it has work to do, and somebody should mend. A power cap is not among them: under load
/// it is the rule.
const SLOW: [(ThrottleReasons, &str); 4] = [
    (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, "too hot (hardware)"),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, "too hot (driver)"),
    (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
];

/// State of one GPU, for people. What it does not have, or does not tell, is left out.
pub fn describe(gpu: &Device<'_>) -> Result<String, NvmlError> {
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

/// Clocks, temperature, power and errors: what a measurement is worth depends on them.
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
    parts.extend(slow(gpu).map(str::to_owned));
    parts.join(", ")
}

/// Why it is slower than it should be.
fn slow(gpu: &Device<'_>) -> impl Iterator<Item = &'static str> {
    let reasons = gpu.current_throttle_reasons().unwrap_or(ThrottleReasons::NONE);
    SLOW.into_iter().filter(move |(reason, _)| reasons.contains(*reason)).map(|(_, name)| name)
}

/// The conditions of the GPU at this PCI address, or why they are not known.
pub fn conditions_at(pci: &str) -> String {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => return format!("unknown ({error})"),
    };
    nvml.device_by_pci_bus_id(pci).map_or_else(|error| format!("unknown ({error})"), |gpu| conditions(&gpu))
}

/// Logs what goes wrong with the GPU at this PCI address, until the process ends: Xid errors, memory errors that ECC
/// could not correct, and clocks held down. A GPU that is lost for good fails the next step, or lets it time out, and
/// that ends the server; this says why.
pub fn watch(pci: String) {
    let watching = thread::Builder::new().name("gpu-watch".to_owned()).spawn(move || {
        if let Err(error) = log_events(&pci) {
            tracing::warn!(gpu = pci, %error, "the GPU is not watched for Xid errors");
        }
    });
    if let Err(error) = watching {
        tracing::warn!(%error, "the GPU is not watched for Xid errors");
    }
}

fn log_events(pci: &str) -> Result<(), NvmlErrorWithSource> {
    let nvml = Nvml::init()?;
    let gpu = nvml.device_by_pci_bus_id(pci)?;
    tracing::info!(gpu = pci, state = conditions(&gpu), "watching the GPU");
    let wanted = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
    let events = gpu.register_events(wanted & gpu.supported_event_types()?, nvml.create_event_set()?)?;
    let mut slow_before = Vec::new();
    loop {
        match events.wait(LOOK_MS) {
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
                None => tracing::error!(gpu = pci, "a memory error that ECC could not correct"),
            },
            Err(NvmlError::Timeout) => {}
            Err(error) => return Err(error.into()),
        }
        let slow: Vec<&str> = slow(&gpu).collect();
        if slow != slow_before {
            tracing::warn!(
                gpu = pci,
                reasons = slow.join(", "),
                "the GPU's clocks are held down, or no more"
            );
        }
        slow_before = slow;
    }
}

/// What an Xid says, and who must act (NVIDIA, "Xid Errors", GPU deployment and management documentation).
fn meaning(xid: u64) -> &'static str {
    match xid {
        13 | 31 | 43 => "a kernel did something illegal: most likely a bug of the server",
        48 | 95 => "a memory error that could not be corrected or contained: reset the GPU",
        63 | 64 => "memory rows are being remapped: reset the GPU soon",
        74 => "an NVLink error: look at links and switches",
        79 => "the GPU has fallen off the bus: restart the machine",
        94 => "a memory error that was contained: restart the server",
        119 | 120 => "the GPU's system processor does not answer: reset the GPU",
        _ => "see NVIDIA's list of Xid errors",
    }
}
