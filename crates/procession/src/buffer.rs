//! Large plain data that is handed over and not copied out.
#![allow(unsafe_code)]

use std::{
    fmt,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    slice,
};

use procession_core::memory::HeldBlock;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use zerocopy::IntoBytes;

use crate::{
    Plain, PlainData,
    handover::{self, Loaded},
    message::elements,
};

/// A buffer of plain data that a [`Queue`](crate::Queue) or [`Pool`](crate::Pool) hands over: who gets it has it without a copy.
///
/// Putting one that is large, by itself or anywhere inside of a value, copies it once, into a block of the queue's shared memory. Who
/// gets it has that very block: to read, to write, and for as long as the buffer lives. When it is dropped, the block goes back
/// to the queue, which uses it again. A small one goes with the other bytes of its message, and so does a large one for which
/// there is no block: then it is a `Vec`, on both sides, and nothing else is different. [`is_block`](Self::is_block) tells which.
///
/// ```
/// use procession::{Buffer, Process, Queue};
///
/// fn brighten(pictures: Queue<(String, Buffer<f32>)>, brighter: Queue<(String, Buffer<f32>)>) {
///     while let Ok((title, mut pixels)) = pictures.get() {
///         if pixels.is_empty() {
///             break;
///         }
///         for pixel in &mut *pixels {
///             *pixel *= 2.0;
///         }
///         brighter.put((title, pixels)).unwrap();
///     }
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let (pictures, brighter) = (Queue::new()?, Queue::new()?);
///     let child = Process::spawn(brighten, (pictures.clone(), brighter.clone()))?;
///     pictures.put(("grey".to_string(), vec![0.25; 1_000_000].into()))?;
///     let (title, pixels) = brighter.get()?;
///     assert_eq!(title, "grey");
///     assert!(pixels.iter().all(|&pixel| pixel == 0.5));
///     pictures.put((title, Buffer::default()))?;
///     child.join()?;
///     Ok(())
/// }
/// ```
///
/// # What it may be sent through
///
/// Everything that takes a [`Message`](crate::Message). Queues of all kinds hand it over in blocks, and so do pools with arguments and
/// results, but for tasks that have [retries](crate::pool::CallOptions::retries): a block would die with the worker. Connections, managers and the
/// arguments and results of processes send its bytes, which costs as much as a [`Plain`] does. Sending one that is a block is
/// one more copy, into a block of the queue that it goes to.
///
/// # Processes and threads
///
/// It belongs to one owner, as a `Vec` does, and can be moved to other threads. If its process [forks](crate::process::fork), parent
/// and child each have a buffer of their own: what one writes the other does not see.
///
/// A process that dies gives back what it has, and a buffer that was put by a process that died is as good as any other.
///
/// A queue has 512 blocks, and so has a pool for arguments and for results, and memory for them as far as the machine can spare it. So a program that keeps many buffers should keep
/// them [as `Vec`s](Self::into_vec), and leave the blocks to what is on its way.
pub struct Buffer<T>(Memory<T>);

enum Memory<T> {
    Own(Vec<T>),
    /// Of a whole number of elements, and where one may lie.
    Block(HeldBlock, PhantomData<T>),
}

impl<T: PlainData> Buffer<T> {
    /// Whether it is a block that came with a message, and not a `Vec`.
    pub fn is_block(&self) -> bool {
        matches!(self.0, Memory::Block(..))
    }

    /// As a `Vec`: what it is already, or a copy of the block, which is given back.
    pub fn into_vec(self) -> Vec<T> {
        match self.0 {
            Memory::Own(elements) => elements,
            Memory::Block(block, _) => {
                let count = block.len() / size_of::<T>();
                let mut elements = Vec::<T>::with_capacity(count);
                // SAFETY: there is room for so many bytes, and it is apart from the block.
                unsafe { elements.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(block.as_ptr(), block.len()) };
                // SAFETY: so many were written, and any bytes are a `T`.
                unsafe { elements.set_len(count) };
                elements
            }
        }
    }

    /// `None` if the block is not of a whole number of elements.
    fn from_block(block: HeldBlock) -> Option<Self> {
        if size_of::<T>() == 0 || !block.len().is_multiple_of(size_of::<T>()) {
            return None;
        }
        if !block.as_ptr().cast::<T>().is_aligned() {
            return elements(&*block).ok().map(Self::from);
        }
        Some(Self(Memory::Block(block, PhantomData)))
    }
}

impl<T: PlainData> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Memory::Own(elements) => elements,
            // SAFETY: aligned, as was seen to; as long as the block, which is borrowed; and any bytes are a `T`.
            Memory::Block(block, _) => unsafe {
                slice::from_raw_parts(block.as_ptr().cast(), block.len() / size_of::<T>())
            },
        }
    }
}

impl<T: PlainData> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.0 {
            Memory::Own(elements) => elements,
            // SAFETY: as above, and nobody else borrows it.
            Memory::Block(block, _) => unsafe {
                slice::from_raw_parts_mut(block.as_ptr().cast(), block.len() / size_of::<T>())
            },
        }
    }
}

impl<T> From<Vec<T>> for Buffer<T> {
    fn from(elements: Vec<T>) -> Self {
        Self(Memory::Own(elements))
    }
}

impl<T: PlainData> From<Buffer<T>> for Vec<T> {
    fn from(buffer: Buffer<T>) -> Self {
        buffer.into_vec()
    }
}

impl<T> FromIterator<T> for Buffer<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        Vec::from_iter(elements).into()
    }
}

impl<T> Default for Buffer<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

/// A `Vec` of its own.
impl<T: PlainData + Clone> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        self.to_vec().into()
    }
}

impl<T: PlainData> AsRef<[T]> for Buffer<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<T: PlainData> AsMut<[T]> for Buffer<T> {
    fn as_mut(&mut self) -> &mut [T] {
        self
    }
}

impl<T: PlainData + PartialEq> PartialEq for Buffer<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: PlainData + Eq> Eq for Buffer<T> {}

impl<T: PlainData + fmt::Debug> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// In which of the message's blocks it is; or its bytes, as a [`Plain`] has them.
impl<T: PlainData> Serialize for Buffer<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Bytes<'a>(&'a [u8]);
        impl Serialize for Bytes<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(self.0)
            }
        }
        let bytes = (**self).as_bytes();
        match handover::load(bytes) {
            Loaded::Block(place) => (Some(place), Bytes(&[])).serialize(serializer),
            Loaded::Bytes => (None::<u32>, Bytes(bytes)).serialize(serializer),
            Loaded::Stopped => Err(ser::Error::custom("there is no way for a large buffer now")),
        }
    }
}

impl<'de, T: PlainData> Deserialize<'de> for Buffer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, Plain(elements)) = <(Option<u32>, Plain<T>)>::deserialize(deserializer)?;
        let Some(place) = place else { return Ok(elements.into()) };
        let block = handover::unload(place).ok_or_else(|| de::Error::custom("a block is missing from the message"))?;
        Self::from_block(block).ok_or_else(|| de::Error::custom("a block that is not a whole number of elements"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use procession_core::{
        channel::{Along, Queue},
        sync::Wait,
    };

    use super::*;
    use crate::{
        DecodeError, Message,
        handover::Reach,
        message::{decode_with, encode},
    };

    /// What comes out of a queue as a block of so many bytes.
    fn block(queue: &Queue, length: usize) -> HeldBlock {
        let filled = queue.ring().fill(&[&vec![7; length]], Duration::ZERO).unwrap();
        queue.put_along(&[], Along { blocks: &[filled], ..Along::default() }, &mut Wait::forever()).unwrap();
        queue.take_with(&mut Wait::forever(), |message| Ok(message.take_blocks())).unwrap().remove(0).hold().unwrap()
    }

    fn decoded<T: Message>(bytes: &[u8], blocks: Vec<HeldBlock>) -> Result<T, DecodeError> {
        decode_with(bytes, Vec::new(), blocks, Reach::Related)
    }

    #[test]
    fn a_message_that_does_not_hold_what_it_says_is_an_error() {
        let queue = Queue::create(None).unwrap();
        // Block number 0, and no bytes.
        let message = [1, 0, 0];
        let buffer: Buffer<u64> = decoded(&message, vec![block(&queue, 80_000)]).unwrap();
        assert_eq!((buffer.is_block(), buffer.len()), (true, 10_000));
        assert!(decoded::<Buffer<u64>>(&message, vec![block(&queue, 80_001)]).is_err());
        assert!(decoded::<Buffer<()>>(&message, vec![block(&queue, 80_000)]).is_err());
        assert!(decoded::<Buffer<u64>>(&message, Vec::new()).is_err());
        assert!(decoded::<Buffer<u64>>(&[1, 5, 0], vec![block(&queue, 80_000)]).is_err());
        // One block for two buffers.
        assert!(decoded::<[Buffer<u8>; 2]>(&[1, 0, 0, 1, 0, 0], vec![block(&queue, 80_000)]).is_err());
        // Nobody wants it: it is given back, as are all the others.
        assert_eq!(decoded::<u8>(&[5], vec![block(&queue, 80_000)]).unwrap(), 5);
        drop(buffer);
        assert!((0..600).all(|_| decoded::<Buffer<u8>>(&message, vec![block(&queue, 80_000)]).unwrap().is_block()));
    }

    #[test]
    fn outside_of_queues_it_is_bytes() {
        let queue = Queue::create(None).unwrap();
        let buffer: Buffer<u16> = decoded(&[1, 0, 0], vec![block(&queue, 80_000)]).unwrap();
        let (copy, mut room) = (buffer.clone(), Vec::new());
        let encoded = encode(&buffer, &mut room, Reach::Remote).unwrap();
        assert!(encoded.bytes.len() > 80_000);
        let arrived: Buffer<u16> = decoded(encoded.bytes, Vec::new()).unwrap();
        assert!(!arrived.is_block() && !copy.is_block());
        assert!(arrived == buffer && copy == buffer);
        assert!(buffer.into_vec() == vec![0x0707; 40_000]);
    }
}
