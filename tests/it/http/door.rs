//! The key, over every route there is.

use octant::server::health::{ALIASES, probe};
use octant::server::routes::routes;
use serde_json::json;

use super::client::{Reply, send};
use super::house::{House, Plan};

fn house() -> House {
    let mut plan = Plan::new();
    plan.settings.api_key = Some("secret".to_owned());
    plan.open()
}

async fn with(house: &House, method: &str, path: &str, authorization: Option<&str>) -> Reply {
    let headers: Vec<(&str, &str)> =
        authorization.map(|value| ("authorization", value)).into_iter().collect();
    send(house.address, method, path, &headers, b"").await
}

#[tokio::test]
async fn every_route_but_the_probes_wants_the_key() {
    let house = house();
    let mut closed = 0;
    let paths: Vec<String> = routes().into_iter().map(|(path, _)| path.replace("{*id}", "parrot")).collect();
    for path in paths.iter().map(String::as_str).chain(["/no/such/route", "/v1/models/", "/metrics/"]) {
        for method in ["GET", "POST", "HEAD", "DELETE", "OPTIONS"] {
            let reply = with(&house, method, path, None).await;
            if probe(path).is_some() {
                assert!([200, 405].contains(&reply.status), "{method} {path}: {}", reply.status);
                continue;
            }
            closed += 1;
            assert_eq!(reply.status, 401, "{method} {path}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
            let open = with(&house, method, path, Some("Bearer secret")).await;
            assert_ne!(open.status, 401, "{method} {path}");
        }
    }
    assert_eq!(closed, 5 * (routes().len() - ALIASES.len() + 3), "the list of open routes is what it was");
}

#[tokio::test]
async fn only_the_key_is_the_key() {
    let house = house();
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
        let reply = with(&house, "GET", "/v1/models", Some(wrong)).await;
        assert_eq!(reply.error(), (401, Some("invalid_api_key".into()), None), "{wrong}");
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    }
    for right in ["Bearer secret", "bearer secret", "BEARER  secret"] {
        assert_eq!(with(&house, "GET", "/v1/models", Some(right)).await.status, 200, "{right}");
    }
}

#[tokio::test]
async fn without_a_key_the_door_is_open() {
    let house = Plan::new().open();
    assert_eq!(house.get("/v1/models").await.status, 200);
    assert_eq!(house.chat("a", json!({})).await.status, 200);
}
