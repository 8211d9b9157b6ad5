//! Names of fields that constrain the answer, in the spellings of servers and client libraries.
//!
//! A name is compared word by word: `max_tokens`, `maxTokens`, `MAX-TOKENS` and `maxtokens` have the words
//! "max" and "token". `admin_token` and `infrastructure` contain the letters of a constraint and none of its
//! words.

/// Words that mark a constraint on the form, the tokens, the length or the end of an answer, wherever they
/// stand in a name. They are in lower case and singular.
const CONSTRAINTS: &[&str] = &[
    "guided",
    "grammar",
    "regex",
    "regexp",
    "schema",
    "schemata",
    "bnf",
    "ebnf",
    "gbnf",
    "structure",
    "structural",
    "constrain",
    "constraint",
    "json mode",
    "json object",
    "json output",
    "json only",
    "json format",
    "json response",
    "output json",
    "response json",
    "return json",
    "force json",
    "enforce json",
    "require json",
    "strict json",
    "response format",
    "response type",
    "response mime type",
    "output format",
    "output type",
    "tool choice",
    "tool config",
    "logit processor",
    "logit bias",
    "sequence bias",
    "allow token",
    "allow list",
    "white list",
    "deny list",
    "black list",
    "banned",
    "ban token",
    "ban eos",
    "token ban",
    "bad word",
    "stop string",
    "stop word",
    "stop sequence",
    "stop token",
    "stopping string",
    "suppress token",
    "force token",
    "force word",
    "force bos",
    "force eos",
    "force decoder",
    "no repeat ngram",
    "no repeat n gram",
    "token limit",
    "token budget",
    "budget token",
    "output len",
    "output length",
    "response len",
    "response length",
    "answer len",
    "answer length",
    "completion len",
    "completion length",
    "predict",
];

/// Whole names of constraints, in the same form.
const WHOLE_NAMES: &[&str] = &[
    "format",
    "json",
    "choice",
    "pattern",
    "lark",
    "max len",
    "min len",
    "max length",
    "min length",
    "end id",
    "eos token id",
    "thinking budget",
    "reasoning budget",
];

/// First words of a bound. A word of [`BOUNDED`] follows, directly or after other words.
const BOUNDS: [&str; 4] = ["max", "min", "maximum", "minimum"];
/// Words for the quantity that a bound limits.
const BOUNDED: [&str; 5] = ["token", "tok", "gen", "generate", "generation"];

/// Further words of names that are written without a separator, such as `maxnewtokens`. "predicted" describes
/// an answer, unlike "predict".
const OTHERS: [&str; 6] = ["predicted", "stop", "new", "num", "decoding", "size"];

/// Length of the longest word that is searched for words written without a separator, in bytes.
const MOST_JOINED: usize = 40;

/// Returns true for the name of a constraint.
pub(super) fn is_constraint(name: &str) -> bool {
    // These labels name the schema that the object itself follows.
    if matches!(name, "$schema" | "schema_version" | "schemaVersion") {
        return false;
    }
    let words = words(name);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let bound = words.iter().position(|word| BOUNDS.contains(word));
    let within = |constraint: &&str| {
        let constraint: Vec<&str> = constraint.split(' ').collect();
        words.windows(constraint.len()).any(|run| run == constraint)
    };
    // Every field with such a beginning ends the answer early: `stop`, `stop_regex`, `stopping_criteria`.
    words.first().is_some_and(|first| matches!(*first, "stop" | "stopping"))
        || bound.is_some_and(|bound| words[bound..].iter().any(|word| BOUNDED.contains(word)))
        || WHOLE_NAMES.contains(&&*words.join(" "))
        || CONSTRAINTS.iter().any(within)
}

/// The words of a name in lower case, those of constraints in the form of [`CONSTRAINTS`]. They end at a
/// character that is no letter, and at the end of a camel-case word.
fn words(name: &str) -> Vec<String> {
    let letters: Vec<char> = name.chars().collect();
    let lower = |at: Option<usize>| at.and_then(|at| letters.get(at)).is_some_and(|c| c.is_lowercase());
    let mut words = vec![String::new()];
    for (i, letter) in letters.iter().enumerate() {
        let begins = letter.is_uppercase() && (lower(i.checked_sub(1)) || lower(Some(i + 1)));
        if begins || !letter.is_alphabetic() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| letter.is_alphabetic()) {
            word.extend(letter.to_lowercase());
        }
    }
    let known = |word: String| match joined(&word) {
        Some(parts) => parts.into_iter().map(str::to_owned).collect(),
        None => vec![word],
    };
    words.into_iter().filter(|word| !word.is_empty()).flat_map(known).collect()
}

/// The known words of which a text consists, written without a separator; `None` if any letter is left over.
fn joined(text: &str) -> Option<Vec<&'static str>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let constraints = CONSTRAINTS.iter().chain(WHOLE_NAMES).flat_map(|words| words.split(' '));
    let mut known = OTHERS.into_iter().chain(BOUNDS).chain(BOUNDED).chain(constraints);
    known.find_map(|word| {
        let rest = text.strip_prefix(word).filter(|_| text.len() <= MOST_JOINED)?;
        // A word may be a plural or a participle. A bound may not: `mins` are minutes.
        let endings = if BOUNDS.contains(&word) { &[""][..] } else { &["", "s", "es", "d", "ed"] };
        let mut parts = endings.iter().find_map(|ending| joined(rest.strip_prefix(ending)?))?;
        parts.insert(0, word);
        Some(parts)
    })
}
