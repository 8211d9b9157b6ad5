//! Products of many rows by cuBLASLt agree with those of the `linear` kernel, and the choice is measured once
//! and kept in a file. On the host four algorithms replace the library. A clock that does not run by itself
//! measures them: the fastest one is wrong and must not be chosen.

use octant::device::{ActQuant, Device, FloatType, HostMatrix, MatrixData, StepCapacity, fp8, upload_matrix};

use crate::dev::{self, Dev};

const SHAPE: (usize, usize) = (48, 144);

/// A product of `rows` rows, after the device has measured its choices. The shape is outputs and inputs.
fn product(device: &Dev, (out, input): (usize, usize), rows: usize) -> Vec<f32> {
    let codes: Vec<u8> =
        (0..out * input).map(|i| fp8::encode(((i * 37 % 101) as f32 - 50.0) / 8.0)).collect();
    let scales: Vec<f32> = (0..out).map(|i| 0.01 + i as f32 * 1e-4).collect();
    let data = MatrixData::Fp8 { codes: &codes, scales: &scales };
    let matrix = upload_matrix(device, HostMatrix { out, input, data }).unwrap();
    let _step = device.step(StepCapacity { rows, max_positions: 64, ..Default::default() }).unwrap();
    let x: Vec<f32> =
        (0..rows * input).map(|i| ((i * 53 % 97) as f32 - 48.0) * (1 + i / input) as f32).collect();
    let acts = crate::device::acts(device, &x, input, ActQuant::Fp8PerToken);
    let mut floats = device.floats_of(FloatType::Bf16, rows, out).unwrap();
    device.linear(&acts, &matrix, &mut floats).unwrap();
    device.read(&floats).unwrap()
}

#[test]
fn library_products_agree_with_the_kernel_and_choices_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("octant/cublaslt.json");
    let Some(device) = dev::fastest(&cache) else { return eprintln!("not run: no GPU") };
    for rows in [100, 256, 300] {
        let (expected, got) = (product(&dev::one(), SHAPE, rows), product(&device, SHAPE, rows));
        for (row, (expected, got)) in expected.chunks(SHAPE.0).zip(got.chunks(SHAPE.0)).enumerate() {
            let rms = (expected.iter().map(|x| x * x).sum::<f32>() / SHAPE.0 as f32).sqrt();
            // One rounding to BF16 by the kernel and two for the library, and the order of sums.
            let close = expected.iter().zip(got).all(|(a, b)| (a - b).abs() <= a.abs() / 128.0 + 1e-3 * rms);
            assert!(close, "{rows} rows, row {row}: {expected:?} {got:?}");
        }
    }
    let kept = std::fs::read_to_string(&cache).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&kept).unwrap();
    let rows: Vec<u64> =
        parsed["choices"].as_array().unwrap().iter().map(|c| c["rows"].as_u64().unwrap()).collect();
    assert_eq!(rows, [256, 512], "a choice for each power of two");
    if cfg!(feature = "host-kernels") {
        assert_eq!(
            parsed["choices"][0]["algorithm"],
            serde_json::json!(vec![1; 8]),
            "the fastest right algorithm, neither the first nor the last"
        );
        // Choices in the file are not measured again, even if they are wrong.
        std::fs::write(&cache, kept.replace("1,", "7,").replace("1\n", "7\n")).unwrap();
        let wrong = product(&dev::fastest(&cache).unwrap(), SHAPE, 256);
        assert!(wrong.iter().zip(product(&dev::one(), SHAPE, 256)).any(|(a, b)| a * b < 0.0));
    }
}

#[cfg(feature = "host-kernels")]
#[test]
fn a_library_that_is_slower_than_the_kernel_is_not_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cublaslt.json");
    let few_outputs = (32, SHAPE.1);
    let got = product(&dev::fastest(&cache).unwrap(), few_outputs, 256);
    assert_eq!(got, product(&dev::one(), few_outputs, 256));
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&cache).unwrap()).unwrap();
    let choices = kept["choices"].as_array().unwrap();
    assert!(choices.len() == 1 && choices[0]["algorithm"].is_null(), "{choices:?}");
}
