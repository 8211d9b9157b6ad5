//! Templates as Jinja2 and Python run them: comparison with Jinja2's results
//! (`scripts/make_jinja_fixtures.py`), and templates that the start refuses.

use std::fs;
use std::time::Instant;

use octant::text::{ChatMessage, ChatTemplate, RenderOptions, Role, TextError, Tokenizer};
use serde_json::{Map, Value, json};

use super::{data, load, message, messages};
use crate::HANG_GUARD;

/// Renders the conversation `chat` with the variables `kwargs`.
fn render(
    tokenizer: &Tokenizer,
    source: &str,
    chat: &[ChatMessage],
    kwargs: &Value,
) -> Result<String, TextError> {
    let template = ChatTemplate::from_source(source, tokenizer)?;
    let kwargs = kwargs.as_object().unwrap().clone();
    let options = RenderOptions { kwargs, ..RenderOptions::default() };
    template.render(chat, &options).map(|rendered| rendered.text())
}

/// Renders one message of the user.
fn one(source: &str) -> Result<String, TextError> {
    render(&load("byte_level"), source, &[message(Role::User, "q")], &json!({}))
}

/// Names that the renderer sets. The rows get other values for them from variables.
const RENDERERS: [&str; 3] = ["messages", "add_generation_prompt", "bos_token"];

/// Renders all rows of a fixture, and adds those that differ from Jinja2's results. Returns the number of
/// rows.
fn compare(fixture: &Value, differences: &mut Vec<String>) -> usize {
    // The turn markers of this tokenizer do not occur in the variables.
    let tokenizer = load("sentencepiece");
    let mut kwargs: Map<String, Value> = fixture["context"].as_object().unwrap().clone();
    let mut prefix = String::new();
    for name in RENDERERS {
        if let Some(value) = kwargs.shift_remove(name) {
            kwargs.insert(format!("row_{name}"), value);
        }
        prefix.push_str(&format!("{{% set {name} = row_{name} %}}"));
    }
    let (kwargs, user) = (Value::Object(kwargs), [message(Role::User, "q")]);
    let result = |source: &str| render(&tokenizer, &format!("{prefix}\n{source}"), &user, &kwargs);
    let rows = fixture["rows"].as_array().unwrap();
    for row in rows {
        let got = result(row[0].as_str().unwrap()).ok();
        if got.as_deref() != row[1].as_str() {
            differences.push(format!("{}\n  expected {}\n  got      {got:?}", row[0], row[1]));
        }
    }
    for (source, reason) in fixture["refused"].as_object().into_iter().flatten() {
        if let Ok(got) = result(source) {
            differences.push(format!("{source}\n  expected an error ({reason})\n  got      {got:?}"));
        }
    }
    rows.len()
}

/// `scripts/compare_chat_templates.py` runs this test on a file of its own.
#[test]
fn expressions_and_templates_give_jinja2_s_results() {
    let file = std::env::var_os("OCTANT_JINJA_FIXTURES").map_or_else(|| data("jinja.json"), Into::into);
    let mut differences = Vec::new();
    let fixtures = fs::read_to_string(file).unwrap();
    let rows: usize =
        fixtures.lines().map(|line| compare(&serde_json::from_str(line).unwrap(), &mut differences)).sum();
    assert!(rows > 1000, "{rows} rows");
    assert!(differences.is_empty(), "{} of {rows} differ:\n{}", differences.len(), differences.join("\n"));
    println!("{rows} rows are equal");
}

#[test]
fn carriage_returns_end_lines_as_in_jinja2() {
    let unix = "{% for m in messages %}\n{{ m.role }}:\n{{ m.content }}\n{% endfor %}\nend";
    for end in ["\n", "\r\n", "\r"] {
        assert_eq!(one(&unix.replace('\n', end)).unwrap(), "user:\nq\nend");
    }
}

#[test]
fn the_template_gets_all_fields_of_a_message() {
    let source = "{% for m in messages %}{{ m.role }} {{ m.name }} {{ m.tool_call_id }} \
                  {{ m.reasoning_content }} {{ m.thinking }} {{ m.refusal }}|{% endfor %}";
    let chat = messages(&json!([
        {"role": "user", "content": "q", "name": "Ada"},
        {"role": "assistant", "content": "a", "reasoning": "why", "refusal": null},
        {"role": "assistant", "content": "", "reasoning_content": "r", "refusal": "no"},
        {"role": "tool", "tool_call_id": "c1", "content": "21"},
    ]));
    let text = render(&load("byte_level"), source, &chat, &json!({})).unwrap();
    assert_eq!(text, "user Ada    |assistant   why why |assistant   r r no|tool  c1   |");
    let ids = "{% for m in messages %}{% if m.role == 'tool' %}[{{ m.tool_call_id }}] {% endif %}\
               {{ m.content }}\n\
               {% endfor %}";
    let text = render(&load("byte_level"), ids, &chat[3..], &json!({})).unwrap();
    assert_eq!(text, "[c1] 21\n");
}

#[test]
fn templates_of_public_reports_render_as_in_jinja2() {
    let chat = messages(&json!([
        {"role": "user", "content": "q"},
        {"role": "tool", "tool_call_id": "c1", "content": "21"},
    ]));
    for (source, expected) in [
        ("{% if tools is iterable and tools | length > 0 %}T{% endif %}{{ messages[0].content }}", "q"),
        (
            "{% for m in messages %}\r\n{{ m.role }}:\r\n{{ m.content }}\r\n{% endfor %}\r\n",
            "user:\nq\ntool:\n21\n",
        ),
        (
            "{% for m in messages %}{% if m.role == \"tool\" %}[{{ m.tool_call_id }}] {% endif %}\
             {{ m.content }}\n{% endfor %}",
            "q\n[c1] 21\n",
        ),
        (
            "{% if messages[0].content is sequence %}S{% else %}N{% endif %}\
             {% if messages[0] is sequence %}S{% else %}N{% endif %}",
            "SS",
        ),
        ("{{ 'a</t>b</t>c'.rsplit('</t>', 1)[-1] }}", "c"),
        ("{{ '%s: %s' % ('a', 'b') }}", "a: b"),
    ] {
        let text = render(&load("byte_level"), source, &chat, &json!({}));
        assert_eq!(text.unwrap(), expected, "{source}");
    }
}

#[test]
fn work_on_long_text_is_limited() {
    let grow = |step: &str| {
        format!("{{% set ns = namespace(x='ab') %}}{{% for i in range(99999) %}}{step}{{% endfor %}}")
    };
    let bombs = [
        grow("{% set ns.x = ns.x + ns.x %}"),
        grow("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        grow("{% set ns.x = [ns.x] * 100000 %}"),
        "{% set x = 'a' * 60000000 %}{% for i in range(99999) %}{% if 'b' in x %}{% endif %}{% endfor %}"
            .to_owned(),
        "{{ 'a' * 100000000000 }}".to_owned(),
        "{{ '%99999999999d' % 1 }}".to_owned(),
        "{{ '{:>99999999999}'.format(1) }}".to_owned(),
        "{{ 2 ** 100000000 }}".to_owned(),
    ];
    let started = Instant::now();
    for source in &bombs {
        let error = one(source).unwrap_err();
        assert!(error.is_client(), "{source}: {error}");
    }
    assert!(started.elapsed() < HANG_GUARD, "{:?}", started.elapsed());
}

#[test]
fn striptags_removes_tags_as_markupsafe_3_does_in_linear_time() {
    let tokenizer = load("byte_level");
    let strip = |text: &str| {
        let user = [message(Role::User, text)];
        render(&tokenizer, "{{ messages[0].content | striptags }}", &user, &json!({}))
    };
    for (text, expected) in [
        ("a<!-- > -->b", "ab"),
        ("a<!-->b", "a<!-->b"),
        ("a<!b>c", "ac"),
        ("a < b", "a < b"),
        ("x<!---->y", "xy"),
        ("a<b<c>d", "ad"),
        ("a<!-- <b> c", "a<!-- <b> c"),
        ("<a <!-- > x -->y", "x -->y"),
    ] {
        assert_eq!(strip(text).unwrap(), expected, "{text}");
    }
    let started = Instant::now();
    for text in ["<b>", "<!-- -->", "<!--", "<", "<!-"] {
        assert!(strip(&text.repeat(400_000)).is_ok(), "{text}");
    }
    assert!(started.elapsed() < HANG_GUARD, "{:?}", started.elapsed());
}

#[test]
fn pprint_of_deeply_nested_values_is_refused() {
    for (wrap, deep) in [("[ns.x]", 5000), ("{'a': ns.x}", 5000), ("(ns.x,)", 5000), ("[ns.x]", 102)] {
        let source = format!(
            "{{% set ns = namespace(x=1) %}}\
             {{% for i in range({deep}) %}}{{% set ns.x = {wrap} %}}{{% endfor %}}{{{{ ns.x | pprint }}}}"
        );
        let error = one(&source).unwrap_err().to_string();
        assert!(error.contains("more than 100 levels"), "{wrap}: {error}");
    }
    assert_eq!(one("{{ [[[{'b': 1, 'a': 2}]]] | pprint }}").unwrap(), "[[[{'a': 2, 'b': 1}]]]");
}

#[test]
fn deeply_nested_templates_are_refused() {
    for (open, close) in
        [("(", ")"), ("[", "]"), ("not ", ""), ("-", ""), ("{1: ", "}"), ("1 if 1 else ", "")]
    {
        let source = format!("{{{{ {}1{} }}}}", open.repeat(5000), close.repeat(5000));
        assert!(one(&source).is_err(), "{open}");
    }
    let blocks = format!("{}{}", "{% if 1 %}".repeat(5000), "{% endif %}".repeat(5000));
    assert!(one(&blocks).is_err());
}

/// Loads a template from a model directory, as the start does.
fn start(source: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    let template = ChatTemplate::from_dir(dir.path(), &load("byte_level"));
    template.map(|template| assert!(template.is_some())).map_err(|error| error.to_string())
}

#[test]
fn a_template_that_cannot_render_a_plain_conversation_stops_the_start() {
    let fails = [
        ("a\n\n{{ messages[0].content.nope() }}", "line 3"),
        (
            "{% for m in messages %}\n{% if m.role == 'assistant' %}\n{{ 1 + '' }}{% endif %}{% endfor %}",
            "line 3",
        ),
        ("x\r\n{{ 'a' | nope }}", "line 2: No filter named \"nope\""),
        ("{{ 'a'\n | random }}", "line 2: the filter \"random\" is not supported"),
        ("{% if true %}\n{{ 'a' | nope }}{% endif %}", "line 2"),
        ("a\nb\n{% for %}", "line 3"),
        ("{% include 'x' %}", "line 1: include"),
    ];
    for (source, expected) in fails {
        let error = start(source).unwrap_err();
        assert!(error.contains("chat_template.jinja") && error.contains(expected), "{source}: {error}");
    }
}

#[test]
fn a_template_may_refuse_a_plain_conversation_itself() {
    let refusals = [
        "{% if messages[0].role != 'system' %}{{ raise_exception('needs a system message') }}{% endif %}",
        "{% for m in messages %}{{ raise_exception('no') if m.role == 'assistant' }}{% endfor %}",
        "{% if messages | length > 1 %}{{ raise_exception('one message only') }}{% endif %}x",
    ];
    for source in refusals {
        assert_eq!(start(source), Ok(()), "{source}");
    }
}

#[test]
fn format_fields_of_the_wrong_shape_are_errors() {
    for source in [
        "{{ '{0[a]é}'.format({'a': 1}) }}",
        "{{ '{0[a]b}'.format({'a': 1}) }}",
        "{{ '{0[a'.format({'a': 1}) }}",
        "{{ '%.70000f' % 1.5 }}",
        "{{ '{:.70000e}'.format(1.5) }}",
        "{{ '{:70000}'.format('a') }}",
    ] {
        assert!(one(source).is_err(), "{source}");
    }
    assert_eq!(one("{{ '{0[a]} {0[b][c]:.2f}'.format({'a': 1, 'b': {'c': 2}}) }}").unwrap(), "1 2.00");
}
