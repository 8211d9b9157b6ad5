//! Groups whose ranks reach one another's memory on GPUs: sums are made in rank order, by every rank for few rows, and
//! by the one that they are shared out to for many. Both give the same bits, so that where one takes over from the other
//! is a matter of speed alone, and measured.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Communicator, Local, did_not_come, has_ended};
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
        let threads = Local::group(devices.len(), patience);
        let rows = everywhere_rows.unwrap_or(usize::MAX);
        let ranks = Peers::group(devices, patience)?.into_iter().zip(threads);
        Ok(ranks.map(|(peers, threads)| Self { peers, threads, everywhere_rows: rows.into() }).collect())
    }

    /// Who has which rows of a residual of so many.
    fn lie(&self, rows: usize) -> Rows {
        let everywhere = rows <= self.everywhere_rows.load(Ordering::Relaxed);
        if everywhere { Rows::Everywhere } else { Rows::SharedOut }
    }

    /// The seconds that a reduction takes in one way.
    fn time(&self, cuda: &Cuda, bench: &mut Bench, rows: usize, lie: Rows) -> Result<f64, DeviceError> {
        let Bench { residual, deltas, norm, out } = bench;
        let zeros = vec![0.0; rows * cuda.cols(residual)];
        cuda.write(&zeros, residual)?;
        deltas.iter_mut().try_for_each(|delta| cuda.write(&zeros, delta))?;
        let mut best = f64::INFINITY;
        for _ in 0..TIMES {
            cuda.read(&deltas[0])?;
            self.threads.meet()?;
            let begun = Instant::now();
            for turn in 0..REDUCTIONS {
                let reduction = Reduction { residual: &mut *residual, delta: &deltas[turn % 2], rows: lie };
                self.peers.reduce_norm(cuda, reduction, norm, ActQuant::Fp8PerToken, out)?;
            }
            cuda.read(&deltas[0])?;
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
        let most = rows.min(MEASURED_ROWS[MEASURED_ROWS.len() - 1]);
        let mut bench = Bench {
            residual: cuda.floats(most, cols)?,
            deltas: [self.floats(cuda, most, cols)?, self.floats(cuda, most, cols)?],
            norm: Norm {
                kind: NormKind::RmsNorm,
                weight: cuda.vector(&vec![1.0; cols])?,
                bias: None,
                eps: 1.0,
            },
            out: self.acts(cuda, most, cols)?,
        };
        let mut wins = Vec::new();
        for rows in MEASURED_ROWS.into_iter().filter(|rows| *rows <= most) {
            let everywhere = self.time(cuda, &mut bench, rows, Rows::Everywhere)?;
            wins.push((rows, everywhere <= self.time(cuda, &mut bench, rows, Rows::SharedOut)?));
        }
        let everywhere = wins.iter().take_while(|(_, wins)| *wins).last().map_or(0, |(rows, _)| *rows);
        // All go by what the first has measured. Nobody takes back what others still read.
        self.threads.exchange(vec![everywhere as f32], |rank, rows| {
            if rank == 0 {
                self.everywhere_rows.store(rows[0] as usize, Ordering::Relaxed);
            }
        })?;
        self.peers.withdraw(4);
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
            false => did_not_come(missed.rank, self.threads.patience()),
        })
    }
}
