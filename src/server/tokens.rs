//! `/tokenize` and `/detokenize`: exactly what a completion would do with the same text or messages.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Value, json};

use super::answer::{Kind, refused};
use super::error::ApiError;
use super::fields::Fields;
use super::{ServerState, body, validate};

type Shared = State<Arc<ServerState>>;

/// Text or messages to token ids.
///
/// # Errors
/// 400, or 404 for the model.
pub async fn tokenize(State(state): Shared, request: Request) -> Result<Json<Value>, ApiError> {
    let map = body::read_json(request, &state).await?;
    let (prompts, strings) = validate::tokenize(Fields::new(map), &state.limits)?;
    let tokenized = state.generator.tokenize(prompts.clone()).await;
    let kind = if prompts.is_chat() { Kind::Chat } else { Kind::Text };
    let prompts = tokenized.map_err(|refusal| refused(&state, refusal, kind))?;
    let ids: &[u32] = prompts.first().map_or(&[], |prompt| &prompt.ids);
    let tokenizer = state.generator.tokenizer();
    let token_strs = strings.then(|| ids.iter().map(|&id| tokenizer.token_str(id)).collect::<Vec<_>>());
    Ok(Json(json!({
        "count": ids.len(),
        "max_model_len": state.max_model_len(),
        "tokens": ids,
        "token_strs": token_strs,
    })))
}

/// Token ids to text, special tokens included.
///
/// # Errors
/// 400, or 404 for the model.
pub async fn detokenize(State(state): Shared, request: Request) -> Result<Json<Value>, ApiError> {
    let map = body::read_json(request, &state).await?;
    let ids = validate::detokenize(Fields::new(map), &state.limits)?;
    let prompt =
        state.generator.detokenize(ids).await.map_err(|refusal| refused(&state, refusal, Kind::Text))?;
    Ok(Json(json!({ "prompt": prompt })))
}
