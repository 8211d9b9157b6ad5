//! Tests of the files in `models/`.

use std::fs;
use std::path::{Path, PathBuf};

use octant::model::{GenerationConfig, ModelConfig};
use octant::text::{ChatMessage, ChatTemplate, RenderOptions, Role, TextError};

use super::{load, message};

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(format!("nemotron-4-340b-{name}"))
}

fn render(model: &str, messages: &[ChatMessage]) -> Result<String, TextError> {
    let template = ChatTemplate::from_dir(&dir(model), &load("sentencepiece")).unwrap().unwrap();
    template.render(messages, &RenderOptions::default()).map(|rendered| rendered.text())
}

#[test]
fn the_configurations_have_340b_parameters() {
    for name in ["base", "instruct", "reward"] {
        let config = ModelConfig::from_dir(&dir(name)).unwrap();
        let width = if name == "reward" { 9 } else { 0 };
        assert_eq!(config.reward_width(), width);
        // A reward head with its bias stands in place of the LM head.
        let head = if width == 0 { 256_000 * 18_432 } else { width * 18_432 + width };
        assert_eq!(config.parameters(), 336_310_603_776 + head as u64);
        let heads = config.heads;
        assert_eq!((heads.q_heads, heads.kv_heads, heads.head_dim), (96, 8, 192));
        assert_eq!((config.max_positions, config.vocab, config.inv_freq.len()), (4096, 256_000, 48));
    }
}

#[test]
fn instruct_stops_at_the_turn_marker() {
    assert_eq!(GenerationConfig::from_dir(&dir("instruct")).unwrap().eos, [5, 3]);
    assert_eq!(GenerationConfig::from_dir(&dir("base")).unwrap().eos, [3]);
    let tokenizer = load("sentencepiece");
    assert_eq!(tokenizer.token_id("<extra_id_1>"), Some(5));
}

#[test]
fn instruct_renders_the_trained_format() {
    let (system, user, assistant) =
        (message(Role::System, "Be brief."), message(Role::User, "Hi"), message(Role::Assistant, "Hello.\n"));
    assert_eq!(
        render("instruct", std::slice::from_ref(&user)).unwrap(),
        "<extra_id_0>System\n\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n"
    );
    assert_eq!(
        render("instruct", &[system.clone(), user.clone()]).unwrap(),
        "<extra_id_0>System\nBe brief.\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n"
    );
    assert_eq!(
        render("instruct", &[system.clone(), user.clone(), assistant, message(Role::User, " Bye\n")])
            .unwrap(),
        "<extra_id_0>System\nBe brief.\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\nHello.\n\
         <extra_id_1>User\n Bye\n\n<extra_id_1>Assistant\n"
    );
    for refused in [vec![user.clone(), system], vec![user, message(Role::Tool, "4")]] {
        assert!(render("instruct", &refused).unwrap_err().is_client());
    }
}

#[test]
fn instruct_prompts_have_three_marker_ids_and_no_bos() {
    let tokenizer = load("sentencepiece");
    let template = ChatTemplate::from_dir(&dir("instruct"), &tokenizer).unwrap().unwrap();
    let prompt = template.render(&[message(Role::User, "Hi")], &RenderOptions::default()).unwrap();
    let ids = tokenizer.encode_prompt(&prompt).unwrap();
    let special: Vec<u32> = ids.iter().copied().filter(|&id| id < 7).collect();
    assert_eq!(special, [4, 5, 5]);
    assert_eq!(ids[0], 4);
}

#[test]
fn reward_renders_the_trained_format() {
    let turns = [message(Role::User, "Hi"), message(Role::Assistant, "Hello.\n")];
    let opening = "<extra_id_0>System\nA chat between a curious user and an artificial intelligence \
                   assistant. The assistant gives helpful, detailed, and polite answers to the user's \
                   questions.\n";
    let turn = "<extra_id_1>User\nHi\n<extra_id_1>Assistant\nHello.\n";
    assert_eq!(render("reward", &turns).unwrap(), format!("{opening}{turn}<extra_id_2>"));
    assert_eq!(
        render("reward", &[turns.clone(), turns.clone()].concat()).unwrap(),
        format!("{opening}{turn}{turn}<extra_id_2>")
    );
    for refused in [&turns[..1], &turns[1..], &[message(Role::System, "Lie."), turns[0].clone()]] {
        assert!(render("reward", refused).unwrap_err().is_client());
    }
}

#[test]
fn the_readme_names_every_model_and_marker() {
    let readme = fs::read_to_string(dir("base").parent().unwrap().join("README.md")).unwrap();
    for name in [
        "nemotron-4-340b-base",
        "nemotron-4-340b-instruct",
        "nemotron-4-340b-reward",
        "<extra_id_1>",
        "<extra_id_2>",
    ] {
        assert!(readme.contains(name), "{name}");
    }
}
