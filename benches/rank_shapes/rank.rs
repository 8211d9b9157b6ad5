//! A rank of the 340B: its share of the model, and the devices that are compared.

use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use octant::device::DeviceError;
use octant::device::cpu::{Cpu, CpuOptions};
use octant::device::cuda::{Cuda, Products};
use octant::machine;
use octant::model::ModelConfig;

use crate::report::{Bound, Case, Report, same_bits};

/// Ranks of the group.
pub(crate) const RANKS: usize = 8;
/// The most rows.
pub(crate) const ROWS: usize = 16;
/// Numbers of rows of kernels whose results take seconds to compute or to read.
pub(crate) const FEW: [usize; 5] = [16, 1, 2, 7, 8];
/// All numbers of rows.
pub(crate) const ALL: [usize; ROWS] = [16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// The orders in which the threads of a block start: ascending and descending.
pub(crate) const ORDERS: usize = 2;

/// The devices, and the model's sizes.
pub(crate) struct Rank {
    /// The whole model.
    pub(crate) model: ModelConfig,
    /// This rank's share.
    pub(crate) share: ModelConfig,
    /// The reference.
    pub(crate) cpu: Cpu,
    /// The kernels on the host, one device for each order of threads.
    pub(crate) hosts: [Cuda; ORDERS],
}

/// A kernel with what its results must be.
pub(crate) struct Kernel<'a> {
    pub(crate) name: &'a str,
    /// [`ROWS`] rows of results.
    pub(crate) expected: &'a [f32],
    /// How near the results must be to these.
    pub(crate) bounds: &'a [Bound],
    /// Numbers of rows, the first of them [`ROWS`].
    pub(crate) counts: &'a [usize],
}

impl Rank {
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nemotron-4-340b-instruct");
        let model = ModelConfig::from_dir(&dir)?;
        Ok(Self {
            share: model.share(RANKS)?,
            model,
            cpu: Cpu::new(CpuOptions { threads: machine::cores(), ..Default::default() })?,
            hosts: [Cuda::on_host(false, Products::default())?, Cuda::on_host(true, Products::default())?],
        })
    }

    /// Calls `make` for the device of each order.
    pub(crate) fn on_hosts<T>(
        &self,
        make: impl Fn(&Cuda) -> Result<T, DeviceError>,
    ) -> Result<[T; ORDERS], DeviceError> {
        let [ascending, descending] = &self.hosts;
        Ok([make(ascending)?, make(descending)?])
    }

    /// Runs a kernel with each number of rows, and with all rows in the other order of threads. `run` takes
    /// the device's index and a range that ends with the last row. Returns the results of all rows.
    pub(crate) fn check(
        &self,
        report: &mut Report,
        kernel: &Kernel<'_>,
        mut run: impl FnMut(usize, Range<usize>) -> Result<Vec<f32>, DeviceError>,
    ) -> Result<Vec<f32>, DeviceError> {
        assert_eq!(kernel.counts[0], ROWS, "the first number of rows");
        let width = kernel.expected.len() / ROWS;
        let mut all = Vec::new();
        let ascending = kernel.counts.iter().map(|rows| (0, *rows));
        for (order, rows) in ascending.chain([(1, ROWS)]) {
            let began = Instant::now();
            let got = run(order, ROWS - rows..ROWS)?;
            let seconds = began.elapsed().as_secs_f64();
            if all.is_empty() {
                all.clone_from(&got);
            }
            let first = (ROWS - rows) * width;
            let expected = &kernel.expected[first..];
            let errors = kernel.bounds.iter().map(|bound| bound.check(&got, expected)).collect();
            let name = if order == 0 { kernel.name.to_owned() } else { format!("{}, reversed", kernel.name) };
            report.add(Case { name, rows, errors, same: same_bits(&got, &all[first..]), seconds });
        }
        Ok(all)
    }
}
