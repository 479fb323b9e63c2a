//! What can be sent to another process, and how it becomes bytes.
//!
//! Values are written in the [postcard](https://postcard.jamesmunns.com/wire-format) format. Plain data goes around it: a number, a
//! `Vec` of bytes or numbers, or a `String`, that is a message by itself is its own bytes, which are copied as a whole;
//! inside of other values, [`Plain`] does the same.
#![allow(unsafe_code)]

use std::{
    any::{Any, TypeId},
    fmt, io,
    marker::PhantomData,
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    os::fd::OwnedFd,
};

use postcard::ser_flavors::Flavor;
use procession_core::{
    channel,
    memory::{Filled, HeldBlock},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::DeserializeOwned};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    handover::{self, DescriptorError, Lading, Load, Reach},
    room,
};

// Buffers are sent as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "procession has no port to big-endian systems");

/// What can be sent to another process: everything that serde can write and read and that borrows nothing.
///
/// It is implemented by itself. Queues, connections, locks, shared values and proxies of managers are messages too: their
/// descriptors go with them. Files and sockets are, in a [`Handle`](crate::Handle).
///
/// What serde's [self-describing formats](https://serde.rs/data-model.html) are needed for (untagged enums, `flatten`,
/// `skip_serializing_if`) can't be read back from the compact format used here, and fails with a [`DecodeError`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be sent to another process",
    label = "needs `serde::Serialize` and `serde::de::DeserializeOwned`, and must not borrow"
)]
pub trait Message: Serialize + DeserializeOwned + 'static {}

impl<T: Serialize + DeserializeOwned + 'static> Message for T {}

/// A value can't be turned into a message.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Its descriptors can't go along.
    #[error("the value can't be sent: {0}")]
    Descriptor(#[from] DescriptorError),
    /// Its `Serialize` failed, or is of a kind that the format does not know (sequences of unknown length).
    #[error("the value can't be serialized: {0}")]
    Serialize(#[from] postcard::Error),
}

/// A message can't be turned into a value.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Its descriptors did not arrive.
    #[error("the message can't be read: {0}")]
    Descriptor(#[from] DescriptorError),
    /// It does not hold a value of this type.
    #[error("the message can't be deserialized: {0}")]
    Deserialize(#[from] postcard::Error),
    /// It holds more than a value of this type.
    #[error("the message is {0} bytes longer than the value in it")]
    TooLong(usize),
    /// A buffer that is not of a whole number of elements, or a text that is not UTF-8.
    #[error("the message does not hold a {0}")]
    Malformed(&'static str),
    /// Its bytes can't be had.
    #[error("the message can't be copied: {0}")]
    Copy(#[from] io::Error),
}

/// A value as it is sent.
#[derive(Debug)]
pub(crate) struct Encoded<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// The same, where large buffers may have gone to blocks.
#[derive(Debug)]
pub(crate) struct Laden<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) blocks: Vec<Filled>,
}

/// Where the bytes of a message are copied from.
pub(crate) trait Source {
    /// How many there are.
    fn length(&self) -> usize;
    /// Fills `into`, which is as long as the message.
    fn fill(&self, into: &mut [MaybeUninit<u8>]) -> io::Result<()>;
    /// The bytes, if nobody else can change them.
    fn private(&self) -> Option<&[u8]> {
        None
    }
}

impl Source for [u8] {
    fn length(&self) -> usize {
        self.len()
    }

    fn fill(&self, into: &mut [MaybeUninit<u8>]) -> io::Result<()> {
        assert_eq!(self.len(), into.len());
        // SAFETY: both are as long, and what is written to is borrowed by nobody else.
        unsafe { self.as_ptr().copy_to_nonoverlapping(into.as_mut_ptr().cast(), self.len()) };
        Ok(())
    }

    fn private(&self) -> Option<&[u8]> {
        Some(self)
    }
}

impl Source for channel::Message<'_> {
    fn length(&self) -> usize {
        self.len() as usize
    }

    fn fill(&self, into: &mut [MaybeUninit<u8>]) -> io::Result<()> {
        self.copy_from(0, into)
    }
}

/// Calls a macro for each type that is its own bytes in a `Vec`.
macro_rules! for_each_plain {
    ($act:ident) => {
        $act!(u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 f32 f64)
    };
}

/// Turns a value into a message. `room` is where its bytes are written, if it isn't a number or a buffer that has them
/// already.
pub(crate) fn encode<'a, T: Message>(
    value: &'a T,
    room: &'a mut Vec<u8>,
    reach: Reach,
) -> Result<Encoded<'a>, EncodeError> {
    encode_with(value, room, reach, None).map(|Laden { bytes, descriptors, .. }| Encoded { bytes, descriptors })
}

/// [`encode`], with what gets blocks for large buffers.
pub(crate) fn encode_with<'a, T: Message>(
    value: &'a T,
    room: &'a mut Vec<u8>,
    reach: Reach,
    load: Option<&Load<'_>>,
) -> Result<Laden<'a>, EncodeError> {
    if let Some(bytes) = own_bytes(value) {
        return Ok(Laden { bytes, descriptors: Vec::new(), blocks: Vec::new() });
    }
    room.clear();
    let (written, lading) =
        handover::lending(reach, load, || postcard::serialize_with_flavor::<_, _, ()>(value, Room(room)));
    let Lading { descriptors, blocks } = lading?;
    written?;
    Ok(Laden { bytes: room, descriptors, blocks })
}

/// The bytes of a value that is a number or a buffer.
#[inline]
pub(crate) fn own_bytes<T: 'static>(value: &T) -> Option<&[u8]> {
    let value: &dyn Any = value;
    macro_rules! numbers {
        ($($plain:ty)*) => {
            $(if let Some(number) = value.downcast_ref::<$plain>() {
                return Some(number.as_bytes());
            })*
        };
    }
    for_each_plain!(numbers);
    macro_rules! buffers {
        ($($plain:ty)*) => {
            $(if let Some(buffer) = value.downcast_ref::<Vec<$plain>>() {
                return Some(buffer.as_bytes());
            })*
        };
    }
    for_each_plain!(buffers);
    // The arguments of a function that has just the one.
    macro_rules! alone {
        ($($plain:ty)*) => {
            $(if let Some((buffer,)) = value.downcast_ref::<(Vec<$plain>,)>() {
                return Some(buffer.as_bytes());
            })*
        };
    }
    for_each_plain!(alone);
    if let Some((text,)) = value.downcast_ref::<(String,)>() {
        return Some(text.as_bytes());
    }
    value.downcast_ref::<String>().map(String::as_bytes)
}

/// Whether values of this type are buffers, which are filled straight from a message.
pub(crate) fn is_buffer<T: 'static>() -> bool {
    let it = TypeId::of::<T>();
    macro_rules! any_of {
        ($($plain:ty)*) => { it == TypeId::of::<String>() $(|| it == TypeId::of::<Vec<$plain>>())* };
    }
    for_each_plain!(any_of)
}

/// Whether values of this type are numbers, which are their own bytes too.
pub(crate) fn is_number<T: 'static>() -> bool {
    let it = TypeId::of::<T>();
    macro_rules! any_of {
        ($($plain:ty)*) => { false $(|| it == TypeId::of::<$plain>())* };
    }
    for_each_plain!(any_of)
}

/// Turns a message into a value.
#[inline]
pub(crate) fn decode<T: Message>(
    source: &(impl Source + ?Sized),
    descriptors: Vec<OwnedFd>,
    reach: Reach,
) -> Result<T, DecodeError> {
    decode_with(source, descriptors, Vec::new(), reach)
}

/// [`decode`], with the blocks that came with the message.
#[inline]
pub(crate) fn decode_with<T: Message>(
    source: &(impl Source + ?Sized),
    descriptors: Vec<OwnedFd>,
    blocks: Vec<HeldBlock>,
    reach: Reach,
) -> Result<T, DecodeError> {
    if let Some(value) = from_own_bytes(source) {
        return value;
    }
    with_copy(source, |bytes| {
        let (read, claimed) = handover::claiming(reach, descriptors, blocks, || postcard::take_from_bytes(bytes));
        claimed?;
        let (value, rest) = read?;
        if rest.is_empty() { Ok(value) } else { Err(DecodeError::TooLong(rest.len())) }
    })
}

/// The message as a number or a buffer, if that is what `T` is.
#[inline]
fn from_own_bytes<T: 'static>(source: &(impl Source + ?Sized)) -> Option<Result<T, DecodeError>> {
    /// Of two types that are the same.
    fn same<A: 'static, B: 'static>(result: Result<A, DecodeError>) -> Option<Result<B, DecodeError>> {
        let mut result = Some(result);
        (&mut result as &mut dyn Any).downcast_mut::<Option<Result<B, DecodeError>>>()?.take()
    }
    let wanted = TypeId::of::<T>();
    macro_rules! numbers {
        ($($plain:ty)*) => {
            $(if wanted == TypeId::of::<$plain>() {
                return same(number::<$plain>(source));
            })*
        };
    }
    for_each_plain!(numbers);
    macro_rules! buffers {
        ($($plain:ty)*) => {
            $(if wanted == TypeId::of::<Vec<$plain>>() {
                return same(elements::<$plain>(source));
            })*
        };
    }
    for_each_plain!(buffers);
    if wanted == TypeId::of::<String>() {
        let text =
            elements(source).and_then(|bytes| String::from_utf8(bytes).map_err(|_| DecodeError::Malformed("text")));
        return same(text);
    }
    macro_rules! alone {
        ($($plain:ty)*) => {
            $(if wanted == std::any::TypeId::of::<(Vec<$plain>,)>() {
                return same(elements::<$plain>(source).map(|buffer| (buffer,)));
            })*
        };
    }
    for_each_plain!(alone);
    if wanted == std::any::TypeId::of::<(String,)>() {
        return same(from_own_bytes::<String>(source)?.map(|text| (text,)));
    }
    None
}

/// The message as a number.
#[inline]
fn number<T: FromBytes>(source: &(impl Source + ?Sized)) -> Result<T, DecodeError> {
    let length = source.length();
    if length < size_of::<T>() {
        return Err(DecodeError::Deserialize(postcard::Error::DeserializeUnexpectedEnd));
    }
    if length > size_of::<T>() {
        return Err(DecodeError::TooLong(length - size_of::<T>()));
    }
    let mut number = MaybeUninit::<T>::uninit();
    // SAFETY: the bytes of `number`, which nobody else has.
    source.fill(unsafe { std::slice::from_raw_parts_mut(number.as_mut_ptr().cast(), length) })?;
    // SAFETY: `fill` has written all of it, and any bytes are a `T`.
    Ok(unsafe { number.assume_init() })
}

/// The message as a `Vec`, filled without a copy in between.
pub(crate) fn elements<T: FromBytes>(source: &(impl Source + ?Sized)) -> Result<Vec<T>, DecodeError> {
    let length = source.length();
    if size_of::<T>() == 0 || !length.is_multiple_of(size_of::<T>()) {
        return Err(DecodeError::Malformed("whole number of elements"));
    }
    let count = length / size_of::<T>();
    let mut elements = Vec::new();
    elements.try_reserve_exact(count).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    let room: *mut T = elements.as_mut_ptr();
    // SAFETY: room for `count` elements, which are so many bytes, and nobody else has it.
    source.fill(unsafe { std::slice::from_raw_parts_mut(room.cast(), length) })?;
    // SAFETY: `fill` has written all of them, and any bytes are a `T`.
    unsafe { elements.set_len(count) };
    Ok(elements)
}

/// Messages up to this size are read where they are copied to on the stack.
const SMALL: usize = 256;

/// Calls `read` with a copy of the message: what other processes can still change must not be parsed.
fn with_copy<R>(
    source: &(impl Source + ?Sized),
    read: impl FnOnce(&[u8]) -> Result<R, DecodeError>,
) -> Result<R, DecodeError> {
    if let Some(bytes) = source.private() {
        return read(bytes);
    }
    let length = source.length();
    if length <= SMALL {
        let mut room = [MaybeUninit::uninit(); SMALL];
        let room = &mut room[..length];
        source.fill(room)?;
        // SAFETY: `fill` has written all of it.
        return read(unsafe { std::slice::from_raw_parts(room.as_ptr().cast(), length) });
    }
    let mut room = room::take();
    room.clear();
    room.try_reserve_exact(length).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    source.fill(&mut room.spare_capacity_mut()[..length])?;
    // SAFETY: `fill` has written so many bytes.
    unsafe { room.set_len(length) };
    let result = read(&room);
    room::keep(room);
    result
}

/// Where postcard writes to.
struct Room<'a>(&'a mut Vec<u8>);

impl Flavor for Room<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// A `Vec` of plain data that is sent as one piece, wherever in a value it is.
///
/// Serde goes through the elements of a `Vec` one by one, which for large buffers takes many times as long as copying
/// them. This is for buffers inside of other values; a `Vec` of bytes or of numbers that is a message by itself needs none of it.
///
/// In other formats it is a string of bytes, of this machine's byte order. A [`Buffer`](crate::Buffer) is what can also be received
/// without a copy.
///
/// ```
/// use procession::Plain;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Picture {
///     title: String,
///     pixels: Plain<u16>,
/// }
///
/// let picture = Picture { title: "white".into(), pixels: vec![0xffff; 1_000_000].into() };
/// assert_eq!(picture.pixels.len(), 1_000_000);
/// # fn sent<T: procession::Message>(_: &T) {}
/// # sent(&picture);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Plain<T>(pub Vec<T>);

impl<T> From<Vec<T>> for Plain<T> {
    fn from(elements: Vec<T>) -> Self {
        Self(elements)
    }
}

impl<T> From<Plain<T>> for Vec<T> {
    fn from(plain: Plain<T>) -> Self {
        plain.0
    }
}

impl<T> Deref for Plain<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T> DerefMut for Plain<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.0
    }
}

impl<T: IntoBytes + Immutable> Serialize for Plain<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_bytes())
    }
}

impl<'de, T: FromBytes> Deserialize<'de> for Plain<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: FromBytes> de::Visitor<'de> for Visitor<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "bytes, a multiple of {}", size_of::<T>())
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<T>, E> {
                elements(bytes).map_err(E::custom)
            }

            /// Of formats that have no strings of bytes, as JSON.
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = sequence.next_element()? {
                    bytes.push(byte);
                }
                self.visit_bytes(&bytes)
            }
        }
        deserializer.deserialize_bytes(Visitor(PhantomData)).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs::File, io::Write, os::fd::AsFd};

    use proptest::prelude::*;

    use super::*;
    use crate::Handle;

    fn pass<T: Message>(value: &T) -> Result<T, DecodeError> {
        let mut room = Vec::new();
        let Encoded { bytes, descriptors } = encode(value, &mut room, Reach::Related).unwrap();
        decode(bytes, descriptors, Reach::Related)
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Point,
        Circle { radius: f64 },
        Path(Plain<u32>, Option<String>),
    }

    proptest! {
        #[test]
        fn values_pass(number: i128, numbers: Vec<i64>, text: String, bytes: Vec<u8>, map: HashMap<String, Option<u32>>, radius: f64) {
            prop_assert_eq!(pass(&number).unwrap(), number);
            prop_assert_eq!(pass(&radius).unwrap().to_bits(), radius.to_bits());
            prop_assert_eq!(&pass(&numbers).unwrap(), &numbers);
            prop_assert_eq!(&pass(&text).unwrap(), &text);
            prop_assert_eq!(&pass(&bytes).unwrap(), &bytes);
            prop_assert_eq!(&pass(&map).unwrap(), &map);
            let alone = (numbers.clone(), (bytes.clone(),), (text.clone(),));
            prop_assert_eq!(&pass(&(numbers.clone(),)).unwrap().0, &numbers);
            prop_assert_eq!(&pass(&alone.1).unwrap(), &alone.1);
            prop_assert_eq!(&pass(&alone.2).unwrap(), &alone.2);
            prop_assert_eq!(&pass(&alone).unwrap(), &alone);
            let path = Shape::Path(numbers.iter().map(|n| *n as u32).collect::<Vec<_>>().into(), Some(text));
            let shapes = (Shape::Point, Shape::Circle { radius }, path, bytes);
            prop_assert_eq!(&pass(&shapes).unwrap(), &shapes);
        }

        #[test]
        fn garbage_is_an_error_or_a_value(bytes: Vec<u8>) {
            let _ = decode::<(Shape, String, HashMap<u8, Plain<f32>>)>(&*bytes, Vec::new(), Reach::Related);
            let _ = decode::<String>(&*bytes, Vec::new(), Reach::Related);
            let whole = decode::<Vec<u32>>(&*bytes, Vec::new(), Reach::Related);
            prop_assert_eq!(whole.is_ok(), bytes.len().is_multiple_of(4));
            let _ = decode::<Handle<File>>(&*bytes, Vec::new(), Reach::Related).unwrap_err();
        }
    }

    #[test]
    fn buffers_are_not_copied_to_be_sent() {
        let buffer = vec![1.5_f64; 1000];
        let mut room = Vec::new();
        let encoded = encode(&buffer, &mut room, Reach::Remote).unwrap();
        assert_eq!(encoded.bytes.as_ptr(), buffer.as_ptr().cast());
        assert_eq!(encoded.bytes.len(), 8000);
        let arguments = (buffer,);
        let encoded = encode(&arguments, &mut room, Reach::Remote).unwrap();
        assert_eq!(encoded.bytes.as_ptr(), arguments.0.as_ptr().cast());
    }

    #[test]
    fn what_is_left_over_is_an_error() {
        assert!(matches!(decode::<u8>(&[1_u8, 2, 3][..], Vec::new(), Reach::Related), Err(DecodeError::TooLong(2))));
        assert!(matches!(
            decode::<(u8, u8)>(&[1_u8][..], Vec::new(), Reach::Related),
            Err(DecodeError::Deserialize(_))
        ));
    }

    #[test]
    fn plain_data_is_read_from_formats_without_bytes() {
        let read = |bytes: &[u8]| {
            let sequence = de::value::SeqDeserializer::<_, de::value::Error>::new(bytes.iter().copied());
            Plain::<u16>::deserialize(sequence)
        };
        assert_eq!(read(&[1, 0, 2, 1]).unwrap(), Plain(vec![1, 258]));
        assert!(read(&[1, 0, 2]).is_err());
    }

    #[test]
    fn a_file_goes_along() {
        let (mut reader, writer) = io::pipe().unwrap();
        let Handle(mut file) = pass(&Handle(File::from(OwnedFd::from(writer)))).unwrap();
        file.write_all(b"through").unwrap();
        drop(file);
        assert_eq!(io::read_to_string(&mut reader).unwrap(), "through");
    }

    #[test]
    fn descriptors_go_only_where_they_can() {
        let value = vec![Handle(io::pipe().unwrap().0)];
        let mut room = Vec::new();
        let remote = encode(&vec![Handle(OwnedFd::from(io::pipe().unwrap().0))], &mut room, Reach::Remote).unwrap_err();
        assert!(matches!(remote, EncodeError::Descriptor(DescriptorError::Remote)), "{remote}");
        assert_eq!(handover::reach(), None);
        assert_eq!(postcard::to_allocvec(&value).unwrap_err(), postcard::Error::SerdeSerCustom);
        let mut room = Vec::new();
        let handles = vec![Handle(value[0].0.as_fd().try_clone_to_owned().unwrap())];
        let Encoded { bytes, descriptors } = encode(&handles, &mut room, Reach::Related).unwrap();
        assert_eq!(descriptors.len(), 1);
        let foreign = decode::<Vec<Handle<OwnedFd>>>(bytes, descriptors, Reach::Remote).unwrap_err();
        assert!(matches!(foreign, DecodeError::Descriptor(DescriptorError::Remote)), "{foreign}");
        let lost = decode::<Vec<Handle<OwnedFd>>>(bytes, Vec::new(), Reach::Related).unwrap_err();
        assert!(matches!(lost, DecodeError::Descriptor(DescriptorError::Missing)), "{lost}");
    }
}
