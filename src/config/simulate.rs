//! The settings of `--device simulate`.

use std::path::PathBuf;

use super::{ConfigError, DeviceName, ServeArgs};

/// GPUs that are not there.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulation {
    /// Name or file of the GPU.
    pub gpu: String,
    /// Directory of the model whose steps are simulated, if it is not the one whose tokenizer is used.
    pub config: Option<PathBuf>,
    /// Factor on the times of steps; 0 does not wait.
    pub pace: f64,
    /// Mean length of an answer.
    pub answer_tokens: f64,
}

/// What the arguments say of a simulation, of which there is one with `--device simulate` alone.
pub(super) fn simulation(args: &ServeArgs, device: DeviceName) -> Result<Option<Simulation>, ConfigError> {
    let given = [
        ("--gpu", args.gpu.is_some()),
        ("--simulate-config", args.simulate_config.is_some()),
        ("--simulate-pace", args.simulate_pace.is_some()),
        ("--simulate-answer-tokens", args.simulate_answer_tokens.is_some()),
    ];
    if device != DeviceName::Simulate {
        return match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => {
                Err(ConfigError::new(flag, format!("expected --device simulate, got {}", device.as_str())))
            }
            None => Ok(None),
        };
    }
    let pace = args.simulate_pace.unwrap_or(1.0);
    if !(0.0..=1e6).contains(&pace) {
        return Err(ConfigError::new(
            "--simulate-pace",
            format!("expected a factor from 0 to 10^6, got {pace}"),
        ));
    }
    let answer_tokens = args.simulate_answer_tokens.unwrap_or(256.0);
    if !(1.0..=1e9).contains(&answer_tokens) {
        let message = format!("expected from 1 to 10^9 tokens, got {answer_tokens}");
        return Err(ConfigError::new("--simulate-answer-tokens", message));
    }
    let gpu = args.gpu.clone().unwrap_or_else(|| "h100-80gb".to_owned());
    Ok(Some(Simulation { gpu, config: args.simulate_config.clone(), pace, answer_tokens }))
}
