//! Parcels: messages of any length with any number of descriptors, over a socket that keeps messages apart.
//!
//! A message of a socket takes so many bytes and descriptors at most. A parcel begins with one that says how much there is
//! (the layout is below); more descriptors follow in messages of their own, and contents that are long are in
//! a file in memory, which is the first descriptor. Numbers are little-endian.
//!
//! | bytes | meaning |
//! |-------|---------|
//! | 0     | the kind of parcel, the sender's choice; [`MORE`] for what follows a parcel's first message |
//! | 1     | 0: the contents follow, 1: they are in the file |
//! | 2-3   | zero |
//! | 4-7   | how many descriptors the parcel has, the file not counted |
//! | 8-15  | the length of the contents |
//! | 16-   | the contents, if they follow |

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::pwrite,
};

use super::handover::{receive, send};
use crate::sync::{Wait, WaitError};

/// The kind of a message that carries further descriptors of a parcel.
const MORE: u8 = b'+';
const HEADER: usize = 16;
/// Contents up to this length follow the header: a copy through the socket costs less than a file.
const INLINE: usize = 16 * 1024;
/// Descriptors in one message; the kernel takes 253, and one may be the file.
const IN_ONE_MESSAGE: usize = 240;

/// A parcel that arrived.
#[derive(Debug)]
pub struct Parcel {
    /// What the sender said it is.
    pub kind: u8,
    /// What is in it.
    pub contents: Contents,
    /// The descriptors, in the sender's order, closed on exec.
    pub descriptors: Vec<OwnedFd>,
}

/// The contents of a parcel.
#[derive(Debug)]
pub struct Contents(Place);

#[derive(Debug)]
enum Place {
    Message(Vec<u8>),
    File { file: OwnedFd, length: usize },
}

impl Contents {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Place::Message(bytes) => bytes.len() - HEADER,
            Place::File { length, .. } => *length,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the bytes from `start` on to `into`.
    ///
    /// # Errors
    ///
    /// There are fewer, or the file can't be read.
    pub fn copy_from(&self, start: usize, into: &mut [std::mem::MaybeUninit<u8>]) -> io::Result<()> {
        let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
        match &self.0 {
            Place::Message(bytes) => {
                let from = bytes[HEADER..].get(start..).and_then(|rest| rest.get(..into.len())).ok_or_else(short)?;
                for (place, byte) in into.iter_mut().zip(from) {
                    place.write(*byte);
                }
                Ok(())
            }
            Place::File { file, .. } => {
                let mut done = 0;
                while done < into.len() {
                    match rustix::io::pread(file, &mut into[done..], (start + done) as u64) {
                        Ok(([], _)) => return Err(short()),
                        Ok((read, _)) => done += read.len(),
                        Err(rustix::io::Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(())
            }
        }
    }
}

/// Sends a parcel, whose contents are the parts one after another. Blocks while the socket is full, which is after some
/// ten messages that nobody receives; and for some seconds, whatever `wait` says, while the user has more descriptors under way than
/// a process may have open, which only others can change.
///
/// # Errors
///
/// As [`send`]; no memory is left for contents that are long.
pub fn send_parcel(
    socket: BorrowedFd<'_>,
    kind: u8,
    parts: &[&[u8]],
    descriptors: &[BorrowedFd<'_>],
    wait: &mut Wait<'_>,
) -> Result<io::Result<()>, WaitError> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut message = Vec::with_capacity(HEADER + if length <= INLINE { length } else { 0 });
    message.extend_from_slice(&[kind, u8::from(length > INLINE), 0, 0]);
    message.extend_from_slice(&(descriptors.len() as u32).to_le_bytes());
    message.extend_from_slice(&(length as u64).to_le_bytes());
    let first = &descriptors[..descriptors.len().min(IN_ONE_MESSAGE)];
    let sent = if length <= INLINE {
        for part in parts {
            message.extend_from_slice(part);
        }
        patiently(socket, &message, first, wait)?
    } else {
        let file = match in_memory(parts) {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        let with_file: Vec<_> = [file.as_fd()].into_iter().chain(first.iter().copied()).collect();
        patiently(socket, &message, &with_file, wait)?
    };
    if let Err(error) = sent {
        return Ok(Err(error));
    }
    for more in descriptors[first.len()..].chunks(IN_ONE_MESSAGE) {
        if let Err(error) = patiently(socket, &[MORE], more, wait)? {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

/// As [`send`], but the kernel's limit for descriptors under way (see unix(7), `ETOOMANYREFS`) is given some time: many processes that were
/// just started may be about to receive theirs.
fn patiently(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    wait: &mut Wait<'_>,
) -> Result<io::Result<()>, WaitError> {
    let mut pause = Duration::from_millis(1);
    loop {
        match send(socket, bytes, descriptors, wait)? {
            Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) && pause < LONGEST_PAUSE => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            sent => return Ok(sent),
        }
    }
}

/// After pauses that double up to this, all in all some eight seconds, it is given up.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

fn in_memory(parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let file = memfd_create("procession-parcel", MemfdFlags::CLOEXEC)?;
    let mut at = 0;
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            match pwrite(&file, rest, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = &rest[written..];
                    at += written as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(file)
}

/// Receives a parcel. Blocks until there is one, or the other side is closed: then it is `None`.
///
/// # Errors
///
/// As [`receive`]; what arrives is no parcel (`InvalidData`), or ends in the middle (`UnexpectedEof`).
pub fn receive_parcel(socket: BorrowedFd<'_>, wait: &mut Wait<'_>) -> Result<io::Result<Option<Parcel>>, WaitError> {
    let first = match receive(socket, HEADER + INLINE, wait)? {
        Ok(received) if received.bytes.is_empty() => return Ok(Ok(None)),
        Ok(received) => received,
        Err(error) => return Ok(Err(error)),
    };
    let mut descriptors = first.descriptors;
    let Some((contents, wanted)) = opened(first.bytes, &mut descriptors) else {
        return Ok(Err(io::Error::new(io::ErrorKind::InvalidData, "what arrived is no parcel")));
    };
    let (kind, contents) = contents;
    while descriptors.len() < wanted {
        let more = match receive(socket, 1, wait)? {
            Ok(received) => received,
            Err(error) => return Ok(Err(error)),
        };
        if more.bytes != [MORE] || more.descriptors.is_empty() {
            return Ok(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        descriptors.extend(more.descriptors);
    }
    Ok(Ok(Some(Parcel { kind, contents, descriptors })))
}

/// Kind and contents, and how many descriptors there are to be, from the first message; `None` if it is none.
fn opened(bytes: Vec<u8>, descriptors: &mut Vec<OwnedFd>) -> Option<((u8, Contents), usize)> {
    let header = bytes.first_chunk::<HEADER>()?;
    let wanted = u32::from_le_bytes(*header[4..].first_chunk()?) as usize;
    let length = usize::try_from(u64::from_le_bytes(*header[8..].first_chunk()?)).ok()?;
    let kind = header[0];
    let place = match header[1] {
        0 if length == bytes.len() - HEADER => Place::Message(bytes),
        1 if !descriptors.is_empty() => {
            let file = descriptors.remove(0);
            let size = rustix::fs::fstat(&file).ok()?.st_size as u64;
            (length as u64 <= size).then_some(Place::File { file, length })?
        }
        _ => return None,
    };
    (descriptors.len() <= wanted).then_some(((kind, Contents(place)), wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Exit, Forked, Sentinel, fork, message_sockets};

    fn bytes(contents: &Contents) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(contents.len());
        contents.copy_from(0, &mut bytes.spare_capacity_mut()[..contents.len()]).unwrap();
        #[allow(unsafe_code)]
        // SAFETY: so many bytes were copied there.
        unsafe {
            bytes.set_len(contents.len());
        };
        bytes
    }

    #[test]
    fn contents_of_any_length_arrive() {
        let (here, there) = message_sockets().unwrap();
        for length in [0, 1, INLINE - 1, INLINE, INLINE + 1, 1_000_000] {
            let sent: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let (head, tail) = sent.split_at(length / 3);
            send_parcel(here.as_fd(), b'x', &[head, tail], &[], &mut Wait::forever()).unwrap().unwrap();
            let parcel = receive_parcel(there.as_fd(), &mut Wait::forever()).unwrap().unwrap().unwrap();
            assert_eq!((parcel.kind, parcel.contents.len(), parcel.descriptors.len()), (b'x', length, 0));
            assert_eq!(bytes(&parcel.contents), sent);
            let mut beyond = [std::mem::MaybeUninit::uninit(); 1];
            assert!(parcel.contents.copy_from(length, &mut beyond).is_err());
        }
        drop(here);
        assert!(receive_parcel(there.as_fd(), &mut Wait::forever()).unwrap().unwrap().is_none());
    }

    #[test]
    fn any_number_of_descriptors_arrives() {
        let (here, there) = message_sockets().unwrap();
        for (count, length) in [(1, 0), (IN_ONE_MESSAGE, INLINE + 1), (2 * IN_ONE_MESSAGE + 1, 5)] {
            let lent = vec![here.as_fd(); count];
            send_parcel(here.as_fd(), b'x', &[&vec![7; length]], &lent, &mut Wait::forever()).unwrap().unwrap();
            let parcel = receive_parcel(there.as_fd(), &mut Wait::forever()).unwrap().unwrap().unwrap();
            assert_eq!((parcel.contents.len(), parcel.descriptors.len()), (length, count));
        }
    }

    #[test]
    #[allow(unsafe_code)]
    fn more_descriptors_than_may_be_under_way_wait_for_others_to_arrive() {
        // SAFETY: the child uses no lock that a thread of this process could hold but the allocator's, which is freed.
        let child = match unsafe { fork() }.unwrap() {
            Forked::Parent(pid) => Sentinel::open(pid).unwrap(),
            Forked::Child => {
                let code = std::panic::catch_unwind(|| {
                    // Those of tests that run beside this one would count as well.
                    // SAFETY: nothing in this process uses them any more.
                    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
                    // The limit does not hold for the privileged.
                    // SAFETY: has no requirements.
                    unsafe { libc::setuid(65534) };
                    let few = rustix::process::Rlimit { current: Some(60), maximum: Some(60) };
                    rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
                    let (here, there) = message_sockets().unwrap();
                    let lent = vec![here.as_fd(); 25];
                    let late = std::thread::scope(|scope| {
                        let receiver = scope.spawn(|| {
                            std::thread::sleep(Duration::from_millis(50));
                            let mut received = Vec::new();
                            for _ in 0..5 {
                                received = receive_parcel(there.as_fd(), &mut Wait::forever())
                                    .unwrap()
                                    .unwrap()
                                    .unwrap()
                                    .descriptors;
                            }
                            received.len()
                        });
                        for _ in 0..5 {
                            send_parcel(here.as_fd(), b'x', &[], &lent, &mut Wait::forever()).unwrap().unwrap();
                        }
                        receiver.join().unwrap()
                    });
                    assert_eq!(late, 25);
                });
                // SAFETY: ends the process.
                unsafe { libc::_exit(i32::from(code.is_err())) }
            }
        };
        child.wait(&mut Wait::forever()).unwrap();
        assert_eq!(child.exit().unwrap(), Some(Exit::Code(0)));
    }

    #[test]
    fn garbage_is_an_error() {
        let (here, there) = message_sockets().unwrap();
        let mut longer = vec![b'x', 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        for garbage in [&b"x"[..], &longer.clone(), &[b'x', 1, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]] {
            send(here.as_fd(), garbage, &[], &mut Wait::forever()).unwrap().unwrap();
            let error = receive_parcel(there.as_fd(), &mut Wait::forever()).unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        // A descriptor is promised, and the sender ends.
        longer[4] = 1;
        longer[8] = 0;
        send(here.as_fd(), &longer, &[], &mut Wait::forever()).unwrap().unwrap();
        assert_eq!(
            receive_parcel(there.as_fd(), &mut Wait::timeout(Duration::from_millis(10))).unwrap_err(),
            WaitError::TimedOut
        );
        send(here.as_fd(), &longer, &[], &mut Wait::forever()).unwrap().unwrap();
        drop(here);
        let error = receive_parcel(there.as_fd(), &mut Wait::forever()).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
