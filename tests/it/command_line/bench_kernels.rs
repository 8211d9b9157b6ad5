//! `octant bench kernels` with a tiny model.

use serde_json::Value;

use super::{error_of, octant, parsed, tiny};

/// The table has a line for each operation and number of rows, and the object at the end has its figures.
#[test]
fn kernels_are_timed_against_their_bytes() {
    let model = tiny();
    let args = [
        "bench",
        "kernels",
        "--config",
        &model,
        "--tp",
        "2",
        "--rows",
        "1,3",
        "--context",
        "70",
        "--reps",
        "2",
        "--json",
    ];
    let output = octant(&args, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let json = text.find("\n{\n").expect("the figures are an object at the end");
    let figures: Value = serde_json::from_str(&text[json..]).unwrap();
    let read = figures["read_bytes_per_s"].as_f64().unwrap();
    let kernels = figures["kernels"].as_array().unwrap();
    let lines: Vec<&str> = text[..json].lines().collect();
    assert_eq!((kernels.len(), lines.len()), (20, 22), "{text}");
    for (kernel, line) in kernels.iter().zip(&lines[1..]) {
        let number = |name: &str| kernel[name].as_f64().unwrap();
        let floor = number("bytes") / read * 1e6;
        assert!((number("floor_us") / floor - 1.0).abs() < 1e-9, "{kernel}");
        assert!((number("times_the_floor") / (number("us") / floor) - 1.0).abs() < 1e-9, "{kernel}");
        let cells: Vec<&str> = line.split_whitespace().take(3).collect();
        let expected = [&kernel["operation"], &kernel["kernel"], &kernel["rows"]].map(|cell| match cell {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        assert_eq!(cells, expected, "{line}");
    }
    assert!(lines[0].starts_with("operation ") && lines[0].ends_with(" times"), "{text}");
    assert!(lines[21].contains("reward_head  not measured: the model has no reward head"), "{text}");
}

#[test]
fn wrong_arguments_are_refused_by_name() {
    assert_eq!(
        parsed("bench kernels --config DIR --rows 1,0"),
        Err("--rows: expected at least 1, got 0".to_owned())
    );
    assert_eq!(
        parsed("bench kernels --config DIR --reps 0"),
        Err("--reps: expected at least 1, got 0".to_owned())
    );
    assert_eq!(
        parsed("bench kernels --config DIR --context 0"),
        Err("--context: expected at least 1, got 0".to_owned())
    );
    let spelt = parsed("bench kernels --config DIR --tensor-parallel-size 8 --rows 2,64").unwrap();
    assert!(spelt.contains("tp: 8") && spelt.contains("rows: [2, 64]"), "{spelt}");
    let refused =
        |args: &[&str]| error_of(&octant(&[&["bench", "kernels", "--config"], args].concat(), &[]), 1);
    let error = refused(&[&tiny(), "--device", "simulate"]);
    assert!(error.contains("--device simulate: simulated GPUs cannot be measured"), "{error}");
    let error = refused(&["no/such/directory"]);
    assert!(error.contains("no/such/directory"), "{error}");
}
