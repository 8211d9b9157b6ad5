//! Perplexity of texts, as lm-eval counts it: the log-likelihood of every token over rolling windows, divided
//! by the number of words or bytes of the text.

mod report;
mod texts;
mod windows;

use std::path::Path;

use serde_json::{Value, json};

use self::texts::Text;
use self::windows::{Window, windows};
use super::OnProgress;
use super::client::EvalClient;
use super::error::EvalError;
use super::request_error::RequestError;

/// Path of the requests that compute log-probabilities.
const COMPLETIONS: &str = "/v1/completions";
/// Path of the requests for token ids.
const TOKENIZE: &str = "/tokenize";
/// Path of the tokenizer's configuration.
const TOKENIZER: &str = "/tokenizer_info";

/// The result of an evaluation.
#[derive(Debug)]
pub(crate) struct PerplexityReport {
    /// A table for people.
    pub(crate) table: String,
    /// All figures, and those of every text.
    pub(crate) json: Value,
}

/// Settings of an evaluation.
#[derive(Debug)]
pub(crate) struct PerplexitySettings<'a> {
    /// Name of the model.
    pub(crate) model: &'a str,
    /// The most tokens of a window; without it, the server's longest context.
    pub(crate) max_length: Option<usize>,
    /// Token before each text; without it, the tokenizer's BOS, or else its EOS.
    pub(crate) prefix: Option<u32>,
}

/// A window of a text.
struct TextWindow<'a> {
    text: &'a Text,
    /// Number of the text.
    index: usize,
    window: Window,
}

/// Tokens of a text.
struct Tokenized {
    tokens: Vec<u32>,
    max_model_len: Option<usize>,
}

/// Computes the perplexity of the texts of a file.
///
/// # Errors
/// The file is not what was expected, or a request has failed.
pub(crate) async fn run(
    path: &Path,
    settings: &PerplexitySettings<'_>,
    client: &EvalClient,
    on_progress: OnProgress<'_>,
) -> Result<PerplexityReport, EvalError> {
    let texts = texts::read(path)?;
    let prefix = match settings.prefix {
        Some(prefix) => prefix,
        None => prefix_token(settings.model, client).await?,
    };
    let tokenized = client.all(&texts, |text| tokenize(text, settings, client), &mut |_, _| {}).await?;
    let longest = tokenized.iter().find_map(|text| text.max_model_len);
    let max_length = match (settings.max_length, longest) {
        (Some(given), _) => given,
        (None, Some(longest)) => longest,
        (None, None) => {
            let expected = "`max_model_len`; --max-length gives it otherwise";
            return Err(RequestError::malformed(TOKENIZE, expected, "no such field").into());
        }
    };
    if max_length < 2 {
        let expected = "a `max_model_len` of at least 2";
        return Err(RequestError::malformed(TOKENIZE, expected, &max_length.to_string()).into());
    }
    let mut parts = Vec::new();
    for (index, (text, tokenized)) in texts.iter().zip(&tokenized).enumerate() {
        let windows = windows(&tokenized.tokens, prefix, max_length).into_iter();
        parts.extend(windows.map(|window| TextWindow { text, index, window }));
    }
    let sums = client.all(&parts, |part| log_likelihood(part, settings, client), on_progress).await?;
    let mut likelihoods = vec![0.0; texts.len()];
    // In the order of the windows, so that the sum does not depend on the order of the answers.
    for (part, sum) in parts.iter().zip(sums) {
        likelihoods[part.index] += sum;
    }
    let tokens: Vec<usize> = tokenized.iter().map(|text| text.tokens.len()).collect();
    let mut report = report::report(&texts, &tokens, &likelihoods);
    report.json["model"] = json!(settings.model);
    report.json["max_length"] = json!(max_length);
    report.json["prefix_token"] = json!(prefix);
    report.json["windows"] = json!(parts.len());
    Ok(report)
}

/// The id of the tokenizer's BOS, or else of its EOS.
async fn prefix_token(model: &str, client: &EvalClient) -> Result<u32, RequestError> {
    let info = client.get(TOKENIZER).await?;
    // A token is a string, or an object with its `content`.
    let token = |name: &str| {
        let token = info.get(name)?;
        token.as_str().or_else(|| token.get("content")?.as_str())
    };
    let Some(token) = token("bos_token").or_else(|| token("eos_token")) else {
        let expected =
            "`bos_token` or `eos_token`; if the model has neither, give a token id with --prefix-token";
        return Err(RequestError::malformed(TOKENIZER, expected, "neither"));
    };
    let tokenized = ids(model, token, client).await?;
    match tokenized.tokens[..] {
        [id] => Ok(id),
        _ => {
            let expected = format!("one token for `{token}`; --prefix-token gives its id otherwise");
            Err(RequestError::malformed(TOKENIZE, expected, &format!("{:?}", tokenized.tokens)))
        }
    }
}

async fn tokenize(
    text: &Text,
    settings: &PerplexitySettings<'_>,
    client: &EvalClient,
) -> Result<Tokenized, EvalError> {
    let tokenized = ids(settings.model, &text.scored, client).await;
    tokenized.map_err(|error| EvalError::Request { place: text.place.clone(), error })
}

/// Token ids of a text without special tokens around it.
async fn ids(model: &str, text: &str, client: &EvalClient) -> Result<Tokenized, RequestError> {
    let body = json!({ "model": model, "prompt": text, "add_special_tokens": false });
    let reply = client.post(TOKENIZE, &body).await?;
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let tokens = reply.get("tokens").and_then(Value::as_array);
    let tokens = tokens.and_then(|tokens| tokens.iter().map(id).collect::<Option<Vec<_>>>());
    let malformed = || RequestError::malformed(TOKENIZE, "`tokens` with token ids", &reply.to_string());
    let longest = reply.get("max_model_len").and_then(Value::as_u64);
    let max_model_len = longest.and_then(|longest| usize::try_from(longest).ok());
    Ok(Tokenized { tokens: tokens.ok_or_else(malformed)?, max_model_len })
}

/// The sum of the log-probabilities of a window's tokens behind its context.
async fn log_likelihood(
    part: &TextWindow<'_>,
    settings: &PerplexitySettings<'_>,
    client: &EvalClient,
) -> Result<f64, EvalError> {
    let window = &part.window;
    let body = json!({
        "model": settings.model,
        "prompt": window.tokens,
        "max_tokens": 0,
        "echo": true,
        "logprobs": 0,
        "temperature": 0,
    });
    let reply = client.post(COMPLETIONS, &body).await;
    let sum = reply.and_then(|reply| {
        let values = reply.pointer("/choices/0/logprobs/token_logprobs").and_then(Value::as_array);
        let values = values.filter(|values| values.len() == window.tokens.len());
        let sum =
            values.and_then(|values| values[window.context..].iter().map(Value::as_f64).sum::<Option<f64>>());
        let expected = || format!("{} numbers in `choices[0].logprobs.token_logprobs`", window.tokens.len());
        sum.ok_or_else(|| RequestError::malformed(COMPLETIONS, expected(), &reply.to_string()))
    });
    sum.map_err(|error| EvalError::Request { place: part.text.place.clone(), error })
}
