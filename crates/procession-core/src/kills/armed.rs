//! The points where they are more than nothing.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use super::POINTS;

/// How many points are passed before the process is killed; negative: it is not.
static LEFT: AtomicI64 = AtomicI64::new(-1);
/// Which point is meant: its place in the list, counted from one; 0: any.
static AIM: AtomicUsize = AtomicUsize::new(0);

/// A place where the process may be killed.
pub(crate) fn point(name: &'static str) {
    if LEFT.load(Ordering::Relaxed) < 0 {
        return;
    }
    let aim = AIM.load(Ordering::Relaxed);
    if aim != 0 && POINTS[aim - 1].0 != name {
        return;
    }
    if LEFT.fetch_sub(1, Ordering::Relaxed) == 0 {
        #[cfg(test)]
        report::tell(name);
        // SAFETY: sends a signal to this process.
        unsafe { libc::raise(libc::SIGKILL) };
    }
}

/// Has this process, and those it forks, killed at a point: when it is passed for the time after `passes` others. The
/// order counts: a process has one such point, the last that was asked for.
///
/// Only in debug builds with the feature `fail-points`.
///
/// # Panics
///
/// If there is no such point.
pub fn kill_at(name: &str, passes: u32) {
    let place = POINTS.iter().position(|(point, _)| *point == name);
    let place = place.unwrap_or_else(|| panic!("there is no point {name:?} in procession_core::kills::POINTS"));
    LEFT.store(-1, Ordering::SeqCst);
    AIM.store(place + 1, Ordering::SeqCst);
    LEFT.store(passes.into(), Ordering::SeqCst);
}

#[cfg(test)]
pub(crate) use kill_test::KillTest;

/// How a child tells its parent where it dies.
#[cfg(test)]
mod report {
    use std::sync::atomic::{AtomicI32, Ordering};

    use super::POINTS;

    pub(super) static TO: AtomicI32 = AtomicI32::new(-1);

    pub(super) fn tell(name: &str) {
        let place = POINTS.iter().position(|(point, _)| *point == name).map_or(u32::MAX, |place| place as u32);
        let to = TO.load(Ordering::Relaxed);
        if to >= 0 {
            // SAFETY: writes four bytes that live meanwhile; a descriptor that is closed is an error.
            unsafe { libc::write(to, place.to_ne_bytes().as_ptr().cast(), 4) };
        }
    }
}

#[cfg(test)]
mod kill_test {
    use std::{collections::BTreeSet, io::Read, os::fd::AsRawFd, sync::atomic::Ordering, thread::panicking};

    use super::{LEFT, POINTS, kill_at, report};

    /// A test that kills at points, among them at all that the list gives it. It fails if it does not come by one.
    pub(crate) struct KillTest {
        label: &'static str,
        hit: BTreeSet<&'static str>,
    }

    impl KillTest {
        /// The label is the one by which the list knows the test.
        pub(crate) fn new(label: &'static str) -> Self {
            Self { label, hit: BTreeSet::new() }
        }

        /// Runs `call` in forked children, the first killed at the first point it passes, the second at the second and
        /// so on, until one lives to the end. `check` is called after each, with the number of the point, and whether
        /// it was killed.
        pub(crate) fn at_every_point(&mut self, mut call: impl FnMut(), mut check: impl FnMut(i64, bool)) {
            for number in 0.. {
                let killed = self.child(&mut call, || LEFT.store(number, Ordering::Relaxed));
                check(number, killed);
                if !killed {
                    return;
                }
            }
        }

        /// As [`at_every_point`](Self::at_every_point), then again for each point of this test that was not come by:
        /// where two processes play together, each run may take another way.
        pub(crate) fn at_every_point_in_the_end(&mut self, mut call: impl FnMut(), mut check: impl FnMut(i64, bool)) {
            self.at_every_point(&mut call, &mut check);
            for name in self.missed() {
                for _ in 0..200 {
                    let killed = self.child(&mut call, || kill_at(name, 0));
                    check(-1, killed);
                    if killed {
                        break;
                    }
                }
            }
        }

        /// Whether the child was killed.
        fn child(&mut self, call: &mut impl FnMut(), aim: impl FnOnce()) -> bool {
            let (mut reader, writer) = std::io::pipe().unwrap();
            // SAFETY: the child uses shared memory and the allocator (which glibc allows after a fork), and exits.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                report::TO.store(writer.as_raw_fd(), Ordering::Relaxed);
                aim();
                call();
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            assert!(pid > 0, "fork failed");
            let mut status = 0;
            // SAFETY: waits for the child.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            drop(writer);
            let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
            assert!(killed || status == 0, "the child failed: {status:#x}");
            if killed {
                let mut place = [0; 4];
                reader.read_exact(&mut place).unwrap();
                let point = POINTS.get(u32::from_ne_bytes(place) as usize);
                self.hit.insert(point.expect("killed at a point that is not in the list").0);
            }
            killed
        }

        fn missed(&self) -> Vec<&'static str> {
            let mine = POINTS.iter().filter(|(_, test)| *test == self.label);
            mine.map(|(name, _)| *name).filter(|name| !self.hit.contains(name)).collect()
        }
    }

    impl Drop for KillTest {
        fn drop(&mut self) {
            if panicking() {
                return;
            }
            let missed = self.missed();
            assert!(missed.is_empty(), "the test {:?} did not come by {missed:?}", self.label);
        }
    }
}
