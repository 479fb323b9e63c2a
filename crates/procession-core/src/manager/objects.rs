//! The objects that a server keeps, and who refers to them. See `PROTOCOL.md`, *References*.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Object,
    protocol::{ClientId, ObjectId},
};

/// A reference that is on its way outlives its sender for so long.
const LOAN_OUTLIVES_SENDER: Duration = Duration::from_secs(60);

/// So many loans of one object may be under way from one sender. Who sends the same proxy again and again to where nobody
/// receives it (into a queue that is full) doesn't fill the server's memory.
const MOST_LOANS: usize = 1024;

/// All objects of a server.
#[derive(Debug, Default)]
pub(super) struct Objects(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    entries: HashMap<ObjectId, Entry>,
    /// How often each client refers to each object.
    clients: HashMap<ClientId, HashMap<ObjectId, usize>>,
    loans: HashMap<u64, Loan>,
    /// How many loans of each object each client has under way.
    lent: HashMap<(ClientId, ObjectId), usize>,
    last_object: ObjectId,
    last_loan: u64,
    /// Objects that nobody refers to any more, on their way out: *Freed under the lock*.
    graveyard: Vec<Arc<dyn Object>>,
    burying: bool,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("objects", &self.entries.len()).finish_non_exhaustive()
    }
}

struct Entry {
    object: Arc<dyn Object>,
    /// References of all kinds: clients', those on their way, and [`Held`].
    count: usize,
}

/// A reference on its way from one client to another.
struct Loan {
    object: ObjectId,
    sender: ClientId,
    /// Known when the sender is gone.
    ends: Option<Instant>,
}

/// A reference from within the server: an object that keeps another. The object stays as long as this does.
pub struct Held {
    objects: Arc<Objects>,
    id: ObjectId,
}

impl Held {
    /// The object's number.
    pub fn id(&self) -> ObjectId {
        self.id
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Held").field(&self.id).finish()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.objects.lock();
        inner.forget_one(self.id);
        self.objects.bury(inner);
    }
}

impl Objects {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a new object, with a reference of its maker.
    pub(super) fn add(&self, object: Arc<dyn Object>, client: ClientId) -> ObjectId {
        let mut inner = self.lock();
        inner.last_object += 1;
        let id = inner.last_object;
        inner.entries.insert(id, Entry { object, count: 1 });
        inner.client_has(client, id);
        id
    }

    pub(super) fn find(&self, id: ObjectId) -> Option<Arc<dyn Object>> {
        self.lock().entries.get(&id).map(|entry| Arc::clone(&entry.object))
    }

    /// Counts one more reference of the client. False if there is no such object.
    pub(super) fn retain(&self, client: ClientId, id: ObjectId) -> bool {
        let mut inner = self.lock();
        let known = inner.count_one(id);
        if known {
            inner.client_has(client, id);
        }
        known
    }

    /// Counts one reference of the client less, if it has one.
    pub(super) fn release(&self, client: ClientId, id: ObjectId) {
        let mut inner = self.lock();
        let Some(references) = inner.clients.get_mut(&client) else {
            return;
        };
        let Some(count) = references.get_mut(&id) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            references.remove(&id);
            if references.is_empty() {
                inner.clients.remove(&client);
            }
        }
        inner.forget_one(id);
        self.bury(inner);
    }

    /// A reference from within.
    pub(super) fn hold(self: &Arc<Self>, id: ObjectId) -> Option<Held> {
        self.lock().count_one(id).then(|| Held { objects: Arc::clone(self), id })
    }

    /// Counts a reference that is on its way; its number is zero if there are too many. `None` if there is no such object.
    pub(super) fn lend(&self, sender: ClientId, object: ObjectId) -> Option<u64> {
        let mut inner = self.lock();
        inner.end_loans(Instant::now());
        let number = if inner.lent.get(&(sender, object)).is_some_and(|lent| *lent >= MOST_LOANS) {
            Some(0)
        } else {
            inner.count_one(object).then(|| {
                inner.last_loan += 1;
                let number = inner.last_loan;
                inner.loans.insert(number, Loan { object, sender, ends: None });
                *inner.lent.entry((sender, object)).or_default() += 1;
                number
            })
        };
        self.bury(inner);
        number
    }

    /// The reference that was on its way becomes one of this client; if it has arrived before, another is counted.
    pub(super) fn claim(&self, client: ClientId, object: ObjectId, loan: u64) -> bool {
        let mut inner = self.lock();
        let arrives = inner.loans.get(&loan).is_some_and(|loan| loan.object == object);
        if arrives {
            inner.end_loan(loan);
        } else if !inner.count_one(object) {
            return false;
        }
        inner.client_has(client, object);
        true
    }

    /// All references of a client that is gone.
    pub(super) fn forget(&self, client: ClientId) {
        let now = Instant::now();
        let mut inner = self.lock();
        for (id, count) in inner.clients.remove(&client).unwrap_or_default() {
            for _ in 0..count {
                inner.forget_one(id);
            }
        }
        for loan in inner.loans.values_mut().filter(|loan| loan.sender == client && loan.ends.is_none()) {
            loan.ends = now.checked_add(LOAN_OUTLIVES_SENDER);
        }
        inner.end_loans(now);
        self.bury(inner);
    }

    /// Lets go of all objects, whoever refers to them: those too that keep each other, or this.
    pub(super) fn clear(&self) {
        let mut inner = self.lock();
        let entries = std::mem::take(&mut inner.entries);
        inner.graveyard.extend(entries.into_values().map(|entry| entry.object));
        self.bury(inner);
    }

    /// How many objects there are.
    pub(super) fn len(&self) -> usize {
        let mut inner = self.lock();
        inner.end_loans(Instant::now());
        let length = inner.entries.len();
        self.bury(inner);
        length
    }

    pub(super) fn all(&self) -> Vec<Arc<dyn Object>> {
        self.lock().entries.values().map(|entry| Arc::clone(&entry.object)).collect()
    }

    /// Drops what nobody refers to, without the lock. Objects that go with others are added meanwhile, hence the loop:
    /// however deep they are nested, the stack isn't.
    fn bury<'a>(&'a self, mut inner: MutexGuard<'a, Inner>) {
        if inner.burying {
            return;
        }
        inner.burying = true;
        while let Some(object) = inner.graveyard.pop() {
            drop(inner);
            // Whatever a face's object does when it goes, the others go too.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(object)));
            inner = self.lock();
        }
        inner.burying = false;
    }
}

impl Inner {
    fn count_one(&mut self, id: ObjectId) -> bool {
        let entry = self.entries.get_mut(&id);
        entry.map(|entry| entry.count += 1).is_some()
    }

    fn client_has(&mut self, client: ClientId, id: ObjectId) {
        *self.clients.entry(client).or_default().entry(id).or_default() += 1;
    }

    fn forget_one(&mut self, id: ObjectId) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.count -= 1;
        if entry.count == 0
            && let Some(entry) = self.entries.remove(&id)
        {
            self.graveyard.push(entry.object);
        }
    }

    fn end_loans(&mut self, now: Instant) {
        let over = |loan: &Loan| loan.ends.is_some_and(|ends| ends <= now);
        let ended: Vec<_> = self.loans.iter().filter(|(_, loan)| over(loan)).map(|(number, _)| *number).collect();
        for number in ended {
            if let Some(object) = self.end_loan(number) {
                self.forget_one(object);
            }
        }
    }

    /// Strikes a loan out; its reference to the object is the caller's now.
    fn end_loan(&mut self, number: u64) -> Option<ObjectId> {
        let Loan { object, sender, .. } = self.loans.remove(&number)?;
        if let Some(lent) = self.lent.get_mut(&(sender, object)) {
            *lent -= 1;
            if *lent == 0 {
                self.lent.remove(&(sender, object));
            }
        }
        Some(object)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::manager::{Caller, Failure};

    /// Counts how many of its kind there are.
    struct Counted(Arc<AtomicUsize>);

    impl Object for Counted {
        fn type_name(&self) -> &'static str {
            "Counted"
        }

        fn call(&self, _: &str, _: &[u8], _: &Caller<'_>) -> Result<Vec<u8>, Failure> {
            Err(Failure::NoSuchMethod)
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u8),
        Retain(u8, usize),
        Release(u8, usize),
        Lend(u8, usize),
        Claim(u8, usize),
        Hold(usize),
        LetGo(usize),
        Forget(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (client, place) = (0..3_u8, 0..6_usize);
        prop_oneof![
            client.clone().prop_map(Step::Add),
            (client.clone(), place.clone()).prop_map(|(client, place)| Step::Retain(client, place)),
            (client.clone(), place.clone()).prop_map(|(client, place)| Step::Release(client, place)),
            (client.clone(), place.clone()).prop_map(|(client, place)| Step::Lend(client, place)),
            (client.clone(), place.clone()).prop_map(|(client, place)| Step::Claim(client, place)),
            place.clone().prop_map(Step::Hold),
            place.prop_map(Step::LetGo),
            client.prop_map(Step::Forget),
        ]
    }

    proptest! {
        /// Against a model that only counts: an object is there exactly as long as somebody refers to it.
        #[test]
        fn objects_live_as_long_as_they_are_referred_to(steps in proptest::collection::vec(step(), 1..80)) {
            let living = Arc::new(AtomicUsize::new(0));
            let objects = Arc::new(Objects::default());
            let who = |client: u8| ClientId(client.into());
            // For each object: references of each client, of loans, and from within.
            let mut model: Vec<([usize; 3], Vec<u64>, Vec<Held>)> = Vec::new();
            let alive = |(clients, loans, held): &([usize; 3], Vec<u64>, Vec<Held>)| {
                clients.iter().sum::<usize>() + loans.len() + held.len() > 0
            };
            for step in steps {
                match step {
                    Step::Add(client) => {
                        living.fetch_add(1, Ordering::Relaxed);
                        let id = objects.add(Arc::new(Counted(Arc::clone(&living))), who(client));
                        model.push(Default::default());
                        prop_assert_eq!(id, model.len() as u64);
                        model[id as usize - 1].0[usize::from(client)] += 1;
                    }
                    Step::Forget(client) => {
                        objects.forget(who(client));
                        for object in &mut model {
                            object.0[usize::from(client)] = 0;
                        }
                    }
                    Step::Retain(_, place) | Step::Release(_, place) | Step::Lend(_, place) | Step::Claim(_, place)
                    | Step::Hold(place) | Step::LetGo(place) => {
                        let Some(object) = model.get_mut(place) else { continue };
                        let id = place as u64 + 1;
                        let there = alive(object);
                        match step {
                            Step::Retain(client, _) => {
                                prop_assert_eq!(objects.retain(who(client), id), there);
                                object.0[usize::from(client)] += usize::from(there);
                            }
                            Step::Release(client, _) => {
                                objects.release(who(client), id);
                                let count = &mut object.0[usize::from(client)];
                                *count = count.saturating_sub(1);
                            }
                            Step::Lend(client, _) => {
                                let loan = objects.lend(who(client), id);
                                prop_assert_eq!(loan.is_some(), there);
                                object.1.extend(loan);
                            }
                            Step::Claim(client, _) => {
                                let loan = object.1.pop().unwrap_or_default();
                                prop_assert_eq!(objects.claim(who(client), id, loan), there);
                                object.0[usize::from(client)] += usize::from(there);
                            }
                            Step::Hold(_) => {
                                let held = objects.hold(id);
                                prop_assert_eq!(held.is_some(), there);
                                object.2.extend(held);
                            }
                            _ => drop(object.2.pop()),
                        }
                    }
                }
                let expected = model.iter().filter(|object| alive(object)).count();
                prop_assert_eq!(objects.len(), expected);
                prop_assert_eq!(living.load(Ordering::Relaxed), expected);
            }
        }
    }

    /// Keeps another object.
    struct Keeper {
        _counted: Counted,
        kept: Mutex<Option<Held>>,
    }

    impl Object for Keeper {
        fn type_name(&self) -> &'static str {
            "Keeper"
        }

        fn call(&self, _: &str, _: &[u8], _: &Caller<'_>) -> Result<Vec<u8>, Failure> {
            Err(Failure::NoSuchMethod)
        }
    }

    #[test]
    fn objects_that_keep_each_other_go_with_all() {
        let living = Arc::new(AtomicUsize::new(2));
        let objects = Arc::new(Objects::default());
        let two = [(); 2].map(|()| Arc::new(Keeper { _counted: Counted(Arc::clone(&living)), kept: Mutex::default() }));
        let ids = two.clone().map(|keeper| objects.add(keeper, ClientId(1)));
        for (keeper, id) in two.iter().zip([ids[1], ids[0]]) {
            *keeper.kept.lock().unwrap() = objects.hold(id);
        }
        drop(two);
        objects.forget(ClientId(1));
        assert_eq!(objects.len(), 2);
        objects.clear();
        assert_eq!(living.load(Ordering::Relaxed), 0);
        assert_eq!(Arc::strong_count(&objects), 1);
    }

    #[test]
    fn loans_are_bounded() {
        let living = Arc::new(AtomicUsize::new(1));
        let objects = Objects::default();
        let id = objects.add(Arc::new(Counted(Arc::clone(&living))), ClientId(1));
        let loans: Vec<_> = (0..MOST_LOANS).map(|_| objects.lend(ClientId(1), id).unwrap()).collect();
        assert!(loans.iter().all(|loan| *loan != 0));
        assert_eq!(objects.lend(ClientId(1), id), Some(0));
        // One that arrives makes room for another.
        assert!(objects.claim(ClientId(2), id, loans[0]));
        assert_ne!(objects.lend(ClientId(1), id), Some(0));
        assert_eq!(objects.lend(ClientId(1), id), Some(0));
        assert!(objects.claim(ClientId(2), id, 0));
    }

    #[test]
    fn a_loan_ends_some_time_after_its_sender() {
        let living = Arc::new(AtomicUsize::new(1));
        let objects = Objects::default();
        let id = objects.add(Arc::new(Counted(Arc::clone(&living))), ClientId(1));
        objects.lend(ClientId(1), id).unwrap();
        objects.forget(ClientId(1));
        assert_eq!(objects.len(), 1);
        let mut inner = objects.lock();
        inner.end_loans(Instant::now() + LOAN_OUTLIVES_SENDER);
        objects.bury(inner);
        assert_eq!(objects.len(), 0);
        assert_eq!(living.load(Ordering::Relaxed), 0);
        assert!(objects.lock().lent.is_empty());
    }
}
