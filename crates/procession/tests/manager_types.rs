//! Managers of types of the program's own.

mod support;

use std::thread;

use procession::{
    Connection, Manager, ManagerError, Pool, Process, Queue,
    manager::{BarrierProxy, ListProxy, ValueProxy},
};
use support::{
    managers::{has, join_all, manager},
    until,
};

procession::test_support!();

/// What clients change.
#[derive(Debug)]
struct Counter {
    count: u64,
    noted: Option<ListProxy<u64>>,
}

/// A type that tells when it goes.
#[derive(Debug)]
struct Guest(ValueProxy<u32>);

#[procession::managed(name = "the counter")]
impl Counter {
    /// Starts somewhere.
    pub fn new(start: u64) -> Self {
        Self { count: start, noted: None }
    }

    pub fn noting(noted: ListProxy<u64>) -> Self {
        Self { count: 0, noted: Some(noted) }
    }

    pub fn increment(&mut self, by: u64) -> u64 {
        self.count = self.count.checked_add(by).expect("there are numbers beyond u64");
        if let Some(noted) = &self.noted {
            noted.push(self.count).unwrap();
        }
        self.count
    }

    pub fn get(&self) -> u64 {
        self.count
    }

    pub fn noted(&self) -> Option<ListProxy<u64>> {
        self.noted.clone()
    }

    pub fn note(&mut self, noted: ListProxy<u64>, (first, second): (u64, u64)) {
        noted.extend([first, second]).unwrap();
        self.noted = Some(noted);
    }

    /// Returns when two threads are in it.
    pub fn meet(&self, barrier: BarrierProxy) -> u64 {
        self.count + barrier.wait().unwrap() as u64
    }

    pub fn checked(&self, least: u64) -> Result<u64, String> {
        if self.count >= least { Ok(self.count) } else { Err(format!("{} is less than {least}", self.count)) }
    }

    #[allow(dead_code)]
    fn reset(&mut self) {
        self.count = 0;
    }
}

#[procession::managed(proxy = Visitor)]
impl Guest {
    pub fn new(gone: ValueProxy<u32>) -> Self {
        Self(gone)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.set(1).unwrap();
    }
}

fn counting() -> Manager {
    Manager::builder().register::<Counter>().register::<Guest>().start().unwrap()
}

#[test]
fn a_type_of_the_programs_own_is_shared() {
    fn adds(counter: CounterProxy) {
        for _ in 0..100 {
            counter.increment(1).unwrap();
        }
    }
    let manager = counting();
    let counter = CounterProxy::new(&manager, 5).unwrap();
    let children: Vec<_> = (0..3).map(|_| Process::spawn(adds, (counter.clone(),)).unwrap()).collect();
    join_all(children);
    assert_eq!(counter.get().unwrap(), 305);
    assert_eq!(counter.checked(300).unwrap(), Ok(305));
    assert_eq!(counter.checked(999).unwrap(), Err("305 is less than 999".into()));
    assert_eq!(manager.create::<Counter>((7,)).unwrap().get().unwrap(), 7);
    let kept = manager.list([counter.clone()]).unwrap();
    drop(counter);
    assert_eq!(kept.get(0).unwrap().unwrap().get().unwrap(), 305);
}

#[test]
fn methods_that_look_run_at_the_same_time() {
    let manager = counting();
    let (counter, barrier) = (CounterProxy::new(&manager, 0).unwrap(), manager.barrier(2).unwrap());
    thread::scope(|scope| {
        let other = scope.spawn(|| counter.meet(barrier.clone()).unwrap());
        assert_eq!(counter.meet(barrier.clone()).unwrap() + other.join().unwrap(), 1);
    });
}

#[test]
fn proxies_are_arguments_and_results_of_methods() {
    let manager = counting();
    let list = manager.list([]).unwrap();
    let counter = CounterProxy::noting(&manager, list.clone()).unwrap();
    counter.increment(3).unwrap();
    assert_eq!(list.to_vec().unwrap(), [3]);
    // The object holds the list now.
    drop(list);
    let list = counter.noted().unwrap().unwrap();
    counter.increment(4).unwrap();
    assert_eq!(list.to_vec().unwrap(), [3, 7]);
    let another = manager.list([]).unwrap();
    counter.note(another.clone(), (1, 2)).unwrap();
    drop(list);
    assert_eq!(another.to_vec().unwrap(), [1, 2]);
    has(&manager, 2);
    drop((another, counter));
    has(&manager, 0);
}

#[test]
fn objects_are_dropped_when_their_proxies_are() {
    let manager = counting();
    let gone = manager.value(0).unwrap();
    let guest = Visitor::new(&manager, gone.clone()).unwrap();
    let other = guest.clone();
    drop(guest);
    assert_eq!(gone.get().unwrap(), 0);
    drop(other);
    until(|| gone.get().unwrap() == 1);
}

#[test]
fn what_is_not_exposed_or_registered_is_an_error_that_says_so() {
    let manager = counting();
    let counter = procession::manager::ManagedProxy::<Counter>::clone(&proxy_of(&manager));
    let error = counter.call::<()>("reset", ()).unwrap_err();
    assert_eq!(error.to_string(), "a shared object of type the counter has no method reset");
    assert!(matches!(counter.call::<u64>("increment", ("text".to_string(),)), Err(ManagerError::BadArguments(_))));
    assert!(matches!(counter.call::<(u64, u64)>("get", ()), Err(ManagerError::Decode(_))));
    let plain = Manager::new().unwrap();
    let error = CounterProxy::new(&plain, 1).unwrap_err();
    assert!(matches!(&error, ManagerError::NoSuchType { name, .. } if name == "the counter"), "{error}");
    assert!(error.to_string().contains("register it with the builder"));
}

fn proxy_of(manager: &Manager) -> procession::manager::ManagedProxy<Counter> {
    // Sent and received as the other kind of proxy, which is the same thing.
    let list = manager.list([CounterProxy::new(manager, 1).unwrap()]).unwrap();
    let namespace = manager.namespace().unwrap();
    namespace.set("counter", list.get(0).unwrap().unwrap()).unwrap();
    namespace.get("counter").unwrap().unwrap()
}

#[test]
fn a_panic_of_a_method_has_message_and_place() {
    let manager = counting();
    let counter = CounterProxy::new(&manager, u64::MAX).unwrap();
    match counter.increment(1) {
        Err(ManagerError::Panicked(panic)) => {
            assert!(panic.message.contains("there are numbers beyond u64"), "{panic}");
            assert!(panic.location.unwrap().file.ends_with("manager_types.rs"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(counter.get().unwrap(), u64::MAX);
}

#[test]
fn the_server_is_served_in_this_process() {
    let server = Manager::builder().authkey("mine").register::<Counter>().bind().unwrap();
    let address = server.address().clone();
    let serving = thread::spawn(move || server.serve_forever());
    let manager = Manager::connect(&address, "mine").unwrap();
    assert_eq!(manager.pid(), None);
    let list = manager.list([]).unwrap();
    let counter = CounterProxy::noting(&manager, list.clone()).unwrap();
    counter.increment(2).unwrap();
    assert_eq!(list.to_vec().unwrap(), [2]);
    manager.shutdown().unwrap();
    serving.join().unwrap().unwrap();
    assert!(counter.get().is_err());
}

// Other ways for proxies to travel

#[test]
fn proxies_go_through_queues_pipes_and_pools() {
    fn through_queue(queue: Queue<ListProxy<u32>>) {
        queue.get().unwrap().push(1).unwrap();
    }
    fn through_pipe(connection: Connection<ListProxy<u32>, ListProxy<u32>>) {
        let list = connection.recv().unwrap();
        list.push(2).unwrap();
        connection.send(&list).unwrap();
    }
    fn in_pool(list: ListProxy<u32>, n: u32) -> ListProxy<u32> {
        list.push(n).unwrap();
        list
    }
    let manager = manager();
    let list = manager.list([]).unwrap();
    let queue = Queue::new().unwrap();
    let child = Process::spawn(through_queue, (queue.clone(),)).unwrap();
    queue.put(list.clone()).unwrap();
    child.join().unwrap();
    let (ours, theirs) = procession::pipe().unwrap();
    let child = Process::spawn(through_pipe, (theirs,)).unwrap();
    ours.send(&list).unwrap();
    assert_eq!(ours.recv().unwrap(), list);
    child.join().unwrap();
    let pool = Pool::new(2).unwrap();
    for returned in pool.starmap(in_pool, (3..10).map(|n| (list.clone(), n))).unwrap() {
        assert_eq!(returned, list);
    }
    let mut all = list.to_vec().unwrap();
    all.sort_unstable();
    assert_eq!(all, (1..10).collect::<Vec<_>>());
    drop((list, pool));
    has(&manager, 0);
}

#[test]
fn the_fork_server_starts_managers_too() {
    fn adds(list: ListProxy<u32>, counter: CounterProxy) {
        list.push(counter.increment(1).unwrap() as u32).unwrap();
    }
    fn with_fork_server() -> Vec<u32> {
        procession::set_start_method(procession::StartMethod::Forkserver);
        let manager = counting();
        let (list, counter) = (manager.list([]).unwrap(), CounterProxy::new(&manager, 6).unwrap());
        Process::spawn(adds, (list.clone(), counter)).unwrap().join().unwrap();
        let pid = manager.pid().unwrap();
        let all = list.to_vec().unwrap();
        drop(manager);
        assert!(procession_core::process::ProcessId::of_pid(pid).is_none());
        all
    }
    assert_eq!(Process::spawn(with_fork_server, ()).unwrap().join().unwrap(), [7]);
}
