//! Managers, for tests.

use procession::{Child, Manager, ManagerError, manager::Refusal};

use super::until;

pub(crate) fn manager() -> Manager {
    Manager::new().unwrap()
}

/// Waits until there are so many objects: that a child is gone is learned when its connections end, a little after it did.
pub(crate) fn has(manager: &Manager, objects: usize) {
    until(|| manager.number_of_objects().unwrap() == objects);
}

pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, ManagerError>, with: Refusal) {
    match result {
        Err(ManagerError::Refused(refusal)) => assert_eq!(refusal, with),
        other => panic!("{other:?} instead of {with:?}"),
    }
}

/// Kills a child, without waiting for its end.
pub(crate) fn kill<R>(child: &Child<R>) {
    child.kill().unwrap();
}

pub(crate) fn join_all(children: Vec<Child<()>>) {
    for child in children {
        child.join().unwrap();
    }
}

/// Waits for children that were killed.
pub(crate) fn lost_all(children: Vec<Child<()>>) {
    for child in children {
        child.join().unwrap_err();
    }
}
