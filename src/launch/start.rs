//! Loads the weights onto opened devices and starts the engine over them.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::cost_inputs::{CostInputs, forecast, step_times};
use super::cuda::CudaGroup;
use super::devices::Devices;
use super::draft::{Groups, LargestMessages, PreparedDraft};
use super::loading_progress::LoadingDisplay;
use super::prepared::{Prepared, scheduler_config};
use super::simulated::{SimulatedGpus, words};
use crate::comm::{Communicator, Local, Message};
use crate::device::Device;
use crate::engine::{Engine, EngineHandle, EngineOptions, EngineThread, Forecast};
use crate::model::{Model, ModelConfig};
use crate::runner::{DraftParts, RankParts, Runner, RunnerOptions, measure_step_times};
use crate::server::Stage;
use crate::simulator::{SimulatedDraftModel, SimulatedModel, Simulator, SyntheticAnswers};

/// Loads the weights and starts the engine.
pub(crate) fn start(devices: Devices, p: &Prepared) -> anyhow::Result<(EngineHandle, EngineThread)> {
    let in_flight = devices.in_flight();
    // Shorter than --step-timeout, so that the error names the rank that failed and not only the step.
    let timeout = p.config.timeouts.step_timeout.mul_f64(0.75);
    match devices {
        Devices::Cpu(devices) => {
            let group = || Local::group(devices.len(), timeout);
            let groups = Groups { target: group(), draft: p.draft.as_ref().map(|_| group()) };
            // A CPU prefill can be slow, so the first step may take up to --step-timeout.
            let unknown_step = p.config.timeouts.step_timeout;
            let options = EngineOptions { unknown_step, ..options(p, in_flight, Forecast::default()) };
            start_runner(Ranks { devices, groups, nearby_cpus: Vec::new() }, options, p)
        }
        Devices::Cuda(gpus) => {
            let options = options(p, in_flight, Forecast::default());
            let nearby_cpus = gpus.nearby_cpus()?;
            gpus.log_hardware_errors()?;
            let rows = p.config.scheduling.max_num_batched_tokens;
            let message =
                |model: &ModelConfig| Message { float_type: p.precision.results(), rows, cols: model.hidden };
            let draft = p.draft.as_ref().map(|draft| message(&draft.model));
            let largest = LargestMessages { target: message(&p.model), draft };
            let group = gpus.group(p.config.device.communicator, timeout, largest)?;
            let devices = gpus.into_devices();
            match group {
                CudaGroup::Alone(groups) => start_runner(Ranks { devices, groups, nearby_cpus }, options, p),
                CudaGroup::P2p(groups) => start_runner(Ranks { devices, groups, nearby_cpus }, options, p),
                CudaGroup::Nccl(groups) => start_runner(Ranks { devices, groups, nearby_cpus }, options, p),
            }
        }
        Devices::Simulated(gpus) => {
            p.status.starting(Stage::Preparing);
            let inputs = CostInputs::of_server(&gpus, p);
            let (cost, draft) = (inputs.cost()?, inputs.draft_model(SimulatedDraftModel::ACCEPTANCE)?);
            let forecast = forecast(&cost, &scheduler_config(p), gpus.settings.simulate_pace);
            let step_times = step_times(&cost, draft.as_ref(), &scheduler_config(p));
            let executor = Box::new(simulator(&gpus, p)?);
            let options = EngineOptions { step_times, ..options(p, in_flight, forecast) };
            Ok(Engine::start_with(scheduler_config(p), executor, options)?)
        }
    }
}

/// Parts of the ranks before the model is loaded, one entry for each rank.
struct Ranks<D, C> {
    devices: Vec<D>,
    groups: Groups<C>,
    /// CPUs near the device of each rank. May be shorter than `devices`; a missing or empty entry means any
    /// CPU.
    nearby_cpus: Vec<Vec<usize>>,
}

/// Options of the engine.
fn options(p: &Prepared, in_flight: usize, forecast: Forecast) -> EngineOptions {
    let forecast = forecast.with_target_itl(p.config.scheduling.target_itl);
    EngineOptions {
        recorder: p.recorder.clone(),
        max_ttft: p.config.admission.max_ttft.map(Duration::from_secs_f64),
        forecast,
        stream_interval: p.config.network.stream_interval,
        longest_step: p.config.timeouts.step_timeout,
        metrics: crate::server::metrics::engine_metrics(),
        ..EngineOptions::new(in_flight)
    }
}

fn start_runner<D: Device, C: Communicator<D>>(
    ranks: Ranks<D, C>,
    mut options: EngineOptions,
    p: &Prepared,
) -> anyhow::Result<(EngineHandle, EngineThread)> {
    let Ranks { devices, groups, mut nearby_cpus } = ranks;
    let scheduler = scheduler_config(p);
    let share = p.model.share(devices.len()).map_err(anyhow::Error::msg)?;
    p.status.starting(Stage::Loading);
    let mut drafts = match groups.draft {
        Some(group) => load_draft(&devices, group, p)?.into_iter().map(Some).collect(),
        None => Vec::new(),
    };
    drafts.resize_with(devices.len(), || None);
    let models = load(&devices, &p.config.model.model, &p.model, p)?;
    p.status.starting(Stage::Preparing);
    nearby_cpus.resize(devices.len(), Vec::new());
    let ranks = devices.into_iter().zip(models).zip(groups.target).zip(nearby_cpus).zip(drafts);
    let ranks = ranks.map(|((((device, model), comm), processors), draft)| RankParts {
        device,
        comm,
        processors,
        model,
        cache: p.memory.cache(&share, p.kv),
        draft,
        max_num_seqs: scheduler.max_num_seqs,
        max_num_batched_tokens: scheduler.max_num_batched_tokens,
        two_batch_tokens: p.config.device.two_batch_tokens,
        vocab: scheduler.vocab_size,
    });
    let step_timeout = p.config.timeouts.step_timeout;
    let mask_threads = p.config.device.mask_threads();
    let mut runner = Runner::start(ranks.collect(), RunnerOptions { step_timeout, mask_threads });
    // Waits for graph capture, so that no request does after the server is ready.
    runner.prepared()?;
    if scheduler.max_drafts > 0 {
        let draft = p.draft.as_ref().map_or(0, |draft| draft.needs.weights);
        let draft_share = draft as f64 / (p.memory.needs.weights - draft) as f64;
        options.step_times = measure_step_times(&mut runner, &scheduler, draft_share)?;
    }
    Ok(Engine::start_with(scheduler, Box::new(runner), options)?)
}

/// Loads a model's weights onto the devices of all ranks in parallel.
fn load<D: Device>(
    devices: &[D],
    dir: &Path,
    model: &ModelConfig,
    p: &Prepared,
) -> anyhow::Result<Vec<Model<D>>> {
    let mut progress = LoadingDisplay::start(&p.log.bars);
    let models = Model::load_all(dir, model, p.precision, devices, &mut |loaded| {
        p.status.loading(loaded.done, loaded.total);
        progress.update(&loaded);
    })?;
    progress.finish();
    Ok(models)
}

/// Loads the draft model for all ranks. Empty without one.
fn load_draft<D: Device, C: Communicator<D>>(
    devices: &[D],
    group: Vec<C>,
    p: &Prepared,
) -> anyhow::Result<Vec<DraftParts<D, C>>> {
    let Some(PreparedDraft { dir, model, .. }) = &p.draft else { return Ok(Vec::new()) };
    let devices: Vec<D> = devices.iter().map(Device::sibling).collect();
    let share = model.share(devices.len()).map_err(anyhow::Error::msg)?;
    let models = load(&devices, dir, model, p).context("--speculate")?;
    let ranks = devices.into_iter().zip(group).zip(models);
    let cache = p.memory.cache(&share, p.kv);
    Ok(ranks.map(|((device, comm), model)| DraftParts { device, comm, model, cache }).collect())
}

/// The executor of a model on simulated GPUs.
fn simulator(gpus: &SimulatedGpus, p: &Prepared) -> anyhow::Result<Simulator> {
    let inputs = CostInputs::of_server(gpus, p);
    let (cost, draft) = (inputs.cost()?, inputs.draft_model(SimulatedDraftModel::ACCEPTANCE)?);
    let vocab = p.model.vocab.min(p.tokenizer.vocab_size());
    let words = words(&p.tokenizer, vocab);
    let answer_tokens = gpus.settings.simulate_answer_tokens;
    let answers =
        SyntheticAnswers::new(words, p.eos.clone(), answer_tokens, vocab).context("--device simulate")?;
    let model =
        SimulatedModel::new(cost, answers).with_reward_head(p.model.reward_width()).with_draft_model(draft);
    Simulator::new(model, gpus.settings.simulate_pace).context("--simulate-pace")
}
