//! A group over NCCL of one rank, since the library takes no GPU twice.

use std::time::Duration;

use octant::comm::{Communicator, Nccl};
use octant::device::Device;
use octant::device::cuda::{Cuda, Products, nccl_version};

use crate::dev;

#[test]
fn a_group_of_one_reduces_and_gathers() {
    let device = match (Cuda::new(0, Products::default()), nccl_version()) {
        (Ok(device), Ok(version)) => {
            eprintln!("NCCL {version}");
            device
        }
        (Err(error), _) => return dev::not_on_a_gpu(&error.to_string()),
        (_, Err(error)) => return eprintln!("not run: {error}"),
    };
    let comm = Nccl::group(std::slice::from_ref(&device), Duration::from_secs(10)).unwrap().remove(0);
    let values: Vec<f32> = (0..24).map(|i| i as f32 / 3.0).collect();
    let mut x = device.floats(4, 6).unwrap();
    device.write(&values, &mut x).unwrap();
    comm.all_reduce(&device, &mut x).unwrap();
    assert_eq!(device.read(&x).unwrap(), values);
    let mut whole = device.floats(4, 6).unwrap();
    comm.all_gather(&device, &x, &mut whole).unwrap();
    assert_eq!(device.read(&whole).unwrap(), values);
    let _graph = device.capture(&mut || comm.all_reduce(&device, &mut x)).unwrap();
}

#[test]
fn a_missing_library_is_named() {
    if let Err(error) = nccl_version() {
        assert_eq!(error.to_string(), "nccl: none of libnccl.so.2, libnccl.so can be loaded");
    }
}
