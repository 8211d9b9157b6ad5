//! The language of an answer. The reference asks `langdetect`, whose answer is random unless it is seeded;
//! here it is `whatlang`, among the languages that `langdetect` knows. `scripts/compare_ifeval.py` counts how
//! often the two differ.

use regex::Regex;
use whatlang::{Detector, Lang};

use super::python_text::split;

/// Languages that a rule may ask for, by their codes in ISO 639-1.
pub(super) const LANGUAGES: [&str; 30] = [
    "en", "es", "pt", "ar", "hi", "fr", "ru", "de", "ja", "it", "bn", "uk", "th", "ur", "ta", "te", "bg",
    "ko", "pl", "he", "fa", "vi", "ne", "sw", "kn", "mr", "gu", "pa", "ml", "fi",
];

/// Languages to choose from.
const KNOWN: [(Lang, &str); 50] = [
    (Lang::Afr, "af"),
    (Lang::Ara, "ar"),
    (Lang::Bul, "bg"),
    (Lang::Ben, "bn"),
    (Lang::Cat, "ca"),
    (Lang::Ces, "cs"),
    (Lang::Dan, "da"),
    (Lang::Deu, "de"),
    (Lang::Ell, "el"),
    (Lang::Eng, "en"),
    (Lang::Spa, "es"),
    (Lang::Est, "et"),
    (Lang::Pes, "fa"),
    (Lang::Fin, "fi"),
    (Lang::Fra, "fr"),
    (Lang::Guj, "gu"),
    (Lang::Heb, "he"),
    (Lang::Hin, "hi"),
    (Lang::Hrv, "hr"),
    (Lang::Hun, "hu"),
    (Lang::Ind, "id"),
    (Lang::Ita, "it"),
    (Lang::Jpn, "ja"),
    (Lang::Kan, "kn"),
    (Lang::Kor, "ko"),
    (Lang::Lit, "lt"),
    (Lang::Lav, "lv"),
    (Lang::Mkd, "mk"),
    (Lang::Mal, "ml"),
    (Lang::Mar, "mr"),
    (Lang::Nep, "ne"),
    (Lang::Nld, "nl"),
    (Lang::Nob, "no"),
    (Lang::Pan, "pa"),
    (Lang::Pol, "pl"),
    (Lang::Por, "pt"),
    (Lang::Ron, "ro"),
    (Lang::Rus, "ru"),
    (Lang::Slk, "sk"),
    (Lang::Slv, "sl"),
    (Lang::Swe, "sv"),
    (Lang::Tam, "ta"),
    (Lang::Tel, "te"),
    (Lang::Tgl, "tl"),
    (Lang::Tha, "th"),
    (Lang::Tur, "tr"),
    (Lang::Ukr, "uk"),
    (Lang::Urd, "ur"),
    (Lang::Vie, "vi"),
    (Lang::Cmn, "zh"),
];

/// Frequent words of Swahili, which `whatlang` does not know and no other language here shares as a whole.
const SWAHILI: [&str; 40] = [
    "na", "ya", "wa", "kwa", "ni", "za", "la", "katika", "hii", "huo", "cha", "kama", "au", "pia", "yake",
    "wake", "hiyo", "kuwa", "watu", "sana", "moja", "mimi", "wewe", "yetu", "yangu", "vya", "mwa", "ili",
    "lakini", "kila", "hizi", "hivyo", "baada", "kabla", "wakati", "siku", "nchi", "habari", "jina", "tu",
];
/// Share of a text's words that makes it Swahili.
const SWAHILI_SHARE: f64 = 0.2;

/// Detects languages.
pub(super) struct LanguageDetector {
    detector: Detector,
    /// Web and e-mail addresses, which have no language.
    addresses: Regex,
}

impl std::fmt::Debug for LanguageDetector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LanguageDetector").finish_non_exhaustive()
    }
}

impl LanguageDetector {
    /// Compiles the patterns.
    ///
    /// # Panics
    /// Not with these patterns.
    pub(super) fn new() -> Self {
        let addresses = r"https?://\S+|[-_.0-9A-Za-z]+@[-_.0-9A-Za-z]+";
        Self {
            detector: Detector::with_allowlist(KNOWN.iter().map(|(lang, _)| *lang).collect()),
            addresses: Regex::new(addresses).expect("the pattern is valid"),
        }
    }

    /// The language of a text; `None` for a text without letters, or in a script of none of the languages.
    pub(super) fn detect(&self, text: &str) -> Option<&'static str> {
        let text = self.addresses.replace_all(text, " ");
        if is_swahili(&text) {
            return Some("sw");
        }
        let lang = self.detector.detect_lang(&text)?;
        KNOWN.iter().find(|(known, _)| *known == lang).map(|(_, code)| *code)
    }
}

fn is_swahili(text: &str) -> bool {
    let (mut words, mut swahili) = (0_u32, 0_u32);
    for word in split(text) {
        let word = word.trim_matches(|c: char| !c.is_alphabetic()).to_lowercase();
        words += u32::from(!word.is_empty());
        swahili += u32::from(SWAHILI.contains(&word.as_str()));
    }
    swahili >= 2 && f64::from(swahili) >= SWAHILI_SHARE * f64::from(words)
}
