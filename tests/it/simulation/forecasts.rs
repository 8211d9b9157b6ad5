//! The TTFT forecast of admission: its arithmetic, and its predictions against virtual time.

use std::collections::VecDeque;
use std::time::Duration;

use octant::cost::RowShape;
use octant::engine::admission::{QueueSnapshot, queue_state, retry_after};
use octant::engine::{Forecast, PromptLoad, QueueState, RequestId, TargetItl};
use octant::random::Random;
use octant::request::Tenant;
use octant::scheduler::{Scheduler, SchedulerConfig};
use octant::simulator::simulation_report::predicted_and_actual_ttft;
use octant::simulator::virtual_time::VirtualTime;
use octant::simulator::workload::{self, Spread, SyntheticWorkload};
use octant::simulator::{RequestTimeline, SimulatedModel, simulation_plot};
use octant::statistics::Distribution;

use super::chaos::asked::{self, below};
use super::cost;

fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() < 1e-9 * expected.abs().max(1.0), "{got}, expected {expected}");
}

/// A forecast of steps that take 10 ms and 0.1 ms per token.
fn known() -> Forecast {
    Forecast::new(&[(1, 0.0101), (101, 0.0201), (201, 0.0301)])
}

#[test]
fn step_times_are_a_linear_fit_of_past_steps() {
    let (base, per_token) = known().coefficients();
    close(base, 0.01);
    close(per_token, 0.0001);
    assert_eq!(Forecast::default().coefficients(), (0.0, 0.0), "no step is known");
    let mut alike = Forecast::default();
    (0..10).for_each(|_| alike.step(8, 0.02));
    close(alike.coefficients().0, 0.02);
    let mut changed = known();
    (0..2000).for_each(|i| changed.step(1 + i % 100, 0.05));
    assert!(
        (changed.coefficients().0 - 0.05).abs() < 1e-4,
        "later steps have more weight: {:?}",
        changed.coefficients()
    );
    let mut nonsense = known();
    nonsense.step(5, f64::NAN);
    nonsense.step(5, f64::INFINITY);
    assert_eq!(nonsense, known());
}

#[test]
fn ttft_includes_prompts_ahead_and_the_wait_for_a_slot() {
    let forecast = known();
    let idle = QueueState { prompt_tokens: 100, can_start: 4, step_tokens: 100, ..QueueState::default() };
    close(forecast.first_token(&idle), 0.01 + 0.01);
    // Three steps of prompts, its own among them.
    close(forecast.first_token(&QueueState { tokens_ahead: 200, requests_ahead: 1, ..idle }), 0.03 + 0.03);
    // No place: of 4 that run one ends every 32 steps, and two must.
    let full = QueueState {
        requests_ahead: 1,
        tokens_ahead: 50,
        prompt_tokens: 50,
        running: 4,
        can_start: 0,
        step_tokens: 100,
        steps_in_flight: 0,
    };
    let steps = 2.0 * 128.0 / 4.0 + 1.0;
    close(forecast.first_token(&full), steps * 0.01 + (100.0 + 4.0 * steps) * 0.0001);
    let mut short = forecast.clone();
    (0..2000).for_each(|_| short.answers(8, 1));
    assert!(short.first_token(&full) < forecast.first_token(&full) / 8.0, "short answers free slots sooner");
    close(short.next_end(4), 0.0104 * 8.0 / 4.0);
}

/// Prompt tokens of a step beside `decodes` streams, with `waiting_tokens` tokens of prompts to compute.
fn prompt_tokens(target: TargetItl, decodes: usize, waiting_tokens: usize) -> Option<usize> {
    let load = PromptLoad { decodes, waiting_tokens, step_tokens: 2048 };
    known().with_target_itl(target).prompt_tokens(&load)
}

#[test]
fn a_target_limits_the_prompt_tokens_of_a_step() {
    let seconds = TargetItl::Seconds;
    // 10 ms and 0.1 ms per token: 40 ms have room for 300 tokens, of which 10 are of streams.
    assert_eq!(prompt_tokens(seconds(0.04), 10, 9999), Some(288), "290, in pieces of 32");
    assert_eq!(prompt_tokens(seconds(0.04), 100, 9999), Some(192));
    assert_eq!(prompt_tokens(seconds(0.001), 10, 9999), Some(32), "prompts are never held back");
    assert_eq!(prompt_tokens(seconds(0.04), 1000, 9999), Some(32));
    assert_eq!(prompt_tokens(seconds(9.0), 10, 9999), None, "the whole step is short enough");
    assert_eq!(prompt_tokens(TargetItl::Off, 10, 9999), None);
    let load = PromptLoad { decodes: 1, waiting_tokens: 1, step_tokens: 2048 };
    let unknown = Forecast::default().with_target_itl(seconds(0.04));
    assert_eq!(unknown.prompt_tokens(&load), None, "no step is known");
}

#[test]
fn without_a_target_steps_are_short_until_prompts_wait_too_long() {
    // A step of 10 streams takes 11 ms; with 110 tokens of prompts it takes twice as long.
    assert_eq!(prompt_tokens(TargetItl::Auto, 10, 100), Some(96));
    assert_eq!(prompt_tokens(TargetItl::Auto, 300, 100), Some(384), "a step of 300 streams takes 40 ms");
    // Short steps compute 5,000 tokens a second, of 110 tokens each.
    assert_eq!(prompt_tokens(TargetItl::Auto, 10, 4_900), Some(96));
    let chunk = prompt_tokens(TargetItl::Auto, 10, 5_100).expect("a limit");
    let rate = |tokens: f64| tokens / (0.01 + 0.0001 * tokens);
    assert!(rate(chunk as f64) >= 0.95 * rate(2048.0), "{chunk}");
    assert!(rate((chunk - 32) as f64) < 0.95 * rate(2048.0), "{chunk} is not the shortest");
}

/// Several prompts wait longer where a step takes fewer of their tokens.
#[test]
fn ttft_includes_the_limit_on_prompt_tokens() {
    let busy = QueueState {
        prompt_tokens: 640,
        running: 10,
        can_start: 4,
        step_tokens: 2048,
        ..QueueState::default()
    };
    close(known().first_token(&busy), 0.01 + 650.0 * 0.0001);
    let limited = known().with_target_itl(TargetItl::Seconds(0.018));
    close(limited.first_token(&busy), 10.0 * 0.01 + (640.0 + 10.0 * 10.0) * 0.0001);
    let idle = QueueState { running: 0, ..busy };
    close(limited.first_token(&idle), 0.01 + 640.0 * 0.0001);
}

/// A request that is refused before its prompt is tokenised would also be refused after.
#[test]
fn the_wait_without_the_prompt_is_a_lower_bound() {
    let (mut draws, mut behind_a_line, mut most) = (workload::random(3), 0, 0.0_f64);
    for _ in 0..400 {
        let config = asked::config(&mut draws);
        let mut forecast = known();
        (0..below(&mut draws, 40)).for_each(|i| forecast.answers(10, i % 2));
        let (mut scheduler, mut model) =
            (Scheduler::new(config.clone()), SimulatedModel::new(cost(), asked::voice()));
        let mut in_flight = VecDeque::new();
        let mut launch = |scheduler: &mut Scheduler, in_flight: &mut VecDeque<_>| {
            let step = scheduler.plan(None);
            in_flight.extend(step.map(|step| (step.rows, model.step(&step.plan).0)));
        };
        let alike = below(&mut draws, 2) == 0;
        let of = |draws: &mut Random, i: u64| {
            let mut asked = asked::any(draws, i, &config);
            if alike {
                asked.priority = 0;
            } else {
                asked.tenant = Tenant { name: ["a", "b"][below(draws, 2)].into(), weight: 1 };
            }
            asked
        };
        for i in 0..below(&mut draws, 30) as u64 {
            let _refused = scheduler.submit(vec![(RequestId(i), of(&mut draws, i))]);
            if below(&mut draws, 2) == 0 {
                launch(&mut scheduler, &mut in_flight);
                if let Some((rows, output)) = in_flight.pop_front() {
                    scheduler.commit(rows, output).unwrap();
                }
            }
        }
        launch(&mut scheduler, &mut in_flight);
        let asked = of(&mut draws, 99);
        let snapshot = QueueSnapshot::new(&scheduler, in_flight.len(), &forecast);
        let least = snapshot.wait_at_least(&asked.tenant, asked.priority).first_token;
        let state = queue_state(&scheduler, in_flight.len(), &asked);
        let exact = forecast.first_token(&state);
        assert!(least <= exact + 1e-9, "{least} {exact}: {snapshot:?} {state:?}");
        behind_a_line += usize::from(alike && state.requests_ahead > 2);
        most = most.max(if state.requests_ahead > 2 { least / exact } else { 0.0 });
    }
    assert!(
        behind_a_line > 20 && most > 0.9,
        "{behind_a_line} waited behind others, {most} of the wait is seen"
    );
}

#[test]
fn retry_after_is_whole_seconds_between_1_and_120() {
    let seconds = [(0.0, 1), (0.2, 1), (3.0, 3), (3.01, 4), (1e9, 120), (f64::INFINITY, 120)];
    for (wait, expected) in seconds {
        assert_eq!(retry_after(wait), Duration::from_secs(expected), "{wait}");
    }
}

/// Predicted and actual TTFT of 400 requests of a Poisson process at this rate.
fn run(rate: f64) -> Vec<(f64, f64)> {
    let config = SchedulerConfig {
        max_num_seqs: 32,
        max_num_batched_tokens: 512,
        max_model_len: 4096,
        num_blocks: 4096,
        vocab_size: 1000,
        max_queue_requests: 10_000,
        max_queue_tokens: 10_000_000,
        prefix_caching: false,
        reward_width: 0,
        policy: Default::default(),
        max_drafts: 0,
        draft_model: false,
    };
    let spread = |mean, cv| Spread { mean, cv };
    let work = SyntheticWorkload {
        requests: 400,
        interval: spread(1.0 / rate, 1.0),
        prompt: spread(512.0, 0.5),
        answer: spread(128.0, 0.5),
        seed: 5,
    };
    let arrivals = work.generate(config.vocab_size, config.max_sequence_tokens()).arrivals;
    let step = |tokens| (tokens as usize, cost().step([RowShape { tokens, position: 0, logits: 1 }]).total());
    let mut server = VirtualTime::new(config, 2, SimulatedModel::scripted(cost()));
    server.set_forecast(Forecast::new(&[1, 256, 512].map(step)));
    arrivals.into_iter().for_each(|arrival| _ = server.arrive(arrival.at, vec![arrival.request]));
    server.run().unwrap();
    let pairs = predicted_and_actual_ttft(&server.timelines());
    assert_eq!(pairs.len(), 400);
    pairs
}

fn median(values: Vec<f64>) -> f64 {
    Distribution::of(values).p50
}

#[test]
fn predictions_are_close_below_and_above_capacity() {
    for (rate, off) in [(1.0, 0.35), (8.0, 0.35)] {
        let pairs = run(rate);
        let relative = median(pairs.iter().map(|(x, y)| (x / y - 1.0).abs()).collect());
        let bias =
            pairs.iter().map(|(x, _)| x).sum::<f64>() / pairs.iter().map(|(_, y)| y).sum::<f64>() - 1.0;
        println!(
            "{rate} requests/s: median error {:.1} %, error of the sum {:+.1} %",
            100.0 * relative,
            100.0 * bias
        );
        assert!(relative < off && bias.abs() < 0.35, "{rate}: {relative} {bias}");
    }
}

#[test]
fn the_forecast_plot_has_a_dot_for_every_request() {
    let mut timeline = RequestTimeline::new(1.0, 10);
    timeline.tokens = vec![1.5];
    assert!(predicted_and_actual_ttft(&[&timeline]).is_empty(), "no TTFT was predicted");
    timeline.predicted_ttft = Some(0.4);
    assert_eq!(predicted_and_actual_ttft(&[&timeline]), [(0.4, 0.5)]);
    let svg = simulation_plot::forecast_svg(&[(0.4, 0.5), (1.0, 2.0), (3.0, 1.0)]).unwrap();
    // The last point is drawn twice.
    assert!(svg.matches("<circle").count() >= 3 && svg.contains("predicted"), "{svg}");
}
