//! Room for those who must be let in before they have said what they want. When it is full, whoever comes gets the seat
//! of the one that has sat longest: nobody is kept out by those who say nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// The seats; clones are the same room.
#[derive(Clone)]
pub struct EvictingPermits {
    most: usize,
    /// From the one that has sat longest; some have left.
    seated: Arc<Mutex<VecDeque<oneshot::Sender<()>>>>,
}

impl EvictingPermits {
    /// With so many seats, at least one.
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), seated: Arc::default() }
    }

    /// A seat, which may be somebody else's until now.
    pub fn enter(&self) -> Permit {
        let (sender, lost) = oneshot::channel();
        let mut seated = self.seated.lock().unwrap_or_else(PoisonError::into_inner);
        if seated.len() >= self.most {
            seated.retain(|seat| !seat.is_closed());
        }
        while seated.len() >= self.most {
            // The seat hears it: its sender is dropped.
            seated.pop_front();
        }
        seated.push_back(sender);
        Permit { lost }
    }

    /// How many sit there.
    pub fn seated(&self) -> usize {
        let seated = self.seated.lock().unwrap_or_else(PoisonError::into_inner);
        seated.iter().filter(|seat| !seat.is_closed()).count()
    }
}

/// A seat, until it is dropped or lost.
pub struct Permit {
    lost: oneshot::Receiver<()>,
}

impl Permit {
    /// Resolves when somebody else has got it. Not to be polled again then.
    pub async fn lost(&mut self) {
        let _its_sender_is_gone = (&mut self.lost).await;
    }
}
