//! Connections between processes that have nothing in common but an address and a key.

use std::{
    fmt, io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use procession_core::{
    channel::{self, ListenerOptions},
    sync::{Wait, WaitError},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use crate::{
    Address, ConnectError, Connection,
    client::Key,
    handover::{Claimed, Lent},
};

/// How long a client may take for its side of the handshake, unless the listener says otherwise.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why no client was accepted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// A client was not let in, and is disconnected. That concerns nobody else: go on accepting.
    #[error("a client was not let in: {error}")]
    Client {
        /// Where it came from, if that is known.
        peer: Option<Address>,
        /// What it did, or didn't do.
        #[source]
        error: ConnectError,
    },
    /// No client came in time.
    #[error("no client came in time")]
    TimedOut,
    /// The system's error, most of all that too many files are open.
    #[error("can't accept: {0}")]
    Io(#[source] io::Error),
}

impl From<channel::AcceptError> for AcceptError {
    fn from(error: channel::AcceptError) -> Self {
        match error {
            channel::AcceptError::Client { peer, error } => {
                Self::Client { peer: peer.map(Address::from), error: error.into() }
            }
            channel::AcceptError::Wait(WaitError::TimedOut) => Self::TimedOut,
            channel::AcceptError::Wait(other) => Self::Io(io::Error::other(other)),
            channel::AcceptError::Io(error) => Self::Io(error),
        }
    }
}

/// Accepts connections at an address from [`Client`](crate::Client)s that have the same key; sends values of type `S` to them and receives
/// values of type `R`.
///
/// Clones are the same listener, and several threads may accept. The socket is closed with the last clone, and the file of
/// a Unix socket is removed. (After a kill it stays there; remove it before listening again.)
///
/// A listener can be sent to other processes of this machine, which then accept too, each client in one of them. The file
/// goes with the process that bound it.
///
/// # Keys
///
/// Each side proves to the other that it has the key, which is never sent, before anything else is received. The
/// messages of that are those of Python's multiprocessing, so a Python `Client` can connect. Its values are pickles, though:
/// exchange bytes with it by `Listener<Vec<u8>, Vec<u8>>` and `send_bytes()`.
///
/// What follows is neither encrypted nor signed. Over networks that others can read, use a tunnel.
///
/// # Examples
///
/// ```
/// use procession::{Address, Client, Connection, Listener, Process};
///
/// fn client(address: Address) {
///     // A child has the key of its parent.
///     let connection: Connection<String, u32> = Client::new(address).connect().unwrap();
///     connection.send(&"how many?".to_owned()).unwrap();
///     assert_eq!(connection.recv().unwrap(), 42);
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let listener: Listener<u32, String> = Listener::private()?;
///     let child = Process::spawn(client, (listener.address().clone(),))?;
///     let connection = listener.accept()?;
///     assert_eq!(connection.recv()?, "how many?");
///     connection.send(&42)?;
///     child.join()?;
///     Ok(())
/// }
/// ```
pub struct Listener<S, R> {
    shared: Arc<Shared>,
    types: PhantomData<fn(S) -> R>,
}

struct Shared {
    core: channel::Listener,
    address: Address,
    key: Option<Vec<u8>>,
    patience: Duration,
    message_limit: usize,
}

impl<S, R> Listener<S, R> {
    /// Listens at an address, with the key of this process.
    ///
    /// ```
    /// use procession::Listener;
    ///
    /// let listener = Listener::<u32, u32>::bind(("localhost", 0))?;
    /// assert_ne!(listener.address().port(), Some(0));
    /// let error = Listener::<u32, u32>::bind(listener.address()).unwrap_err();
    /// assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AddrInUse`] if another one listens there, or there is a file of that name; otherwise as socket(2) and
    /// bind(2), or the name of the host is not known.
    pub fn bind(address: impl Into<Address>) -> io::Result<Self> {
        ListenerBuilder::new().bind(address)
    }

    /// Listens at a Unix socket of its own, in a new folder that only this user can enter. Its [`address`](Self::address) has to be
    /// told to clients.
    ///
    /// ```
    /// let listener = procession::Listener::<u32, u32>::private()?;
    /// assert!(listener.address().path().unwrap().exists());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As mkdir(2) in the folder for temporary files, and as [`bind`](Self::bind).
    pub fn private() -> io::Result<Self> {
        ListenerBuilder::new().private()
    }

    /// A listener with other than the usual properties.
    ///
    /// ```
    /// use procession::{Address, Listener};
    ///
    /// let address = Address::tcp("localhost", 0);
    /// let listener: Listener<u32, u32> = Listener::builder().authkey(b"our secret").backlog(5).bind(address)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn builder() -> ListenerBuilder<S, R> {
        ListenerBuilder::new()
    }

    /// Where it listens, for a [`Client`](crate::Client). If it was bound to port 0, this is the port it got.
    ///
    /// ```
    /// let listener = procession::Listener::<u32, u32>::private()?;
    /// assert!(listener.address().is_local());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// Waits for a client that has the key.
    ///
    /// Clients that are slow in showing theirs hold up nobody else.
    ///
    /// ```
    /// use procession::{AcceptError, Client, ConnectError, Listener};
    /// use std::thread;
    ///
    /// let listener = Listener::<u32, u32>::private()?;
    /// let stranger = Client::new(listener.address()).authkey(b"found in the street");
    /// let stranger = thread::spawn(move || stranger.connect::<u32, u32>());
    /// match listener.accept() {
    ///     Err(AcceptError::Client { error: ConnectError::Authentication(_), .. }) => {}
    ///     other => panic!("{other:?}"),
    /// }
    /// assert!(matches!(stranger.join().unwrap(), Err(ConnectError::Authentication(_))));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`AcceptError`]. One of them is about a client that was not let in: whoever serves others goes on after it.
    pub fn accept(&self) -> Result<Connection<S, R>, AcceptError> {
        self.accept_within(&mut Wait::forever())
    }

    /// Waits for a client for at most this long.
    ///
    /// ```
    /// use procession::{AcceptError, Listener};
    /// use std::time::Duration;
    ///
    /// let listener = Listener::<u32, u32>::private()?;
    /// let result = listener.accept_timeout(Duration::from_millis(5));
    /// assert!(matches!(result, Err(AcceptError::TimedOut)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`AcceptError::TimedOut`], or as [`accept`](Self::accept).
    pub fn accept_timeout(&self, timeout: Duration) -> Result<Connection<S, R>, AcceptError> {
        self.accept_within(&mut Wait::timeout(timeout))
    }

    fn with(core: channel::Listener, key: Option<Vec<u8>>, patience: Duration, message_limit: usize) -> Self {
        let address = core.address().clone().into();
        Self { shared: Arc::new(Shared { core, address, key, patience, message_limit }), types: PhantomData }
    }

    fn accept_within(&self, wait: &mut Wait<'_>) -> Result<Connection<S, R>, AcceptError> {
        let shared = &*self.shared;
        let (core, _peer) = match &shared.key {
            Some(key) => shared.core.accept_authenticated(key, shared.patience, wait)?,
            None => shared.core.accept(wait).map_err(channel::AcceptError::from)?,
        };
        let connection = Connection::new(core);
        connection.set_message_limit(shared.message_limit);
        Ok(connection)
    }

    /// The clients that come, one after another, without an end.
    ///
    /// ```
    /// use procession::{Client, Connection, Listener};
    /// use std::thread;
    ///
    /// let listener = Listener::<u32, ()>::private()?;
    /// let address = listener.address().clone();
    /// let client = thread::spawn(|| {
    ///     let connection: Connection<(), u32> = Client::new(address).connect().unwrap();
    ///     connection.recv().unwrap()
    /// });
    /// for connection in listener.incoming().flatten().take(1) {
    ///     connection.send(&1)?;
    /// }
    /// assert_eq!(client.join().unwrap(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn incoming(&self) -> impl Iterator<Item = Result<Connection<S, R>, AcceptError>> {
        std::iter::repeat_with(|| self.accept())
    }
}

impl<S, R> Clone for Listener<S, R> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), types: PhantomData }
    }
}

impl<S, R> fmt::Debug for Listener<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("address", self.address()).finish_non_exhaustive()
    }
}

impl<S, R> Serialize for Listener<S, R> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        let Shared { key, patience, message_limit, .. } = &*self.shared;
        // The descriptor goes only where the key may go too.
        (Lent::own(self.as_fd()), key, patience, *message_limit as u64).serialize(serializer)
    }
}

impl<'de, S, R> Deserialize<'de> for Listener<S, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (Claimed(socket), key, patience, limit): (_, _, _, u64) = Deserialize::deserialize(deserializer)?;
        let core = channel::Listener::from_socket(socket).map_err(de::Error::custom)?;
        let message_limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(Self::with(core, key, patience, message_limit))
    }
}

/// Readable when a client has connected: see [`wait`](crate::wait()). It may turn out not to have the key.
impl<S, R> AsFd for Listener<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.core.as_fd()
    }
}

/// The properties of a [`Listener`].
#[must_use = "nothing listens before `bind` or `private`"]
pub struct ListenerBuilder<S, R> {
    key: Key,
    options: ListenerOptions,
    patience: Duration,
    message_limit: usize,
    types: PhantomData<fn(S) -> R>,
}

impl<S, R> ListenerBuilder<S, R> {
    /// The usual properties: the key of this process, a backlog of 128 clients, 20 seconds for each handshake, messages
    /// of any length.
    ///
    /// ```
    /// use procession::{Listener, ListenerBuilder};
    ///
    /// let listener: Listener<u32, u32> = ListenerBuilder::new().private()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new() -> Self {
        Self {
            key: Key::OfProcess,
            options: ListenerOptions::default(),
            patience: PATIENCE,
            message_limit: usize::MAX,
            types: PhantomData,
        }
    }

    /// The key that clients have to have. Without this it is the one of this process, which its children have too.
    ///
    /// ```
    /// let listener: procession::Listener<u32, u32> = procession::Listener::builder().authkey(b"our secret").private()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn authkey(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Key::Given(key.as_ref().to_vec());
        self
    }

    /// No key: whoever can connect is accepted, and nobody is asked to prove anything.
    ///
    /// ```
    /// let listener: procession::Listener<u32, u32> = procession::Listener::builder().without_authkey().private()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn without_authkey(mut self) -> Self {
        self.key = Key::None;
        self
    }

    /// How many clients may wait to be accepted. Others wait in [`Client::connect`](crate::Client::connect).
    ///
    /// ```
    /// let listener: procession::Listener<u32, u32> = procession::Listener::builder().backlog(1000).private()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn backlog(mut self, clients: u32) -> Self {
        self.options.backlog = clients;
        self
    }

    /// The mode of the file of a Unix socket, less what the umask takes away. Without this it is `0o600`: only the owner may
    /// connect.
    ///
    /// ```
    /// let listener: procession::Listener<u32, u32> = procession::Listener::builder().mode(0o660).private()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn mode(mut self, mode: u32) -> Self {
        self.options.mode = mode;
        self
    }

    /// How long a client may take to show that it has the key.
    ///
    /// ```
    /// use procession::Listener;
    /// use std::time::Duration;
    ///
    /// let listener: Listener<u32, u32> = Listener::builder().handshake_timeout(Duration::from_secs(2)).private()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.patience = timeout;
        self
    }

    /// The longest message that clients may send: see [`Connection::set_message_limit`].
    ///
    /// ```
    /// let listener: procession::Listener<u32, u32> = procession::Listener::builder().message_limit(1 << 20).private()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn message_limit(mut self, bytes: usize) -> Self {
        self.message_limit = bytes;
        self
    }

    /// Listens at an address.
    ///
    /// # Errors
    ///
    /// As [`Listener::bind`].
    pub fn bind(&self, address: impl Into<Address>) -> io::Result<Listener<S, R>> {
        self.listener(channel::Listener::bind(&address.into().0, &self.options)?)
    }

    /// Listens at a Unix socket of its own.
    ///
    /// # Errors
    ///
    /// As [`Listener::private`].
    pub fn private(&self) -> io::Result<Listener<S, R>> {
        self.listener(channel::Listener::private(&self.options)?)
    }

    fn listener(&self, core: channel::Listener) -> io::Result<Listener<S, R>> {
        Ok(Listener::with(core, self.key.get(), self.patience, self.message_limit))
    }
}

impl<S, R> Default for ListenerBuilder<S, R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S, R> Clone for ListenerBuilder<S, R> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), options: self.options.clone(), ..*self }
    }
}

impl<S, R> fmt::Debug for ListenerBuilder<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}
