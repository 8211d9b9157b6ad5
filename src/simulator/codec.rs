//! Requests and events as bytes: numbers in base 128, least significant part first, with a bit that says that more
//! follow; floats as their four bytes.

use std::sync::Arc;

use crate::engine::recorder::{Event, RecordedRow, Timed};
use crate::request::{Request, SamplingParams, StopRules, Tenant};
use crate::scheduler::{Policy, RequestId, SchedulerConfig};

const SUBMIT: u8 = 1;
const ABORT: u8 = 2;
const PLAN: u8 = 3;
const COMMIT: u8 = 4;
const NO_PLAN: u8 = 5;

/// Bytes in the making.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

/// Bytes being read. Every method fails where they end too early or make no sense.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Writer {
    pub(super) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub(super) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn float(&mut self, number: f32) {
        self.0.extend(number.to_le_bytes());
    }

    /// 0 for none, else one more than it is.
    fn option(&mut self, number: Option<u64>) {
        self.number(number.map_or(0, |number| number + 1));
    }

    fn ids(&mut self, ids: &[u32]) {
        self.number(ids.len() as u64);
        ids.iter().for_each(|id| self.number(u64::from(*id)));
    }

    pub(super) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend(text.as_bytes());
    }

    pub(super) fn config(&mut self, c: &SchedulerConfig) {
        let sizes = [
            c.max_num_seqs,
            c.max_num_batched_tokens,
            c.max_model_len,
            c.num_blocks,
            c.vocab_size,
            c.max_queue_requests,
            c.max_queue_tokens,
        ];
        sizes.iter().for_each(|size| self.number(*size as u64));
        self.byte(u8::from(c.prefix_caching));
        self.number(c.policy.ageing_steps);
        self.number(u64::from(c.policy.max_preemptions));
        self.float(c.policy.kv_reserve);
    }

    pub(super) fn event(&mut self, (at, event): &Timed) {
        match event {
            Event::Submit(group) => {
                self.head(SUBMIT, *at);
                self.number(group.len() as u64);
                for (id, request) in group {
                    self.number(id.0);
                    self.request(request);
                }
            }
            Event::Abort(id) => {
                self.head(ABORT, *at);
                self.number(id.0);
            }
            Event::Plan { id, fingerprint } => {
                self.head(PLAN, *at);
                self.number(*id);
                self.0.extend(fingerprint.to_le_bytes());
            }
            Event::NoPlan => self.head(NO_PLAN, *at),
            Event::Commit { id, rows } => {
                self.head(COMMIT, *at);
                self.number(*id);
                self.number(rows.len() as u64);
                for row in rows {
                    // Most rows have one token and nothing else: one number.
                    let first = row.tokens.first().map_or(0, |token| u64::from(*token) + 1);
                    self.number(first << 1 | u64::from(odd(row)));
                    if odd(row) {
                        let more = row.tokens.get(1..).unwrap_or_default();
                        self.byte(u8::from(row.non_finite) | u8::from(!more.is_empty()) << 1);
                        self.number(row.scores as u64);
                        if !more.is_empty() {
                            self.ids(more);
                        }
                    }
                }
            }
        }
    }

    fn head(&mut self, kind: u8, at: u64) {
        self.byte(kind);
        self.number(at);
    }

    fn request(&mut self, request: &Request) {
        self.ids(&request.prompt);
        self.sampling(&request.sampling);
        self.number(u64::from(request.stop.max_tokens));
        self.ids(&request.stop.stop_ids);
        self.number(u64::from(request.priority.cast_unsigned()));
        self.text(&request.tenant.name);
        self.number(u64::from(request.tenant.weight));
        self.byte(u8::from(request.cache_salt.is_some()));
        self.text(request.cache_salt.as_deref().unwrap_or_default());
        self.option(request.prompt_logprobs.map(u64::from));
    }

    fn sampling(&mut self, p: &SamplingParams) {
        [p.temperature, p.top_p, p.min_p].iter().for_each(|x| self.float(*x));
        [p.repetition_penalty, p.presence_penalty, p.frequency_penalty].iter().for_each(|x| self.float(*x));
        self.number(u64::from(p.top_k));
        self.number(p.logit_bias.len() as u64);
        for (id, bias) in &p.logit_bias {
            self.number(u64::from(*id));
            self.float(*bias);
        }
        self.number(p.seed);
        self.option(p.logprobs.map(u64::from));
        self.number(u64::from(p.min_tokens));
        self.ids(&p.barred);
    }
}

/// Whether a row has more than one token at most.
fn odd(row: &RecordedRow) -> bool {
    row.non_finite || row.scores > 0 || row.tokens.len() > 1
}

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                return None;
            }
            number |= part << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Option<T> {
        self.number().and_then(|number| T::try_from(number).ok())
    }

    /// Of things that have a byte at least each, so that a wrong number cannot ask for all memory.
    pub(super) fn count(&mut self) -> Option<usize> {
        self.small().filter(|count| *count <= self.0.len())
    }

    fn float(&mut self) -> Option<f32> {
        self.bytes().map(f32::from_le_bytes)
    }

    fn option<T: TryFrom<u64>>(&mut self) -> Option<Option<T>> {
        match self.number()? {
            0 => Some(None),
            more => T::try_from(more - 1).ok().map(Some),
        }
    }

    fn flag(&mut self) -> Option<bool> {
        self.byte().filter(|byte| *byte < 2).map(|byte| byte == 1)
    }

    fn ids(&mut self) -> Option<Vec<u32>> {
        let count = self.count()?;
        (0..count).map(|_| self.small()).collect()
    }

    pub(super) fn text(&mut self) -> Option<String> {
        let length = self.count()?;
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    pub(super) fn config(&mut self) -> Option<SchedulerConfig> {
        let config = SchedulerConfig {
            max_num_seqs: self.small()?,
            max_num_batched_tokens: self.small()?,
            max_model_len: self.small()?,
            num_blocks: self.small()?,
            vocab_size: self.small()?,
            max_queue_requests: self.small()?,
            max_queue_tokens: self.small()?,
            prefix_caching: self.flag()?,
            policy: Policy {
                ageing_steps: self.number()?,
                max_preemptions: self.small()?,
                kv_reserve: self.float()?,
            },
        };
        let c = &config;
        let sizes = [c.max_num_seqs, c.max_num_batched_tokens, c.max_model_len, c.num_blocks, c.vocab_size];
        // A scheduler has a table of its blocks and its slots.
        let sound = sizes.iter().all(|size| (1..1 << 32).contains(size));
        (sound && (0.0..=1.0).contains(&c.policy.kv_reserve)).then_some(config)
    }

    pub(super) fn event(&mut self) -> Option<Timed> {
        let (kind, at) = (self.byte()?, self.number()?);
        let event = match kind {
            SUBMIT => {
                let count = self.count()?;
                let one = |_| Some((RequestId(self.number()?), self.request()?));
                Event::Submit((0..count).map(one).collect::<Option<_>>()?)
            }
            ABORT => Event::Abort(RequestId(self.number()?)),
            PLAN => Event::Plan { id: self.number()?, fingerprint: self.bytes().map(u64::from_le_bytes)? },
            NO_PLAN => Event::NoPlan,
            COMMIT => {
                let (id, count) = (self.number()?, self.count()?);
                Event::Commit { id, rows: (0..count).map(|_| self.recorded_row()).collect::<Option<_>>()? }
            }
            _ => return None,
        };
        Some((at, event))
    }

    fn recorded_row(&mut self) -> Option<RecordedRow> {
        let number = self.number()?;
        let mut row = RecordedRow::default();
        if let Some(first) = (number >> 1).checked_sub(1) {
            row.tokens.push(u32::try_from(first).ok()?);
        }
        if number & 1 == 1 {
            let flags = self.byte().filter(|flags| *flags < 4)?;
            (row.non_finite, row.scores) = (flags & 1 == 1, self.small()?);
            if flags & 2 == 2 {
                row.tokens.extend(self.ids()?);
            }
        }
        Some(row)
    }

    fn request(&mut self) -> Option<Request> {
        Some(Request {
            prompt: self.ids()?.into(),
            sampling: Arc::new(self.sampling()?),
            stop: StopRules { max_tokens: self.small()?, stop_ids: self.ids()? },
            priority: self.small::<u32>()?.cast_signed(),
            tenant: Tenant { name: self.text()?.into(), weight: self.small()? },
            cache_salt: {
                let there = self.flag()?;
                let salt = self.text()?;
                there.then(|| Arc::from(salt))
            },
            prompt_logprobs: self.option()?,
        })
    }

    fn sampling(&mut self) -> Option<SamplingParams> {
        Some(SamplingParams {
            temperature: self.float()?,
            top_p: self.float()?,
            min_p: self.float()?,
            repetition_penalty: self.float()?,
            presence_penalty: self.float()?,
            frequency_penalty: self.float()?,
            top_k: self.small()?,
            logit_bias: {
                let count = self.count()?;
                (0..count).map(|_| Some((self.small()?, self.float()?))).collect::<Option<_>>()?
            },
            seed: self.number()?,
            logprobs: self.option()?,
            min_tokens: self.small()?,
            barred: self.ids()?,
        })
    }
}
