//! Values into messages of the ring and back: one copy in, one copy out.

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use procession_core::{
    channel::{self, Along},
    memory::{Claimed, HeldBlock},
};

use crate::{
    DecodeError, EncodeError, Message,
    handover::{Load, Loading, Reach},
    message::{Laden, decode, decode_with, encode_with, is_buffer, is_number, own_bytes},
    room,
};

/// Messages up to this size are copied to the stack.
const SMALL: usize = 128;

/// Calls `put` with the bytes of a value, its descriptors, and the blocks that `load` got for it. The bytes of a number or a buffer
/// are its own.
#[inline]
pub(super) fn encoded<T: Message, R, E: From<EncodeError>>(
    value: &T,
    load: &Load<'_>,
    put: impl FnOnce(&[u8], Along<'_>) -> Result<R, E>,
) -> Result<R, E> {
    if let Some(bytes) = own_bytes(value) {
        return put(bytes, Along::default());
    }
    encoded_there(value, load, put)
}

/// Of a value that is written down somewhere first. Apart from the above, which is to be small wherever it is inlined.
#[inline(never)]
fn encoded_there<T: Message, R, E: From<EncodeError>>(
    value: &T,
    load: &Load<'_>,
    put: impl FnOnce(&[u8], Along<'_>) -> Result<R, E>,
) -> Result<R, E> {
    room::with(|room| {
        let Laden { bytes, descriptors, blocks } = encode_with(value, room, Reach::Related, Some(load))?;
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        put(bytes, Along { descriptors: &descriptors, blocks: &blocks })
    })
}

/// Values that are put together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

/// Why a batch ends before a value.
#[derive(Debug)]
pub(super) enum Stop {
    /// It has descriptors or large buffers, with which each goes alone.
    Alone,
    /// It can't be encoded.
    Failed(EncodeError),
}

impl Batch {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// How many bytes are in it.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a value that is no buffer.
    pub(super) fn add<T: Message>(&mut self, value: &T) -> Result<(), Stop> {
        room::with(|room| {
            let large = Cell::new(false);
            let load = |_: &[u8]| {
                large.set(true);
                Loading::Stop
            };
            let encoded = encode_with(value, room, Reach::Related, Some(&load));
            if large.get() {
                return Err(Stop::Alone);
            }
            let Laden { bytes, descriptors, .. } = encoded.map_err(Stop::Failed)?;
            if !descriptors.is_empty() {
                return Err(Stop::Alone);
            }
            self.bytes.extend_from_slice(bytes);
            self.ends.push(self.bytes.len());
            Ok(())
        })
    }

    /// The bytes of each value from one on.
    pub(super) fn messages(&self, from: usize) -> impl Iterator<Item = &[u8]> {
        (from..self.ends.len()).map(|at| {
            let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
            &self.bytes[start..self.ends[at]]
        })
    }
}

/// A message that was copied out of the ring.
#[derive(Debug)]
enum Copied {
    /// In the room given for it: so many bytes.
    Small(usize, Vec<OwnedFd>, Vec<Claimed>),
    Large(Vec<u8>, Vec<OwnedFd>, Vec<Claimed>),
}

/// The blocks of a message that was taken, as memory.
fn held(blocks: Vec<Claimed>) -> Result<Vec<HeldBlock>, DecodeError> {
    blocks.into_iter().map(Claimed::hold).collect::<io::Result<_>>().map_err(DecodeError::Copy)
}

/// Takes a message by `take` and turns it into a value. The ring is locked only while bytes are copied, and not while a value's own
/// `Deserialize` runs.
#[inline]
pub(super) fn taken<T: Message, E: From<DecodeError>>(
    take: impl FnOnce(&mut dyn FnMut(&channel::Message<'_>) -> io::Result<()>) -> Result<(), E>,
) -> Result<T, E> {
    if is_plain::<T>() {
        let mut value = None;
        take(&mut |message| {
            value = Some(plain(message)?);
            Ok(())
        })?;
        let nothing = || DecodeError::Copy(io::ErrorKind::UnexpectedEof.into());
        return Ok(value.ok_or_else(nothing)??);
    }
    let mut room = [0; SMALL];
    let mut copied = None;
    take(&mut |message| {
        copied = Some(copy(message, &mut room)?);
        Ok(())
    })?;
    match copied {
        Some(Copied::Small(length, descriptors, blocks)) => {
            Ok(decode_with(&room[..length], descriptors, held(blocks)?, Reach::Related)?)
        }
        Some(Copied::Large(bytes, descriptors, blocks)) => {
            let value = decode_with(&*bytes, descriptors, held(blocks)?, Reach::Related)?;
            room::keep(bytes);
            Ok(value)
        }
        None => Err(DecodeError::Copy(io::ErrorKind::UnexpectedEof.into()).into()),
    }
}

/// Whether values of this type are read where the message lies.
fn is_plain<T: 'static>() -> bool {
    is_buffer::<T>() || is_number::<T>()
}

/// The value that a message holds as its own bytes. A message that holds none is taken out all the same.
#[inline]
fn plain<T: Message>(message: &channel::Message<'_>) -> io::Result<Result<T, DecodeError>> {
    match decode(message, Vec::new(), Reach::Related) {
        Err(DecodeError::Copy(error)) => Err(error),
        value => Ok(value),
    }
}

#[inline]
fn copy(message: &channel::Message<'_>, room: &mut [u8; SMALL]) -> io::Result<Copied> {
    let descriptors = message.descriptors()?;
    if message.len() <= SMALL as u64 {
        let length = message.len() as usize;
        message.copy_over(0, &mut room[..length])?;
        return Ok(Copied::Small(length, descriptors, message.take_blocks()));
    }
    let mut bytes = room::take();
    message.replace(&mut bytes)?;
    Ok(Copied::Large(bytes, descriptors, message.take_blocks()))
}

/// Messages that are taken out together.
#[derive(Debug)]
pub(super) struct Taken<T> {
    /// Numbers and buffers.
    plain: Vec<Result<T, DecodeError>>,
    bytes: Vec<u8>,
    /// Where each ends, its descriptors and its blocks.
    messages: Vec<(usize, Vec<OwnedFd>, Vec<Claimed>)>,
}

impl<T: Message> Taken<T> {
    pub(super) fn new() -> Self {
        Self { plain: Vec::new(), bytes: Vec::new(), messages: Vec::new() }
    }

    /// Copies one message more.
    pub(super) fn add(&mut self, message: &channel::Message<'_>) -> io::Result<()> {
        if is_plain::<T>() {
            self.plain.push(plain(message)?);
            return Ok(());
        }
        let descriptors = message.descriptors()?;
        let start = self.bytes.len();
        let length = usize::try_from(message.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.bytes.try_reserve(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.bytes.resize(start + length, 0);
        message.copy_over(0, &mut self.bytes[start..]).inspect_err(|_| self.bytes.truncate(start))?;
        self.messages.push((self.bytes.len(), descriptors, message.take_blocks()));
        Ok(())
    }

    /// The values of the first `count` messages: those that were taken out.
    pub(super) fn values(mut self, count: u64) -> impl Iterator<Item = Result<T, DecodeError>> {
        let mut start = 0;
        self.plain.truncate(count as usize);
        self.messages.truncate(count as usize);
        let bytes = self.bytes;
        let others = self.messages.into_iter().map(move |(end, descriptors, blocks)| {
            let message = &bytes[std::mem::replace(&mut start, end)..end];
            decode_with(message, descriptors, held(blocks)?, Reach::Related)
        });
        self.plain.into_iter().chain(others)
    }
}
