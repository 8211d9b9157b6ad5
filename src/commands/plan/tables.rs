//! The plan as text tables: sizes in GB (10^9 bytes), times in milliseconds.

use std::fmt::Write;

use super::report::{Kv, Report};
use crate::cost::{Origin, StepTime};

/// Column titles of the terms, each as wide as its column.
const TERMS: &str = "weights staging products   cuts   head     kv attention  activ. reduce overhead";

/// All tables of the plan.
pub(super) fn tables(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _written = write_all(&mut text, report);
    text
}

fn write_all(text: &mut String, report: &Report) -> std::fmt::Result {
    let Report { architecture, gpu, tp, max_model_len, .. } = report;
    let parameters = report.parameters as f64 / 1e9;
    writeln!(text, "{architecture}, {parameters:.2} B parameters, on {tp} × {gpu}")?;
    let products = if report.deterministic { "deterministic" } else { "fastest" };
    writeln!(
        text,
        "quantization {}, products {products}, sequences of {max_model_len} tokens, {} at once, \
         {} tokens per step",
        report.quantization, report.max_num_seqs, report.max_num_batched_tokens
    )?;
    if let Some(tokens) = report.two_batch_tokens {
        writeln!(text, "steps of at least {tokens} tokens are computed as two batches")?;
    }
    writeln!(text)?;
    writeln!(text, "memory of each GPU, GB ({:.3} of them usable)", gb(report.available))?;
    for line in &report.memory {
        let estimate = if line.estimate { "estimate: " } else { "" };
        writeln!(text, "  {:16} {:8.3}  {estimate}{}", line.name, gb(line.bytes), line.from)?;
    }
    write_figures(text, report)?;
    report.kv.iter().try_for_each(|kv| write_kv(text, kv, report))
}

/// The figures that times are predicted from, and which terms are estimates.
fn write_figures(text: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(text, "\nfigures of the GPU: rates per second, times in seconds, shares of rates")?;
    for figure in &report.figures {
        let value = figure.value.map_or_else(|| "table".to_owned(), |value| format!("{value:.3e}"));
        writeln!(text, "  {:36} {value:>9}  {}: {}", figure.name, word(figure.origin), figure.from)?;
    }
    for origin in [Origin::Measured, Origin::Published, Origin::Estimated] {
        let terms = report.origins.iter().filter(|of| of.origin == origin);
        let terms: Vec<&str> = terms.map(|of| of.term).collect();
        let terms = if terms.is_empty() { "none".to_owned() } else { terms.join(", ") };
        writeln!(text, "  terms below that are {}: {terms}", word(origin))?;
    }
    Ok(())
}

fn word(origin: Origin) -> &'static str {
    match origin {
        Origin::Measured => "measured",
        Origin::Published => "published",
        Origin::Estimated => "estimated",
    }
}

fn write_kv(text: &mut String, kv: &Kv, report: &Report) -> std::fmt::Result {
    writeln!(
        text,
        "\n{} KV cache: {} bytes per token, {} per block",
        kv.dtype, kv.token_bytes, kv.block_bytes
    )?;
    writeln!(text, "  {:16} {:8.3}  scratch of operations, and a spare block", "scratch", gb(kv.scratch))?;
    writeln!(text, "  {:16} {:8.3}  the rest", "KV cache", gb(kv.bytes))?;
    if kv.short_by > 0 {
        writeln!(
            text,
            "  does not fit: one request of {} tokens lacks {} bytes",
            report.max_model_len, kv.short_by
        )?;
    } else {
        writeln!(
            text,
            "  room for {} blocks = {} tokens = {} requests of {} tokens; the server takes {} blocks",
            kv.blocks, kv.tokens, kv.requests, report.max_model_len, kv.server_blocks
        )?;
    }
    writeln!(
        text,
        "  ms per step: weights, staging and products overlap, so do kv and attention; the rest adds up"
    )?;
    writeln!(text, "  decode batch context     step {TERMS}   tokens/s  bound")?;
    for step in &kv.decode {
        let fits = if step.fits { "" } else { ", does not fit" };
        writeln!(
            text,
            "         {:5} {:7} {:8.2} {} {:10.1}  {}{fits}",
            step.batch,
            step.context,
            step.seconds * 1e3,
            terms(&step.terms),
            step.tokens_per_second,
            step.bound
        )?;
    }
    writeln!(text, "  prompt steps  tokens      all {TERMS}   tokens/s  bound")?;
    for prompt in &kv.prefill {
        writeln!(
            text,
            "         {:5} {:7} {:8.2} {} {:10.1}  {}",
            prompt.steps,
            prompt.tokens,
            prompt.seconds * 1e3,
            terms(&prompt.terms),
            prompt.tokens_per_second,
            prompt.bound
        )?;
    }
    Ok(())
}

/// Milliseconds in the columns of [`TERMS`].
fn terms(time: &StepTime) -> String {
    let ms = |seconds: f64| seconds * 1e3;
    format!(
        "{:7.2} {:7.2} {:8.2} {:6.2} {:6.2} {:6.2} {:9.2} {:7.2} {:6.2} {:8.2}",
        ms(time.weights),
        ms(time.staging),
        ms(time.products),
        ms(time.cuts),
        ms(time.head_weights.max(time.head_products)),
        ms(time.kv),
        ms(time.attention),
        ms(time.activations),
        ms(time.reduce + time.gather),
        ms(time.overhead),
    )
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
