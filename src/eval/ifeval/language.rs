//! The language of an answer, as the reference finds it. `langdetect` draws random numbers, so the seed is
//! fixed; lm-eval leaves it open, and its verdict on a text of mixed languages can change between runs.

use std::cell::OnceCell;

use langdetect::{DetectorFactory, Seed};

/// Languages that a rule may ask for, by their codes in ISO 639-1.
pub(super) const LANGUAGES: [&str; 30] = [
    "en", "es", "pt", "ar", "hi", "fr", "ru", "de", "ja", "it", "bn", "uk", "th", "ur", "ta", "te", "bg",
    "ko", "pl", "he", "fa", "vi", "ne", "sw", "kn", "mr", "gu", "pa", "ml", "fi",
];

/// Detects languages.
#[derive(Default)]
pub(super) struct LanguageDetector {
    /// The profiles of 55 languages, read when the first rule needs them.
    factory: OnceCell<DetectorFactory>,
}

impl std::fmt::Debug for LanguageDetector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LanguageDetector").finish_non_exhaustive()
    }
}

impl LanguageDetector {
    /// The language of a text; `None` for a text without letters.
    pub(super) fn detect(&self, text: &str) -> Option<String> {
        let factory = self.factory.get_or_init(|| {
            let mut factory = DetectorFactory::builtin().clone();
            factory.seed = Seed::Int(0);
            factory
        });
        factory.detect(text).ok()
    }
}
