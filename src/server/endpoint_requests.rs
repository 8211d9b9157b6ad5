//! Reads the body of a route that batches have too: the validated request, and the form of its reply.

use super::error::ApiError;
use super::fields::Fields;
use super::reply_builder::ReplyFormat;
use super::reply_writer::ReplyKind;
use super::validate::{self, Limits, ValidRequest};
use crate::batch::Endpoint;

/// Validates a body. `seed` is the seed if the client sets none.
///
/// # Errors
/// 400, or 404 for an unknown model.
pub(super) fn read(
    endpoint: Endpoint,
    fields: Fields,
    limits: &Limits,
    seed: u64,
) -> Result<(ValidRequest, ReplyKind), ApiError> {
    match endpoint {
        Endpoint::Chat if limits.scoring.is_some() => {
            let (valid, plan) = validate::scored_chat(fields, limits)?;
            Ok((valid, ReplyKind::Score(Box::new(plan))))
        }
        Endpoint::Chat => {
            let valid = validate::chat(fields, limits, seed)?;
            Ok((valid, ReplyKind::Completion(ReplyFormat::Chat)))
        }
        Endpoint::Completions => {
            let valid = validate::completion(fields, limits, seed)?;
            Ok((valid, ReplyKind::Completion(ReplyFormat::Text)))
        }
        Endpoint::Reward => {
            let (valid, plan) = validate::reward(fields, limits)?;
            Ok((valid, ReplyKind::Score(Box::new(plan))))
        }
    }
}
