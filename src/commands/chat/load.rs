//! The server's load, by its metrics. They have the names of vLLM.

use super::answer::{AnswerError, get};
use crate::http_client::Target;

/// A line such as "2 requests running, 0 waiting, 3.1 % of the KV cache used".
pub(super) async fn load(target: &Target) -> Result<String, AnswerError> {
    let text = get(target, "/metrics").await?;
    let value = |name: &'static str| {
        sum(&text, name).ok_or_else(|| AnswerError::Malformed {
            expected: "the metrics of a server with vLLM's names",
            got: format!("none of the name {name}"),
        })
    };
    let (running, waiting) = (value("vllm:num_requests_running")?, value("vllm:num_requests_waiting")?);
    let used = 100.0 * value("vllm:kv_cache_usage_perc")?;
    Ok(format!("{running} requests running, {waiting} waiting, {used:.1} % of the KV cache used"))
}

/// The sum of a metric over its lines.
fn sum(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
        // The value follows the labels, in which a brace can stand only within quotes.
        let rest = rest.rsplit_once('}').map_or(rest, |(_, rest)| rest);
        rest.split_whitespace().next()?.parse().ok()
    });
    values.fold(None, |sum, value: f64| Some(sum.unwrap_or(0.0) + value))
}
