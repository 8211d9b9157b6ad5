//! The character rewrites of a model (`precompiled_charsmap`), as normalizer steps of tokenizer.json.
//!
//! SentencePiece stores its rules as a table and applies the longest rule that matches at each position. Its
//! built-in tables `nfkc` and `nmt_nfkc` spell out NFKC: some 220,000 rules for characters with their accents
//! and, for `nmt`, some for control characters and spaces.
//!
//! tokenizer.json has a normalizer, `Precompiled`, that reads such tables. It cannot be used for a whole
//! table: it takes the first matching rule instead of the longest, applies it to a character together with
//! all its accents, and looks at no more than five bytes. It therefore drops accents and leaves Korean and
//! Japanese text decomposed.
//!
//! This module decomposes the table into steps that have none of these faults, and checks that each rule
//! comes out the same:
//!
//! 1. Characters that NFKC changes and the table does not are replaced by placeholders.
//! 2. A fence character goes before each accent that follows another accent and for which the table has no
//!    rule; otherwise NFKC would reorder the accents.
//! 3. NFKC is applied, and the placeholders are replaced by their characters again.
//! 4. The other rules for single characters are applied, one step for all that have the same output. Rules
//!    for characters of four UTF-8 bytes use `Precompiled`, which is correct for them: no accent fits into
//!    its five bytes.
//! 5. The fences are removed.
//!
//! These differences remain, all in unusual texts: an accent that composes with a character is composed with
//! it even if an accent that does not compose stands between them; accents after a character that is itself a
//! space and accents may be reordered; and letters that are newer than the Unicode tables of `tokenizers`
//! (Unicode 14 and later) keep their accents separate.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::{Value, json};
use tokenizers::normalizers::{NFD, NFKC, Precompiled, StripAccents};
use tokenizers::{NormalizedString, Normalizer};

use super::error::SentencePieceError;
use super::replace::{replace, replace_all};

/// Noncharacter that keeps the accent after it in its place; [`placeholders`] never yields it.
const FENCE: &str = "\u{1FFFE}";

/// Most replacement steps of a converted normalizer: each one scans the text again.
const MAX_REPLACEMENTS: usize = 64;

/// Limit on the trie nodes visited, above that of the largest built-in table: `nmt_nfkc` has 225,276 rules.
const MAX_TRIE_NODES: usize = 1 << 22;

/// Returns steps that together rewrite a text as `charsmap` does.
///
/// # Errors
/// `Malformed` if the table is broken; `Unsupported` if it is neither NFKC nor a few independent
/// replacements.
pub(super) fn steps(charsmap: &[u8]) -> Result<Vec<Value>, SentencePieceError> {
    let rules = Rules::read(charsmap)?;
    let changed: Vec<char> = code_points().filter(|&c| nfkc(c) != c.to_string()).collect();
    let preserved = |c: &char| rules.apply(&nfkc(c)) != rules.apply(&c.to_string());
    let preserved: Vec<char> = changed.iter().copied().filter(preserved).collect();
    // A table without NFKC preserves most of the characters that NFKC changes.
    if preserved.len() * 2 > changed.len() {
        rules.replacement_steps()
    } else {
        rules.nfkc_steps(charsmap, &preserved)
    }
}

/// The rules of a table: input text to output text.
struct Rules {
    /// Rules for single characters.
    singles: HashMap<char, String>,
    /// Rules for several characters, the longest first.
    sequences: Vec<(String, String)>,
}

impl Rules {
    /// Reads a `precompiled_charsmap`: the length of a trie in bytes (u32, little-endian), the trie, and the
    /// outputs, each ended by a zero byte.
    ///
    /// The trie is a double array of u32 units in the format of Darts-clone (github.com/s-yata/darts-clone):
    /// the child of a unit for a byte is at index (unit's index xor unit's offset xor byte) and has that byte
    /// as its label.
    fn read(charsmap: &[u8]) -> Result<Self, SentencePieceError> {
        let malformed =
            || SentencePieceError::Malformed("its table of normalisation rules is broken".to_owned());
        let (length, rest) = charsmap.split_first_chunk::<4>().ok_or_else(malformed)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (trie, outputs) = rest.split_at_checked(length).ok_or_else(malformed)?;
        let units: Vec<u32> = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let root = *units.first().ok_or_else(malformed)?;
        let mut rules = Self { singles: HashMap::new(), sequences: Vec::new() };
        let mut count = 0;
        let mut open = vec![(offset(root), Vec::new())];
        while let Some((position, key)) = open.pop() {
            for byte in 1..=u8::MAX {
                let at = position ^ usize::from(byte);
                let Some(&unit) = units.get(at).filter(|&&unit| unit & 0x8000_00FF == u32::from(byte)) else {
                    continue;
                };
                let mut key: Vec<u8> = key.clone();
                key.push(byte);
                let below = at ^ offset(unit);
                if unit >> 8 & 1 == 1 {
                    let leaf = units.get(below).ok_or_else(malformed)?;
                    let output = outputs.get((leaf & 0x7FFF_FFFF) as usize..).ok_or_else(malformed)?;
                    let output = output.split(|&byte| byte == 0).next().unwrap_or_default();
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| malformed());
                    rules.add(text(&key)?, text(output)?);
                }
                // Rules share suffixes, so more nodes are visited than units exist; a broken trie can contain
                // a loop.
                count += 1;
                if key.len() > 64 || count > MAX_TRIE_NODES {
                    return Err(malformed());
                }
                open.push((below, key));
            }
        }
        rules.sequences.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        Ok(rules)
    }

    fn add(&mut self, from: String, to: String) {
        let mut characters = from.chars();
        match (characters.next(), characters.next()) {
            (Some(single), None) => {
                self.singles.insert(single, to);
            }
            _ => self.sequences.push((from, to)),
        }
    }

    /// Applies the rules for single characters to a text.
    fn apply(&self, text: &str) -> String {
        let mut applied = String::new();
        for character in text.chars() {
            match self.singles.get(&character) {
                Some(output) => applied.push_str(output),
                None => applied.push(character),
            }
        }
        applied
    }

    /// Converts a small table: one replacement step per sequence rule, and one per output of the single
    /// characters.
    fn replacement_steps(&self) -> Result<Vec<Value>, SentencePieceError> {
        let mut steps: Vec<Value> = self.sequences.iter().map(|(from, to)| replace(from, to)).collect();
        steps.extend(steps_by_output(self.singles.iter().map(|(&from, to)| (from, to.as_str()))));
        let simple = steps.len() <= MAX_REPLACEMENTS && self.are_independent();
        if simple { Ok(steps) } else { Err(unsupported()) }
    }

    /// Returns whether applying the rules one after the other gives the same result as the table: no rule
    /// matches the output of another, and no sequence rule shares a character with the input or output of an
    /// earlier sequence rule.
    fn are_independent(&self) -> bool {
        let shared = |one: &str, other: &str| one.chars().any(|c| other.contains(c));
        let rewritten = |text: &str| self.apply(text) != text;
        let mut sequences = self.sequences.iter().enumerate();
        let sequences = sequences.all(|(at, (from, to))| {
            let later = &self.sequences[at + 1..];
            !rewritten(to) && !later.iter().any(|(other, _)| shared(from, other) || shared(to, other))
        });
        sequences && !self.singles.values().any(|to| rewritten(to))
    }

    /// Converts a table that contains NFKC; NFKC changes the `preserved` characters and the table does not.
    fn nfkc_steps<'r>(
        &'r self,
        charsmap: &[u8],
        preserved: &[char],
    ) -> Result<Vec<Value>, SentencePieceError> {
        let stable = |c: char| nfkc(c) == c.to_string();
        let rest: BTreeMap<char, &str> =
            self.singles.iter().filter(|(c, _)| stable(**c)).map(|(&c, to)| (c, to.as_str())).collect();
        // Letters that the NFKC of `tokenizers` does not know yet.
        let newer = |text: &str| {
            text.chars().any(|c| c.len_utf8() == 4 || rest.get(&c).is_some_and(|to| !to.trim().is_empty()))
        };
        let wrong = |(from, to): &&(String, String)| self.apply(&nfkc(from)) != *to && !newer(from);
        if preserved.len() > placeholders().count() || self.sequences.iter().any(|rule| wrong(&rule)) {
            return Err(unsupported());
        }
        let mut steps = Vec::new();
        for (&character, placeholder) in preserved.iter().zip(placeholders()) {
            steps.push(replace(&character.to_string(), &placeholder.to_string()));
        }
        steps.push(replace_all(&self.fence_pattern(), FENCE));
        steps.push(json!({"type": "NFKC"}));
        for (&character, placeholder) in preserved.iter().zip(placeholders()) {
            steps.push(replace(&placeholder.to_string(), &self.apply(&character.to_string())));
        }
        // A removed character leaves a fence, so that its accents do not move to the character before it.
        let output = |to: &'r str| if to.is_empty() { FENCE } else { to };
        let again = rest.values().any(|to| self.apply(to) != *to);
        let short =
            steps_by_output(rest.iter().filter(|(c, _)| c.len_utf8() < 4).map(|(&c, to)| (c, output(to))));
        if again || short.len() > MAX_REPLACEMENTS {
            return Err(unsupported());
        }
        steps.extend(short);
        if rest.keys().any(|c| c.len_utf8() == 4) {
            let table =
                Precompiled::from(charsmap).map_err(|e| SentencePieceError::Malformed(e.to_string()))?;
            steps.push(serde_json::to_value(table).expect("bytes can be written as JSON"));
        }
        steps.push(replace(FENCE, ""));
        Ok(steps)
    }

    /// Returns a pattern for the positions before an accent where NFKC would do something that no rule does:
    /// reorder the accent, or compose it with a character that has an accent already.
    fn fence_pattern(&self) -> String {
        // `follows`: the accents that a rule has after an accent. `refused`: sets of accents that must not
        // compose, with the characters that they must not compose with.
        let mut follows: BTreeMap<char, BTreeSet<char>> = BTreeMap::new();
        let mut refused: BTreeMap<BTreeSet<char>, BTreeSet<char>> = BTreeMap::new();
        let (mut begun, mut accents) = (HashSet::new(), BTreeSet::new());
        for (from, _) in &self.sequences {
            let characters: Vec<char> = from.chars().collect();
            begun.insert((characters[0], characters[1]));
            accents.extend(characters[1..].iter().copied().filter(|&c| is_mark(c)));
            for pair in characters.windows(2).filter(|pair| is_mark(pair[0])) {
                follows.entry(pair[0]).or_default().insert(pair[1]);
            }
        }
        for character in accented() {
            let wrong = |&accent: &char| {
                let both = format!("{character}{accent}");
                !begun.contains(&(character, accent)) && self.apply(&nfkc(&both)) != self.apply(&both)
            };
            let wrong: BTreeSet<char> = accents.iter().copied().filter(wrong).collect();
            if !wrong.is_empty() {
                refused.entry(wrong).or_default().insert(character);
            }
        }
        // Marks that decompose into two parts; no rule has one after another character.
        let double =
            code_points().filter(|&c| nfkc(c) != c.to_string() && is_mark(c) && !accents.contains(&c));
        let double: BTreeSet<char> = double.collect();
        let class = |characters: &BTreeSet<char>| characters.iter().copied().map(code).collect::<String>();
        let follows = follows.iter().map(|(&first, then)| format!("(?<={})[{}]", code(first), class(then)));
        let follows: Vec<String> = follows.collect();
        let refused =
            refused.iter().map(|(then, first)| format!("|(?<=[{}])[{}]", class(first), class(then)));
        let refused: String = refused.collect();
        let follows = if follows.is_empty() { String::new() } else { format!("(?!{})", follows.join("|")) };
        let double =
            if double.is_empty() { String::new() } else { format!(r"|(?<=[\s\S])[{}]", class(&double)) };
        // Never at the start of a text: the normal forms of `tokenizers` drop a fence there.
        format!(r"(?=\p{{M}})(?=(?<=\p{{M}}){follows}{refused}{double})")
    }
}

/// Returns the characters that NFKC or NFD changes, without Korean syllables, which take no accents.
fn accented() -> impl Iterator<Item = char> {
    let changes = |c: &char| [normal(&NFKC, *c), normal(&NFD, *c)].iter().any(|text| *text != c.to_string());
    code_points().filter(|c| !('\u{AC00}'..='\u{D7A3}').contains(c)).filter(changes)
}

/// Returns the code points of planes 0 to 3 and U+E0000 to U+E0FFF: all that have characters, except the
/// private-use planes 15 and 16.
fn code_points() -> impl Iterator<Item = char> {
    ('\u{1}'..='\u{3FFFF}').chain('\u{E0000}'..='\u{E0FFF}')
}

/// Returns the noncharacters that [`Rules::nfkc_steps`] uses. Those of planes 15 and 16 are left out, because
/// `text` reserves some of them.
fn placeholders() -> impl Iterator<Item = char> {
    (2..=14_u32).flat_map(|plane| [plane << 16 | 0xFFFE, plane << 16 | 0xFFFF]).filter_map(char::from_u32)
}

/// Returns one replacement step for each output; it replaces all characters that have this output.
fn steps_by_output<'r>(rules: impl Iterator<Item = (char, &'r str)>) -> Vec<Value> {
    let mut outputs: BTreeMap<&str, BTreeSet<char>> = BTreeMap::new();
    for (from, to) in rules.filter(|(from, to)| *to != from.to_string()) {
        outputs.entry(to).or_default().insert(from);
    }
    let steps = outputs.iter().map(|(to, from)| {
        let class: String = from.iter().copied().map(code).collect();
        replace_all(&format!("[{class}]"), to)
    });
    steps.collect()
}

/// Returns a character as an escape of a regular expression.
fn code(character: char) -> String {
    format!(r"\x{{{:X}}}", u32::from(character))
}

/// Returns a text in Unicode's normal form NFKC.
fn nfkc(text: impl ToString) -> String {
    normal(&NFKC, text)
}

/// Returns whether a character is an accent or another combining mark.
fn is_mark(character: char) -> bool {
    normal(&StripAccents, character).is_empty()
}

fn normal(normalizer: &impl Normalizer, text: impl ToString) -> String {
    let mut text = NormalizedString::from(text.to_string());
    normalizer.normalize(&mut text).expect("normal forms have no errors");
    text.get().to_owned()
}

/// Returns the offset field of a unit of the double array.
fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}

fn unsupported() -> SentencePieceError {
    SentencePieceError::Unsupported(
        "its normalisation rules are neither NFKC nor a few independent replacements".to_owned(),
    )
}
