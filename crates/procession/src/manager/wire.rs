//! What the arguments and results of calls are made of: numbers, and values as bytes. See `PROTOCOL.md`.
//!
//! A value may contain proxies of objects of the same server. They are written as the numbers of these objects, and the
//! numbers stand once more in front of the value's bytes: the server keeps them alive without reading the value.

use procession_core::manager::{Caller, Failure, Held, protocol::ObjectId};

use super::{ManagerError, Refusal};

/// Without an end, as a time to wait.
pub(super) const FOREVER: u64 = u64::MAX;

/// Writes arguments or a result.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn flag(&mut self, flag: bool) -> &mut Self {
        self.0.push(u8::from(flag));
        self
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn value(&mut self, objects: &[ObjectId], bytes: &[u8]) -> &mut Self {
        self.0.reserve(16 + objects.len() * 8 + bytes.len());
        self.number(objects.len() as u64);
        for object in objects {
            self.number(*object);
        }
        self.bytes(bytes)
    }

    /// A stored value, for the client that called: it gets a reference to each object within.
    pub(super) fn stored(&mut self, stored: &Stored, caller: &Caller<'_>) -> &mut Self {
        self.number(stored.objects.len() as u64);
        for held in &stored.objects {
            caller.grant(held);
            self.number(held.id());
        }
        self.bytes(&stored.bytes)
    }

    /// A stored value that may not be there.
    pub(super) fn maybe(&mut self, stored: Option<&Stored>, caller: &Caller<'_>) -> &mut Self {
        self.flag(stored.is_some());
        if let Some(stored) = stored {
            self.stored(stored, caller);
        }
        self
    }
}

/// Reads arguments or a result.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

/// The bytes are not what was to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Malformed;

impl From<Malformed> for Failure {
    fn from(Malformed: Malformed) -> Self {
        Self::BadArguments("they are not what the method takes".into())
    }
}

impl From<Malformed> for ManagerError {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

/// A value as it came: the objects within, and its bytes.
#[derive(Clone, Debug)]
pub(super) struct Value<'a> {
    objects: &'a [u8],
    pub(super) bytes: &'a [u8],
}

impl Value<'_> {
    pub(super) fn objects(&self) -> impl Iterator<Item = ObjectId> {
        self.objects.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok().map(u64::from_le_bytes))
    }

    /// To be kept by an object.
    pub(super) fn keep(&self, caller: &Caller<'_>) -> Result<Stored, Failure> {
        let objects = self.objects().map(|id| caller.hold(id)).collect::<Result<_, _>>()?;
        Ok(Stored { bytes: self.bytes.into(), objects })
    }
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn number(&mut self) -> Result<u64, Malformed> {
        let (number, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*number))
    }

    pub(super) fn index(&mut self) -> Result<usize, Malformed> {
        self.number().map(|number| usize::try_from(number).unwrap_or(usize::MAX))
    }

    pub(super) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Malformed),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.number()?;
        self.take(length)
    }

    pub(super) fn value(&mut self) -> Result<Value<'a>, Malformed> {
        let objects = self.number()?.checked_mul(8).ok_or(Malformed)?;
        Ok(Value { objects: self.take(objects)?, bytes: self.bytes()? })
    }

    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// A value in an object of the server: its bytes, and the objects that it has proxies of.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) bytes: Box<[u8]>,
    objects: Box<[Held]>,
}

/// What the server's objects say when they refuse, as bytes.
impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        postcard::to_stdvec(&refusal).map_or_else(|error| Self::Failed(error.to_string()), Self::Raised)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            number: u64, flag: bool, bytes: Vec<u8>, values: Vec<(Vec<u64>, Vec<u8>)>,
        ) {
            let mut writer = Writer::default();
            writer.number(number).flag(flag).bytes(&bytes);
            for (objects, bytes) in &values {
                writer.value(objects, bytes);
            }
            let mut reader = Reader(&writer.0);
            prop_assert_eq!(reader.number().unwrap(), number);
            prop_assert_eq!(reader.flag().unwrap(), flag);
            prop_assert_eq!(reader.bytes().unwrap(), bytes);
            for (objects, bytes) in &values {
                let value = reader.value().unwrap();
                prop_assert_eq!(&value.objects().collect::<Vec<_>>(), objects);
                prop_assert_eq!(value.bytes, bytes);
            }
            reader.end().unwrap();
        }

        #[test]
        fn garbage_is_read_or_refused(bytes: Vec<u8>) {
            let mut reader = Reader(&bytes);
            while !reader.0.is_empty() && reader.value().is_ok() {}
            let _ = (reader.flag(), reader.index(), reader.bytes(), reader.end());
        }
    }
}
