//! Groups whose ranks reach one another's memory on GPUs: sums are made in rank order, by every rank for few rows, and
//! by the one that they are shared out to for many. Both give the same bits, so that where one takes over from the other
//! is a matter of speed alone, and measured.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Communicator, Local, START, did_not_come, has_ended};
use crate::device::cuda::{Acts, Cuda, Floats, Peers, Reduction, Rows};
use crate::device::{ActQuant, Device, DeviceError, Norm, NormKind};

/// Row counts at which both ways are measured.
const MEASURED_ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Reductions that are timed at a time, and how often.
const REDUCTIONS: usize = 20;
const TIMES: usize = 5;

/// A rank of a group on GPUs.
#[derive(Debug)]
pub struct P2p {
    peers: Peers,
    /// Where the ranks' threads meet.
    threads: Local,
    /// With more rows they are shared out.
    everywhere_rows: AtomicUsize,
}

impl P2p {
    /// The ranks of a group on these devices, which wait for one another for at most `patience`. Rows are shared out
    /// where that is measured to be faster, or above `everywhere_rows`.
    ///
    /// # Errors
    /// If a device cannot reach another's memory.
    pub fn group(
        devices: &[Cuda],
        patience: Duration,
        everywhere_rows: Option<usize>,
    ) -> Result<Vec<Self>, DeviceError> {
        let threads = Local::group(devices.len(), patience.max(START));
        let rows = everywhere_rows.unwrap_or(usize::MAX);
        let ranks = Peers::group(devices, patience)?.into_iter().zip(threads);
        Ok(ranks.map(|(peers, threads)| Self { peers, threads, everywhere_rows: rows.into() }).collect())
    }

    /// Who has which rows of a residual of so many.
    fn lie(&self, rows: usize) -> Rows {
        let everywhere = rows <= self.everywhere_rows.load(Ordering::Relaxed);
        if everywhere { Rows::Everywhere } else { Rows::SharedOut }
    }

    /// The seconds that a reduction of each number of rows takes, by every rank and by shares. Every rank measures; no
    /// two have the same figures.
    ///
    /// # Errors
    /// If a rank does not come, or memory runs out.
    pub fn measure(&self, cuda: &Cuda, counts: &[usize], cols: usize) -> Result<Vec<[f64; 2]>, DeviceError> {
        let most = counts.iter().copied().max().unwrap_or(1);
        let floats = || self.floats(cuda, most, cols);
        let mut bench = Bench {
            residual: cuda.floats(most, cols)?,
            deltas: [floats()?, floats()?],
            norm: Norm {
                kind: NormKind::RmsNorm,
                weight: cuda.vector(&vec![1.0; cols])?,
                bias: None,
                eps: 1.0,
            },
            out: self.acts(cuda, most, cols)?,
            mark: cuda.floats(1, 1)?,
        };
        cuda.write(&[0.0], &mut bench.mark)?;
        let ways = [Rows::Everywhere, Rows::SharedOut];
        let mut measured = Vec::new();
        for rows in counts {
            let [everywhere, shared_out] = ways.map(|way| self.time(cuda, &mut bench, *rows, way));
            measured.push([everywhere?, shared_out?]);
        }
        // Nobody takes back what others still read.
        self.threads.meet()?;
        self.peers.withdraw(4);
        self.threads.meet()?;
        Ok(measured)
    }

    /// The seconds that a reduction takes in one way.
    fn time(&self, cuda: &Cuda, bench: &mut Bench, rows: usize, lie: Rows) -> Result<f64, DeviceError> {
        let Bench { residual, deltas, norm, out, mark } = bench;
        let zeros = vec![0.0; rows * cuda.cols(residual)];
        cuda.write(&zeros, residual)?;
        deltas.iter_mut().try_for_each(|delta| cuda.write(&zeros, delta))?;
        let mut best = f64::INFINITY;
        for _ in 0..TIMES {
            cuda.read(mark)?;
            self.threads.meet()?;
            let begun = Instant::now();
            for turn in 0..REDUCTIONS {
                let reduction = Reduction { residual: &mut *residual, delta: &deltas[turn % 2], rows: lie };
                self.peers.reduce_norm(cuda, reduction, norm, ActQuant::Fp8PerToken, out)?;
            }
            cuda.read(mark)?;
            best = best.min(begun.elapsed().as_secs_f64() / REDUCTIONS as f64);
            self.check()?;
        }
        Ok(best)
    }
}

/// What is reduced when that is timed.
struct Bench {
    residual: Floats,
    deltas: [Floats; 2],
    norm: Norm<<Cuda as Device>::Vector>,
    out: Acts,
    /// Small, to be read: everything that was enqueued before has then been done.
    mark: Floats,
}

impl Communicator<Cuda> for P2p {
    fn rank(&self) -> usize {
        self.peers.rank()
    }

    fn size(&self) -> usize {
        self.peers.size()
    }

    fn floats(&self, cuda: &Cuda, rows: usize, cols: usize) -> Result<Floats, DeviceError> {
        let floats = cuda.floats(rows, cols)?;
        self.peers.offer_floats(&floats);
        self.threads.meet().map(|()| floats)
    }

    fn acts(&self, cuda: &Cuda, rows: usize, cols: usize) -> Result<Acts, DeviceError> {
        let acts = cuda.acts(rows, cols)?;
        self.peers.offer_acts(&acts);
        self.threads.meet().map(|()| acts)
    }

    fn prepare(&self, cuda: &Cuda, rows: usize, cols: usize) -> Result<(), DeviceError> {
        if self.everywhere_rows.load(Ordering::Relaxed) != usize::MAX || self.peers.size() == 1 {
            return Ok(());
        }
        let counts: Vec<usize> = MEASURED_ROWS.into_iter().filter(|count| *count <= rows.max(1)).collect();
        let measured = self.measure(cuda, &counts, cols)?;
        let wins = |([everywhere, shared_out], _): &(&[f64; 2], &usize)| everywhere <= shared_out;
        let everywhere = measured.iter().zip(&counts).take_while(wins).last().map_or(0, |(_, rows)| *rows);
        // All go by what the first has measured.
        self.threads.exchange(vec![everywhere as f32], |rank, rows| {
            if rank == 0 {
                self.everywhere_rows.store(rows[0] as usize, Ordering::Relaxed);
            }
        })
    }

    fn meet(&self) -> Result<(), DeviceError> {
        self.threads.meet()
    }

    fn all_reduce(&self, cuda: &Cuda, x: &mut Floats) -> Result<(), DeviceError> {
        self.peers.reduce(cuda, x)
    }

    fn all_gather(&self, cuda: &Cuda, part: &Floats, whole: &mut Floats) -> Result<(), DeviceError> {
        self.peers.gather(cuda, part, whole)
    }

    fn reduce_norm(
        &self,
        cuda: &Cuda,
        (residual, delta): (&mut Floats, &mut Floats),
        norm: &Norm<<Cuda as Device>::Vector>,
        quant: ActQuant,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        let rows = self.lie(cuda.rows(delta));
        self.peers.reduce_norm(cuda, Reduction { residual, delta, rows }, norm, quant, out)
    }

    fn settle(&self, cuda: &Cuda, residual: &mut Floats, delta: &mut Floats) -> Result<(), DeviceError> {
        let rows = self.lie(cuda.rows(delta));
        self.peers.settle(cuda, residual, delta, rows)
    }

    fn check(&self) -> Result<(), DeviceError> {
        let Some(missed) = self.peers.missed() else { return Ok(()) };
        Err(match missed.has_ended {
            true => has_ended(missed.rank),
            false => did_not_come(missed.rank, self.peers.patience()),
        })
    }
}
