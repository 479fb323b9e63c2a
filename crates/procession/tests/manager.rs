//! Managers: every proxy from several processes, and over every kind of address.
#![allow(unsafe_code)]

mod support;

use std::{
    os::unix::net::UnixStream,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use procession::{
    Address, Manager, ManagerError, Process,
    manager::{
        ArrayProxy, BarrierProxy, BoundedSemaphoreProxy, ConditionProxy, DictProxy, EventProxy, JoinableQueueProxy,
        ListProxy, LockProxy, NamespaceProxy, QueueProxy, RLockProxy, Refusal, SemaphoreProxy, ValueProxy,
    },
};
use support::{
    managers::{has, join_all, manager, refused},
    until,
};

procession::test_support!();

const TICK: Duration = Duration::from_millis(10);

// Each proxy, from this process and another

#[test]
fn a_dictionary_is_shared() {
    fn other(dict: DictProxy<String, Vec<u32>>) {
        assert_eq!(dict.get("one").unwrap(), Some(vec![1]));
        assert_eq!(dict.insert("one".into(), vec![1, 1]).unwrap(), Some(vec![1]));
        dict.update((2..5).map(|n| (n.to_string(), vec![n]))).unwrap();
    }
    let manager = manager();
    let dict = manager.dict::<String, Vec<u32>>([]).unwrap();
    assert!(dict.is_empty().unwrap());
    dict.set("one".into(), vec![1]).unwrap();
    Process::spawn(other, (dict.clone(),)).unwrap().join().unwrap();
    assert_eq!(dict.len().unwrap(), 4);
    assert_eq!(dict.keys().unwrap(), ["one", "2", "3", "4"]);
    assert_eq!(dict.values().unwrap(), [vec![1, 1], vec![2], vec![3], vec![4]]);
    assert_eq!(dict.set_default("3".into(), vec![]).unwrap(), [3]);
    assert_eq!(dict.set_default("new".into(), vec![9]).unwrap(), [9]);
    assert_eq!(dict.pop_item().unwrap(), Some(("new".into(), vec![9])));
    assert_eq!(dict.remove("2").unwrap(), Some(vec![2]));
    assert_eq!(dict.remove("2").unwrap(), None);
    assert!(!dict.contains_key("2").unwrap());
    assert_eq!(dict.items().unwrap(), [("one".into(), vec![1, 1]), ("3".into(), vec![3]), ("4".into(), vec![4])]);
    dict.clear().unwrap();
    assert!(dict.is_empty().unwrap());
    assert_eq!(dict.pop_item().unwrap(), None);
}

#[test]
fn keys_of_all_kinds_are_found() {
    let manager = manager();
    let numbers = manager.dict::<(i64, Option<char>), f64>([]).unwrap();
    numbers.set((1, Some('x')), 0.5).unwrap();
    numbers.set((-1, None), 1.5).unwrap();
    assert_eq!(numbers.get(&(1, Some('x'))).unwrap(), Some(0.5));
    assert_eq!(numbers.get(&(1, None)).unwrap(), None);
    let filled = manager.dict(["b", "a", "b"].map(String::from).into_iter().zip(1..)).unwrap();
    assert_eq!(filled.items().unwrap(), [("b".to_owned(), 3), ("a".to_owned(), 2)]);
    let nested = manager.dict([((), filled)]).unwrap();
    assert_eq!(nested.get(&()).unwrap().unwrap().len().unwrap(), 2);
    let empty = manager.dict::<Vec<u8>, ()>([]).unwrap();
    empty.set(Vec::new(), ()).unwrap();
    assert_eq!(empty.get(&[][..]).unwrap(), Some(()));
    let large = vec![3; 3_000_000];
    empty.set(large.clone(), ()).unwrap();
    assert!(empty.contains_key(&large).unwrap());
}

#[test]
fn a_list_is_shared() {
    fn other(list: ListProxy<String>) -> usize {
        list.push("from another".into()).unwrap();
        list.len().unwrap()
    }
    let manager = manager();
    let list = manager.list(["b".to_string(), "a".into()]).unwrap();
    assert_eq!(Process::spawn(other, (list.clone(),)).unwrap().join().unwrap(), 3);
    assert_eq!(list.get(2).unwrap(), Some("from another".into()));
    assert_eq!(list.get(3).unwrap(), None);
    list.sort().unwrap();
    assert_eq!(list.to_vec().unwrap(), ["a", "b", "from another"]);
    list.set(0, "z".into()).unwrap();
    list.insert(1, "y".into()).unwrap();
    list.insert(99, "end".into()).unwrap();
    assert_eq!(list.slice(1..).unwrap(), ["y", "b", "from another", "end"]);
    assert_eq!(list.slice(..=1).unwrap(), ["z", "y"]);
    assert_eq!(list.slice(7..9).unwrap(), [""; 0]);
    assert_eq!(list.remove(1).unwrap(), "y");
    assert_eq!(list.position(&"b".into()).unwrap(), Some(1));
    assert!(!list.contains(&"y".into()).unwrap());
    list.reverse().unwrap();
    assert_eq!(list.pop().unwrap(), Some("z".into()));
    list.extend(["1".to_string(), "2".into()]).unwrap();
    assert_eq!(list.to_vec().unwrap(), ["end", "from another", "b", "1", "2"]);
    refused(list.set(5, String::new()), Refusal::OutOfRange { place: 5, length: 5 });
    refused(list.remove(9), Refusal::OutOfRange { place: 9, length: 5 });
    list.clear().unwrap();
    assert_eq!(list.pop().unwrap(), None);
}

#[test]
fn lists_that_others_change_are_sorted_all_the_same() {
    fn pushes(list: ListProxy<u32>) {
        (0..100).for_each(|n| list.push(n * 7 % 100).unwrap());
    }
    let manager = manager();
    let list = manager.list::<u32>([]).unwrap();
    let children: Vec<_> = (0..2).map(|_| Process::spawn(pushes, (list.clone(),)).unwrap()).collect();
    for _ in 0..20 {
        list.sort().unwrap();
    }
    join_all(children);
    list.sort().unwrap();
    let mut expected: Vec<_> = (0..100).chain(0..100).collect();
    expected.sort_unstable();
    assert_eq!(list.to_vec().unwrap(), expected);
}

#[test]
fn an_array_keeps_its_length() {
    fn other(array: ArrayProxy<f64>) {
        array.set(0, 1.5).unwrap();
    }
    let manager = manager();
    let array = manager.array(vec![0.0; 4]).unwrap();
    Process::spawn(other, (array.clone(),)).unwrap().join().unwrap();
    array.set_slice(2, [7.0, 8.0]).unwrap();
    array.set_slice(0, []).unwrap();
    assert_eq!(array.to_vec().unwrap(), [1.5, 0.0, 7.0, 8.0]);
    refused(array.set_slice(3, [1.0, 2.0]), Refusal::OutOfRange { place: 4, length: 4 });
    assert_eq!(array.slice(2..4).unwrap(), [7.0, 8.0]);
    assert_eq!(array.len().unwrap(), 4);
}

#[test]
fn a_value_is_updated_by_many() {
    fn adds(value: ValueProxy<u64>) {
        (0..200).for_each(|_| value.update(|value| *value += 1).unwrap());
    }
    let manager = manager();
    let value = manager.value(0_u64).unwrap();
    let children: Vec<_> = (0..3).map(|_| Process::spawn(adds, (value.clone(),)).unwrap()).collect();
    join_all(children);
    assert_eq!(value.get().unwrap(), 600);
    assert_eq!(value.replace(5).unwrap(), 600);
    value.set(6).unwrap();
    assert_eq!(value.get().unwrap(), 6);
}

#[test]
fn a_namespace_has_values_of_any_type() {
    fn other(settings: NamespaceProxy) {
        let size = settings.get::<(u32, u32)>("size").unwrap().unwrap();
        settings.set("area", size.0 * size.1).unwrap();
    }
    let manager = manager();
    let settings = manager.namespace().unwrap();
    settings.set("size", (6_u32, 7_u32)).unwrap();
    settings.set("title", "a title".to_string()).unwrap();
    Process::spawn(other, (settings.clone(),)).unwrap().join().unwrap();
    assert_eq!(settings.get::<u32>("area").unwrap(), Some(42));
    assert_eq!(settings.names().unwrap(), ["size", "title", "area"]);
    assert!(matches!(settings.get::<u8>("title"), Err(ManagerError::Decode(_))));
    assert!(settings.remove("title").unwrap());
    assert!(!settings.remove("title").unwrap());
    assert!(!settings.contains("title").unwrap());
    assert_eq!(settings.get::<String>("title").unwrap(), None);
}

#[test]
fn a_queue_carries_items_between_processes() {
    fn doubles(from: QueueProxy<u32>, to: QueueProxy<u32>) {
        loop {
            match from.get().unwrap() {
                0 => return,
                n => to.put(n * 2).unwrap(),
            }
        }
    }
    let manager = manager();
    let (there, back) = (manager.queue(2).unwrap(), manager.queue(0).unwrap());
    let children: Vec<_> = (0..2).map(|_| Process::spawn(doubles, (there.clone(), back.clone())).unwrap()).collect();
    (1..=50).for_each(|n| there.put(n).unwrap());
    (0..2).for_each(|_| there.put(0).unwrap());
    join_all(children);
    let mut results: Vec<_> = (0..50).map(|_| back.get().unwrap()).collect();
    results.sort_unstable();
    assert_eq!(results, (1..=50).map(|n| n * 2).collect::<Vec<_>>());
    assert_eq!(back.try_get().unwrap(), None);
    assert_eq!(back.get_timeout(TICK).unwrap(), None);
    there.put(1).unwrap();
    assert!(!there.is_full().unwrap());
    there.put(2).unwrap();
    assert!(there.is_full().unwrap());
    assert!(there.try_put(3).unwrap_err().is_full());
    assert_eq!(there.put_timeout(3, TICK).unwrap_err().into_inner(), 3);
    assert_eq!(there.len().unwrap(), 2);
}

#[test]
fn a_joinable_queue_counts_tasks() {
    fn works(tasks: JoinableQueueProxy<u32>, done: ListProxy<u32>) {
        loop {
            let task = tasks.get().unwrap();
            if task > 0 {
                done.push(task).unwrap();
            }
            tasks.task_done().unwrap();
            if task == 0 {
                return;
            }
        }
    }
    let manager = manager();
    let (tasks, done) = (manager.joinable_queue(0).unwrap(), manager.list([]).unwrap());
    (1..=10).for_each(|task| tasks.put(task).unwrap());
    assert!(!tasks.join_timeout(TICK).unwrap());
    let child = Process::spawn(works, (tasks.clone(), done.clone())).unwrap();
    tasks.join().unwrap();
    assert_eq!(done.len().unwrap(), 10);
    tasks.put(0).unwrap();
    child.join().unwrap();
    refused(tasks.task_done(), Refusal::TooManyDone);
    assert!(tasks.join_timeout(Duration::ZERO).unwrap());
}

#[test]
fn a_lock_excludes() {
    fn adds(lock: LockProxy, value: ValueProxy<u32>) {
        for _ in 0..50 {
            let guard = lock.acquire().unwrap();
            assert_eq!(guard.died(), None);
            value.set(value.get().unwrap() + 1).unwrap();
            guard.release().unwrap();
        }
    }
    fn releases(lock: LockProxy) {
        assert!(lock.try_acquire().unwrap().is_none());
        lock.release().unwrap();
    }
    let manager = manager();
    let (lock, value) = (manager.lock().unwrap(), manager.value(0).unwrap());
    let children: Vec<_> = (0..3).map(|_| Process::spawn(adds, (lock.clone(), value.clone())).unwrap()).collect();
    join_all(children);
    assert_eq!(value.get().unwrap(), 150);
    let guard = lock.acquire().unwrap();
    assert!(lock.acquire_timeout(TICK).unwrap().is_none());
    assert!(lock.is_locked().unwrap());
    // Any process may release it.
    Process::spawn(releases, (lock.clone(),)).unwrap().join().unwrap();
    refused(guard.release(), Refusal::NotHeld);
    refused(lock.release(), Refusal::NotHeld);
}

#[test]
fn an_rlock_belongs_to_a_thread() {
    fn tries(lock: RLockProxy) -> bool {
        refused(lock.release(), Refusal::NotOwner);
        lock.try_acquire().unwrap().is_some()
    }
    let manager = manager();
    let lock = manager.rlock().unwrap();
    let outer = lock.acquire().unwrap();
    let inner = lock.acquire().unwrap();
    assert!(!thread::scope(|scope| scope.spawn(|| tries(lock.clone())).join().unwrap()));
    drop(outer);
    assert!(!Process::spawn(tries, (lock.clone(),)).unwrap().join().unwrap());
    drop(inner);
    assert!(!lock.is_locked().unwrap());
    refused(lock.release(), Refusal::NotHeld);
}

#[test]
fn semaphores_give_permits() {
    fn signals(semaphore: SemaphoreProxy) {
        semaphore.release_many(2).unwrap();
    }
    fn takes(semaphore: BoundedSemaphoreProxy) -> bool {
        semaphore.acquire_timeout(TICK).unwrap().is_some()
    }
    let manager = manager();
    let semaphore = manager.semaphore(0).unwrap();
    assert!(semaphore.try_acquire().unwrap().is_none());
    let child = Process::spawn(signals, (semaphore.clone(),)).unwrap();
    semaphore.acquire().unwrap().forget();
    semaphore.acquire().unwrap().forget();
    child.join().unwrap();
    assert_eq!(semaphore.get_value().unwrap(), 0);
    let bounded = manager.bounded_semaphore(1).unwrap();
    let permit = bounded.acquire().unwrap();
    assert!(!Process::spawn(takes, (bounded.clone(),)).unwrap().join().unwrap());
    drop(permit);
    assert!(Process::spawn(takes, (bounded.clone(),)).unwrap().join().unwrap());
    refused(bounded.release(), Refusal::AtMaximum);
    assert_eq!(bounded.get_value().unwrap(), 1);
}

#[test]
fn a_condition_notifies_as_many_as_it_is_told() {
    fn waits(changed: ConditionProxy, waiting: SemaphoreProxy, woken: ValueProxy<u32>) {
        let guard = changed.acquire().unwrap();
        waiting.release().unwrap();
        guard.wait().unwrap();
        woken.update(|woken| *woken += 1).unwrap();
    }
    let manager = manager();
    let changed = manager.condition().unwrap();
    let (waiting, woken) = (manager.semaphore(0).unwrap(), manager.value(0).unwrap());
    let arguments = || (changed.clone(), waiting.clone(), woken.clone());
    let children: Vec<_> = (0..3).map(|_| Process::spawn(waits, arguments()).unwrap()).collect();
    (0..3).for_each(|_| waiting.acquire().unwrap().forget());
    let guard = changed.acquire().unwrap();
    // It may be acquired again by its owner, and waiting lets go of all of it.
    let again = changed.acquire().unwrap();
    assert!(!again.wait_timeout(TICK).unwrap());
    guard.notify(1).unwrap();
    drop(again);
    drop(guard);
    until(|| woken.get().unwrap() == 1);
    thread::sleep(TICK);
    assert_eq!(woken.get().unwrap(), 1);
    changed.acquire().unwrap().notify_all().unwrap();
    join_all(children);
    let guard = changed.acquire().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| assert!(changed.try_acquire().unwrap().is_none()));
        scope.spawn(|| assert!(changed.acquire_timeout(TICK).unwrap().is_none()));
    });
    guard.release().unwrap();
}

#[test]
fn an_event_lets_all_go() {
    fn waits(ready: EventProxy) -> bool {
        ready.wait().unwrap();
        ready.is_set().unwrap()
    }
    let manager = manager();
    let ready = manager.event().unwrap();
    assert!(!ready.wait_timeout(TICK).unwrap());
    let children: Vec<_> = (0..2).map(|_| Process::spawn(waits, (ready.clone(),)).unwrap()).collect();
    ready.set().unwrap();
    assert!(children.into_iter().all(|child| child.join().unwrap()));
    ready.clear().unwrap();
    assert!(!ready.is_set().unwrap());
}

#[test]
fn a_barrier_gathers_all_or_breaks() {
    fn arrives(barrier: BarrierProxy) -> usize {
        barrier.wait().unwrap()
    }
    let manager = manager();
    let barrier = manager.barrier(3).unwrap();
    for _ in 0..3 {
        let children: Vec<_> = (0..2).map(|_| Process::spawn(arrives, (barrier.clone(),)).unwrap()).collect();
        let mut places = vec![barrier.wait().unwrap()];
        places.extend(children.into_iter().map(|child| child.join().unwrap()));
        places.sort_unstable();
        assert_eq!(places, [0, 1, 2]);
    }
    thread::scope(|scope| {
        let waiter = scope.spawn(|| barrier.wait());
        until(|| barrier.waiting().unwrap() == 1);
        refused(barrier.wait_timeout(TICK), Refusal::BrokenBarrier);
        refused(waiter.join().unwrap(), Refusal::BrokenBarrier);
    });
    assert!(barrier.is_broken().unwrap());
    refused(barrier.wait(), Refusal::BrokenBarrier);
    barrier.reset().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| barrier.wait());
        until(|| barrier.waiting().unwrap() == 1);
        barrier.abort().unwrap();
        refused(waiter.join().unwrap(), Refusal::BrokenBarrier);
    });
    assert_eq!(barrier.parties().unwrap(), 3);
    refused(manager.barrier(0), Refusal::NoParties);
}

// Proxies on their way

#[test]
fn proxies_go_into_other_objects() {
    type Table = DictProxy<String, ListProxy<u32>>;
    fn adds(table: Table) {
        table.get("numbers").unwrap().unwrap().push(2).unwrap();
    }
    let manager = manager();
    let table: Table = manager.dict([]).unwrap();
    table.set("numbers".into(), manager.list([1]).unwrap()).unwrap();
    has(&manager, 2);
    Process::spawn(adds, (table.clone(),)).unwrap().join().unwrap();
    assert_eq!(table.get("numbers").unwrap().unwrap().to_vec().unwrap(), [1, 2]);
    // Taken out, it is ours; dropped, it is gone.
    let list = table.remove("numbers").unwrap().unwrap();
    assert_eq!(list.len().unwrap(), 2);
    has(&manager, 2);
    drop(list);
    has(&manager, 1);
    // In a key, a queue, a value; and freed with what they are in.
    let queue = manager.queue::<(u8, Vec<EventProxy>)>(0).unwrap();
    queue.put((1, vec![manager.event().unwrap(), manager.event().unwrap()])).unwrap();
    let keyed = manager.dict::<LockProxy, u8>([]).unwrap();
    let lock = manager.lock().unwrap();
    keyed.set(lock.clone(), 1).unwrap();
    assert_eq!(keyed.get(&lock).unwrap(), Some(1));
    drop(lock);
    assert_eq!(keyed.keys().unwrap().len(), 1);
    let value = manager.value(Some(manager.list([1_u8]).unwrap())).unwrap();
    has(&manager, 8);
    drop(keyed);
    has(&manager, 6);
    value.set(None).unwrap();
    has(&manager, 5);
    let (_, events) = queue.get().unwrap();
    drop(events);
    drop((queue, value, table));
    has(&manager, 0);
}

#[test]
fn a_proxy_may_be_dropped_when_it_was_sent() {
    fn reads(list: ListProxy<u32>) -> Vec<u32> {
        list.to_vec().unwrap()
    }
    fn makes(dict: DictProxy<u8, u8>) -> DictProxy<u8, u8> {
        dict.set(1, 2).unwrap();
        dict
    }
    let manager = manager();
    let child = Process::spawn(reads, (manager.list([1, 2]).unwrap(),)).unwrap();
    assert_eq!(child.join().unwrap(), [1, 2]);
    has(&manager, 0);
    // It comes back from a process that has ended since.
    let dict = Process::spawn(makes, (manager.dict([]).unwrap(),)).unwrap().join().unwrap();
    assert_eq!(dict.get(&1).unwrap(), Some(2));
    has(&manager, 1);
    assert_eq!(dict, dict.clone());
    drop(dict);
    has(&manager, 0);
}

#[test]
fn proxies_of_one_manager_go_into_another() {
    let (one, other) = (manager(), manager());
    let inner = one.list([5]).unwrap();
    let outer = other.list([inner.clone()]).unwrap();
    let back = outer.get(0).unwrap().unwrap();
    assert_eq!(back, inner);
    assert_eq!(back.to_vec().unwrap(), [5]);
    assert_ne!(one.value(1).unwrap(), other.value(1).unwrap());
}

#[test]
fn a_list_in_itself_is_no_trouble() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Node(Vec<ListProxy<Node>>);
    let manager = manager();
    let list = manager.list::<Node>([]).unwrap();
    list.push(Node(vec![list.clone()])).unwrap();
    let Node(within) = list.get(0).unwrap().unwrap();
    assert_eq!(within[0], list);
}

#[test]
fn threads_share_a_proxy() {
    let manager = manager();
    let (list, queue) = (manager.list::<u32>([]).unwrap(), manager.queue::<u32>(0).unwrap());
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..8).map(|_| scope.spawn(|| queue.get().unwrap())).collect();
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|n| list.push(n).unwrap()));
        }
        (0..8).for_each(|n| queue.put(n).unwrap());
        let mut got: Vec<_> = waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
        got.sort_unstable();
        assert_eq!(got, (0..8).collect::<Vec<_>>());
    });
    assert_eq!(list.len().unwrap(), 200);
}

#[test]
fn a_forked_child_uses_what_it_inherits() {
    let manager = manager();
    let list = manager.list::<u32>([]).unwrap();
    let lock = manager.lock().unwrap();
    let guard = lock.acquire().unwrap();
    list.push(1).unwrap();
    // SAFETY: the child only uses what is made anew in it, and allocates, which the C library sees to.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..50).for_each(|n| list.push(n).unwrap());
            // The parent holds it.
            assert!(lock.try_acquire().unwrap().is_none());
            drop(guard);
            drop(list);
            drop(manager);
        }));
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    (0..50).for_each(|n| list.push(n).unwrap());
    let mut status = -1;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
    assert_eq!(list.len().unwrap(), 101);
    assert!(lock.is_locked().unwrap());
    guard.release().unwrap();
}

// Addresses and keys

static NAMES: AtomicU32 = AtomicU32::new(0);

#[test]
fn managers_are_reached_over_every_kind_of_address() {
    let number = NAMES.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("procession-test-{}-{number}", std::process::id()));
    let name = format!("procession-test-{}-{number}", std::process::id());
    for address in [Address::tcp("127.0.0.1", 0), Address::unix(path.clone()), Address::abstract_name(name)] {
        let manager = Manager::builder().address(address).authkey("right").start().unwrap();
        let remote = Manager::connect(manager.address(), "right").unwrap();
        let list = remote.list([1, 2]).unwrap();
        assert_eq!(list.to_vec().unwrap(), [1, 2]);
        assert_eq!(remote.number_of_objects().unwrap(), 1);
        let error = Manager::connect(manager.address(), "wrong").unwrap_err();
        assert!(matches!(error, ManagerError::Authkey(_)), "{error}");
        // Nobody but the starter ends it by being dropped.
        drop(remote);
        assert_eq!(manager.number_of_objects().unwrap(), 1);
        let address = manager.address().clone();
        drop(manager);
        assert!(matches!(Manager::connect(&address, "right"), Err(ManagerError::Unreachable(_))));
    }
    assert!(!path.exists());
}

#[test]
fn an_address_that_is_taken_is_an_error_of_the_start() {
    let first = Manager::builder().address(("127.0.0.1", 0)).start().unwrap();
    let error = Manager::builder().address(first.address().clone()).start().unwrap_err();
    assert!(matches!(error, ManagerError::Start(_)), "{error}");
    assert!(error.to_string().contains("in use"), "{error}");
    assert!(Manager::builder().address(first.address().clone()).serve_forever().is_err());
}

#[test]
fn a_proxy_without_its_key_needs_a_connection_first() {
    fn without_key(sent: Vec<u8>, address: String) -> Vec<u32> {
        // As it comes from another machine.
        assert!(postcard::from_bytes::<ListProxy<u32>>(&sent).is_err());
        let _manager = Manager::connect(address.parse::<Address>().unwrap(), "a secret").unwrap();
        postcard::from_bytes::<ListProxy<u32>>(&sent).unwrap().to_vec().unwrap()
    }
    let manager = Manager::builder().address(("127.0.0.1", 0)).authkey("a secret").start().unwrap();
    let list = manager.list([1_u32, 2, 3]).unwrap();
    // In serde's formats in general, no key goes along.
    let sent = postcard::to_stdvec(&list).unwrap();
    assert!(!sent.windows(8).any(|window| window == b"a secret"));
    let address = manager.address().to_string();
    assert_eq!(Process::spawn(without_key, (sent, address)).unwrap().join().unwrap(), [1, 2, 3]);
}

#[test]
fn strangers_and_garbage_do_no_harm() {
    let number = NAMES.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("procession-test-{}-{number}", std::process::id()));
    let manager = Manager::builder().address(path.clone()).start().unwrap();
    let list = manager.list([1]).unwrap();
    for garbage in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64], &[0, 0, 0, 16, 1, 2]] {
        let mut stranger = UnixStream::connect(&path).unwrap();
        std::io::Write::write_all(&mut stranger, garbage).unwrap();
    }
    list.push(2).unwrap();
    assert_eq!(list.len().unwrap(), 2);
}
