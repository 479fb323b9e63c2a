//! Descriptors that go along with bytes over a Unix socket: see unix(7), `SCM_RIGHTS`.
#![allow(unsafe_code)]

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use super::io::Blocking;

/// How many descriptors go with one call; the kernel takes no more (`SCM_MAX_FD`).
pub(crate) const MOST: usize = 253;

/// Room for a header and the numbers of [`MOST`] descriptors, aligned as the header has to be.
type Control = [MaybeUninit<u64>; 132];

const _: () = assert!(size_of::<libc::cmsghdr>() + MOST * size_of::<RawFd>() + 8 <= size_of::<Control>());

/// What is to be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// What is there of a stream.
    Stream,
    /// A packet.
    Packet,
    /// A packet, which stays there for the next call. The descriptors are copies.
    Peek,
}

/// What was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// How many bytes; of a packet its length, which is more than the buffer's if it was cut off. Zero at the end.
    pub(crate) length: usize,
    /// Whether descriptors came with it that this process has no room for.
    pub(crate) lost: bool,
}

/// Whether descriptors can go along: only within the machine.
pub(crate) fn can_carry(fd: RawFd) -> bool {
    let mut value: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` and `size` are valid for the kernel to write, and `size` is the size of `value`.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, (&raw mut value).cast(), &raw mut size) };
    result == 0 && value == libc::AF_UNIX
}

/// sendmsg(2) with descriptors, at most [`MOST`]: what was taken of the pieces. If it was anything, the descriptors went
/// along.
pub(crate) fn send(
    fd: RawFd,
    pieces: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
    blocking: Blocking,
) -> io::Result<usize> {
    if descriptors.len() > MOST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let numbers = size_of_val(descriptors);
    let mut control: Control = [MaybeUninit::zeroed(); 132];
    // SAFETY: all-zero is a message header without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // IoSlice is guaranteed to have the layout of iovec; the kernel only reads through it.
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len();
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: computes from the length alone.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(numbers as u32) } as _;
    // SAFETY: computes from the length alone.
    let length = unsafe { libc::CMSG_LEN(numbers as u32) };
    let header = libc::cmsghdr { cmsg_len: length as _, cmsg_level: libc::SOL_SOCKET, cmsg_type: libc::SCM_RIGHTS };
    let place = control.as_mut_ptr().cast::<libc::cmsghdr>();
    // SAFETY: the header is what `control` begins with; it is long enough and aligned for it.
    unsafe { place.write(header) };
    // SAFETY: the header was just written there.
    let data = unsafe { libc::CMSG_DATA(place) };
    // SAFETY: BorrowedFd has the representation of its number, and there is room for all numbers behind the header.
    unsafe { std::ptr::copy_nonoverlapping(descriptors.as_ptr().cast::<u8>(), data, numbers) };
    // SAFETY: the header points to `pieces` and `control`, which outlive the call.
    let sent = unsafe { libc::sendmsg(fd, &raw const message, flags(blocking)) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// recvmsg(2): what is there, at most the buffer's length; the descriptors that came with it are added to `descriptors`,
/// closed on exec.
pub(crate) fn receive(
    fd: RawFd,
    buffer: &mut [MaybeUninit<u8>],
    descriptors: &mut Vec<OwnedFd>,
    what: Take,
    blocking: Blocking,
) -> io::Result<Received> {
    let mut control: Control = [MaybeUninit::uninit(); 132];
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a message header without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    let what = match what {
        // With MSG_TRUNC, TCP would throw the bytes away.
        Take::Stream => 0,
        Take::Packet => libc::MSG_TRUNC,
        Take::Peek => libc::MSG_TRUNC | libc::MSG_PEEK,
    };
    let flags = flags(blocking) | libc::MSG_CMSG_CLOEXEC | what;
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, and to `control` at most its size.
    let received = unsafe { libc::recvmsg(fd, &raw mut message, flags) };
    let length = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the header describes what the kernel wrote to `control`.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !next.is_null() {
        // SAFETY: `next` is the beginning of a part that the kernel wrote.
        let part = unsafe { next.read() };
        // SAFETY: as above.
        let data = unsafe { libc::CMSG_DATA(next) };
        if (part.cmsg_level, part.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            let bytes = (part.cmsg_len as usize).saturating_sub(data as usize - next as usize);
            for at in 0..bytes / size_of::<RawFd>() {
                // SAFETY: the part has so many numbers.
                let place = unsafe { data.add(at * size_of::<RawFd>()) };
                // SAFETY: as above; not aligned as far as the compiler knows.
                let number = RawFd::from_ne_bytes(unsafe { place.cast::<[u8; size_of::<RawFd>()]>().read() });
                // SAFETY: the kernel has just opened this number for us.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        // SAFETY: `next` is a part of this message.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    Ok(Received { length, lost: message.msg_flags & libc::MSG_CTRUNC != 0 })
}

fn flags(blocking: Blocking) -> libc::c_int {
    match blocking {
        Blocking::Yes => libc::MSG_NOSIGNAL,
        Blocking::No => libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
    }
}
