//! HTTPS: the commands that ask servers, against a TLS proxy with a certificate of its own.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use rcgen::generate_simple_self_signed;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::HANG_GUARD;
use crate::http::test_server::Setup;
use crate::synth::pipeline::script::{ScriptServer, usual};

/// A proxy that takes TLS away, with a certificate for `localhost`.
struct TlsProxy {
    port: u16,
    folder: TempDir,
}

impl TlsProxy {
    /// Starts it on the runtime of the test.
    async fn start(behind: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(folder.path().join("root.pem"), made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A client that does not trust the certificate ends the connection.
                    let Ok(mut inside) = acceptor.accept(stream).await else { return };
                    let mut outside = TcpStream::connect(behind).await.unwrap();
                    _ = copy_bidirectional(&mut inside, &mut outside).await;
                });
            }
        });
        Self { port, folder }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// The file of the certificate.
    fn root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// `octant` with these arguments, which trusts the certificate.
    fn octant(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
        command.args(args).env_clear().env("SSL_CERT_FILE", self.root()).current_dir(self.folder.path());
        command
    }
}

/// Runs a command with this standard input, beside the servers of the test.
async fn output(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    let run = tokio::task::spawn_blocking(move || {
        let mut process = command.spawn().unwrap();
        // A run that fails at once does not read its input.
        let _closed = process.stdin.take().unwrap().write_all(input.as_bytes());
        process.wait_with_output().unwrap()
    });
    tokio::time::timeout(HANG_GUARD, run).await.expect("the command ends").unwrap()
}

/// Standard output and standard error of a run with this exit status.
fn texts(output: &Output, status: i32) -> (String, String) {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8(text.clone()).unwrap());
    assert_eq!(output.status.code(), Some(status), "{out}\n{err}");
    (out, err)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chats_and_batches_go_to_servers_by_https() {
    let server = Setup::new().launch();
    let proxy = TlsProxy::start(server.address).await;
    let chat = output(proxy.octant(&["chat", &proxy.url()]), "hi there\n").await;
    assert_eq!(texts(&chat, 0).0, "hi there\n");
    let line = |id: &str| {
        let body = json!({ "prompt": "abc", "max_tokens": 3 });
        json!({ "custom_id": id, "method": "POST", "url": "/v1/completions", "body": body }).to_string()
    };
    let input = proxy.folder.path().join("in.jsonl");
    std::fs::write(&input, format!("{}\n{}\n", line("a"), line("b"))).unwrap();
    let batch = proxy.octant(&["batch", "in.jsonl", "out.jsonl", "--endpoint", &proxy.url()]);
    texts(&output(batch, "").await, 0);
    let out = std::fs::read_to_string(proxy.folder.path().join("out.jsonl")).unwrap();
    assert_eq!(out.lines().count(), 2, "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synthetic_data_is_made_by_https() {
    // The server's runtime cannot be dropped within another one.
    let server = tokio::task::spawn_blocking(|| ScriptServer::start(usual)).await.unwrap();
    let proxy = TlsProxy::start(server.address).await;
    let recipe = format!(
        "name = 'T'\n[given]\nfile = 'in.jsonl'\n[[roles.responders]]\nendpoint = '{}'\nmodel = 'm'\n\
         attempts = 1\n[responses]\nper_responder = 2\n",
        proxy.url()
    );
    std::fs::write(proxy.folder.path().join("r.toml"), recipe).unwrap();
    std::fs::write(proxy.folder.path().join("in.jsonl"), "{\"prompt\": \"hi\"}\n").unwrap();
    let mut stranger = proxy.octant(&["synth", "r.toml", "--out", "refused"]);
    stranger.env_remove("SSL_CERT_FILE");
    let (_, err) = texts(&output(stranger, "").await, 1);
    assert!(err.contains("roles.responders[0] (m): https://localhost:"), "{err}");
    assert!(err.contains("UnknownIssuer; SSL_CERT_FILE names a file of other root certificates"), "{err}");
    let run = proxy.octant(&["synth", "r.toml", "--out", "out"]);
    let (out, _) = texts(&output(run, "").await, 0);
    assert!(out.contains("responses: 2 of 2 from 2 items"), "{out}");
    assert_eq!(server.calls().len(), 2);
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_are_not_trusted_are_named() {
    let server = Setup::new().launch();
    let proxy = TlsProxy::start(server.address).await;
    let mut stranger = proxy.octant(&["chat", &proxy.url()]);
    stranger.env_remove("SSL_CERT_FILE");
    let (_, err) = texts(&output(stranger, "a").await, 1);
    assert!(err.contains("cannot reach localhost:") && err.contains("UnknownIssuer"), "{err}");
    assert!(err.contains("; SSL_CERT_FILE names a file of other root certificates"), "{err}");
    // The certificate has the name localhost alone.
    let other = proxy.url().replace("localhost", "127.0.0.1");
    let (_, err) = texts(&output(proxy.octant(&["chat", &other]), "a").await, 1);
    assert!(err.contains("cannot reach 127.0.0.1:") && err.contains("not valid for name"), "{err}");
    for (file, expected) in [
        ("absent.pem", "SSL_CERT_FILE: absent.pem: No such file"),
        ("in.txt", "SSL_CERT_FILE: in.txt: expected certificates in PEM format; got none"),
    ] {
        std::fs::write(proxy.folder.path().join("in.txt"), "text").unwrap();
        let mut command = proxy.octant(&["chat", &proxy.url()]);
        command.env("SSL_CERT_FILE", file);
        let (_, err) = texts(&output(command, "a").await, 1);
        assert!(err.contains(expected), "{err}");
    }
}
