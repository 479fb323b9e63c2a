//! Descriptors and blocks of memory that travel with a value.
//!
//! A queue, a lock or a file consists, for another process, of a few bytes and of descriptors, which no bytes can stand
//! for. While a value is encoded, what has descriptors [lends](lend) them, and its bytes hold their places in the list
//! that goes along with the message. While it is decoded, they are [claimed](claim) by place. Whoever encodes says how
//! far the message goes ([`Reach`]). Large buffers go in the same way where there are blocks for them: they are [loaded](load),
//! and [unloaded](unload).

#![allow(unsafe_code)]

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr,
};

use procession_core::{
    channel::Along,
    memory::{Filled, HeldBlock},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use thiserror::Error;

/// How far a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// To a process on this machine, of this user: descriptors and keys may go with it.
    Related,
    /// Anywhere: neither may.
    Remote,
}

/// Why a descriptor can't go with a value, or did not arrive.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// The value has descriptors and is being turned into bytes by something else than this crate, which sends only
    /// bytes.
    #[error("it has descriptors, which only procession's own queues, connections, pools and processes can send")]
    NoMessage,
    /// It goes to another machine or another user, or comes from there.
    #[error("it has descriptors, which can't be sent to another machine or another user")]
    Remote,
    /// No descriptor is left in this process.
    #[error("its descriptors can't be duplicated: {0}")]
    Duplicate(#[from] io::Error),
    /// The message names a descriptor that did not come along.
    #[error("a descriptor is missing from the message")]
    Missing,
    /// It has a proxy of a manager, of which nothing is known any more, or not here.
    #[error("{0}")]
    Proxy(String),
}

/// What becomes of a large buffer of a value that is being encoded.
#[derive(Debug)]
pub(crate) enum Loading {
    /// It has been copied to this block.
    Block(Filled),
    /// It goes with the other bytes of the message.
    Bytes,
    /// The value is not to be encoded any further: there is no way for it now.
    Stop,
}

/// What decides that.
pub(crate) type Load<'a> = dyn Fn(&[u8]) -> Loading + 'a;

/// What goes with a message.
#[derive(Debug, Default)]
pub(crate) struct Lading {
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) blocks: Vec<Filled>,
}

enum Context<'a> {
    Lending { reach: Reach, list: Vec<(Option<u128>, OwnedFd)>, load: Option<&'a Load<'a>>, blocks: Vec<Filled> },
    Claiming { reach: Reach, list: Vec<Option<OwnedFd>>, blocks: Vec<Option<HeldBlock>> },
}

struct Scope<'a> {
    context: Context<'a>,
    /// What went wrong: a serializer has no room for it in its own errors.
    error: Option<DescriptorError>,
}

thread_local! {
    /// The scope that encodes or decodes now, on the stack of [`within`]: small values come here millions of times a second.
    static SCOPE: Cell<*const RefCell<Scope<'static>>> = const { Cell::new(ptr::null()) };
}

fn within<R>(context: Context<'_>, act: impl FnOnce() -> R) -> (R, Scope<'_>) {
    /// Puts the outer scope back, also when `act` panics.
    struct Outer(*const RefCell<Scope<'static>>);
    impl Drop for Outer {
        fn drop(&mut self) {
            SCOPE.set(self.0);
        }
    }
    let scope = RefCell::new(Scope { context, error: None });
    let outer = Outer(SCOPE.replace((&raw const scope).cast()));
    let result = act();
    drop(outer);
    (result, scope.into_inner())
}

/// Calls `look` with the scope that encodes or decodes now, if there is one.
fn with_scope<R>(look: impl FnOnce(Option<&mut Scope<'_>>) -> R) -> R {
    // SAFETY: null, or of a `within` further up on this thread's stack, which takes it out before it returns; what the scope
    // borrows lives as long as that call, and `look` can't keep it.
    let scope = unsafe { SCOPE.get().as_ref() };
    look(scope.map(RefCell::borrow_mut).as_deref_mut())
}

/// Runs `encode`, and returns the descriptors that were lent and the blocks that were filled meanwhile, or why a descriptor
/// could not be lent. `load` gets blocks, where there are any.
pub(crate) fn lending<R>(
    reach: Reach,
    load: Option<&Load<'_>>,
    encode: impl FnOnce() -> R,
) -> (R, Result<Lading, DescriptorError>) {
    let (result, scope) = within(Context::Lending { reach, list: Vec::new(), load, blocks: Vec::new() }, encode);
    let lent = match scope {
        Scope { error: Some(error), .. } => Err(error),
        Scope { context: Context::Lending { list, blocks, .. }, .. } => {
            Ok(Lading { descriptors: list.into_iter().map(|(_, fd)| fd).collect(), blocks })
        }
        Scope { .. } => Ok(Lading::default()),
    };
    (result, lent)
}

/// Runs `decode` with the descriptors and the blocks that came with the message. Those that nobody claims are closed and given back.
pub(crate) fn claiming<R>(
    reach: Reach,
    descriptors: Vec<OwnedFd>,
    blocks: Vec<HeldBlock>,
    decode: impl FnOnce() -> R,
) -> (R, Result<(), DescriptorError>) {
    let list = descriptors.into_iter().map(Some).collect();
    let blocks = blocks.into_iter().map(Some).collect();
    let (result, scope) = within(Context::Claiming { reach, list, blocks }, decode);
    (result, scope.error.map_or(Ok(()), Err))
}

/// How far the message goes that is being encoded, or where it is from. `None` outside of any.
pub(crate) fn reach() -> Option<Reach> {
    with_scope(|scope| {
        scope.map(|scope| match scope.context {
            Context::Lending { reach, .. } | Context::Claiming { reach, .. } => reach,
        })
    })
}

/// Puts a duplicate of a descriptor into the list; tells its place. One that has a `key` (what it stands for) is put there only
/// once, and may be claimed as often as it was lent.
fn lend(fd: BorrowedFd<'_>, key: Option<u128>) -> Result<u32, DescriptorError> {
    with_scope(|scope| {
        let Some(Scope { context: Context::Lending { reach, list, .. }, .. }) = scope else {
            return Err(DescriptorError::NoMessage);
        };
        if *reach == Reach::Remote {
            return Err(DescriptorError::Remote);
        }
        let place = list.iter().position(|(known, _)| key.is_some() && *known == key);
        if let Some(place) = place {
            return Ok(place as u32);
        }
        list.push((key, fd.try_clone_to_owned()?));
        Ok(list.len() as u32 - 1)
    })
}

/// Takes a descriptor out of the list, or a duplicate of it, if there may be more claims.
fn claim(place: u32, shared: bool) -> Result<OwnedFd, DescriptorError> {
    with_scope(|scope| {
        let Some(Scope { context: Context::Claiming { reach, list, .. }, .. }) = scope else {
            return Err(DescriptorError::NoMessage);
        };
        // Another user of this machine could send some nevertheless, of files that it cuts short while they are in use.
        if *reach == Reach::Remote {
            return Err(DescriptorError::Remote);
        }
        let slot = list.get_mut(place as usize).ok_or(DescriptorError::Missing)?;
        if shared {
            return Ok(slot.as_ref().ok_or(DescriptorError::Missing)?.try_clone()?);
        }
        slot.take().ok_or(DescriptorError::Missing)
    })
}

/// A buffer of fewer bytes is not worth a block.
const WORTH: usize = 1 << 15;

/// How a buffer of the value that is being encoded goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loaded {
    /// In this one of the message's blocks.
    Block(u32),
    /// With the other bytes.
    Bytes,
    /// The value is not to be encoded.
    Stopped,
}

/// Copies a buffer to a block, if it is large and there is one.
pub(crate) fn load(bytes: &[u8]) -> Loaded {
    if bytes.len() < WORTH {
        return Loaded::Bytes;
    }
    with_scope(|scope| match scope {
        Some(Scope { context: Context::Lending { load: Some(load), blocks, .. }, .. })
            if blocks.len() < Along::MOST_BLOCKS =>
        {
            match load(bytes) {
                Loading::Block(block) => {
                    blocks.push(block);
                    Loaded::Block(blocks.len() as u32 - 1)
                }
                Loading::Bytes => Loaded::Bytes,
                Loading::Stop => Loaded::Stopped,
            }
        }
        _ => Loaded::Bytes,
    })
}

/// Takes a block out of those that came with the message that is being decoded.
pub(crate) fn unload(place: u32) -> Option<HeldBlock> {
    with_scope(|scope| match scope {
        Some(Scope { context: Context::Claiming { blocks, .. }, .. }) => blocks.get_mut(place as usize)?.take(),
        _ => None,
    })
}

/// Notes what went wrong, for whoever began to encode or decode.
pub(crate) fn report(error: DescriptorError) -> String {
    let text = error.to_string();
    with_scope(|scope| {
        if let Some(scope) = scope {
            scope.error.get_or_insert(error);
        }
    });
    text
}

/// A descriptor in a value that is being encoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lent<'a> {
    fd: BorrowedFd<'a>,
    key: Option<u128>,
}

impl<'a> Lent<'a> {
    /// One that is claimed once, by the value it is a part of.
    pub(crate) fn own(fd: BorrowedFd<'a>) -> Self {
        Self { fd, key: None }
    }

    /// One that several values of a message may have in common: `key` says what it stands for, as the id of a segment does.
    pub(crate) fn shared(fd: BorrowedFd<'a>, key: u128) -> Self {
        Self { fd, key: Some(key) }
    }
}

impl Serialize for Lent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let place = lend(self.fd, self.key).map_err(|error| ser::Error::custom(report(error)))?;
        (place, self.key.is_some()).serialize(serializer)
    }
}

/// A descriptor in a value that is being decoded: what a [`Lent`] one has become.
#[derive(Debug)]
pub(crate) struct Claimed(pub(crate) OwnedFd);

impl<'de> Deserialize<'de> for Claimed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, shared) = Deserialize::deserialize(deserializer)?;
        claim(place, shared).map(Self).map_err(|error| de::Error::custom(report(error)))
    }
}

/// Something that is a descriptor (a file, a socket, an end of a pipe), as a value that can be sent to another process of
/// this machine. It arrives as a duplicate: both processes have the same open file.
///
/// Turning it into bytes by other means than this crate's queues, connections, pools and processes is an error, and so
/// is sending it to another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle<T>(pub T);

impl<T: AsFd> Serialize for Handle<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Lent::own(self.0.as_fd()).serialize(serializer)
    }
}

impl<'de, T: From<OwnedFd>> Deserialize<'de> for Handle<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Claimed::deserialize(deserializer).map(|claimed| Self(claimed.0.into()))
    }
}
