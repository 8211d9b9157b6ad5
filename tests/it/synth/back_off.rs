//! Pauses after the statuses 429 and 503, and the number of requests at once. Times are made, not read.

use std::time::{Duration, Instant, UNIX_EPOCH};

use octant::http_client::retry_after;
use octant::synth::back_off::{Gate, Next, Overload, Refusals};

/// A gate with a clock of its own.
struct Server {
    gate: Gate,
    start: Instant,
}

impl Server {
    fn new(most: usize) -> Self {
        Self { gate: Gate::new(most), start: Instant::now() }
    }

    fn at(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    /// The consequence of a status at a time, for a request that was sent then.
    fn answers(&mut self, status: u16, wait: Option<u64>, now: f64, request: &mut Refusals) -> Next {
        let now = self.at(now);
        let retry_after = wait.map(Duration::from_secs);
        self.gate.overloaded(request, Overload { status, retry_after, sent: now, now }, 0)
    }

    fn pause(&mut self, status: u16, wait: Option<u64>, now: f64, request: &mut Refusals) -> f64 {
        match self.answers(status, wait, now, request) {
            Next::Pause { pause, .. } => pause.as_secs_f64(),
            Next::GiveUp(time) => panic!("gave up after {time:?}"),
        }
    }
}

fn gave_up(seconds: u64) -> Next {
    Next::GiveUp(Duration::from_secs(seconds))
}

#[test]
fn a_pause_is_as_long_as_the_server_asks() {
    let mut server = Server::new(4);
    let mut request = Refusals::default();
    assert_eq!(server.gate.closed_for(server.at(0.0)), None);
    assert_eq!(server.pause(429, Some(7), 0.0, &mut request), 7.0);
    let closed = |server: &Server, now: f64| server.gate.closed_for(server.at(now));
    assert_eq!(closed(&server, 0.0), Some(Duration::from_secs(7)));
    assert_eq!(closed(&server, 4.0), Some(Duration::from_secs(3)));
    assert_eq!(closed(&server, 7.0), None);
    // A shorter pause does not shorten a longer one that has begun.
    assert_eq!(server.pause(503, Some(20), 10.0, &mut request), 20.0);
    assert_eq!(server.pause(429, Some(1), 11.0, &mut Refusals::default()), 1.0);
    assert_eq!(closed(&server, 12.0), Some(Duration::from_secs(18)));
    // No pause is so short that requests follow without a rest, and none is longer than ten minutes.
    assert_eq!(server.pause(429, Some(0), 40.0, &mut request), 0.05);
    assert_eq!(server.pause(429, Some(86_400), 50.0, &mut request), 600.0);
}

#[test]
fn a_pause_that_the_server_does_not_state_doubles() {
    for status in [429, 503] {
        let mut server = Server::new(4);
        let mut request = Refusals::default();
        let pauses: Vec<f64> =
            (0..8).map(|number| server.pause(status, None, f64::from(number), &mut request)).collect();
        assert_eq!(pauses, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        assert_eq!(server.pause(status, None, 9.0, &mut Refusals::default()), 0.5);
    }
}

#[test]
fn the_number_of_requests_halves_once_for_those_that_ran_together() {
    let mut server = Server::new(16);
    assert_eq!(server.gate.limit(), 16);
    let refused = |server: &mut Server, sent: f64, now: f64| {
        let (sent, now) = (server.at(sent), server.at(now));
        let overload = Overload { status: 429, retry_after: Some(Duration::ZERO), sent, now };
        server.gate.overloaded(&mut Refusals::default(), overload, 15);
        server.gate.limit()
    };
    // All sixteen were sent before the first refusal arrived, and their refusals arrive over ten seconds.
    for number in 0..16 {
        assert_eq!(refused(&mut server, 0.0, 1.0 + f64::from(number)), 8);
    }
    let after: Vec<usize> =
        [20.0, 21.0, 22.0, 23.0].map(|sent| refused(&mut server, sent, sent + 0.5)).to_vec();
    assert_eq!(after, [4, 2, 1, 1]);
}

#[test]
fn the_number_of_requests_grows_by_one_with_each_round_of_answers() {
    let mut server = Server::new(8);
    server.answers(429, Some(0), 0.0, &mut Refusals::default());
    assert_eq!(server.gate.limit(), 4);
    let rounds = [5, 6, 7, 8, 8, 8].map(|answers| {
        (0..answers).for_each(|_| server.gate.answered());
        server.gate.limit()
    });
    assert_eq!(rounds, [5, 6, 7, 8, 8, 8]);
}

#[test]
fn a_server_that_only_answers_503_is_given_up_after_ten_minutes() {
    let mut server = Server::new(4);
    let mut request = Refusals::default();
    server.pause(503, Some(5), 100.0, &mut request);
    server.pause(503, None, 700.0, &mut request);
    assert_eq!(server.answers(503, None, 701.0, &mut request), gave_up(601));
    // Another request counts from the same time.
    assert_eq!(server.answers(503, Some(5), 702.0, &mut Refusals::default()), gave_up(602));
}

#[test]
fn a_server_that_works_on_another_request_is_not_given_up() {
    let mut server = Server::new(4);
    let refused = |server: &mut Server, now: f64, others: usize| {
        let now = server.at(now);
        let overload = Overload { status: 503, retry_after: None, sent: now, now };
        server.gate.overloaded(&mut Refusals::default(), overload, others)
    };
    for now in [0.0, 601.0, 5000.0] {
        assert!(matches!(refused(&mut server, now, 1), Next::Pause { .. }), "after {now} s");
    }
    assert_eq!(refused(&mut server, 5001.0, 0), gave_up(5001));
    server.gate.answered();
    assert!(matches!(refused(&mut server, 5002.0, 0), Next::Pause { .. }));
}

#[test]
fn an_answer_or_a_429_shows_that_the_server_runs() {
    for is_answer in [true, false] {
        let mut server = Server::new(4);
        let mut request = Refusals::default();
        server.pause(503, None, 0.0, &mut request);
        match is_answer {
            true => server.gate.answered(),
            false => _ = server.pause(429, None, 500.0, &mut request),
        }
        server.pause(503, None, 601.0, &mut request);
        server.pause(503, None, 1201.0, &mut request);
        assert_eq!(server.answers(503, None, 1202.0, &mut request), gave_up(601));
    }
}

#[test]
fn a_request_that_gets_429_is_given_up_after_six_hours() {
    let mut server = Server::new(4);
    let mut request = Refusals::default();
    server.pause(429, None, 0.0, &mut request);
    server.pause(429, None, 6.0 * 3600.0, &mut request);
    // Answers to other requests do not help this one.
    server.gate.answered();
    assert_eq!(server.answers(429, None, 21_601.0, &mut request), gave_up(21_601));
    server.pause(429, None, 21_602.0, &mut Refusals::default());
}

#[test]
fn a_server_that_is_full_for_a_minute_is_warned_of_once() {
    let mut server = Server::new(4);
    let warned = |server: &mut Server, wait: u64, now: f64| match server.answers(
        429,
        Some(wait),
        now,
        &mut Refusals::default(),
    ) {
        Next::Pause { warn, .. } => warn.map(|since| since.as_secs()),
        Next::GiveUp(time) => panic!("gave up after {time:?}"),
    };
    assert_eq!([0.0, 20.0, 40.0].map(|now| warned(&mut server, 20, now)), [None; 3]);
    // Until the end of the next pause, the server has answered nothing for 61 s.
    assert_eq!(warned(&mut server, 20, 41.0), Some(41));
    assert_eq!([61.0, 90.0, 500.0].map(|now| warned(&mut server, 20, now)), [None; 3]);
    server.gate.answered();
    assert_eq!(warned(&mut server, 60, 510.0), None);
    server.gate.answered();
    assert_eq!(warned(&mut server, 61, 520.0), Some(0));
}

#[test]
fn retry_after_is_a_number_of_seconds_or_a_date() {
    // 784,111,777 s after 1970.
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
    let seconds = |text: &str| retry_after(text, now).map(|wait| wait.as_secs());
    let read = ["7", " 120 ", "0", date].map(seconds);
    assert_eq!(read, [Some(7), Some(120), Some(0), Some(7)]);
    // A date in the past asks for no pause.
    assert_eq!(retry_after(date, now + Duration::from_secs(60)), Some(Duration::ZERO));
    assert_eq!(["-1", "soon", "", "1.5"].map(seconds), [None; 4]);
}
