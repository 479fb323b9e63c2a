//! The courier: descriptors that ride along with the messages of a ring.
//!
//! Descriptors can't lie in shared memory. So beside the ring there is a pair of sockets of which every process that has
//! the ring has both ends: whoever puts a message with descriptors sends a packet with them through one, and whoever takes the
//! message finds them at the other. A number, the *ticket*, stands in both, so that what was left behind by the dead is
//! told from what belongs to a message. See PROTOCOL.md, "A message has descriptors".

use std::{
    io::{self, ErrorKind, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

use super::layout::{TICKET, as_uninit};
use crate::{
    sync::{Wait, WaitError},
    sys::{
        io::{self as sys, Blocking},
        poll,
        rights::{self, Take},
    },
};

/// How much may lie in the sockets; the system makes it less where its limit is lower. A packet takes not quite a KiB.
const ROOM: usize = 1 << 20;

/// The two ends. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Courier(Arc<Ends>);

#[derive(Debug)]
struct Ends {
    producers: OwnedFd,
    consumers: OwnedFd,
}

impl Courier {
    pub(super) fn create() -> io::Result<Self> {
        let (producers, consumers) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_send_buffer_size(&producers, ROOM)?;
        Ok(Self(Arc::new(Ends { producers, consumers })))
    }

    /// From the descriptors of another process, which are kept or closed.
    pub(super) fn attach([producers, consumers]: [OwnedFd; 2]) -> io::Result<Self> {
        for end in [&producers, &consumers] {
            if sockopt::socket_domain(end).ok() != Some(AddressFamily::UNIX)
                || sockopt::socket_type(end).ok() != Some(SocketType::SEQPACKET)
            {
                return Err(io::Error::new(ErrorKind::InvalidData, "the descriptor is not of a queue's courier"));
            }
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
        }
        Ok(Self(Arc::new(Ends { producers, consumers })))
    }

    /// What another process needs to attach.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.0.producers.as_fd(), self.0.consumers.as_fd()]
    }

    /// Sends the descriptors of a ticket. Only for the holder of the producer lock. False if there is no room.
    pub(super) fn send(&self, ticket: u64, descriptors: &[BorrowedFd<'_>]) -> io::Result<bool> {
        let ticket = ticket.to_le_bytes();
        let packet = [IoSlice::new(&ticket)];
        match retry(|| rights::send(self.0.producers.as_raw_fd(), &packet, descriptors, Blocking::No)) {
            Ok(sent) => Ok(sent.is_some()),
            // As many are on their way as the user may have.
            Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until there may be room.
    pub(super) fn wait_for_room(&self, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        poll::writable(self.0.producers.as_fd(), wait)
    }

    /// Copies of the descriptors of a ticket, which stay there. Older packets are thrown away: nobody wants them any more.
    /// Only for the holder of the consumer lock.
    pub(super) fn copy(&self, ticket: u64) -> io::Result<Vec<OwnedFd>> {
        loop {
            let (mut bytes, mut descriptors) = ([0; TICKET], Vec::new());
            let consumers = self.0.consumers.as_raw_fd();
            let peeked = retry(|| {
                rights::receive(consumers, as_uninit(&mut bytes), &mut descriptors, Take::Peek, Blocking::No)
            })?;
            match peeked.and_then(|packet| ticket_of(packet.length, bytes).zip(Some(packet.lost))) {
                Some((found, true)) if found == ticket => return Err(io::Error::from_raw_os_error(libc::EMFILE)),
                Some((found, false)) if found == ticket => return Ok(descriptors),
                Some((found, _)) if found < ticket => drop(self.take_first()?),
                _ => {
                    let missing = "the descriptors of the message are missing: another process took them";
                    return Err(io::Error::new(ErrorKind::InvalidData, missing));
                }
            }
        }
    }

    /// Takes the packet of a ticket out, and older ones. Only for the holder of the consumer lock.
    pub(super) fn take_out(&self, ticket: u64) {
        // An error would be that of a socket that is no courier's; the next one who wants descriptors meets it.
        while let Ok(Some(found)) = self.take_first()
            && found < ticket
        {}
    }

    /// Throws everything away. Only for the holder of both locks while the ring is empty.
    pub(super) fn clear(&self) {
        self.take_out(u64::MAX);
    }

    /// Takes the first packet out; the kernel closes what it carried.
    fn take_first(&self) -> io::Result<Option<u64>> {
        let mut bytes = [0; TICKET];
        let consumers = self.0.consumers.as_raw_fd();
        let length = retry(|| sys::receive_packet(consumers, as_uninit(&mut bytes), Blocking::No))?;
        Ok(length.and_then(|length| ticket_of(length, bytes)))
    }
}

/// The ticket of a packet; `None` at the end of the sockets. A packet of another length is no producer's, and counts as left
/// behind.
fn ticket_of(length: usize, bytes: [u8; TICKET]) -> Option<u64> {
    match length {
        0 => None,
        TICKET => Some(u64::from_le_bytes(bytes)),
        _ => Some(0),
    }
}

/// `None` if it would have to wait.
fn retry<R>(mut call: impl FnMut() -> io::Result<R>) -> io::Result<Option<R>> {
    loop {
        match call() {
            Ok(result) => return Ok(Some(result)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "courier_tests.rs"]
mod tests;
