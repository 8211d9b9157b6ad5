//! The text about the progress of `octant batch`.

use std::time::Duration;

use super::progress_text::{Counts, progress_line, rate_and_time_left, total};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn progress_has_the_rate_of_the_interval_and_the_time_left() {
    let now = Counts { lines: 1000, done: 250, failed: 3, written: 250, tokens: 90_000 };
    // 250 lines took 100 s, so 750 take 300 s. The rate is of the last five seconds only.
    let text = rate_and_time_left(&now, 2_048, seconds(5), seconds(100));
    assert_eq!(text, "3 failed, 410 tokens/s, 0:05:00 left");
    assert_eq!(progress_line(&now, &text), "250 of 1000 requests, 3 failed, 410 tokens/s, 0:05:00 left");
}

#[test]
fn lines_of_an_earlier_run_do_not_shorten_the_time_left() {
    let resumed = Counts { lines: 50_000, done: 40_100, failed: 0, written: 100, tokens: 0 };
    // 100 lines took 100 s, so 9,900 take 9,900 s.
    let text = rate_and_time_left(&resumed, 0, seconds(5), seconds(100));
    assert_eq!(text, "0 failed, 0 tokens/s, 2:45:00 left");
}

#[test]
fn a_run_without_a_record_has_an_unknown_time_left() {
    let first = Counts { lines: 10, done: 4, failed: 4, written: 0, tokens: 7 };
    let text = rate_and_time_left(&first, 7, Duration::ZERO, Duration::ZERO);
    assert!(text.starts_with("4 failed, ") && text.ends_with(" tokens/s, unknown time left"), "{text}");
    let last = Counts { lines: 10, done: 10, failed: 0, written: 5, tokens: 7 };
    assert!(rate_and_time_left(&last, 0, seconds(5), seconds(9)).ends_with(", 0:00:00 left"));
}

#[test]
fn the_end_of_a_run_has_its_tokens_per_second() {
    let now = Counts { lines: 5000, done: 5000, failed: 500, written: 1200, tokens: 446_400 };
    let text = total(&now, seconds(3_720));
    assert_eq!(text, "this run: 1200 requests and 446400 tokens in 1:02:00, 120 tokens/s");
}
