//! Conversions that are killed go on from where they were, to the same bytes; memory does not grow with the model.

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

/// Weights that the journal has; 0 without one.
fn written(out: &Path) -> usize {
    let text = std::fs::read_to_string(out.join("conversion.journal")).unwrap_or_default();
    text.lines().count().saturating_sub(1)
}

fn finish(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// Starts a command ten times and kills it (SIGKILL), each time after some more weights and a moment. Says after how many
/// kills a shard was in work, and after how many a weight was done.
fn kill_ten_times(args: &[&str], [input, out]: [&Path; 2], moment: Duration) -> [usize; 2] {
    let (mut partial, mut between) = (0, 0);
    for round in 0..10 {
        let before = written(out);
        let mut child = octant(args, [input, out]);
        let target = before + round % 4;
        while written(out) < target && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(moment * round as u32);
        child.kill().unwrap();
        child.wait().unwrap();
        if out.join("config.json").exists() {
            break;
        }
        assert!(written(out) >= before, "round {round}: what was written is done again");
        assert!(load(out, Precision::Fp8).is_err(), "round {round}");
        let names: Vec<String> = files(out).into_keys().collect();
        partial += usize::from(names.iter().any(|name| name.ends_with(".safetensors.partial")));
        between += usize::from(written(out) > 0);
    }
    [partial, between]
}

#[test]
fn a_killed_process_leaves_what_the_next_goes_on_with() {
    let model = tempfile::tempdir().unwrap();
    random_model(model.path(), 768, 4, 512);
    for scheme in ["channel", "tensor"] {
        let (out, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let args = ["quantize", "--scheme", scheme, "--shard-size", "9MB"];
        let said = finish(octant(&args, [model.path(), whole.path()]));
        assert!(said.contains("relative RMS error") && said.contains("24 weights quantised"), "{said}");
        let kills = kill_ten_times(&args, [model.path(), out.path()], Duration::from_micros(1500));
        assert!(kills.iter().all(|count| *count >= 3), "{kills:?} kills left a shard in work, a weight done");
        finish(octant(&args, [model.path(), out.path()]));
        same(out.path(), whole.path());
        let said = finish(octant(&args, [model.path(), out.path()]));
        assert!(said.contains("is already complete"), "{said}");
        same(out.path(), whole.path());
        load(out.path(), Precision::Fp8).unwrap();
    }
}

#[test]
fn a_killed_import_leaves_what_the_next_goes_on_with() {
    let model = root().join("tests/data/nemo/base");
    for more in [&[][..], &["--quantize", "channel"]] {
        let (out, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let args = [&["import-nemo", "--shard-size", "60KB"], more].concat();
        finish(octant(&args, [&model, whole.path()]));
        let kills = kill_ten_times(&args, [&model, out.path()], Duration::from_micros(50));
        assert!(kills.iter().all(|count| *count >= 3), "{kills:?} kills left a shard in work, a weight done");
        finish(octant(&args, [&model, out.path()]));
        same(out.path(), whole.path());
    }
}

/// Runs conversions of which each is cut off at its `at`th report of progress, until one gets through. Returns how many.
pub(super) fn cut_off(
    at: usize,
    convert: impl Fn(&(dyn Fn(ConversionProgress<'_>) + Sync)) -> Converted,
) -> usize {
    for run in 1..200 {
        let reports = AtomicUsize::new(0);
        let progress = |_: ConversionProgress<'_>| {
            if reports.fetch_add(1, Ordering::Relaxed) + 1 == at {
                resume_unwind(Box::new("cut off"));
            }
        };
        if catch_unwind(AssertUnwindSafe(|| convert(&progress))).is_ok() {
            return run;
        }
    }
    panic!("no conversion gets through");
}

#[test]
fn every_weight_is_a_place_to_go_on_from() {
    let (out, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let to = |out: &Path| Conversion {
        shard_size: 40_000,
        ..conversion(&fixture("nemotron"), out, Some(Granularity::Channel))
    };
    octant::offline::quantize(&to(whole.path()), &|_| {}).unwrap();
    let runs = cut_off(2, |progress| octant::offline::quantize(&to(out.path()), progress).unwrap());
    assert!(runs > 20, "{runs} runs");
    same(out.path(), whole.path());
}

/// An output whose conversion has failed at the last weight.
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
fn other_input_or_settings_are_not_gone_on_with() {
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
fn a_torn_journal_and_a_lost_shard_are_done_again() {
    let whole = tempfile::tempdir().unwrap();
    let small = |out: &Path| Conversion {
        shard_size: 40_000,
        ..conversion(&fixture("nemotron"), out, Some(Granularity::Channel))
    };
    octant::offline::quantize(&small(whole.path()), &|_| {}).unwrap();
    let after_cut = |change: &dyn Fn(&Path)| {
        let out = tempfile::tempdir().unwrap();
        let reports = AtomicUsize::new(0);
        let progress = |_: ConversionProgress<'_>| {
            if reports.fetch_add(1, Ordering::Relaxed) == 12 {
                resume_unwind(Box::new("cut off"));
            }
        };
        let run = || octant::offline::quantize(&small(out.path()), &progress);
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        assert!(written(out.path()) > 5);
        change(out.path());
        octant::offline::quantize(&small(out.path()), &|_| {}).unwrap();
        same(out.path(), whole.path());
    };
    after_cut(&|out| {
        let path = out.join("conversion.journal");
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 7]).unwrap();
    });
    after_cut(&|out| {
        let name = files(out).into_keys().find(|name| name.ends_with(".partial")).unwrap();
        std::fs::remove_file(out.join(name)).unwrap();
    });
    after_cut(&|out| {
        let shard = files(out).into_keys().find(|name| name.ends_with(".safetensors")).unwrap();
        std::fs::remove_file(out.join(shard)).unwrap();
    });
}

#[test]
fn the_small_files_at_the_end_are_gone_on_with_too() {
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
        let cut = |_: ConversionProgress<'_>| resume_unwind(Box::new("cut off"));
        assert!(catch_unwind(AssertUnwindSafe(|| convert(&cut))).is_err());
        // A directory in the way: the file cannot be written, and nothing that comes after it is.
        let obstacle = out.path().join(format!("{name}.partial"));
        std::fs::create_dir(&obstacle).unwrap();
        let error = convert(&|_| {}).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        assert!(load(out.path(), Precision::Fp8).is_err(), "{name} lacks, and it is taken for whole");
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

/// The most memory that a process has had so far, in KiB; `None` once it has ended.
fn peak(child: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[test]
fn memory_does_not_grow_with_the_model() {
    // 64 MiB a table, 8 MiB and less a weight of a layer; the data is a hole in the file, which reads as zeros.
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
    assert!(end as u64 > 4 * LIMIT_KIB * 1024, "the model has {end} bytes only");

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
