//! The supported model families, and the values that are fixed for each.

use super::error::LoadError;
use super::json::Object;
use crate::device::{Activation, NormKind};

/// Class name of a Nemotron model with a reward head instead of an LM head.
pub(crate) const NEMOTRON_REWARD: &str = "NemotronForSequenceClassification";

/// The supported class names, the family of each, and whether its models have a reward head instead of an LM
/// head.
const CLASSES: [(&str, Family, bool); 4] = [
    ("NemotronForCausalLM", Family::Nemotron, false),
    (NEMOTRON_REWARD, Family::Nemotron, true),
    ("LlamaForCausalLM", Family::Llama, false),
    ("LlamaForSequenceClassification", Family::Llama, true),
];

/// A model family. Families cannot be compared: every use is a `match`, which a new family does not pass
/// unnoticed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Family {
    Nemotron,
    Llama,
}

impl Family {
    /// Reads the class name, the family that it belongs to, and whether its models have a reward head.
    ///
    /// # Errors
    /// The class is not supported, or `model_type` names another family. Libraries differ in which of the two
    /// they go by.
    pub(super) fn read(config: &Object) -> Result<(&'static str, Self, bool), LoadError> {
        let names = config.texts("architectures")?;
        let known = match names.as_slice() {
            [name] => CLASSES.into_iter().find(|(known, ..)| known == name),
            _ => None,
        };
        let Some((architecture, family, has_reward)) = known else {
            let expected = CLASSES.map(|(name, ..)| format!("[\"{name}\"]")).join(" or ");
            return Err(config.error("architectures", format!("expected {expected}, got {names:?}")));
        };
        match config.text("model_type")? {
            Some(name) if name != family.model_type() => {
                let expected = family.model_type();
                let message = format!("expected `{expected}` beside `{architecture}`, got `{name}`");
                Err(config.error("model_type", message))
            }
            _ => Ok((architecture, family, has_reward)),
        }
    }

    fn model_type(self) -> &'static str {
        match self {
            Self::Nemotron => "nemotron",
            Self::Llama => "llama",
        }
    }

    pub(super) fn norm(self) -> NormKind {
        match self {
            Self::Nemotron => NormKind::LayerNorm1p,
            Self::Llama => NormKind::RmsNorm,
        }
    }

    /// Keys of the norm's epsilon, the first of which takes precedence, and the default.
    pub(super) fn norm_eps(self) -> (&'static [&'static str], f64) {
        match self {
            Self::Nemotron => (&["norm_eps", "layer_norm_eps"], 1e-5),
            Self::Llama => (&["rms_norm_eps"], 1e-6),
        }
    }

    /// Value of `hidden_act`, and the activation that it means.
    pub(super) fn activation(self) -> (&'static str, Activation) {
        match self {
            Self::Nemotron => ("relu2", Activation::SquaredRelu),
            Self::Llama => ("silu", Activation::SwiGlu),
        }
    }
}
