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

/// All objects of a server.
#[derive(Debug, Default)]
pub(super) struct Objects(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    entries: HashMap<ObjectId, Entry>,
    /// How often each client refers to each object.
    clients: HashMap<ClientId, HashMap<ObjectId, usize>>,
    loans: HashMap<u64, Loan>,
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

impl Clone for Held {
    fn clone(&self) -> Self {
        if let Some(entry) = self.objects.lock().entries.get_mut(&self.id) {
            entry.count += 1;
        }
        Self { objects: Arc::clone(&self.objects), id: self.id }
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

    /// Counts a reference that is on its way. `None` if there is no such object.
    pub(super) fn lend(&self, sender: ClientId, object: ObjectId) -> Option<u64> {
        let mut inner = self.lock();
        let number = inner.count_one(object).then(|| {
            inner.last_loan += 1;
            let number = inner.last_loan;
            inner.loans.insert(number, Loan { object, sender, ends: None });
            number
        });
        inner.end_loans(Instant::now());
        self.bury(inner);
        number
    }

    /// The reference that was on its way becomes one of this client; if it has arrived before, another is counted.
    pub(super) fn claim(&self, client: ClientId, object: ObjectId, loan: u64) -> bool {
        let mut inner = self.lock();
        let arrives = inner.loans.get(&loan).is_some_and(|loan| loan.object == object);
        if arrives {
            inner.loans.remove(&loan);
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
        let ended: Vec<_> = self.loans.extract_if(|_, loan| loan.ends.is_some_and(|ends| ends <= now)).collect();
        for (_, loan) in ended {
            self.forget_one(loan.object);
        }
    }
}
