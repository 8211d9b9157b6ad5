//! Patterns and lists of modules against the libraries that define them
//! (`scripts/make_checkpoint_fixtures.py`).

use serde_json::Value;

use super::module_list::{Covered, ModuleList, StoredFormat, Syntax};
use super::python_regex::PythonRegex;

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/checkpoints/patterns.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// One digit for each module, as in the fixture.
fn digits(modules: &[String], matches: impl Fn(&str) -> bool) -> String {
    modules.iter().map(|module| if matches(module) { '1' } else { '0' }).collect()
}

fn single(syntax: Syntax, entry: &str) -> ModuleList {
    ModuleList::new(syntax, &[entry.to_owned()]).unwrap()
}

#[test]
fn expressions_match_as_in_python_or_are_refused() {
    // Python compiles these: an octal escape, verbose mode within a group, and a condition.
    const REFUSED: [(&str, &str); 3] =
        [(r"model\056", r"\0"), ("(?x: model)", "(?x"), ("(?P<a>m)(?(a)odel|x)", "(?(")];
    let fixture = fixture();
    let modules = strings(&fixture["modules"]);
    for (pattern, expected) in fixture["re_match"].as_object().unwrap() {
        let refused = REFUSED.iter().find(|(refused, _)| refused == pattern);
        match (PythonRegex::new(pattern), expected.as_str(), refused) {
            (Ok(regex), Some(expected), None) => {
                let got = digits(&modules, |module| regex.matches(module).unwrap());
                assert_eq!(got, expected, "`{pattern}`");
            }
            (Err(error), Some(_), Some((_, syntax))) => {
                assert!(error.0.contains(syntax), "`{pattern}`: `{error}` lacks `{syntax}`");
            }
            (Err(_), None, None) => {}
            (got, expected, _) => panic!("`{pattern}`: expected {expected:?}, got {got:?}"),
        }
    }
}

#[test]
fn expressions_in_any_text_find_what_python_finds() {
    // Numbers of matches of `re.findall(pattern, text, re.IGNORECASE)` in Python 3.11.
    for (pattern, text, expected) in [
        (r"\w+", "n\u{303}o ½ _", 4),
        (r"[^\W\d]+", "a1b", 2),
        (r"\bcat\b", "Cat, cat\u{301} concat", 2),
        (r"\B", "ab c", 1),
        (r"a\s", "a\u{1C}a\u{85}a", 2),
        ("end$", "the end\n", 1),
        ("end$", "the end\n\n", 0),
        ("a*", "aab", 3),
        ("C++", "ccc C", 2),
    ] {
        let regex = PythonRegex::in_text(pattern, "i").unwrap();
        assert_eq!(regex.count(text).unwrap(), expected, "`{pattern}` in {text:?}");
        assert_eq!(regex.matches(text).unwrap(), expected > 0, "`{pattern}` in {text:?}");
    }
    for pattern in ["(?a)x", "(?m)x$", r"(.)\1", "(?P<a>.)(?P=a)", "(", "*"] {
        assert!(PythonRegex::in_text(pattern, "").is_err(), "`{pattern}`");
    }
}

#[test]
fn shell_patterns_match_as_in_python() {
    let fixture = fixture();
    let modules = strings(&fixture["modules"]);
    for (pattern, expected) in fixture["fnmatch"].as_object().unwrap() {
        let list = single(Syntax::Shell, pattern);
        let got = digits(&modules, |module| list.excludes(module).unwrap() == Covered::Yes);
        assert_eq!(got, expected.as_str().unwrap(), "`{pattern}`");
    }
}

#[test]
fn what_transformers_does_not_convert_is_never_taken_for_quantised() {
    let fixture = fixture();
    let modules = strings(&fixture["modules"]);
    for (entry, expected) in fixture["not_converted"].as_object().unwrap() {
        let list = single(Syntax::Parts, entry);
        for (module, digit) in modules.iter().zip(expected.as_str().unwrap().chars()) {
            let covered = list.excludes(module).unwrap();
            match digit {
                '1' => assert_ne!(covered, Covered::No, "`{entry}`, {module}"),
                _ => assert_ne!(covered, Covered::Yes, "`{entry}`, {module}"),
            }
        }
        let own = list.excludes(entry).unwrap();
        assert_eq!(own, Covered::Yes, "a name covers the module of that name");
    }
}

#[test]
fn flags_may_stand_at_the_start_of_an_entry() {
    let (inside, outside) = ("model.layers.1.mlp.up_proj", "model.layers.11.mlp.up_proj");
    for entry in [
        r"(?i)MODEL\.layers\.1",
        r"(?i)x|MODEL\.LAYERS\.1",
        r"re:(?is)Model.layers.1.MLP",
        r"(?x) model \. layers \. 1 # the second layer",
        r"(?i)(?x) MODEL \.LAYERS \.1",
    ] {
        let list = single(Syntax::Parts, entry);
        // Libraries differ in how they match such an entry, so the type of the stored weight decides.
        assert_eq!(list.excludes(inside).unwrap(), Covered::Perhaps, "{entry}");
        assert_eq!(list.excludes(outside).unwrap(), Covered::No, "{entry}");
    }
    for entry in [r"model(?i)", r"(?L)model", r"(?-i)model", r"(?au)model"] {
        let error = ModuleList::new(Syntax::Parts, &[entry.to_owned()]).unwrap_err();
        assert!(error.0.contains("(?"), "{error}");
    }
}

#[test]
fn lists_of_compressed_tensors_quantise_the_same_modules() {
    // Only a name of a parent or of a class leaves the choice to the stored type.
    let either = |list: &[String]| {
        list.iter().any(|entry| {
            let parent = ["model.layers.1", "model.layers.1.self_attn"].contains(&entry.as_str());
            parent || ["Linear", "LlamaAttention", "LlamaMLP"].contains(&entry.as_str())
        })
    };
    let fixture = fixture();
    let modules = strings(&fixture["modules"]);
    for row in fixture["compressed_tensors"].as_array().unwrap() {
        let (targets, ignore) = (strings(&row["targets"]), strings(&row["ignore"]));
        let list = |entries: &[String]| ModuleList::new(Syntax::Named, entries).unwrap();
        let (quantised, ignored) = (list(&targets), list(&ignore));
        let may_be_either = either(&ignore) || (either(&targets) && targets != ["Linear"]);
        let mut eithers = 0;
        for (module, digit) in modules.iter().zip(row["quantised"].as_str().unwrap().chars()) {
            match StoredFormat::of(module, Some(&quantised), &ignored).unwrap() {
                StoredFormat::Fp8 => assert_eq!(digit, '1', "{row}, {module}"),
                StoredFormat::Float => assert_eq!(digit, '0', "{row}, {module}"),
                StoredFormat::Either => eithers += 1,
            }
        }
        assert_eq!(eithers > 0, may_be_either, "{row}: {eithers} modules");
    }
}

#[test]
fn a_fused_name_leaves_the_choice_to_the_stored_type() {
    for (entry, covered, not) in [
        (
            "model.layers.1.self_attn.qkv_proj",
            "model.layers.1.self_attn.k_proj",
            "model.layers.1.self_attn.o_proj",
        ),
        ("re:.*gate_up_proj", "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"),
        ("RowParallelLinear", "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"),
    ] {
        let list = single(Syntax::Named, entry);
        assert_eq!(list.excludes(covered).unwrap(), Covered::Perhaps, "{entry}");
        assert_eq!(list.excludes(not).unwrap(), Covered::No, "{entry}");
    }
}
