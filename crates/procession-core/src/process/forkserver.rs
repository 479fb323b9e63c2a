//! The fork server: a process without threads that others have copied. See PROTOCOL.md, "The fork server of the Rust face".
//!
//! Both sides are here: [`ForkServer`] is the server's, [`request`] and [`Answer`] the client's. What the copies are to
//! do is no business of either.
#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
    process::{Pid, WaitId, WaitIdOptions, waitid},
};

use super::{
    Exit, Forked, Parcel, Sentinel, fork,
    handover::{receive, send},
    parcel::send_parcel,
};
use crate::sync::{Wait, WaitError};

/// What is sent to the server, along with a status socket.
const REQUEST: &[u8] = b"+";

/// The kinds of answers on a status socket: from the child, with its pid and a pidfd.
const STARTED: u8 = b's';
/// From the server: the child has ended with this code, or minus a signal.
const ENDED: u8 = b'e';
/// From the server: it could not fork, for this reason (an errno).
const FAILED: u8 = b'f';

/// What arrives on a client's end of a status socket from the server or the child's first steps.
#[derive(Debug)]
pub enum Answer {
    /// The child runs. Only its server can tell how it ends.
    Started(Sentinel),
    /// The child has ended.
    Ended(Exit),
    /// There is no child, and why.
    Failed(io::Error),
}

impl Answer {
    /// The answer that a parcel is; the parcel, if it is none.
    ///
    /// # Errors
    ///
    /// The parcel.
    pub fn from_parcel(mut parcel: Parcel) -> Result<Self, Parcel> {
        if !matches!(parcel.kind, STARTED | ENDED | FAILED) {
            return Err(parcel);
        }
        let mut bytes = [std::mem::MaybeUninit::new(0); 8];
        if parcel.contents.copy_from(0, &mut bytes).is_err() {
            return Err(parcel);
        }
        // SAFETY: each was given a value at the start.
        let number = i64::from_le_bytes(bytes.map(|byte| unsafe { byte.assume_init() }));
        let code = i32::try_from(number).unwrap_or(i32::MAX);
        Ok(match parcel.kind {
            STARTED => match (u32::try_from(number), parcel.descriptors.pop()) {
                (Ok(pid), Some(pidfd)) => Self::Started(Sentinel::from_pidfd(pid, pidfd)),
                _ => return Err(parcel),
            },
            ENDED if code < 0 => Self::Ended(Exit::Signal(-code)),
            ENDED => Self::Ended(Exit::Code(code)),
            _ => Self::Failed(io::Error::from_raw_os_error(code)),
        })
    }
}

/// Asks the server behind the control socket for a child that gets the status socket. The answer comes on its other end,
/// as a parcel, for which the caller must not have kept a copy of `status`: if it comes to its end instead, the server has
/// ended and there is no child.
///
/// # Errors
///
/// The server has ended (`EPIPE`).
pub fn request(control: BorrowedFd<'_>, status: OwnedFd) -> io::Result<()> {
    match send(control, REQUEST, &[status.as_fd()], &mut Wait::forever()) {
        Ok(sent) => sent,
        // A wait without end does not end.
        Err(WaitError::TimedOut | WaitError::Interrupted) => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// The server, as it sees itself.
#[derive(Debug)]
pub struct ForkServer {
    control: OwnedFd,
    epoll: OwnedFd,
    /// By the number of the pidfd: the child, and the socket to tell its end on.
    children: HashMap<RawFd, (Sentinel, OwnedFd)>,
    /// Those that there was no descriptor left for, by pid: looked after now and then.
    unwatched: Vec<(u32, OwnedFd)>,
}

/// How often to look whether a child has ended that can't be watched.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

impl ForkServer {
    /// A server that takes requests from a control socket.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn new(control: OwnedFd) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let server = Self { control, epoll, children: HashMap::new(), unwatched: Vec::new() };
        server.watch(server.control.as_fd())?;
        Ok(server)
    }

    fn watch(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let data = epoll::EventData::new_u64(fd.as_raw_fd() as u64);
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    /// Serves, until nobody is left who could ask for anything: then it returns `None`. And it returns in each child, with the status
    /// socket of that, on which the starter has been told of it.
    ///
    /// # Safety
    ///
    /// The process has no other thread.
    ///
    /// # Errors
    ///
    /// The kernel's, that are nobody's fault.
    pub unsafe fn serve(mut self) -> io::Result<Option<OwnedFd>> {
        let mut events = Vec::with_capacity(16);
        loop {
            let pause = (!self.unwatched.is_empty()).then_some(&PAUSE);
            match epoll::wait(&self.epoll, spare_capacity(&mut events), pause) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.look_after_unwatched();
            for event in events.drain(..) {
                let fd = event.data.u64() as RawFd;
                if fd != self.control.as_raw_fd() {
                    self.ended(fd);
                    continue;
                }
                let Ok(received) = receive(self.control.as_fd(), REQUEST.len(), &mut Wait::forever()) else { continue };
                // A request that has lost its socket, since no descriptor was left: its client finds the end of it.
                let Ok(mut request) = received else { continue };
                if request.bytes.is_empty() {
                    return Ok(None);
                }
                let Some(status) = request.descriptors.pop() else { continue };
                // SAFETY: the caller's promise: there is no other thread.
                match unsafe { fork() } {
                    Ok(Forked::Child) => {
                        drop(self);
                        // Who can't be told of it asks once more, so it must do nothing. That nobody listens is another matter.
                        if started(status.as_fd()).is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe) {
                            // SAFETY: has no requirements.
                            unsafe { libc::_exit(1) }
                        }
                        return Ok(Some(status));
                    }
                    Ok(Forked::Parent(pid)) => self.adopt(pid, status),
                    Err(error) => tell(status.as_fd(), FAILED, error.raw_os_error().unwrap_or(libc::EAGAIN)),
                }
            }
        }
    }

    fn adopt(&mut self, pid: u32, status: OwnedFd) {
        let watched = Sentinel::open(pid).and_then(|child| self.watch(child.as_fd()).map(|()| child));
        match watched {
            Ok(child) => drop(self.children.insert(child.as_fd().as_raw_fd(), (child, status))),
            Err(_) => self.unwatched.push((pid, status)),
        }
    }

    /// Reaps those that have ended, and watches the others if there are descriptors by now.
    fn look_after_unwatched(&mut self) {
        for (pid, status) in std::mem::take(&mut self.unwatched) {
            let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let ended =
                id.map_or(Ok(None), |id| waitid(WaitId::Pid(id), WaitIdOptions::EXITED | WaitIdOptions::NOHANG));
            match ended {
                Ok(None) => self.adopt(pid, status),
                Ok(Some(how)) => {
                    let signal = how.terminating_signal().map(|signal| -signal);
                    tell(status.as_fd(), ENDED, how.exit_status().or(signal).unwrap_or(255));
                }
                Err(_) => tell(status.as_fd(), ENDED, 255),
            }
        }
    }

    fn ended(&mut self, pidfd: RawFd) {
        let Some((child, _)) = self.children.get(&pidfd) else { return };
        let code = match child.exit() {
            Ok(Some(Exit::Code(code))) => code,
            Ok(Some(Exit::Signal(signal))) => -signal,
            Ok(None) => return,
            // It has reaped its children itself.
            Ok(Some(Exit::Unknown)) | Err(_) => 255,
        };
        if let Some((child, status)) = self.children.remove(&pidfd) {
            tell(status.as_fd(), ENDED, code);
            // A forked child may still have a copy of the pidfd, which keeps it watched.
            let _ = epoll::delete(&self.epoll, child.as_fd());
        }
    }
}

/// The first act of a child.
fn started(status: BorrowedFd<'_>) -> io::Result<()> {
    let me = Sentinel::open(std::process::id())?;
    let pid = i64::from(me.pid()).to_le_bytes();
    let told = send_parcel(status, STARTED, &[&pid], &[me.as_fd()], &mut Wait::forever());
    told.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()))
}

/// Tells a number, unless nobody listens.
fn tell(status: BorrowedFd<'_>, kind: u8, number: i32) {
    let at_once = &mut Wait::timeout(std::time::Duration::ZERO);
    let _ = send_parcel(status, kind, &[&i64::from(number).to_le_bytes()], &[], at_once);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{message_sockets, receive_parcel};

    /// A server whose children wait for a byte and exit with it.
    fn server() -> (Sentinel, OwnedFd) {
        server_with(|| {})
    }

    fn server_with(prepare: impl FnOnce()) -> (Sentinel, OwnedFd) {
        let (ours, theirs) = message_sockets().unwrap();
        // SAFETY: the child calls what a server does, which needs no other thread.
        match unsafe { fork() }.unwrap() {
            Forked::Parent(pid) => (Sentinel::open(pid).unwrap(), ours),
            Forked::Child => {
                drop(ours);
                let server = ForkServer::new(theirs).unwrap();
                prepare();
                // SAFETY: a forked process has one thread.
                let served = unsafe { server.serve() };
                let code = match served {
                    Ok(Some(status)) => match receive(status.as_fd(), 1, &mut Wait::forever()) {
                        Ok(Ok(received)) => received.bytes.first().map_or(1, |byte| i32::from(*byte)),
                        _ => 2,
                    },
                    Ok(None) => 0,
                    Err(_) => 3,
                };
                // SAFETY: ends the process.
                unsafe { libc::_exit(code) }
            }
        }
    }

    fn answer(status: &OwnedFd) -> Option<Answer> {
        let parcel = receive_parcel(status.as_fd(), &mut Wait::forever()).unwrap().unwrap()?;
        Some(Answer::from_parcel(parcel).unwrap())
    }

    fn child(control: &OwnedFd) -> (Sentinel, OwnedFd) {
        let (ours, theirs) = message_sockets().unwrap();
        request(control.as_fd(), theirs).unwrap();
        match answer(&ours) {
            Some(Answer::Started(child)) => (child, ours),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn children_are_told_of_twice() {
        let (server, control) = server();
        let (first, first_status) = child(&control);
        let (second, second_status) = child(&control);
        assert_ne!(first.pid(), second.pid());
        send(second_status.as_fd(), &[7], &[], &mut Wait::forever()).unwrap().unwrap();
        second.wait(&mut Wait::forever()).unwrap();
        assert!(matches!(answer(&second_status), Some(Answer::Ended(Exit::Code(7)))));
        assert!(answer(&second_status).is_none());
        first.send_signal(libc::SIGKILL).unwrap();
        assert!(matches!(answer(&first_status), Some(Answer::Ended(Exit::Signal(libc::SIGKILL)))));
        drop(control);
        server.wait(&mut Wait::forever()).unwrap();
        assert_eq!(server.exit().unwrap(), Some(Exit::Code(0)));
    }

    #[test]
    fn a_child_that_no_descriptor_is_left_for_is_told_of_all_the_same() {
        // It has room for the status socket and for nothing else.
        let (server, control) = server_with(|| {
            let lowest = rustix::io::dup(std::io::stderr()).unwrap();
            let most = Some(lowest.as_raw_fd() as u64 + 1);
            let limit = rustix::process::Rlimit { current: most, maximum: most };
            rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        });
        let (child, status) = child(&control);
        send(status.as_fd(), &[7], &[], &mut Wait::forever()).unwrap().unwrap();
        child.wait(&mut Wait::forever()).unwrap();
        assert!(matches!(answer(&status), Some(Answer::Ended(Exit::Code(7)))));
        assert!(answer(&status).is_none());
        drop(control);
        server.wait(&mut Wait::forever()).unwrap();
        assert_eq!(server.exit().unwrap(), Some(Exit::Code(0)));
    }

    #[test]
    fn a_child_goes_on_when_the_server_is_killed() {
        let (server, control) = server();
        let (child, status) = child(&control);
        server.send_signal(libc::SIGKILL).unwrap();
        server.wait(&mut Wait::forever()).unwrap();
        server.exit().unwrap();
        let (ours, theirs) = message_sockets().unwrap();
        assert_eq!(request(control.as_fd(), theirs).unwrap_err().raw_os_error(), Some(libc::EPIPE));
        assert!(answer(&ours).is_none());
        assert!(!child.has_ended());
        send(status.as_fd(), &[7], &[], &mut Wait::forever()).unwrap().unwrap();
        child.wait(&mut Wait::forever()).unwrap();
        assert!(answer(&status).is_none());
    }

    #[test]
    fn a_request_that_nobody_took_comes_to_its_end() {
        let (control, servers) = message_sockets().unwrap();
        let (ours, theirs) = message_sockets().unwrap();
        request(control.as_fd(), theirs).unwrap();
        drop(servers);
        assert!(answer(&ours).is_none());
    }
}
