//! Managers, and the deaths of their clients and of the server.
#![allow(unsafe_code)]

use std::{thread, time::Duration};

use crate::support::{
    managers::{has, kill, lost_all, manager},
    until,
};
use procession::{
    Manager, ManagerError, Process,
    manager::{ConditionProxy, DictProxy, EventProxy, ListProxy, LockProxy, QueueProxy, RLockProxy, SemaphoreProxy},
};

const TICK: Duration = Duration::from_millis(10);

fn key() -> &'static [u8] {
    procession::current_process().authkey()
}

#[test]
fn manager_lock_holder_killed() {
    fn holds(lock: LockProxy, rlock: RLockProxy, semaphore: SemaphoreProxy, ready: EventProxy) {
        let _guards = (lock.acquire().unwrap(), rlock.acquire().unwrap(), rlock.acquire().unwrap());
        let _permits = (semaphore.acquire().unwrap(), semaphore.acquire().unwrap());
        ready.set().unwrap();
        thread::sleep(Duration::from_secs(60));
    }
    let manager = manager();
    let (lock, rlock) = (manager.lock().unwrap(), manager.rlock().unwrap());
    let (semaphore, ready) = (manager.semaphore(2).unwrap(), manager.event().unwrap());
    let arguments = (lock.clone(), rlock.clone(), semaphore.clone(), ready.clone());
    let child = Process::spawn(holds, arguments).unwrap();
    ready.wait().unwrap();
    assert!(lock.try_acquire().unwrap().is_none());
    kill(&child);
    let guard = lock.acquire().unwrap();
    assert_eq!(guard.died().unwrap().pid, Some(child.pid()));
    guard.release().unwrap();
    assert_eq!(lock.acquire().unwrap().died(), None);
    assert!(rlock.acquire().unwrap().died().is_some());
    let both = (semaphore.acquire().unwrap(), semaphore.acquire().unwrap());
    drop(both);
    assert_eq!(semaphore.get_value().unwrap(), 2);
}

#[test]
fn manager_condition_waiter_killed() {
    fn gets(queue: QueueProxy<u32>, ready: SemaphoreProxy) {
        ready.release().unwrap();
        queue.get().unwrap();
    }
    fn acquires(lock: LockProxy, ready: SemaphoreProxy) {
        ready.release().unwrap();
        lock.acquire().unwrap().release().unwrap();
    }
    fn waits(changed: ConditionProxy, ready: SemaphoreProxy) {
        let guard = changed.acquire().unwrap();
        ready.release().unwrap();
        guard.wait().unwrap();
    }
    let manager = manager();
    let (queue, lock, changed) = (manager.queue(0).unwrap(), manager.lock().unwrap(), manager.condition().unwrap());
    let ready = manager.semaphore(0).unwrap();
    let guard = lock.acquire().unwrap();
    let mut children = Vec::new();
    for _ in 0..3 {
        children.push(Process::spawn(gets, (queue.clone(), ready.clone())).unwrap());
        children.push(Process::spawn(acquires, (lock.clone(), ready.clone())).unwrap());
        children.push(Process::spawn(waits, (changed.clone(), ready.clone())).unwrap());
    }
    (0..9).for_each(|_| ready.acquire().unwrap().forget());
    thread::sleep(TICK);
    children.iter().for_each(kill);
    lost_all(children);
    guard.release().unwrap();
    lock.acquire().unwrap().release().unwrap();
    // No item is lost to the dead, and no notification.
    queue.put(1).unwrap();
    assert_eq!(queue.get().unwrap(), 1);
    thread::scope(|scope| {
        scope.spawn(|| {
            let guard = changed.acquire().unwrap();
            ready.release().unwrap();
            guard.wait().unwrap();
        });
        ready.acquire().unwrap().forget();
        // The dead were waiting before it.
        changed.acquire().unwrap().notify(1).unwrap();
    });
}

#[test]
fn clients_killed_at_any_moment_leave_the_manager_whole() {
    fn busy(dict: DictProxy<u32, Vec<u8>>, queue: QueueProxy<u32>, lock: LockProxy) {
        dict.set(std::process::id() + 10, Vec::new()).unwrap();
        for n in 0.. {
            dict.set(n % 10, vec![1; (n as usize * 1000) % 200_000]).unwrap();
            queue.put(n).unwrap();
            let guard = lock.acquire().unwrap();
            queue.get().unwrap();
            guard.release().unwrap();
        }
    }
    let manager = manager();
    let (dict, queue, lock) = (manager.dict([]).unwrap(), manager.queue(0).unwrap(), manager.lock().unwrap());
    for round in 0..10 {
        let children: Vec<_> =
            (0..2).map(|_| Process::spawn(busy, (dict.clone(), queue.clone(), lock.clone())).unwrap()).collect();
        // Both have received their proxies: what never arrives is kept.
        until(|| dict.len().unwrap() == 12);
        thread::sleep(Duration::from_millis(round));
        children.iter().for_each(kill);
        lost_all(children);
        drop(lock.acquire().unwrap());
        assert!(dict.values().unwrap().iter().flatten().all(|byte| *byte == 1));
        dict.clear().unwrap();
    }
    drop((dict, queue, lock));
    has(&manager, 0);
}

#[test]
fn what_a_killed_client_referred_to_is_freed() {
    fn holds(list: ListProxy<ListProxy<u8>>, ready: EventProxy) {
        let _inner = list.get(0).unwrap().unwrap();
        drop(list);
        ready.set().unwrap();
        thread::sleep(Duration::from_secs(60));
    }
    let manager = manager();
    let ready = manager.event().unwrap();
    let list = manager.list([manager.list([1_u8]).unwrap()]).unwrap();
    let child = Process::spawn(holds, (list, ready.clone())).unwrap();
    ready.wait().unwrap();
    has(&manager, 2);
    kill(&child);
    has(&manager, 1);
}

#[test]
fn manager_server_killed() {
    fn gets(queue: QueueProxy<u32>, ready: EventProxy) -> String {
        ready.set().unwrap();
        queue.get().unwrap_err().to_string()
    }
    let manager = manager();
    let (queue, ready) = (manager.queue::<u32>(0).unwrap(), manager.event().unwrap());
    let lock = manager.lock().unwrap();
    let guard = lock.acquire().unwrap();
    let child = Process::spawn(gets, (queue.clone(), ready.clone())).unwrap();
    ready.wait().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| queue.get());
        thread::sleep(TICK);
        // SAFETY: signals the server, which was not waited for.
        unsafe { libc::kill(manager.pid().unwrap().cast_signed(), libc::SIGKILL) };
        assert!(matches!(waiter.join().unwrap(), Err(ManagerError::Gone(_))));
    });
    assert!(child.join().unwrap().starts_with("the manager is gone"));
    assert!(matches!(queue.len(), Err(ManagerError::Gone(_) | ManagerError::Unreachable(_))));
    assert!(guard.release().is_err());
    assert!(manager.list::<u8>([]).is_err());
    let error = queue.put(7).unwrap_err();
    assert_eq!(error.into_inner(), 7);
    assert!(manager.shutdown().is_err());
}

#[test]
fn the_server_ends_with_its_starter() {
    fn starts(number: procession::manager::QueueProxy<u32>) {
        let manager = Manager::new().unwrap();
        number.put(manager.pid().unwrap()).unwrap();
        thread::sleep(Duration::from_secs(60));
    }
    let manager = manager();
    let number = manager.queue(0).unwrap();
    let child = Process::spawn(starts, (number.clone(),)).unwrap();
    let server = number.get().unwrap();
    let is_there = || procession_core::process::ProcessId::of_pid(server).is_some();
    assert!(is_there());
    kill(&child);
    child.join().unwrap_err();
    until(|| !is_there());
}

#[test]
fn shutdown_ends_the_server_and_dropping_too() {
    let manager = manager();
    let pid = manager.pid().unwrap();
    let (value, other) = (manager.value(1).unwrap(), Manager::connect(manager.address(), key()).unwrap());
    manager.shutdown().unwrap();
    assert!(procession_core::process::ProcessId::of_pid(pid).is_none());
    assert!(value.get().is_err());
    assert!(other.shutdown().is_err());
    let manager = Manager::new().unwrap();
    let pid = manager.pid().unwrap();
    drop(manager);
    assert!(procession_core::process::ProcessId::of_pid(pid).is_none());
}
