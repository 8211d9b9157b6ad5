//! Interrupted conversions continue to the same bytes; memory does not grow with the model.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use octant::model::Precision;
use octant::offline::{Conversion, ConversionProgress, Converted, Granularity};

use super::{conversion, files, json_of, quantize, random_model, read, same, write};
use crate::device::model::{fixture, load, root};

fn octant(args: &[&str], paths: [&Path; 2]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
    command.args(args).args(paths).stderr(Stdio::piped()).stdin(Stdio::null());
    command.spawn().unwrap()
}

/// Returns the number of weights in the journal; 0 without a journal.
fn written(out: &Path) -> usize {
    let text = std::fs::read_to_string(out.join("conversion.journal")).unwrap_or_default();
    text.lines().count().saturating_sub(1)
}

/// Waits for a process, asserts that it succeeded, and returns its standard error.
fn finish(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// Starts a command ten times and kills it with SIGKILL. Round n waits for n modulo 4 more weights in the
/// journal, and then for n times `delay`. Returns the number of kills that left a partial shard, and the
/// number that left at least one weight in the journal.
fn kill_ten_times(args: &[&str], [input, out]: [&Path; 2], delay: Duration) -> [usize; 2] {
    let (mut partial, mut between) = (0, 0);
    for round in 0..10 {
        let before = written(out);
        let mut child = octant(args, [input, out]);
        let target = before + round % 4;
        while written(out) < target && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(delay * round as u32);
        child.kill().unwrap();
        child.wait().unwrap();
        if out.join("config.json").exists() {
            break;
        }
        assert!(written(out) >= before, "round {round}: the journal lost weights");
        assert!(load(out, Precision::Fp8).is_err(), "round {round}");
        let names: Vec<String> = files(out).into_keys().collect();
        partial += usize::from(names.iter().any(|name| name.ends_with(".safetensors.partial")));
        between += usize::from(written(out) > 0);
    }
    [partial, between]
}

#[test]
fn a_killed_quantize_continues_to_the_same_bytes() {
    let model = tempfile::tempdir().unwrap();
    random_model(model.path(), 768, 4, 512);
    for scheme in ["channel", "tensor"] {
        let (out, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let args = ["quantize", "--scheme", scheme, "--shard-size", "9MB"];
        let stderr = finish(octant(&args, [model.path(), whole.path()]));
        assert!(stderr.contains("relative RMS error") && stderr.contains("24 weights quantised"), "{stderr}");
        let kills = kill_ten_times(&args, [model.path(), out.path()], Duration::from_micros(1500));
        assert!(
            kills.iter().all(|count| *count >= 3),
            "{kills:?} kills left a partial shard and a written weight"
        );
        finish(octant(&args, [model.path(), out.path()]));
        same(out.path(), whole.path());
        let stderr = finish(octant(&args, [model.path(), out.path()]));
        assert!(stderr.contains("is already complete"), "{stderr}");
        same(out.path(), whole.path());
        load(out.path(), Precision::Fp8).unwrap();
    }
}

#[test]
fn a_killed_import_continues_to_the_same_bytes() {
    let model = root().join("tests/data/nemo/base");
    for more in [&[][..], &["--quantize", "channel"]] {
        let (out, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let args = [&["import-nemo", "--shard-size", "60KB"], more].concat();
        finish(octant(&args, [&model, whole.path()]));
        let kills = kill_ten_times(&args, [&model, out.path()], Duration::from_micros(50));
        assert!(
            kills.iter().all(|count| *count >= 3),
            "{kills:?} kills left a partial shard and a written weight"
        );
        finish(octant(&args, [&model, out.path()]));
        same(out.path(), whole.path());
    }
}

/// Repeats a conversion that is interrupted at its `at`th progress report, until one run finishes. Returns
/// the number of runs.
pub(super) fn runs_until_finished(
    at: usize,
    convert: impl Fn(&(dyn Fn(ConversionProgress<'_>) + Sync)) -> Converted,
) -> usize {
    for run in 1..200 {
        let reports = AtomicUsize::new(0);
        let progress = |_: ConversionProgress<'_>| {
            if reports.fetch_add(1, Ordering::Relaxed) + 1 == at {
                resume_unwind(Box::new("interrupted"));
            }
        };
        if catch_unwind(AssertUnwindSafe(|| convert(&progress))).is_ok() {
            return run;
        }
    }
    panic!("no conversion finishes");
}

#[test]
fn a_conversion_can_continue_after_any_weight() {
    let (out, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let to = |out: &Path| Conversion {
        shard_size: 40_000,
        ..conversion(&fixture("nemotron"), out, Some(Granularity::Channel))
    };
    octant::offline::quantize(&to(whole.path()), &|_| {}).unwrap();
    let runs =
        runs_until_finished(2, |progress| octant::offline::quantize(&to(out.path()), progress).unwrap());
    assert!(runs > 20, "{runs} runs");
    same(out.path(), whole.path());
}

/// Returns an input and the output of its conversion, which failed at the last weight.
fn unfinished() -> (tempfile::TempDir, tempfile::TempDir) {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::copy(fixture("nemotron").join("config.json"), dir.path().join("config.json")).unwrap();
    let mut tensors = read(&fixture("nemotron"));
    tensors.get_mut("model.norm.weight").unwrap().2[..2].copy_from_slice(&0x7FC0u16.to_le_bytes());
    write(&dir.path().join("model.safetensors"), &tensors);
    quantize(dir.path(), out.path(), Granularity::Channel).unwrap_err();
    assert!(written(out.path()) > 10);
    (dir, out)
}

#[test]
fn a_conversion_does_not_continue_with_other_input_or_settings() {
    let refused = |dir: &Path, out: &Path, granularity, parts: &[&str]| {
        let before = files(out);
        let error = quantize(dir, out, granularity).unwrap_err().to_string();
        for part in parts.iter().chain(&["begun with other input or settings"]) {
            assert!(error.contains(part), "`{error}` lacks `{part}`");
        }
        assert!(files(out) == before, "something was written");
    };
    let (dir, out) = unfinished();
    let scheme = ["`scheme`", "\"channel\"", "\"tensor\""];
    refused(dir.path(), out.path(), Granularity::Tensor, &scheme);
    refused(&fixture("wide"), out.path(), Granularity::Channel, &["`config.json`"]);
    let file = std::fs::File::options().append(true).open(dir.path().join("model.safetensors")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).unwrap();
    refused(dir.path(), out.path(), Granularity::Channel, &["`model.safetensors` has changed"]);
}

#[test]
fn weights_of_a_torn_journal_line_or_a_lost_shard_are_written_again() {
    let whole = tempfile::tempdir().unwrap();
    let small = |out: &Path| Conversion {
        shard_size: 40_000,
        ..conversion(&fixture("nemotron"), out, Some(Granularity::Channel))
    };
    octant::offline::quantize(&small(whole.path()), &|_| {}).unwrap();
    let after_interruption = |change: &dyn Fn(&Path)| {
        let out = tempfile::tempdir().unwrap();
        let reports = AtomicUsize::new(0);
        let progress = |_: ConversionProgress<'_>| {
            if reports.fetch_add(1, Ordering::Relaxed) == 12 {
                resume_unwind(Box::new("interrupted"));
            }
        };
        let run = || octant::offline::quantize(&small(out.path()), &progress);
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        assert!(written(out.path()) > 5);
        change(out.path());
        octant::offline::quantize(&small(out.path()), &|_| {}).unwrap();
        same(out.path(), whole.path());
    };
    after_interruption(&|out| {
        let path = out.join("conversion.journal");
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 7]).unwrap();
    });
    after_interruption(&|out| {
        let name = files(out).into_keys().find(|name| name.ends_with(".partial")).unwrap();
        std::fs::remove_file(out.join(name)).unwrap();
    });
    after_interruption(&|out| {
        let shard = files(out).into_keys().find(|name| name.ends_with(".safetensors")).unwrap();
        std::fs::remove_file(out.join(shard)).unwrap();
    });
}

#[test]
fn a_conversion_can_continue_at_each_small_file() {
    let (dir, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("nemotron").join(file), dir.path().join(file)).unwrap();
    }
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    quantize(dir.path(), whole.path(), Granularity::Channel).unwrap();
    for name in ["tokenizer.json", "quantization_report.json", "model.safetensors.index.json", "config.json"]
    {
        let out = tempfile::tempdir().unwrap();
        let convert = |progress: &(dyn Fn(ConversionProgress<'_>) + Sync)| {
            let conversion = conversion(dir.path(), out.path(), Some(Granularity::Channel));
            octant::offline::quantize(&conversion, progress)
        };
        let cut = |_: ConversionProgress<'_>| resume_unwind(Box::new("interrupted"));
        assert!(catch_unwind(AssertUnwindSafe(|| convert(&cut))).is_err());
        // A directory with the name of the partial file: neither this file nor any after it can be written.
        let obstacle = out.path().join(format!("{name}.partial"));
        std::fs::create_dir(&obstacle).unwrap();
        let error = convert(&|_| {}).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        assert!(load(out.path(), Precision::Fp8).is_err(), "the output loads without {name}");
        std::fs::remove_dir(&obstacle).unwrap();
        convert(&|_| {}).unwrap();
        same(out.path(), whole.path());
    }
}

#[test]
fn two_processes_do_not_write_the_same_directory() {
    let (dir, out) = unfinished();
    let journal = std::fs::File::open(out.path().join("conversion.journal")).unwrap();
    journal.lock().unwrap();
    let error = quantize(dir.path(), out.path(), Granularity::Channel).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    journal.unlock().unwrap();
    let error = quantize(dir.path(), out.path(), Granularity::Channel).unwrap_err().to_string();
    assert!(error.contains("model.norm.weight"), "{error}");
}

/// Returns the peak resident memory of a process in KiB (`VmHWM`); `None` after it has ended.
fn peak(child: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[test]
fn memory_does_not_grow_with_the_model() {
    // Embedding and LM head have 64 MiB each, weights of layers at most 8 MiB. The data is a hole in the
    // file, which reads as zeros.
    const LIMIT_KIB: u64 = 64 << 10;
    let (model, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    random_model(model.path(), 64, 2, 64);
    let mut config = json_of(&model.path().join("config.json"));
    let (hidden, layers, vocab) = (1024usize, 6usize, 32768usize);
    for (key, value) in [
        ("hidden_size", hidden),
        ("intermediate_size", 4 * hidden),
        ("num_hidden_layers", layers),
        ("head_dim", hidden / 2),
        ("vocab_size", vocab),
    ] {
        config[key] = serde_json::json!(value);
    }
    std::fs::write(model.path().join("config.json"), config.to_string()).unwrap();
    let grown = |shape: &[usize]| -> Vec<usize> {
        let size = |n: &usize| match *n {
            64 => hidden,
            32 => hidden / 2,
            _ => 4 * hidden,
        };
        shape.iter().map(size).collect()
    };
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    for (name, (_, shape, _)) in read(model.path()) {
        match name.as_str() {
            "lm_head.weight" | "model.embed_tokens.weight" => shapes.push((name, vec![vocab, hidden])),
            _ if name.starts_with("model.layers.0.") => {
                let rest = name.strip_prefix("model.layers.0.").unwrap();
                shapes.extend((0..layers).map(|i| (format!("model.layers.{i}.{rest}"), grown(&shape))));
            }
            _ if name.starts_with("model.layers.") => {}
            _ => shapes.push((name, grown(&shape))),
        }
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0usize);
    for (name, shape) in shapes {
        let bytes = shape.iter().product::<usize>() * 2;
        let fields = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]});
        header.insert(name, fields);
        end += bytes;
    }
    let text = serde_json::to_vec(&header).unwrap();
    let path = model.path().join("model.safetensors");
    std::fs::write(&path, [&(text.len() as u64).to_le_bytes()[..], &text].concat()).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len((8 + text.len() + end) as u64).unwrap();
    assert!(end as u64 > 4 * LIMIT_KIB * 1024, "the model has only {end} bytes");

    let mut child = octant(&["quantize", "--threads", "2"], [model.path(), out.path()]);
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        most = peak(&child).unwrap_or(0).max(most);
        std::thread::sleep(Duration::from_millis(1));
    }
    finish(child);
    assert!(most > 1 << 10 && most < LIMIT_KIB, "{most} KiB of memory for a model of {} KiB", end >> 10);
    assert!(out.path().join("config.json").exists());
}
