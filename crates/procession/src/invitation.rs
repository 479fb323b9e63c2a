//! What passes between a process and its starter: the invitation, and on the way back the outcome.
//!
//! Both are parcels (see `procession_core::process`), over a pair of sockets of their own. An invitation is: the length of the
//! build id in a byte, the build id, the length of the head in four bytes, the head, the payload. What is behind the build id
//! is read only if that is the reader's own. Its descriptors: the starter's life sentinel, if a
//! program is executed; the directory, if one is set; the
//! standard streams that are given; those of the payload. PROTOCOL.md in the folder `process` has the scenarios.
#![allow(unsafe_code)]

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use procession_core::{
    process::{Contents, receive_parcel, send_parcel},
    sync::{Wait, WaitError},
};
use serde::{Deserialize, Serialize};

use crate::{
    Message, Panic,
    code::{Code, build_id},
    handover::Reach,
    init::Executable,
    message::{self, Encoded, Source},
    panic,
    process::{Environment, Resource},
    start::StartMethod,
};

/// The kinds of parcels.
pub(crate) const INVITATION: u8 = b'i';
/// The function has returned: its result.
pub(crate) const RETURNED: u8 = b'r';
/// The function has panicked: a [`Panic`].
pub(crate) const PANICKED: u8 = b'p';
/// It was not called: a text that says why.
pub(crate) const NOT_BEGUN: u8 = b'n';
/// It has returned what can't be sent: a text that says why.
pub(crate) const UNSENDABLE: u8 = b'u';

/// Exit codes of children: those of `sysexits.h` where it has one.
pub(crate) const EXIT_PANICKED: i32 = 101;
pub(crate) const EXIT_NOT_BEGUN: i32 = 78;
pub(crate) const EXIT_UNSENDABLE: i32 = 74;

/// What a child is to be.
#[derive(Debug, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // independent of each other
pub(crate) struct Setup {
    pub(crate) name: String,
    /// Whether the name is also to be the one that the system shows.
    pub(crate) named: bool,
    pub(crate) path: Vec<u32>,
    pub(crate) daemon: bool,
    /// It ends with its parent, as a daemonic one does, and so do its children.
    pub(crate) nests: bool,
    pub(crate) authkey: Vec<u8>,
    /// Name and pid; none in a child of the fork server, whose parent is that of the server.
    pub(crate) parent: Option<(String, u32)>,
    pub(crate) method: StartMethod,
    pub(crate) executable: Option<Executable>,
    pub(crate) directory: bool,
    pub(crate) stdio: [Place; 3],
    pub(crate) limits: Vec<(Resource, u64)>,
    /// In a child of the fork server: whether SIGINT is blocked. Others inherit that.
    pub(crate) interrupts_blocked: Option<bool>,
    /// How it differs, unless that was seen to when the program was executed.
    pub(crate) environment: Environment,
}

/// Where a standard stream of a child leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    Inherited,
    Null,
    /// The next of the descriptors.
    Given,
}

/// An invitation as the child has it.
#[derive(Debug)]
pub(crate) struct Invitation {
    /// What it is to run.
    pub(crate) entry: Code,
    pub(crate) setup: Setup,
    pub(crate) payload: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Sends an invitation. Waits for nobody.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    entry: Code,
    setup: &Setup,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let head = postcard::to_allocvec(&(entry, setup)).map_err(io::Error::other)?;
    let id = build_id();
    let mut front = Vec::with_capacity(1 + id.len() + 4 + head.len());
    front.push(u8::try_from(id.len()).map_err(io::Error::other)?);
    front.extend_from_slice(id);
    front.extend_from_slice(&u32::try_from(head.len()).map_err(io::Error::other)?.to_le_bytes());
    front.extend_from_slice(&head);
    at_once(socket, INVITATION, &[&front, payload], descriptors)
}

/// Sends a parcel without waiting for the other side.
fn at_once(socket: BorrowedFd<'_>, kind: u8, parts: &[&[u8]], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let too_many = |_: WaitError| io::Error::other("there are more descriptors than can be sent at once");
    send_parcel(socket, kind, parts, descriptors, &mut Wait::timeout(Duration::ZERO)).map_err(too_many)?
}

/// Receives the invitation that waits on a socket. The error is for the user.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Invitation, String> {
    // It was sent before anybody was told to receive it.
    let parcel = match receive_parcel(socket, &mut Wait::timeout(Duration::ZERO)) {
        Ok(Ok(Some(parcel))) if parcel.kind == INVITATION => parcel,
        Ok(Ok(_)) | Err(_) => return Err("no invitation came with it".into()),
        Ok(Err(error)) => return Err(format!("the invitation can't be received: {error}")),
    };
    let contents = Reader { contents: parcel.contents, at: 0 };
    contents.invitation(parcel.descriptors)
}

/// Reads contents from the beginning to the end.
struct Reader {
    contents: Contents,
    at: usize,
}

impl Reader {
    fn invitation(mut self, descriptors: Vec<OwnedFd>) -> Result<Invitation, String> {
        let id_length = usize::from(self.array::<1>()?[0]);
        if self.next(id_length)? != build_id() {
            return Err(
                "the process that starts it is of another build of the program: start that one anew, too".into()
            );
        }
        let length = u32::from_le_bytes(self.array()?) as usize;
        let head = self.next(length)?;
        let (entry, setup) = postcard::from_bytes(&head).map_err(|error| format!("its head is malformed: {error}"))?;
        let payload = self.next(self.contents.len() - self.at)?;
        Ok(Invitation { entry, setup, payload, descriptors })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.next(N)?.try_into().map_err(|_| cut_short())
    }

    fn next(&mut self, length: usize) -> Result<Vec<u8>, String> {
        if length > self.contents.len() - self.at {
            return Err(cut_short());
        }
        let mut bytes = Vec::with_capacity(length);
        self.contents
            .copy_from(self.at, &mut bytes.spare_capacity_mut()[..length])
            .map_err(|error| format!("the invitation can't be read: {error}"))?;
        // SAFETY: all of it was written.
        unsafe { bytes.set_len(length) };
        self.at += length;
        Ok(bytes)
    }
}

fn cut_short() -> String {
    "the invitation is cut short".into()
}

impl Source for Contents {
    fn length(&self) -> usize {
        self.len()
    }

    fn fill(&self, into: &mut [MaybeUninit<u8>]) -> io::Result<()> {
        self.copy_from(0, into)
    }
}

/// The way from a child back to its starter.
#[derive(Debug)]
pub(crate) struct WayBack(OwnedFd);

impl WayBack {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Tells something. Waits for nobody; that nobody listens any more is no error.
    pub(crate) fn tell(&self, kind: u8, contents: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        match at_once(self.0.as_fd(), kind, &[contents], &descriptors) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            told => told,
        }
    }

    /// Tells that the function was not called, also the user. Returns the exit code.
    pub(crate) fn refuse(&self, why: &str) -> i32 {
        eprintln!("procession: process {} does not begin: {why}", std::process::id());
        // The exit code says so, too.
        let _ = self.tell(NOT_BEGUN, why.as_bytes(), &[]);
        EXIT_NOT_BEGUN
    }

    /// Tells what became of the function. Returns the exit code.
    pub(crate) fn conclude<R: Message>(&self, outcome: Result<R, Panic>) -> i32 {
        // Its serialization is the program's code, too, and may panic.
        let returned = outcome.and_then(|result| panic::catch(|| self.tell_result(&result)));
        match returned {
            Ok(Ok(())) => 0,
            Ok(Err(error)) => {
                eprintln!("procession: the result of process {} can't be sent: {error}", std::process::id());
                // The exit code says so, too.
                let _ = self.tell(UNSENDABLE, error.as_bytes(), &[]);
                EXIT_UNSENDABLE
            }
            Err(panic) => {
                let bytes = postcard::to_allocvec(&panic).unwrap_or_default();
                let _ = self.tell(PANICKED, &bytes, &[]);
                EXIT_PANICKED
            }
        }
    }

    fn tell_result<R: Message>(&self, result: &R) -> Result<(), String> {
        let mut room = Vec::new();
        let Encoded { bytes, descriptors } =
            message::encode(result, &mut room, Reach::Related).map_err(|error| error.to_string())?;
        self.tell(RETURNED, bytes, &descriptors).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use procession_core::process::message_sockets;
    use proptest::prelude::*;

    use super::*;

    fn receive_what(parts: &[&[u8]]) -> Result<Invitation, String> {
        let (here, there) = message_sockets().unwrap();
        at_once(here.as_fd(), INVITATION, parts, &[]).unwrap();
        receive(there.as_fd())
    }

    fn setup(name: &str, path: &[u32], limits: &[u64]) -> Setup {
        Setup {
            name: name.into(),
            named: true,
            path: path.to_vec(),
            daemon: false,
            nests: false,
            authkey: b"key".to_vec(),
            parent: Some(("parent".into(), 5)),
            method: StartMethod::Spawn,
            executable: None,
            directory: false,
            stdio: [Place::Null, Place::Inherited, Place::Given],
            limits: limits.iter().map(|limit| (Resource::OpenFiles, *limit)).collect(),
            interrupts_blocked: None,
            environment: Environment::default(),
        }
    }

    proptest! {
        #[test]
        fn an_invitation_arrives(name: String, path: Vec<u32>, limits: Vec<u64>, payload: Vec<u8>, fds in 0_usize..5) {
            let (here, there) = message_sockets().unwrap();
            let entry = Code::of(setup as fn(&_, &_, &_) -> _ as *const ()).unwrap();
            let sent = setup(&name, &path, &limits);
            send(here.as_fd(), entry, &sent, &payload, &vec![here.as_fd(); fds]).unwrap();
            let received = receive(there.as_fd()).unwrap();
            prop_assert_eq!(received.entry, entry);
            prop_assert_eq!(received.payload, payload);
            prop_assert_eq!(received.descriptors.len(), fds);
            prop_assert_eq!(format!("{:?}", received.setup), format!("{sent:?}"));
        }

        #[test]
        fn garbage_is_an_error(bytes: Vec<u8>) {
            prop_assert!(receive_what(&[&bytes]).is_err());
            // Not even when the build is said to be the same, unless the rest makes sense.
            let id = build_id();
            if let Ok(received) = receive_what(&[&[id.len() as u8], id, &bytes]) {
                prop_assert!(received.payload.len() < bytes.len());
            }
        }
    }
}
