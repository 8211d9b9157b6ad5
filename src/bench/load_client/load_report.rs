//! Report of a run, as text and as JSON.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Value, json};

use super::measure::{LoadRun, RequestFailure, RequestRecord, Summary, TokensCountedBy, ms};
use crate::statistics::Distribution;

/// Cores in use above which the client, which runs on one thread, may have limited the result.
const BUSY: f64 = 0.8;

/// Report as text.
pub fn text(summary: &Summary, distinct_prompts: Option<usize>) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_counts(&mut out, summary, distinct_prompts);
    let _ = write_times(&mut out, summary);
    let _ = write_rest(&mut out, summary);
    out
}

fn write_counts(out: &mut String, s: &Summary, distinct_prompts: Option<usize>) -> std::fmt::Result {
    write!(out, "requests    {} sent, {} succeeded, {} failed", s.sent, s.ok, s.failed)?;
    if s.interrupted {
        write!(out, ", {} aborted by the interrupt", s.unfinished)?;
    }
    writeln!(out, "; in {:.2} s", s.seconds)?;
    writeln!(
        out,
        "throughput  {:.2} requests/s, {:.1} output tokens/s",
        s.requests_per_second, s.output_tokens_per_second
    )?;
    let counted = match s.tokens_counted {
        TokensCountedBy::Usage => "by the server's usage",
        TokensCountedBy::Chunks => "as chunks with content, since the server reported no usage",
        TokensCountedBy::Both => "by the server's usage where reported, else as chunks with content",
    };
    write!(out, "tokens      {} output, counted {counted}", s.output_tokens)?;
    if s.tokens_counted != TokensCountedBy::Chunks {
        write!(out, "; {} prompt, {:.2} output tokens per chunk", s.prompt_tokens, s.tokens_per_chunk)?;
    }
    writeln!(out)?;
    match distinct_prompts {
        Some(prompts) if (prompts as u64) < s.sent => {
            writeln!(
                out,
                "prompts     {prompts} for {} requests: repeated prompts profit from a prefix cache",
                s.sent
            )
        }
        _ => Ok(()),
    }
}

fn write_times(out: &mut String, s: &Summary) -> std::fmt::Result {
    let head = ["mean", "p50", "p90", "p95", "p99", "max"];
    write!(out, "\n{:34}", "ms")?;
    for name in head {
        write!(out, "{name:>11}")?;
    }
    writeln!(out)?;
    let rows: [(&str, &Distribution); 7] = [
        ("TTFT, from sending", &s.ttft_ms),
        ("TTFT, from due time", &s.ttft_from_due_ms),
        ("ITL, between chunks", &s.itl_ms),
        ("TPOT, per request", &s.tpot_ms),
        ("E2E, from sending", &s.e2e_ms),
        ("E2E, from due time", &s.e2e_from_due_ms),
        ("sent later than due", &s.lag_ms),
    ];
    for (name, d) in rows {
        write!(out, "{name:34}")?;
        for value in [d.mean, d.p50, d.p90, d.p95, d.p99, d.max] {
            if d.count == 0 {
                write!(out, "{:>11}", "-")?;
            } else {
                write!(out, "{value:>11.2}")?;
            }
        }
        writeln!(out)?;
    }
    writeln!(out)
}

fn write_rest(out: &mut String, s: &Summary) -> std::fmt::Result {
    if let (Some(goodput), Some(share)) = (s.goodput, s.good_share) {
        let limits = [
            ("TTFT", s.objectives.ttft_ms),
            ("ITL", s.objectives.itl_ms),
            ("TPOT", s.objectives.tpot_ms),
            ("E2E", s.objectives.e2e_ms),
        ];
        let limits: Vec<String> =
            limits.iter().filter_map(|(name, limit)| Some(format!("{name} <= {} ms", (*limit)?))).collect();
        let share = 100.0 * share;
        writeln!(
            out,
            "goodput     {goodput:.2} requests/s, {share:.1} % of requests, with {}",
            limits.join(", ")
        )?;
    }
    for failures in &s.failures {
        writeln!(out, "failed      {} x {}; the first: {}", failures.count, failures.kind, failures.first)?;
    }
    writeln!(
        out,
        "client CPU  {:.2} s, {:.1} % of a core, {:.1} us per chunk",
        s.client_cpu_seconds,
        100.0 * s.client_cpu_share,
        s.client_cpu_us_per_chunk
    )?;
    if s.client_cpu_share > BUSY {
        writeln!(out, "            The client was at its CPU limit: latencies include its own delays")?;
    }
    Ok(())
}

/// A request in JSON. Times are in ms since the start of the run; fields that a failed request has no value
/// for are null.
#[derive(Serialize)]
struct RequestEntry<'a> {
    index: u64,
    due_ms: f64,
    sent_ms: f64,
    ended_ms: f64,
    ttft_ms: Option<f64>,
    e2e_ms: Option<f64>,
    chunks: usize,
    prompt_tokens: Option<u64>,
    output_tokens: u64,
    /// Times between consecutive chunks.
    itl_ms: Vec<f64>,
    error: Option<&'a RequestFailure>,
}

/// Report as JSON: `settings` as given, all figures, and every request.
pub fn json(summary: &Summary, settings: Value, run: &LoadRun) -> Value {
    let requests: Vec<RequestEntry<'_>> = run.records.iter().map(entry).collect();
    json!({ "settings": settings, "summary": summary, "requests": requests })
}

fn entry(record: &RequestRecord) -> RequestEntry<'_> {
    // Rounded to 100 ns.
    let rounded = |time| (ms(time) * 1e4).round() / 1e4;
    RequestEntry {
        index: record.index,
        due_ms: rounded(record.due),
        sent_ms: rounded(record.sent),
        ended_ms: rounded(record.ended),
        ttft_ms: record.ttft().map(rounded),
        e2e_ms: record.e2e().map(rounded),
        chunks: record.chunks.len(),
        prompt_tokens: record.usage.map(|usage| usage.prompt_tokens),
        output_tokens: record.tokens(),
        itl_ms: record.gaps().map(rounded).collect(),
        error: record.outcome.as_ref().err(),
    }
}
