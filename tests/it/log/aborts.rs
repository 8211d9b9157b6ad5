//! Messages of Rust's runtime just before it aborts the process: they are shown if standard error is read,
//! and delay the end of the process only for a limited time if it is not. The process is this test again,
//! with the log of the binary.

use std::alloc::{Layout, handle_alloc_error};
use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use octant::stdio::{Log, LogFormat};
use rustix::fs::{Mode, OFlags, fchmod, fcntl_getfl};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

use super::{full_pipe, wait};

/// Variable that names what aborts the process.
const CAUSE: &str = "OCTANT_TEST_CAUSE";
const CAUSES: [&str; 3] = ["allocation", "overflow", "second panic"];

/// Starts this process again, so that it runs the test `name`.
fn again(name: &str, cause: &str, stderr: impl Into<Stdio>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("log::aborts::{name}"), "--nocapture", "--test-threads=1"]);
    command.env(CAUSE, cause).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap()
}

/// Aborts the process if [`again`] has started it.
fn abort_if_asked() {
    let Ok(cause) = std::env::var(CAUSE) else { return };
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
    let log = Log::start();
    log.subscribe(LogFormat::Text, "info".parse().unwrap());
    tracing::info!("the line before");
    std::thread::sleep(Duration::from_millis(100));
    match cause.as_str() {
        "allocation" => handle_alloc_error(Layout::new::<[u8; 4321]>()),
        "overflow" => _ = deeper(1),
        _ => {
            let _second = PanicsWhenDropped;
            panic!("the first panic");
        }
    }
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("the second panic");
    }
}

/// Calls itself until the stack overflows.
fn deeper(depth: u64) -> u64 {
    if black_box(depth) == 0 { 0 } else { black_box(deeper(depth + 1)) + 1 }
}

/// Asserts that a process aborts.
fn aborts(mut child: Child, case: &str) {
    let status = wait(&mut child);
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{case}: {status}");
}

#[test]
fn a_process_aborts_although_standard_error_is_not_read() {
    abort_if_asked();
    let name = "a_process_aborts_although_standard_error_is_not_read";
    for cause in CAUSES {
        let (reader, writer) = full_pipe();
        let given = writer.try_clone().unwrap();
        aborts(again(name, cause, writer), cause);
        let flags = fcntl_getfl(&given).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "{cause}: other processes write to the pipe too");
        drop(reader);
    }
    // Only root may open this pipe again, like the pipe of another user.
    let (reader, writer) = full_pipe();
    fchmod(&writer, Mode::empty()).unwrap();
    aborts(again(name, "allocation", writer), "a pipe that cannot be opened");
    drop(reader);
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    aborts(again(name, "allocation", writer), "a closed pipe");
    let (mut sender, receiver) = UnixStream::pair().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.write(&[b'\n'; 4096]).is_ok() {}
    sender.set_nonblocking(false).unwrap();
    aborts(again(name, "overflow", OwnedFd::from(sender)), "a full socket");
    drop(receiver);
}

#[test]
fn the_message_of_an_abort_is_shown() {
    abort_if_asked();
    let name = "the_message_of_an_abort_is_shown";
    let shows = |cause: &str, text: &str| {
        let parts = match cause {
            "allocation" => &["memory allocation of 4321 bytes failed"][..],
            "overflow" => &["has overflowed its stack", "stack overflow"],
            _ => &["the first panic", "the second panic", "panic in a destructor", "aborting"],
        };
        let mut rest = text;
        for part in ["the line before"].iter().chain(parts) {
            let at = rest.find(part).unwrap_or_else(|| panic!("{cause}: no `{part}` in order in `{text}`"));
            rest = &rest[at..];
        }
    };
    for cause in CAUSES {
        let (mut reader, writer) = pipe().unwrap();
        aborts(again(name, cause, writer), cause);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        shows(cause, &text);
        let (mut receiver, sender) = UnixStream::pair().unwrap();
        aborts(again(name, cause, OwnedFd::from(sender)), cause);
        text.clear();
        receiver.read_to_string(&mut text).unwrap();
        shows(cause, &text);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"earlier\n").unwrap();
        aborts(again(name, cause, File::try_clone(&file).unwrap()), cause);
        std::io::Seek::rewind(&mut file).unwrap();
        text.clear();
        file.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("earlier\n"), "{cause}: {text}");
        shows(cause, &text);
    }
}
