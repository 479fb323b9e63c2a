//! The atomics that algorithms on shared words are written with.
//!
//! In a model check (`--cfg loom`) they are loom's, which tries every interleaving; otherwise the standard library's,
//! which may be laid over shared memory.

#[cfg(loom)]
pub(crate) use ::loom::{
    hint,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::{
    hint,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

/// Checks a model under every order of events with so many preemptions at most: with few threads many can be afforded.
#[cfg(all(test, loom))]
pub(crate) fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = ::loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}
