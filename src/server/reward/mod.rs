//! Scores of a model with a reward head: `/v1/reward`, `/pooling`, `/classify`, `/get_reward`, and
//! `/v1/chat/completions` as NVIDIA's hosted reward models answer it. `scoring` makes a score of the head's
//! values, `types` has the request fields, `templated_text` reads turns out of text, `writer` writes replies.
//! No file here knows HTTP.

pub(super) mod reply;
pub(super) mod scoring;
pub(super) mod templated_text;
pub(super) mod types;
pub(super) mod writer;
