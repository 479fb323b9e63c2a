//! Typed messages between two processes: [`Connection`], its errors, and what few programs name.

use std::{
    fmt, io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use procession_core::{channel, sync::Wait};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod end;
mod error;
#[cfg(feature = "tokio")]
mod tokio;
mod turn;

pub use error::{RecvError, RecvTimeoutError, SendError, TryRecvError};

pub(crate) use end::End;
use turn::Until;

use crate::{
    Address, Message,
    handover::{Claimed, Lent},
};

/// One end of a connection between two processes: sends values of type `S`, and receives values of type `R`.
///
/// It comes from [`pipe`](crate::pipe()), a [`Listener`](crate::Listener), or a [`Client`](crate::Client). Values are
/// messages: each arrives whole or not at all, in order. Clones are the same end, which is closed when the last of them is
/// dropped. Several threads may use one; a message of one is never mixed with another's.
///
/// A connection can be sent to another process of this machine, as an argument or within a message. Then both processes have
/// this end: the other side sees it closed when both have dropped it. Messages of up to 64 KiB through a
/// [`pipe`](crate::pipe()) may be sent by any number of processes at once. For longer ones, and for those of listeners and
/// clients, processes have to take turns at one end, as two that write to one file.
///
/// # Waiting
///
/// [`recv`](Self::recv) waits for ever, [`recv_timeout`](Self::recv_timeout) for some time, [`try_recv`](Self::try_recv)
/// not at all. Signals don't end a wait. [`wait`](crate::wait()) waits for many connections, queues and children. A
/// [`send`](Self::send) waits while the other side doesn't receive and the system's buffer is full. With the feature `tokio`
/// there are `recv_async` and `send_async`.
///
/// # What ends
///
/// A process that ends, however it does, closes its ends. What it sent before is still received, and then
/// [`RecvError::Disconnected`] is. Of a long message in whose middle it was killed, one learns by [`RecvError::Truncated`].
///
/// # Examples
///
/// ```
/// use procession::{Connection, Process, pipe};
///
/// fn shout(connection: Connection<String, String>) {
///     while let Ok(text) = connection.recv() {
///         connection.send(&text.to_uppercase()).unwrap();
///     }
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let (ours, theirs) = pipe()?;
///     let child = Process::spawn(shout, (theirs,))?;
///     ours.send(&"hello".to_owned())?;
///     assert_eq!(ours.recv()?, "HELLO");
///     drop(ours);
///     child.join()?;
///     Ok(())
/// }
/// ```
pub struct Connection<S, R> {
    end: Arc<End>,
    types: PhantomData<fn(S) -> R>,
}

/// The type of messages that there are none of: see [`Sender`] and [`Receiver`].
///
/// ```compile_fail
/// let (receiver, sender) = procession::one_way_pipe::<u32>().unwrap();
/// receiver.send(&1); // there is no such method for it
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Never {}

/// An end that only sends. It comes from [`one_way_pipe`](crate::one_way_pipe()) or [`Connection::split`].
///
/// ```
/// fn squares(results: procession::Sender<u64>) {
///     for number in 0..3 {
///         results.send(&(number * number)).unwrap();
///     }
/// }
///
/// let (receiver, sender) = procession::one_way_pipe()?;
/// squares(sender);
/// assert_eq!(receiver.iter().map(Result::unwrap).sum::<u64>(), 5);
/// # Ok::<(), std::io::Error>(())
/// ```
pub type Sender<T> = Connection<T, Never>;

/// An end that only receives. It comes from [`one_way_pipe`](crate::one_way_pipe()) or [`Connection::split`].
///
/// ```
/// fn total(numbers: procession::Receiver<u64>) -> u64 {
///     numbers.iter().map(Result::unwrap).sum()
/// }
///
/// let (receiver, sender) = procession::one_way_pipe()?;
/// sender.send(&1)?;
/// sender.send(&2)?;
/// drop(sender);
/// assert_eq!(total(receiver), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Receiver<T> = Connection<Never, T>;

impl<S, R> Connection<S, R> {
    pub(crate) fn new(core: channel::Connection) -> Self {
        Self::with(Arc::new(End::new(core)))
    }

    fn with(end: Arc<End>) -> Self {
        Self { end, types: PhantomData }
    }

    /// Waits for at most this long until there is something to receive; whether there is. The end of the other side is
    /// something: receiving tells of it.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let (ours, theirs) = procession::pipe::<u32, u32>()?;
    /// assert!(!theirs.poll(Duration::ZERO)?);
    /// ours.send(&5)?;
    /// assert!(theirs.poll(Duration::from_secs(1))?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// None is known.
    pub fn poll(&self, timeout: Duration) -> io::Result<bool> {
        self.end.core().poll(&mut Wait::timeout(timeout)).map_err(io::Error::other)
    }

    /// The longest message that is received, in bytes.
    pub fn message_limit(&self) -> usize {
        self.end.limit()
    }

    /// Has no message received that is longer than so many bytes. Without it, each has as long as memory allows, which is
    /// taken as the bytes arrive and not on the word of the peer.
    ///
    /// A longer message is [`RecvError::TooLong`], and nothing can be received after it.
    ///
    /// ```
    /// use procession::RecvError;
    ///
    /// let (ours, theirs) = procession::pipe::<Vec<u8>, ()>()?;
    /// theirs.set_message_limit(1000);
    /// ours.send(&vec![0; 1001])?;
    /// assert!(matches!(theirs.recv(), Err(RecvError::TooLong { length: 1001, .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_message_limit(&self, bytes: usize) {
        self.end.set_limit(bytes);
    }

    /// The address of the other side, if it is one of a listener or a TCP client.
    ///
    /// ```
    /// let (ours, _theirs) = procession::pipe::<u32, u32>()?;
    /// assert_eq!(ours.peer_address(), None);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn peer_address(&self) -> Option<Address> {
        channel::peer_address(self.as_fd()).map(Address::from)
    }

    /// The two directions, for two owners. The connection is closed when both are dropped.
    ///
    /// ```
    /// let (ours, theirs) = procession::pipe::<u32, String>()?;
    /// let (sender, receiver) = theirs.split();
    /// sender.send(&"one".to_owned())?;
    /// ours.send(&1)?;
    /// assert_eq!((receiver.recv()?, ours.recv()?), (1, "one".to_owned()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn split(self) -> (Sender<S>, Receiver<R>) {
        (Connection::with(self.end.clone()), Connection::with(self.end))
    }
}

impl<S: Message, R> Connection<S, R> {
    /// Sends a value. Waits while there is no room for it.
    ///
    /// It is only looked at, so it isn't lost if this fails, and one value can be sent to many. A `Vec` of bytes or numbers, or a
    /// `String`, is sent from where it lies.
    ///
    /// ```
    /// use procession::SendError;
    ///
    /// let (ours, theirs) = procession::pipe::<Vec<f64>, ()>()?;
    /// let numbers = vec![1.5; 1000];
    /// ours.send(&numbers)?;
    /// drop(theirs);
    /// assert!(matches!(ours.send(&numbers), Err(SendError::Disconnected)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SendError`].
    pub fn send(&self, value: &S) -> Result<(), SendError> {
        self.end.send(value)
    }
}

impl<S, R: Message> Connection<S, R> {
    /// Receives a value. Waits until there is one.
    ///
    /// ```
    /// use procession::RecvError;
    ///
    /// let (ours, theirs) = procession::pipe::<String, String>()?;
    /// ours.send(&"the last words".to_owned())?;
    /// drop(ours);
    /// assert_eq!(theirs.recv()?, "the last words");
    /// assert!(matches!(theirs.recv(), Err(RecvError::Disconnected)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`RecvError`], of which [`RecvError::Disconnected`] is the usual end.
    pub fn recv(&self) -> Result<R, RecvError> {
        self.end.receive(Until::Forever).and_then(|value| value.ok_or(RecvError::OutOfStep))
    }

    /// Receives a value that is there already. If a long one has come in part, the next call goes on with it.
    ///
    /// ```
    /// use procession::TryRecvError;
    ///
    /// let (ours, theirs) = procession::pipe::<u32, u32>()?;
    /// assert!(matches!(ours.try_recv(), Err(TryRecvError::Empty)));
    /// theirs.send(&7)?;
    /// assert_eq!(ours.try_recv()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`TryRecvError::Empty`], also while another thread is receiving, or as [`recv`](Self::recv).
    pub fn try_recv(&self) -> Result<R, TryRecvError> {
        self.end.receive(Until::Now)?.ok_or(TryRecvError::Empty)
    }

    /// Receives a value. Waits for at most this long. If a long one has come in part by then, the next call goes on with it.
    ///
    /// ```
    /// use procession::RecvTimeoutError;
    /// use std::time::Duration;
    ///
    /// let (ours, _theirs) = procession::pipe::<u32, u32>()?;
    /// assert!(matches!(ours.recv_timeout(Duration::from_millis(5)), Err(RecvTimeoutError::TimedOut)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError::TimedOut`], or as [`recv`](Self::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<R, RecvTimeoutError> {
        self.end.receive(Until::timeout(timeout))?.ok_or(RecvTimeoutError::TimedOut)
    }

    /// What is received until the other side is closed.
    ///
    /// ```
    /// let (ours, theirs) = procession::pipe::<u32, u32>()?;
    /// for number in 0..3 {
    ///     ours.send(&number)?;
    /// }
    /// drop(ours);
    /// let numbers: Vec<u32> = theirs.iter().collect::<Result<_, _>>()?;
    /// assert_eq!(numbers, [0, 1, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn iter(&self) -> Iter<'_, S, R> {
        Iter(self)
    }
}

impl<S, R> Clone for Connection<S, R> {
    fn clone(&self) -> Self {
        Self::with(self.end.clone())
    }
}

impl<S, R> fmt::Debug for Connection<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("fd", &self.as_fd()).finish_non_exhaustive()
    }
}

impl<S, R> AsFd for Connection<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

/// Over a socket or a pipe that something else has made. Its messages are those of Python's multiprocessing: a length of
/// four bytes, big endian, and the value.
impl<S, R> From<OwnedFd> for Connection<S, R> {
    fn from(fd: OwnedFd) -> Self {
        Self::new(fd.into())
    }
}

impl<S, R> Serialize for Connection<S, R> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        (Lent::own(self.as_fd()), self.message_limit() as u64).serialize(serializer)
    }
}

impl<'de, S, R> Deserialize<'de> for Connection<S, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (Claimed(fd), limit) = <(Claimed, u64)>::deserialize(deserializer)?;
        let connection = Self::from(fd);
        connection.set_message_limit(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(connection)
    }
}

/// What is received over a [`Connection`] until the other side is closed.
#[derive(Debug)]
#[must_use = "nothing was received as yet"]
pub struct Iter<'a, S, R>(&'a Connection<S, R>);

impl<S, R: Message> Iterator for Iter<'_, S, R> {
    type Item = Result<R, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.0.recv() {
            Err(RecvError::Disconnected) => None,
            other => Some(other),
        }
    }
}

impl<'a, S, R: Message> IntoIterator for &'a Connection<S, R> {
    type Item = Result<R, RecvError>;
    type IntoIter = Iter<'a, S, R>;

    fn into_iter(self) -> Iter<'a, S, R> {
        self.iter()
    }
}
