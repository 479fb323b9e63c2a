//! Where a listener can be found.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use procession_core::channel;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use procession_core::channel::BadAddress;

/// Where a [`Listener`](crate::Listener) can be found: a Unix socket, at a path or under an abstract name, or a TCP port.
///
/// As text it is `unix:/run/service.sock`, `abstract:service` or `tcp:localhost:5000`, which can be parsed again; so can
/// `/run/service.sock`, `@service` and `localhost:5000`. It is a message as well.
///
/// ```
/// use procession::Address;
///
/// let address: Address = "localhost:5000".parse()?;
/// assert_eq!(address, Address::tcp("localhost", 5000));
/// assert_eq!(Address::unix("/run/service.sock").to_string(), "unix:/run/service.sock");
/// # Ok::<(), procession::BadAddress>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub(crate) channel::Address);

impl Address {
    /// A Unix socket at a path, of at most 108 bytes.
    ///
    /// ```
    /// assert!(procession::Address::unix("/run/service.sock").is_local());
    /// ```
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self(channel::Address::Path(path.into()))
    }

    /// A Unix socket under a name that is no file. Every process on the machine, or in the container, may connect to it, so the key
    /// is all that keeps strangers out.
    ///
    /// ```
    /// assert_eq!(procession::Address::abstract_name("service").to_string(), "abstract:service");
    /// ```
    pub fn abstract_name(name: impl Into<Vec<u8>>) -> Self {
        Self(channel::Address::Abstract(name.into()))
    }

    /// A TCP port, of a machine's name or its IPv4 or IPv6 address. No host stands for each IPv4 address of this machine, and
    /// a listener at port 0 gets a free one.
    ///
    /// ```
    /// assert_eq!(procession::Address::tcp("::1", 5000).to_string(), "tcp:[::1]:5000");
    /// ```
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self(channel::Address::Tcp { host: host.into(), port })
    }

    /// The path, if it is one.
    ///
    /// ```
    /// use procession::Address;
    ///
    /// assert!(Address::unix("/run/service.sock").path().is_some());
    /// assert!(Address::tcp("localhost", 5000).path().is_none());
    /// ```
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            channel::Address::Path(path) => Some(path),
            _ => None,
        }
    }

    /// The port, if it is one.
    ///
    /// ```
    /// assert_eq!(procession::Address::tcp("localhost", 5000).port(), Some(5000));
    /// ```
    pub fn port(&self) -> Option<u16> {
        match &self.0 {
            channel::Address::Tcp { port, .. } => Some(*port),
            _ => None,
        }
    }

    /// Whether it is a Unix socket, whose clients are on this machine: values with descriptors can be sent to them.
    ///
    /// ```
    /// assert!(!procession::Address::tcp("localhost", 5000).is_local());
    /// ```
    pub fn is_local(&self) -> bool {
        self.0.is_local()
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        text.parse().map(Self)
    }
}

impl From<&Address> for Address {
    fn from(address: &Self) -> Self {
        address.clone()
    }
}

impl From<channel::Address> for Address {
    fn from(address: channel::Address) -> Self {
        Self(address)
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self(address.into())
    }
}

impl From<(&str, u16)> for Address {
    fn from(address: (&str, u16)) -> Self {
        Self(address.into())
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::unix(path)
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::unix(path)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
