//! A descriptor that several threads use and one closes.

use std::{
    io,
    os::fd::RawFd,
    sync::atomic::{AtomicI32, AtomicU32, Ordering},
};

use crate::{process, sys::io as sys};

/// A descriptor that is closed when it was asked for and its last call has ended.
///
/// Otherwise a thread that is about to read could find another file under the number that a second thread closed and a
/// third one opened.
///
/// The state word: bit 31 says closed, the other bits count the calls under way.
/// * `use` adds one, unless closed; the end of the call takes one away, and closes the number if it was the last and the
///   bit is set.
/// * `close` sets the bit, and closes the number if no call is under way. So exactly one of them closes it.
#[derive(Debug)]
pub(super) struct Descriptor {
    number: AtomicI32,
    state: AtomicU32,
    /// Calls that were under way in other threads at a fork never end in the child: it doesn't wait for them.
    generation: u32,
}

const CLOSED: u32 = 1 << 31;

/// A call under way: the number stays open.
#[derive(Debug)]
pub(super) struct InUse<'a>(&'a Descriptor);

impl Descriptor {
    pub(super) fn new(number: RawFd) -> Self {
        Self { number: AtomicI32::new(number), state: AtomicU32::new(0), generation: process::generation() }
    }

    /// `None` if closed.
    pub(super) fn get(&self) -> Option<InUse<'_>> {
        let previous = self.state.fetch_add(1, Ordering::Acquire);
        let guard = InUse(self);
        (previous & CLOSED == 0).then_some(guard)
    }

    /// The number; `None` if closed.
    pub(super) fn number(&self) -> Option<RawFd> {
        (self.state.load(Ordering::Acquire) & CLOSED == 0).then(|| self.number.load(Ordering::Relaxed))
    }

    /// Closes the number, or has the last call under way do it. Nothing if closed already.
    pub(super) fn close(&self) -> io::Result<()> {
        let previous = self.state.fetch_or(CLOSED, Ordering::AcqRel);
        let nobody_else = previous == 0 || (previous & CLOSED == 0 && self.generation != process::generation());
        if nobody_else { self.close_number() } else { Ok(()) }
    }

    /// Marks it closed without closing the number, which is returned.
    pub(super) fn detach(&self) -> Option<RawFd> {
        let number = self.number.swap(-1, Ordering::AcqRel);
        let previous = self.state.fetch_or(CLOSED, Ordering::AcqRel);
        (previous & CLOSED == 0).then_some(number)
    }

    /// Puts another number in the place of the present one, which is not closed. Open from now on in any case.
    pub(super) fn replace(&self, number: RawFd) {
        self.number.store(number, Ordering::Release);
        self.state.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    fn close_number(&self) -> io::Result<()> {
        match self.number.swap(-1, Ordering::AcqRel) {
            -1 => Ok(()),
            number => sys::close(number),
        }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // Nobody is left to hear of an error.
        let _ = self.close();
    }
}

impl InUse<'_> {
    pub(super) fn number(&self) -> RawFd {
        self.0.number.load(Ordering::Relaxed)
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1 {
            let _ = self.0.close_number();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{io::Read, os::fd::IntoRawFd};

    use super::*;

    #[test]
    fn it_stays_open_until_the_last_call_ends() {
        let (mut reader, writer) = io::pipe().unwrap();
        let descriptor = Descriptor::new(writer.into_raw_fd());
        let in_use = descriptor.get().unwrap();
        descriptor.close().unwrap();
        assert!(descriptor.get().is_none());
        assert_eq!(descriptor.number(), None);
        assert_eq!(sys::write(in_use.number(), &[io::IoSlice::new(b"x")], sys::Blocking::No).unwrap(), 1);
        drop(in_use);
        // Only when all ends are closed does this return.
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"x");
    }

    #[test]
    fn what_was_detached_is_not_closed() {
        let (reader, writer) = io::pipe().unwrap();
        let number = writer.into_raw_fd();
        let descriptor = Descriptor::new(number);
        assert_eq!(descriptor.detach(), Some(number));
        assert_eq!(descriptor.detach(), None);
        drop(descriptor);
        assert_eq!(sys::write(number, &[io::IoSlice::new(b"x")], sys::Blocking::No).unwrap(), 1);
        sys::close(number).unwrap();
        drop(reader);
    }
}
