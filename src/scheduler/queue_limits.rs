//! The limits of the waiting queue. An empty queue takes a group of any size and length, since that group
//! could otherwise never be served.

use super::SchedulerConfig;
use crate::request::Reject;

/// Checks that `more` requests may join `waiting` ones.
///
/// # Errors
/// [`Reject::QueueFull`].
pub(crate) fn check_requests(config: &SchedulerConfig, waiting: usize, more: usize) -> Result<(), Reject> {
    let limit = config.max_queue_requests;
    if waiting > 0 && waiting + more > limit {
        return Err(Reject::QueueFull { waiting, limit });
    }
    Ok(())
}

/// Checks that `more` prompt tokens may join `waiting` ones.
///
/// # Errors
/// [`Reject::QueueTokensFull`].
pub(crate) fn check_tokens(config: &SchedulerConfig, waiting: usize, more: usize) -> Result<(), Reject> {
    let limit = config.max_queue_tokens;
    if waiting > 0 && waiting + more > limit {
        return Err(Reject::QueueTokensFull { waiting, limit });
    }
    Ok(())
}
