//! The parameters by which a device samples the next token of a row.

/// Sampling parameters of one row of logits.
#[derive(Debug, Clone)]
pub struct SampleRow<'a> {
    /// 0 is greedy.
    pub temperature: f32,
    /// 1 keeps all tokens.
    pub top_p: f32,
    /// 0 keeps all tokens.
    pub top_k: u32,
    /// 0 keeps all tokens.
    pub min_p: f32,
    /// 1 turns this penalty off.
    pub repetition_penalty: f32,
    /// 0 turns this penalty off.
    pub presence_penalty: f32,
    /// 0 turns this penalty off.
    pub frequency_penalty: f32,
    /// Pairs of an id and the bias added to its logit.
    pub logit_bias: &'a [(u32, f32)],
    /// Masked ids.
    pub barred: &'a [u32],
    /// A bit for each id of the vocabulary, in words of 32 ids, lowest bit first; ids whose bit is 0 are
    /// masked. `None` masks none.
    pub allowed: Option<&'a [u32]>,
    /// Tokens of the prompt, for the repetition penalty, in any order and possibly repeated.
    pub prompt: &'a [u32],
    /// Pairs of an id and its number of occurrences among the generated tokens.
    pub output: &'a [(u32, u32)],
    /// The seed; `seed` and `position` together are the key of the random number.
    pub seed: u64,
    /// The position that the sampled token will have.
    pub position: u32,
    /// Number of alternatives to report; `None` for no log-probability at all.
    pub logprobs: Option<u8>,
    /// The index at which the token is kept for [`super::Token::Last`]. Rows of a call with the same slot
    /// belong to one sequence that feeds drafts; any of their tokens is kept, since none is read.
    pub slot: u32,
}

/// Candidates per row in a rank's shortlist, and the largest top-k of rows that are sampled from shortlists.
pub const SHORTLIST: usize = 64;

impl SampleRow<'_> {
    /// Whether the [`SHORTLIST`] largest logits of each rank determine the sampled token.
    pub fn is_short(&self) -> bool {
        // All fields are named, so that a new one that needs all logits cannot be forgotten here.
        let Self {
            temperature,
            top_k,
            logprobs,
            top_p: _,
            min_p: _,
            repetition_penalty: _,
            presence_penalty: _,
            frequency_penalty: _,
            logit_bias: _,
            barred: _,
            allowed: _,
            prompt: _,
            output: _,
            seed: _,
            position: _,
            slot: _,
        } = self;
        let few = *temperature == 0.0 || (1..=SHORTLIST as u32).contains(top_k);
        few && logprobs.is_none()
    }
}
