//! Rope, the cache and attention: decode of 1 to 16 sequences and chunks of 1 to 16 rows, with contexts of
//! 4,096 positions in all.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use octant::device::{
    ActQuant, AttentionLayer, BLOCK_TOKENS, CacheSpec, Device, DeviceError, FloatType, HeadShape, KvDtype,
    LayerKv, Rope, Segment, StepCapacity, StepInputs, Token,
};

use crate::inputs::{Identity, noise, rounded, rows_of};
use crate::rank::{ALL, ROWS, Rank};
use crate::report::{Bound, Case, Difference, Measure, Report, same_bits};

/// Lengths of the sequences: 4,096 positions in all. The first has nine splits of 256 positions; the others
/// end before, at and after ends of blocks and splits, and in their middle.
const LENGTHS: [usize; ROWS] = [2111, 1, 3, 64, 65, 127, 255, 256, 257, 300, 31, 128, 193, 97, 17, 191];
/// The sequence whose last positions are computed as a chunk.
const LONGEST: usize = 0;
/// KV blocks, more than the sequences have.
const BLOCKS: usize = 80;
/// Rows of the largest step.
const MOST_ROWS: usize = 512;
/// Multiplies queries, so that scores have a standard deviation of 2 and a row attends to some tens of
/// positions. With smaller scores a row would be the mean of all values, which a wrong score hardly changes.
const QUERY_SIZE: f32 = 6.0;

/// The cache's type, that of QKV rows, and the error that the headers of `kernels/attention_decode.cu` and
/// `kernels/attention_prefill.cu` allow, as a share of the largest value: probabilities are F16 or BF16.
struct Variant {
    name: &'static str,
    dtype: KvDtype,
    float_type: FloatType,
    kernel_error: f64,
}

const VARIANTS: [Variant; 2] = [
    Variant {
        name: "E4M3 cache, BF16 QKV",
        dtype: KvDtype::Fp8,
        float_type: FloatType::Bf16,
        kernel_error: 2e-3,
    },
    Variant {
        name: "BF16 cache, F32 QKV",
        dtype: KvDtype::Bf16,
        float_type: FloatType::F32,
        kernel_error: 2e-2,
    },
];

/// A unit in the last place of the largest value, as a share of it: of BF16, and of E4M3, whose largest value
/// is 448 and has a unit of 32. The outputs of both devices are rounded.
const BF16_UNIT: f64 = 1.0 / 128.0;
const E4M3_UNIT: f64 = 1.0 / 14.0;

/// Inputs that all devices have in common.
struct Inputs {
    variant: &'static Variant,
    heads: HeadShape,
    rope: Rope,
    kv: LayerKv,
    /// QKV rows of each sequence.
    sequences: Vec<Vec<f32>>,
}

impl Inputs {
    fn new(rank: &Rank, variant: &'static Variant) -> Self {
        let heads = rank.share.heads;
        let width = (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim;
        let rows = |(sequence, len): (usize, &usize)| {
            let mut rows = noise(sequence as u64, len * width);
            let queries =
                rows.chunks_exact_mut(width).flat_map(|row| &mut row[..heads.q_heads * heads.head_dim]);
            queries.for_each(|x| *x *= QUERY_SIZE);
            rounded(variant.float_type, rows)
        };
        let scale = |scale| if variant.dtype == KvDtype::Fp8 { scale } else { 1.0 };
        Self {
            variant,
            heads,
            rope: Rope { inv_freq: rank.share.inv_freq.clone() },
            kv: LayerKv { layer: 1, k_scale: scale(0.011), v_scale: scale(0.007) },
            sequences: LENGTHS.iter().enumerate().map(rows).collect(),
        }
    }

    /// Elements of a QKV row.
    fn width(&self) -> usize {
        (self.heads.q_heads + 2 * self.heads.kv_heads) * self.heads.head_dim
    }

    /// Elements of a row of the output.
    fn cols(&self) -> usize {
        self.heads.q_heads * self.heads.head_dim
    }
}

/// Consecutive positions of a sequence.
#[derive(Clone)]
struct Piece {
    sequence: usize,
    positions: Range<usize>,
}

/// The last position of a sequence.
fn decode_of(sequence: usize) -> Piece {
    Piece { sequence, positions: LENGTHS[sequence] - 1..LENGTHS[sequence] }
}

/// The last positions of the longest sequence.
fn chunk(rows: usize) -> Piece {
    Piece { sequence: LONGEST, positions: LENGTHS[LONGEST] - rows..LENGTHS[LONGEST] }
}

/// A device with the caches of all sequences.
struct Attention<'a, D: Device> {
    device: &'a D,
    inputs: &'a Inputs,
    cache: D::Cache,
    step: D::Step,
    blocks: Vec<Arc<[u32]>>,
    identity: Identity<D>,
}

impl<'a, D: Device> Attention<'a, D> {
    /// Fills the cache up to the position before the last of each sequence, in chunks of `chunk` rows. The
    /// sequences have blocks in ascending or descending order.
    fn new(device: &'a D, inputs: &'a Inputs, chunk: usize, descending: bool) -> Result<Self, DeviceError> {
        let mut ids: Vec<u32> = (0..BLOCKS as u32).collect();
        if descending {
            ids.reverse();
        }
        let mut first = 0;
        let mut own = |len: &usize| {
            let blocks = ids[first..first + len.div_ceil(BLOCK_TOKENS)].into();
            first += len.div_ceil(BLOCK_TOKENS);
            blocks
        };
        let blocks = LENGTHS.iter().map(&mut own).collect();
        let spec = CacheSpec { layers: 2, blocks: BLOCKS, heads: inputs.heads, dtype: inputs.variant.dtype };
        let capacity = StepCapacity { rows: MOST_ROWS, max_positions: 4096, ..Default::default() };
        let identity = Identity::new(device, inputs.cols())?;
        let (cache, step) = (device.cache(spec)?, device.step(capacity)?);
        let mut attention = Self { device, inputs, cache, step, blocks, identity };
        for (sequence, len) in LENGTHS.iter().enumerate() {
            for start in (0..len - 1).step_by(chunk) {
                let positions = start..(start + chunk).min(len - 1);
                attention.launch(&[Piece { sequence, positions }], ActQuant::Bf16, 0)?;
            }
        }
        Ok(attention)
    }

    /// Runs a step of these pieces, with the launches of a graph of `graph_rows` rows if not 0.
    fn launch(
        &mut self,
        pieces: &[Piece],
        quant: ActQuant,
        graph_rows: usize,
    ) -> Result<D::Acts, DeviceError> {
        let (device, inputs, width) = (self.device, self.inputs, self.inputs.width());
        let (mut segments, mut qkv) = (Vec::new(), Vec::new());
        let mut first = 0;
        for Piece { sequence, positions } in pieces.iter().cloned() {
            let (len, position) = (positions.len(), positions.start);
            segments.push(Segment { first, len, position, blocks: Arc::clone(&self.blocks[sequence]) });
            qkv.extend_from_slice(&inputs.sequences[sequence][position * width..positions.end * width]);
            first += len;
        }
        let tokens = vec![Token::Id(0); first];
        let rows = first.max(graph_rows);
        qkv.resize(rows * width, 0.0);
        device.begin_step(&StepInputs { tokens, segments, graph_rows }, &mut self.step)?;
        let mut qkv = rows_of(device, inputs.variant.float_type, &qkv, width)?;
        let mut out = device.acts(rows, inputs.cols())?;
        let layer = AttentionLayer { rope: &inputs.rope, kv: inputs.kv, quant };
        device.attention(&self.step, layer, &mut qkv, &mut self.cache, &mut out)?;
        Ok(out)
    }

    /// Runs a step and returns its rows without those of padding.
    fn run(&mut self, pieces: &[Piece], quant: ActQuant, graph_rows: usize) -> Result<Vec<f32>, DeviceError> {
        let rows: usize = pieces.iter().map(|piece| piece.positions.len()).sum();
        let out = self.launch(pieces, quant, graph_rows)?;
        let mut shown = self.identity.show(self.device, &out, rows.max(graph_rows))?;
        shown.truncate(rows * self.inputs.cols());
        Ok(shown)
    }
}

/// Rows that every step must give: near those of the CPU device, and with the bits of the first step.
struct Rows {
    expected: Vec<f32>,
    got: Vec<f32>,
}

/// The rows of the last position of each sequence, and of a chunk at the end of the longest.
struct Reference {
    decode: Rows,
    decode_e4m3: Rows,
    chunk: Rows,
}

pub(crate) fn run(rank: &Rank, report: &mut Report) -> Result<(), DeviceError> {
    for variant in &VARIANTS {
        let inputs = Inputs::new(rank, variant);
        let all: Vec<Piece> = (0..ROWS).map(decode_of).collect();
        let mut cpu = Attention::new(&rank.cpu, &inputs, MOST_ROWS, false)?;
        let expected = [
            cpu.run(&all, ActQuant::Bf16, 0)?,
            cpu.run(&all, ActQuant::Fp8PerToken, 0)?,
            cpu.run(&[chunk(ROWS)], ActQuant::Bf16, 0)?,
        ];
        let began = Instant::now();
        let mut host = Attention::new(&rank.hosts[0], &inputs, MOST_ROWS, false)?;
        println!("{}: contexts computed in {:.0} s", variant.name, began.elapsed().as_secs_f64());
        let got = [
            host.run(&all, ActQuant::Bf16, 0)?,
            host.run(&all, ActQuant::Fp8PerToken, 0)?,
            host.run(&[chunk(ROWS)], ActQuant::Bf16, 0)?,
        ];
        let [decode, decode_e4m3, chunk] = expected;
        let [own_decode, own_e4m3, own_chunk] = got;
        let reference = Reference {
            decode: Rows { expected: decode, got: own_decode },
            decode_e4m3: Rows { expected: decode_e4m3, got: own_e4m3 },
            chunk: Rows { expected: chunk, got: own_chunk },
        };
        let mut checks = Checks { inputs: &inputs, reference: &reference, report };
        checks.decode(&mut host)?;
        checks.chunks(&mut host)?;
        checks.mixed(&mut host)?;
        drop(host);
        let mut other = Attention::new(&rank.hosts[1], &inputs, 129, true)?;
        checks.reversed(&mut other)?;
    }
    Ok(())
}

/// The checks of one variant.
struct Checks<'a> {
    inputs: &'a Inputs,
    reference: &'a Reference,
    report: &'a mut Report,
}

/// A step with the rows that it must give.
struct Step<'a> {
    name: &'a str,
    /// Pieces of each step, one after the other.
    steps: Vec<Vec<Piece>>,
    /// Indices of these rows in the reference.
    rows: Vec<usize>,
    reference: &'a Rows,
    quant: ActQuant,
    graph_rows: usize,
}

impl Checks<'_> {
    /// Runs a step and adds its case.
    fn check<D: Device>(
        &mut self,
        device: &mut Attention<'_, D>,
        step: &Step<'_>,
    ) -> Result<(), DeviceError> {
        let began = Instant::now();
        let mut got = Vec::new();
        for pieces in &step.steps {
            got.extend(device.run(pieces, step.quant, step.graph_rows)?);
        }
        let seconds = began.elapsed().as_secs_f64();
        let cols = self.inputs.cols();
        let pick = |all: &[f32]| {
            let rows = step.rows.iter().flat_map(|row| &all[row * cols..(row + 1) * cols]);
            rows.copied().collect::<Vec<f32>>()
        };
        let errors = vec![self.difference(step.quant, &got, &pick(&step.reference.expected))];
        let same = same_bits(&got, &pick(&step.reference.got));
        let HeadShape { q_heads, kv_heads, head_dim } = self.inputs.heads;
        let shape = format!("[{q_heads} + {kv_heads} heads of {head_dim}]");
        let name = format!("attention {shape}, {}, {}", self.inputs.variant.name, step.name);
        self.report.add(Case { name, rows: step.rows.len(), errors, same, seconds });
        Ok(())
    }

    /// The difference from the CPU device.
    fn difference(&self, quant: ActQuant, got: &[f32], expected: &[f32]) -> Difference {
        // Rows of long contexts have far smaller values than those of short ones. An E4M3 row has one scale.
        let (unit, len) = match quant {
            ActQuant::Bf16 => (BF16_UNIT, self.inputs.heads.head_dim),
            _ => (E4M3_UNIT, self.inputs.cols()),
        };
        let measure = Measure::ShareOfPart { len };
        Bound { measure, most: self.inputs.variant.kernel_error + unit }.check(got, expected)
    }

    /// Decodes 1 to 16 sequences, others each time; 1, 8 and 16 also to E4M3; and 7 with the launches of a
    /// graph of 16 rows, of which nine are padding.
    fn decode<D: Device>(&mut self, device: &mut Attention<'_, D>) -> Result<(), DeviceError> {
        for count in ALL {
            let rows: Vec<usize> = (0..count).map(|index| (5 * count + index) % ROWS).collect();
            let pieces: Vec<Piece> = rows.iter().map(|row| decode_of(*row)).collect();
            let step = Step {
                name: "decode",
                steps: vec![pieces],
                rows,
                reference: &self.reference.decode,
                quant: ActQuant::Bf16,
                graph_rows: 0,
            };
            self.check(device, &step)?;
            if count == 7 {
                let name = "decode launched as in a graph of 16 rows";
                self.check(device, &Step { name, graph_rows: ROWS, ..step })?;
            } else if [1, 8, ROWS].contains(&count) {
                let (name, reference) = ("decode, E4M3 output", &self.reference.decode_e4m3);
                self.check(device, &Step { name, reference, quant: ActQuant::Fp8PerToken, ..step })?;
            }
        }
        Ok(())
    }

    /// Chunks of 1 to 16 rows at the end of the longest sequence. The decode kernel computes up to four rows.
    fn chunks<D: Device>(&mut self, device: &mut Attention<'_, D>) -> Result<(), DeviceError> {
        for count in ALL {
            let step = self.chunk_step("a chunk of a prompt", vec![vec![chunk(count)]], ROWS - count..ROWS);
            self.check(device, &step)?;
        }
        Ok(())
    }

    /// The positions of the chunk by decode alone, in two kernels, and beside other sequences.
    fn mixed<D: Device>(&mut self, device: &mut Attention<'_, D>) -> Result<(), DeviceError> {
        let end = LENGTHS[LONGEST];
        let piece = |positions: Range<usize>| Piece { sequence: LONGEST, positions };
        let single = (end - ROWS..end).map(|position| vec![piece(position..position + 1)]).collect();
        let step = self.chunk_step("a chunk's positions decoded one by one", single, 0..ROWS);
        self.check(device, &step)?;
        let drafts = (end - ROWS..end).step_by(4).map(|position| piece(position..position + 4)).collect();
        let step = self.chunk_step("a chunk's positions as drafts", vec![drafts], 0..ROWS);
        self.check(device, &step)?;
        let cuts = vec![vec![piece(end - 16..end - 11)], vec![piece(end - 11..end - 9)], vec![chunk(9)]];
        let step = self.chunk_step("a chunk in three steps", cuts, 0..ROWS);
        self.check(device, &step)?;
        // Nine sequences decode beside a chunk of seven rows, which come last.
        let beside: Vec<Piece> = (1..10).map(decode_of).chain([chunk(7)]).collect();
        let joined = |decode: &[f32], chunk: &[f32]| [decode, chunk].concat();
        let Reference { decode, chunk, .. } = self.reference;
        let rows = Rows {
            expected: joined(&decode.expected, &chunk.expected),
            got: joined(&decode.got, &chunk.got),
        };
        let step = Step {
            name: "decode beside a chunk",
            steps: vec![beside],
            rows: (1..10).chain(ROWS + 9..2 * ROWS).collect(),
            reference: &rows,
            quant: ActQuant::Bf16,
            graph_rows: 0,
        };
        self.check(device, &step)
    }

    /// The same rows with threads in the other order, other blocks, and a prompt in other chunks.
    fn reversed<D: Device>(&mut self, device: &mut Attention<'_, D>) -> Result<(), DeviceError> {
        let decode = Step {
            name: "decode, reversed, other blocks and chunks",
            steps: vec![(0..ROWS).map(decode_of).collect()],
            rows: (0..ROWS).collect(),
            reference: &self.reference.decode,
            quant: ActQuant::Bf16,
            graph_rows: 0,
        };
        self.check(device, &decode)?;
        let name = "a chunk of a prompt, reversed, other blocks and chunks";
        let step = self.chunk_step(name, vec![vec![chunk(ROWS)]], 0..ROWS);
        self.check(device, &step)
    }

    /// Steps that give these rows of the chunk.
    fn chunk_step<'b>(&self, name: &'b str, steps: Vec<Vec<Piece>>, rows: Range<usize>) -> Step<'b>
    where
        Self: 'b,
    {
        let reference = &self.reference.chunk;
        Step { name, steps, rows: rows.collect(), reference, quant: ActQuant::Bf16, graph_rows: 0 }
    }
}
