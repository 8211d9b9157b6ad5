//! `octant bench throughput` and `octant bench latency`: start an engine as `octant serve` does, without a
//! server, and measure it.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use serde::Serialize;

use super::serve;
use crate::bench::offline_engine::{self, LatencyFigures, RandomRequests, ThroughputFigures};
use crate::config::{
    AdmissionArgs, BenchLatencyArgs, BenchThroughputArgs, DeviceName, RequestLengths, ServeArgs, WithEngine,
};
use crate::device::cpu::use_one_malloc_arena;
use crate::engine::{EngineHandle, EngineThread};
use crate::launch;
use crate::server::ServerStatus;
use crate::simulator::trace::Recording;
use crate::stdio::results::print_line;
use crate::stdio::{Log, OutputFile};

/// Measures tokens per second.
pub fn throughput(args: WithEngine<BenchThroughputArgs>, log: &Log) -> anyhow::Result<ExitCode> {
    let WithEngine { run, model } = args;
    let json = open_json(&run.lengths)?;
    let bench = EngineBench::start(model, run.input_len, &run.lengths, log)?;
    let figures = bench.measure(async |engine, requests| {
        offline_engine::throughput(engine, requests, run.num_prompts).await
    })?;
    let ThroughputFigures { requests_per_second, tokens_per_second, output_tokens_per_second, .. } = figures;
    print_line!(
        "Throughput: {requests_per_second:.2} requests/s, {tokens_per_second:.2} total tokens/s, \
         {output_tokens_per_second:.2} output tokens/s"
    )?;
    print_line!("Total num prompt tokens:  {}", figures.total_num_tokens - figures.total_output_tokens)?;
    print_line!("Total num output tokens:  {}", figures.total_output_tokens)?;
    write_json(json, &figures)
}

/// Measures the seconds of a batch.
pub fn latency(args: WithEngine<BenchLatencyArgs>, log: &Log) -> anyhow::Result<ExitCode> {
    let WithEngine { run, model } = args;
    let (batch, most) = (run.batch_size, model.scheduling.max_num_seqs);
    ensure!(batch <= most, "--batch-size: expected at most --max-num-seqs, {most}, got {batch}");
    let json = open_json(&run.lengths)?;
    let bench = EngineBench::start(model, run.input_len, &run.lengths, log)?;
    let figures = bench.measure(async |engine, requests| {
        offline_engine::latency(engine, requests, batch, run.num_iters_warmup, run.num_iters).await
    })?;
    let LatencyFigures { avg_latency, percentiles, .. } = &figures;
    print_line!("Avg latency: {avg_latency} seconds")?;
    for (percent, seconds) in percentiles {
        print_line!("{percent}% percentile latency: {seconds} seconds")?;
    }
    write_json(json, &figures)
}

fn open_json(lengths: &RequestLengths) -> anyhow::Result<Option<OutputFile>> {
    OutputFile::open("--output-json", lengths.output_json.as_deref())
}

fn write_json(file: Option<OutputFile>, figures: &impl Serialize) -> anyhow::Result<ExitCode> {
    if let Some(file) = file {
        file.write(&(serde_json::to_string_pretty(figures)? + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A started engine and the requests to measure.
struct EngineBench {
    engine: EngineHandle,
    thread: EngineThread,
    recording: Option<Recording>,
    requests: RandomRequests,
}

impl EngineBench {
    /// Loads the model. The queue's limits refuse no request.
    fn start(
        mut config: ServeArgs,
        input_len: usize,
        lengths: &RequestLengths,
        log: &Log,
    ) -> anyhow::Result<Self> {
        for note in &config.notes {
            tracing::warn!("{note}");
        }
        if config.device.device != DeviceName::Cuda {
            use_one_malloc_arena();
        }
        config.admission = AdmissionArgs::unlimited(config.admission.queue_full_status);
        let status = ServerStatus::new(config.timeouts.stall_timeout);
        let handle = log.handle();
        let (mut prepared, devices) = serve::open(config, status, &handle.bars)?;
        let RequestLengths { output_len, seed, .. } = *lengths;
        let (tokens, most) = (input_len + output_len, prepared.model.max_positions);
        ensure!(
            tokens <= most,
            "--input-len and --output-len: expected at most {most} tokens together (--max-model-len), \
             got {tokens}"
        );
        ensure!(prepared.scoring.is_none(), "--model: expected a model that generates, got a reward model");
        prepared.log = handle;
        let recording = serve::record(&mut prepared, &devices)?;
        serve::log_banner(&prepared, &devices);
        let (engine, thread) = launch::start(devices, &prepared)?;
        let vocab = engine.config().vocab_size;
        let requests = RandomRequests { input_len, output_len, vocab, seed };
        Ok(Self { engine, thread, recording, requests })
    }

    /// Measures, and ends the engine.
    fn measure<T>(
        self,
        measure: impl AsyncFnOnce(&EngineHandle, RandomRequests) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let Self { engine, thread, recording, requests } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let figures = runtime.context("cannot start the async runtime")?.block_on(measure(&engine, requests));
        engine.stop();
        thread.join().map_err(|reason| anyhow::anyhow!("the engine failed: {reason}"))?;
        recording.map(Recording::finish).transpose().context("--record")?;
        figures
    }
}
