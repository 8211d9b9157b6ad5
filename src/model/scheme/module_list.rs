//! Lists of modules in quantisation configurations. Each library has its own syntax and its own idea of what
//! an entry covers.

use super::python_regex::{PatternError, PythonRegex};

/// Syntax of a list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Syntax {
    /// compressed-tensors: names of modules and of their classes, and after `re:` Python expressions that
    /// match from the start of a name.
    Named,
    /// `ignored_layers` of vLLM and `modules_to_not_convert` of transformers. vLLM compares whole names.
    /// transformers also takes the start of a name, its end, and an expression that matches from its start.
    Parts,
    /// ModelOpt: shell patterns. Files from older versions list parts of names.
    Shell,
}

/// Whether a list covers a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Covered {
    No,
    /// Only some libraries read the list so that it covers the module, or the list covers a parent or the
    /// fused matrix of the module.
    Perhaps,
    Yes,
}

/// A list of modules.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModuleList {
    syntax: Syntax,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    text: String,
    pattern: Option<PythonRegex>,
}

impl ModuleList {
    /// Compiles the entries of a list.
    ///
    /// # Errors
    /// An entry is not a valid pattern, or has syntax that is not supported; the error names both.
    pub(super) fn new(syntax: Syntax, entries: &[String]) -> Result<Self, PatternError> {
        let entry = |text: &String| {
            let pattern = match syntax {
                Syntax::Named => text.strip_prefix("re:").map(PythonRegex::new).transpose(),
                // `is_part_of` covers plain names.
                Syntax::Parts if is_plain(text) => Ok(None),
                Syntax::Parts => {
                    let pattern = text.strip_prefix("re:").unwrap_or(text);
                    PythonRegex::before(pattern, "(?:(?<=\\.)|(?=\\.|$))").map(Some)
                }
                Syntax::Shell if is_plain(text) => Ok(None),
                Syntax::Shell => PythonRegex::shell(text).map(Some),
            };
            let pattern = pattern.map_err(|error| PatternError(format!("`{text}`: {error}")))?;
            Ok::<_, PatternError>(Entry { text: text.clone(), pattern })
        };
        Ok(Self { syntax, entries: entries.iter().map(entry).collect::<Result<_, _>>()? })
    }

    /// Whether the list covers a linear module, if its entries name modules to leave unquantised.
    ///
    /// # Errors
    /// A pattern needs too many steps.
    pub(super) fn excludes(&self, module: &str) -> Result<Covered, PatternError> {
        let others: Vec<String> = fused(module).into_iter().chain(parents(module)).collect();
        let covered = self.entries.iter().map(|entry| self.entry_covers(entry, module, &others));
        covered.into_iter().try_fold(Covered::No, |most, covered| Ok(most.max(covered?)))
    }

    /// Whether the list covers a linear module, if its entries name modules to quantise.
    ///
    /// # Errors
    /// A pattern needs too many steps.
    pub(super) fn includes(&self, module: &str) -> Result<Covered, PatternError> {
        // Every library finds a linear module by the name of its class.
        let of_class = |entry: &Entry| matches!(entry.text.as_str(), "Linear" | "Module");
        if self.syntax == Syntax::Named && self.entries.iter().any(of_class) {
            return Ok(Covered::Yes);
        }
        self.excludes(module)
    }

    /// Whether an entry covers a module. `others` are its parents and its fused matrix.
    fn entry_covers(&self, entry: &Entry, module: &str, others: &[String]) -> Result<Covered, PatternError> {
        let Entry { text, pattern } = entry;
        let names = |name: &str| match pattern {
            Some(pattern) if text != name => pattern.matches(name),
            _ => Ok(text == name),
        };
        let own = names(module)?;
        let is_part_of = match self.syntax {
            Syntax::Named => is_class_of(text, module),
            Syntax::Parts | Syntax::Shell => module.contains(text),
        };
        let certain = self.syntax != Syntax::Parts || text == module;
        if own && certain {
            return Ok(Covered::Yes);
        }
        if own || is_part_of {
            return Ok(Covered::Perhaps);
        }
        for name in others {
            if names(name)? {
                return Ok(Covered::Perhaps);
            }
        }
        Ok(Covered::No)
    }
}

/// Storage format of a linear weight according to the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoredFormat {
    /// BF16, F16 or F32.
    Float,
    /// E4M3 with scales.
    Fp8,
    /// Either: libraries differ in whether the configuration leaves the module unquantised.
    Either,
}

impl StoredFormat {
    /// Storage format of a linear module's weight, by the lists of quantised and of unquantised modules.
    /// Without `targets` all linear modules are quantised.
    ///
    /// # Errors
    /// A pattern needs too many steps.
    pub(super) fn of(
        module: &str,
        targets: Option<&ModuleList>,
        ignored: &ModuleList,
    ) -> Result<Self, PatternError> {
        let target = targets.map_or(Ok(Covered::Yes), |targets| targets.includes(module))?;
        Ok(match (target, ignored.excludes(module)?) {
            (Covered::No, _) | (_, Covered::Yes) => Self::Float,
            (Covered::Yes, Covered::No) => Self::Fp8,
            _ => Self::Either,
        })
    }
}

/// Whether a text has only the characters of module names: letters, digits, `_` and dots.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
}

/// The name of the matrix that vLLM fuses a module into.
fn fused(module: &str) -> Option<String> {
    let (parent, name) = module.rsplit_once('.')?;
    let fused = match name {
        "q_proj" | "k_proj" | "v_proj" => "qkv_proj",
        "gate_proj" | "up_proj" => "gate_up_proj",
        _ => return None,
    };
    Some(format!("{parent}.{fused}"))
}

/// The parents of a module, the innermost first.
fn parents(module: &str) -> impl Iterator<Item = String> {
    module.rmatch_indices('.').map(|(end, _)| module[..end].to_owned())
}

/// Whether a class is that of a module or of one of its parents, in transformers or in vLLM.
fn is_class_of(class: &str, module: &str) -> bool {
    const PARENTS: [&str; 5] =
        ["DecoderLayer", "Model", "ForCausalLM", "PreTrainedModel", "ForSequenceClassification"];
    let (attention, mlp) = (module.contains(".self_attn."), module.contains(".mlp."));
    match class {
        "Linear" | "LinearBase" | "Module" | "ModuleList" => return true,
        "QKVParallelLinear" => return attention && !module.ends_with(".o_proj"),
        "MergedColumnParallelLinear" | "ColumnParallelLinear" => {
            return mlp && !module.ends_with(".down_proj");
        }
        "RowParallelLinear" => return module.ends_with(".o_proj") || module.ends_with(".down_proj"),
        _ => {}
    }
    match class.strip_prefix("Llama").or_else(|| class.strip_prefix("Nemotron")) {
        Some("Attention" | "SdpaAttention" | "FlashAttention2") => attention,
        Some("MLP") => mlp,
        Some(parent) => PARENTS.contains(&parent),
        None => false,
    }
}
