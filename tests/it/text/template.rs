//! Chat templates: comparison with transformers' renderings, and the limits on templates.

use std::fs;
use std::time::Instant;

use octant::text::{ChatTemplate, RenderOptions, Role, TextError, Tokenizer, strftime};
use serde_json::{Value, json};

use super::{FIXTURES, data, golden, load, message, messages, options};
use crate::HANG_GUARD;

pub fn template(name: &str, tokenizer: &Tokenizer) -> ChatTemplate {
    let path = match name {
        "instruct" => "models/nemotron-4-340b-instruct/chat_template.jinja".into(),
        _ => format!("tests/data/text/templates/{name}.jinja"),
    };
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    ChatTemplate::from_source(&fs::read_to_string(path).unwrap(), tokenizer).unwrap()
}

#[test]
fn renders_and_encodes_as_transformers_does() {
    let (mut rendered, mut refused) = (0, 0);
    for fixture in FIXTURES {
        let tokenizer = load(fixture);
        for (name, cases) in golden(fixture)["chats"].as_object().unwrap() {
            let template = template(name, &tokenizer);
            for case in cases.as_array().unwrap() {
                let label = format!("{fixture} {name} {} {}", case["chat"], case["options"]);
                match template.render(&messages(&case["messages"]), &options(&case["options"])) {
                    Ok(prompt) => {
                        assert_eq!(prompt.text(), case["text"].as_str().expect(&label), "{label}");
                        let ids = tokenizer.encode_prompt(&prompt).unwrap();
                        assert_eq!(json!(ids), case["ids"], "{label}");
                        rendered += 1;
                    }
                    Err(error) => {
                        let expected = case["error"].as_str().unwrap_or_else(|| panic!("{label}: {error}"));
                        assert!(error.is_client() && error.to_string().contains(expected), "{label} {error}");
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(rendered > 100 && refused > 2, "{rendered} {refused}");
}

#[test]
fn the_template_of_the_model_directory_is_used() {
    let tokenizer = load("byte_level");
    let template = ChatTemplate::from_dir(&data("byte_level"), &tokenizer).unwrap().unwrap();
    let prompt = template
        .render(&[message(Role::System, "S"), message(Role::User, "{{7*7}}")], &RenderOptions::default());
    let expected =
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n{{7*7}}<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(prompt.unwrap().text(), expected);
}

fn render(source: &str, kwargs: Value) -> Result<String, TextError> {
    let template = ChatTemplate::from_source(source, &load("byte_level"))?;
    let options = RenderOptions { kwargs: kwargs.as_object().unwrap().clone(), ..RenderOptions::default() };
    template.render(&[message(Role::User, "hi")], &options).map(|rendered| rendered.text())
}

#[test]
fn refusals_by_the_template_are_client_errors_and_syntax_errors_are_not() {
    let error = render("{{ raise_exception('No, ' ~ messages[0].content) }}", json!({})).unwrap_err();
    assert!(error.is_client());
    assert_eq!(error.to_string(), "the chat template cannot render these messages: No, hi");
    let error = render("{{ undefined.attribute }}", json!({})).unwrap_err();
    assert!(error.is_client());
    let error = render("{{ 'unclosed' ", json!({})).unwrap_err();
    assert!(!error.is_client());
}

#[test]
fn runaway_templates_end_with_an_error() {
    let loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    let printing =
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ messages }}{% endfor %}{% endfor %}";
    let huge = "{% for i in range(10000000000) %}x{% endfor %}";
    let recursion = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
    let long = "{% for i in range(1000) %}{{ pad }}{% endfor %}";
    let started = Instant::now();
    for source in [loops, printing, huge, recursion, long] {
        let error = render(source, json!({"pad": "x".repeat(1 << 20)})).unwrap_err();
        assert!(error.is_client(), "{source}: {error}");
    }
    assert!(started.elapsed() < HANG_GUARD, "{:?}", started.elapsed());
}

#[test]
fn contradicting_options_are_refused() {
    let template = template("chatml", &load("byte_level"));
    let user = [message(Role::User, "x")];
    let both = RenderOptions { continue_final_message: true, ..RenderOptions::default() };
    let mut reserved = RenderOptions::default();
    reserved.kwargs.insert("messages".into(), json!([]));
    assert!(template.render(&user, &both).unwrap_err().is_client());
    assert!(template.render(&user, &reserved).unwrap_err().is_client());
    assert!(template.render(&[], &RenderOptions::default()).unwrap_err().is_client());
    let silent = ChatTemplate::from_source("nothing", &load("byte_level")).unwrap();
    let cut = RenderOptions {
        continue_final_message: true,
        add_generation_prompt: false,
        ..RenderOptions::default()
    };
    assert!(silent.render(&user, &cut).unwrap_err().is_client());
}

#[test]
fn a_template_says_which_variables_it_reads() {
    let tokenizer = load("byte_level");
    for (source, expected) in [
        ("{{ reasoning_effort }}", true),
        ("{% if reasoning_effort is defined %}a{% endif %}", true),
        ("{{ reasoning_effort | default('low') }}", true),
        ("{% set reasoning_effort = 'low' %}{{ reasoning_effort }}", false),
        ("{{ 'reasoning_effort' }}{# reasoning_effort #}", false),
        ("{{ messages[0].reasoning_effort }}", false),
    ] {
        let template = ChatTemplate::from_source(source, &tokenizer).unwrap();
        assert_eq!(template.reads("reasoning_effort"), expected, "{source}");
    }
}

#[test]
fn tojson_equals_python_s_json_dumps() {
    let value = json!({"b": [1, 1.5, 1e20, 1e-7, []], "a": "é<'\u{1}😀"});
    let render = |arguments: &str| {
        render(&format!("{{{{ value | tojson{arguments} }}}}"), json!({"value": value})).unwrap()
    };
    assert_eq!(render(""), r#"{"b": [1, 1.5, 1e+20, 1e-07, []], "a": "é<'\u0001😀"}"#);
    assert_eq!(
        render("(ensure_ascii=true, sort_keys=true)"),
        r#"{"a": "\u00e9<'\u0001\ud83d\ude00", "b": [1, 1.5, 1e+20, 1e-07, []]}"#
    );
    assert_eq!(render("(separators=[',', ':'])"), r#"{"b":[1,1.5,1e+20,1e-07,[]],"a":"é<'\u0001😀"}"#);
}

#[test]
fn strftime_equals_python_s() {
    let all = "%Y-%m-%d %H:%M:%S %y %j %a %A %b %B %I %p %e %-d %-m %F %T %% %Q";
    // From Python's datetime.strftime, except the unknown %Q.
    assert_eq!(
        strftime(all, 1_709_210_096),
        "2024-02-29 12:34:56 24 060 Thu Thursday Feb February 12 PM 29 29 2 2024-02-29 12:34:56 % %Q"
    );
    assert_eq!(strftime("%d %b %Y", 0), "01 Jan 1970");
    assert_eq!(strftime("%F %A", 951_782_400), "2000-02-29 Tuesday");
    assert_eq!(strftime("%F %j", 4_102_444_800 - 1), "2099-12-31 365");
    let year: u32 = render("{{ strftime_now('%Y') }}", json!({})).unwrap().parse().unwrap();
    assert!(year >= 2024);
}
