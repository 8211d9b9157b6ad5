//! `kernels/peers.cuh`: ranks of one process that access one another's memory, each on its own GPU, or
//! several on one.
//!
//! Every rank shares the same buffers in the same order. Shared memory lives until the last rank is dropped.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::driver::{Allocation, Words};
use super::{Acts, Buffer, Cuda, Floats, locked};
use crate::device::{DeviceError, FloatType, Layout, Message, PACKET_ROWS};

/// Ranks of the largest group, which the kernels are compiled for.
pub(super) const MAX_RANKS: usize = 8;

/// Blocks of an operation on a rank that has a GPU to itself: one per multiprocessor of an H100.
const BLOCKS: usize = 132;

/// Bytes of a rank's mailbox.
pub(super) const MAILBOX_BYTES: usize = 96;

/// Bytes of a packet.
const PACKET: usize = 16;
/// The word of a packet that has not been written: `EMPTY` of `kernels/packet_norm.cu`.
const EMPTY: u32 = 0x8000_8000;

/// Added to a word (1 + the rank that it names) if that rank has ended.
const HAS_ENDED: u32 = 0x100;

/// `Peers` of `kernels/peers.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct PeersParams {
    mailboxes: [u64; MAX_RANKS],
    words: u64,
    timeout: u64,
    rank: u32,
    count: u32,
}
const _: () = assert!(size_of::<PeersParams>() == 88);

/// One rank's handle on a group.
#[derive(Debug)]
pub struct Peers {
    own: Arc<PeerRank>,
}

/// A rank of a group. Its device refers to it while the rank's handle is alive.
#[derive(Debug)]
pub(super) struct PeerRank {
    rank: usize,
    group: Arc<PeerGroup>,
}

#[derive(Debug)]
struct PeerGroup {
    mailboxes: Vec<Buffer<u8>>,
    packets: Packets,
    /// Word 0 names the first rank that ended; word 1 + r names the rank that rank r waited for without
    /// success. 0 for none.
    words: Words,
    /// Shared allocations, indexed by buffer and rank.
    shared: Mutex<Vec<Vec<Option<Arc<Allocation>>>>>,
    timeout: Duration,
    /// Blocks of an operation on each rank.
    blocks: usize,
}

/// Memory for sums of few rows, which ranks write to one another.
#[derive(Debug)]
pub(super) struct Packets {
    /// \[sets, ranks, capacity\] packets of each rank; none if there is one rank, or parts are F32.
    buffers: Vec<Buffer<u32>>,
    /// Packets of a rank in a set.
    pub(super) capacity: usize,
}

impl Packets {
    /// Makes room for sums of up to [`PACKET_ROWS`] rows of a message.
    fn new(devices: &[Cuda], largest: Message) -> Result<Self, DeviceError> {
        let Message { float_type, rows, cols } = largest;
        if devices.len() == 1 || float_type != FloatType::Bf16 {
            return Ok(Self { buffers: Vec::new(), capacity: 0 });
        }
        let capacity = rows.min(PACKET_ROWS) * cols * 2 / PACKET;
        let words = Layout::CUDA.packet_sets * devices.len() * capacity * PACKET / 4;
        let buffer = |device: &Cuda| {
            let buffer = device.driver.buffer::<u32>(words)?;
            buffer.write(0, &vec![EMPTY; words])?;
            // Waits for the words, which must be written before other ranks write.
            buffer.read(1).map(|_| buffer)
        };
        Ok(Self { buffers: devices.iter().map(buffer).collect::<Result<_, _>>()?, capacity })
    }

    /// The address of each rank's packets.
    pub(super) fn addresses(&self) -> [u64; MAX_RANKS] {
        std::array::from_fn(|rank| self.buffers.get(rank).map_or(0, Buffer::address))
    }
}

impl PeerRank {
    /// Returns the error of an operation of this rank that another rank did not reach in time, if there is
    /// one. Reliable only after this rank's host has waited for the operation to end.
    pub(super) fn check(&self) -> Result<(), DeviceError> {
        let word = self.group.words.word(1 + self.rank).load(Ordering::Acquire);
        let Some(missed) = (word & !HAS_ENDED).checked_sub(1) else { return Ok(()) };
        Err(match word & HAS_ENDED {
            0 => DeviceError::peer_is_late(missed as usize, self.group.timeout),
            _ => DeviceError::peer_has_ended(missed as usize),
        })
    }
}

impl Peers {
    /// Makes a group with one rank per device, whose largest message is `largest`. An operation waits at most
    /// `timeout` for another rank. An operation that another rank does not reach ends without an error; the
    /// device returns the error from the next call that waits for the operation.
    ///
    /// # Errors
    /// If a GPU cannot access another's memory, or has no memory left.
    ///
    /// # Panics
    /// If there are no devices, or more than eight.
    pub fn group(devices: &[Cuda], timeout: Duration, largest: Message) -> Result<Vec<Self>, DeviceError> {
        assert!((1..=MAX_RANKS).contains(&devices.len()), "{} ranks", devices.len());
        let backend = |device: usize| devices[device].driver.backend();
        let ranks = 0..devices.len();
        for (one, other) in ranks.clone().flat_map(|one| ranks.clone().map(move |other| (one, other))) {
            backend(one).enable_access(backend(other))?;
        }
        let is_same = |one: usize, other: usize| backend(one).is_same_gpu(backend(other));
        let sharing = |one: usize| ranks.clone().filter(|&other| is_same(one, other)).count();
        let ranks_per_gpu = ranks.clone().map(sharing).max().unwrap_or(1);
        let mailbox = |device: &Cuda| {
            let mailbox = device.driver.buffer::<u8>(MAILBOX_BYTES)?;
            // Waits for the zeros, which must be written before other ranks write.
            mailbox.read(1).map(|_| mailbox)
        };
        let group = Arc::new(PeerGroup {
            mailboxes: devices.iter().map(mailbox).collect::<Result<_, _>>()?,
            packets: Packets::new(devices, largest)?,
            words: devices[0].driver.words(1 + MAX_RANKS)?,
            shared: Mutex::default(),
            timeout,
            blocks: BLOCKS / ranks_per_gpu,
        });
        let rank = |rank: usize| {
            let own = Arc::new(PeerRank { rank, group: Arc::clone(&group) });
            devices[rank].join(&own);
            Self { own }
        };
        Ok(ranks.map(rank).collect())
    }

    pub(super) fn packets(&self) -> &Packets {
        &self.own.group.packets
    }

    /// This rank's number.
    pub(super) fn rank(&self) -> usize {
        self.own.rank
    }

    /// The number of ranks.
    pub(crate) fn size(&self) -> usize {
        self.own.group.mailboxes.len()
    }

    /// Shares floats with the group. Operations may use them once every rank has shared its own.
    pub(crate) fn share_floats(&self, floats: &Floats) {
        self.share(floats.data.memory());
    }

    /// Shares inputs of products with the group.
    pub(crate) fn share_acts(&self, acts: &Acts) {
        self.share(acts.values.memory());
        self.share(acts.scales.memory());
    }

    fn share(&self, memory: Arc<Allocation>) {
        let mut shared = locked(&self.own.group.shared);
        let open = shared.iter_mut().find(|ranks| ranks[self.own.rank].is_none());
        match open {
            Some(ranks) => ranks[self.own.rank] = Some(memory),
            None => {
                let mut ranks = vec![None; self.own.group.mailboxes.len()];
                ranks[self.own.rank] = Some(memory);
                shared.push(ranks);
            }
        }
    }

    /// Ends the sharing of the `count` allocations that this rank shared last. Every rank must do the same,
    /// while no operation uses them.
    pub(crate) fn unshare(&self, count: usize) {
        let mut shared = locked(&self.own.group.shared);
        let own = shared.iter().rposition(|ranks| ranks[self.own.rank].is_some()).map_or(0, |last| last + 1);
        for ranks in &mut shared[own - count..own] {
            ranks[self.own.rank] = None;
        }
        while shared.last().is_some_and(|ranks| ranks.iter().all(Option::is_none)) {
            shared.pop();
        }
    }

    /// The addresses, by rank, of the buffers that were shared together with this rank's buffer at `address`.
    pub(super) fn addresses(&self, address: u64) -> [u64; MAX_RANKS] {
        let shared = locked(&self.own.group.shared);
        let own = |ranks: &&Vec<Option<Arc<Allocation>>>| {
            ranks[self.own.rank].as_ref().is_some_and(|memory| memory.address() == address)
        };
        let ranks = shared.iter().find(own).expect("operations of a group take shared buffers");
        let mut addresses = [0; MAX_RANKS];
        for (address, memory) in addresses.iter_mut().zip(ranks) {
            *address = memory.as_ref().expect("every rank has shared the buffer").address();
        }
        addresses
    }

    pub(super) fn params(&self) -> PeersParams {
        let mut mailboxes = [0; MAX_RANKS];
        for (address, mailbox) in mailboxes.iter_mut().zip(&self.own.group.mailboxes) {
            *address = mailbox.address();
        }
        PeersParams {
            mailboxes,
            words: self.own.group.words.address(),
            timeout: u64::try_from(self.own.group.timeout.as_nanos()).unwrap_or(u64::MAX),
            rank: self.own.rank as u32,
            count: self.size() as u32,
        }
    }

    /// The number of blocks for `pieces` independent pieces of work: at least one, which signals the other
    /// ranks.
    pub(super) fn blocks(&self, pieces: usize) -> usize {
        pieces.clamp(1, self.own.group.blocks)
    }

    /// The number of clusters of `size` blocks for `pieces` independent pieces of work: at least one.
    pub(super) fn clusters(&self, pieces: usize, size: usize) -> usize {
        pieces.clamp(1, self.own.group.blocks / size)
    }

    /// This rank's share of `count` items.
    pub(super) fn own_share(&self, count: usize) -> Range<usize> {
        self.share_of(self.own.rank, count)
    }

    /// A rank's share of `count` items.
    pub(super) fn share_of(&self, rank: usize, count: usize) -> Range<usize> {
        let size = self.size();
        count * rank / size..count * (rank + 1) / size
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // Waiting ranks stop waiting at once and report the rank in word 0: the first rank that ended or, if
        // that rank ended because it missed another, that other rank.
        let word = |index| self.own.group.words.word(index);
        let missed = word(1 + self.own.rank).load(Ordering::Acquire);
        let name = if missed == 0 { (1 + self.own.rank as u32) | HAS_ENDED } else { missed };
        let _another_was_first = word(0).compare_exchange(0, name, Ordering::AcqRel, Ordering::Acquire);
    }
}
