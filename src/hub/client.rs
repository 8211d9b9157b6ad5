//! Requests to the hub and to the hosts that it redirects to.
//!
//! Redirects are followed here, since the token must reach the hub alone.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::environment::HubSettings;
use super::error::{HubError, text_of};
use super::name::{MAIN, ModelName, is_commit, is_lower_hex};
use crate::http_client::{CertificateFile, pause_asked, with_hint};

/// Most redirects of one request.
const MAX_REDIRECTS: usize = 10;
/// Most bytes of a repository's description. Each file takes about 100.
const MAX_LISTING: u64 = 256 << 20;
/// Most characters of a server's own words in an error.
const MAX_DETAIL: usize = 200;
/// Longest wait that a server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// A client for one model.
pub(super) struct Client {
    agent: Agent,
    pub(super) settings: HubSettings,
    pub(super) name: ModelName,
}

/// A revision of a repository.
pub(super) struct Listing {
    pub(super) commit: String,
    /// Paths of all files.
    pub(super) files: Vec<String>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileInfo {
    pub(super) path: String,
    /// The name of its blob.
    pub(super) etag: String,
    pub(super) bytes: u64,
}

impl FileInfo {
    /// The SHA-256 of the contents in hexadecimal digits, which is the ETag of a large file. Others have
    /// Git's SHA-1.
    pub(super) fn sha256(&self) -> Option<&str> {
        (self.etag.len() == 64 && is_lower_hex(&self.etag)).then_some(self.etag.as_str())
    }
}

/// The subject of a request, for errors.
#[derive(Clone, Copy)]
enum Subject<'a> {
    Model,
    File(&'a str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Head,
}

/// An answer, and the address that gave it.
struct Answer {
    url: String,
    response: Response<Body>,
}

impl Client {
    pub(super) fn new(settings: HubSettings, name: ModelName) -> Result<Self, HubError> {
        let options = AgentOptions { timeout: settings.timeout, connections: None, is_direct: false };
        Ok(Self { agent: agent(&options, settings.certificates.as_ref())?, settings, name })
    }

    /// The page of the model, for people.
    pub(super) fn page(&self) -> String {
        format!("{}/{}", self.settings.endpoint, self.name.id)
    }

    /// Asks which commit the revision is at, and which files it has.
    pub(super) fn listing(&self) -> Result<Listing, HubError> {
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        #[derive(Deserialize)]
        struct Model {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        let ModelName { id, revision } = &self.name;
        let url = format!("{}/api/models/{id}/revision/{}", self.settings.endpoint, encoded(revision));
        let mut answer = self.follow(Method::Get, url, None, Subject::Model)?;
        let text = answer.response.body_mut().with_config().limit(MAX_LISTING).read_to_vec();
        let text = text.map_err(|error| self.broken(&answer.url, &error))?;
        let wrong = |got: String| {
            HubError::fatal(format!("{}: expected the model's `sha` and `siblings`, got {got}", answer.url))
        };
        let model: Model = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if !is_commit(&model.sha) {
            return Err(wrong(format!("the `sha` {:?}", model.sha)));
        }
        let files = model.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok(Listing { commit: model.sha, files })
    }

    /// Asks for hash and size of a file. The hub's own answer has them, also where it redirects to another
    /// host; this host is asked only if one is missing.
    pub(super) fn file_info(&self, commit: &str, path: &str) -> Result<FileInfo, HubError> {
        let (mut etag, mut bytes) = (None, None);
        let mut url = self.address(commit, path);
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.send(Method::Head, url, None, Subject::File(path))?;
            let header = |name: &str| text_of_header(answer.response.headers(), name);
            let target = self.redirected(&answer)?;
            // A redirect within the hub has headers of its own.
            let stays = target.as_ref().is_some_and(|target| self.is_hub(target));
            let plain = |name: &str| if stays { None } else { header(name) };
            etag = etag.or_else(|| header("x-linked-etag").or_else(|| plain("etag")));
            bytes = bytes.or_else(|| header("x-linked-size"));
            match target {
                Some(target) if stays || etag.is_none() || bytes.is_none() => url = target,
                Some(_) => return file_of(path, etag.as_deref(), bytes.as_deref()),
                None => {
                    let bytes = bytes.or_else(|| header("content-length"));
                    return file_of(path, etag.as_deref(), bytes.as_deref());
                }
            }
        }
        Err(self.endless(Subject::File(path)))
    }

    /// Begins to read a file. Returns the position of its first byte with it: `from`, or 0 if the server
    /// cannot begin within a file.
    pub(super) fn read(
        &self,
        commit: &str,
        info: &FileInfo,
        from: u64,
    ) -> Result<(u64, impl Read + use<>), HubError> {
        let url = self.address(commit, &info.path);
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let answer = self.follow(Method::Get, url, range.as_deref(), Subject::File(&info.path))?;
        let status = answer.response.status();
        let start = match text_of_header(answer.response.headers(), "content-range") {
            Some(range) if status == StatusCode::PARTIAL_CONTENT => {
                let expected = format!("bytes {from}-{}/{}", info.bytes.saturating_sub(1), info.bytes);
                if range != expected {
                    let host = host(&answer.url);
                    return Err(HubError::temporary(format!(
                        "expected `{expected}` from {host}, got `{range}`"
                    )));
                }
                from
            }
            _ => 0,
        };
        Ok((start, answer.response.into_body().into_with_config().limit(u64::MAX).reader()))
    }

    /// The error of an answer that broke off.
    fn broken(&self, url: &str, error: &ureq::Error) -> HubError {
        HubError::temporary(format!("{}: {}", host(url), self.text_of_failure(error)))
    }

    fn address(&self, commit: &str, path: &str) -> String {
        let path: Vec<String> = path.split('/').map(encoded).collect();
        format!("{}/{}/resolve/{commit}/{}", self.settings.endpoint, self.name.id, path.join("/"))
    }

    /// Sends a request, and follows redirects.
    fn follow(
        &self,
        method: Method,
        mut url: String,
        range: Option<&str>,
        subject: Subject<'_>,
    ) -> Result<Answer, HubError> {
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.send(method, url, range, subject)?;
            match self.redirected(&answer)? {
                Some(target) => url = target,
                None => return Ok(answer),
            }
        }
        Err(self.endless(subject))
    }

    /// Sends one request. The answer is a success or a redirect.
    fn send(
        &self,
        method: Method,
        url: String,
        range: Option<&str>,
        subject: Subject<'_>,
    ) -> Result<Answer, HubError> {
        let mut request = if method == Method::Head { self.agent.head(&url) } else { self.agent.get(&url) };
        // Compressed bytes would have other sizes and positions.
        request = request.header("accept-encoding", "identity");
        if let Some(range) = range {
            request = request.header("range", range);
        }
        if let Some(token) = self.settings.token.as_ref().filter(|_| self.is_hub(&url)) {
            request = request.header("authorization", format!("Bearer {}", token.secret));
        }
        let response = request.call().map_err(|error| self.broken(&url, &error))?;
        let status = response.status();
        let answer = Answer { url, response };
        if status.is_success() || status.is_redirection() {
            return Ok(answer);
        }
        Err(self.refused(&answer, subject))
    }

    /// The address that an answer redirects to.
    fn redirected(&self, answer: &Answer) -> Result<Option<String>, HubError> {
        if !answer.response.status().is_redirection() {
            return Ok(None);
        }
        let location = text_of_header(answer.response.headers(), "location").unwrap_or_default();
        let origin = origin(&answer.url);
        let scheme = origin.split_once("//").map_or("", |(scheme, _)| scheme);
        let target = match location.as_str() {
            full if full.starts_with("http://") || full.starts_with("https://") => full.to_owned(),
            host if host.starts_with("//") => format!("{scheme}{host}"),
            path if path.starts_with('/') => format!("{origin}{path}"),
            _ => return Err(HubError::fatal(format!("{}: a redirect to {location:?}", host(&answer.url)))),
        };
        if scheme == "https:" && !target.starts_with("https://") {
            let message =
                format!("{}: a redirect to {}, which is not encrypted", host(&answer.url), host(&target));
            return Err(HubError::fatal(message));
        }
        Ok(Some(target))
    }

    /// Whether an address is the hub's own, so that it may have the token.
    fn is_hub(&self, url: &str) -> bool {
        origin(url).eq_ignore_ascii_case(origin(&self.settings.endpoint))
    }

    fn endless(&self, subject: Subject<'_>) -> HubError {
        let what = match subject {
            Subject::Model => "the model's description",
            Subject::File(path) => path,
        };
        HubError::fatal(format!(
            "{what}: more than {MAX_REDIRECTS} redirects from {}",
            self.settings.endpoint
        ))
    }

    /// The error of an answer that is neither a success nor a redirect.
    fn refused(&self, answer: &Answer, subject: Subject<'_>) -> HubError {
        let status = answer.response.status().as_u16();
        let headers = answer.response.headers();
        let code = text_of_header(headers, "x-error-code").unwrap_or_default();
        let detail = detail(headers);
        let elsewhere = !self.is_hub(&answer.url);
        match status {
            408 | 429 | 500.. => {
                let wait = pause_asked(headers).map(|wait| wait.min(MAX_WAIT));
                let message = format!("{} answers with status {status}{detail}", host(&answer.url));
                HubError::Temporary { message, wait }
            }
            // The addresses that the hub redirects to are valid for a limited time.
            401 | 403 if elsewhere => {
                HubError::temporary(format!("{} answers with status {status}{detail}", host(&answer.url)))
            }
            401 | 403 if code != "RepoNotFound" => HubError::fatal(self.no_access(status, &detail)),
            404 | 401 | 403 => HubError::fatal(self.not_found(&code, subject)),
            _ => HubError::fatal(format!("{} answers with status {status}{detail}", host(&answer.url))),
        }
    }

    fn no_access(&self, status: u16, detail: &str) -> String {
        let page = self.page();
        match &self.settings.token {
            Some(token) => format!(
                "the hub refuses access with the token in {} (status {status}{detail}): the token's account \
                 must have accepted the terms at {page}",
                token.from
            ),
            None => format!(
                "the hub refuses access without a token (status {status}{detail}): accept the terms at \
                 {page} and set HF_TOKEN to a token of your account"
            ),
        }
    }

    fn not_found(&self, code: &str, subject: Subject<'_>) -> String {
        let ModelName { id, revision } = &self.name;
        let endpoint = &self.settings.endpoint;
        let private = match &self.settings.token {
            Some(token) => format!("the token in {} may not read it", token.from),
            None => "it is private; then set HF_TOKEN".to_owned(),
        };
        match subject {
            Subject::File(path) if code != "RepoNotFound" => {
                format!("{path}: no such file at revision `{revision}` of {}", self.page())
            }
            _ if code == "RevisionNotFound" => format!("no revision `{revision}` of {}", self.page()),
            _ if code == "RepoNotFound" || revision == MAIN => {
                format!("no such directory, and no model `{id}` at {endpoint}, or {private}")
            }
            _ => format!("no model `{id}` at {endpoint}, or no revision `{revision}` of it, or {private}"),
        }
    }

    fn text_of_failure(&self, error: &ureq::Error) -> String {
        match error {
            ureq::Error::Io(error) => text_of(error),
            ureq::Error::HostNotFound => "no such host".to_owned(),
            ureq::Error::ConnectionFailed => "the connection failed".to_owned(),
            ureq::Error::Timeout(_) => format!("no answer within {} s", self.settings.timeout.as_secs()),
            error => with_hint(error.to_string()),
        }
    }
}

/// Settings of an HTTP client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AgentOptions {
    /// Time to connect, and time without a byte after which a connection counts as broken.
    pub(crate) timeout: Duration,
    /// Connections that stay open for the next requests; absent, the client's default.
    pub(crate) connections: Option<usize>,
    /// Whether the proxy of the environment is passed over.
    pub(crate) is_direct: bool,
}

/// An HTTP and HTTPS client that returns every status and follows no redirect.
pub(super) fn agent(
    options: &AgentOptions,
    certificates: Option<&CertificateFile>,
) -> Result<Agent, HubError> {
    let mut tls = TlsConfig::builder();
    if let Some(file) = certificates {
        let roots = file.read().map_err(|error| HubError::fatal(error.to_string()))?;
        let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        tls = tls.root_certs(RootCerts::from(roots));
    }
    let mut agent = Agent::config_builder()
        .tls_config(tls.build())
        .user_agent(concat!("octant/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(options.timeout))
        .timeout_recv_response(Some(options.timeout))
        .timeout_per_read(Some(options.timeout));
    if let Some(connections) = options.connections {
        agent = agent.max_idle_connections(connections).max_idle_connections_per_host(connections);
    }
    if options.is_direct {
        agent = agent.proxy(None);
    }
    Ok(agent.build().into())
}

/// Reads the headers of a file's hash and size.
fn file_of(path: &str, etag: Option<&str>, bytes: Option<&str>) -> Result<FileInfo, HubError> {
    let name = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
    let Some(name) = name.filter(|name| is_blob_name(name)) else {
        return Err(HubError::fatal(format!("{path}: expected a hash in the header ETag, got {etag:?}")));
    };
    let Some(count) = bytes.and_then(|bytes| bytes.parse().ok()) else {
        return Err(HubError::fatal(format!(
            "{path}: expected a size in the answer's headers, got {bytes:?}"
        )));
    };
    Ok(FileInfo { path: path.to_owned(), etag: name.to_owned(), bytes: count })
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// The host of an address, for errors. Its path may hold a signature.
fn host(url: &str) -> &str {
    let origin = origin(url);
    origin.split_once("://").map_or(origin, |(_, host)| host)
}

/// The server's own words about an error, if it gives any.
fn detail(headers: &HeaderMap) -> String {
    let text = text_of_header(headers, "x-error-message").unwrap_or_default();
    let text: String = text.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

fn text_of_header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

/// Whether an ETag can be a file's name.
fn is_blob_name(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// A part of a path with all but unreserved characters encoded.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
