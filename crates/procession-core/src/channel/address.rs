//! Where a listener can be found.

use std::{
    ffi::OsString,
    fmt::{self, Write},
    io,
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    str::FromStr,
};

/// Where a listener can be found.
///
/// As text it is `unix:/run/service.sock`, `abstract:service` or `tcp:localhost:5000`, which can be parsed again. The
/// shorter `/run/service.sock`, `@service` and `localhost:5000` are understood as well.
///
/// ```
/// use procession_core::channel::Address;
///
/// let address: Address = "localhost:5000".parse()?;
/// assert_eq!(address, Address::from(("localhost", 5000)));
/// assert_eq!(address.to_string(), "tcp:localhost:5000");
/// assert_eq!("tcp:[::1]:80".parse::<Address>()?, Address::from(("::1", 80)));
/// # Ok::<(), procession_core::channel::BadAddress>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A Unix socket at a path, of at most 108 bytes. Who may connect is a matter of the file's mode.
    Path(PathBuf),
    /// A Unix socket under a name that is no file (Linux), of at most 107 bytes. Every process of the machine, or the
    /// container, may connect.
    Abstract(Vec<u8>),
    /// A TCP port.
    Tcp {
        /// The name of a machine, or an IPv4 or IPv6 address; nothing stands for each of this machine's IPv4 addresses.
        host: String,
        /// The port. A listener at port 0 gets a free one.
        port: u16,
    },
}

/// A text that is no [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address: it can be unix:/path, abstract:name or tcp:host:port")]
pub struct BadAddress(String);

impl Address {
    /// Whether descriptors can be sent to a peer there: it is on this machine.
    pub fn is_local(&self) -> bool {
        !matches!(self, Self::Tcp { .. })
    }

    /// What a TCP address stands for, IPv4 first, since that is all that Python's multiprocessing knows.
    ///
    /// Asking a name server may block for longer than any timeout of a caller.
    pub(super) fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if host.is_empty() {
            return Ok(vec![(Ipv4Addr::UNSPECIFIED, port).into()]);
        }
        let mut found: Vec<_> = (host, port).to_socket_addrs()?.collect();
        found.sort_by_key(SocketAddr::is_ipv6);
        Ok(found)
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Path(path.into())
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let host = match address {
            // Without its scope, a link-local address leads nowhere.
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            other => other.ip().to_string(),
        };
        Self::Tcp { host, port: address.port() }
    }
}

impl From<(&str, u16)> for Address {
    fn from((host, port): (&str, u16)) -> Self {
        Self::Tcp { host: host.to_owned(), port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "unix:{}", escaped(path.as_os_str().as_bytes())),
            Self::Abstract(name) => write!(f, "abstract:{}", escaped(name)),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        let path = |path: &[u8]| Self::Path(OsString::from_vec(path.to_owned()).into());
        if let Some(rest) = text.strip_prefix("unix:") {
            return unescaped(rest).filter(|it| !it.is_empty()).map(|it| path(&it)).ok_or_else(bad);
        }
        if let Some(rest) = text.strip_prefix("abstract:") {
            return unescaped(rest).map(Self::Abstract).ok_or_else(bad);
        }
        if text.starts_with(['/', '.']) {
            return Ok(path(text.as_bytes()));
        }
        if let Some(name) = text.strip_prefix('@') {
            return Ok(Self::Abstract(name.into()));
        }
        let (host, port) = text.strip_prefix("tcp:").unwrap_or(text).rsplit_once(':').ok_or_else(bad)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(bad());
        }
        let port = port.parse().map_err(|_| bad())?;
        Ok(Self::Tcp { host: bracketed.unwrap_or(host).to_owned(), port })
    }
}

/// Bytes as a text of one line: what is no readable character is a percent sign and two digits, and so is that sign.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    let escape = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            let _ = write!(text, "%{byte:02x}");
        }
    };
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character == '%' || character.is_control() {
                escape(&mut text, character.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(character);
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.as_bytes().split(|&byte| byte == b'%');
    let mut bytes = parts.next()?.to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        bytes.extend(rest);
    }
    Some(bytes)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_address() -> impl Strategy<Value = Address> {
        let bytes = || proptest::collection::vec(any::<u8>(), 1..20);
        prop_oneof![
            bytes().prop_map(|bytes| Address::Path(OsString::from_vec(bytes).into())),
            bytes().prop_map(Address::Abstract),
            ("[a-z0-9.-]{0,10}", any::<u16>()).prop_map(|(host, port)| Address::Tcp { host, port }),
            any::<SocketAddr>().prop_map(Address::from),
        ]
    }

    proptest! {
        #[test]
        fn every_address_is_read_as_it_was_written(address in any_address()) {
            let text = address.to_string();
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert_eq!(text.parse::<Address>().unwrap(), address);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,30}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
            }
        }
    }

    #[test]
    fn short_forms() {
        let parse = |text: &str| text.parse::<Address>();
        assert_eq!(parse("/run/x:5"), Ok(Address::from(Path::new("/run/x:5"))));
        assert_eq!(parse("./x"), Ok(Address::from(Path::new("./x"))));
        assert_eq!(parse("@a%20"), Ok(Address::Abstract(b"a%20".to_vec())));
        assert_eq!(parse(":80"), Ok(Address::from(("", 80))));
        for wrong in ["", "x", "unix:", "x:", "x:65536", "::1:80", "tcp:x", "abstract:%", "abstract:%g0", "[::1]"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_resolved_with_ipv4_first() {
        assert_eq!(Address::resolve("", 5).unwrap(), ["0.0.0.0:5".parse().unwrap()]);
        assert_eq!(Address::resolve("::1", 5).unwrap(), ["[::1]:5".parse().unwrap()]);
        assert!(Address::resolve("localhost", 5).unwrap()[0].is_ipv4());
    }
}
