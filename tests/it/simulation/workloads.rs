//! Random requests, request files, reports and plots.

use octant::simulator::simulation_report::{SimulationReport, Slo, table};
use octant::simulator::workload::{Spread, SyntheticWorkload, Workload, parse, repeat_prompts};
use octant::simulator::{RequestOutcome, RequestTimeline, simulation_plot};
use octant::statistics::Distribution;

#[test]
fn intervals_have_the_requested_mean_and_variation() {
    for cv in [0.0, 0.4, 1.0, 2.0] {
        let fixed = Spread { mean: 1.0, cv: 0.0 };
        let work = SyntheticWorkload {
            requests: 20_000,
            interval: Spread { mean: 0.5, cv },
            prompt: fixed,
            answer: fixed,
            seed: 9,
        };
        let Workload { arrivals, cut } = work.generate(10, 100);
        let gaps: Vec<f64> = arrivals.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
        let count = gaps.len() as f64;
        let mean = gaps.iter().sum::<f64>() / count;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count).sqrt();
        assert!((mean - 0.5).abs() < 0.03, "{cv}: {mean}");
        assert!((deviation / mean - cv).abs() < 0.08, "{cv}: {}", deviation / mean);
        assert_eq!(cut, 0);
    }
}

/// Users compare simulations by their seeds, so the requests of a seed must never change. The expected
/// numbers were computed by another program from the definitions of SplitMix64 and of the sampling methods.
#[test]
fn the_requests_of_a_seed_never_change() {
    let spread = |mean, cv| Spread { mean, cv };
    let work = SyntheticWorkload {
        requests: 3,
        interval: spread(0.5, 1.0),
        prompt: spread(20.0, 0.5),
        answer: spread(6.0, 2.0),
        seed: 9,
    };
    let arrivals = work.generate(1000, 100).arrivals;
    let expected = [
        (1.612881756613, 24, [442, 420], 819),
        (1.845473489058, 30, [796, 528], 665),
        (3.113485733818, 24, [215, 382], 609),
    ];
    for (arrival, (at, prompt, first, last)) in arrivals.iter().zip(expected) {
        let (asked, answer) = (&arrival.request.request.prompt, &arrival.request.answer);
        assert!((arrival.at - at).abs() < 1e-11, "{}, expected {at}", arrival.at);
        assert_eq!((asked.len(), &asked[..2], answer.last()), (prompt, &first[..], Some(&last)));
    }
}

#[test]
fn answers_repeat_their_prompts_with_the_share_of_the_acceptance() {
    let fixed = |mean| Spread { mean, cv: 0.0 };
    let work = SyntheticWorkload {
        requests: 20,
        interval: fixed(1.0),
        prompt: fixed(300.0),
        answer: fixed(500.0),
        seed: 1,
    };
    for acceptance in [0.0, 0.6, 1.0] {
        let mut arrivals = work.generate(100_000, 1000).arrivals;
        repeat_prompts(&mut arrivals, acceptance, 1);
        let repeated = |arrival: &octant::simulator::workload::Arrival| -> usize {
            let (prompt, answer) = (&arrival.request.request.prompt, &arrival.request.answer);
            let equal = |first: usize| {
                let repeated = prompt.iter().cycle().skip(first);
                answer.iter().zip(repeated).filter(|(one, other)| one == other).count()
            };
            (0..prompt.len()).map(equal).max().unwrap_or(0)
        };
        let share = arrivals.iter().map(repeated).sum::<usize>() as f64 / (20.0 * 500.0);
        assert!((share - acceptance).abs() < 0.02, "{share} of {acceptance}");
    }
}

#[test]
fn requests_beyond_the_context_are_cut_and_counted() {
    let fixed = |mean| Spread { mean, cv: 0.0 };
    let work = SyntheticWorkload {
        requests: 3,
        interval: fixed(1.0),
        prompt: fixed(90.0),
        answer: fixed(30.0),
        seed: 1,
    };
    let Workload { arrivals, cut } = work.generate(10, 100);
    assert_eq!(cut, 3);
    assert!(arrivals.iter().all(|a| (a.request.request.prompt.len(), a.request.answer.len()) == (90, 10)));
}

#[test]
fn request_files_are_json_lines_or_csv_of_azure() {
    let json = "{\"at\": 3.5, \"prompt_tokens\": 20, \"answer_tokens\": 4}\n\n\
                {\"at\": 2, \"prompt\": [1, 2], \"answer_tokens\": 7}\n";
    let arrivals = parse(json, 10, 0).unwrap();
    let seen: Vec<_> =
        arrivals.iter().map(|a| (a.at, a.request.request.prompt.len(), a.request.answer.len())).collect();
    assert_eq!(seen, [(0.0, 2, 7), (1.5, 20, 4)]);
    let csv = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
               2023-12-31 23:59:59.5000000,374,44\n2024-01-01 00:00:01.25+00:00,396,109\n";
    let arrivals = parse(csv, 10, 0).unwrap();
    let seen: Vec<_> =
        arrivals.iter().map(|a| (a.at, a.request.request.prompt.len(), a.request.answer.len())).collect();
    assert_eq!(seen, [(0.0, 374, 44), (1.75, 396, 109)]);
}

#[test]
fn errors_of_request_files_name_the_line() {
    for (text, parts) in [
        ("{\"at\": 1, \"answer_tokens\": 4}", ["line 1", "prompt_tokens"]),
        ("{\"at\": 1, \"prompt_tokens\": 3, \"answer_tokens\": 4}\n{\"at\": 1}", ["line 2", "answer_tokens"]),
        ("{\"at\": 1, \"prompt\": [10], \"answer_tokens\": 4}", ["line 1", "below 10"]),
        (
            "{\"at\": 1, \"prompt_tokens\": 18446744073709551615, \"answer_tokens\": 4}",
            ["line 1", "at most 16777216"],
        ),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,1,16777217", ["line 2", "at most 16777216"]),
        ("{\"at\": 1, \"prompt_tokens\": 0, \"answer_tokens\": 4}", ["line 1", "at least one"]),
        ("when,ContextTokens,GeneratedTokens\n", ["line 1", "timestamp"]),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1", ["line 2", "yesterday"]),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1.5,many,1", ["line 2", "many"]),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1.5,1", ["line 2", "columns"]),
    ] {
        let error = parse(text, 10, 0).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
    }
}

#[test]
fn reports_count_requests_within_the_slo() {
    let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
    let d = Distribution::of(values);
    // Percentiles interpolate linearly, so they lie between values of the nearest ranks.
    for (found, expected) in [(d.p50, 50.5), (d.p90, 90.1), (d.p99, 99.01), (d.max, 100.0), (d.mean, 50.5)] {
        assert!((found - expected).abs() < 1e-9, "{found}, expected {expected}");
    }
    let timeline = |arrived: f64, tokens: &[f64]| {
        let outcome = RequestOutcome::Finished(*tokens.last().unwrap());
        RequestTimeline { tokens: tokens.to_vec(), outcome, ..RequestTimeline::new(arrived, 10) }
    };
    let all = [timeline(0.0, &[1.0, 1.1, 1.2]), timeline(1.0, &[4.0, 4.1]), timeline(2.0, &[2.5, 3.5])];
    let report = SimulationReport::new(&all.iter().collect::<Vec<_>>(), &[], Slo { ttft: 1.5, itl: 0.2 });
    assert_eq!(report.finished, 3);
    // The second request exceeds the TTFT, the third the inter-token latency.
    assert!((report.good_share - 1.0 / 3.0).abs() < 1e-12);
    assert_eq!(report.generated_tokens, 7);
    let both = table(&[("one", &report), ("other", &report)]);
    assert!(both.contains("one") && both.contains("goodput"), "{both}");
}

#[test]
fn plots_are_svg_with_the_name_of_every_run() {
    let mut timeline = RequestTimeline::new(0.0, 10);
    timeline.tokens = vec![0.5, 0.6];
    let requests = [&timeline];
    let run = |name| simulation_plot::PlottedRun { name, requests: &requests, samples: &[] };
    let svg = simulation_plot::svg(&[run("first run"), run("second run")]).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    for part in ["first run", "second run", "TTFT, cumulative", "p50 500 ms", "p99 500 ms"] {
        assert!(svg.contains(part), "no {part}");
    }
}
