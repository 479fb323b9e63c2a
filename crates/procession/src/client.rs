//! Connecting to a listener, and which key is shown.

use std::{fmt, io, time::Duration};

use procession_core::{
    channel::{self, ConnectionError, HandshakeError},
    sync::{Wait, WaitError},
};
use thiserror::Error;

pub use procession_core::channel::AuthenticationError;

use crate::{Address, Connection, current_process};

/// Why two processes did not come together.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// They don't have the same key.
    #[error(transparent)]
    Authentication(#[from] AuthenticationError),
    /// It took too long.
    #[error("timed out")]
    TimedOut,
    /// The other side closed the connection in the middle of the handshake.
    #[error("the other side closed the connection before it was established")]
    Disconnected,
    /// The other side sent something else than a handshake.
    #[error("the other side sent no handshake: it is no listener or client, or has no key")]
    NoHandshake,
    /// The system's error: most of all, that nobody listens at the address.
    #[error(transparent)]
    Io(io::Error),
}

impl From<HandshakeError> for ConnectError {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Authentication(error) => Self::Authentication(error),
            HandshakeError::Connection(error) => error.into(),
        }
    }
}

impl From<ConnectionError> for ConnectError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Wait(WaitError::TimedOut) => Self::TimedOut,
            ConnectionError::Ended | ConnectionError::Truncated => Self::Disconnected,
            ConnectionError::BadLength => Self::NoHandshake,
            ConnectionError::Io(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Self::Disconnected
            }
            ConnectionError::Io(error) => Self::Io(error),
            other => Self::Io(io::Error::other(other)),
        }
    }
}

/// Connects to a [`Listener`](crate::Listener).
///
/// ```
/// use procession::{Client, Connection, Listener};
/// use std::{thread, time::Duration};
///
/// let listener: Listener<String, u32> = Listener::builder().authkey(b"secret").private()?;
/// let server = listener.clone();
/// let server = thread::spawn(move || server.accept().unwrap().send(&"welcome".to_owned()).unwrap());
///
/// let client = Client::new(listener.address()).authkey(b"secret").timeout(Duration::from_secs(10));
/// let connection: Connection<u32, String> = client.connect()?;
/// assert_eq!(connection.recv()?, "welcome");
/// # server.join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use = "nothing is connected before `connect`"]
pub struct Client {
    address: Address,
    key: Key,
    timeout: Option<Duration>,
}

impl Client {
    /// For the listener at an address, with the key of this process.
    ///
    /// ```
    /// use procession::{Address, Client, ConnectError, Connection};
    ///
    /// let nobody = Address::unix("/nonexistent/socket");
    /// let result: Result<Connection<u32, u32>, _> = Client::new(nobody).connect();
    /// assert!(matches!(result, Err(ConnectError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound));
    /// ```
    pub fn new(address: impl Into<Address>) -> Self {
        Self { address: address.into(), key: Key::OfProcess, timeout: None }
    }

    /// The key that the listener has. Without this it is the one of this process, which it has from its parent.
    pub fn authkey(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Key::Given(key.as_ref().to_vec());
        self
    }

    /// No key, for a listener that has none.
    pub fn without_authkey(mut self) -> Self {
        self.key = Key::None;
        self
    }

    /// How long it may take until the connection is there. Without this it takes as long as it takes.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Connects; sends values of type `S` from then on, and receives values of type `R`.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn connect<S, R>(&self) -> Result<Connection<S, R>, ConnectError> {
        let mut wait = self.timeout.map_or_else(Wait::forever, Wait::timeout);
        let core = match self.key.get() {
            Some(key) => channel::connect_authenticated(&self.address.0, &key, &mut wait)?,
            None => channel::connect(&self.address.0, &mut wait)?,
        };
        Ok(Connection::new(core))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Which key is to be shown.
#[derive(Clone)]
pub(crate) enum Key {
    /// That of this process, as it is when it is needed.
    OfProcess,
    /// This one.
    Given(Vec<u8>),
    /// Nothing is to be shown.
    None,
}

impl Key {
    pub(crate) fn get(&self) -> Option<Vec<u8>> {
        match self {
            Self::OfProcess => Some(current_process().authkey().to_vec()),
            Self::Given(key) => Some(key.clone()),
            Self::None => None,
        }
    }
}
