//! API keys, checked on every route.

use octant::server::health::{ALIASES, probe};
use octant::server::routes::routes;
use serde_json::json;

use super::client::{Reply, send};
use super::test_server::{Setup, TestServer};

/// Starts a server with the API key `secret`.
fn server() -> TestServer {
    let mut setup = Setup::new();
    setup.settings.api_key = Some("secret".to_owned());
    setup.launch()
}

/// Sends a request with this `Authorization` header.
async fn with(server: &TestServer, method: &str, path: &str, authorization: Option<&str>) -> Reply {
    let headers: Vec<(&str, &str)> =
        authorization.map(|value| ("authorization", value)).into_iter().collect();
    send(server.address, method, path, &headers, b"").await
}

#[tokio::test]
async fn every_route_but_the_probes_needs_the_key() {
    let server = server();
    let mut protected = 0;
    let paths: Vec<String> = routes().into_iter().map(|(path, _)| path.replace("{*id}", "parrot")).collect();
    for path in paths.iter().map(String::as_str).chain(["/no/such/route", "/v1/models/", "/metrics/"]) {
        for method in ["GET", "POST", "HEAD", "DELETE", "OPTIONS"] {
            let reply = with(&server, method, path, None).await;
            if probe(path).is_some() {
                assert!([200, 405].contains(&reply.status), "{method} {path}: {}", reply.status);
                continue;
            }
            protected += 1;
            assert_eq!(reply.status, 401, "{method} {path}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
            let open = with(&server, method, path, Some("Bearer secret")).await;
            assert_ne!(open.status, 401, "{method} {path}");
        }
    }
    assert_eq!(protected, 5 * (routes().len() - ALIASES.len() + 3), "only probes need no key");
}

#[tokio::test]
async fn only_the_exact_key_is_accepted() {
    let server = server();
    let long = format!("Bearer {}", "k".repeat(4000));
    for wrong in [
        "Bearer",
        "Bearer ",
        "Bearer secre",
        "Bearer secrets",
        "Basic secret",
        "secret",
        "Bearer sécret",
        &*long,
    ] {
        let reply = with(&server, "GET", "/v1/models", Some(wrong)).await;
        assert_eq!(reply.error(), (401, Some("invalid_api_key".into()), None), "{wrong}");
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    }
    for right in ["Bearer secret", "bearer secret", "BEARER  secret"] {
        assert_eq!(with(&server, "GET", "/v1/models", Some(right)).await.status, 200, "{right}");
    }
}

#[tokio::test]
async fn no_key_is_needed_if_none_is_configured() {
    let server = Setup::new().launch();
    assert_eq!(server.get("/v1/models").await.status, 200);
    assert_eq!(server.chat("a", json!({})).await.status, 200);
}
