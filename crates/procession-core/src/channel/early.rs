//! The place where the beginning of a message is received.
#![allow(unsafe_code)]

use std::{cell::Cell, mem::MaybeUninit};

/// The first packet of a message holds at most this many bytes, its header included (CONNECTION.md, *Packets*).
pub(super) const FIRST_PACKET: usize = 64 * 1024;

/// Where the first packet of a message is received. One is kept for each thread.
#[derive(Debug, Default)]
pub(super) struct Early(Option<Box<Space>>);

pub(super) type Space = [MaybeUninit<u8>; FIRST_PACKET];

thread_local! {
    static KEPT: Cell<Option<Box<Space>>> = const { Cell::new(None) };
}

impl Early {
    pub(super) fn take() -> Self {
        // Only one call at a time has it: a signal handler may receive another message while this one waits.
        Self(KEPT.try_with(Cell::take).ok().flatten())
    }

    pub(super) fn space(&mut self) -> &mut Space {
        self.0.get_or_insert_with(|| vec![MaybeUninit::uninit(); FIRST_PACKET].try_into().expect("as long as wanted"))
    }

    /// The first bytes.
    ///
    /// # Safety
    ///
    /// The first `have` bytes were received.
    pub(super) unsafe fn filled(&mut self, have: usize) -> &[u8] {
        let received = &self.space()[..have];
        // SAFETY: initialized, by the caller's word; the slice is borrowed from the space.
        unsafe { std::slice::from_raw_parts(received.as_ptr().cast(), received.len()) }
    }

    pub(super) fn give_back(&mut self) {
        let space = self.0.take();
        // The thread may be at its end, without a place to keep anything.
        let _ = KEPT.try_with(|kept| kept.set(space));
    }
}
