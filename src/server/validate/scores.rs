//! Validation of the bodies of `/v1/reward`, `/pooling`, `/classify` and `/get_reward`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::conversations::{conversation, ends};
use super::scored_texts::{answered, numbers, text_prompts, text_subject, texts};
use super::{Limits, ValidRequest, chat, priority, served_model, tenant};
use crate::generation::{Ask, Prompts};
use crate::server::error::ApiError;
use crate::server::fields::{Fields, missing, wrong_type};
use crate::server::reward::scoring::Scoring;
use crate::server::reward::types::{
    GetRewardWire, INPUT, PROMPT, PoolingWire, RewardWire, ScoreFields, TEXTS,
};
use crate::server::reward::writer::{ScoreForm, ScorePlan, Subject};
use crate::server::types::CommonFields;

/// The prompts of a request, before they are put together with its other fields.
struct Scored {
    form: ScoreForm,
    prompts: Prompts,
    subjects: Vec<Subject>,
    weights: Option<Map<String, Value>>,
}

/// Validates the body of `POST /v1/reward`.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub(crate) fn reward(fields: Fields, limits: &Limits) -> Result<(ValidRequest, ScorePlan), ApiError> {
    let scoring = limits.must_score()?;
    let RewardWire { messages, messages_list, prompt, answers, every_turn, metadata: _, mut common } =
        RewardWire::read(fields)?;
    let ignored = &mut common.ignored;
    let conversations = match (messages, messages_list, prompt, answers) {
        (Some(items), None, None, None) => vec![conversation("messages", &items, ignored, limits)?],
        (None, Some(list), None, None) => {
            let one = |(i, items): (usize, Value)| {
                let path = format!("messages_list[{i}]");
                let Value::Array(items) = items else {
                    return Err(wrong_type(&path, "an array of messages", &items));
                };
                conversation(&path, &items, ignored, limits)
            };
            list.into_iter().enumerate().map(one).collect::<Result<_, _>>()?
        }
        (None, None, Some(prompt), Some(answers)) => answered(prompt, answers, ignored, limits)?,
        (None, None, Some(_), None) => return Err(missing("answers", "an array of answers")),
        (None, None, None, Some(_)) => return Err(missing("prompt", PROMPT)),
        (None, None, None, None) => {
            return Err(missing("messages", "an array of messages, or messages_list, or prompt and answers"));
        }
        (messages, list, prompt, _) => {
            let second = match (prompt.is_some(), messages.is_some() && list.is_some()) {
                (_, true) => "messages_list",
                (true, _) => "prompt",
                _ => "answers",
            };
            let text = "expected one of messages, messages_list, and prompt with answers, got several";
            return Err(ApiError::invalid(second, text));
        }
    };
    let every_turn = every_turn.unwrap_or(false);
    let kwargs = chat::kwargs(common.chat_template_kwargs.as_ref())?;
    let (prompts, subjects) = ends(conversations, every_turn, kwargs, limits)?;
    let weights = common.weights.take();
    let scored = Scored { form: ScoreForm::Reward { every_turn }, prompts, subjects, weights };
    scored.finish(common, scoring, limits)
}

/// Validates the body of `POST /pooling`.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub(crate) fn pooling(fields: Fields, limits: &Limits) -> Result<(ValidRequest, ScorePlan), ApiError> {
    pooled(fields, limits, |attributes| ScoreForm::Pooling { attributes })
}

/// Validates the body of `POST /classify`.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub(crate) fn classify(fields: Fields, limits: &Limits) -> Result<(ValidRequest, ScorePlan), ApiError> {
    pooled(fields, limits, |attributes| ScoreForm::Classify { attributes })
}

fn pooled(
    fields: Fields,
    limits: &Limits,
    form: fn(bool) -> ScoreForm,
) -> Result<(ValidRequest, ScorePlan), ApiError> {
    let scoring = limits.must_score()?;
    let PoolingWire { input, messages, return_attributes, add_special_tokens, metadata: _, mut common } =
        PoolingWire::read(fields)?;
    let kwargs = chat::kwargs(common.chat_template_kwargs.as_ref())?;
    let (prompts, subjects) = match (input, messages) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("input", "expected either input or messages, got both"));
        }
        (None, None) => return Err(missing("input", &format!("{INPUT}, or messages instead"))),
        (None, Some(items)) => {
            let read = conversation("messages", &items, &mut common.ignored, limits)?;
            ends(vec![read], false, kwargs, limits)?
        }
        (Some(input), None) => match numbers(&input, limits.vocab_size)? {
            Some(ids) => {
                let subjects = (0..ids.len()).map(|i| text_subject("input", ids.len(), i)).collect();
                (Prompts::Ids(ids), subjects)
            }
            None => {
                let texts = texts("input", input, INPUT)?;
                text_prompts(texts, add_special_tokens.unwrap_or(true), kwargs, limits)?
            }
        },
    };
    let weights = common.weights.take();
    let form = form(return_attributes.unwrap_or(false));
    Scored { form, prompts, subjects, weights }.finish(common, scoring, limits)
}

/// Validates the body of `POST /get_reward`.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub(crate) fn get_reward(fields: Fields, limits: &Limits) -> Result<(ValidRequest, ScorePlan), ApiError> {
    let scoring = limits.must_score()?;
    let GetRewardWire { query, prompts, mut common } = GetRewardWire::read(fields)?;
    let mut queries = texts("query", query.ok_or_else(|| missing("query", TEXTS))?, TEXTS)?;
    if let Some(prompts) = prompts {
        let prompts = texts("prompts", prompts, TEXTS)?;
        if prompts.len() != queries.len() {
            let text =
                format!("expected {} prompts, one for each query, got {}", queries.len(), prompts.len());
            return Err(ApiError::invalid("prompts", text));
        }
        for (query, prompt) in queries.iter_mut().zip(prompts) {
            query.prompt = Some(prompt.text);
        }
    }
    let kwargs = chat::kwargs(common.chat_template_kwargs.as_ref())?;
    let (prompts, subjects) = text_prompts(queries, true, kwargs, limits)?;
    let weights = common.weights.take();
    Scored { form: ScoreForm::GetReward, prompts, subjects, weights }.finish(common, scoring, limits)
}

impl Scored {
    /// Validates the shared fields and puts the request together.
    fn finish(
        self,
        common: ScoreFields,
        scoring: Arc<Scoring>,
        limits: &Limits,
    ) -> Result<(ValidRequest, ScorePlan), ApiError> {
        let Self { form, prompts, subjects, weights } = self;
        let weights = scoring.weights_of(weights.as_ref())?;
        finish(common.into_common(), prompts, ScorePlan { form, scoring, weights, subjects }, limits)
    }
}

/// Validates the fields that requests for an answer have too, and puts the request together.
pub(super) fn finish(
    wire: CommonFields,
    prompts: Prompts,
    plan: ScorePlan,
    limits: &Limits,
) -> Result<(ValidRequest, ScorePlan), ApiError> {
    if let (true, Some(name)) = (limits.reject_unknown_fields, wire.ignored.first()) {
        return Err(ApiError::unsupported(name, "this field is unknown or has no effect here"));
    }
    let model = served_model(wire.model.clone(), limits)?;
    let ask = Ask {
        priority: priority(&wire, limits)?,
        tenant: tenant(wire.user),
        cache_salt: wire.cache_salt.map(Arc::from),
        ..Ask::scores(prompts)
    };
    let valid = ValidRequest {
        model,
        ask,
        timeout: wire.timeout.map(Duration::from_secs_f64),
        stream: false,
        include_usage: false,
        continuous_usage: false,
        names_ids: false,
        include_cost: wire.return_cost.unwrap_or(false),
        logprobs: false,
        grammar_path: String::new(),
        ignored: wire.ignored,
    };
    Ok((valid, plan))
}
