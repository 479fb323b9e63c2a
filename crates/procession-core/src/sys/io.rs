//! Reading, writing and polling descriptors by number.
//!
//! The numbers come from outside (a Python program may hand in any), so they are not borrowed descriptors: a call with a
//! number that is not open fails with `EBADF`, and nothing else happens. Memory is only touched through the slices given.
#![allow(unsafe_code)]

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::RawFd,
    time::Duration,
};

/// Whether a call may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocking {
    /// It may (unless the descriptor itself was made non-blocking).
    Yes,
    /// It returns `WouldBlock` instead.
    No,
}

fn socket_flags(blocking: Blocking) -> libc::c_int {
    match blocking {
        Blocking::Yes => libc::MSG_NOSIGNAL,
        Blocking::No => libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
    }
}

fn file_flags(blocking: Blocking) -> libc::c_int {
    match blocking {
        Blocking::Yes => 0,
        Blocking::No => libc::RWF_NOWAIT,
    }
}

fn counted(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The type of a socket (`SOCK_STREAM`, ...); an error if it is none.
pub(crate) fn socket_type(fd: RawFd) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` and `size` are valid for the kernel to write, and `size` is the size of `value`.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut value).cast(), &raw mut size) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// sendmsg(2): what was taken of the pieces. All of them or nothing for a packet.
pub(crate) fn send(fd: RawFd, pieces: &[IoSlice<'_>], blocking: Blocking) -> io::Result<usize> {
    // SAFETY: all-zero is a message header without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // IoSlice is guaranteed to have the layout of iovec; the kernel only reads through it.
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len();
    // SAFETY: the header points to `pieces`, which outlive the call.
    counted(unsafe { libc::sendmsg(fd, &raw const message, socket_flags(blocking)) })
}

/// recv(2) from a stream: what is there, at most the buffer's length. Zero at its end.
pub(crate) fn receive(fd: RawFd, buffer: &mut [MaybeUninit<u8>], blocking: Blocking) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
    counted(unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), socket_flags(blocking)) })
}

/// recv(2) of a packet: its length, which is more than the buffer's if it was cut off. Zero at the end.
pub(crate) fn receive_packet(fd: RawFd, buffer: &mut [MaybeUninit<u8>], blocking: Blocking) -> io::Result<usize> {
    let flags = socket_flags(blocking) | libc::MSG_TRUNC;
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
    counted(unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags) })
}

/// writev(2) for what is not a socket.
pub(crate) fn write(fd: RawFd, pieces: &[IoSlice<'_>], blocking: Blocking) -> io::Result<usize> {
    let count = libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX);
    if blocking == Blocking::Yes {
        // SAFETY: IoSlice has the layout of iovec, and `pieces` outlive the call.
        return counted(unsafe { libc::writev(fd, pieces.as_ptr().cast(), count) });
    }
    // SAFETY: as above; the offset -1 stands for the present position.
    unsupported_blocks(counted(unsafe { libc::pwritev2(fd, pieces.as_ptr().cast(), count, -1, file_flags(blocking)) }))
}

/// read(2) for what is not a socket. Zero at the end.
pub(crate) fn read(fd: RawFd, buffer: &mut [MaybeUninit<u8>], blocking: Blocking) -> io::Result<usize> {
    if blocking == Blocking::Yes {
        // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
        return counted(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) });
    }
    let piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the one piece is `buffer`; the offset -1 stands for the present position.
    unsupported_blocks(counted(unsafe { libc::preadv2(fd, &raw const piece, 1, -1, file_flags(blocking)) }))
}

/// Files that can't be asked not to block count as not ready: the caller then takes the way that may block.
fn unsupported_blocks(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) => {
            Err(io::ErrorKind::WouldBlock.into())
        }
        other => other,
    }
}

/// ppoll(2): how many of the descriptors have something to tell. Without a limit it sleeps until one has.
pub(crate) fn poll(entries: &mut [libc::pollfd], limit: Option<Duration>) -> io::Result<usize> {
    let spec = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the kernel writes the entries' `revents` only; `spec` is null or outlives the call; no signal mask is given.
    let result = unsafe { libc::ppoll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, spec, std::ptr::null()) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// close(2). The number is free afterwards whatever it returns.
pub(crate) fn close(fd: RawFd) -> io::Result<()> {
    // SAFETY: the caller owns the number, or fails as any program does that closes a foreign one.
    let result = unsafe { libc::close(fd) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
/// Whether the other side of a socket is closed, or it is none. What was sent before may still be there.
pub(crate) fn hung_up(fd: RawFd) -> bool {
    let mut entry = [libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 }];
    // An error leaves it open whether it is: the next use will tell.
    poll(&mut entry, Some(Duration::ZERO)).is_ok_and(|ready| ready > 0)
}

/// The user that the process at the other end of a Unix socket had when it connected; `None` if it is no such socket.
pub(crate) fn peer_user(fd: RawFd) -> Option<libc::uid_t> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` and `size` are valid for the kernel to write, and `size` is the size of `peer`.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut size) };
    // A socket of another family knows none.
    (result == 0 && peer.pid != 0).then_some(peer.uid)
}

/// Tells the other side of a TCP connection at once that what it sent has come. Nothing for other files.
pub(crate) fn acknowledge(fd: RawFd) {
    let yes: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `yes` has the size given, and is read during the call.
    unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_QUICKACK, (&raw const yes).cast(), size) };
}

/// shutdown(2) in both directions: every call under way on a socket ends, and so does every later one, in whatever
/// process. Nothing if it is none or was not connected.
pub(crate) fn shutdown(fd: RawFd) {
    // SAFETY: touches no memory.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}
