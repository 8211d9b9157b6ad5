//! Requests drawn and read, and reports of them.

use octant::simulator::report::{Percentiles, Report, Slo, table};
use octant::simulator::workload::{Spread, Synthetic, parse};
use octant::simulator::{Journey, Outcome, plot};

#[test]
fn draws_have_the_mean_and_the_variation_asked_for() {
    for cv in [0.0, 0.4, 1.0, 2.0] {
        let fixed = Spread { mean: 1.0, cv: 0.0 };
        let work = Synthetic {
            requests: 20_000,
            interval: Spread { mean: 0.5, cv },
            prompt: fixed,
            answer: fixed,
            seed: 9,
        };
        let (arrivals, cut) = work.draw(10, 100);
        let gaps: Vec<f64> = arrivals.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
        let count = gaps.len() as f64;
        let mean = gaps.iter().sum::<f64>() / count;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count).sqrt();
        assert!((mean - 0.5).abs() < 0.03, "{cv}: {mean}");
        assert!((deviation / mean - cv).abs() < 0.08, "{cv}: {}", deviation / mean);
        assert_eq!(cut, 0);
    }
}

/// Simulations are compared by their seeds, so that a seed must never come to mean other requests. These numbers are from
/// the definition of SplitMix64 and of the methods, computed elsewhere.
#[test]
fn a_seed_means_these_requests() {
    let spread = |mean, cv| Spread { mean, cv };
    let work = Synthetic {
        requests: 3,
        interval: spread(0.5, 1.0),
        prompt: spread(20.0, 0.5),
        answer: spread(6.0, 2.0),
        seed: 9,
    };
    let (arrivals, _) = work.draw(1000, 100);
    let expected = [
        (1.612881756613, 24, [442, 420], 819),
        (1.845473489058, 30, [796, 528], 665),
        (3.113485733818, 24, [215, 382], 609),
    ];
    for (arrival, (at, prompt, first, last)) in arrivals.iter().zip(expected) {
        let (asked, answer) = (&arrival.ask.request.prompt, &arrival.ask.answer);
        assert!((arrival.at - at).abs() < 1e-11, "{}, expected {at}", arrival.at);
        assert_eq!((asked.len(), &asked[..2], answer.last()), (prompt, &first[..], Some(&last)));
    }
}

#[test]
fn what_is_too_long_is_cut_and_counted() {
    let fixed = |mean| Spread { mean, cv: 0.0 };
    let work =
        Synthetic { requests: 3, interval: fixed(1.0), prompt: fixed(90.0), answer: fixed(30.0), seed: 1 };
    let (arrivals, cut) = work.draw(10, 100);
    assert_eq!(cut, 3);
    assert!(arrivals.iter().all(|a| (a.ask.request.prompt.len(), a.ask.answer.len()) == (90, 10)));
}

#[test]
fn traces_are_read_as_json_and_as_azures_csv() {
    let json = "{\"at\": 3.5, \"prompt_tokens\": 20, \"answer_tokens\": 4}\n\n{\"at\": 2, \"prompt\": [1, 2], \"answer_tokens\": 7}\n";
    let arrivals = parse(json, 10, 0).unwrap();
    let seen: Vec<_> =
        arrivals.iter().map(|a| (a.at, a.ask.request.prompt.len(), a.ask.answer.len())).collect();
    assert_eq!(seen, [(0.0, 2, 7), (1.5, 20, 4)]);
    let csv = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-12-31 23:59:59.5000000,374,44\n2024-01-01 00:00:01.25+00:00,396,109\n";
    let arrivals = parse(csv, 10, 0).unwrap();
    let seen: Vec<_> =
        arrivals.iter().map(|a| (a.at, a.ask.request.prompt.len(), a.ask.answer.len())).collect();
    assert_eq!(seen, [(0.0, 374, 44), (1.75, 396, 109)]);
}

#[test]
fn what_is_wrong_in_a_trace_is_named_by_its_line() {
    for (text, parts) in [
        ("{\"at\": 1, \"answer_tokens\": 4}", ["line 1", "prompt_tokens"]),
        ("{\"at\": 1, \"prompt_tokens\": 3, \"answer_tokens\": 4}\n{\"at\": 1}", ["line 2", "answer_tokens"]),
        ("{\"at\": 1, \"prompt\": [10], \"answer_tokens\": 4}", ["line 1", "below 10"]),
        ("{\"at\": 1, \"prompt_tokens\": 0, \"answer_tokens\": 4}", ["line 1", "at least one"]),
        ("when,ContextTokens,GeneratedTokens\n", ["line 1", "timestamp"]),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1", ["line 2", "yesterday"]),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1.5,many,1", ["line 2", "many"]),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1.5,1", ["line 2", "columns"]),
    ] {
        let error = parse(text, 10, 0).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
    }
}

#[test]
fn reports_count_what_they_say() {
    let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
    let p = Percentiles::of(values);
    assert_eq!((p.p50, p.p90, p.p99, p.max, p.mean), (50.0, 90.0, 99.0, 100.0, 50.5));
    let journey = |arrived: f64, tokens: &[f64]| {
        let outcome = Outcome::Finished(*tokens.last().unwrap());
        Journey { tokens: tokens.to_vec(), outcome, ..Journey::new(arrived, 10) }
    };
    let all = [journey(0.0, &[1.0, 1.1, 1.2]), journey(1.0, &[4.0, 4.1]), journey(2.0, &[2.5, 3.5])];
    let report = Report::new(&all.iter().collect::<Vec<_>>(), &[], Slo { ttft: 1.5, itl: 0.2 });
    assert_eq!(report.finished, 3);
    // The second waits too long for its first token, the third for its second.
    assert!((report.good_share - 1.0 / 3.0).abs() < 1e-12);
    assert_eq!(report.generated_tokens, 7);
    let both = table(&[("one", &report), ("other", &report)]);
    assert!(both.contains("one") && both.contains("goodput"), "{both}");
}

#[test]
fn pictures_are_svg_with_every_runs_name() {
    let mut journey = Journey::new(0.0, 10);
    journey.tokens = vec![0.5, 0.6];
    let journeys = [&journey];
    let run = |name| plot::Run { name, journeys: &journeys, samples: &[] };
    let svg = plot::svg(&[run("first run"), run("second run")]).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains("first run") && svg.contains("second run"));
}
