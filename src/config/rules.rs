//! Rules of `octant serve` that involve more than one setting, or whose error must not quote the value.

use super::devices::{CommunicatorName, DeviceArgs, DeviceName};
use super::two_batches::TwoBatches;
use super::{ConfigError, ServeArgs, api_keys, name, simulate};

/// Settings that apply to one kind of device, by field name.
const DEVICE_SPECIFIC: [(&str, DeviceName); 7] = [
    ("cpu_instructions", DeviceName::Cpu),
    ("gpus", DeviceName::Cuda),
    ("communicator", DeviceName::Cuda),
    ("gpu", DeviceName::Simulate),
    ("simulate_config", DeviceName::Simulate),
    ("simulate_pace", DeviceName::Simulate),
    ("simulate_answer_tokens", DeviceName::Simulate),
];

impl ServeArgs {
    /// Checks rules that involve more than one setting. `given` says whether a setting, by field name, was
    /// given by a flag, the environment or the file.
    pub(super) fn check(&self, given: impl Fn(&str) -> bool) -> Result<(), ConfigError> {
        let DeviceArgs { device, communicator, deterministic, .. } = self.device;
        let wrong = |flag: &str, message: String| Err(ConfigError::new(flag, message));
        for (field, expected) in DEVICE_SPECIFIC {
            if given(field) && device != expected {
                let (flag, expected, got) = (field.replace('_', "-"), name(&expected), name(&device));
                return wrong(&format!("--{flag}"), format!("expected --device {expected}, got {got}"));
            }
        }
        let (ranks, gpus) = (self.device.ranks(), self.device.gpus().len());
        if gpus != ranks {
            let message =
                format!("expected one number for each rank of --tensor-parallel-size {ranks}, got {gpus}");
            return wrong("--gpus", message);
        }
        if !deterministic && device == DeviceName::Cpu {
            return wrong("--deterministic", "expected true with --device cpu, got false".to_owned());
        }
        if deterministic && communicator == CommunicatorName::Nccl {
            let message = "nccl adds in an order that varies; expected --deterministic false with it";
            return wrong("--communicator", message.to_owned());
        }
        if let Some(tokens) = self.device.two_batch_tokens {
            if device == DeviceName::Cpu {
                let message = "expected --device cuda or simulate, got cpu".to_owned();
                return wrong(TwoBatches::OPTION, message);
            }
            if communicator == CommunicatorName::Nccl {
                return wrong(TwoBatches::OPTION, "expected --communicator p2p, got nccl".to_owned());
            }
            let two_batches = TwoBatches {
                tokens,
                ranks,
                ranks_option: "--tensor-parallel-size",
                deterministic,
                max_num_batched_tokens: self.scheduling.max_num_batched_tokens,
            };
            two_batches.check().or_else(|message| wrong(TwoBatches::OPTION, message))?;
        }
        if given("admin_host") && self.network.admin_port.is_none() {
            return wrong("--admin-host", "expected --admin-port with it".to_owned());
        }
        // The value is a secret, so the message does not quote it.
        if self.network.api_key.as_ref().is_some_and(|key| !api_keys::is_valid(key)) {
            return wrong(
                "--api-key",
                "expected visible ASCII characters, got other characters or none".to_owned(),
            );
        }
        let no_key = self.network.api_key.is_none() && self.network.api_keys.is_none();
        if self.network.require_auth_for_metrics && no_key {
            let message = "expected --api-key or --api-keys with it".to_owned();
            return wrong("--require-auth-for-metrics", message);
        }
        let names = self.model.served_names();
        if let Some(twin) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            return wrong("--served-model-name", format!("expected each name once, got `{}` twice", twin.1));
        }
        simulate::check_policy(self.admission.max_ttft, Some(self.scheduling.kv_reserve))
    }
}
