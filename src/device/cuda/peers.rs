//! `kernels/peers.cuh`: ranks of one process that reach one another's memory, each with a GPU, or several on one.
//!
//! Memory that others reach is offered by every rank, in the same order, and kept until the last rank has ended.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::driver::{Allocation, Words};
use super::{Acts, Buffer, Cuda, Floats, locked};
use crate::device::DeviceError;

/// The most ranks of a group, which the kernels are compiled for.
pub(super) const MOST_RANKS: usize = 8;

/// Blocks of an operation on a rank that has its GPU for itself: one for each multiprocessor of an H100.
const BLOCKS: usize = 132;

/// Bytes of a rank's mailbox.
pub(super) const MAILBOX_BYTES: usize = 80;

/// Added to 1 + the rank that is missed, if it has ended.
const HAS_ENDED: u32 = 0x100;

/// As `kernels/peers.cuh` has it.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct PeersParams {
    mailboxes: [u64; MOST_RANKS],
    words: u64,
    patience: u64,
    rank: u32,
    count: u32,
}
const _: () = assert!(size_of::<PeersParams>() == 88);

/// A rank's end of a group.
#[derive(Debug)]
pub struct Peers {
    rank: usize,
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    mailboxes: Vec<Buffer<u8>>,
    /// Whom nobody need wait for, and for each rank, whom it missed.
    words: Words,
    /// By what is offered and rank.
    offers: Mutex<Vec<Vec<Option<Arc<Allocation>>>>>,
    patience: Duration,
    /// Blocks of an operation on each rank.
    blocks: usize,
}

/// A rank that another waited for in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    /// Which.
    pub rank: usize,
    /// Whether it is known to have ended.
    pub has_ended: bool,
}

impl Peers {
    /// The ranks of a group on these devices, which wait for one another for at most `patience`.
    ///
    /// # Errors
    /// If one cannot reach another's memory, or has none left.
    ///
    /// # Panics
    /// For none, or more than eight.
    pub fn group(devices: &[Cuda], patience: Duration) -> Result<Vec<Self>, DeviceError> {
        assert!((1..=MOST_RANKS).contains(&devices.len()), "{} ranks", devices.len());
        let mut pairs = devices.iter().flat_map(|one| devices.iter().map(move |other| (one, other)));
        pairs.try_for_each(|(one, other)| one.driver.reach(&other.driver))?;
        let sharing = |one: &Cuda| devices.iter().filter(|other| one.driver.same_as(&other.driver)).count();
        let on_one = devices.iter().map(sharing).max().unwrap_or(1);
        let mailbox = |device: &Cuda| {
            let mailbox = device.driver.buffer::<u8>(MAILBOX_BYTES)?;
            // Its zeros must be there before anyone else writes.
            mailbox.read(1).map(|_| mailbox)
        };
        let group = Arc::new(Group {
            mailboxes: devices.iter().map(mailbox).collect::<Result<_, _>>()?,
            words: devices[0].driver.words(1 + MOST_RANKS)?,
            offers: Mutex::default(),
            patience,
            blocks: BLOCKS / on_one,
        });
        Ok((0..devices.len()).map(|rank| Self { rank, group: Arc::clone(&group) }).collect())
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks in the group.
    pub fn size(&self) -> usize {
        self.group.mailboxes.len()
    }

    /// How long an operation waits for a rank.
    pub fn patience(&self) -> Duration {
        self.group.patience
    }

    /// Whom this rank waited for in vain, if that has happened. Certain once the operation has been waited for.
    pub fn missed(&self) -> Option<Missed> {
        let word = self.group.words.word(1 + self.rank).load(Ordering::Acquire);
        let rank = (word & !HAS_ENDED).checked_sub(1)? as usize;
        Some(Missed { rank, has_ended: word & HAS_ENDED != 0 })
    }

    /// Offers floats for operations of the group, which may be used when every rank has offered its own.
    pub fn offer_floats(&self, floats: &Floats) {
        self.offer(floats.data.memory());
    }

    /// Offers the inputs of products.
    pub fn offer_acts(&self, acts: &Acts) {
        self.offer(acts.values.memory());
        self.offer(acts.scales.memory());
    }

    fn offer(&self, memory: Arc<Allocation>) {
        let mut offers = locked(&self.group.offers);
        let open = offers.iter_mut().find(|offer| offer[self.rank].is_none());
        match open {
            Some(offer) => offer[self.rank] = Some(memory),
            None => {
                let mut offer = vec![None; self.group.mailboxes.len()];
                offer[self.rank] = Some(memory);
                offers.push(offer);
            }
        }
    }

    /// Takes back what was offered last, if every rank does.
    pub fn withdraw(&self, offers: usize) {
        let mut all = locked(&self.group.offers);
        let own = all.iter().rposition(|offer| offer[self.rank].is_some()).map_or(0, |last| last + 1);
        for offer in &mut all[own - offers..own] {
            offer[self.rank] = None;
        }
        while all.last().is_some_and(|offer| offer.iter().all(Option::is_none)) {
            all.pop();
        }
    }

    /// Where each rank has what this one has in a buffer.
    pub(super) fn addresses<T: bytemuck::Pod>(&self, buffer: &Buffer<T>) -> [u64; MOST_RANKS] {
        let offers = locked(&self.group.offers);
        let own = |offer: &&Vec<Option<Arc<Allocation>>>| {
            offer[self.rank].as_ref().is_some_and(|memory| memory.address() == buffer.address())
        };
        let offer = offers.iter().find(own).expect("what a group operates on was offered to it");
        let mut addresses = [0; MOST_RANKS];
        for (address, memory) in addresses.iter_mut().zip(offer) {
            *address = memory.as_ref().expect("every rank has offered it").address();
        }
        addresses
    }

    pub(super) fn params(&self) -> PeersParams {
        let mut mailboxes = [0; MOST_RANKS];
        for (address, mailbox) in mailboxes.iter_mut().zip(&self.group.mailboxes) {
            *address = mailbox.address();
        }
        PeersParams {
            mailboxes,
            words: self.group.words.address(),
            patience: u64::try_from(self.group.patience.as_nanos()).unwrap_or(u64::MAX),
            rank: self.rank as u32,
            count: self.size() as u32,
        }
    }

    /// Blocks for so many pieces of work: at least one, which must say that this rank is here.
    pub(super) fn blocks(&self, pieces: usize) -> usize {
        pieces.clamp(1, self.group.blocks)
    }

    /// This rank's share of what is divided.
    pub(super) fn share(&self, count: usize) -> std::ops::Range<usize> {
        let size = self.size();
        count * self.rank / size..count * (self.rank + 1) / size
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // Those who wait need not wait out their patience. The first to end is the one to name, unless it ends because
        // it missed another.
        let word = |index| self.group.words.word(index);
        let missed = word(1 + self.rank).load(Ordering::Acquire);
        let name = if missed == 0 { (1 + self.rank as u32) | HAS_ENDED } else { missed };
        let _another_was_first = word(0).compare_exchange(0, name, Ordering::AcqRel, Ordering::Acquire);
    }
}
