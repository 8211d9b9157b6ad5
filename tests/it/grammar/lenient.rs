//! Tools whose schemas may ignore keywords that cannot be enforced: how many there are does not matter.

use octant::grammar::{GrammarError, GrammarProgress, GrammarSource};
use octant::tools::{AllowedTool, AnswerWithoutCalls, Tool, ToolFormat, call_grammar, call_text};
use serde_json::{Map, Value, json};

use super::{allowed, bytes, matcher};

/// Formats in which the schema of a call has its own rule, and in which it is a part of another schema.
const FORMATS: [ToolFormat; 2] = [ToolFormat::Hermes, ToolFormat::Llama3];

/// An object whose properties `p0`, `p1`, … have these schemas.
fn object(count: usize, property: impl Fn(usize) -> Value) -> Value {
    let properties: Map<String, Value> = (0..count).map(|i| (format!("p{i}"), property(i))).collect();
    json!({ "type": "object", "properties": properties })
}

fn path(i: usize) -> String {
    format!("tools[{i}].function.parameters")
}

/// A required call of one of the tools with these parameters; whether each is lenient stands beside them.
fn source(format: ToolFormat, parameters: &[(Value, bool)]) -> GrammarSource {
    let tool = |(i, (schema, lenient)): (usize, &(Value, bool))| Tool {
        name: format!("tool{i}"),
        description: None,
        parameters: schema.as_object().unwrap().clone(),
        strict: !lenient,
    };
    let tools: Vec<Tool> = parameters.iter().enumerate().map(tool).collect();
    let paths: Vec<String> = (0..tools.len()).map(path).collect();
    let allowed =
        tools.iter().zip(&paths).map(|(tool, path)| AllowedTool { tool, path, lenient: !tool.strict });
    call_grammar(format, &allowed.collect::<Vec<_>>(), false, &AnswerWithoutCalls::Never)
}

/// The paths that the grammar of these tools ignores.
fn ignored(format: ToolFormat, parameters: &[(Value, bool)]) -> Result<Vec<String>, GrammarError> {
    Ok(bytes().compile(&source(format, parameters))?.ignored().to_vec())
}

/// Whether the first of the tools may be called with these arguments.
fn allows(format: ToolFormat, parameters: &[(Value, bool)], arguments: &str) -> bool {
    let matcher = matcher(&bytes(), &source(format, parameters));
    call_text(format, "tool0", arguments).bytes().enumerate().all(|(index, byte)| {
        let token = u32::from(byte);
        let mask = matcher.mask(index);
        let is_allowed = mask.is_some_and(|mask| allowed(&mask).contains(&token));
        is_allowed && matcher.advance(index, token) != GrammarProgress::Stuck
    })
}

/// Two alternatives that may both be valid.
fn overlapping() -> Value {
    json!({ "oneOf": [{ "type": "integer", "maximum": 9 }, { "type": "integer", "minimum": 5 }] })
}

/// One walk over the schema leaves out all of them: a walk for each would take minutes. Nothing refers to the
/// definitions, because `llguidance` itself takes seconds for an object with 9,000 properties.
#[test]
fn nine_thousand_least_numbers_of_properties_are_left_out() {
    let mut schema = object(0, |_| json!({}));
    schema["$defs"] = object(9000, |_| json!({ "minProperties": 2 }))["properties"].take();
    for format in FORMATS {
        let ignored = ignored(format, &[(schema.clone(), true)]).unwrap();
        assert_eq!(ignored[0], format!("{}#/$defs/p0/minProperties", path(0)));
        assert!(ignored.len() > 500, "{}", ignored.len());
        let error = self::ignored(format, &[(schema.clone(), false)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: minProperties: not supported where", path(0))), "{error}");
        assert!(error.ends_with("(at #/$defs/p0)"), "{error}");
    }
}

#[test]
fn many_keywords_are_left_out_and_the_others_are_enforced() {
    let schema = object(51, |_| overlapping());
    for format in FORMATS {
        let tools = [(schema.clone(), true)];
        let mut found = ignored(format, &tools).unwrap();
        found.sort();
        let mut expected: Vec<String> =
            (0..51).map(|i| format!("{}#/properties/p{i}/oneOf", path(0))).collect();
        expected.sort();
        assert_eq!(found, expected, "{format:?}");
        assert!(allows(format, &tools, r#"{"p0": 7, "p50": 1}"#), "{format:?}");
        assert!(!allows(format, &tools, r#"{"p0": 7, "p50": "1"}"#), "{format:?}");
    }
}

/// Each tool needs its own turns.
#[test]
fn many_tools_with_faults_of_several_kinds_are_compiled() {
    let parameters = |i: usize| {
        let schema = object(4, |k| match k {
            0 => json!({ "type": "string", "pattern": format!("x{i}(") }),
            1 => json!({ "type": "string", "format": format!("format{i}") }),
            2 => json!({ "type": "array", "uniqueItems": true, "maxItems": 2 }),
            _ => overlapping(),
        });
        (schema, true)
    };
    let tools: Vec<(Value, bool)> = (0..60).map(parameters).collect();
    for format in FORMATS {
        let found = ignored(format, &tools).unwrap();
        for i in [0, 59] {
            for name in ["p0/pattern", "p1/format", "p2/uniqueItems", "p3/oneOf"] {
                let name = format!("{}#/properties/{name}", path(i));
                assert!(found.contains(&name), "{format:?}: {name}: {found:?}");
            }
        }
        assert!(!allows(format, &tools, r#"{"p0": 1}"#), "{format:?}");
    }
}

/// Parts of a large schema are not tried: what an error names is left out of all its parts, or it may be any
/// object.
#[test]
fn large_schemas_lose_what_the_error_names() {
    let text = json!({ "type": "string", "pattern": format!("^{}$", "a".repeat(200)) });
    let schema = |fault: Value| object(200, |i| if i % 50 == 7 { fault.clone() } else { text.clone() });
    for format in FORMATS {
        let tools = [(schema(overlapping()), true)];
        let found = ignored(format, &tools).unwrap();
        assert_eq!(found, [7, 57, 107, 157].map(|i| format!("{}#/properties/p{i}/oneOf", path(0))));
        assert!(!allows(format, &tools, r#"{"p0": "b"}"#), "{format:?}");
        let tools = [(schema(json!({ "type": "string", "maxLength": -1 })), true)];
        assert_eq!(ignored(format, &tools).unwrap(), [path(0)], "{format:?}");
        assert!(allows(format, &tools, r#"{"p0": "b"}"#), "{format:?}");
        assert!(!allows(format, &tools, r#"["p0"]"#), "{format:?}");
    }
}

/// An error of a tool that must be followed names it, whatever lenient tools beside it have lost.
#[test]
fn strict_tools_beside_lenient_ones_are_named() {
    let many = object(60, |_| overlapping());
    let one = object(2, |i| if i == 1 { overlapping() } else { json!({ "type": "null" }) });
    for format in FORMATS {
        for tools in
            [[(many.clone(), true), (one.clone(), false)], [(one.clone(), false), (many.clone(), true)]]
        {
            let strict = usize::from(tools[0].1);
            let error = ignored(format, &tools).unwrap_err().to_string();
            let expected = format!("{}: oneOf: not supported where more than one", path(strict));
            assert!(error.starts_with(&expected) && error.ends_with("(at #/properties/p1)"), "{error}");
        }
    }
}

/// A keyword that is never left out is an error however much else is left out.
#[test]
fn types_that_do_not_exist_are_errors() {
    let schema = object(60, |i| if i == 59 { json!({ "type": "strange" }) } else { overlapping() });
    for format in FORMATS {
        let error = ignored(format, &[(schema.clone(), true)]).unwrap_err().to_string();
        assert_eq!(error, format!("{}: type: Invalid type: strange (at #/properties/p59)", path(0)));
    }
}

#[test]
fn limits_count_for_each_tool_and_name_it() {
    let chain = |count: usize| {
        let next = |i: usize| json!({ "$ref": format!("#/$defs/p{}", (i + 1) % count) });
        let definitions: Map<String, Value> = (0..count).map(|i| (format!("p{i}"), next(i))).collect();
        json!({ "type": "object", "properties": {}, "$defs": definitions })
    };
    let patterns = object(3, |i| json!({ "type": "string", "pattern": "a".repeat(5000 * i) }));
    for format in FORMATS {
        let tools = [(object(0, |_| json!({})), true), (patterns.clone(), true)];
        let error = ignored(format, &tools).unwrap_err().to_string();
        let text = "pattern: bytes of a pattern: expected at most 8192, got 10000 (at #/properties/p2)";
        assert_eq!(error, format!("{}: {text}", path(1)), "{format:?}");
        let error = ignored(format, &[(chain(5), true), (chain(2001), true)]).unwrap_err().to_string();
        let text = "references ($ref): expected at most 2000, got 2001 (within #)";
        assert_eq!(error, format!("{}: {text}", path(1)), "{format:?}");
        assert_eq!(
            ignored(format, &[(chain(1500), true), (chain(1500), true)]),
            Ok(Vec::new()),
            "{format:?}"
        );
    }
}
