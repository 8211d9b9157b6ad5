//! `/tokenize` and `/detokenize`: the token ids that a completion would use for the same text or messages,
//! and back. `/v1/messages/count_tokens`: their number. `/tokenizer_info`: the tokenizer's configuration.
//!
//! These requests take no place in the engine's queue. Those with a body are bounded by permits of their own,
//! taken before it is parsed. They use the tokenizer one at a time, so that they delay requests that generate
//! as little as possible.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use tokio::sync::SemaphorePermit;

use super::anthropic::reply::TokenCount;
use super::error::ApiError;
use super::fields::Fields;
use super::generate::refusal_error;
use super::info_reply::{DetokenizeReply, TokenizeReply, TokenizerInfoReply};
use super::reply_builder::ReplyFormat;
use super::settings::MAX_TOKENIZE_REQUESTS;
use super::state::ServerState;
use super::{body, validate};

/// `Retry-After` of a refusal.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// `POST /tokenize`: token ids of a text or of messages.
///
/// # Errors
/// Status 400, 404 for the model, or 429.
pub(crate) async fn tokenize(
    State(state): State<Arc<ServerState>>,
    request: Request,
) -> Result<Json<TokenizeReply>, ApiError> {
    let body = body::read(request, &state).await?;
    let _permit = acquire_permit(&state)?;
    let map = body::parse(body, &state).await?;
    let (prompts, strings) = validate::tokenize(Fields::new(map), &state.limits)?;
    let _turn = state.tokenize_turn.lock().await;
    let format = if prompts.is_chat() { ReplyFormat::Chat } else { ReplyFormat::Text };
    let tokenized = state.generator.tokenize(prompts).await;
    let prompts = tokenized.map_err(|refusal| refusal_error(&state, refusal, format.prompt_param()))?;
    let ids: &[u32] = prompts.first().map_or(&[], |prompt| &prompt.ids);
    let tokenizer = state.generator.tokenizer();
    let token_strs = strings.then(|| ids.iter().map(|&id| tokenizer.token_str(id)).collect::<Vec<_>>());
    Ok(Json(TokenizeReply {
        count: ids.len(),
        max_model_len: state.max_model_len(),
        tokens: ids.to_vec(),
        token_strs,
    }))
}

/// `POST /v1/messages/count_tokens`: the number of tokens of a conversation.
///
/// # Errors
/// Status 400, 404 for the model, or 429.
pub(crate) async fn count_tokens(
    State(state): State<Arc<ServerState>>,
    request: Request,
) -> Result<Json<TokenCount>, ApiError> {
    let body = body::read(request, &state).await?;
    let _permit = acquire_permit(&state)?;
    let map = body::parse(body, &state).await?;
    let prompts = validate::count_tokens(Fields::new(map), &state.limits)?;
    let _turn = state.tokenize_turn.lock().await;
    let tokenized = state.generator.tokenize(prompts).await;
    let prompts = tokenized.map_err(|refusal| refusal_error(&state, refusal, "messages"))?;
    Ok(Json(TokenCount { input_tokens: prompts.iter().map(|prompt| prompt.ids.len()).sum() }))
}

/// `POST /detokenize`: text of token ids, special tokens included.
///
/// # Errors
/// Status 400, 404 for the model, or 429.
pub(crate) async fn detokenize(
    State(state): State<Arc<ServerState>>,
    request: Request,
) -> Result<Json<DetokenizeReply>, ApiError> {
    let body = body::read(request, &state).await?;
    let _permit = acquire_permit(&state)?;
    let map = body::parse(body, &state).await?;
    let ids = validate::detokenize(Fields::new(map), &state.limits)?;
    let _turn = state.tokenize_turn.lock().await;
    let text = state.generator.detokenize(ids).await;
    let text = text.map_err(|refusal| refusal_error(&state, refusal, "tokens"))?;
    Ok(Json(DetokenizeReply { prompt: text }))
}

/// `GET /tokenizer_info`: the configuration that evaluation harnesses read to use the other two routes.
pub(crate) async fn tokenizer_info(State(state): State<Arc<ServerState>>) -> Json<TokenizerInfoReply> {
    let mut others = state.generator.tokenizer().configuration().clone();
    let class = others.remove("tokenizer_class");
    others.remove("chat_template");
    Json(TokenizerInfoReply {
        tokenizer_class: class.and_then(|class| class.as_str().map(str::to_owned)),
        chat_template: state.generator.template().map(|template| template.source().to_owned()),
        others,
    })
}

fn acquire_permit(state: &ServerState) -> Result<SemaphorePermit<'_>, ApiError> {
    state.tokenize_permits.try_acquire().map_err(|_none_left| ApiError::QueueFull {
        message: format!(
            "The server already has {MAX_TOKENIZE_REQUESTS} requests to tokenize or detokenize, its limit."
        ),
        retry_after: Some(RETRY_AFTER),
    })
}
