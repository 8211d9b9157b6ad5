//! Validation of chat completions to a model that scores: the fields that a score has no use for.

use serde_json::Value;

use super::conversations::{conversation, ends};
use super::scores::finish;
use super::{Limits, ValidRequest, chat, tools};
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::reward::writer::{ScoreForm, ScorePlan};
use crate::server::types::ChatWire;

/// Validates the body of `POST /v1/chat/completions` to a model that scores.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub(crate) fn scored_chat(fields: Fields, limits: &Limits) -> Result<(ValidRequest, ScorePlan), ApiError> {
    let scoring = limits.must_score()?;
    let mut wire = ChatWire::read(fields)?;
    refuse_generation(&wire)?;
    if tools::read(&mut wire, limits.tools)?.is_some() {
        return Err(not_supported("tools"));
    }
    name_unused(&mut wire);
    chat::template_fields(&mut wire, &limits.template_fields);
    let items = wire.messages.take().unwrap_or_default();
    let read = conversation("messages", &items, &mut wire.common.ignored, limits)?;
    let kwargs = chat::kwargs(wire.chat_template_kwargs.as_ref())?;
    let (prompts, subjects) = ends(vec![read], false, kwargs, limits)?;
    // The reply has the values and no score.
    let plan = ScorePlan { form: ScoreForm::Chat, scoring, weights: Vec::new(), subjects };
    finish(wire.common, prompts, plan, limits)
}

/// Refuses the fields of a chat completion that ask for what a score is not.
fn refuse_generation(wire: &ChatWire) -> Result<(), ApiError> {
    let common = &wire.common;
    if common.stream == Some(true) {
        let text = "not supported: a score is one reply; expected false, got true";
        return Err(ApiError::unsupported("stream", text));
    }
    let several = |count: Option<i128>| count.is_some_and(|count| count > 1);
    let some = |list: &Option<Vec<Value>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let asked = [
        ("stream_options", common.stream_options.is_some()),
        ("n", several(common.n)),
        ("best_of", several(common.best_of)),
        ("tools", some(&wire.tools)),
        ("continue_final_message", wire.continue_final_message == Some(true)),
        ("add_generation_prompt", wire.add_generation_prompt == Some(true)),
        ("logit_bias", common.logit_bias.as_ref().is_some_and(|bias| !bias.is_empty())),
        ("bad_words", some(&common.bad_words)),
        ("allowed_token_ids", some(&common.allowed_token_ids)),
        ("prompt_logprobs", common.prompt_logprobs.is_some()),
        ("return_token_ids", common.return_token_ids == Some(true)),
    ];
    if let Some((name, _)) = asked.into_iter().find(|(_, asked)| *asked) {
        return Err(not_supported(name));
    }
    if common.truncate_prompt_tokens.is_some() {
        let text = "not supported: a conversation is never cut, because its end is where it is scored";
        return Err(ApiError::unsupported("truncate_prompt_tokens", text));
    }
    common.constraint.as_ref().map_or(Ok(()), |constraint| Err(not_supported(&constraint.path)))
}

fn not_supported(path: &str) -> ApiError {
    ApiError::unsupported(path, "not supported by a model that scores and does not generate")
}

/// Names the fields of a chat completion that shape an answer as ignored. Clients send them to every model.
fn name_unused(wire: &mut ChatWire) {
    let common = &wire.common;
    let given = [
        ("max_completion_tokens", wire.max_completion_tokens.is_some()),
        ("max_tokens", wire.max_tokens.is_some()),
        ("top_logprobs", wire.top_logprobs.is_some_and(|top| top > 0)),
        ("temperature", common.temperature.is_some()),
        ("top_p", common.top_p.is_some()),
        ("top_k", common.top_k.is_some()),
        ("min_p", common.min_p.is_some()),
        ("presence_penalty", common.presence_penalty.is_some()),
        ("frequency_penalty", common.frequency_penalty.is_some()),
        ("repetition_penalty", common.repetition_penalty.is_some()),
        ("seed", common.seed.is_some()),
        ("stop", common.stop.is_some()),
        ("stop_token_ids", common.stop_token_ids.is_some()),
        ("min_tokens", common.min_tokens.is_some()),
        ("ignore_eos", common.ignore_eos.is_some()),
        ("skip_special_tokens", common.skip_special_tokens.is_some()),
        ("include_stop_str_in_output", common.include_stop_str_in_output.is_some()),
        ("return_tokens_as_token_ids", common.return_tokens_as_token_ids.is_some()),
        ("prompt_logprobs_start", common.prompt_logprobs_start.is_some()),
    ];
    let names = given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name.to_owned());
    wire.common.ignored.extend(names);
}
