//! Reads the rotary embedding from `config.json`, in the old and the new Hugging Face format. If the file
//! states a value twice, the one that transformers reads is used, and a warning names both.

use super::error::LoadError;
use super::family::Family;
use super::json::Object;

/// Keys of the fraction of dimensions that rotate. transformers reads the first; versions of vLLM have read
/// the others.
pub(super) const FRACTIONS: [&str; 4] =
    ["partial_rotary_factor", "rope_percent", "rope_percentage", "rope_pct"];

/// Key of the number of positions before Llama 3's scaling. It stands at top level or beside the scaling.
pub(super) const ORIGINAL: &str = "original_max_position_embeddings";

/// Reads the inverse frequencies theta^(-2i / d) of the d rotated dimensions, rescaled if the configuration
/// says so. Old configurations have the scaling in `rope_scaling`, and theta and the fraction of rotated
/// dimensions at top level; new ones have all three in `rope_parameters`. If both objects are there, the old
/// one replaces the new one, whose theta is lost too.
///
/// # Errors
/// A value is not supported, or the fraction is stated twice and differently.
pub(super) fn inverse_frequencies(
    config: &Object,
    family: Family,
    head_dim: usize,
    warnings: &mut Vec<String>,
) -> Result<Vec<f32>, LoadError> {
    let scaling = non_empty(config, "rope_scaling")?;
    let parameters = non_empty(config, "rope_parameters")?;
    let reader = |object| RopeReader { config, object, family, head_dim };
    let chosen = reader(scaling.as_ref().or(parameters.as_ref()));
    let frequencies = chosen.frequencies()?;
    if scaling.is_some() && parameters.is_some() {
        let others = reader(parameters.as_ref()).frequencies().ok();
        if others.as_ref() != Some(&frequencies) {
            warnings.push("`rope_scaling` counts, and not `rope_parameters`, which differs".to_owned());
        }
    }
    chosen.warn(warnings)?;
    Ok(frequencies.into_iter().map(|f| f as f32).collect())
}

/// The object at a key, unless it has no keys.
fn non_empty(config: &Object, key: &str) -> Result<Option<Object>, LoadError> {
    Ok(config.object(key)?.filter(|object| object.entries().next().is_some()))
}

struct RopeReader<'a> {
    /// The whole `config.json`.
    config: &'a Object,
    /// The object `rope_scaling` or `rope_parameters`, if the file has one.
    object: Option<&'a Object>,
    family: Family,
    head_dim: usize,
}

impl RopeReader<'_> {
    fn frequencies(&self) -> Result<Vec<f64>, LoadError> {
        let theta = self.number("rope_theta")?.unwrap_or(10_000.0);
        let fraction = self.fraction()?;
        let rotary = (self.head_dim as f64 * fraction) as usize;
        let sound = fraction > 0.0 && fraction <= 1.0 && rotary.is_multiple_of(2) && theta > 1.0;
        if !sound {
            let message = format!(
                "expected theta above 1 and a fraction of at most 1 that rotates an even number of \
                 dimensions, got theta {theta} and fraction {fraction} ({rotary} of {} dimensions)",
                self.head_dim
            );
            return Err(self.config.error("rope_parameters", message));
        }
        let mut frequencies: Vec<f64> =
            (0..rotary / 2).map(|i| theta.powf(-(2.0 * i as f64) / rotary as f64)).collect();
        if let Some(object) = self.object {
            self.rescale(object, &mut frequencies)?;
        }
        Ok(frequencies)
    }

    /// The number at a key of the object or, if the object has none, of the top level.
    fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        match self.object.map(|object| object.number(key)).transpose()?.flatten() {
            None => self.config.number(key),
            number => Ok(number),
        }
    }

    /// The fraction of dimensions that rotate. transformers and vLLM prefer different keys.
    fn fraction(&self) -> Result<f64, LoadError> {
        let mut found: Option<(String, f64)> = None;
        for key in FRACTIONS {
            for object in self.object.into_iter().chain([self.config]) {
                let Some(fraction) = object.number(key)? else { continue };
                match &found {
                    Some((other, first)) if *first != fraction && key != FRACTIONS[0] => {
                        let message = format!("expected {first} as in `{other}`, got {fraction}");
                        return Err(object.error(key, message));
                    }
                    Some(_) => {}
                    None => found = Some((object.path_of(key), fraction)),
                }
            }
        }
        // These are the defaults of transformers: a Nemotron configuration may omit its fraction of 0.5.
        match (self.family, found) {
            (Family::Nemotron, found) => Ok(found.map_or(0.5, |(_, fraction)| fraction)),
            (Family::Llama, None | Some((_, 1.0))) => Ok(1.0),
            (Family::Llama, Some((key, fraction))) => {
                let message = format!("expected 1 for Llama, whose heads rotate whole, got {fraction}");
                Err(LoadError::config(&self.config.path, &key, message))
            }
        }
    }

    /// Llama 3's scaling: divides the frequencies of long wavelengths by `factor`, keeps those of short ones,
    /// and interpolates in between.
    fn rescale(&self, scaling: &Object, frequencies: &mut [f64]) -> Result<(), LoadError> {
        if let Some((key, value)) = scaling.entries().find(|(_, value)| value.is_object()) {
            let message = format!("expected the same parameters for all layers, got {value}");
            return Err(scaling.error(key, message));
        }
        match kind(scaling)? {
            "default" => return Ok(()),
            "llama3" => {}
            other => {
                let message = format!("expected `default` or `llama3`, got `{other}`");
                return Err(scaling.error("rope_type", message));
            }
        }
        let need = |key: &str| scaling.number(key)?.ok_or_else(|| scaling.error(key, "missing"));
        let (factor, low, high) = (need("factor")?, need("low_freq_factor")?, need("high_freq_factor")?);
        let original = match self.config.number(ORIGINAL)? {
            None => scaling.number(ORIGINAL)?,
            original => original,
        };
        let original = match original {
            None => self.config.require_count("max_position_embeddings")? as f64,
            Some(original) => original,
        };
        if factor < 1.0 || low >= high || low <= 0.0 || original <= 0.0 {
            let message = format!(
                "expected factor >= 1, 0 < low_freq_factor < high_freq_factor and a positive original \
                 length, got {factor}, {low}, {high} and {original}"
            );
            return Err(scaling.error("factor", message));
        }
        for f in frequencies {
            let turns = original * *f / std::f64::consts::TAU;
            let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            *f = *f / factor * (1.0 - smooth) + *f * smooth;
        }
        Ok(())
    }

    /// Warns of keys that contradict one another, and of keys without an effect.
    fn warn(&self, warnings: &mut Vec<String>) -> Result<(), LoadError> {
        let Some(object) = self.object else { return Ok(()) };
        for key in ["rope_theta", FRACTIONS[0], ORIGINAL] {
            if let (Some(inner), Some(top)) = (object.number(key)?, self.config.number(key)?)
                && inner != top
            {
                let nested = object.path_of(key);
                warnings.push(if key == ORIGINAL {
                    format!("`{key}` = {top} counts, and not `{nested}` = {inner}")
                } else {
                    format!("`{nested}` = {inner} counts, and not `{key}` = {top}")
                });
            }
        }
        if let (Some(new), Some(old)) = (object.text("rope_type")?, object.text("type")?)
            && new != old
        {
            let (new_key, old_key) = (object.path_of("rope_type"), object.path_of("type"));
            warnings.push(format!("`{new_key}` = `{new}` counts, and not `{old_key}` = `{old}`"));
        }
        let used: &[&str] = match kind(object)? {
            "llama3" => &["factor", "low_freq_factor", "high_freq_factor"],
            _ => &[],
        };
        for (key, value) in object.entries() {
            let common = ["rope_type", "type", "rope_theta", ORIGINAL].contains(&key);
            let known = common || FRACTIONS.contains(&key) || used.contains(&key);
            // A factor of 1 scales nothing.
            if !known && !value.is_null() && value.as_f64() != Some(1.0) {
                let path = object.path_of(key);
                warnings.push(format!("`{path}` = {value} has no effect on `{}`", kind(object)?));
            }
        }
        Ok(())
    }
}

/// The kind of scaling, under its new name or its old one.
fn kind(object: &Object) -> Result<&str, LoadError> {
    match object.text("rope_type")? {
        None => Ok(object.text("type")?.unwrap_or("default")),
        Some(kind) => Ok(kind),
    }
}
