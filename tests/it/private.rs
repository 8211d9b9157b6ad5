//! Private code that no public function shows in full. The library does not export it, so its files are
//! compiled into this binary a second time; they name nothing else of the crate.
#![allow(dead_code, reason = "the library uses more of these files than the tests do")]

mod patterns;
mod progress;

#[path = "../../src/stdio/filter.rs"]
mod filter;
#[path = "../../src/server/log_values.rs"]
mod log_values;
#[path = "../../src/model/scheme/module_list.rs"]
mod module_list;
#[path = "../../src/launch/numa.rs"]
mod numa;
#[path = "../../src/device/cpu/philox.rs"]
mod philox;
#[path = "../../src/commands/batch/progress_text.rs"]
mod progress_text;
#[path = "../../src/python_regex.rs"]
mod python_regex;
#[path = "../../src/stdio/queue.rs"]
mod queue;
#[path = "../../src/offline/row_map.rs"]
mod row_map;
#[path = "../../src/stdio/write.rs"]
mod write;

use std::sync::atomic::Ordering;

use filter::LogFilter;
use log_values::{bounded, thousandths};
use numa::{cpus_of_node, parse_cpu_list};
use philox::philox;
use queue::{CAPACITY, Queue};
use row_map::RowMap;
use tracing::Level;

/// The known answers are from the authors' Random123 distribution.
#[test]
fn philox_gives_the_known_answers() {
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
}

#[test]
fn cpus_near_a_gpu_are_found() {
    let sys = tempfile::tempdir().unwrap();
    let file = |path: &str, text: &str| {
        let path = sys.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    file("bus/pci/devices/0000:1b:00.0/numa_node", "1\n");
    file("bus/pci/devices/0000:9a:00.0/numa_node", "-1\n");
    file("devices/system/node/node1/cpulist", "2-4,9\n");
    assert_eq!(cpus_of_node(sys.path(), "00000000:1B:00.0"), Some(vec![2, 3, 4, 9]));
    assert_eq!(cpus_of_node(sys.path(), "00000000:9A:00.0"), None);
    assert_eq!(cpus_of_node(sys.path(), "00000000:33:00.0"), None);
    assert_eq!(parse_cpu_list("0"), Some(vec![0]));
    assert_eq!(parse_cpu_list("0-"), None);
}

#[test]
fn a_row_map_selects_the_key_rows_of_grouped_qkv() {
    // Keys of two groups; each group has 3 query heads, 1 key head and 1 value head of 2 rows.
    let keys = RowMap { first: 6, block: 2, stride: 10 };
    assert_eq!(keys.runs(0..4).collect::<Vec<_>>(), [6..8, 16..18]);
    assert_eq!(keys.runs(1..3).collect::<Vec<_>>(), [7..8, 16..17]);
    assert_eq!(RowMap::ALL.runs(5..9).next(), Some(5..9));
    assert_eq!(RowMap::ALL.runs(5..9).count(), 1);
    assert_eq!(keys.runs(2..2).count(), 0);
}

#[test]
fn numbers_of_the_access_log_have_at_most_three_decimals() {
    for (value, text) in [(0.1 + 0.2, "0.3"), (0.415_492, "0.415"), (1_234.567_89, "1234.568"), (0.0, "0.0")]
    {
        assert_eq!(format!("{:?}", thousandths(value)), text);
    }
}

#[test]
fn texts_of_clients_are_cut_in_the_access_log() {
    assert_eq!(bounded(&"é".repeat(300)), format!("{}…", "é".repeat(200)));
    assert_eq!(bounded("/v1/models"), "/v1/models");
}

#[test]
fn a_full_queue_of_the_log_drops_and_counts_lines() {
    let queue = Queue::new(std::fs::File::open("/dev/null").unwrap().into());
    let line = [b"x".repeat(99), b"\n".to_vec()].concat();
    for _ in 0..CAPACITY / line.len() {
        queue.push(&line);
    }
    assert_eq!(queue.dropped().load(Ordering::Relaxed), 0);
    queue.push(&line.repeat(3));
    assert_eq!(queue.dropped().load(Ordering::Relaxed), 3);
    queue.push(b"short\n");
    assert_eq!(queue.dropped().load(Ordering::Relaxed), 3, "there is room for a short line");
}

fn enabled(filter: &str, module: &str, level: Level) -> bool {
    filter.parse::<LogFilter>().unwrap().0.would_enable(module, &level)
}

#[test]
fn log_levels_apply_to_all_modules_or_to_one() {
    assert!(enabled("", "a::server", Level::INFO) && !enabled("", "a::server", Level::DEBUG));
    assert!(enabled(" DEBUG ", "hyper", Level::DEBUG));
    let mixed = "warn,a::server=debug";
    assert!(enabled(mixed, "a::server::routes", Level::DEBUG));
    assert!(!enabled(mixed, "a::engine", Level::INFO) && enabled(mixed, "a::engine", Level::WARN));
    let alone = "a::server=debug";
    assert!(enabled(alone, "a::engine", Level::ERROR) && !enabled(alone, "a::engine", Level::WARN));
    assert!(!enabled("off", "octant", Level::ERROR));
}

#[test]
fn an_invalid_log_filter_is_quoted() {
    for (filter, part) in [
        ("verbose", "`verbose`"),
        ("octant", "`octant`"),
        ("info,octant=loud", "`loud`"),
        ("=info", "`=info`"),
    ] {
        let error = filter.parse::<LogFilter>().unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("expected off, error, warn"), "{error}");
    }
}
