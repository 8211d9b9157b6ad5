//! A step: the tables that its kernels read, in one buffer on the device, and the results of sampling.

use std::cmp::Reverse;

use super::sample::Sampled;
use super::{Buffer, Driver};
use crate::device::attention_tiles::{DECODE_ROWS, PREFILL_ROWS, SPLIT_TOKENS};
use crate::device::{BLOCK_TOKENS, DeviceError, SPLIT_BLOCKS, Segment, StepCapacity, StepInputs, Token};

/// Added to a slot number that stands for the token sampled last in that slot.
const SLOT: u32 = 1 << 31;
/// Items of `attention_prefill` per row that the table is allocated for: the query rows of groups of at most
/// 96 heads, and the end of each sequence.
const PREFILLS_PER_ROW: usize = 2;

/// `AttentionItem` of `kernels/attention.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AttentionItem {
    row: u32,
    rows: u32,
    position: u32,
    first_block: u32,
    part: u32,
    entry: u32,
}
/// Words of an item.
const ITEM: usize = 6;
const _: () = assert!(size_of::<AttentionItem>() == 4 * ITEM);

/// The current step, and the results of sampling.
#[derive(Debug)]
pub struct Step {
    pub(super) tables: StepTables,
    pub(super) sampled: Sampled,
}

impl Step {
    pub(super) fn new(driver: &Driver, capacity: StepCapacity) -> Result<Self, DeviceError> {
        let tables = StepTables::new(driver, capacity.rows, capacity.max_positions)?;
        Ok(Self { tables, sampled: Sampled::new(driver, capacity)? })
    }
}

/// The tables of the current step.
#[derive(Debug)]
pub(super) struct StepTables {
    words: Buffer<u32>,
    /// Rows that operations compute: those of the tokens, or those of a graph.
    pub(super) rows: usize,
    /// Rows of the graph that runs the step; 0 without one.
    pub(super) graph_rows: usize,
    /// One more than the largest slot whose last token is an input; 0 for none.
    pub(super) slots: usize,
    pub(super) largest_block: usize,
    /// Items of `attention_decode`.
    pub(super) decodes: usize,
    /// Items of `attention_prefill`.
    pub(super) prefills: usize,
    max_rows: usize,
    /// The same in every step, since captured launches hold the addresses.
    starts: Starts,
    /// Reused, so that steps allocate nothing.
    tables: HostTables,
}

/// The first word of each table. Before them are the tables of one word per row, `max_rows` each, and the
/// number of decode items.
#[derive(Debug, Clone, Copy)]
struct Starts {
    decodes: usize,
    prefills: usize,
    blocks: usize,
}

/// The capacity of attention's scratch, and what a step needs to know about the cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entries {
    /// Entries of the scratch.
    pub(super) count: usize,
    /// Query heads per KV head.
    pub(super) group: usize,
    /// The block of padding rows.
    pub(super) spare_block: u32,
}

/// The tables on the host.
#[derive(Debug, Default)]
struct HostTables {
    positions: Vec<u32>,
    /// The cache block of each row's position.
    row_blocks: Vec<u32>,
    entries: Vec<u32>,
    decodes: Vec<AttentionItem>,
    prefills: Vec<AttentionItem>,
    blocks: Vec<u32>,
    /// Entries used so far. A decode row has one per split, a prefill row one.
    taken: u32,
    /// The tables of one word per row, one after the other.
    head: Vec<u32>,
}

impl StepTables {
    /// Allocates the tables of steps of at most `rows` rows, of sequences of at most `max_positions` tokens.
    fn new(driver: &Driver, rows: usize, max_positions: usize) -> Result<Self, DeviceError> {
        let splits = rows * max_positions.div_ceil(SPLIT_TOKENS);
        let decodes = 4 * rows + 2;
        let prefills = decodes + ITEM * splits;
        let blocks = prefills + ITEM * rows * PREFILLS_PER_ROW;
        let words = driver.buffer(blocks + rows * max_positions.div_ceil(BLOCK_TOKENS))?;
        Ok(Self {
            words,
            rows: 0,
            graph_rows: 0,
            slots: 0,
            largest_block: 0,
            decodes: 0,
            prefills: 0,
            max_rows: rows,
            starts: Starts { decodes, prefills, blocks },
            tables: HostTables::default(),
        })
    }

    /// Makes `inputs` the current step.
    pub(super) fn begin(&mut self, inputs: &StepInputs, entries: Entries) -> Result<(), DeviceError> {
        let rows = inputs.tokens.len().max(inputs.graph_rows);
        assert!(rows <= self.max_rows, "{rows} rows exceed the {} of the buffers", self.max_rows);
        let tables = &mut self.tables;
        tables.clear();
        let mut left = rows;
        for segment in &inputs.segments {
            left = left.saturating_sub(segment.len);
            tables.add(segment, entries, left);
        }
        assert_eq!(tables.positions.len(), inputs.tokens.len(), "segments must cover the rows");
        for first in inputs.tokens.len()..rows {
            left -= 1;
            let spare = Segment { first, len: 1, position: 0, blocks: [entries.spare_block].into() };
            tables.add(&spare, entries, left);
        }
        tables.entries.push(tables.taken);
        tables.sort(entries.group);
        self.rows = rows;
        self.graph_rows = inputs.graph_rows;
        let slot = |token: &Token| if let Token::Last { slot } = token { *slot as usize + 1 } else { 0 };
        self.slots = inputs.tokens.iter().map(slot).max().unwrap_or(0);
        self.largest_block = tables.blocks.iter().copied().max().unwrap_or(0) as usize;
        (self.decodes, self.prefills) = (tables.decodes.len(), tables.prefills.len());
        self.upload(&inputs.tokens)
    }

    /// Copies the tables to the device.
    fn upload(&mut self, tokens: &[Token]) -> Result<(), DeviceError> {
        let (rows, tables) = (self.max_rows, &mut self.tables);
        tables.head.clear();
        tables.head.resize(4 * rows + 2, 0);
        for (word, token) in tables.head.iter_mut().zip(tokens) {
            *word = match token {
                Token::Id(id) => *id,
                Token::Last { slot } => SLOT + slot,
            };
        }
        for (start, table) in
            [(rows, &tables.positions), (2 * rows, &tables.row_blocks), (3 * rows, &tables.entries)]
        {
            tables.head[start..start + table.len()].copy_from_slice(table);
        }
        tables.head[4 * rows + 1] = tables.decodes.len() as u32;
        self.words.write(0, &tables.head)?;
        self.words.write(self.starts.decodes, bytemuck::cast_slice(&tables.decodes))?;
        self.words.write(self.starts.prefills, bytemuck::cast_slice(&tables.prefills))?;
        self.words.write(self.starts.blocks, &tables.blocks)
    }

    /// u32 \[rows\]: token ids, or a slot + 2³¹.
    pub(super) fn tokens(&self) -> u64 {
        self.words.address()
    }

    /// u32 \[rows\].
    pub(super) fn positions(&self) -> u64 {
        self.words.at(self.max_rows)
    }

    /// u32 \[rows\]: the cache block of each row's position.
    pub(super) fn row_blocks(&self) -> u64 {
        self.words.at(2 * self.max_rows)
    }

    /// u32 \[rows + 1\]: the index of each row's first entry of attention's scratch.
    pub(super) fn entries(&self) -> u64 {
        self.words.at(3 * self.max_rows)
    }

    /// u32: the number of decode items.
    pub(super) fn decode_count(&self) -> u64 {
        self.words.at(4 * self.max_rows + 1)
    }

    /// `AttentionItem` \[decodes\].
    pub(super) fn decode_items(&self) -> u64 {
        self.words.at(self.starts.decodes)
    }

    /// `AttentionItem` \[prefills\].
    pub(super) fn prefill_items(&self) -> u64 {
        self.words.at(self.starts.prefills)
    }

    /// u32: the block ids of all segments.
    pub(super) fn blocks(&self) -> u64 {
        self.words.at(self.starts.blocks)
    }
}

impl HostTables {
    fn clear(&mut self) {
        self.positions.clear();
        self.row_blocks.clear();
        self.entries.clear();
        self.decodes.clear();
        self.prefills.clear();
        self.blocks.clear();
        self.taken = 0;
    }

    /// Adds one sequence's rows. `left` more rows follow, each of which needs at least one entry.
    fn add(&mut self, segment: &Segment, entries: Entries, left: usize) {
        assert_eq!(segment.first, self.positions.len(), "segments must follow one another");
        let end = segment.position + segment.len;
        let used = end.div_ceil(BLOCK_TOKENS);
        assert!(segment.blocks.len() >= used, "a segment that ends in block {used} has fewer");
        let item = AttentionItem {
            row: segment.first as u32,
            rows: segment.len as u32,
            position: segment.position as u32,
            first_block: self.blocks.len() as u32,
            part: 0,
            entry: self.taken,
        };
        for position in segment.position..end {
            self.positions.push(position as u32);
            self.row_blocks.push(segment.blocks[position / BLOCK_TOKENS]);
        }
        self.blocks.extend_from_slice(&segment.blocks[..used]);
        let splits: usize = (segment.position..end).map(|position| position / SPLIT_TOKENS + 1).sum();
        let free = entries.count - item.entry as usize;
        // The decode kernel computes splits in parallel, which is faster for long contexts.
        if segment.len <= DECODE_ROWS && splits + left <= free {
            self.add_decodes(segment, item);
        } else {
            let needed = segment.len + left;
            assert!(needed <= free, "{needed} rows need an entry each; {free} are free");
            self.taken += item.rows;
            self.entries.extend(item.entry..self.taken);
            let parts = (0..segment.len * entries.group).step_by(PREFILL_ROWS);
            self.prefills.extend(parts.map(|part| AttentionItem { part: part as u32, ..item }));
        }
    }

    /// Puts the longest items first, so that no long one starts when the others end. The order of items has
    /// no effect on results.
    fn sort(&mut self, group: usize) {
        let length = |item: &AttentionItem| {
            let blocks = item.position / BLOCK_TOKENS as u32 + 1 - item.part * SPLIT_BLOCKS as u32;
            Reverse(blocks.min(SPLIT_BLOCKS as u32))
        };
        self.decodes.sort_unstable_by_key(length);
        let end = |item: &AttentionItem| {
            let last = (item.part as usize + PREFILL_ROWS).min(item.rows as usize * group) - 1;
            Reverse(item.position as usize + last / group)
        };
        self.prefills.sort_unstable_by_key(end);
    }

    fn add_decodes(&mut self, segment: &Segment, mut item: AttentionItem) {
        item.rows = 1;
        for _ in 0..segment.len {
            self.entries.push(item.entry);
            let splits = item.position / SPLIT_TOKENS as u32 + 1;
            self.decodes.extend((0..splits).map(|part| AttentionItem { part, ..item }));
            item.row += 1;
            item.position += 1;
            item.entry += splits;
        }
        self.taken = item.entry;
    }
}
