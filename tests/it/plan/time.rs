//! Terms of the cost model beyond the published tables, and the validation of GPU files.

use octant::cost::{CostModel, Hardware, Kernel, Limit, RowShape, StepTime};
use octant::device::KvDtype;
use octant::model::{ModelConfig, Precision, Scheme};

use super::{bare, cost, decode, h100, model_340b};

#[test]
fn parts_of_sums_are_sent_while_products_run() {
    let row = RowShape { tokens: 2048, position: 0, logits: 1 };
    let reduce = |cost: CostModel| cost.step([row]).reduce * 1e12;
    let message = 2048.0 * 18432.0 * 2.0;
    let [slow, fast] = [1e15, 1e18].map(|rate| cost(KvDtype::Fp8, bare(3.0e12, rate)));
    let after = (191.0 * 0.75 + 2.0 + 1.5) * message;
    // 17 of 18 parts of half an all-reduce, without its latency, if the products take long enough.
    let hidden = 191.0 * 0.5 * 17.0 / 18.0 * (message - 512e3);
    let sent = after - reduce(slow);
    assert!((sent / hidden - 1.0).abs() < 1e-5, "{sent} of {hidden}");
    // With products of no time, reading the weights of attention output hides part of it, 42.5 MB at 3e12
    // bytes per second; those of MLP down hide as much as slow products.
    let (sent, weights) = (after - reduce(fast), 18432.0 * 2304.0 / 3.0);
    let expected = hidden / 2.0 + 95.5 * 17.0 / 18.0 * weights;
    assert!((sent / expected - 1.0).abs() < 0.1, "{sent}, expected about {expected}");
}

#[test]
fn all_reduce_times_are_interpolated() {
    let h100 = h100();
    let table = [(1.0, 10.8), (8e3, 10.8), (36e3, 11.5), (3e6, 29.5), (64e6, 468.0), (256e6, 1846.0)];
    for (bytes, microseconds) in table {
        let got = h100.all_reduce_seconds(bytes) * 1e6;
        assert!((got - microseconds).abs() < 1e-9, "{bytes}: {got}");
    }
}

#[test]
fn weights_are_read_once_per_256_rows_or_once_in_all() {
    let cost = cost(KvDtype::Fp8, bare(3e12, 1e15));
    let once = decode(&cost, 1, 64).weights;
    // The blocks of 512 rows compute whole tiles of QKV, of the attention output and of the second MLP
    // product, [2688, 18432], [18432, 2304] and [18432, 9216], and share the chunks of the first MLP product,
    // [9216, 18432]. Those of 257 and of 2,048 rows compute whole tiles of all.
    let all: f64 = [2688.0 * 18432.0, 18432.0 * 2304.0, 2.0 * 9216.0 * 18432.0].iter().sum();
    let shared = 9216.0 * 18432.0 / all;
    for (rows, times) in [(256, 1.0), (257, 1.0), (512, 2.0 * shared + 1.0 - shared), (2048, 1.0)] {
        let step = cost.step([RowShape { tokens: rows, position: 0, logits: 0 }]);
        assert!((step.weights / once / times - 1.0).abs() < 1e-9, "{rows}: {}", step.weights / once);
    }
}

#[test]
fn staged_bytes_are_those_of_the_kernel() {
    let step =
        |tokens| cost(KvDtype::Fp8, bare(3e12, 1e15)).step([RowShape { tokens, position: 0, logits: 0 }]);
    // Chunks of 128 outputs and 128 bytes: 21 x 144 + 144 x 18 + 72 x 144 + 144 x 72.
    let chunks = 96.0 * (3024 + 2592 + 10_368 + 10_368) as f64;
    // Whole tiles: of the inputs a block copies half.
    let whole = |rows: i32, tiles| tiles * 16384 + rows * 64;
    for (rows, copied) in [
        (1, 16384 + 8 * 128),
        (100, 16384 + 104 * 128),
        (256, 49152),
        (300, whole(304, 3)),
        (2048, whole(2048, 16)),
    ] {
        let bytes = step(rows).staging * 1e18;
        assert!((bytes / (chunks * f64::from(copied)) - 1.0).abs() < 1e-9, "{rows}: {bytes}");
    }
    // A variant multiplies all of its rows.
    assert_eq!(step(65).products, step(128).products);
    assert_eq!(step(1).products, step(8).products);
}

#[test]
fn products_take_at_least_the_longest_of_their_terms() {
    let mut before = 0.0;
    for rows in [1, 8, 9, 64, 128, 129, 256, 300, 512, 1000, 2048, 8192] {
        let time = cost(KvDtype::Fp8, h100()).step([RowShape { tokens: rows, position: 0, logits: 0 }]);
        let total = time.weights.max(time.staging).max(time.products) + time.cuts;
        assert!(time.cuts > 0.0 && total >= before, "{rows}: {total} after {before}, {time:?}");
        before = total;
    }
}

#[test]
fn the_library_computes_products_of_many_rows_where_it_is_faster() {
    let own = cost(KvDtype::Fp8, h100());
    let fastest = own.clone().with_library();
    let rows = |cost: &CostModel, tokens| cost.step([RowShape { tokens, position: 0, logits: 1 }]);
    assert_eq!(rows(&fastest, 255), rows(&own, 255));
    let slow_l2 = cost(KvDtype::Fp8, Hardware { l2: 2e12, ..h100() });
    let slow = rows(&slow_l2, 4096).total();
    assert!(rows(&slow_l2.with_library(), 4096).total() < 0.7 * slow);
    assert!(rows(&fastest, 4096).total() <= rows(&own, 4096).total());
}

#[test]
fn shares_are_looked_up_by_kernel_limit_and_rows() {
    let h100 = h100();
    let of = |rows| h100.share(Kernel::Linear, Limit::Memory, rows);
    assert_eq!((of(1), of(32), of(33), of(128), of(9999)), (0.813, 0.813, 0.746, 0.746, 0.746));
    assert_eq!(bare(1e12, 1e15).share(Kernel::Linear, Limit::Memory, 1), 1.0);
    // No rate is above what kernels/README.md counts: 24 KiB per 4.19 MFLOP from L2.
    let most = h100.l2 / f64::from(24 << 10) * f64::from(2 * 128 * 128 * 128);
    let step = cost(KvDtype::Fp8, h100).step([RowShape { tokens: 8192, position: 0, logits: 0 }]);
    let flop = 2.0 * 8192.0 * 96.0 * 431.751168e6;
    assert!(flop / (step.staging + step.cuts) <= most, "{}", flop / (step.staging + step.cuts));
}

/// When the tiles of a product whose work is spread are complete, as shares of its time: 132 blocks compute
/// equal numbers of chunks, every second one from its last tile back to its first.
fn completions(tiles: usize, chunks: usize) -> Vec<f64> {
    let part = (tiles * chunks) as f64 / 132.0;
    let mut last = vec![0.0_f64; tiles];
    for block in 0..132 {
        let own = block * tiles * chunks / 132..(block + 1) * tiles * chunks / 132;
        let mut order: Vec<Vec<usize>> = (0..tiles)
            .map(|tile| own.clone().filter(|chunk| chunk / chunks == tile).collect())
            .filter(|segment: &Vec<usize>| !segment.is_empty())
            .collect();
        if block % 2 == 1 {
            order.reverse();
        }
        for (done, chunk) in order.into_iter().flatten().enumerate() {
            last[chunk / chunks] = last[chunk / chunks].max((done + 1) as f64 / part.ceil());
        }
    }
    last.sort_by(f64::total_cmp);
    last
}

#[test]
fn half_of_the_tiles_are_sent_while_a_product_is_spread() {
    // MLP down of a rank, and attention output: 144 tiles of 72 and of 18 chunks.
    let early = |chunks| completions(144, chunks).iter().filter(|at| **at < 0.93).count();
    assert!(early(72) >= 66 && early(18) >= 66, "{} and {}", early(72), early(18));
    let row = RowShape { tokens: 128, position: 0, logits: 0 };
    let elements = 128.0 * 18432.0;
    let sending = (2.0 * elements - 512e3) / 2.0 * 1e-12;
    // Products that take three times as long as sending, in all and per chunk.
    let time = 3.0 * sending;
    let rate = 2.0 * 128.0 * 18432.0 * 9216.0 / time;
    let reduce = cost(KvDtype::Fp8, Hardware { l2: 1e30, ..bare(1e30, rate) }).step([row]).reduce;
    let unhidden = |chunks, time: f64| {
        let ready = completions(144, chunks);
        // One tile is sent after the other.
        ready.iter().fold(0.0, |end: f64, at| end.max(at * time) + sending / 144.0) - time
    };
    // The busiest block of MLP down has 79 chunks, and the mean 78.5; of attention output 20, and 19.6.
    let [down, output] = [(72, time, 79.0 / 78.545_454), (18, time / 4.0, 20.0 / 19.636_363)]
        .map(|(chunks, time, uneven)| unhidden(chunks, time * uneven));
    let parts = 191.0 / 2.0 * (2.0 * 1.5 * elements * 1e-12 - 2.0 * sending + down + output);
    let expected = parts + (4.0 + 3.0) * elements * 1e-12;
    assert!((reduce / expected - 1.0).abs() < 1e-6, "{reduce}, expected {expected}");
    assert!(down + output < 1.3 * sending, "{down} and {output} of {sending}");
}

#[test]
fn products_read_weights_while_ranks_add() {
    let fast = Hardware { read: 7e12, l2: 1e30, ..h100() };
    let reduce = |gpu: &Hardware, rows: u32| {
        cost(KvDtype::Fp8, gpu.clone()).step([RowShape { tokens: rows, position: 0, logits: 0 }]).reduce
    };
    let sums = |gpu: &Hardware, rows: u32| {
        let elements = f64::from(rows * 18432);
        let seconds = |each: f64| gpu.all_reduce_seconds(each * elements);
        191.0 * seconds(2.0) + seconds(4.0) + seconds(3.0)
    };
    // QKV and the first MLP product: 12 stages and 8 more chunks of 16 KiB on each multiprocessor. A row
    // keeps four, and those that start late keep the others waiting like 26.
    for (rows, late) in [(1, 26), (4, 26)] {
        let bytes = f64::from((132 - late) * 20 * (16 << 10));
        let early = 96.0 * 2.0 * bytes / (7e12 * 0.813);
        let got = sums(&fast, rows) - reduce(&fast, rows);
        assert!((got - early).abs() < 1e-9, "{rows}: {got}, expected {early}");
    }
    // At the rate of an H100 they read during the whole sum, but for the time of a launch.
    let h100 = h100();
    let early = 96.0 * 2.0 * (h100.all_reduce_seconds(2.0 * 18432.0) - h100.launch);
    assert!((sums(&h100, 1) - reduce(&h100, 1) - early).abs() < 1e-9);
    // Copies from L2 that take as long as reading from memory save nothing, but for what is in the stages.
    let saved = |l2: f64| {
        let gpu = Hardware { l2, ..h100.clone() };
        reduce(&Hardware { read: 1e30, ..gpu.clone() }, 256) - reduce(&gpu, 256)
    };
    assert!(saved(8.1e12) > 5e-4, "{}", saved(8.1e12));
    assert_eq!(saved(4e12), 0.0);
}

#[test]
fn norms_of_few_rows_read_a_slice_of_the_parts() {
    let h100 = h100();
    let overhead = |rows: u32, precision| {
        let cost = CostModel::new(&model_340b(), 8, precision, KvDtype::Fp8, h100.clone()).unwrap();
        cost.step([RowShape { tokens: rows, position: 0, logits: 0 }]).overhead
    };
    let whole = h100.step_overhead + 96.0 * h100.layer_overhead;
    // BF16 parts of eight ranks: the largest slice has five groups of 128 threads, of 18,432 columns. A
    // multiprocessor reads at a 132nd of the rate of L2.
    let bytes = f64::from(8 * 2 * (18432 - 5 * 128 * 8));
    let sliced = whole - 96.0 * 2.0 * bytes * 132.0 / h100.l2;
    for (rows, expected) in [(1, sliced), (4, sliced), (17, whole), (64, whole)] {
        let got = overhead(rows, Precision::Fp8);
        assert!((got - expected).abs() < 1e-9, "{rows} rows: {got}, expected {expected}");
    }
    // F32 parts go by no packets.
    assert!((overhead(1, Precision::None) - whole).abs() < 1e-9);
    // A norm takes no negative time.
    let slow = cost(KvDtype::Fp8, Hardware { l2: 1e11, ..h100.clone() });
    let least = slow.step([RowShape { tokens: 1, position: 0, logits: 0 }]).overhead;
    assert!((least - h100.step_overhead).abs() < 1e-9, "{least}");
}

#[test]
fn the_head_is_read_once_per_256_rows_of_logits() {
    let cost = cost(KvDtype::Fp8, h100());
    let head = |logits| cost.step([RowShape { tokens: 512, position: 0, logits }]).head_weights;
    assert_eq!(head(0), 0.0);
    assert!(head(1) > 0.0 && head(1) == head(32) && head(33) == head(256));
    assert_eq!(head(257), 2.0 * head(256));
    assert_eq!(cost.step([]), StepTime::default());
}

#[test]
fn bf16_has_twice_the_bytes_and_half_the_rate() {
    let stored_fp8 = model_340b();
    let stored_bf16 = ModelConfig { scheme: Scheme::None, ..stored_fp8.clone() };
    let step = |model, precision| {
        decode(&CostModel::new(model, 8, precision, KvDtype::Bf16, h100()).unwrap(), 8, 64)
    };
    let fp8 = step(&stored_bf16, Precision::Fp8);
    let bf16 = step(&stored_bf16, Precision::None);
    assert_eq!((bf16.weights, bf16.products), (2.0 * fp8.weights, 2.0 * fp8.products));
    assert_eq!(bf16.head_weights, fp8.head_weights);
    // Weights stored in FP8 stay FP8; only their inputs are BF16.
    let mixed = step(&stored_fp8, Precision::None);
    assert_eq!((mixed.weights, mixed.products), (fp8.weights, bf16.products));
}

#[test]
fn a_larger_step_takes_longer() {
    let cost = cost(KvDtype::Fp8, h100());
    let mut before = 0.0;
    for batch in 1..=300 {
        let total = decode(&cost, batch, 1000).total();
        assert!(total > before, "{batch}: {total} after {before}");
        before = total;
    }
}

#[test]
fn intermediate_results_that_exceed_the_cache_go_to_memory() {
    let spilled = |cache: f64, tokens| {
        let row = RowShape { tokens, position: 0, logits: 0 };
        cost(KvDtype::Fp8, Hardware { cache, ..bare(1e12, 1e15) }).step([row]).activations * 1e12
    };
    assert_eq!(spilled(5e7, 1356), 0.0);
    assert!(spilled(5e7, 1357) > 0.0);
    // Results are BF16, queries F32.
    let bytes = 96.0 * 2.0 * 100.0 * (2.0 * (18432.0 + 18432.0 + 2688.0 + 9216.0) + 4.0 * 2304.0);
    assert!((spilled(0.0, 100) / bytes - 1.0).abs() < 1e-9);
}

#[test]
fn the_bound_of_a_step_is_its_largest_part() {
    let cost = cost(KvDtype::Fp8, h100());
    assert_eq!(decode(&cost, 1, 100).bound(), "weights");
    assert_eq!(decode(&cost, 256, 16_000).bound(), "kv");
    let prompt = RowShape { tokens: 4096, position: 0, logits: 1 };
    assert_eq!(cost.step([prompt]).bound(), "staging");
    assert_eq!(self::cost(KvDtype::Fp8, bare(3e12, 1e15)).step([prompt]).bound(), "products");
    // Overlapping terms count once.
    let time = StepTime { weights: 2.0, products: 3.0, kv: 5.0, attention: 1.0, ..StepTime::default() };
    assert_eq!((time.total(), time.bound()), (8.0, "kv"));
}

#[test]
fn the_steps_of_a_prompt_sum_to_its_prefill_time() {
    let cost = cost(KvDtype::Fp8, h100());
    let step = |position, logits| cost.step([RowShape { tokens: 512, position, logits }]);
    // A prompt in two parts has the steps of both: the second attends to the first, and the first also
    // computes logits at its end.
    let (first, second) = (cost.prompt(0, 1024, 512), cost.prompt(1024, 1024, 512));
    assert_eq!(first, [step(0, 0), step(512, 1)]);
    assert_eq!(second, [step(1024, 0), step(1536, 1)]);
    assert_eq!(cost.prompt(0, 2048, 512), [step(0, 0), step(512, 0), step(1024, 0), step(1536, 1)]);
    let seconds = |steps: &[StepTime]| steps.iter().map(StepTime::total).sum::<f64>();
    assert!(seconds(&second) > seconds(&first));
    // Rows that decode beside a chunk make its step longer: they need a second pass over the weights here.
    let decode = RowShape { tokens: 1, position: 1000, logits: 1 };
    let chunk = RowShape { tokens: 256, position: 0, logits: 0 };
    let beside = std::iter::repeat_n(decode, 64).chain([chunk]);
    assert!(cost.step(beside).total() > 1.05 * cost.step([chunk]).total());
    assert!(cost.prompt(0, 0, 512).is_empty());
    // Only the last step of a prompt computes logits.
    let parts = cost.prompt(0, 600, 512);
    assert_eq!(parts.len(), 2);
    assert_eq!((parts[0].head_weights, parts[1].head_weights > 0.0), (0.0, true));
    assert_eq!(parts[1], cost.step([RowShape { tokens: 88, position: 512, logits: 1 }]));
}

/// The error for the built-in file with one line changed.
fn refused(key: &str, line: &str) -> String {
    let text =
        std::fs::read_to_string(format!("{}/models/h100-80gb.toml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let lines = text.lines().map(|old| if old.starts_with(&format!("{key} =")) { line } else { old });
    let text: Vec<&str> = lines.collect();
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), text.join("\n")).unwrap();
    Hardware::named(file.path().to_str().unwrap())
        .map_or_else(|error| error.to_string(), |_| "accepted".to_owned())
}

#[test]
fn invalid_gpu_files_are_rejected_by_key() {
    assert_eq!(refused("read", "read = 2.0e12"), "accepted");
    let cases = [
        ("memory", "memory = 0", "memory: expected a number above 0, got 0"),
        ("usable", "usable = 1.5", "usable: expected a fraction of at most 1, got 1.5"),
        ("usable", "usable = 0.0", "usable: expected a number above 0, got 0"),
        ("read", "read = -1.0", "read: expected a number above 0, got -1"),
        ("products", "products = inf", "products: expected a number above 0, got inf"),
        ("attention", "attention = nan", "attention: expected a number above 0, got NaN"),
        ("step_overhead", "step_overhead = -1.0", "step_overhead: expected a number of at least 0, got -1"),
        (
            "layer_overhead",
            "layer_overhead = nan",
            "layer_overhead: expected a number of at least 0, got NaN",
        ),
        ("l2", "l2 = 0.0", "l2: expected a number above 0, got 0"),
        ("launch", "launch = -1.0", "launch: expected a number of at least 0, got -1"),
        ("share", "share = 1.5", "efficiency: expected a share above 0 and at most 1, got 1.5"),
        ("rows", "rows = 64", "efficiency: expected growing rows of Linear, Memory"),
        (
            "usable",
            "usable = 0.9\nsources.speed.origin = \"measured\"\nsources.speed.from = \"\"",
            "sources.speed: expected the key of a figure",
        ),
        ("cache", "cache = -2.0", "cache: expected a number of at least 0, got -2"),
        ("context", "context = 90_000_000_000", "context: expected less than memory = 85520809984, got 9"),
        ("read", "reed = 2.0e12", "reed"),
    ];
    for (key, line, says) in cases {
        let message = refused(key, line);
        assert!(message.contains(says) && message.contains(".toml: "), "{line}: {message}");
    }
    // The table has several lines; the first one is changed.
    for (line, says) in [
        ("all_reduce = [[9e3, 1e-6],", "all_reduce: expected growing sizes, got 8000 after 9000"),
        ("all_reduce = [[1.0, 0.0],", "all_reduce: expected numbers above 0, got [1, 0]"),
    ] {
        let message = refused("all_reduce", line);
        assert!(message.contains(says), "{line}: {message}");
    }
    assert!(
        Hardware::named("b200")
            .unwrap_err()
            .to_string()
            .contains("expected h100-80gb, h200-141gb, h100-nvl or a .toml file, got `b200`")
    );
    assert!(Hardware::named("/nowhere.toml").unwrap_err().to_string().starts_with("/nowhere.toml: "));
}
