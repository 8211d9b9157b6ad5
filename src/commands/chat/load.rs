//! The server's load, by its metrics. They have the names of vLLM.

use super::answer::{AnswerError, get};
use crate::http_client::Target;

/// A line such as "2 requests running, 0 waiting, 3.1 % of the KV cache used".
pub(super) async fn load(target: &Target) -> Result<String, AnswerError> {
    let text = get(target, "/metrics").await?;
    let sum = |name: &'static str| total(&text, name).map(|total| total.sum);
    let (running, waiting) = (sum("vllm:num_requests_running")?, sum("vllm:num_requests_waiting")?);
    // Each engine of the server has a cache of its own.
    let shares = total(&text, "vllm:kv_cache_usage_perc")?;
    let used = 100.0 * shares.sum / shares.lines as f64;
    Ok(format!("{running} requests running, {waiting} waiting, {used:.1} % of the KV cache used"))
}

/// A metric over all of its lines, of which there is at least one.
struct Total {
    sum: f64,
    lines: usize,
}

fn total(text: &str, name: &'static str) -> Result<Total, AnswerError> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
        // The value follows the labels, in which a brace can stand only within quotes.
        let rest = rest.rsplit_once('}').map_or(rest, |(_, rest)| rest);
        rest.split_whitespace().next()?.parse::<f64>().ok()
    });
    let add = |Total { sum, lines }, value| Total { sum: sum + value, lines: lines + 1 };
    match values.fold(Total { sum: 0.0, lines: 0 }, add) {
        Total { lines: 0, .. } => Err(AnswerError::Malformed {
            expected: "the metrics of a server with vLLM's names",
            got: format!("none of the name {name}"),
        }),
        total => Ok(total),
    }
}
