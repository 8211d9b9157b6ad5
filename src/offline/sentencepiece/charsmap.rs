//! The rules by which a model rewrites characters, as normalizers of tokenizer.json.
//!
//! SentencePiece writes rules as a table, and at each place of a text applies the longest that fits. Its own tables
//! (`nfkc`, `nmt_nfkc`) are NFKC spelled out: some 220,000 rules for characters with their accents, and for `nmt` some
//! for control characters and spaces. tokenizer.json has a normalizer that reads such tables, but it takes the first
//! rule that fits instead of the longest, applies it to a character with all its accents, and does not see more than
//! five bytes at once: it drops accents, and leaves Korean and Japanese decomposed. So the table is taken apart, and
//! each rule is checked to come out the same by steps that have none of this:
//!
//! 1. Characters that NFKC changes and the table does not are set aside.
//! 2. Accents that the table has no rule for, after another accent, are fenced off: NFKC would sort them.
//! 3. NFKC; what was set aside comes back.
//! 4. The other rules for single characters, those with the same outcome at once. Those of four bytes go by the table,
//!    which is right for them: no accent fits into what it sees.
//! 5. The fences go.
//!
//! What remains, in texts that nobody writes: an accent that fits a character is put on it also where another that does
//! not fit stands between; accents after a character that is itself a space and accents may be sorted; and letters that
//! are newer than the Unicode tables of `tokenizers` (of Unicode 14 and later) keep their accents apart.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::{Value, json};
use tokenizers::normalizers::{NFD, NFKC, Precompiled, StripAccents};
use tokenizers::{NormalizedString, Normalizer};

use super::SentencePieceError;
use super::normalizer::{replace, replace_all};

/// Stands before accents that are to stay where they are. A noncharacter, as [`aside`] are.
const FENCE: &str = "\u{1FFFE}";

/// More replacements than this one after the other would make encoding slow.
const MOST_REPLACEMENTS: usize = 64;

/// More nodes than a table's trie has: `nmt_nfkc` has 225,276 rules.
const MOST_NODES: usize = 1 << 22;

/// Steps that together rewrite a text as `charsmap` does.
pub(super) fn steps(charsmap: &[u8]) -> Result<Vec<Value>, SentencePieceError> {
    let rules = Rules::read(charsmap)?;
    let changed: Vec<char> = assigned().filter(|&c| nfkc(c) != c.to_string()).collect();
    let kept: Vec<char> =
        changed.iter().copied().filter(|c| rules.apply(&nfkc(c)) != rules.apply(&c.to_string())).collect();
    // A table without NFKC leaves alone most of what NFKC changes.
    if kept.len() * 2 > changed.len() { rules.by_replacing() } else { rules.by_nfkc(charsmap, &kept) }
}

/// A table of rules: what is rewritten to what.
struct Rules {
    /// Rules for single characters.
    singles: HashMap<char, String>,
    /// Rules for several, the longest first.
    others: Vec<(String, String)>,
}

impl Rules {
    /// Reads `precompiled_charsmap`: the length of a trie in bytes (u32, little-endian), the trie, and the outcomes,
    /// each ended by a zero byte. The trie is a double array of u32 units as Darts-clone (github.com/s-yata/darts-clone)
    /// writes it: a unit's child by a byte lies at its position xor its offset xor the byte, and has the byte as its
    /// label.
    fn read(charsmap: &[u8]) -> Result<Self, SentencePieceError> {
        let malformed =
            || SentencePieceError::Malformed("its table of normalisation rules is broken".to_owned());
        let (length, rest) = charsmap.split_first_chunk::<4>().ok_or_else(malformed)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (trie, outcomes) = rest.split_at_checked(length).ok_or_else(malformed)?;
        let units: Vec<u32> = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let root = *units.first().ok_or_else(malformed)?;
        let mut rules = Self { singles: HashMap::new(), others: Vec::new() };
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
                    let outcome = outcomes.get((leaf & 0x7FFF_FFFF) as usize..).ok_or_else(malformed)?;
                    let outcome = outcome.split(|&byte| byte == 0).next().unwrap_or_default();
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| malformed());
                    rules.add(text(&key)?, text(outcome)?);
                }
                // Rules share their ends, so there are more than units; but a broken trie may be a loop.
                count += 1;
                if key.len() > 64 || count > MOST_NODES {
                    return Err(malformed());
                }
                open.push((below, key));
            }
        }
        rules.others.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        Ok(rules)
    }

    fn add(&mut self, from: String, to: String) {
        let mut characters = from.chars();
        match (characters.next(), characters.next()) {
            (Some(single), None) => {
                self.singles.insert(single, to);
            }
            _ => self.others.push((from, to)),
        }
    }

    /// What the rules for single characters make of a text.
    fn apply(&self, text: &str) -> String {
        let mut applied = String::new();
        for character in text.chars() {
            match self.singles.get(&character) {
                Some(outcome) => applied.push_str(outcome),
                None => applied.push(character),
            }
        }
        applied
    }

    /// A small table of any kind: a replacement for each rule, or each outcome.
    fn by_replacing(&self) -> Result<Vec<Value>, SentencePieceError> {
        let mut steps: Vec<Value> = self.others.iter().map(|(from, to)| replace(from, to)).collect();
        steps.extend(by_outcome(self.singles.iter().map(|(&from, to)| (from, to.as_str()))));
        let simple = steps.len() <= MOST_REPLACEMENTS && self.are_apart();
        if simple { Ok(steps) } else { Err(unsupported()) }
    }

    /// Whether one replacement after the other does what the table does: none sees what an earlier one has made, and
    /// no two rules for several characters are about the same text.
    fn are_apart(&self) -> bool {
        let shared = |one: &str, other: &str| one.chars().any(|c| other.contains(c));
        let rewritten = |text: &str| self.apply(text) != text;
        let mut others = self.others.iter().enumerate();
        let others = others.all(|(at, (from, to))| {
            let later = &self.others[at + 1..];
            !rewritten(to) && !later.iter().any(|(other, _)| shared(from, other) || shared(to, other))
        });
        others && !self.singles.values().any(|to| rewritten(to))
    }

    fn by_nfkc<'r>(&'r self, charsmap: &[u8], kept: &[char]) -> Result<Vec<Value>, SentencePieceError> {
        let stable = |c: char| nfkc(c) == c.to_string();
        let rest: BTreeMap<char, &str> =
            self.singles.iter().filter(|(c, _)| stable(**c)).map(|(&c, to)| (c, to.as_str())).collect();
        // Letters that NFKC does not know yet.
        let newer = |text: &str| {
            text.chars().any(|c| c.len_utf8() == 4 || rest.get(&c).is_some_and(|to| !to.trim().is_empty()))
        };
        let wrong = |(from, to): &&(String, String)| self.apply(&nfkc(from)) != *to && !newer(from);
        if kept.len() > aside().count() || self.others.iter().any(|rule| wrong(&rule)) {
            return Err(unsupported());
        }
        let mut steps = Vec::new();
        for (&character, stand_in) in kept.iter().zip(aside()) {
            steps.push(replace(&character.to_string(), &stand_in.to_string()));
        }
        steps.push(replace_all(&self.fenced(), FENCE));
        steps.push(json!({"type": "NFKC"}));
        for (&character, stand_in) in kept.iter().zip(aside()) {
            steps.push(replace(&stand_in.to_string(), &self.apply(&character.to_string())));
        }
        // What goes leaves a fence, so that no accent comes to another character.
        let outcome = |to: &'r str| if to.is_empty() { FENCE } else { to };
        let again = rest.values().any(|to| self.apply(to) != *to);
        let short =
            by_outcome(rest.iter().filter(|(c, _)| c.len_utf8() < 4).map(|(&c, to)| (c, outcome(to))));
        if again || short.len() > MOST_REPLACEMENTS {
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

    /// The places before an accent where NFKC would do what no rule does: sort it, or put it on a character that has
    /// an accent already.
    fn fenced(&self) -> String {
        // By the first of two characters; and by the set of seconds, its firsts.
        let mut follows: BTreeMap<char, BTreeSet<char>> = BTreeMap::new();
        let mut refused: BTreeMap<BTreeSet<char>, BTreeSet<char>> = BTreeMap::new();
        let (mut begun, mut accents) = (HashSet::new(), BTreeSet::new());
        for (from, _) in &self.others {
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
        // Marks of two parts, which no rule has after another character.
        let double = assigned().filter(|&c| nfkc(c) != c.to_string() && is_mark(c) && !accents.contains(&c));
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
        // Never at the start: what `tokenizers` puts there, its normal forms lose again.
        format!(r"(?=\p{{M}})(?=(?<=\p{{M}}){follows}{refused}{double})")
    }
}

/// The characters that NFKC or NFD changes, but for Korean syllables, which take no accents.
fn accented() -> impl Iterator<Item = char> {
    let changes = |c: &char| [normal(&NFKC, *c), normal(&NFD, *c)].iter().any(|text| *text != c.to_string());
    assigned().filter(|c| !('\u{AC00}'..='\u{D7A3}').contains(c)).filter(changes)
}

/// All planes of Unicode that have characters, but for private ones.
fn assigned() -> impl Iterator<Item = char> {
    ('\u{1}'..='\u{3FFFF}').chain('\u{E0000}'..='\u{E0FFF}')
}

/// Noncharacters for what is set aside; not those of planes 15 and 16, which `text` has other uses for.
fn aside() -> impl Iterator<Item = char> {
    (2..=14_u32).flat_map(|plane| [plane << 16 | 0xFFFE, plane << 16 | 0xFFFF]).filter_map(char::from_u32)
}

/// One replacement for all characters with the same outcome.
fn by_outcome<'r>(rules: impl Iterator<Item = (char, &'r str)>) -> Vec<Value> {
    let mut outcomes: BTreeMap<&str, BTreeSet<char>> = BTreeMap::new();
    for (from, to) in rules.filter(|(from, to)| *to != from.to_string()) {
        outcomes.entry(to).or_default().insert(from);
    }
    let steps = outcomes.iter().map(|(to, from)| {
        let class: String = from.iter().copied().map(code).collect();
        replace_all(&format!("[{class}]"), to)
    });
    steps.collect()
}

/// A character as a regular expression has it.
fn code(character: char) -> String {
    format!(r"\x{{{:X}}}", u32::from(character))
}

/// A text in Unicode's normal form NFKC.
fn nfkc(text: impl ToString) -> String {
    normal(&NFKC, text)
}

/// Whether a character is an accent or another mark on the one before.
fn is_mark(character: char) -> bool {
    normal(&StripAccents, character).is_empty()
}

fn normal(normalizer: &impl Normalizer, text: impl ToString) -> String {
    let mut text = NormalizedString::from(text.to_string());
    normalizer.normalize(&mut text).expect("normal forms have no errors");
    text.get().to_owned()
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}

fn unsupported() -> SentencePieceError {
    SentencePieceError::Unsupported("its rules to normalise text are neither NFKC nor few".to_owned())
}
