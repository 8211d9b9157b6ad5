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
async fn every_route_but_probes_metrics_version_pages_and_document_needs_the_key() {
    let server = server();
    let (mut protected, mut files) = (0, 0);
    let paths: Vec<String> = routes().into_iter().map(|(path, _)| path.replace("{*id}", "parrot")).collect();
    for path in paths.iter().map(String::as_str).chain(["/no/such/route", "/v1/models/", "/metrics/"]) {
        for method in ["GET", "POST", "HEAD", "DELETE", "OPTIONS"] {
            let reply = with(&server, method, path, None).await;
            let is_page = path == "/" || ["/page/", "/docs"].iter().any(|start| path.starts_with(start));
            files += usize::from(is_page);
            let is_open = ["/metrics", "/version", "/openapi.json"].contains(&path) || is_page;
            if probe(path).is_some() || is_open {
                assert!([200, 405].contains(&reply.status), "{method} {path}: {}", reply.status);
                continue;
            }
            protected += 1;
            assert_eq!(reply.status, 401, "{method} {path}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
            let allowed = with(&server, method, path, Some("Bearer secret")).await;
            assert_ne!(allowed.status, 401, "{method} {path}");
        }
    }
    assert_eq!(protected + files, 5 * (routes().len() - ALIASES.len() - 3 + 3), "all others need it");
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
async fn the_key_may_come_as_x_api_key() {
    let server = server();
    for (headers, status) in [
        (&[("x-api-key", "secret")][..], 200),
        (&[("X-Api-Key", "secret"), ("anthropic-version", "2023-06-01")], 200),
        (&[("x-api-key", "secret"), ("authorization", "Bearer secret")], 200),
        (&[("x-api-key", ""), ("authorization", "bearer secret")], 200),
        (&[("x-api-key", "secret"), ("authorization", "Basic dXNlcjpwYXNz")], 200),
        (&[("x-api-key", "wrong")], 401),
        (&[("x-api-key", "Bearer secret")], 401),
        (&[("x-api-key", "")], 401),
        (&[("x-api-key", "wrong"), ("authorization", "Bearer secret")], 401),
        (&[("x-api-key", "secret"), ("authorization", "Bearer wrong")], 401),
        (&[("x-api-key", "secret"), ("x-api-key", "other")], 401),
        (&[("authorization", "Bearer secret"), ("authorization", "Bearer other")], 401),
        (&[("api-key", "secret")], 401),
    ] {
        let reply = send(server.address, "GET", "/v1/models", headers, b"").await;
        assert_eq!(reply.status, status, "{headers:?}");
    }
}

#[tokio::test]
async fn metrics_and_the_version_are_open_and_a_wrong_key_is_not() {
    let server = server();
    for path in ["/metrics", "/version"] {
        assert_eq!(with(&server, "GET", path, None).await.status, 200);
        assert_eq!(with(&server, "GET", path, Some("Basic dXNlcjpwYXNz")).await.status, 200);
        assert_eq!(with(&server, "GET", path, Some("Bearer secret")).await.status, 200);
        assert_eq!(with(&server, "GET", path, Some("Bearer outdated")).await.status, 401);
    }
    let mut setup = Setup::new();
    setup.settings.api_key = Some("secret".to_owned());
    setup.settings.metrics_need_key = true;
    let server = setup.launch();
    assert_eq!(with(&server, "GET", "/metrics", None).await.status, 401);
    assert_eq!(with(&server, "GET", "/metrics", Some("Bearer secret")).await.status, 200);
    assert_eq!(with(&server, "GET", "/version", None).await.status, 200);
}

#[tokio::test]
async fn no_key_is_needed_if_none_is_configured() {
    let server = Setup::new().launch();
    assert_eq!(server.get("/v1/models").await.status, 200);
    assert_eq!(server.chat("a", json!({})).await.status, 200);
}
