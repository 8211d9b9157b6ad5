//! The LM head of a rank, in BF16 and in E4M3, and the embedding's table, which has the same shape.

use octant::device::{
    ActQuant, Device, DeviceError, EmbeddingTable, RandomWeights, Segment, StepCapacity, StepInputs, Token,
    fp8, upload_random,
};

use crate::inputs::{acts, magnitude, noise, product};
use crate::products::most_error;
use crate::rank::{ALL, FEW, Kernel, RANKS, ROWS, Rank};
use crate::report::{Bound, EXACT, Measure, Report};

pub(crate) fn run(rank: &Rank, report: &mut Report) -> Result<(), DeviceError> {
    let mut codes = [0; 256];
    codes.iter_mut().zip(noise(3, 256)).for_each(|(code, value)| *code = fp8::encode(value));
    let weights = RandomWeights {
        out: rank.share.vocab,
        input: rank.share.hidden,
        seed: 4,
        codes: &codes,
        scale: 0.75,
        bf16: true,
    };
    head(rank, report, "LM head in BF16", &weights)?;
    head(rank, report, "LM head in E4M3", &RandomWeights { bf16: false, ..weights })
}

/// Checks the product with a head, and rows of the table of the same weights if it is BF16.
fn head(
    rank: &Rank,
    report: &mut Report,
    name: &str,
    weights: &RandomWeights<'_>,
) -> Result<(), DeviceError> {
    let RandomWeights { out, input, bf16, scale, .. } = *weights;
    let quant = if bf16 { ActQuant::Bf16 } else { ActQuant::Fp8PerToken };
    let x = noise(5, ROWS * input);
    let on_cpu = upload_random(&rank.cpu, weights)?;
    let inputs = acts(&rank.cpu, &x, input, quant)?;
    let expected = product(&rank.cpu, &inputs, &on_cpu, rank.cpu.floats(ROWS, out)?)?;
    let on_hosts = rank.on_hosts(|host| upload_random(host, weights))?;
    let values = weights.codes.map(|code| scale * fp8::decode(code));
    let size = input as f32 * magnitude(&x) * magnitude(&values);
    let measure = Measure::Share { size, of: "of the sum of absolute terms" };
    // BF16 products are summed in F32: `rounding` of `tests/gpu/dev.rs` allows each device 2e-6.
    let bound = Bound { measure, most: if bf16 { 4e-6 } else { most_error() } };
    let kernel = Kernel {
        name: &format!("{name} [{out}, {input}]"),
        expected: &expected,
        bounds: &[bound],
        counts: if bf16 { &FEW } else { &ALL },
    };
    rank.check(report, &kernel, |order, rows| {
        let host = &rank.hosts[order];
        let x = acts(host, &x[rows.start * input..], input, quant)?;
        product(host, &x, &on_hosts[order], host.floats(rows.len(), out)?)
    })?;
    if bf16 { embedding(rank, report, &on_cpu, &on_hosts) } else { Ok(()) }
}

/// Rows of the embedding of the third rank: tokens of its own, the first and the last of them, and tokens of
/// other ranks.
fn embedding(
    rank: &Rank,
    report: &mut Report,
    on_cpu: &octant::device::cpu::Matrix,
    on_hosts: &[octant::device::cuda::Matrix; 2],
) -> Result<(), DeviceError> {
    let (ids, hidden) = (rank.share.vocab, rank.share.hidden);
    let first = 2 * ids;
    let spread = (0..ROWS as u32 - 4).map(|row| first as u32 + row * 2713 % ids as u32);
    let ends = [first - 1, first, first + ids - 1, first + ids].map(|id| id as u32);
    let tokens: Vec<u32> = ends.into_iter().chain(spread).collect();
    assert!(tokens.iter().all(|id| (*id as usize) < RANKS * ids), "tokens of the vocabulary");
    let expected = embedded(&rank.cpu, EmbeddingTable { matrix: on_cpu, first }, hidden, &tokens)?;
    assert!(expected[hidden..].iter().any(|x| *x != 0.0) && expected[..hidden].iter().all(|x| *x == 0.0));
    let kernel = Kernel {
        name: &format!("embed [{ids}, {hidden}]"),
        expected: &expected,
        bounds: &[EXACT],
        counts: &ALL,
    };
    rank.check(report, &kernel, |order, rows| {
        let table = EmbeddingTable { matrix: &on_hosts[order], first };
        embedded(&rank.hosts[order], table, hidden, &tokens[rows])
    })?;
    Ok(())
}

/// The rows of tokens in a rank's table.
fn embedded<D: Device>(
    device: &D,
    table: EmbeddingTable<'_, D::Matrix>,
    hidden: usize,
    tokens: &[u32],
) -> Result<Vec<f32>, DeviceError> {
    let rows = tokens.len();
    let mut step = device.step(StepCapacity { rows, max_positions: 64, ..Default::default() })?;
    let tokens = tokens.iter().map(|id| Token::Id(*id)).collect();
    let segments = vec![Segment { first: 0, len: rows, position: 0, blocks: [0].into() }];
    device.begin_step(&StepInputs { tokens, segments, graph_rows: 0 }, &mut step)?;
    let mut out = device.floats(rows, hidden)?;
    device.embed(&step, table, &mut out)?;
    device.read(&out)
}
