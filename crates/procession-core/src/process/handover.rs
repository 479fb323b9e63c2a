//! Handing descriptors to another process over a Unix socket.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::{
    io::{Errno, IoSlice, IoSliceMut},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

use crate::{
    sync::{Wait, WaitError},
    sys::poll,
};

/// How many descriptors go with one message; the kernel takes no more (`SCM_MAX_FD`).
pub const MOST_DESCRIPTORS: usize = 253;

/// A message that arrived: its bytes and what came with it.
#[derive(Debug)]
pub struct Received {
    /// The bytes; none at the end of the connection.
    pub bytes: Vec<u8>,
    /// The descriptors, closed on exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Two connected sockets that keep messages apart, closed on exec.
///
/// # Errors
///
/// No descriptor is left.
pub fn message_sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message, which must not be empty if descriptors go with it. Blocks while the socket is full.
///
/// # Errors
///
/// The outer error tells how the wait ended, the inner one what the kernel reports: the other side is closed (`EPIPE`), or
/// there are more descriptors than [`MOST_DESCRIPTORS`] (`EINVAL`).
///
/// # Examples
///
/// ```
/// use std::os::fd::AsFd;
/// use procession_core::{process::{message_sockets, receive, send}, sync::Wait};
///
/// let (here, there) = message_sockets()?;
/// let lent = [std::io::stdout()];
/// send(here.as_fd(), b"stdout", &[lent[0].as_fd()], &mut Wait::forever())??;
/// let received = receive(there.as_fd(), 100, &mut Wait::forever())??;
/// assert_eq!(received.bytes, b"stdout");
/// assert_eq!(received.descriptors.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    wait: &mut Wait<'_>,
) -> Result<io::Result<()>, WaitError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    loop {
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Ok(Err(Errno::INVAL.into()));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Ok(sent) if sent == bytes.len() => return Ok(Ok(())),
            // Only a stream socket takes a part of a message; these are for small ones, which it takes whole.
            Ok(_) => return Ok(Err(Errno::MSGSIZE.into())),
            Err(Errno::AGAIN) => poll::writable(socket, wait)?,
            Err(Errno::INTR) => {}
            Err(error) => return Ok(Err(error.into())),
        }
    }
}

/// Receives one message of at most `limit` bytes. Blocks until there is one, or the other side is closed.
///
/// # Errors
///
/// The outer error tells how the wait ended, the inner one what the kernel reports; a message that was cut short, because
/// it is longer or no descriptor is left here, is `EMSGSIZE`.
pub fn receive(socket: BorrowedFd<'_>, limit: usize, wait: &mut Wait<'_>) -> Result<io::Result<Received>, WaitError> {
    let mut bytes = vec![0; limit];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    loop {
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
            Ok(message) => {
                let descriptors = ancillary
                    .drain()
                    .filter_map(|part| match part {
                        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                        _ => None,
                    })
                    .flatten()
                    .collect();
                if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                    return Ok(Err(Errno::MSGSIZE.into()));
                }
                bytes.truncate(message.bytes);
                return Ok(Ok(Received { bytes, descriptors }));
            }
            Err(Errno::AGAIN) => poll::readable(socket, wait)?,
            // Told once, if the other side closed with a message of ours unread. What it sent before is still to be had.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(error) => return Ok(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::fd::AsFd,
        time::Duration,
    };

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_message() {
        let (here, there) = message_sockets().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(here.as_fd(), b"take this", &[writer.as_fd()], &mut Wait::forever()).unwrap().unwrap();
        drop(writer);
        let Received { bytes, descriptors } = receive(there.as_fd(), 100, &mut Wait::forever()).unwrap().unwrap();
        assert_eq!(bytes, b"take this");
        let [writer] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        File::from(writer).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn the_end_of_the_connection_is_a_message_without_bytes() {
        let (here, there) = message_sockets().unwrap();
        drop(there);
        assert!(receive(here.as_fd(), 10, &mut Wait::forever()).unwrap().unwrap().bytes.is_empty());
        let error = send(here.as_fd(), b"x", &[], &mut Wait::forever()).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
    }

    #[test]
    fn what_was_sent_before_the_end_arrives_even_if_something_was_not_read() {
        let (here, there) = message_sockets().unwrap();
        send(here.as_fd(), b"not read", &[], &mut Wait::forever()).unwrap().unwrap();
        send(there.as_fd(), b"last", &[], &mut Wait::forever()).unwrap().unwrap();
        drop(there);
        assert_eq!(receive(here.as_fd(), 10, &mut Wait::forever()).unwrap().unwrap().bytes, b"last");
        assert!(receive(here.as_fd(), 10, &mut Wait::forever()).unwrap().unwrap().bytes.is_empty());
    }

    #[test]
    fn a_wait_for_a_message_ends_with_its_time() {
        let (here, _there) = message_sockets().unwrap();
        let mut soon = Wait::timeout(Duration::from_millis(10));
        assert_eq!(receive(here.as_fd(), 10, &mut soon).unwrap_err(), WaitError::TimedOut);
    }

    #[test]
    fn neither_too_long_a_message_nor_too_many_descriptors_pass() {
        let (here, there) = message_sockets().unwrap();
        send(here.as_fd(), b"too long", &[], &mut Wait::forever()).unwrap().unwrap();
        let error = receive(there.as_fd(), 3, &mut Wait::forever()).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        let many = vec![here.as_fd(); MOST_DESCRIPTORS + 1];
        assert!(send(here.as_fd(), b"x", &many, &mut Wait::forever()).unwrap().is_err());
        let most = &many[..MOST_DESCRIPTORS];
        send(here.as_fd(), b"x", most, &mut Wait::forever()).unwrap().unwrap();
        let received = receive(there.as_fd(), 3, &mut Wait::forever()).unwrap().unwrap();
        assert_eq!(received.descriptors.len(), MOST_DESCRIPTORS);
    }
}
