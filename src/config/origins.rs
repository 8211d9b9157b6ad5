//! Value parsers of `--allowed-origins` and `--allowed-hosts`. They return the form that requests are
//! compared with.

use anyhow::bail;

/// An origin in lower case without its scheme's default port, or `*`.
pub(super) fn origin(text: &str) -> anyhow::Result<String> {
    let origin = item(text).to_ascii_lowercase();
    if origin == "*" || origin == "null" {
        return Ok(origin);
    }
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    };
    let is_host = |host: &str| {
        !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic() && !"/?#@*\\\"'".contains(c))
    };
    // People copy origins from the address bar, which ends them with a slash.
    match origin.strip_suffix('/').unwrap_or(&origin).split_once("://") {
        Some((scheme, host)) if is_scheme(scheme) && is_host(host) => {
            let default = match scheme {
                "http" => ":80",
                "https" => ":443",
                _ => "",
            };
            Ok(format!("{scheme}://{}", host.strip_suffix(default).unwrap_or(host)))
        }
        _ => bail!(
            "expected an origin such as https://chat.example or http://localhost:3000, or *, got `{text}`"
        ),
    }
}

/// A host name in lower case, `*.NAME`, or `*`.
pub(super) fn host_name(text: &str) -> anyhow::Result<String> {
    let host = item(text).to_ascii_lowercase();
    let name = host.strip_suffix('.').unwrap_or(&host);
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with('.')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
    };
    match name.strip_prefix("*.").unwrap_or(name) {
        // Not `*.`, which may be a truncated `*.NAME`.
        _ if host == "*" => Ok(host),
        bare if is_name(bare) => Ok(name.to_owned()),
        _ => bail!("expected a host name without scheme and port, such as chat.example, or *, got `{text}`"),
    }
}

/// An item without the brackets and quotes of vLLM's lists: `["https://a.example", "https://b.test"]`.
fn item(text: &str) -> &str {
    let text = text.trim();
    let text = text.strip_prefix("[\"").or_else(|| text.strip_prefix('"')).unwrap_or(text);
    text.strip_suffix("\"]").or_else(|| text.strip_suffix('"')).unwrap_or(text)
}
