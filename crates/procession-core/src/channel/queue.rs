//! A queue: a ring with a bound, a count of what was dealt with, and a descriptor to poll.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{
    holders::{Holders, Lost},
    message::Message,
    pollable::Pollable,
    put::{Along, CourierRoom, PutError},
    ring::{Delivered, Ring},
    take::TakeError,
};
use crate::{
    loom::Ordering::{AcqRel, Acquire},
    memory::SegmentId,
    process::ForkLocal,
    sync::{Slices, Wait, WaitError},
};

/// [`Queue::task_done`] was called more often than messages were put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("task_done() called too many times")]
pub struct TooManyDone;

/// A first-in first-out queue of messages between processes. Clones are the same queue.
///
/// Puts and takes of small messages are a few dozen instructions and no system call. What a process put stays there
/// when it ends, however it ends.
///
/// ```
/// use procession_core::{channel::{Message, Queue}, sync::Wait};
///
/// let queue = Queue::create(None)?;
/// queue.put(&[b"hello"], &mut Wait::forever()).unwrap();
/// let bytes = queue.take_with(&mut Wait::forever(), |message: &Message| message.to_vec()).unwrap();
/// assert_eq!(bytes, b"hello");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Queue {
    shared: Arc<Shared>,
    bound: Option<u64>,
}

#[derive(Debug)]
struct Shared {
    ring: Ring,
    pollable: Pollable,
}

/// The queues of this process, so that one sent twice has its descriptors once. See `registered` in `segment.rs`.
static KNOWN: ForkLocal<Mutex<HashMap<SegmentId, Weak<Shared>>>> = ForkLocal::new();

/// The queues of which this process has, or had, messages in its hands, where that is kept.
static IN_HANDS: ForkLocal<Mutex<Vec<Weak<Shared>>>> = ForkLocal::new();

/// Whether the user's code has failed: this process does not end in order.
static FAILED: ForkLocal<AtomicBool> = ForkLocal::new();

/// The user's code is over. If it has returned, what this process has taken and not dealt with is not lost by its end
/// ([`Queue::join`]); if it has `failed`, it is. For those who start processes.
pub fn hand_on(failed: bool) {
    if failed {
        FAILED.get().store(true, Relaxed);
        return;
    }
    let taken = std::mem::take(&mut *IN_HANDS.get().lock().unwrap_or_else(PoisonError::into_inner));
    for shared in taken.iter().filter_map(Weak::upgrade) {
        shared.holders().hand_on();
    }
}

impl Shared {
    fn holders(&self) -> &Holders {
        &self.ring.map().header().holders
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Its process may still tell others of what it has.
        if self.holders().are_kept() && !std::thread::panicking() && !FAILED.get().load(Relaxed) {
            self.holders().hand_on();
        }
        let mut known = KNOWN.get().lock().unwrap_or_else(PoisonError::into_inner);
        let id = self.ring.segment().id();
        if known.get(&id).is_some_and(|shared| shared.strong_count() == 0) {
            known.remove(&id);
        }
    }
}

impl Queue {
    /// Makes a queue of at most `bound` messages, or as many as there is memory for.
    ///
    /// # Errors
    ///
    /// If descriptors or memory are lacking.
    pub fn create(bound: Option<u64>) -> io::Result<Self> {
        Self::new(bound, Ring::create("procession-queue")?)
    }

    /// [`create`](Self::create), with a courier: messages may have descriptors with them
    /// ([`put_with`](Self::put_with)). Those that have none cost what they cost without it.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub fn create_with_courier(bound: Option<u64>) -> io::Result<Self> {
        Self::new(bound, Ring::create_with_courier("procession-queue")?)
    }

    fn new(bound: Option<u64>, ring: Ring) -> io::Result<Self> {
        let shared = Arc::new(Shared { ring, pollable: Pollable::create()? });
        let mut known = KNOWN.get().lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(shared.ring.segment().id(), Arc::downgrade(&shared));
        Ok(Self { shared, bound })
    }

    /// The queue of another process, from its bound and its two [descriptors](Self::descriptors), which are kept or
    /// closed.
    ///
    /// # Errors
    ///
    /// As [`Ring::attach`].
    pub fn attach(bound: Option<u64>, ring: OwnedFd, pollable: OwnedFd) -> io::Result<Self> {
        Self::attached(bound, ring, pollable, None)
    }

    /// [`attach`](Self::attach), with the [descriptors of the courier](Self::courier).
    ///
    /// # Errors
    ///
    /// As [`Ring::attach_with_courier`].
    pub fn attach_with_courier(
        bound: Option<u64>,
        ring: OwnedFd,
        pollable: OwnedFd,
        courier: [OwnedFd; 2],
    ) -> io::Result<Self> {
        Self::attached(bound, ring, pollable, Some(courier))
    }

    fn attached(
        bound: Option<u64>,
        ring: OwnedFd,
        pollable: OwnedFd,
        courier: Option<[OwnedFd; 2]>,
    ) -> io::Result<Self> {
        let ring = Ring::attach(ring)?;
        let id = ring.segment().id();
        // Dropped only after the table is free again: it may turn out to be the last one, and its end looks there.
        let present;
        let mut known = KNOWN.get().lock().unwrap_or_else(PoisonError::into_inner);
        present = known.get(&id).and_then(Weak::upgrade);
        if let Some(shared) = present.as_ref().filter(|shared| courier.is_none() || shared.ring.courier().is_some()) {
            let in_use: Vec<_> = shared.ring.courier().into_iter().flatten().chain([shared.pollable.as_fd()]).collect();
            for descriptor in courier.into_iter().flatten().chain([pollable]) {
                if in_use.iter().any(|used| used.as_raw_fd() == descriptor.as_raw_fd()) {
                    // The very descriptor that is in use.
                    let _ = descriptor.into_raw_fd();
                }
            }
            return Ok(Self { shared: shared.clone(), bound });
        }
        let ring = match courier {
            Some(courier) => ring.with_courier(courier)?,
            None => ring,
        };
        let shared = Arc::new(Shared { ring, pollable: Pollable::from_fd(pollable)? });
        known.insert(id, Arc::downgrade(&shared));
        Ok(Self { shared, bound })
    }

    /// What another process needs for [`attach_with_courier`](Self::attach_with_courier), beside the bound and the other
    /// [descriptors](Self::descriptors); `None` if messages can't have descriptors with them.
    pub fn courier(&self) -> Option<[BorrowedFd<'_>; 2]> {
        self.ring().courier()
    }

    /// What another process needs to [attach](Self::attach), beside the bound.
    pub fn descriptors(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        (self.shared.ring.as_fd(), self.shared.pollable.as_fd())
    }

    /// The ring it stands on, to look at: messages put and taken there directly are not seen by pollers.
    #[inline]
    pub fn ring(&self) -> &Ring {
        &self.shared.ring
    }

    /// At most how many messages it holds.
    pub fn bound(&self) -> Option<u64> {
        self.bound
    }

    /// How many messages are in it: exact, as of a moment during the call.
    pub fn len(&self) -> u64 {
        self.ring().len()
    }

    /// Whether no message is in it. If the [descriptor](Self::pollable) just became readable, this waits for the
    /// message.
    #[inline]
    pub fn is_empty(&self) -> bool {
        let ring = self.ring();
        ring.is_empty()
            && (!ring.doorbell() || {
                self.shared.pollable.settle(ring);
                ring.is_empty()
            })
    }

    /// Whether it holds as many messages as it may.
    pub fn is_full(&self) -> bool {
        self.bound.is_some_and(|bound| self.len() >= bound)
    }

    /// A descriptor that is readable exactly while the queue is not empty, for `poll`, `select` and event loops.
    /// Asking for it makes the queue dearer to use, for good.
    pub fn pollable(&self) -> BorrowedFd<'_> {
        self.shared.pollable.arm(self.ring());
        self.shared.pollable.as_fd()
    }

    /// Puts what fits, with the descriptor seen to.
    fn put_fitting(&self, messages: &[&[&[u8]]], wait: &mut Wait<'_>) -> Result<u64, PutError> {
        self.put_seen_to(wait, |ring, wait| match wait {
            Some(wait) => ring.put_now(messages, self.bound, wait),
            None => ring.try_put_many(messages, self.bound),
        })
    }

    /// `put` puts what fits, without waiting for room; without a wait, it waits for nothing.
    #[inline]
    fn put_seen_to(
        &self,
        wait: &mut Wait<'_>,
        put: impl Fn(&Ring, Option<&mut Wait<'_>>) -> Result<Delivered, PutError>,
    ) -> Result<u64, PutError> {
        let ring = self.ring();
        while ring.doorbell() {
            match self.shared.pollable.announced(ring, wait, || put(ring, None))? {
                // Waited for without the lock that the other may be about to take.
                Err(PutError::Busy) => ring.wait_for_turn(wait)?,
                put => return put.map(|delivered| delivered.count),
            }
        }
        let delivered = put(ring, Some(wait))?;
        if delivered.doorbell {
            self.shared.pollable.settle(ring);
        }
        Ok(delivered.count)
    }

    #[inline]
    fn settled(&self, taken: Result<Delivered, TakeError>) -> Result<u64, TakeError> {
        if taken.as_ref().is_ok_and(|delivered| delivered.doorbell) {
            self.shared.pollable.settle(self.ring());
        }
        taken.map(|delivered| delivered.count)
    }

    /// Puts one message, the `parts` one after another, waiting for room.
    ///
    /// # Errors
    ///
    /// As [`Ring::put`].
    pub fn put(&self, parts: &[&[u8]], wait: &mut Wait<'_>) -> Result<(), PutError> {
        self.put_many(&[parts], wait).map(drop)
    }

    /// Puts one message if there is room. `patience` is for the moments in which another producer is at work.
    ///
    /// # Errors
    ///
    /// As [`Ring::put_now`].
    pub fn put_now(&self, parts: &[&[u8]], patience: &mut Wait<'_>) -> Result<(), PutError> {
        self.put_fitting(&[parts], patience).map(drop)
    }

    /// [`put`](Self::put), with descriptors that go along. See [`Ring::put_with`].
    ///
    /// ```
    /// use procession_core::{channel::Queue, sync::Wait};
    /// use std::os::fd::AsFd;
    ///
    /// let queue = Queue::create_with_courier(None)?;
    /// let lent = std::io::stdout();
    /// queue.put_with(&[b"stdout"], &[lent.as_fd()], &mut Wait::forever()).unwrap();
    /// let descriptors = queue.take_with(&mut Wait::forever(), |message| message.descriptors()).unwrap();
    /// assert_eq!(descriptors.len(), 1);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Ring::put_with`].
    pub fn put_with(
        &self,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        wait: &mut Wait<'_>,
    ) -> Result<(), PutError> {
        self.put_along(parts, Along { descriptors, blocks: &[] }, wait)
    }

    /// [`put`](Self::put), with descriptors and blocks that go along. See [`Ring::put_along`].
    ///
    /// ```
    /// use procession_core::{channel::{Along, Queue}, sync::Wait};
    /// use std::time::Duration;
    ///
    /// let queue = Queue::create(None)?;
    /// let large = vec![7; 1 << 20];
    /// // Where there is no room for a block, the bytes would have to go in the message.
    /// let block = queue.ring().fill(&[&large], Duration::ZERO).unwrap();
    /// queue.put_along(&[b"large"], Along { blocks: &[block], ..Along::default() }, &mut Wait::forever()).unwrap();
    ///
    /// let mut blocks = queue.take_with(&mut Wait::forever(), |message| Ok(message.take_blocks())).unwrap();
    /// let mut memory = blocks.remove(0).hold()?;
    /// assert!(memory.iter().all(|&byte| byte == 7));
    /// memory[0] = 8; // It is this process's own.
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Ring::put_with`]. The blocks are still the caller's then.
    ///
    /// # Panics
    ///
    /// If the blocks are not what [`Along`] says.
    pub fn put_along(&self, parts: &[&[u8]], along: Along<'_>, wait: &mut Wait<'_>) -> Result<(), PutError> {
        let (mut room, mut slices) = (CourierRoom::new(), Slices::new());
        loop {
            match self.put_now_along(parts, along, wait) {
                Err(PutError::Full) if along.descriptors.is_empty() => {
                    self.ring().wait_for_room(self.bound, wait, &mut slices)?;
                }
                Err(PutError::Full) => room.wait(self.ring(), self.bound, wait)?,
                other => return other,
            }
        }
    }

    /// [`put_with`](Self::put_with) if there is room, for the message and its descriptors. `patience` is for the moments in
    /// which another producer is at work.
    ///
    /// # Errors
    ///
    /// As [`Ring::put_now_with`].
    pub fn put_now_with(
        &self,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        patience: &mut Wait<'_>,
    ) -> Result<(), PutError> {
        self.put_now_along(parts, Along { descriptors, blocks: &[] }, patience)
    }

    /// [`put_along`](Self::put_along) if there is room. `patience` is for the moments in which another producer is at work.
    ///
    /// # Errors
    ///
    /// As [`put_now_with`](Self::put_now_with).
    ///
    /// # Panics
    ///
    /// As [`put_along`](Self::put_along).
    pub fn put_now_along(&self, parts: &[&[u8]], along: Along<'_>, patience: &mut Wait<'_>) -> Result<(), PutError> {
        let put = self.put_seen_to(patience, |ring, wait| match wait {
            Some(wait) => ring.put_now_along(parts, along, self.bound, wait),
            None => ring.try_put_along(parts, along, self.bound),
        });
        put.map(drop)
    }

    /// Puts one message without waiting for anything.
    ///
    /// # Errors
    ///
    /// [`PutError`]; `Busy` also of a queue that is polled, which takes a lock more.
    #[inline]
    pub fn try_put(&self, parts: &[&[u8]]) -> Result<(), PutError> {
        if self.ring().doorbell() {
            return Err(PutError::Busy);
        }
        if self.ring().try_put(parts, self.bound)?.doorbell {
            self.shared.pollable.settle(self.ring());
        }
        Ok(())
    }

    /// Puts as many of the messages as there is room for, one at least; tells how many. See [`Ring::put_many`].
    ///
    /// # Errors
    ///
    /// As [`Ring::put_many`].
    pub fn put_many(&self, messages: &[&[&[u8]]], wait: &mut Wait<'_>) -> Result<u64, PutError> {
        let mut slices = Slices::new();
        loop {
            match self.put_fitting(messages, wait) {
                Err(PutError::Full) => self.ring().wait_for_room(self.bound, wait, &mut slices)?,
                other => return other,
            }
        }
    }

    /// [`put_many`](Self::put_many) without waiting for room.
    ///
    /// # Errors
    ///
    /// As [`Ring::put_now`].
    pub fn put_many_now(&self, messages: &[&[&[u8]]], patience: &mut Wait<'_>) -> Result<u64, PutError> {
        self.put_fitting(messages, patience)
    }

    /// Takes the oldest message, waiting for one; `read` copies it. See [`Ring::take_with`].
    ///
    /// # Errors
    ///
    /// As [`Ring::take_with`].
    pub fn take_with<R>(
        &self,
        wait: &mut Wait<'_>,
        read: impl FnOnce(&Message<'_>) -> io::Result<R>,
    ) -> Result<R, TakeError> {
        self.one(read, |read| self.noted(read, |read| self.ring().take_many_with(1, wait, read)))
    }

    /// Takes the oldest message if there is one. `patience` is for the moments in which another consumer is at work.
    ///
    /// # Errors
    ///
    /// As [`Ring::take_with`], and [`TakeError::Empty`].
    pub fn take_now_with<R>(
        &self,
        patience: &mut Wait<'_>,
        read: impl FnOnce(&Message<'_>) -> io::Result<R>,
    ) -> Result<R, TakeError> {
        self.one(read, |read| self.take_announced(1, patience, read))
    }

    /// Takes the oldest message without waiting for anything.
    ///
    /// # Errors
    ///
    /// [`TakeError`]; `Busy` instead of `Empty` of a queue that is polled, as a message may be announced.
    #[inline]
    pub fn try_take_with<R>(&self, read: impl FnOnce(&Message<'_>) -> io::Result<R>) -> Result<R, TakeError> {
        match self.one(read, |read| self.noted(read, |read| self.ring().try_take_many_with(1, read))) {
            Err(TakeError::Empty) if self.ring().doorbell() => Err(TakeError::Busy),
            other => other,
        }
    }

    /// Takes what is there, or has been announced to pollers.
    fn take_announced(
        &self,
        most: u64,
        patience: &mut Wait<'_>,
        mut read: impl FnMut(&Message<'_>) -> io::Result<()>,
    ) -> Result<Delivered, TakeError> {
        loop {
            match self.noted(&mut read, |read| self.ring().take_now_with(most, patience, read)) {
                Err(TakeError::Empty) if !self.is_empty() => {}
                other => return other,
            }
        }
    }

    /// Has the table of holders, if there is one, know of each message before it is taken.
    #[inline]
    fn noted(
        &self,
        read: &mut dyn FnMut(&Message<'_>) -> io::Result<()>,
        take: impl FnOnce(&mut dyn FnMut(&Message<'_>) -> io::Result<()>) -> Result<Delivered, TakeError>,
    ) -> Result<Delivered, TakeError> {
        if !self.holders().are_kept() {
            return take(read);
        }
        let mut noted = 0;
        let taken = take(&mut |message| {
            read(message)?;
            if self.holders().take() {
                let mut all = IN_HANDS.get().lock().unwrap_or_else(PoisonError::into_inner);
                all.retain(|shared| shared.strong_count() > 0);
                all.push(Arc::downgrade(&self.shared));
            }
            noted += 1;
            Ok(())
        });
        let count = taken.as_ref().map_or(0, |delivered| delivered.count);
        if noted > count {
            self.holders().give_back(noted - count);
        }
        taken
    }

    #[inline]
    fn one<R>(
        &self,
        read: impl FnOnce(&Message<'_>) -> io::Result<R>,
        take: impl FnOnce(&mut dyn FnMut(&Message<'_>) -> io::Result<()>) -> Result<Delivered, TakeError>,
    ) -> Result<R, TakeError> {
        let (mut read, mut result) = (Some(read), None);
        let taken = take(&mut |message| {
            if let Some(read) = read.take() {
                result = Some(read(message)?);
            }
            Ok(())
        });
        self.settled(taken)?;
        result.ok_or(TakeError::Damaged)
    }

    /// Takes up to `most` messages, as many as are there, waiting for the first. See [`Ring::take_many_with`].
    ///
    /// # Errors
    ///
    /// As [`Ring::take_many_with`].
    pub fn take_many_with(
        &self,
        most: u64,
        wait: &mut Wait<'_>,
        read: impl FnMut(&Message<'_>) -> io::Result<()>,
    ) -> Result<u64, TakeError> {
        let mut read = read;
        self.settled(self.noted(&mut read, |read| self.ring().take_many_with(most, wait, read)))
    }

    /// [`take_many_with`](Self::take_many_with) without waiting for a message.
    ///
    /// # Errors
    ///
    /// As [`Ring::take_now_with`].
    pub fn take_many_now_with(
        &self,
        most: u64,
        patience: &mut Wait<'_>,
        read: impl FnMut(&Message<'_>) -> io::Result<()>,
    ) -> Result<u64, TakeError> {
        self.settled(self.take_announced(most, patience, read))
    }

    /// Waits until there is a message, without taking it.
    ///
    /// # Errors
    ///
    /// [`WaitError`]
    pub fn wait_filled(&self, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        self.ring().wait_filled(wait)
    }

    /// Waits until there is room for a message, one with descriptors if `descriptors` says so, without putting any. Another
    /// producer may be the first to use it.
    ///
    /// # Errors
    ///
    /// [`WaitError`]
    pub fn wait_room(&self, descriptors: bool, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        let (mut room, mut slices) = (CourierRoom::new(), Slices::new());
        if descriptors {
            room.wait(self.ring(), self.bound, wait)?;
        }
        while self.is_full() {
            self.ring().wait_for_room(self.bound, wait, &mut slices)?;
        }
        self.ring().wake_producer();
        Ok(())
    }

    /// How many messages were put for which [`task_done`](Self::task_done) was not called yet.
    pub fn unfinished(&self) -> u64 {
        let done = self.ring().map().header().joining.done.load(Acquire);
        self.ring().put_count().saturating_sub(done)
    }

    /// Has the queue know who has which messages in hand, so that [`join`](Self::join) does not wait for what a process had taken
    /// before it died. To be called before the first message is taken. Taking becomes a little dearer.
    pub fn keep_holders(&self) {
        self.holders().keep();
    }

    fn holders(&self) -> &Holders {
        self.shared.holders()
    }

    /// Says that a message that was taken has been dealt with.
    ///
    /// # Errors
    ///
    /// [`TooManyDone`] if that was said for all messages already.
    pub fn task_done(&self) -> Result<(), TooManyDone> {
        let counted =
            if self.holders().are_kept() { self.holders().done(|| self.count_done(1)) } else { self.count_done(1) };
        counted.then_some(()).ok_or(TooManyDone)
    }

    /// Counts so many messages as dealt with, if so many were put.
    fn count_done(&self, count: u64) -> bool {
        let joining = &self.ring().map().header().joining;
        let before = joining.joiners.before();
        let more = |done: u64| done.checked_add(count).filter(|&done| done <= self.ring().put_count());
        let Ok(done) = joining.done.fetch_update(AcqRel, Acquire, more) else { return false };
        if done + count >= self.ring().put_count() {
            joining.joiners.wake(&joining.done, before, u64::MAX);
        }
        true
    }

    /// Waits until all messages that were put have been dealt with. What processes had in their hands when they died counts as
    /// dealt with, if the queue [knows](Self::keep_holders) who has what: `lost` is told of it. Not so what a process had when it
    /// [ended in order](hand_on): it may have handed that on to another, which says when it is dealt with.
    ///
    /// # Errors
    ///
    /// [`WaitError`]
    pub fn join(&self, wait: &mut Wait<'_>, mut lost: impl FnMut(Lost)) -> Result<(), WaitError> {
        let joining = &self.ring().map().header().joining;
        let mut slices = Slices::new();
        let mut looked = Instant::now();
        loop {
            let seen = joining.done.load(Acquire);
            if seen >= self.ring().put_count() {
                return Ok(());
            }
            let slice = slices.next();
            joining.joiners.sleep(&joining.done, seen, wait, slice)?;
            if self.holders().are_kept() && looked.elapsed() >= slice {
                if let Some(found) = self.make_up_for_the_dead() {
                    lost(found);
                }
                looked = Instant::now();
            }
        }
    }

    /// Counts as dealt with what dead processes had in their hands.
    fn make_up_for_the_dead(&self) -> Option<Lost> {
        let joining = &self.ring().map().header().joining;
        let mut done = 0;
        let lost = self.holders().lost(
            || self.ring().get_count(),
            || {
                done = joining.done.load(Acquire);
                done
            },
        )?;
        let before = joining.joiners.before();
        // If another has counted meanwhile, that may have been this.
        joining.done.compare_exchange(done, done + lost.messages, AcqRel, Acquire).ok()?;
        self.holders().make_up(lost.messages);
        joining.joiners.wake(&joining.done, before, u64::MAX);
        Some(lost)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "queue_tests.rs"]
mod tests;
