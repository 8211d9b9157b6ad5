//! The page at `/`: its headers, and which requests for its files are answered.

use octant::server::routes::routes;

use super::client::{Connection, Reply, send};
use super::test_server::{Setup, TestServer};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn with_key() -> TestServer {
    let mut setup = Setup::new();
    setup.settings.api_key = Some("secret".to_owned());
    setup.launch()
}

/// Paths of the page's files.
fn files() -> Vec<&'static str> {
    let paths = routes().into_iter().map(|(path, _)| path);
    let files: Vec<_> = paths.filter(|path| *path == "/" || path.starts_with("/page/")).collect();
    assert!(files.len() > 3, "{files:?}");
    files
}

/// Sends a head whose lines are separated by `|`.
async fn raw(server: &TestServer, head: &str) -> Reply {
    let head = head.replace("PORT", &server.address.port().to_string()).replace('|', "\r\n");
    let mut connection = Connection::open(server.address).await;
    connection.write(format!("{head}\r\n\r\n").as_bytes()).await.expect("it is open");
    connection.reply_to(head.split(' ').next().expect("a method")).await
}

#[tokio::test]
async fn every_file_of_the_page_has_its_type_and_a_strict_policy() {
    for server in [Setup::new().launch(), with_key()] {
        for path in files() {
            let media_type = match path.rsplit('.').next() {
                Some("js") => "text/javascript; charset=utf-8",
                Some("css") => "text/css; charset=utf-8",
                _ => "text/html; charset=utf-8",
            };
            for method in ["GET", "HEAD"] {
                let reply = send(server.address, method, path, &[], b"").await;
                assert_eq!(reply.status, 200, "{method} {path}");
                for (name, value) in [
                    ("content-type", media_type),
                    ("content-security-policy", POLICY),
                    ("x-content-type-options", "nosniff"),
                    ("referrer-policy", "no-referrer"),
                    ("cache-control", "no-cache"),
                    ("cross-origin-resource-policy", "same-origin"),
                    ("cross-origin-opener-policy", "same-origin"),
                ] {
                    assert_eq!(reply.header(name), Some(value), "{method} {path}");
                }
                assert_eq!(reply.body.is_empty(), method == "HEAD");
            }
        }
    }
}

#[tokio::test]
async fn a_browser_that_has_a_file_gets_no_body() {
    let server = Setup::new().launch();
    let mut tags = Vec::new();
    for path in files() {
        let first = send(server.address, "GET", path, &[], b"").await;
        let tag = first.header("etag").expect("it has a tag").to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            let again = send(server.address, "GET", path, &[("if-none-match", &known)], b"").await;
            assert_eq!((again.status, again.body.len()), (304, 0), "{path} {known}");
            assert_eq!(again.header("etag"), Some(&*tag));
            assert_eq!(again.header("content-security-policy"), Some(POLICY));
        }
        let other = send(server.address, "GET", path, &[("if-none-match", "\"other\"")], b"").await;
        assert_eq!((other.status, &other.body), (200, &first.body), "{path}");
        tags.push(tag);
    }
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), files().len(), "every file has a tag of its own");
}

#[tokio::test]
async fn with_a_key_the_page_is_open_and_the_api_is_not() {
    let server = with_key();
    for path in files() {
        assert_eq!(send(server.address, "GET", path, &[], b"").await.status, 200, "{path}");
        assert_eq!(send(server.address, "POST", path, &[], b"").await.status, 405, "{path}");
        let wrong = send(server.address, "GET", path, &[("authorization", "Bearer wrong")], b"").await;
        assert_eq!(wrong.status, 401, "{path}");
    }
    for (method, path) in [
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/page"),
        ("GET", "/page/"),
        ("GET", "/page/other.js"),
        ("GET", "//"),
        ("GET", "/index.html"),
        ("GET", "/page/..%2fpage%2fmain.js"),
    ] {
        assert_eq!(send(server.address, method, path, &[], b"").await.status, 401, "{method} {path}");
    }
}

#[tokio::test]
async fn without_a_key_no_other_name_and_no_other_origin_gets_the_page() {
    let server = Setup::new().launch();
    for path in files() {
        for (from, status) in [
            ("host: localhost:PORT", 200),
            ("host: 127.0.0.1:PORT|origin: http://127.0.0.1:PORT", 200),
            ("host: evil.example:PORT", 403),
            ("host: evil.example:PORT|origin: http://evil.example:PORT", 403),
            ("host: localhost:PORT|origin: http://evil.example", 403),
            ("host: localhost:PORT|origin: null", 403),
        ] {
            let reply = raw(&server, &format!("GET {path} HTTP/1.1|{from}")).await;
            assert_eq!(reply.status, status, "{path} {from}");
            assert_eq!(reply.header("access-control-allow-origin"), None);
        }
    }
}

#[tokio::test]
async fn every_file_that_the_page_names_exists() {
    let server = Setup::new().launch();
    let files = files();
    let mut named = Vec::new();
    for path in &files {
        let text = send(server.address, "GET", path, &[], b"").await.text().to_owned();
        let quoted = text.split('"').skip(1).step_by(2);
        // A name is relative to the file that has it.
        let folder = &path[..=path.rfind('/').expect("a path has a slash")];
        for name in quoted.filter(|name| name.ends_with(".js") || name.ends_with(".css")) {
            named.push(format!("{folder}{}", name.trim_start_matches("./")));
        }
    }
    for name in &named {
        assert!(files.contains(&name.as_str()), "{name}");
    }
    let unused: Vec<_> =
        files.iter().filter(|path| **path != "/" && !named.contains(&(**path).to_owned())).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

/// Texts in quotes, and targets of `url(`, that are paths from the root of a host.
fn rooted_paths(text: &str) -> Vec<String> {
    let starts = ["\"/", "'/", "`/", "url(/", "=/"]
        .into_iter()
        .flat_map(|start| text.match_indices(start).map(move |(at, start)| at + start.len()));
    let paths = starts.filter(|at| text[*at..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/'));
    paths.map(|at| text[at - 1..].chars().take(30).collect()).collect()
}

#[tokio::test]
async fn the_pages_name_no_path_from_the_root_so_that_a_proxy_can_serve_them_below_a_path() {
    let server = Setup::new().launch();
    for path in [&files()[..], &["/docs", "/docs/docs.js", "/docs/docs.css"]].concat() {
        let text = send(server.address, "GET", path, &[], b"").await;
        assert_eq!((text.status, rooted_paths(text.text())), (200, Vec::new()), "{path}");
    }
    for bad in [
        "fetch(\"/v1/models\")",
        "<script src='/page/a.js'>",
        "url(/a.png)",
        "`/v1/${name}`",
        "<a href=/docs>",
    ] {
        assert_eq!(rooted_paths(bad).len(), 1, "{bad}");
    }
    assert!(rooted_paths("fetch(\"v1/models\") \"./a.js\" 1 / 2 \"/\"").is_empty());
}
