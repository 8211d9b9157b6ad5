//! The reward head of a model that scores: the names of its tensors and of its values.
//!
//! NeMo calls the head `rm_head` and may give it a bias; transformers calls it `score` and gives it none. The
//! width is that of the stored weight. Where no checkpoint is at hand, it follows from `config.json`.

use std::path::Path;

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::error::LoadError;
use super::family::Family;
use super::json::Object;

/// NeMo's name of the head.
const NEMO: &str = "rm_head";
/// The name that transformers has for the head.
const TRANSFORMERS: &str = "score";

/// The values of NeMo's heads. Heads of nine values have all of them, the first four of which are not
/// trained; heads of five have the last five.
const ATTRIBUTES: [&str; 9] = [
    "quality",
    "toxicity",
    "humor",
    "creativity",
    "helpfulness",
    "correctness",
    "coherence",
    "complexity",
    "verbosity",
];
/// The number of [`ATTRIBUTES`] that are trained; these are the last.
const TRAINED: usize = 5;
/// Labels of a configuration of transformers that states none.
const DEFAULT_LABELS: usize = 2;

/// The reward head of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewardHead {
    /// The module in the checkpoint: `rm_head` or `score`.
    pub module: &'static str,
    /// Number of values, at least 1.
    pub width: usize,
    /// The names of the values, in the order of the weight's rows.
    pub attributes: Vec<String>,
}

/// A head whose weight is in a checkpoint.
struct StoredHead {
    module: &'static str,
    /// `None` if the weight is not a matrix, which loading reports.
    width: Option<usize>,
}

impl RewardHead {
    /// Reads the head's width from the checkpoint in `dir`, if there is one, and the names of its values
    /// from its configuration.
    ///
    /// # Errors
    /// `id2label` or `num_labels` contradicts the stored width, or is not valid.
    pub(super) fn read(dir: &Path, config: &Object, family: Family) -> Result<Self, LoadError> {
        let labels = labels(config)?;
        let count = config.count("num_labels")?;
        let stored = StoredHead::find(dir);
        let default_module = match family {
            Family::Nemotron => NEMO,
            Family::Llama => TRANSFORMERS,
        };
        let module = stored.as_ref().map_or(default_module, |stored| stored.module);
        let stated = labels.as_ref().map(Vec::len).or(count);
        let default_width = if module == NEMO { ATTRIBUTES.len() } else { DEFAULT_LABELS };
        let width = stored.and_then(|stored| stored.width).or(stated).unwrap_or(default_width);
        let expected = |what: &str| format!("expected {width} {what}, as many as `{module}.weight` has rows");
        if let Some(labels) = labels.as_ref().filter(|labels| labels.len() != width) {
            return Err(config.error("id2label", format!("{}, got {}", expected("names"), labels.len())));
        }
        if let Some(count) = count.filter(|count| *count != width) {
            return Err(config.error("num_labels", format!("{}, got {count}", expected("labels"))));
        }
        Ok(Self { module, width, attributes: attributes(module, width, labels) })
    }

    /// The head of NeMo's format with this number of values.
    pub(crate) fn nemo(width: usize) -> Self {
        Self { module: NEMO, width, attributes: attributes(NEMO, width, None) }
    }

    /// The name of the weight \[width, hidden\].
    pub(crate) fn weight(&self) -> String {
        format!("{}.weight", self.module)
    }

    /// The name of the bias \[width\], which a checkpoint may lack.
    pub(crate) fn bias(&self) -> String {
        format!("{}.bias", self.module)
    }

    /// Elements of weight and bias. A head without a bias has one of zeros.
    pub(crate) fn elements(&self, hidden: usize) -> usize {
        self.width * (hidden + 1)
    }
}

impl StoredHead {
    /// The head of the checkpoint in `dir`; `None` if it has none. `None` also if the files cannot be opened,
    /// since loading then reports the fault.
    fn find(dir: &Path) -> Option<Self> {
        let mut checkpoint = Checkpoint::open(dir).ok()?;
        [NEMO, TRANSFORMERS].into_iter().find_map(|module| {
            let weight = checkpoint.take(&format!("{module}.weight")).ok()?;
            let width = match weight.shape[..] {
                [width, _] if width > 0 => Some(width),
                _ => None,
            };
            Some(Self { module, width })
        })
    }
}

/// The names in `id2label`, by their numbers.
fn labels(config: &Object) -> Result<Option<Vec<String>>, LoadError> {
    let Some(value) = config.get("id2label") else { return Ok(None) };
    let Some(map) = value.as_object() else {
        return Err(config.error("id2label", format!("expected an object of names, got {value}")));
    };
    let label = |index: usize| match map.get(&index.to_string()) {
        Some(Value::String(name)) => Ok(name.clone()),
        Some(other) => Err(config.error("id2label", format!("`{index}`: expected a name, got {other}"))),
        None => {
            let message = format!("expected the keys 0 to {}, but `{index}` is missing", map.len() - 1);
            Err(config.error("id2label", message))
        }
    };
    let labels = (0..map.len()).map(label).collect::<Result<Vec<String>, LoadError>>()?;
    let repeated = labels.iter().enumerate().find(|(index, name)| labels[..*index].contains(name));
    match repeated {
        Some((_, name)) => {
            Err(config.error("id2label", format!("expected each name once, got `{name}` twice")))
        }
        None => Ok(Some(labels)),
    }
}

/// The names of the values of a head.
fn attributes(module: &str, width: usize, labels: Option<Vec<String>>) -> Vec<String> {
    // transformers writes these names if a configuration gives no others.
    let numbered = |index: usize| format!("LABEL_{index}");
    let given = labels.filter(|labels| !labels.iter().enumerate().all(|(i, name)| *name == numbered(i)));
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    match (width, given) {
        (1, _) => named(&["reward"]),
        (_, Some(labels)) => labels,
        (width, None) if module == NEMO && width == ATTRIBUTES.len() => named(&ATTRIBUTES),
        (width, None) if module == NEMO && width == TRAINED => {
            named(&ATTRIBUTES[ATTRIBUTES.len() - TRAINED..])
        }
        (width, None) => (0..width).map(numbered).collect(),
    }
}
