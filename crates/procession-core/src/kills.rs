//! Killing a process at a chosen place, for tests.
//!
//! The code of this crate calls `point` with a name wherever being killed might matter. In release builds, and in debug
//! builds without the feature `fail-points`, such a call is nothing. Else a process may have itself killed (SIGKILL) at
//! the point of a name: a test calls `kill_at` in the process that is to die, a worker's task for example.
//!
//! [`POINTS`] has all names, each with the test of this crate that kills there. That the list is complete, and that each
//! of those tests really comes by its points, is tested.

mod points;
#[cfg(all(test, not(loom)))]
mod tests;

pub use points::POINTS;

/// A place where the process may be killed.
#[cfg(not(all(any(test, all(feature = "fail-points", debug_assertions)), not(loom))))]
#[inline(always)]
#[allow(clippy::inline_always)] // nothing is to be left of the names
pub(crate) fn point(_name: &str) {}

#[cfg(all(any(test, all(feature = "fail-points", debug_assertions)), not(loom)))]
mod armed;
#[cfg(all(test, not(loom)))]
pub(crate) use armed::KillTest;
#[cfg(all(any(test, all(feature = "fail-points", debug_assertions)), not(loom)))]
pub use armed::kill_at;
#[cfg(all(any(test, all(feature = "fail-points", debug_assertions)), not(loom)))]
pub(crate) use armed::point;
