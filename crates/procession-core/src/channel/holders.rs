//! Which processes have how many messages of a queue in their hands: taken, and not yet dealt with.
//!
//! Only queues that are joined keep this table. Without it, `join` would wait for ever for what a process had taken before it
//! was killed (PROTOCOL.md, "A process dies with messages in its hands").
//!
//! An entry belongs to the process whose `ProcessId` is in `owner`; zero: nobody ever had it. Whoever holds the ring's
//! consumer lock may take one for itself that is nobody's or a dead process's, and writes `held` before `owner`. A process that
//! ends in order moves what it has to `handed_on`, which belongs to nobody.

use crate::{
    kills::point,
    loom::{
        AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
    process::ProcessId,
};

/// So many processes may take from a queue that is joined. If there are more at a time, nobody is made up for.
const ENTRIES: usize = if cfg!(loom) { 2 } else { 128 };

#[derive(Debug)]
#[repr(C)]
struct Entry {
    owner: AtomicU64,
    held: AtomicU64,
}

/// The table, part of the header of a ring. All zeros is a queue that is not joined.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Holders {
    /// Not zero: the queue is joined, so the table is kept.
    kept: AtomicU32,
    /// Not zero: it was too small once, so it doesn't tell who has what.
    overflowed: AtomicU32,
    /// How many messages of dead processes were counted as dealt with, less those of which somebody said so after all.
    made_up: AtomicU64,
    /// How many messages processes had in their hands that ended in order. They have handed them on, or will never be asked
    /// for them; in any case somebody else may still say that they are dealt with.
    handed_on: AtomicU64,
    entries: [Entry; ENTRIES],
}

/// Messages that processes had in their hands when they died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// How many messages.
    pub messages: u64,
    /// The processes that may have had them. Empty if their places in the table were needed for others.
    pub pids: Vec<u32>,
}

impl Default for Holders {
    fn default() -> Self {
        let entry = |_| Entry { owner: AtomicU64::new(0), held: AtomicU64::new(0) };
        Self {
            kept: AtomicU32::new(0),
            overflowed: AtomicU32::new(0),
            made_up: AtomicU64::new(0),
            handed_on: AtomicU64::new(0),
            entries: std::array::from_fn(entry),
        }
    }
}

impl Holders {
    pub(super) fn keep(&self) {
        self.kept.store(1, Release);
    }

    #[inline]
    pub(super) fn are_kept(&self) -> bool {
        self.kept.load(Relaxed) != 0
    }

    fn own(&self, own: u64) -> Option<&Entry> {
        // Where the process would like to be: mostly it is there, or just behind.
        let start = own as usize;
        let nth = |n: usize| &self.entries[start.wrapping_add(n) % ENTRIES];
        (0..ENTRIES).map(nth).find(|entry| entry.owner.load(Relaxed) == own)
    }

    /// Notes a message as in the hands of this process. The caller holds the consumer lock, and takes the message out after.
    /// Tells whether an entry was taken for this process, which had none.
    pub(super) fn take(&self) -> bool {
        self.take_for(ProcessId::current().to_bits(), is_alive)
    }

    fn take_for(&self, own: u64, is_alive: impl Fn(u64) -> bool) -> bool {
        if let Some(entry) = self.own(own) {
            entry.held.fetch_add(1, AcqRel);
            return false;
        }
        let start = own as usize;
        let nth = |n: usize| &self.entries[start.wrapping_add(n) % ENTRIES];
        let nobodys = (0..ENTRIES).map(nth).find(|entry| entry.owner.load(Relaxed) == 0);
        let free = nobodys.or_else(|| (0..ENTRIES).map(nth).find(|entry| !is_alive(entry.owner.load(Relaxed))));
        let Some(entry) = free else {
            self.overflowed.store(1, Release);
            return false;
        };
        // What a dead process held is of no account: it is known by what nobody living holds.
        entry.held.store(1, Release);
        entry.owner.store(own, Release);
        point("holders: an entry taken, the message not");
        true
    }

    /// This process ends in order, or is through with the queue: what it has in hand is not lost.
    pub(super) fn hand_on(&self) {
        self.hand_on_of(ProcessId::current().to_bits());
    }

    fn hand_on_of(&self, own: u64) {
        let Some(entry) = self.own(own) else { return };
        // Counted twice for a moment, rather than not at all: see `lost_if`.
        let held = entry.held.load(Acquire);
        self.handed_on.fetch_add(held, AcqRel);
        let _ = entry.held.fetch_update(AcqRel, Acquire, |present| Some(present.saturating_sub(held)));
    }

    /// Takes back what was noted for messages that then were not taken.
    #[cold]
    pub(super) fn give_back(&self, messages: u64) {
        if let Some(entry) = self.own(ProcessId::current().to_bits()) {
            let less = |held: u64| Some(held.saturating_sub(messages));
            let _ = entry.held.fetch_update(AcqRel, Acquire, less);
        }
    }

    /// This process says that a message is dealt with: `count` counts it (whether there was one to count), unless it has none in
    /// its hands and the message was made up for.
    pub(super) fn done(&self, count: impl FnOnce() -> bool) -> bool {
        self.done_by(ProcessId::current().to_bits(), count)
    }

    fn done_by(&self, own: u64, count: impl FnOnce() -> bool) -> bool {
        let own = self.own(own).map(|entry| &entry.held);
        let held = own.into_iter().chain([&self.handed_on]).find(|held| held.load(Acquire) > 0);
        let less = |number: u64| number.checked_sub(1);
        if held.is_none() && self.made_up.fetch_update(AcqRel, Acquire, less).is_ok() {
            return true;
        }
        let counted = count();
        point("holders: a message counted as dealt with, still in hands");
        // Only now: see `lost`.
        if counted && let Some(held) = held {
            let _ = held.fetch_update(AcqRel, Acquire, less);
        }
        counted
    }

    /// What dead processes had in their hands, by how many messages were `taken` from the ring and were `done`.
    ///
    /// A message is in hands if it was taken and is not done. What the living hold is counted too high rather than too low, since
    /// it is read between the two: it was noted before the message was taken, and is taken back after it was counted as done. So the
    /// difference is in nobody's hands.
    pub(super) fn lost(&self, taken: impl FnOnce() -> u64, done: impl FnOnce() -> u64) -> Option<Lost> {
        self.lost_if(taken, done, is_alive)
    }

    fn lost_if(
        &self,
        taken: impl FnOnce() -> u64,
        done: impl FnOnce() -> u64,
        is_alive: impl Fn(u64) -> bool,
    ) -> Option<Lost> {
        if self.overflowed.load(Acquire) != 0 {
            return None;
        }
        let taken = taken();
        let mut living = 0u64;
        let mut pids = Vec::new();
        for entry in &self.entries {
            let Some(owner) = Some(entry.owner.load(Acquire)).filter(|&owner| owner != 0) else { continue };
            let held = entry.held.load(Acquire);
            if held == 0 {
                continue;
            }
            if is_alive(owner) {
                living = living.saturating_add(held);
            } else {
                pids.extend(ProcessId::from_bits(owner).map(ProcessId::pid));
            }
        }
        // After the entries: what is moved meanwhile is counted twice rather than not at all.
        living = living.saturating_add(self.handed_on.load(Acquire));
        let messages = taken.saturating_sub(done()).saturating_sub(living);
        (messages > 0).then_some(Lost { messages, pids })
    }

    /// Notes that so many messages were counted as dealt with for the dead.
    pub(super) fn make_up(&self, messages: u64) {
        self.made_up.fetch_add(messages, AcqRel);
    }
}

fn is_alive(owner: u64) -> bool {
    ProcessId::from_bits(owner).is_some_and(ProcessId::is_alive)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn counted() -> bool {
        true
    }

    #[test]
    fn what_the_dead_held_is_lost_and_what_the_living_hold_is_not() {
        let holders = Holders::default();
        for owner in [7, 7, 8, 9] {
            holders.take_for(owner, |_| true);
        }
        assert_eq!(holders.lost_if(|| 4, || 0, |_| true), None);
        let lost = holders.lost_if(|| 4, || 0, |owner| owner != 7).unwrap();
        assert_eq!(lost, Lost { messages: 2, pids: vec![7] });
        assert!(holders.done_by(7, counted));
        assert_eq!(holders.lost_if(|| 4, || 1, |owner| owner != 7).unwrap().messages, 1);
        // Noted, and killed before it was taken.
        assert_eq!(holders.lost_if(|| 3, || 1, |owner| owner != 7), None);
    }

    #[test]
    fn who_says_done_for_another_takes_nothing_from_a_third() {
        let holders = Holders::default();
        holders.take_for(7, |_| true);
        holders.take_for(8, |_| true);
        // 9 never took any: it speaks for 7, whose death costs nothing then.
        assert!(holders.done_by(9, counted));
        assert_eq!(holders.lost_if(|| 2, || 1, |owner| owner != 7), None);
        assert_eq!(holders.lost_if(|| 2, || 1, |_| false).unwrap().messages, 1);
    }

    #[test]
    fn who_says_done_late_is_heard_once() {
        let holders = Holders::default();
        holders.take_for(7, |_| true);
        holders.make_up(1);
        assert!(holders.done_by(9, || unreachable!("it was made up for")));
        assert!(!holders.done_by(9, || false));
        // One that has some in hands speaks for those.
        holders.make_up(1);
        assert!(holders.done_by(7, counted));
        assert!(holders.done_by(7, || unreachable!("it was made up for")));
    }

    #[test]
    fn what_is_handed_on_is_not_lost_and_others_say_so() {
        let holders = Holders::default();
        for owner in [7, 7, 8] {
            holders.take_for(owner, |_| true);
        }
        holders.hand_on_of(7);
        assert_eq!(holders.lost_if(|| 3, || 0, |_| false).unwrap(), Lost { messages: 1, pids: vec![8] });
        // 9 never took any: it speaks for those of 7.
        assert!(holders.done_by(9, counted));
        assert!(holders.done_by(9, counted));
        assert_eq!(holders.lost_if(|| 3, || 2, |_| true), None);
        // Many may end so.
        for owner in 100..100 + 2 * ENTRIES as u64 {
            assert!(holders.take_for(owner, |owner| owner == 8));
            holders.hand_on_of(owner);
        }
        let taken = 3 + 2 * ENTRIES as u64;
        assert_eq!(holders.lost_if(|| taken, || 2, |_| false).unwrap().messages, 1);
    }

    #[test]
    fn entries_of_the_dead_serve_others_and_too_many_living_end_it() {
        let holders = Holders::default();
        let all = ENTRIES as u64;
        for owner in 1..=all {
            holders.take_for(owner, |_| true);
        }
        holders.take_for(all + 1, |owner| owner > 3);
        assert_eq!(holders.lost_if(|| all + 1, || 0, |owner| owner > 3).unwrap().messages, 3);
        holders.take_for(all + 2, |_| true);
        assert_eq!(holders.lost_if(|| all + 2, || 0, |_| false), None);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    /// Somebody takes two messages and deals with them while another looks: nothing is lost at any moment.
    #[test]
    fn what_the_living_hold_is_never_lost() {
        loom::model(|| {
            let shared = Arc::new((Holders::default(), AtomicU64::new(0), AtomicU64::new(0)));
            // One that was killed after it had noted a message, and before it took it out.
            shared.0.take_for(8, |_| true);
            let other = Arc::clone(&shared);
            let worker = thread::spawn(move || {
                let (holders, taken, done) = &*other;
                for number in 1..=2 {
                    holders.take_for(7, |owner| owner == 7);
                    taken.store(number, Release);
                    holders.done_by(7, || {
                        done.fetch_add(1, AcqRel);
                        true
                    });
                }
            });
            let (holders, taken, done) = &*shared;
            let lost = holders.lost_if(|| taken.load(Acquire), || done.load(Acquire), |owner| owner == 7);
            assert_eq!(lost, None);
            worker.join().unwrap();
        });
    }
}
