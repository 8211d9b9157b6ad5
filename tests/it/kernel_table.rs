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

/// The kernels of a step of one layer, with their blocks along x.
fn step(rows: usize, attention: &'static str, logits: usize) -> Vec<(&'static str, usize)> {
    let mut launches = vec![("embed", rows), ("norm", rows), ("linear_e4m3_8", 132), ("rope", rows)];
    launches.extend([(attention, 132), ("attention_combine", rows), ("linear_e4m3_8", 132)]);
    launches.extend([("norm", rows), ("linear_e4m3_8", 132)]);
    // More than 256 rows take two launches of MLP up.
    launches.extend((rows > 256).then_some(("linear_e4m3_8", 132)));
    launches.extend([("activation", rows), ("linear_e4m3_8", 132)]);
    if logits > 0 {
        launches.extend([("select", logits), ("norm", logits), ("linear_bf16_8", 132), ("sample", logits)]);
    }
    launches
}

/// A log with the launches of these steps. A launch takes as many microseconds as its kernel's name has
/// letters, times the step's factor.
fn log(steps: &[(Vec<(&str, usize)>, u32)]) -> String {
    let columns = line(COLUMNS.split(','));
    let mut text = format!("== ncu, at most 50 s\n==PROF== Connected to process 7\n{columns}\n");
    let launches = steps.iter().flat_map(|(launches, factor)| launches.iter().map(move |l| (l, factor)));
    for (id, ((kernel, blocks), factor)) in launches.enumerate() {
        let (id, name) = (id.to_string(), format!("octant_{kernel}"));
        let grid = format!("({blocks}, 1, 1)");
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
    let output = run(&log(&[captured, decode(50), decode(1), decode(3), prefill]));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Embedding: 2 rows of 18,432 elements of 6 bytes, 221,184 bytes at 3.35 TB/s.
    // QKV: 14 heads of 192 by 18,432 bytes, 2 rows of inputs and of BF16 outputs, and scales:
    // 49,545,216 + 36,864 + 10,752 + 10,760 bytes. The median of 13 and 39 us is 26.
    // Decode attends to 2 x 2,048 positions of 2 x 192 bytes, prefill to 512 x 513 / 2 pairs by 12 heads:
    // 4 x 192 x 12 x 131,328 FLOP at 989.5 TFLOP/s.
    for row in [
        "| decode 2 | embed | 1 | 10.0 | 0.22 | 0.00 | 0.07 | 151.46 | 2.00 |",
        "| decode 2 | linear QKV | 1 | 26.0 | 49.60 | 0.20 | 14.81 | 1.76 | 2.00 |",
        "| decode 2 | norm | 2 | 8.0 | 0.55 | 0.00 | 0.17 | 48.47 | 2.00 |",
        "| decode 2 | norm before the head | 1 | 8.0 | 0.37 | 0.00 | 0.11 | 72.70 | 2.00 |",
        "| decode 2 | attention_decode | 1 | 50.0 | 1.57 | 0.04 | 0.47 | 106.49 | 2.00 |",
        "| decode 2 | sample | 1 | 12.0 | 0.26 | 0.00 | 0.08 | 157.03 | 2.00 |",
        "| prefill 512 | linear MLP up | 1 | 2600.0 |",
        "| prefill 512 | linear MLP down | 1 | 1300.0 |",
        "| prefill 512 | attention_prefill | 1 | 2600.0 | 0.20 | 1.21 | 1.22 | 2125.64 | 2.00 |",
    ] {
        assert!(text.contains(row), "{row} is missing:\n{text}");
    }
    let names = ["rope", "attention_combine", "linear attention output", "linear MLP up", "activation"];
    for name in names.into_iter().chain(["linear MLP down", "select", "linear head"]) {
        for step in ["decode 2", "prefill 512"] {
            assert!(text.contains(&format!("| {step} | {name} | 1 |")), "{step} {name} is missing:\n{text}");
        }
    }
    assert!(!text.contains("| – |") && !text.contains("decode 32"), "{text}");
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
