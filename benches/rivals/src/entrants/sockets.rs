//! Streams and frames of one's own: over a pair of Unix sockets of the standard library, or a local socket of interprocess.

use std::{
    io::{self, BufReader, Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
};

use interprocess::local_socket::{
    GenericNamespaced, Listener, ListenerOptions, Stream, ToNsName,
    traits::{Listener as _, Stream as _},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Outcome,
    channel::{Channel, Invitation},
    peer::Orders,
};

/// Makes streams between two processes.
pub trait Streams {
    type Out: Write;
    type Into: Read;
    type Pending;

    fn open() -> Outcome<(Self::Pending, Invitation)>;
    fn connect(pending: Self::Pending) -> Outcome<(Self::Out, Self::Into)>;
    fn accept(orders: &mut Orders) -> Outcome<(Self::Out, Self::Into)>;
}

/// `UnixStream::pair`.
pub struct Pair;

impl Streams for Pair {
    type Out = UnixStream;
    type Into = UnixStream;
    type Pending = UnixStream;

    fn open() -> Outcome<(UnixStream, Invitation)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((ours, Invitation { descriptors: vec![theirs.into()], ..Invitation::default() }))
    }

    fn connect(stream: UnixStream) -> Outcome<(UnixStream, UnixStream)> {
        Ok((stream.try_clone()?, stream))
    }

    fn accept(orders: &mut Orders) -> Outcome<(UnixStream, UnixStream)> {
        let [stream] = orders.descriptors()?;
        Self::connect(stream.into())
    }
}

/// `interprocess::local_socket`.
pub struct Local;

/// Either half of such a socket.
pub struct Half(Arc<Stream>);

impl Read for Half {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(into)
    }
}

impl Write for Half {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

fn halves(stream: Stream) -> (Half, Half) {
    let stream = Arc::new(stream);
    (Half(Arc::clone(&stream)), Half(stream))
}

impl Streams for Local {
    type Out = Half;
    type Into = Half;
    type Pending = Listener;

    fn open() -> Outcome<(Listener, Invitation)> {
        let argument = format!("rivals-{}", std::process::id());
        let name = argument.as_str().to_ns_name::<GenericNamespaced>()?;
        Ok((ListenerOptions::new().name(name).create_sync()?, Invitation { argument, ..Invitation::default() }))
    }

    fn connect(listener: Listener) -> Outcome<(Half, Half)> {
        Ok(halves(listener.accept()?))
    }

    fn accept(orders: &mut Orders) -> Outcome<(Half, Half)> {
        let name = orders.argument.as_str().to_ns_name::<GenericNamespaced>()?;
        Ok(halves(Stream::connect(name)?))
    }
}

/// A message is a length in four bytes and so many bytes.
struct Frames<S: Streams> {
    out: S::Out,
    into: BufReader<S::Into>,
    room: Vec<u8>,
}

impl<S: Streams> Frames<S> {
    fn new((out, into): (S::Out, S::Into)) -> Self {
        Self { out, into: BufReader::with_capacity(1 << 16, into), room: Vec::new() }
    }

    fn length(&mut self) -> Outcome<usize> {
        let mut length = [0; 4];
        self.into.read_exact(&mut length)?;
        Ok(u32::from_le_bytes(length) as usize)
    }
}

/// Values, by postcard. Each message is sent at once: with a buffer in between it would only leave when that is full.
pub struct Postcard<S: Streams>(Frames<S>);

impl<S: Streams, M: Serialize + DeserializeOwned> Channel<M> for Postcard<S> {
    type Pending = S::Pending;

    fn open() -> Outcome<(S::Pending, Invitation)> {
        S::open()
    }

    fn connect(pending: S::Pending) -> Outcome<Self> {
        Ok(Self(Frames::new(S::connect(pending)?)))
    }

    fn accept(orders: &mut Orders) -> Outcome<Self> {
        Ok(Self(Frames::new(S::accept(orders)?)))
    }

    fn send(&mut self, message: &M) -> Outcome<()> {
        let Frames { out, room, .. } = &mut self.0;
        room.clear();
        room.extend_from_slice(&[0; 4]);
        let mut record = postcard::to_extend(message, std::mem::take(room))?;
        let length = u32::try_from(record.len() - 4)?;
        record[..4].copy_from_slice(&length.to_le_bytes());
        out.write_all(&record)?;
        *room = record;
        Ok(())
    }

    fn receive(&mut self) -> Outcome<M> {
        let length = self.0.length()?;
        let Frames { into, room, .. } = &mut self.0;
        room.resize(length, 0);
        into.read_exact(room)?;
        Ok(postcard::from_bytes(room)?)
    }
}

/// Bytes as they are.
pub struct Raw<S: Streams>(Frames<S>);

impl<S: Streams> Channel<Vec<u8>> for Raw<S> {
    type Pending = S::Pending;

    fn open() -> Outcome<(S::Pending, Invitation)> {
        S::open()
    }

    fn connect(pending: S::Pending) -> Outcome<Self> {
        Ok(Self(Frames::new(S::connect(pending)?)))
    }

    fn accept(orders: &mut Orders) -> Outcome<Self> {
        Ok(Self(Frames::new(S::accept(orders)?)))
    }

    fn send(&mut self, message: &Vec<u8>) -> Outcome<()> {
        self.0.out.write_all(&u32::try_from(message.len())?.to_le_bytes())?;
        Ok(self.0.out.write_all(message)?)
    }

    fn receive(&mut self) -> Outcome<Vec<u8>> {
        let length = self.0.length()?;
        let mut bytes = Vec::with_capacity(length);
        (&mut self.0.into).take(length as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}
