//! Downloads that break off, and answers that are wrong.

use std::fs;
use std::net::TcpListener;

use super::test_hub::{Fault, Host};
use super::*;

/// A `Range` header from a position on.
fn from(position: usize) -> Option<String> {
    Some(format!("bytes={position}-"))
}

#[test]
fn a_connection_that_breaks_is_continued() {
    let setup = Setup::new();
    let size = setup.hub.bytes(FIRST).len();
    setup.hub.fail(Host::Storage, FIRST, Fault::Cut(100_000));
    setup.hub.fail(Host::Storage, FIRST, Fault::Cut(1));
    setup.hub.fail(Host::Storage, FIRST, Fault::Status(503, vec![("retry-after", "0")]));
    // The address that the hub redirects to has expired.
    setup.hub.fail(Host::Storage, FIRST, Fault::Status(403, vec![]));
    succeeds(&setup.download(&[]));
    setup.check_snapshot();
    let expected = [
        (None, 100_000),
        (from(100_000), 1),
        (from(100_001), 0),
        (from(100_001), 0),
        (from(100_001), size - 100_001),
    ];
    assert_eq!(setup.hub.reads(FIRST), expected);
}

#[test]
fn a_download_continues_after_ctrl_c_and_after_a_kill() {
    let setup = Setup::new();
    let size = setup.hub.bytes(FIRST).len();
    for (signal, at, sent) in [(Signal::INT, 50_000, 50_000), (Signal::KILL, 80_000, 30_000)] {
        let _open = setup.hub.stall(FIRST, sent);
        let args = ["serve", "org/tiny", "--port", "0", "-tp", "1"];
        let mut server = Process::spawn(setup.command(&args, &[]));
        wait_for(&setup.partial(FIRST), at);
        kill_process(Pid::from_child(&server.child), signal).unwrap();
        let status = server.child.wait().unwrap();
        assert_eq!(status.success(), signal == Signal::INT, "{status:?}");
        assert_eq!(fs::metadata(setup.partial(FIRST)).unwrap().len(), at);
        assert!(!setup.cache().join("refs/main").exists());
    }
    succeeds(&setup.download(&[]));
    setup.check_snapshot();
    let expected = [(None, 50_000), (from(50_000), 30_000), (from(80_000), size - 80_000)];
    assert_eq!(setup.hub.reads(FIRST), expected);
}

#[test]
fn two_processes_download_each_file_once() {
    let setup = Setup::new();
    let open = setup.hub.stall(FIRST, 50_000);
    let quantize = |out: &str| {
        let out = setup.home.path().join(out).to_string_lossy().into_owned();
        Process::spawn(setup.command(&["quantize", "org/tiny", &out], &[]))
    };
    let first = quantize("one");
    wait_for(&setup.partial(FIRST), 50_000);
    let mut second = quantize("two");
    second.line_with("waiting for another process that downloads model-00001-of-00002.safetensors");
    open.send(()).unwrap();
    for process in [first, second] {
        let (status, text) = process.end();
        assert_eq!(status, 0, "{text}");
    }
    setup.check_snapshot();
    assert_eq!(setup.hub.reads(FIRST), [(None, setup.hub.bytes(FIRST).len())]);
    assert_eq!(setup.hub.reads(SECOND), [(None, setup.hub.bytes(SECOND).len())]);
}

#[test]
fn a_silent_connection_is_replaced_after_the_timeout() {
    let setup = Setup::new();
    let _open = setup.hub.stall(FIRST, 1000);
    succeeds(&setup.download(&[("HF_HUB_DOWNLOAD_TIMEOUT", "1")]));
    setup.check_snapshot();
    let size = setup.hub.bytes(FIRST).len();
    assert_eq!(setup.hub.reads(FIRST), [(None, 1000), (from(1000), size - 1000)]);
}

#[test]
fn a_server_without_ranges_sends_the_whole_file_again() {
    let setup = Setup::new();
    let size = setup.hub.bytes(FIRST).len();
    setup.hub.fail(Host::Storage, FIRST, Fault::Cut(1000));
    setup.hub.fail(Host::Storage, FIRST, Fault::WholeFile);
    succeeds(&setup.download(&[]));
    setup.check_snapshot();
    assert_eq!(setup.hub.reads(FIRST), [(None, 1000), (from(1000), size)]);
}

#[test]
fn wrong_bytes_never_get_into_the_cache() {
    let setup = Setup::new();
    setup.hub.fail(Host::Storage, FIRST, Fault::WrongBytes);
    let error = setup.refused(&[]);
    let expected = format!("org/tiny: {FIRST}: expected the SHA-256 {}, got ", setup.hub.sha256(FIRST));
    assert!(error.starts_with(&expected), "{error}");
    assert!(!setup.partial(FIRST).exists());
    assert!(!setup.cache().join("blobs").join(setup.hub.sha256(FIRST)).exists());
    assert!(!setup.cache().join("refs/main").exists());
    // A wrong beginning from an earlier process is found at the end, and the file is read once more.
    fs::write(setup.partial(FIRST), [7; 500]).unwrap();
    let text = succeeds(&setup.download(&[]));
    assert!(text.contains("it is downloaded again"), "{text}");
    setup.check_snapshot();
    let size = setup.hub.bytes(FIRST).len();
    assert_eq!(setup.hub.reads(FIRST)[1..], [(from(500), size - 500), (None, size)]);
    // A blob of another size is replaced.
    fs::write(setup.cache().join("blobs").join(setup.hub.sha256(FIRST)), "short").unwrap();
    succeeds(&setup.download(&[]));
    setup.check_snapshot();
}

#[test]
fn a_busy_hub_is_asked_again() {
    let setup = Setup::new();
    for status in [500, 429] {
        setup.hub.fail(Host::Hub, "/revision/main", Fault::Status(status, vec![("retry-after", "0")]));
        setup.hub.fail(Host::Hub, SECOND, Fault::Status(status, vec![("retry-after", "0")]));
    }
    succeeds(&setup.download(&[]));
    setup.check_snapshot();
    for _ in 0..5 {
        setup.hub.fail(Host::Hub, "/revision/main", Fault::Status(503, vec![("retry-after", "0")]));
    }
    fs::remove_dir_all(setup.cache()).unwrap();
    let expected = format!(
        "org/tiny: {} answers with status 503 (5 attempts); the cache has no revision `main` in {}",
        setup.hub.address,
        setup.cache().display()
    );
    assert_eq!(setup.refused(&[]), expected);
}

#[test]
fn a_network_that_is_down_is_named() {
    let setup = Setup::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cache = setup.cache();
    let missing = format!("the cache has no revision `main` in {}", cache.display());
    let error = setup.refused(&[("HF_ENDPOINT", &format!("http://{closed}"))]);
    assert_eq!(error, format!("org/tiny: {closed}: Connection refused (5 attempts); {missing}"));
}

#[test]
fn too_little_space_is_found_before_the_download() {
    let setup = Setup::new();
    setup.hub.claim(5_000_000_000_000_000_000);
    let error = setup.refused(&[]);
    assert!(error.starts_with("org/tiny: the download needs 10000000000.00 GB, and "), "{error}");
    let end = format!(
        " GB are free in {}; HF_HUB_CACHE names another directory for the cache",
        setup.cache().display()
    );
    assert!(error.ends_with(&end), "{error}");
    assert!(setup.hub.reads(FIRST).is_empty());
}

#[test]
fn a_moved_repository_is_followed_with_the_token() {
    let setup = Setup::new();
    setup.hub.require("t");
    let to = "/api/models/org/tiny/revision/v1".to_owned();
    setup.hub.fail(Host::Hub, "/revision/main", Fault::Moved(to));
    let to = format!("/org/tiny/resolve/{COMMIT}/{SECOND}");
    setup.hub.fail(Host::Hub, SECOND, Fault::Moved(to));
    succeeds(&setup.download(&[("HF_TOKEN", " t\n")]));
    setup.check_snapshot();
}
