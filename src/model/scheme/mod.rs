//! Reads a checkpoint's quantisation scheme: the storage format of its linear weights, and the modules left
//! unquantised.
//!
//! All supported FP8 schemes store E4M3 codes with one scale per tensor or per output row. They differ in the
//! names and shapes of the scales, and in whether activations have a stored scale. Unknown keys and
//! values are refused, because they could change the result.

mod auto_fp8;
mod compressed_tensors;
mod kv_cache;
mod model_opt;
mod module_list;

use std::path::Path;

use crate::python_regex;
pub(super) use module_list::StoredFormat;
use module_list::{ModuleList, Syntax};
use python_regex::PatternError;

use super::error::LoadError;
use super::json::Object;

/// Keys of a quantisation's arguments that only the calibration used.
const CALIBRATION: &[&str] = &["observer", "observer_kwargs", "zp_dtype"];

/// Types, as JSON, in which a scale may be stored.
const SCALE_DTYPES: &[&str] = &[
    "\"torch.bfloat16\"",
    "\"torch.float16\"",
    "\"torch.float32\"",
    "\"bfloat16\"",
    "\"float16\"",
    "\"float32\"",
];

/// The two places of a scheme, as errors name them.
const INLINE: &str = "`quantization_config` of config.json";
const FILE: &str = "hf_quant_config.json";

/// A checkpoint's quantisation scheme.
#[derive(Debug, Clone, PartialEq)]
pub enum Scheme {
    /// Weights in BF16, F16 or F32.
    None,
    /// Weights in E4M3.
    Fp8(Fp8Scheme),
}

/// Properties of an E4M3 checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Fp8Scheme {
    /// Whether every quantised module has an `input_scale`. If not, activations are scaled per token.
    pub static_activations: bool,
    /// The quantised modules; `None` means all linear ones.
    targets: Option<ModuleList>,
    /// The unquantised modules.
    ignored: ModuleList,
    /// The scheme of `hf_quant_config.json`, if that file exists beside this scheme of `config.json`.
    file: Option<Box<Fp8Scheme>>,
}

/// The reason for which the storage format of a module is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum FormatError {
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error("`{module}` is quantised by {by} and left unquantised by {other}")]
    Files { module: String, by: &'static str, other: &'static str },
}

impl Scheme {
    /// Reads the scheme from `quantization_config` in `config.json`, or from ModelOpt's
    /// `hf_quant_config.json`.
    ///
    /// # Errors
    /// The scheme is not supported, a key is not known, or two places say different things.
    pub(super) fn read(dir: &Path, config: &Object) -> Result<Self, LoadError> {
        let inline = match (config.object("quantization_config")?, config.object("compression_config")?) {
            (Some(_), Some(_)) => {
                let message = "expected no such key beside `quantization_config`";
                return Err(config.error("compression_config", message));
            }
            (quant, old) => quant.or(old),
        };
        let inline = inline.map(|quant| method(&quant)).transpose()?;
        let path = dir.join(FILE);
        let file = Object::read_if_exists(&path)?.map(|file| model_opt::read_file(&file)).transpose()?;
        match (inline, file) {
            (Some(inline), Some(file)) if inline.static_activations != file.static_activations => {
                let name = |scheme: &Fp8Scheme| if scheme.static_activations { "static" } else { "dynamic" };
                let (inline, file) = (name(&inline), name(&file));
                let message = format!("expected {inline} activation scales as in {INLINE}, got {file}");
                Err(LoadError::config(&path, "quantization.quant_algo", message))
            }
            (Some(inline), file) => Ok(Self::Fp8(Fp8Scheme { file: file.map(Box::new), ..inline })),
            (None, file) => Ok(file.map_or(Self::None, Self::Fp8)),
        }
    }

    /// Storage format of a module's weight, for example of `model.layers.0.mlp.up_proj`.
    ///
    /// # Errors
    /// A pattern needs too many steps, or two files contradict each other.
    pub(super) fn stored_format(&self, module: &str) -> Result<StoredFormat, FormatError> {
        let Self::Fp8(scheme) = self else { return Ok(StoredFormat::Float) };
        let inline = scheme.stored_format(module)?;
        let file = scheme.file.as_ref().map(|file| file.stored_format(module)).transpose()?;
        let (by, other) = match (inline, file) {
            (StoredFormat::Fp8, Some(StoredFormat::Float)) => (INLINE, FILE),
            (StoredFormat::Float, Some(StoredFormat::Fp8)) => (FILE, INLINE),
            _ => return Ok(inline),
        };
        Err(FormatError::Files { module: module.to_owned(), by, other })
    }
}

impl Fp8Scheme {
    fn stored_format(&self, module: &str) -> Result<StoredFormat, PatternError> {
        StoredFormat::of(module, self.targets.as_ref(), &self.ignored)
    }
}

/// Reads a quantisation configuration by the method that it names.
fn method(quant: &Object) -> Result<Fp8Scheme, LoadError> {
    // Old exports of ModelOpt name themselves elsewhere.
    let producer = quant.object("producer").ok().flatten();
    let producer = producer.as_ref().and_then(|producer| producer.text("name").ok().flatten());
    let name = match quant.text("quant_method")? {
        Some(name) => Some(name),
        None => quant.text("quant_library")?.or(producer.filter(|name| *name == "modelopt")),
    };
    match name.map(|name| name.to_lowercase().replace('_', "-")).as_deref() {
        Some("fp8") => auto_fp8::read(quant),
        Some("compressed-tensors") => compressed_tensors::read(quant),
        Some("modelopt") => model_opt::read(quant),
        _ => {
            let got = name.map_or_else(|| "none".to_owned(), |name| format!("`{name}`"));
            let message = format!("expected `fp8`, `compressed-tensors` or `modelopt`, got {got}");
            Err(quant.error("quant_method", message))
        }
    }
}

/// Compiles the list of modules at a key.
fn module_list(quant: &Object, key: &str, syntax: Syntax) -> Result<ModuleList, LoadError> {
    ModuleList::new(syntax, &quant.texts(key)?).map_err(|error| quant.error(key, error.to_string()))
}

/// Compiles a list that has two names.
///
/// # Errors
/// Both are there and differ.
fn list_of_two_names(quant: &Object, keys: [&str; 2], syntax: Syntax) -> Result<ModuleList, LoadError> {
    let [first, second] = keys;
    let lists = (quant.texts(first)?, quant.texts(second)?);
    if !lists.0.is_empty() && !lists.1.is_empty() && lists.0 != lists.1 {
        let message = format!("expected the same list as `{first}`: {:?}, got {:?}", lists.0, lists.1);
        return Err(quant.error(second, message));
    }
    module_list(quant, if lists.0.is_empty() { second } else { first }, syntax)
}
