//! Counters of usage by key: labels of users, of the operator's keys, and of requests without either.

use octant::request::Tenant;
use octant::server::api_keys::Caller;
use serde_json::json;

use super::client::send;
use super::test_server::{Setup, TestServer, metric};

/// Sends a completion request with this API key and user.
async fn ask(server: &TestServer, key: &str, user: Option<&str>) {
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    let body = json!({ "prompt": "a", "max_tokens": 1, "user": user }).to_string();
    let reply = send(server.address, "POST", "/v1/completions", &headers, body.as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// The text of `/metrics`.
async fn scrape(server: &TestServer, key: &str) -> String {
    let bearer = format!("Bearer {key}");
    let reply = send(server.address, "GET", "/metrics", &[("authorization", &*bearer)], b"").await;
    reply.text().to_owned()
}

/// Number of choices that the counters of a key have.
fn requests_of(text: &str, key: &str) -> f64 {
    metric(text, "octant_key_requests_total", &[&format!("key=\"{key}\"")])
}

/// The labels of all keys and users.
fn labels(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| line.starts_with("octant_key_requests_total{"));
    let label =
        |line: &str| line.split("key=\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned);
    lines.map(|line| label(line).expect("it has a key")).collect()
}

fn named(server: &mut Setup, keys: &[(&str, &str)]) {
    let caller = |name: &str| Caller { tenant: Tenant { name: name.into(), weight: 1 }, priority: 0 };
    let keys = keys.iter().map(|(key, name)| ((*key).to_owned(), caller(name)));
    server.settings.named_keys = keys.collect();
}

#[tokio::test]
async fn the_operators_keys_have_labels_in_addition_to_the_most_users() {
    let mut setup = Setup::new();
    setup.settings.api_key = Some("shared".to_owned());
    let long = format!("key:{}", "n".repeat(64));
    named(&mut setup, &[("hers", "key:alice"), ("his", "key:bob"), ("its", &long)]);
    let server = setup.launch();
    let before = scrape(&server, "shared").await;
    for key in ["key:alice", "key:bob", &long, "a4d26868"] {
        assert_eq!(requests_of(&before, key), 0.0, "the series must exist from the start");
    }
    for user in 0..300 {
        ask(&server, "shared", Some(&format!("u{user}"))).await;
    }
    for key in ["hers", "his", "its"] {
        ask(&server, key, Some("anyone")).await;
    }
    ask(&server, "shared", None).await;
    let after = scrape(&server, "shared").await;
    for key in ["key:alice", "key:bob", &long, "a4d26868", "u0", "u255"] {
        assert_eq!(requests_of(&after, key), 1.0, "{key}");
    }
    assert_eq!(requests_of(&after, "other"), 44.0);
    assert_eq!(labels(&after).len(), 256 + 4 + 1);
}

#[tokio::test]
async fn usage_by_key_and_user_is_shown_only_to_holders_of_a_key() {
    let mut setup = Setup::new();
    setup.settings.api_key = Some("shared".to_owned());
    named(&mut setup, &[("hers", "key:alice")]);
    let server = setup.launch();
    ask(&server, "shared", Some("user-zoe")).await;
    ask(&server, "hers", None).await;
    let open = server.get("/metrics").await;
    assert_eq!(open.status, 200);
    for secret in ["octant_key_", "alice", "user-zoe", "a4d26868"] {
        assert!(!open.text().contains(secret), "{secret}");
    }
    assert_eq!(metric(open.text(), "vllm:generation_tokens_total", &[]), 2.0);
    for key in ["shared", "hers"] {
        let text = scrape(&server, key).await;
        assert_eq!((requests_of(&text, "key:alice"), requests_of(&text, "user-zoe")), (1.0, 1.0));
        assert!(open.text().lines().all(|line| !line.starts_with('#') || text.contains(line)));
    }
}

#[tokio::test]
async fn an_empty_user_is_no_user() {
    let server = Setup::new().launch();
    ask(&server, "", Some("")).await;
    ask(&server, "", None).await;
    let text = scrape(&server, "").await;
    assert_eq!(labels(&text), ["none"]);
    assert_eq!(requests_of(&text, "none"), 2.0);
}

#[tokio::test]
async fn changed_names_get_different_labels() {
    let server = Setup::new().launch();
    let long = "x".repeat(70);
    let mut users = vec!["a\u{1}b".to_owned(), "a\u{2}b".to_owned(), "a?b".to_owned()];
    users.extend([format!("{long}1"), format!("{long}2"), "x".repeat(64), "ü".repeat(65)]);
    for user in &users {
        ask(&server, "", Some(user)).await;
    }
    let text = scrape(&server, "").await;
    let known = labels(&text);
    assert_eq!(known.len(), users.len() + 1, "{known:?}");
    for label in known.iter().filter(|label| *label != "none") {
        assert_eq!(requests_of(&text, label), 1.0, "{label}");
        assert!(label.chars().count() <= 64 && !label.contains(char::is_control), "{label}");
    }
    // A user whose name is another user's changed label gets a label of its own.
    let changed: Vec<&String> = known.iter().filter(|label| label.contains('…')).collect();
    assert_eq!(changed.len(), 5, "{known:?}");
    ask(&server, "", Some(changed[0])).await;
    let text = scrape(&server, "").await;
    assert_eq!(requests_of(&text, changed[0]), 1.0);
    assert_eq!(labels(&text).len(), users.len() + 2);
}

#[tokio::test]
async fn labels_are_limited_in_number_and_contain_no_secret() {
    let mut setup = Setup::new();
    setup.settings.api_key = Some("secret".to_owned());
    let server = setup.launch();
    for user in 0..260 {
        ask(&server, "secret", Some(&format!("u{user}"))).await;
    }
    ask(&server, "secret", None).await;
    let text = scrape(&server, "secret").await;
    assert_eq!(labels(&text).len(), 258, "256 users, `other` and the key");
    assert_eq!(requests_of(&text, "other"), 4.0);
    assert!(!text.contains("secret"));
}

#[tokio::test]
async fn a_user_cannot_be_charged_to_the_counters_of_a_key() {
    let mut setup = Setup::new();
    setup.settings.api_key = Some("shared".to_owned());
    named(&mut setup, &[("hers", "key:alice")]);
    let server = setup.launch();
    ask(&server, "hers", Some("anyone")).await;
    let sha = "a4d26868";
    for user in ["key:alice", "none", "other", "user:bob", "bob", sha] {
        ask(&server, "shared", Some(user)).await;
    }
    ask(&server, "shared", None).await;
    let text = scrape(&server, "shared").await;
    assert_eq!(requests_of(&text, "key:alice"), 1.0);
    for user in
        ["user:key:alice", "user:none", "user:other", "user:user:bob", "bob", &format!("user:{sha}"), sha]
    {
        assert_eq!(requests_of(&text, user), 1.0, "{user}");
    }
}
