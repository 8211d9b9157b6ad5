//! `/tokenize` and `/detokenize`: exactly what a completion would do with the same text or messages.
//!
//! They take no place in the engine's queue, so they have places of their own, taken before a body is parsed; and since nobody
//! waits for an answer's tokens here, their texts are done one at a time, beside those of requests that generate.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

use super::answer::{Kind, refused};
use super::error::ApiError;
use super::fields::Fields;
use super::{ServerState, body, validate};

type Shared = State<Arc<ServerState>>;

/// Requests at once.
const PLACES: usize = 64;
/// When to try again.
const RETRY: Duration = Duration::from_secs(1);

/// The places, and whose turn it is.
pub struct Asides {
    places: Semaphore,
    turn: Mutex<()>,
}

impl Default for Asides {
    fn default() -> Self {
        Self { places: Semaphore::new(PLACES), turn: Mutex::default() }
    }
}

impl Asides {
    /// # Errors
    /// 429 if there is no place.
    fn enter(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        self.places.try_acquire().map_err(|_| ApiError::QueueFull {
            message: format!(
                "The server tokenises and detokenises {PLACES} requests at once, and has as many."
            ),
            retry_after: Some(RETRY),
        })
    }
}

/// Text or messages to token ids.
///
/// # Errors
/// 400, 404 for the model, or 429.
pub async fn tokenize(State(state): Shared, request: Request) -> Result<Json<Value>, ApiError> {
    let bytes = body::read(request, &state).await?;
    let _place = state.asides.enter()?;
    let map = body::parse(bytes, &state).await?;
    let (prompts, strings) = validate::tokenize(Fields::new(map), &state.limits)?;
    let _turn = state.asides.turn.lock().await;
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
/// 400, 404 for the model, or 429.
pub async fn detokenize(State(state): Shared, request: Request) -> Result<Json<Value>, ApiError> {
    let bytes = body::read(request, &state).await?;
    let _place = state.asides.enter()?;
    let map = body::parse(bytes, &state).await?;
    let ids = validate::detokenize(Fields::new(map), &state.limits)?;
    let _turn = state.asides.turn.lock().await;
    let prompt =
        state.generator.detokenize(ids).await.map_err(|refusal| refused(&state, refusal, Kind::Text))?;
    Ok(Json(json!({ "prompt": prompt })))
}
