//! The types of objects that a manager's server makes.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use procession_core::manager::{Caller, Failure, Object, Types};

use super::{
    barrier::Barrier,
    condition::Condition,
    dict::Dict,
    event::Event,
    list::List,
    lock::Lock,
    managed::{Managed, Shared},
    peer::Peer,
    queue::Queue,
    semaphore::Semaphore,
    value::Value,
};

/// The server's own address and key: for proxies within its process.
pub(super) type Home = Arc<OnceLock<Arc<Peer>>>;

type Make = fn(&Home, &[u8], &Caller<'_>) -> Result<Arc<dyn Object>, Failure>;

/// Puts a type into a registry: what a builder keeps of a type, and sends to the server's process by name.
pub(super) type Register = fn(&mut Registry);

/// The types.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) home: Home,
    types: BTreeMap<&'static str, Make>,
}

impl Registry {
    pub(super) fn new(home: Home) -> Self {
        let mut registry = Self { home, types: BTreeMap::new() };
        let standard: [(_, Make); 14] = [
            ("dict", |_, arguments, caller| made(Dict::with_items(arguments, caller)?)),
            ("Namespace", |_, _, _| made(Dict::namespace())),
            ("list", |_, arguments, caller| made(List::new(false, arguments, caller)?)),
            ("Array", |_, arguments, caller| made(List::new(true, arguments, caller)?)),
            ("Value", |_, arguments, caller| made(Value::new(arguments, caller)?)),
            ("Queue", |_, arguments, _| made(Queue::new(false, arguments)?)),
            ("JoinableQueue", |_, arguments, _| made(Queue::new(true, arguments)?)),
            ("Lock", |_, _, _| made(Lock::new(false))),
            ("RLock", |_, _, _| made(Lock::new(true))),
            ("Semaphore", |_, arguments, _| made(Semaphore::new(false, arguments)?)),
            ("BoundedSemaphore", |_, arguments, _| made(Semaphore::new(true, arguments)?)),
            ("Condition", |_, _, _| made(Condition::default())),
            ("Event", |_, _, _| made(Event::default())),
            ("Barrier", |_, arguments, _| made(Barrier::new(arguments)?)),
        ];
        registry.types.extend(standard);
        registry
    }

    pub(super) fn register<T: Managed>(&mut self) {
        self.types.insert(T::NAME, |home, arguments, caller| made(Shared::<T>::new(home, arguments, caller)?));
    }
}

fn made(object: impl Object) -> Result<Arc<dyn Object>, Failure> {
    Ok(Arc::new(object))
}

impl Types for Registry {
    fn create(&self, name: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Arc<dyn Object>, Failure> {
        match self.types.get(name) {
            Some(make) => make(&self.home, arguments, caller),
            None => Err(Failure::NoSuchType(self.types.keys().copied().collect::<Vec<_>>().join(", "))),
        }
    }
}
