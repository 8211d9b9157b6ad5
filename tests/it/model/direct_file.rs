//! Direct I/O and cached reads return the same bytes, for any offset and length, cached or not.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use octant::model::{DirectFile, ReadBuffer};

/// A file length that is not a multiple of the alignment.
const LEN: usize = 3 * 4096 + 1234;

fn write(path: &Path) -> Vec<u8> {
    let bytes: Vec<u8> = (0..LEN).map(|i| (i * 7 + i / 256) as u8).collect();
    std::fs::write(path, &bytes).unwrap();
    bytes
}

/// Drops the file from the page cache.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

#[test]
fn direct_and_cached_reads_return_the_bytes_of_the_file() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("file");
    let bytes = write(&path);
    let file = DirectFile::open(path.clone(), 0).unwrap();
    let mut buffer = ReadBuffer::default();
    for cached in [false, true] {
        for at in [0, 1, 511, 4095, 4096, 4097, 8192, 3 * 4096, LEN - 1] {
            for len in [0, 1, 100, 4096, 5000, LEN] {
                let len = len.min(LEN - at);
                if !cached {
                    forget(&path);
                }
                file.read_once(at as u64, len, &mut buffer).unwrap();
                assert!(buffer.bytes() == &bytes[at..at + len], "{len} bytes from {at} on, cached: {cached}");
            }
        }
    }
}

#[test]
fn reading_past_the_end_is_an_error() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("file");
    write(&path);
    let file = DirectFile::open(path.clone(), 0).unwrap();
    for (at, len) in [(0, LEN + 1), (LEN, 1), (LEN + 9000, 1)] {
        forget(&path);
        let error = file.read_once(at as u64, len, &mut ReadBuffer::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{len} bytes from {at} on");
    }
}

#[test]
fn reading_a_file_truncated_while_open_is_an_error() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("file");
    write(&path);
    let file = DirectFile::open(path.clone(), 0).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
    let mut buffer = ReadBuffer::default();
    let error = file.read_once(4000, 2000, &mut buffer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    file.read_once(4000, 1000, &mut buffer).unwrap();
    assert_eq!(buffer.bytes().len(), 1000);
}

/// The next start of a server finds a small file in the page cache.
#[cfg(target_os = "linux")]
#[test]
fn a_small_file_is_cached_by_being_read() {
    use rustix::io::{ReadWriteFlags, preadv2};
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("file");
    // Longer than what the system reads ahead.
    let bytes: Vec<u8> = (0..32 << 20).map(|i: u32| (i ^ i >> 9) as u8).collect();
    let len = bytes.len() as u64;
    std::fs::write(&path, &bytes).unwrap();
    // Whether the last byte is cached after the file was read. Files of at most `most` bytes count as small.
    let is_cached = |most: u64| {
        let file = DirectFile::open(path.clone(), most).unwrap();
        forget(&path);
        let mut buffer = ReadBuffer::default();
        file.read_once(0, bytes.len(), &mut buffer).unwrap();
        assert!(buffer.bytes() == &bytes[..]);
        let mut byte = [0];
        let to = &mut [std::io::IoSliceMut::new(&mut byte)];
        preadv2(File::open(&path).unwrap(), to, len - 1, ReadWriteFlags::NOWAIT).is_ok()
    };
    if is_cached(len - 1) {
        println!("skipped: no direct I/O in this file system");
        return;
    }
    assert!(is_cached(len));
}
