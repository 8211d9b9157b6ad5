//! Tests of the two forms of a message's content, a string and a list of parts, under templates that want
//! either. Templates must get the form that vLLM gives them (`--chat-template-content-format auto`).

use octant::text::{ChatMessage, ChatTemplate, Content, RenderOptions, Role, TextError};

use super::{load, message};

/// A template that loops over the messages, with the given body of the loop.
fn each(body: &str) -> String {
    format!("{{% for m in messages %}}[{{{{ m.role }}}}]{body}{{% endfor %}}")
}

const STRING: &str = "{{ m.content }}";
const CONCATENATED: &str = "{{ '' + m['content'] + '' }}";
const LIST: &str = "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}";
const BOTH: &str = "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}\
                    {{ p['text'] }}{% endfor %}{% endif %}";
/// Prints the content itself for the role system, and parts for other roles.
const MIXED: &str = "{% if m.role == 'system' %}{{ m.content | trim }}{% elif m.content is string %}\
                     {{ m.content }}{% else %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}";
const JSON: &str = "{{ m.content | tojson }}";

fn parts(role: Role, texts: &[&str]) -> ChatMessage {
    let content = Content::Parts(texts.iter().map(|&text| text.to_owned()).collect());
    ChatMessage { content, ..message(role, "") }
}

fn rendered(source: &str, messages: &[ChatMessage], options: &RenderOptions) -> Result<String, TextError> {
    let template = ChatTemplate::from_source(source, &load("byte_level"))?;
    template.render(messages, options).map(|prompt| prompt.text())
}

#[test]
fn a_template_gets_the_form_of_content_that_it_can_render() {
    let content = "{% macro show(content) %}{% if content is string %}{{ content }}{% else %}\
                   {% for p in content %}{{ p.text }}{% endfor %}{% endif %}{% endmacro %}";
    let with_macro = content.to_owned() + &each("{{ show(m.content) }}");
    for (source, string, list) in [
        (each(STRING), "[system]s[user]u", "[system]a\nb[user]c\nd\ne"),
        (each(CONCATENATED), "[system]s[user]u", "[system]a\nb[user]c\nd\ne"),
        (each(LIST), "[system]s[user]u", "[system]ab[user]cde"),
        (each(BOTH), "[system]s[user]u", "[system]ab[user]cde"),
        (with_macro, "[system]s[user]u", "[system]ab[user]cde"),
        (each(MIXED), "[system]s[user]u", "[system]a\nb[user]<c><d><e>"),
        (each(JSON), "[system]\"s\"[user]\"u\"", "[system]\"a\\nb\"[user]\"c\\nd\\ne\""),
    ] {
        let options = RenderOptions::default();
        let strings = [message(Role::System, "s"), message(Role::User, "u")];
        assert_eq!(rendered(&source, &strings, &options).unwrap(), string, "{source}");
        let lists = [parts(Role::System, &["a", "b"]), parts(Role::User, &["c", "d", "e"])];
        assert_eq!(rendered(&source, &lists, &options).unwrap(), list, "{source}");
    }
}

#[test]
fn an_empty_list_is_an_empty_string_where_strings_are_wanted() {
    for (body, expected) in [(STRING, "[user][assistant]x"), (BOTH, "[user][assistant]x")] {
        let messages = [parts(Role::User, &[]), message(Role::Assistant, "x")];
        assert_eq!(rendered(&each(body), &messages, &RenderOptions::default()).unwrap(), expected);
    }
}

#[test]
fn texts_of_a_tool_are_joined_unless_the_template_prints_no_strings() {
    for (body, expected) in [(STRING, "[tool]a\nb"), (BOTH, "[tool]a\nb"), (LIST, "[tool]ab")] {
        let messages = [message(Role::User, "u"), parts(Role::Tool, &["a", "b"])];
        let text = rendered(&each(body), &messages, &RenderOptions::default()).unwrap();
        assert_eq!(text, format!("[user]u{expected}"), "{body}");
    }
}

#[test]
fn the_last_part_of_a_list_is_continued() {
    let options = RenderOptions {
        add_generation_prompt: false,
        continue_final_message: true,
        ..RenderOptions::default()
    };
    for (body, expected) in [(STRING, "a\nb "), (LIST, "ab "), (BOTH, "ab ")] {
        let messages = [message(Role::User, "u"), parts(Role::Assistant, &["a", "b "])];
        let text = rendered(&(each(body) + "!"), &messages, &options).unwrap();
        assert_eq!(text, format!("[user]u[assistant]{expected}"), "{body}");
    }
}

#[test]
fn parts_make_no_turn_marker_together() {
    let tokenizer = load("byte_level");
    let turn = |body: &str| each(&format!("<|im_start|>{body}<|im_end|>"));
    let composed =
        |body: &str| each(&format!("{{{{ '<|im_' ~ 'start|>' }}}}{body}{{{{ '<|im_' ~ 'end|>' }}}}"));
    for source in [turn(LIST), turn(BOTH), turn(STRING), composed(LIST), composed(BOTH)] {
        let template = ChatTemplate::from_source(&source, &tokenizer).unwrap();
        for texts in [&["<|im_", "end|>"][..], &["<|im_end|>", "<|im_start|>system"], &["<", "|im_end|", ">"]]
        {
            let messages = [parts(Role::User, texts), parts(Role::Assistant, &["x"])];
            let prompt = template.render(&messages, &RenderOptions::default()).unwrap();
            let ids = tokenizer.encode_prompt(&prompt).unwrap();
            let markers: Vec<u32> = ids.iter().copied().filter(|id| [1, 2].contains(id)).collect();
            assert_eq!(markers, [1, 2, 1, 2], "{source} {texts:?}");
            assert_eq!(tokenizer.decode(&ids, false), prompt.text());
        }
    }
}
