//! Measures the time to render a server's metrics, with the largest number of keys that have their own
//! counters and with requests to every route. Prints the median and exits with status 1 if the median is
//! 1 ms or more. Run it on an idle machine.
//!
//!     cargo bench --bench scrape

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use octant::cost::{CostModel, Hardware};
use octant::device::KvDtype;
use octant::engine::{Engine, EngineOptions};
use octant::model::{ModelConfig, Precision};
use octant::request::Cost;
use octant::scheduler::SchedulerConfig;
use octant::server::metrics::exposition::Format;
use octant::server::metrics::{Metrics, engine_metrics};
use octant::server::routes::routes;
use octant::server::status::ServerStatus;
use octant::simulator::{SimulatedModel, Simulator, SyntheticAnswers};
use octant::statistics::Distribution;

/// Limit on the median, in ms.
const LIMIT: f64 = 1.0;

const REPETITIONS: usize = 101;

fn main() -> ExitCode {
    let options = EngineOptions { metrics: engine_metrics(), ..EngineOptions::new(1) };
    let (engine, _thread) =
        Engine::start_with(config(), Box::new(executor()), options).expect("the engine starts");
    let status = ServerStatus::new(Duration::from_secs(60));
    let metrics = Metrics::new("model", &engine);
    let cost = Cost { queue: 0.123, prefill: 4.0 / 3.0, decode: 2.0 / 3.0, ..Cost::default() };
    for user in 0..300 {
        let (_, counters) = metrics.key_counters(&format!("a user of some name {user}"));
        counters.charge(&Cost { kv_block_seconds: f64::from(user) / 7.0, ..cost }, 1000, 300);
    }
    for (path, _) in routes() {
        for (method, status) in [("GET", 200), ("GET", 503), ("POST", 200), ("POST", 404)] {
            metrics.http(path, method, status, Duration::from_millis(3));
        }
    }
    let render = |_| {
        let start = Instant::now();
        std::hint::black_box(metrics.render(&engine.stats(), &status, Format::Text, true));
        start.elapsed().as_secs_f64() * 1e3
    };
    let median = Distribution::of((0..REPETITIONS).map(render).collect()).p50;
    println!("metrics rendered in {median:.3} ms (median of {REPETITIONS}, limit {LIMIT} ms)");
    if median < LIMIT { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        max_model_len: 1024,
        num_blocks: 64,
        vocab_size: 100,
        max_queue_requests: 64,
        max_queue_tokens: 65_536,
        prefix_caching: true,
        reward_width: 0,
        max_drafts: 0,
        draft_model: false,
        policy: Default::default(),
    }
}

/// Simulated GPUs that take no time.
fn executor() -> Simulator {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nemotron-4-340b-instruct");
    let model = ModelConfig::from_dir(&dir).expect("the model's configuration");
    let hardware = Hardware::named("h100-80gb").expect("a known GPU");
    let cost = CostModel::new(&model, 8, Precision::Fp8, KvDtype::Fp8, hardware).expect("8 ranks");
    let answers = SyntheticAnswers::new((1..100).collect(), vec![0], 10.0, 100).expect("a vocabulary");
    Simulator::new(SimulatedModel::new(cost, answers), 0.0).expect("a pace")
}
