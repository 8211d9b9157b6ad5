//! `benches/gpu/kernel_table.py`, on lines in the form of Nsight Compute that were written by hand: no GPU
//! has run the kernels yet.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

/// The columns that Nsight Compute prints with `--csv`, without quotes.
const COLUMNS: &str = "ID,Process ID,Process Name,Host Name,Kernel Name,Context,Stream,Block Size,Grid Size,\
                       Device,CC,Section Name,Metric Name,Metric Unit,Metric Value";

/// A line of quoted fields.
fn line<T: AsRef<str>>(fields: impl IntoIterator<Item = T>) -> String {
    let fields: Vec<String> = fields.into_iter().map(|field| format!("\"{}\"", field.as_ref())).collect();
    fields.join(",")
}

/// A launch of a kernel, with its blocks along x and y.
#[derive(Debug, Clone, Copy)]
struct Launched {
    kernel: &'static str,
    blocks: [usize; 2],
}

/// A launch with blocks along x only.
fn launch(kernel: &'static str, blocks: usize) -> Launched {
    Launched { kernel, blocks: [blocks, 1] }
}

/// The launches around a product of cuBLASLt for 512 rows: `inputs` blocks unpack the inputs, and `rescale`
/// has this many blocks along y.
fn library(inputs: usize, rescale: usize) -> Vec<Launched> {
    let rescale = Launched { kernel: "rescale", blocks: [512, rescale] };
    vec![launch("unpack", 1056), launch("unpack", inputs), rescale]
}

/// The launches of the four products of a layer.
struct Products {
    qkv: Vec<Launched>,
    output: Vec<Launched>,
    up: Vec<Launched>,
    down: Vec<Launched>,
}

impl Products {
    /// Products by the kernel `linear`.
    fn linear(rows: usize) -> Self {
        let linear = || vec![launch("linear_e4m3_8", 132)];
        // More than 256 rows take two launches of MLP up.
        let up = if rows > 256 { [linear(), linear()].concat() } else { linear() };
        Self { qkv: linear(), output: linear(), up, down: linear() }
    }
}

/// The kernels of a step of one layer.
fn step_with(rows: usize, attention: &'static str, logits: usize, products: Products) -> Vec<Launched> {
    let Products { qkv, output, up, down } = products;
    let mut launches = vec![launch("embed", rows), launch("norm", rows)];
    launches.extend(qkv);
    launches.extend([launch("rope", rows), launch(attention, 132), launch("attention_combine", rows)]);
    launches.extend(output);
    launches.push(launch("norm", rows));
    // After a product of cuBLASLt, a row's scale is computed with the activation.
    let after = if up.len() == 3 { "activation" } else { "activation_quantise" };
    launches.extend(up);
    launches.push(launch(after, rows));
    launches.extend(down);
    if logits > 0 {
        launches.extend([launch("select", logits), launch("norm", logits)]);
        launches.extend([launch("linear_bf16_8", 132), launch("sample", logits)]);
    }
    launches
}

fn step(rows: usize, attention: &'static str, logits: usize) -> Vec<Launched> {
    step_with(rows, attention, logits, Products::linear(rows))
}

/// A prompt of 512 tokens, with these products.
fn prompt(products: Products) -> Vec<Launched> {
    step_with(512, "attention_prefill_e4m3_192", 1, products)
}

/// The log of a part with the launches of these steps. A launch takes as many microseconds as its kernel's
/// name has letters, times the step's factor.
fn log_of(part: &str, steps: &[(Vec<Launched>, u32)]) -> String {
    let columns = line(COLUMNS.split(','));
    let mut text = format!("== {part}, at most 50 s: ncu\n==PROF== Connected to process 7\n{columns}\n");
    let launches = steps.iter().flat_map(|(launches, factor)| launches.iter().map(move |l| (l, factor)));
    for (id, (Launched { kernel, blocks: [x, y] }, factor)) in launches.enumerate() {
        let (id, name) = (id.to_string(), format!("octant_{kernel}"));
        let grid = format!("({x}, {y}, 1)");
        let launch = [&id, "7", "octant", "127.0.0.1", &name, "1", "7", "(512, 1, 1)", &grid, "0", "9.0"];
        let time = format!("{},000", kernel.len() * *factor as usize);
        for metric in [
            ["dram__bytes_read.sum", "byte", "2,000,000"],
            ["gpu__time_duration.sum", "nsecond", &time],
            ["launch__registers_per_thread", "register/thread", "168"],
        ] {
            let fields = launch.into_iter().chain(["Command line profiler metrics"]).chain(metric);
            writeln!(text, "{}", line(fields)).unwrap();
        }
    }
    text + "decode  batch   2 context  2048: 1.0 ms\n"
}

/// The log of the part `ncu`.
fn log(steps: &[(Vec<Launched>, u32)]) -> String {
    log_of("ncu", steps)
}

fn run(log: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.txt");
    std::fs::write(&path, log).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("python3");
    command.current_dir(root).arg("benches/gpu/kernel_table.py").arg(path);
    let config = "models/nemotron-4-340b-instruct";
    command.args(["--config", config, "--tp", "8", "--context", "2048"]).output().unwrap()
}

/// Every kernel of a step has a row with its median time, its cost and its floor at the shapes of the 340B's
/// rank. Passes without logits and the first steps of a kind do not count.
#[test]
fn every_kernel_of_a_step_has_a_row() {
    let decode = |factor| (step(2, "attention_decode_e4m3_192", 2), factor);
    let captured = (step(32, "attention_decode_e4m3_192", 0), 1);
    let prefill = (step(512, "attention_prefill_e4m3_192", 1), 100);
    let text = table(&log(&[captured, decode(50), decode(1), decode(3), prefill]));
    // Embedding: 2 rows of 18,432 elements of 6 bytes, 221,184 bytes at 3.35 TB/s.
    // QKV: 14 heads of 192 by 18,432 bytes, 2 rows of inputs and of BF16 outputs, and scales:
    // 49,545,216 + 36,864 + 10,752 + 10,760 bytes. The median of 13 and 39 us is 26.
    // Decode attends to 2 x 2,048 positions of 2 x 192 bytes, prefill to 512 x 513 / 2 pairs by 12 heads:
    // 4 x 192 x 12 x 131,328 FLOP at 989.5 TFLOP/s.
    // The activation: 2 rows of 9,216 elements of 3 bytes, and of 144 maxima of 4 bytes.
    for row in [
        "| decode 2 | embed | 1 | 10.0 | 0.22 | 0.00 | 0.07 | 151.46 | 2.00 |",
        "| decode 2 | linear QKV | 1 | 26.0 | 49.60 | 0.20 | 14.81 | 1.76 | 2.00 |",
        "| decode 2 | norm | 2 | 8.0 | 0.55 | 0.00 | 0.17 | 48.47 | 2.00 |",
        "| decode 2 | norm before the head | 1 | 8.0 | 0.37 | 0.00 | 0.11 | 72.70 | 2.00 |",
        "| decode 2 | attention_decode | 1 | 50.0 | 1.57 | 0.04 | 0.47 | 106.49 | 2.00 |",
        "| decode 2 | activation_quantise | 1 | 38.0 | 0.06 | 0.00 | 0.02 | 2255.17 | 2.00 |",
        "| decode 2 | sample | 1 | 12.0 | 0.26 | 0.00 | 0.08 | 157.03 | 2.00 |",
        "| prefill 512 | linear MLP up | 1 | 2600.0 |",
        "| prefill 512 | linear MLP down | 1 | 1300.0 |",
        "| prefill 512 | attention_prefill | 1 | 2600.0 | 0.20 | 1.21 | 1.22 | 2125.64 | 2.00 |",
    ] {
        assert!(text.contains(row), "{row} is missing:\n{text}");
    }
    let names = ["rope", "attention_combine", "linear attention output", "linear MLP up"];
    for name in names.into_iter().chain(["activation_quantise", "linear MLP down", "select", "linear head"]) {
        for step in ["decode 2", "prefill 512"] {
            assert!(text.contains(&format!("| {step} | {name} | 1 |")), "{step} {name} is missing:\n{text}");
        }
    }
    assert!(!text.contains("| – |") && !text.contains("decode 32"), "{text}");
}

/// The table of a log, which the script must accept.
fn table(log: &str) -> String {
    let output = run(log);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn assert_rows(text: &str, rows: &[impl AsRef<str>]) {
    for row in rows.iter().map(AsRef::as_ref) {
        assert!(text.contains(row), "{row} is missing:\n{text}");
    }
}

/// The launches around cuBLASLt's products are named after the product, whichever of the four the library
/// computes. The other run of the log has a table of its own, and launches before the first step of a run
/// belong to no step.
#[test]
fn launches_around_library_products_have_rows() {
    let linear = || Products::linear(512);
    // 2,688 and 9,216 outputs of QKV and MLP up, 18,432 of the other two; 2,048 per block.
    let some = Products { qkv: library(1056, 2), up: library(1056, 5), ..linear() };
    let others = Products { output: library(288, 9), down: library(1056, 9), ..linear() };
    let check_at_start = vec![launch("linear_e4m3_8", 132), launch("unpack", 9)];
    let text = log(&[(prompt(linear()), 3)])
        + &log_of("ncu-fastest", &[(check_at_start, 7), (prompt(some), 1)])
        + &log_of("ncu-other", &[(vec![launch("unpack", 9)], 1)]);
    let text = table(&text);
    let (first, text) = text.split_once("\n## ncu-fastest\n").unwrap();
    assert!(first.starts_with("## ncu\n"), "{first}");
    let (text, other) = text.split_once("\n## ncu-other\n").unwrap();
    assert_eq!(other.trim(), "no step with logits among the launches");
    let rows = ["linear QKV | 1 | 39.0 |", "linear MLP up | 1 | 78.0 |", "linear head | 1 | 39.0 |"];
    assert_rows(first, &rows.map(|row| format!("| prefill 512 | {row}")));
    assert!(!first.contains("cuBLASLt"), "{first}");
    // QKV has 2,688 x 18,432 weights and 512 x 18,432 inputs, read and written, and 512 x 2,688 outputs of
    // two bytes: 99,090,432, 18,874,368 and 5,505,024 bytes at 3.35 TB/s. MLP up: 339,738,624 and 18,874,368.
    assert_rows(
        text,
        &[
            "| prefill 512 cuBLASLt | unpack weights, QKV | 1 | 6.0 | 99.09 | 0.00 | 29.58 | 0.20 | 2.00 |",
            "| prefill 512 cuBLASLt | unpack inputs, QKV | 1 | 6.0 | 18.87 | 0.00 | 5.63 | 1.06 | 2.00 |",
            "| prefill 512 cuBLASLt | rescale, QKV | 1 | 7.0 | 5.51 | 0.00 | 1.64 | 4.26 | 2.00 |",
            "| prefill 512 cuBLASLt | unpack weights, MLP up | 1 | 6.0 | 339.74 |",
            "| prefill 512 cuBLASLt | rescale, MLP up | 1 | 7.0 | 18.87 |",
            "| prefill 512 cuBLASLt | linear attention output | 1 | 13.0 |",
            "| prefill 512 cuBLASLt | linear MLP down | 1 | 13.0 |",
            "| prefill 512 cuBLASLt | activation | 1 | 10.0 | 14.16 |",
            "| prefill 512 cuBLASLt | sample | 1 | 6.0 |",
        ],
    );
    assert!(!text.contains("cuBLASLt | linear QKV") && !text.contains("| – |"), "{text}");
    let text = table(&log(&[(prompt(others), 1)]));
    // 18,432 outputs of 2,304 and of 9,216 inputs: 84,934,656, 2,359,296 and 37,748,736 bytes; 339,738,624
    // and 9,437,184. 288 blocks of 256 threads unpack 512 x 2,304 bytes, 16 each.
    assert_rows(
        &text,
        &[
            "| prefill 512 cuBLASLt | unpack weights, attention output | 1 | 6.0 | 84.93 |",
            "| prefill 512 cuBLASLt | unpack inputs, attention output | 1 | 6.0 | 2.36 |",
            "| prefill 512 cuBLASLt | rescale, attention output | 1 | 7.0 | 37.75 |",
            "| prefill 512 cuBLASLt | unpack weights, MLP down | 1 | 6.0 | 339.74 |",
            "| prefill 512 cuBLASLt | unpack inputs, MLP down | 1 | 6.0 | 9.44 |",
            "| prefill 512 cuBLASLt | rescale, MLP down | 1 | 7.0 | 37.75 |",
            "| prefill 512 cuBLASLt | linear QKV | 1 | 13.0 |",
            "| prefill 512 cuBLASLt | linear MLP up | 1 | 26.0 |",
        ],
    );
}

/// Launches around a product whose grid is that of another one keep the kernels' names, without bytes, and so
/// do all products of a step that are not four per layer.
#[test]
fn library_launches_that_do_not_fit_are_not_named() {
    let mistaken = Products { qkv: library(1056, 9), ..Products::linear(512) };
    let text = table(&log(&[(prompt(mistaken), 1)]));
    assert_rows(
        &text,
        &[
            "| prefill 512 cuBLASLt | unpack | 2 | 6.0 | – | – | – | – | 2.00 |",
            "| prefill 512 cuBLASLt | rescale | 1 | 7.0 | – | – | – | – | 2.00 |",
            "| prefill 512 cuBLASLt | linear MLP up | 1 | 26.0 |",
        ],
    );
    assert!(!text.contains("unpack weights") && !text.contains("rescale, "), "{text}");
    let torn = Products { qkv: library(1056, 2)[..2].to_vec(), ..Products::linear(512) };
    let text = table(&log(&[(prompt(torn), 1)]));
    assert_rows(
        &text,
        &[
            "| prefill 512 cuBLASLt | unpack | 2 | 6.0 | – |",
            "| prefill 512 cuBLASLt | linear_e4m3_8 | 4 | 13.0 | – |",
            "| prefill 512 cuBLASLt | linear head | 1 | 13.0 |",
        ],
    );
    assert!(!text.contains("linear MLP") && !text.contains("QKV"), "{text}");
}

#[test]
fn a_log_without_a_step_is_refused() {
    let refusal = |log: &str| {
        let output = run(log);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refusal("==ERROR== no permission\n").contains("no CSV of Nsight Compute"));
    assert!(refusal(&log(&[(step(2, "attention_decode_e4m3_192", 0), 1)])).contains("no step with logits"));
    let other_unit = log(&[(step(2, "attention_decode_e4m3_192", 2), 1)]).replace("nsecond", "cycle");
    assert!(refusal(&other_unit).contains("has the unit 'cycle'"));
}

/// The table in the documentation of `benches/gpu/run` has its parts, in their order and with their seconds.
#[test]
fn the_parts_of_a_run_are_documented_and_take_eight_minutes() {
    let text = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu").join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let (script, page) = (text("run"), text("README.md"));
    let (_, parts) = script.split_once("\nparts=\"\n").unwrap();
    let (parts, commands) = parts.split_once("\n\"\n").unwrap();
    let parts: Vec<(&str, &str)> = parts.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let parts: Vec<(&str, u32)> =
        parts.into_iter().map(|(name, seconds)| (name, seconds.trim().parse().unwrap())).collect();
    assert_eq!(parts.iter().map(|(_, seconds)| seconds).sum::<u32>(), 480);
    let rows = parts.iter().map(|(name, seconds)| format!("| `{name}` | {seconds} |"));
    let documented = page.lines().filter(|line| line.starts_with("| `") && line.split('|').count() == 6);
    let documented: Vec<String> =
        documented.map(|line| line.split('|').take(3).collect::<Vec<_>>().join("|") + "|").collect();
    assert_eq!(documented, rows.collect::<Vec<_>>());
    for (name, _) in &parts {
        assert!(commands.contains(&format!("\n    {name}) command=(")), "{name} has no command");
    }
}

/// The tests that parts of a run name exist: a name that matches none would run nothing.
#[test]
fn the_tests_that_a_run_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = std::fs::read_to_string(root.join("benches/gpu/run")).unwrap();
    let test_in = |file: &str, name: &str| {
        let text = std::fs::read_to_string(root.join("tests").join(file)).unwrap_or_default();
        text.contains(&format!("#[test]\nfn {name}"))
    };
    let words = script.split_whitespace().map(|word| word.trim_end_matches(')'));
    let named: Vec<&str> = words.filter(|word| word.contains("::") && *word != "p2p::").collect();
    assert!(named.len() > 10, "{named:?}");
    for name in named {
        let exists = match name.split("::").collect::<Vec<_>>()[..] {
            ["device", module] => root.join(format!("tests/device/{module}.rs")).is_file(),
            ["device", module, test] => test_in(&format!("device/{module}.rs"), test),
            ["p2p", test] => {
                root.join(format!("tests/gpu/p2p/{test}.rs")).is_file() || test_in("gpu/p2p.rs", test)
            }
            _ => false,
        };
        assert!(exists, "benches/gpu/run names the test {name}, which does not exist");
    }
}
