//! Hosts and origins: which requests a server without an API key refuses, and the headers for web pages of
//! allowed origins (CORS).

use std::time::Duration;

use octant::server::Signal;
use octant::server::routes::routes;
use serde_json::json;

use super::client::{Connection, Reply, send};
use super::limits::stream_choices;
use super::test_server::{BOS, Setup, TestServer, chat_body, config, metric};
use crate::fake::FakeExecutor;

const CHAT: &str = "/v1/chat/completions";
const PAGE: &str = "https://chat.example";

/// Sends the head of a request, whose lines are separated by `|`, and a chat as body if it is a POST.
async fn raw(server: &TestServer, head: &str) -> Reply {
    let body = if head.starts_with("POST") { chat_body("ab", json!({})).to_string() } else { String::new() };
    let head = head.replace("PORT", &server.address.port().to_string()).replace('|', "\r\n");
    let mut connection = Connection::open(server.address).await;
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    connection.write(request.as_bytes()).await.expect("it is open");
    connection.reply_to(head.split(' ').next().expect("a method")).await
}

fn with_key() -> Setup {
    let mut setup = Setup::new();
    setup.settings.api_key = Some("secret".to_owned());
    setup
}

fn with_page(mut setup: Setup) -> Setup {
    setup.settings.allowed_origins = vec![PAGE.to_owned(), "http://localhost:3000".to_owned()];
    setup
}

/// Number of requests that the engine has taken.
async fn admitted(server: &TestServer) -> f64 {
    let text = server.get("/metrics").await;
    metric(text.text(), "octant_admissions_total", &["decision=\"admitted\""])
}

#[tokio::test]
async fn without_a_key_the_host_is_an_address_localhost_or_an_allowed_name() {
    let mut setup = Setup::new();
    setup.settings.allowed_hosts = vec!["gpu-box".to_owned(), "*.cluster.local".to_owned()];
    let server = setup.launch();
    let allowed = [
        "127.0.0.1:PORT",
        "127.0.0.1",
        "10.0.0.7:8080",
        "[::1]:PORT",
        "[fe80::1]",
        "localhost",
        "LocalHost:PORT",
        "localhost.",
        "localhost:",
        "api.localhost:PORT",
        "gpu-box",
        "GPU-Box:8000",
        "octant.default.svc.cluster.local",
    ];
    let foreign = [
        "evil.example",
        "evil.example:PORT",
        "localhost.evil.example",
        "evil-localhost",
        "127.0.0.1.evil.example",
        "gpu-box.evil.example",
        "cluster.local",
        "xcluster.local",
        "*.cluster.local.example",
        "1.2.3.4.5",
    ];
    for (hosts, status) in [(&allowed[..], 200), (&foreign[..], 403)] {
        for host in hosts {
            let get = raw(&server, &format!("GET /v1/models HTTP/1.1|host: {host}")).await;
            let post =
                raw(&server, &format!("POST {CHAT} HTTP/1.1|host: {host}|content-type: text/plain")).await;
            assert_eq!((get.status, post.status), (status, status), "{host}: {}", post.text());
            if status == 403 {
                assert_eq!(post.error(), (403, Some("host_not_allowed".into()), None), "{host}");
                assert!(post.text().contains("--allowed-hosts"), "{}", post.text());
            }
        }
    }
    assert_eq!(admitted(&server).await, allowed.len() as f64);
}

#[tokio::test]
async fn every_name_can_be_allowed() {
    let mut setup = Setup::new();
    setup.settings.allowed_hosts = vec!["*".to_owned()];
    let server = setup.launch();
    assert_eq!(raw(&server, &format!("POST {CHAT} HTTP/1.1|host: any.example")).await.status, 200);
    let page = format!("POST {CHAT} HTTP/1.1|host: any.example|origin: http://evil.example");
    assert_eq!(raw(&server, &page).await.status, 403);
}

#[tokio::test]
async fn without_a_key_a_foreign_origin_is_refused_whatever_the_content_type() {
    let server = with_page(Setup::new()).launch();
    let foreign = [
        "http://evil.example",
        "null",
        "http://localhost:3001",
        "http://localhost",
        "http://127.0.0.1",
        "https://127.0.0.1",
        "http://127.0.0.1:PORT.evil.example",
        "http://evil.example:PORT",
        "https://chat.example.evil.example",
        "http://chat.example",
        "https://chat.example:444",
        "chrome-extension://abcdef",
        "file://",
        "",
        "http://127.0.0.1:PORT, http://evil.example",
        "127.0.0.1:PORT",
        "\u{e9}",
    ];
    for origin in foreign {
        for kind in ["text/plain", "application/json", "application/x-www-form-urlencoded"] {
            let head =
                format!("POST {CHAT} HTTP/1.1|host: 127.0.0.1:PORT|origin: {origin}|content-type: {kind}");
            let reply = raw(&server, &head).await;
            assert_eq!(reply.error(), (403, Some("origin_not_allowed".into()), None), "{origin}");
            assert!(reply.text().contains("--allowed-origins"), "{}", reply.text());
            assert_eq!(reply.header("access-control-allow-origin"), None);
        }
        let get =
            raw(&server, &format!("GET /v1/models HTTP/1.1|host: localhost:PORT|origin: {origin}")).await;
        assert_eq!(get.status, 403, "{origin}");
    }
    assert_eq!(admitted(&server).await, 0.0, "no request reached the engine");
    let two = "origin: https://chat.example|origin: http://evil.example";
    assert_eq!(raw(&server, &format!("POST {CHAT} HTTP/1.1|host: localhost|{two}")).await.status, 403);
    for own in [
        "host: 127.0.0.1:PORT|origin: http://127.0.0.1:PORT",
        "host: localhost:PORT|origin: http://localhost:PORT",
        "host: LOCALHOST:PORT|origin: http://localhost:PORT",
        "host: [::1]:PORT|origin: http://[::1]:PORT",
        "host: localhost|origin: http://localhost",
        "host: localhost:80|origin: http://localhost",
        // Behind a proxy that ends TLS.
        "host: localhost|origin: https://localhost",
        "host: 127.0.0.1:PORT|origin: https://chat.example",
        "host: 127.0.0.1:PORT|origin: http://localhost:3000",
    ] {
        let head = format!("POST {CHAT} HTTP/1.1|{own}|content-type: text/plain");
        let reply = raw(&server, &head).await;
        assert_eq!(reply.status, 200, "{own}: {}", reply.text());
    }
}

#[tokio::test]
async fn dns_rebinding_reaches_no_route_and_sees_no_user() {
    let server = Setup::new().launch();
    server.chat("a", json!({ "user": "ann" })).await;
    let rebound = "host: evil.example:PORT|origin: http://evil.example:PORT|content-type: text/plain";
    for path in routes().into_iter().map(|(path, _)| path.replace("{*id}", "parrot")) {
        let exempt = octant::server::health::probe(&path).is_some() || path == "/metrics";
        for method in ["GET", "POST"] {
            let reply = raw(&server, &format!("{method} {path} HTTP/1.1|{rebound}")).await;
            assert_eq!(reply.status == 403, !exempt, "{method} {path}: {}", reply.status);
        }
    }
    for foreign in [rebound, "host: prometheus.example"] {
        let reply = raw(&server, &format!("GET /metrics HTTP/1.1|{foreign}")).await;
        assert!(reply.status == 200 && !reply.text().contains("octant_key_"), "{}", reply.text());
    }
    let own = server.get("/metrics").await;
    assert_eq!(metric(own.text(), "octant_key_requests_total", &["key=\"ann\""]), 1.0);
}

#[tokio::test]
async fn with_a_key_neither_host_nor_origin_matters() {
    let server = with_key().launch();
    let foreign = "host: evil.example|origin: http://evil.example";
    let reply = raw(&server, &format!("POST {CHAT} HTTP/1.1|{foreign}|authorization: Bearer secret")).await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, None));
    assert_eq!(raw(&server, &format!("POST {CHAT} HTTP/1.1|{foreign}")).await.status, 401);
}

#[tokio::test]
async fn a_host_header_that_rfc_9112_forbids_is_a_400() {
    for server in [Setup::new().launch(), with_key().launch()] {
        for path in ["/v1/models", "/health/ready", "/metrics", "/nowhere"] {
            for host in [
                "x: y",
                "host: localhost|host: localhost",
                "host: localhost|host: evil.example",
                "host:",
                "host: a b",
                "host: user@localhost",
                "host: localhost:80:90",
                "host: localhost:eighty",
                "host: localhost:65536",
                "host: http://localhost",
                "host: localhost/",
                "host: ::1",
                "host: [::1",
                "host: [localhost]",
                "host: [::1]80",
                "host: a%zz",
                "host: \u{fc}",
            ] {
                let reply = raw(&server, &format!("GET {path} HTTP/1.1|{host}")).await;
                assert_eq!(reply.error(), (400, None, None), "{path} {host}");
                assert!(reply.text().contains("Host"), "{}", reply.text());
            }
        }
        for host in ["localhost", "a%20b", "a_b", "1.2.3.4:0", "[2001:db8::1]:65535"] {
            let reply = raw(&server, &format!("GET /health/ready HTTP/1.1|host: {host}")).await;
            assert_eq!(reply.status, 200, "{host}");
        }
        assert_eq!(raw(&server, "GET /health/ready HTTP/1.0|x: y").await.status, 200);
        assert_eq!(raw(&server, "GET /health/ready HTTP/1.0|host: a|host: b").await.status, 400);
    }
}

#[tokio::test]
async fn the_host_of_an_absolute_target_replaces_that_of_the_header() {
    let server = Setup::new().launch();
    for (head, status) in [
        ("GET http://localhost:PORT/v1/models HTTP/1.1|host: evil.example", 200),
        ("GET http://evil.example/v1/models HTTP/1.1|host: localhost", 403),
        ("GET http://localhost/v1/models HTTP/1.1|x: y", 400),
        ("GET http://user@localhost/v1/models HTTP/1.1|host: localhost", 400),
        ("GET http://evil.example/v1/models HTTP/1.0|x: y", 403),
        ("GET /v1/models HTTP/1.0|x: y", 200),
        ("GET /v1/models HTTP/1.0|origin: http://evil.example", 403),
    ] {
        assert_eq!(raw(&server, head).await.status, status, "{head}");
    }
}

#[tokio::test]
async fn a_preflight_request_needs_no_key_on_any_route() {
    let paths: Vec<String> = routes().into_iter().map(|(path, _)| path.replace("{*id}", "parrot")).collect();
    for server in [with_page(Setup::new()).launch(), with_page(with_key()).launch()] {
        for path in paths.iter().map(String::as_str).chain(["/no/such/route", "/"]) {
            let ask = format!(
                "OPTIONS {path} HTTP/1.1|host: localhost|origin: {PAGE}|access-control-request-method: POST|\
                 access-control-request-headers: authorization,content-type,x-stainless-new"
            );
            let reply = raw(&server, &ask).await;
            assert_eq!((reply.status, reply.body.len()), (204, 0), "{path}");
            assert_eq!(reply.header("access-control-allow-origin"), Some(PAGE));
            let headers = "authorization,content-type,x-stainless-new";
            assert_eq!(reply.header("access-control-allow-headers"), Some(headers));
            assert_eq!(
                reply.header("access-control-allow-methods"),
                Some("GET, HEAD, POST, DELETE, OPTIONS")
            );
            assert_eq!(reply.header("access-control-max-age"), Some("600"));
            let vary = reply.header("vary").expect("caches must keep origins apart");
            assert!(vary.starts_with("origin, access-control-request-method"), "{vary}");
            assert!(reply.header("x-request-id").is_some());
        }
        let plain = format!(
            "OPTIONS {CHAT} HTTP/1.1|host: localhost|origin: http://LOCALHOST:3000|\
             access-control-request-method: POST|access-control-request-private-network: true"
        );
        let reply = raw(&server, &plain).await;
        assert_eq!(reply.header("access-control-allow-origin"), Some("http://LOCALHOST:3000"));
        assert_eq!(reply.header("access-control-allow-private-network"), Some("true"));
        let names = reply.header("access-control-allow-headers").expect("it lists names");
        for name in ["authorization", "content-type", "x-api-key", "x-request-id", "x-stainless-lang"] {
            assert!(names.contains(name), "{names}");
        }
        let foreign = plain.replace("LOCALHOST:3000", "evil.example");
        let reply = raw(&server, &foreign).await;
        assert_eq!(reply.error().1.as_deref(), Some("origin_not_allowed"));
        assert_eq!(reply.header("access-control-allow-origin"), None);
    }
}

#[tokio::test]
async fn an_options_request_that_is_no_preflight_is_as_any_other_method() {
    let server = with_page(with_key()).launch();
    let ask = |more: &str| format!("OPTIONS {CHAT} HTTP/1.1|host: localhost|origin: {PAGE}{more}");
    assert_eq!(raw(&server, &ask("")).await.status, 401);
    assert_eq!(raw(&server, &ask("|authorization: Bearer secret")).await.status, 405);
}

#[tokio::test]
async fn errors_and_streams_can_be_read_by_pages_of_allowed_origins() {
    let server = with_page(with_key()).launch();
    let key = "Bearer secret";
    let stream = chat_body("abc", json!({ "stream": true })).to_string();
    let whole = chat_body("abc", json!({})).to_string();
    for (method, path, key, body, status) in [
        ("GET", "/v1/models", key, "", 200),
        ("POST", CHAT, key, &*whole, 200),
        ("POST", CHAT, key, &*stream, 200),
        ("POST", CHAT, key, "{", 400),
        ("POST", CHAT, "Bearer wrong", "{}", 401),
        ("GET", "/nowhere", key, "", 404),
        ("GET", CHAT, key, "", 405),
        ("GET", "/health/ready", "", "", 200),
        ("GET", "/metrics", "", "", 200),
    ] {
        for (origin, allowed) in [(PAGE, Some(PAGE)), ("http://evil.example", None)] {
            let headers = [("authorization", key), ("origin", origin)];
            let reply = send(server.address, method, path, &headers, body.as_bytes()).await;
            assert_eq!(reply.status, status, "{method} {path}");
            assert_eq!(reply.header("access-control-allow-origin"), allowed, "{method} {path}");
            assert_eq!(reply.header("vary"), Some("origin"));
            let exposed = reply.header("access-control-expose-headers").unwrap_or_default();
            assert_eq!(
                exposed.contains("x-request-id") && exposed.contains("retry-after"),
                allowed.is_some()
            );
        }
        let reply = send(server.address, method, path, &[("authorization", key)], body.as_bytes()).await;
        assert_eq!(
            (reply.header("access-control-allow-origin"), reply.header("vary")),
            (None, Some("origin"))
        );
    }
}

#[tokio::test]
async fn a_page_can_read_that_the_queue_is_full_and_that_the_server_shuts_down() {
    let mut setup = with_page(Setup::new());
    setup.config.max_queue_requests = 1;
    setup.times.timeout = Duration::from_secs(1);
    let server = setup.launch();
    let place = server.engine.enter(1).expect("the queue is empty");
    let page = [("origin", PAGE)];
    let body = chat_body("abc", json!({ "stream": true })).to_string();
    let reply = send(server.address, "POST", CHAT, &page, body.as_bytes()).await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (429, Some(PAGE)));
    assert!(reply.header("retry-after").is_some());
    let mut first = Connection::open(server.address).await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{";
    drop(place);
    first.write(head.as_bytes()).await.expect("open");
    server.signals.send(Signal::Terminate).await.expect("it is served");
    let reply = loop {
        let reply = send(server.address, "GET", "/v1/models", &page, b"").await;
        if reply.status != 200 {
            break reply;
        }
    };
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (503, Some(PAGE)));
}

#[tokio::test]
async fn all_origins_can_be_allowed() {
    let mut setup = with_key();
    setup.settings.allowed_origins = vec!["*".to_owned()];
    let server = setup.launch();
    for origin in ["http://any.example", "null"] {
        let page = format!("host: localhost|origin: {origin}");
        let ask = format!("OPTIONS {CHAT} HTTP/1.1|{page}|access-control-request-method: POST");
        let reply = raw(&server, &ask).await;
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (204, Some("*")));
        let reply = raw(&server, &format!("POST {CHAT} HTTP/1.1|{page}|x-api-key: secret")).await;
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, Some("*")));
        assert_eq!(reply.header("vary"), None);
    }
}

#[tokio::test]
async fn without_allowed_origins_no_response_has_a_header_for_pages() {
    for server in [Setup::new().launch(), with_key().launch()] {
        let ask = format!("OPTIONS {CHAT} HTTP/1.1|host: localhost|origin: {PAGE}");
        for head in [format!("{ask}|access-control-request-method: POST"), ask] {
            let reply = raw(&server, &head).await;
            assert!((400..500).contains(&reply.status), "{}", reply.status);
            assert!(
                !reply.headers.iter().any(|(name, _)| name.starts_with("access-control") || name == "vary")
            );
        }
    }
}

#[tokio::test]
async fn refused_heads_change_no_other_stream() {
    let setup = with_page(Setup::new());
    let executor = FakeExecutor::new(&config()).parrot(BOS).delay(Duration::from_millis(2));
    let server = setup.launch_with(executor);
    let alone = stream_choices(&server).await;
    server.until_empty().await;
    let refused = async {
        for _ in 0..5 {
            for (head, status) in [
                ("POST /v1/chat/completions HTTP/1.1|host: evil.example", 403),
                ("POST /v1/chat/completions HTTP/1.1|host: localhost|origin: http://evil.example", 403),
                ("POST /v1/chat/completions HTTP/1.1|host: localhost|host: localhost", 400),
                ("POST /v1/chat/completions HTTP/1.1|x: y", 400),
                ("OPTIONS /v1/chat/completions HTTP/1.1|host: localhost|origin: null", 403),
            ] {
                assert_eq!(raw(&server, head).await.status, status, "{head}");
            }
        }
    };
    let (beside, ()) = tokio::join!(stream_choices(&server), refused);
    assert_eq!(beside, alone);
}
