//! A model of a rank with its buffers and its KV cache: forward passes and sampling.

use std::ops::Range;

use super::memory::graph_rows;
use crate::comm::Communicator;
use crate::device::{
    CacheSpec, DECODE_ROWS, Device, DeviceError, Graph, SampleRow, SampleSource, StepInputs,
};
use crate::model::{HeadRows, LOGIT_ROWS, Model, Pass, RowsToSample, Workspace};

/// A model with its buffers and its KV cache.
pub(super) struct Decoder<D: Device> {
    pub(super) model: Model<D>,
    pub(super) space: Workspace<D>,
    cache: D::Cache,
    /// Ids below this may be sampled.
    pub(super) vocab: usize,
}

/// The connection of a decoder with those of the other ranks, and the graphs that use it.
pub(super) struct Links<C> {
    // Fields are dropped in this order: NCCL waits for the graphs that use it.
    /// CUDA graphs of all layers for decode steps, fewest rows first.
    graphs: Vec<CapturedStep>,
    pub(super) comm: C,
}

/// A graph of all layers for decode steps.
struct CapturedStep {
    /// The most rows of the step.
    rows: usize,
    graph: Graph,
}

/// The largest steps of a decoder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Tokens.
    pub(super) rows: usize,
    /// Sequences.
    pub(super) slots: usize,
    /// Ids that may be sampled are below this.
    pub(super) vocab: usize,
    /// Tokens from which a step is computed as two batches, if any is.
    pub(super) two_batch_tokens: Option<usize>,
}

/// A row of a forward pass for which a token is sampled.
pub(super) struct ToSample<'a> {
    /// The index of the plan's row.
    pub(super) row: usize,
    /// The row of the residual stream.
    pub(super) residual: u32,
    pub(super) sampling: SampleRow<'a>,
}

/// Rows of one product with the LM head that are sampled at a time.
struct Piece {
    rows: Range<usize>,
    /// Whether their parameters need only shortlists.
    is_short: bool,
}

/// The pieces of `count` rows, of which the first `short` need only shortlists.
fn pieces(count: usize, short: usize) -> Vec<Piece> {
    let short = short.min(count);
    let of_kind = |rows: Range<usize>, is_short| {
        let end = rows.end;
        rows.step_by(LOGIT_ROWS)
            .map(move |first| Piece { rows: first..end.min(first + LOGIT_ROWS), is_short })
    };
    of_kind(0..short, true).chain(of_kind(short..count, false)).collect()
}

impl<C> Links<C> {
    pub(super) fn new(comm: C) -> Self {
        Self { graphs: Vec::new(), comm }
    }
}

impl<D: Device> Decoder<D> {
    /// Allocates the buffers and the cache.
    pub(super) fn new(
        device: &D,
        model: Model<D>,
        cache: CacheSpec,
        limits: Limits,
    ) -> Result<Self, DeviceError> {
        let mut space = Workspace::new(device, &model, limits.rows, limits.slots)?;
        if let Some(tokens) = limits.two_batch_tokens {
            space = space.with_second_batch(device, &model, limits.rows, tokens)?;
        }
        let name = format!("KV cache of {} blocks", cache.blocks);
        let cache = device.cache(cache).map_err(|error| error.at(&name))?;
        let vocab = limits.vocab.min(model.vocab());
        Ok(Self { model, space, cache, vocab })
    }

    /// Captures decode steps of the row counts of [`graph_rows`], if device and communicator can.
    pub(super) fn capture<C: Communicator<D>>(
        &mut self,
        device: &D,
        links: &mut Links<C>,
        limits: Limits,
    ) -> Result<(), DeviceError> {
        if !(D::LAYOUT.captures() && C::CAPTURES) {
            return Ok(());
        }
        for rows in graph_rows(limits.slots.min(limits.rows)) {
            let pass = Pass { device, comm: &links.comm, cache: &mut self.cache };
            links.graphs.push(CapturedStep { rows, graph: self.model.capture(rows, &mut self.space, pass)? });
        }
        Ok(())
    }

    /// Runs all layers over a step, by replaying a graph if one fits.
    pub(super) fn forward<C: Communicator<D>>(
        &mut self,
        device: &D,
        links: &Links<C>,
        inputs: &mut StepInputs,
    ) -> Result<(), DeviceError> {
        let rows = inputs.tokens.len();
        let decodes = inputs.segments.iter().all(|segment| segment.len <= DECODE_ROWS);
        let fits = links.graphs.iter().find(|step| decodes && rows <= step.rows);
        if let Some(CapturedStep { rows, graph }) = fits {
            inputs.graph_rows = *rows;
            if self.model.replay(graph, inputs, &mut self.space, device)? {
                return Ok(());
            }
            inputs.graph_rows = 0;
        }
        let pass = Pass { device, comm: &links.comm, cache: &mut self.cache };
        self.model.forward(inputs, &mut self.space, pass)
    }

    /// Launches the sampling of tokens. Returns the plan's row of each token, by launch.
    pub(super) fn sample<C: Communicator<D>>(
        &mut self,
        device: &D,
        comm: &C,
        wanting: Vec<ToSample<'_>>,
    ) -> Result<Vec<Vec<usize>>, DeviceError> {
        // Ranks that share a vocabulary exchange only their largest logits where the sampling parameters
        // allow it, not all of them.
        let divided = self.space.shortlists.is_some();
        let (mut rows, whole): (Vec<_>, Vec<_>) =
            wanting.into_iter().partition(|wanted| divided && wanted.sampling.is_short());
        let short = rows.len();
        rows.extend(whole);
        let mut sampled = Vec::new();
        for (index, group) in rows.chunks(self.space.head_rows).enumerate() {
            let pieces = pieces(group.len(), short.saturating_sub(index * self.space.head_rows));
            let wanted: Vec<u32> = group.iter().map(|wanted| wanted.residual).collect();
            let in_pieces = pieces.len() > 1;
            self.model.lm_head(device, HeadRows { rows: &wanted, in_pieces }, &mut self.space)?;
            for Piece { rows, is_short } in pieces {
                if in_pieces {
                    self.model.select_logits(device, rows.clone(), &mut self.space)?;
                }
                let piece = &group[rows];
                self.sample_piece(device, comm, piece, is_short)?;
                sampled.push(piece.iter().map(|wanted| wanted.row).collect());
            }
        }
        Ok(sampled)
    }

    /// Launches the sampling of tokens from this rank's part of the logits. `is_short`: from shortlists.
    fn sample_piece<C: Communicator<D>>(
        &mut self,
        device: &D,
        comm: &C,
        piece: &[ToSample<'_>],
        is_short: bool,
    ) -> Result<(), DeviceError> {
        let rows: Vec<SampleRow<'_>> = piece.iter().map(|wanted| wanted.sampling.clone()).collect();
        let (space, vocab) = (&mut self.space, self.vocab);
        if is_short {
            self.model.shortlists(device, comm, &RowsToSample { sampling: &rows, vocab }, space)?;
            let lists = space.shortlists.as_ref().expect("a divided model has them");
            device.sample(SampleSource::Shortlists(&lists.all), &rows, &mut space.first.step)
        } else {
            self.model.gather_logits(device, comm, space)?;
            let source = SampleSource::Logits { logits: &space.logits, vocab };
            device.sample(source, &rows, &mut space.first.step)
        }
    }
}
