//! `octant serve` under limits: it refuses with both numbers and the limit's name, and an allocation that
//! fails is an error.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use octant::device::cpu::{Cpu, CpuOptions};
use octant::device::{CacheSpec, Device, HeadShape, KvDtype, MatrixShape, StepCapacity};
use octant::engine::Engine;
use octant::scheduler::blocks::Pool;

use crate::device::model::fixture;
use crate::fake::{FakeExecutor, config};
use crate::tensor_parallel::served_model;

/// `octant` with these arguments under limits set by `sh`, such as `ulimit -v 1000000`.
fn limited(limits: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.env_clear().args(["-c", &format!("{limits}; exec \"$0\" \"$@\"")]);
    command.arg(env!("CARGO_BIN_EXE_octant")).args(args);
    command
}

fn serve(limits: &str, args: &[&str]) -> Output {
    let model = fixture("llama");
    let all = [&["serve", "--model", model.to_str().unwrap(), "--port", "0"], args].concat();
    limited(limits, &all).output().unwrap()
}

/// Asserts an error that contains all parts, and no panic or abort.
fn refuses(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    parts.iter().for_each(|part| assert!(text.contains(part), "`{text}` lacks `{part}`"));
}

#[test]
fn a_limit_on_the_address_space_is_named_with_both_numbers() {
    let output = serve("ulimit -v 700000", &["--kv-cache-memory", "3GiB"]);
    refuses(&output, &["needs 3.", "are available", "683.6 MiB by RLIMIT_AS (`ulimit -v`)", "kept free"]);
    let output = serve("ulimit -d 600000", &["--kv-cache-memory", "3GiB"]);
    refuses(&output, &["needs 3.", "are available", "585.9 MiB by RLIMIT_DATA (`ulimit -d`)"]);
}

/// Where this machine lets the test make a control group.
#[test]
fn a_limit_of_a_real_control_group_is_named_with_both_numbers() {
    let versions = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
    for (parent, file) in versions {
        let group = Path::new(parent).join(format!("octant-test-{}", std::process::id()));
        if std::fs::create_dir(&group).is_err() {
            continue;
        }
        // The system makes the file if this is a control group with this controller.
        let limit = group.join(file);
        let limited = limit.exists() && std::fs::write(&limit, (160_u32 << 20).to_string()).is_ok();
        let output = limited.then(|| {
            let enter = format!("echo $$ > {}/cgroup.procs || exit 77", group.display());
            serve(&enter, &["--kv-cache-memory", "3GiB"])
        });
        std::fs::remove_dir(&group).unwrap();
        // 77: the system does not let the process into the group.
        if let Some(output) = output.filter(|output| output.status.code() != Some(77)) {
            refuses(&output, &["needs 3.", "are available", "160.0 MiB by", file]);
        }
    }
}

#[test]
fn a_server_under_a_limit_plans_a_smaller_kv_cache() {
    let model = served_model();
    let model = model.path().to_str().unwrap();
    let args = ["serve", "--model", model, "--port", "0", "--max-num-seqs", "65536"];
    let mut server = limited("ulimit -v 700000", &args).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(server.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut text = String::new();
    for line in lines {
        text += &format!("{line}\n");
        if line.contains("ready in") {
            break;
        }
    }
    let _ended = server.kill();
    server.wait().unwrap();
    assert!(text.contains("ready in") && text.contains("RLIMIT_AS"), "{text}");
}

#[test]
fn slots_and_blocks_take_memory_when_they_are_used() {
    let model = fixture("llama");
    let simulate = |seqs: &str| {
        let args = ["simulate", "--config", model.to_str().unwrap(), "--tp", "1", "--poisson", "100"];
        let sizes = ["--requests", "5", "--prompt-tokens", "20:0", "--answer-tokens", "5:0"];
        let seqs = ["--kv-cache-memory", "64MiB", "--max-num-seqs", seqs];
        limited("ulimit -v 700000", &[&args[..], &sizes, &seqs].concat()).output().unwrap()
    };
    let output = simulate("100000000");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The plan has the sampling results of each slot.
    refuses(&simulate("4294967295"), &["needs", "are available"]);

    let pool = Pool::new(1 << 40);
    let blocks: Vec<_> = (0..3).filter_map(|_| pool.take()).collect();
    assert_eq!(blocks.iter().map(|block| block.id()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((pool.total(), pool.free(), pool.used()), (1 << 40, (1 << 40) - 3, 3));
    drop(blocks);
    assert_eq!((pool.available(), pool.used()), (1 << 40, 0));
}

#[test]
fn a_limit_on_threads_is_an_error() {
    let output = serve("ulimit -v 1200000", &["--threads", "4000"]);
    // 4 of the runtime, a rank, those for masks, and 8 others.
    let masks = octant::machine::cores().saturating_sub(1).clamp(1, 16);
    let needed = format!("{} more threads are needed", 4013 + masks);
    refuses(&output, &[&needed, "starts only", "RLIMIT_AS (`ulimit -v`): 1228800000"]);
}

#[test]
fn a_refused_thread_of_the_engine_is_an_error() {
    // More address space than a process has. This test is run again with such stacks.
    const STACK: &str = "140737488355328";
    if std::env::var("RUST_MIN_STACK").is_ok_and(|size| size == STACK) {
        let started = Engine::start(config(), 1, Box::new(FakeExecutor::new(&config())));
        let error = started.err().unwrap().to_string();
        return assert!(error.starts_with("cannot start the engine's thread: "), "{error}");
    }
    let name = "machine::refusals::a_refused_thread_of_the_engine_is_an_error";
    let mut again = Command::new(std::env::current_exe().unwrap());
    let output = again.args(["--exact", name]).env("RUST_MIN_STACK", STACK).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn the_doctor_names_a_limit() {
    let output = limited("ulimit -v 700000", &["doctor"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("MemTotal of /proc/meminfo"), "{text}");
    assert!(text.contains("683.6 MiB by RLIMIT_AS (`ulimit -v`)"), "{text}");
}

/// More bytes than a process can address.
const HUGE: usize = 1 << 50;

#[test]
fn an_allocation_that_fails_is_an_error_with_its_bytes() {
    let cpu = Cpu::new(CpuOptions { threads: 2, ..Default::default() }).unwrap();
    let heads = HeadShape { q_heads: 1, kv_heads: 1, head_dim: 16 };
    let cache = |blocks, dtype| cpu.cache(CacheSpec { layers: 1, blocks, heads, dtype }).unwrap_err();
    let step = |rows, slots, vocab| {
        let capacity = StepCapacity { rows, max_positions: 1, slots, samples: 1, sampled_rows: 1, vocab };
        cpu.step(capacity).unwrap_err()
    };
    let matrix = |bf16| cpu.begin_matrix(MatrixShape { out: 32, input: HUGE / 32, bf16 }).unwrap_err();
    // One KV block has 2 × 64 × 16 elements. Scratch memory of a row is allocated before a buffer of rows.
    let errors = [
        (cache(HUGE / 2048, KvDtype::Fp8), HUGE),
        (cache(HUGE / 2048, KvDtype::Bf16), 2 * HUGE),
        (cache(usize::MAX, KvDtype::Fp8), usize::MAX),
        (cpu.floats(4, HUGE / 4).unwrap_err(), HUGE),
        (cpu.acts(4, HUGE / 4).unwrap_err(), HUGE),
        (matrix(true), 2 * HUGE),
        (matrix(false), HUGE),
        (step(HUGE / 4, 1, 1), HUGE),
        (step(1, HUGE / 4, 1), HUGE),
        (step(1, 1, HUGE / 8), HUGE),
    ];
    for (error, bytes) in errors {
        assert_eq!(error.to_string(), format!("cpu: cannot allocate {bytes} bytes"));
    }
    // The device still works.
    assert_eq!(cpu.floats(2, 3).unwrap().cols(), 3);
}
