//! The check of the product kernels at start: it passes, and names a kernel that computes something else.

#[cfg(feature = "host-kernels")]
use octant::device::cuda::Cuda;

use crate::dev;

#[test]
fn products_of_integers_are_exact() {
    for device in dev::all() {
        device.self_test().unwrap_or_else(|error| panic!("{}: {error}", device.name()));
        // The device can still be used, and tested again.
        device.self_test().unwrap();
    }
}

/// A kernel, and another one with the same parameters and no more shared memory that runs in its place.
#[cfg(feature = "host-kernels")]
struct Fault {
    kernel: &'static str,
    in_its_place: &'static str,
}

/// Kernels that compute half of the rows, or take the inputs for elements of another type.
#[cfg(feature = "host-kernels")]
const FAULTS: [Fault; 6] = [
    Fault { kernel: "linear_e4m3_8", in_its_place: "linear_bf16_8" },
    Fault { kernel: "linear_e4m3_64", in_its_place: "linear_e4m3_32" },
    Fault { kernel: "linear_e4m3_bf16_32", in_its_place: "linear_e4m3_bf16_16" },
    Fault { kernel: "linear_e4m3_bf16_128", in_its_place: "linear_e4m3_bf16_64" },
    Fault { kernel: "linear_bf16_256", in_its_place: "linear_bf16_128" },
    Fault { kernel: "linear_e4m3_whole", in_its_place: "linear_bf16_whole" },
];

#[cfg(feature = "host-kernels")]
#[test]
fn a_wrong_kernel_is_named() {
    for Fault { kernel, in_its_place } in FAULTS {
        let device = Cuda::on_faulty_host(kernel, in_its_place).unwrap();
        let error = device.self_test().unwrap_err();
        assert_eq!(error.op, kernel);
        let text = error.to_string();
        assert!(text.starts_with(&format!("{kernel}: wrong products in the self-test")), "{text}");
    }
}
