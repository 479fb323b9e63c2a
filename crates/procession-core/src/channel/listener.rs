//! Listeners, and connecting to them. See `CONNECTION.md`, *Listeners*.

use std::{
    ffi::OsStr,
    fs, io,
    net::SocketAddr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use rustix::{
    fs::Mode,
    io::Errno,
    net::{
        AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with, getpeername,
        getsockname, sockopt,
    },
};

use super::{
    Address, Connection, ConnectionError, Handshake, HandshakeError,
    pending::Pending,
    wait::{poll, poll_one},
};
use crate::{
    process::{self, ForkLocal},
    sync::{Wait, WaitError},
};

/// So many clients at once may be in the middle of a handshake. If one more waits, the one that came first has to go once it has
/// had [`GRACE`], so nobody can keep others out by coming often and saying nothing.
const MOST_PENDING: usize = 64;
/// In this time, those who have the key are done, even when many come at once.
const GRACE: Duration = Duration::from_secs(2);

/// How to listen.
#[derive(Clone, Debug)]
pub struct ListenerOptions {
    /// How many clients the system keeps waiting, while nobody accepts them.
    pub backlog: u32,
    /// The mode of the file of a Unix socket, less what the process's umask takes away. By default only the owner may
    /// connect.
    pub mode: u32,
}

impl Default for ListenerOptions {
    fn default() -> Self {
        Self { backlog: 128, mode: 0o600 }
    }
}

/// Why no client was accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// A client connected, but was not let in. It is disconnected; others can be accepted.
    #[error("a client was not let in: {error}")]
    Client {
        /// Where it came from, as far as that is known.
        peer: Option<Address>,
        /// What it did or didn't do.
        #[source]
        error: HandshakeError,
    },
    /// The wait ended.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// The system's error, most of all that there are too many open descriptors.
    #[error(transparent)]
    Io(io::Error),
}

impl From<ConnectionError> for AcceptError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Wait(error) => Self::Wait(error),
            ConnectionError::Io(error) => Self::Io(error),
            other => Self::Io(io::Error::other(other)),
        }
    }
}

/// A socket that listens: clients [`connect`] to it.
///
/// Several threads may accept, and so may forked children. Dropping it closes the socket; the file of a Unix socket is
/// removed when the process drops it that made it.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: Address,
    file: Option<SocketFile>,
    /// Those in the middle of a handshake while nobody is accepting.
    pending: ForkLocal<Mutex<Vec<Pending>>>,
}

impl Listener {
    /// Listens at an address.
    ///
    /// ```
    /// use procession_core::{channel::{Address, Listener, ListenerOptions, connect}, sync::Wait};
    ///
    /// let listener = Listener::bind(&Address::from(("localhost", 0)), &ListenerOptions::default())?;
    /// let client = connect(listener.address(), &mut Wait::forever())?;
    /// let (connection, _peer) = listener.accept(&mut Wait::forever())?;
    /// client.send(b"hello", &mut Wait::forever())?;
    /// assert_eq!(connection.receive(&mut Wait::forever())?, b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AddrInUse`] if something is there already: another listener, or a file, which one that was killed
    /// leaves behind. A path that is too long is [`io::ErrorKind::InvalidFilename`]. Otherwise as socket(2), bind(2) and
    /// listen(2), or the name of the host is not known.
    pub fn bind(address: &Address, options: &ListenerOptions) -> io::Result<Self> {
        match address {
            Address::Path(path) => Self::at_path(path, None, options),
            Address::Abstract(name) => {
                let socket = new_socket(AddressFamily::UNIX)?;
                rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
                Self::listen(socket, None, options)
            }
            Address::Tcp { host, port } => {
                let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
                for found in Address::resolve(host, *port)? {
                    let socket = new_socket(family(&found))?;
                    // A server that was started anew gets its port at once.
                    sockopt::set_socket_reuseaddr(&socket, true)?;
                    match rustix::net::bind(&socket, &found) {
                        Ok(()) => return Self::listen(socket, None, options),
                        Err(error) => last = error.into(),
                    }
                }
                Err(last)
            }
        }
    }

    /// Listens at a path of its own, in a new folder that only this user can enter. Both are removed with the listener.
    ///
    /// # Errors
    ///
    /// As mkdir(2), in the folder for temporary files, and as [`bind`](Self::bind).
    pub fn private(options: &ListenerOptions) -> io::Result<Self> {
        let folder = PrivateFolder::create()?;
        Self::at_path(&folder.0.join("socket"), Some(folder), options)
    }

    fn at_path(path: &Path, folder: Option<PrivateFolder>, options: &ListenerOptions) -> io::Result<Self> {
        let socket = new_socket(AddressFamily::UNIX)?;
        // The file gets the mode of the socket. To change it afterwards would leave a moment for others.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(options.mode))?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        let file = SocketFile::at(path, folder)?;
        Self::listen(socket, Some(file), options)
    }

    fn listen(socket: OwnedFd, file: Option<SocketFile>, options: &ListenerOptions) -> io::Result<Self> {
        rustix::net::listen(&socket, i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        let address = address_of(getsockname(&socket)?).ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self { socket, address, file, pending: ForkLocal::new() })
    }

    /// One that another process has bound, and whose socket it has handed over. The file stays that process's.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if this is no socket that listens for streams.
    pub fn from_socket(socket: OwnedFd) -> io::Result<Self> {
        let listens = sockopt::socket_acceptconn(&socket).unwrap_or(false)
            && sockopt::socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM);
        let address = getsockname(&socket).ok().and_then(address_of).filter(|_| listens);
        let address = address.ok_or(io::ErrorKind::InvalidInput)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket, address, file: None, pending: ForkLocal::new() })
    }

    /// Where it listens: for clients to [`connect`] to. The port is the real one.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for a client; returns the connection to it, and its address if it has one. Nothing is known of who it is.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Wait`], or [`ConnectionError::Io`], most of all that there are too many open descriptors.
    pub fn accept(&self, wait: &mut Wait<'_>) -> Result<(Connection, Option<Address>), ConnectionError> {
        loop {
            if let Some((socket, peer)) = self.try_accept().map_err(ConnectionError::Io)? {
                return Ok((socket.into(), peer));
            }
            poll_one(self.socket.as_raw_fd(), libc::POLLIN, wait)?;
        }
    }

    /// Waits for a client that has the key.
    ///
    /// Any number of clients are served at once, so one that is slow, or says nothing, holds up nobody but itself. It is
    /// given `patience` for its side of the handshake, or less if many more come meanwhile.
    ///
    /// # Errors
    ///
    /// [`AcceptError`]: one of them is about a client that was not let in, after which the caller may go on.
    pub fn accept_authenticated(
        &self,
        key: &[u8],
        patience: Duration,
        wait: &mut Wait<'_>,
    ) -> Result<(Connection, Option<Address>), AcceptError> {
        let mut pending = Vec::new();
        let result = self.serve(&mut pending, key, patience, wait);
        if !pending.is_empty() {
            lock(self.pending.get()).append(&mut pending);
        }
        result
    }

    fn serve(
        &self,
        pending: &mut Vec<Pending>,
        key: &[u8],
        patience: Duration,
        wait: &mut Wait<'_>,
    ) -> Result<(Connection, Option<Address>), AcceptError> {
        /// So often those are looked for that another thread has left.
        const SLICE: Duration = Duration::from_millis(500);
        loop {
            pending.append(&mut lock(self.pending.get()));
            while pending.len() < MOST_PENDING {
                let Some(client) = self.try_pending(key, patience)? else { break };
                pending.push(client);
            }
            if let Some(place) = pending.iter_mut().position(Pending::is_over) {
                return pending.swap_remove(place).result();
            }
            let now = Instant::now();
            let mut moment = pending.iter().map(Pending::deadline).fold(now + SLICE, Instant::min);
            let mut room = pending.len() < MOST_PENDING;
            if let Some((place, since)) = oldest(pending).filter(|_| !room) {
                room = now >= since + GRACE;
                if !room {
                    moment = moment.min(since + GRACE);
                } else if let Some(client) = self.try_pending(key, patience)? {
                    return std::mem::replace(&mut pending[place], client).given_up();
                }
            }
            let mut entries: Vec<_> = pending.iter().map(Pending::awaited).collect();
            if room {
                entries.push(libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 });
            }
            match poll(&mut entries, &mut wait.no_later_than(moment)) {
                Err(ConnectionError::Wait(WaitError::TimedOut)) => wait.remaining(SLICE).map(drop)?,
                other => other?,
            }
        }
    }

    /// A client that is there already, about to be asked for the key.
    fn try_pending(&self, key: &[u8], patience: Duration) -> Result<Option<Pending>, AcceptError> {
        let Some((socket, peer)) = self.try_accept().map_err(AcceptError::Io)? else { return Ok(None) };
        let handshake = Handshake::listener(key).map_err(AcceptError::Io)?;
        Ok(Some(Pending::new(socket, peer, handshake, patience)))
    }

    /// A client that is there already.
    fn try_accept(&self) -> io::Result<Option<(OwnedFd, Option<Address>)>> {
        loop {
            match acceptfrom_with(&self.socket, SocketFlags::CLOEXEC) {
                Ok((socket, peer)) => {
                    if !self.address.is_local() {
                        no_delay(&socket)?;
                    }
                    return Ok(Some((socket, peer.and_then(address_of))));
                }
                Err(Errno::AGAIN) => return Ok(None),
                // These are about a client that is gone, or couldn't be reached from the start: see accept(2).
                Err(
                    Errno::INTR
                    | Errno::CONNABORTED
                    | Errno::NETDOWN
                    | Errno::PROTO
                    | Errno::NOPROTOOPT
                    | Errno::HOSTDOWN
                    | Errno::NONET
                    | Errno::HOSTUNREACH
                    | Errno::NETUNREACH,
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Closes it, and removes its file.
    ///
    /// # Errors
    ///
    /// The file could not be removed. The socket is closed nevertheless.
    pub fn close(mut self) -> io::Result<()> {
        self.file.take().map_or(Ok(()), SocketFile::remove)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Connects to a listener. Waits while there is no room among the clients that the listener has yet to accept.
///
/// # Errors
///
/// [`ConnectionError::Io`]: nobody listens there ([`io::ErrorKind::ConnectionRefused`], [`io::ErrorKind::NotFound`]), or
/// it can't be reached. [`ConnectionError::Wait`]. How long the resolution of a host's name takes is up to the system.
pub fn connect(address: &Address, wait: &mut Wait<'_>) -> Result<Connection, ConnectionError> {
    match address {
        Address::Path(path) => connect_local(&SocketAddrUnix::new(path).map_err(io_error)?, wait),
        Address::Abstract(name) => connect_local(&SocketAddrUnix::new_abstract_name(name).map_err(io_error)?, wait),
        Address::Tcp { host, port } => {
            let mut last = ConnectionError::Io(io::ErrorKind::AddrNotAvailable.into());
            for found in Address::resolve(host, *port).map_err(ConnectionError::Io)? {
                match connect_remote(&found, wait) {
                    Err(error @ ConnectionError::Io(_)) => last = error,
                    done => return done,
                }
            }
            Err(last)
        }
    }
}

/// Connects to a listener, and proves to each other that both have the key.
///
/// # Errors
///
/// As [`connect`], and [`HandshakeError::Authentication`].
pub fn connect_authenticated(address: &Address, key: &[u8], wait: &mut Wait<'_>) -> Result<Connection, HandshakeError> {
    let connection = connect(address, wait)?;
    Handshake::client(key).map_err(ConnectionError::Io)?.run(&connection, wait)?;
    Ok(connection)
}

/// The address of the other side of a socket, if it has one: clients of Unix sockets have none, and neither have pipes.
pub fn peer_address(socket: BorrowedFd<'_>) -> Option<Address> {
    getpeername(socket).ok().flatten().and_then(address_of)
}

fn connect_local(address: &SocketAddrUnix, wait: &mut Wait<'_>) -> Result<Connection, ConnectionError> {
    /// How long one call waits for room. There is nothing to poll for that.
    const SLICE: Duration = Duration::from_millis(500);
    let socket = new_socket(AddressFamily::UNIX).map_err(ConnectionError::Io)?;
    rustix::io::ioctl_fionbio(&socket, false).map_err(io_error)?;
    loop {
        // With no time left it is tried once nevertheless. The kernel takes zero for ever.
        let slice = wait.remaining(SLICE);
        let limit = slice.unwrap_or_default().max(Duration::from_millis(1));
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(limit)).map_err(io_error)?;
        match rustix::net::connect(&socket, address) {
            Ok(()) => break,
            Err(Errno::AGAIN) => {
                slice?;
                wait.signalled()?;
            }
            Err(Errno::INTR) => wait.signalled()?,
            Err(error) => return Err(io_error(error)),
        }
    }
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, None).map_err(io_error)?;
    Ok(socket.into())
}

fn connect_remote(address: &SocketAddr, wait: &mut Wait<'_>) -> Result<Connection, ConnectionError> {
    let socket = new_socket(family(address)).map_err(ConnectionError::Io)?;
    match rustix::net::connect(&socket, address) {
        Ok(()) => {}
        // Interrupted or not, it goes on by itself.
        Err(Errno::INPROGRESS | Errno::INTR) => {
            poll_one(socket.as_raw_fd(), libc::POLLOUT, wait)?;
            sockopt::socket_error(&socket).and_then(|result| result).map_err(io_error)?;
        }
        Err(error) => return Err(io_error(error)),
    }
    rustix::io::ioctl_fionbio(&socket, false).map_err(io_error)?;
    no_delay(&socket).map_err(ConnectionError::Io)?;
    Ok(socket.into())
}

fn io_error(error: Errno) -> ConnectionError {
    ConnectionError::Io(error.into())
}

/// A stream socket that does not block: listeners and those who connect poll.
fn new_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

fn family(address: &SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// A message is given to the system whole, so nothing is gained by its waiting for more.
fn no_delay(socket: &OwnedFd) -> io::Result<()> {
    Ok(sockopt::set_tcp_nodelay(socket, true)?)
}

/// What the system calls an address. `None` for a Unix socket without a name, as clients have.
fn address_of(address: SocketAddrAny) -> Option<Address> {
    if let Ok(address) = SocketAddr::try_from(address.clone()) {
        return Some(address.into());
    }
    let address = SocketAddrUnix::try_from(address).ok()?;
    if let Some(path) = address.path_bytes() {
        return Some(Address::Path(OsStr::from_bytes(path).into()));
    }
    address.abstract_name().filter(|name| !name.is_empty()).map(|name| Address::Abstract(name.to_vec()))
}

/// The place of the client that came first, and when that was.
fn oldest(pending: &[Pending]) -> Option<(usize, Instant)> {
    pending.iter().map(Pending::since).enumerate().min_by_key(|&(_, since)| since)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The file of a Unix socket. Removed when it is dropped by the process that made it.
#[derive(Debug)]
struct SocketFile {
    /// Absolute: the process may go to another folder.
    path: PathBuf,
    /// By which the file is known from one that has come to its place.
    device: u64,
    inode: u64,
    generation: u32,
    removed: bool,
    /// Removed after it.
    _folder: Option<PrivateFolder>,
}

impl SocketFile {
    fn at(path: &Path, folder: Option<PrivateFolder>) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let metadata = fs::symlink_metadata(&path)?;
        Ok(Self {
            path,
            device: metadata.dev(),
            inode: metadata.ino(),
            generation: process::generation(),
            removed: false,
            _folder: folder,
        })
    }

    fn remove(mut self) -> io::Result<()> {
        self.unlink()
    }

    fn unlink(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.removed, true) || self.generation != process::generation() {
            return Ok(());
        }
        match fs::symlink_metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == (self.device, self.inode) => fs::remove_file(&self.path),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nobody is left to hear of an error.
        let _ = self.unlink();
    }
}

/// A folder that only this user can enter. Removed, if it is empty, when it is dropped by the process that made it.
#[derive(Debug)]
struct PrivateFolder(PathBuf, u32);

impl PrivateFolder {
    fn create() -> io::Result<Self> {
        /// The longest path of a socket, and what comes after the folder's.
        const LONGEST: usize = 108 - "/socket".len();
        let mut random = [0; 8];
        getrandom::fill(&mut random)?;
        let name = format!("procession-{:016x}", u64::from_ne_bytes(random));
        let mut path = std::env::temp_dir().join(&name);
        // The folder for temporary files may be anywhere; /tmp is never far.
        if path.as_os_str().len() > LONGEST {
            path = Path::new("/tmp").join(&name);
        }
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path, process::generation()))
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        if self.1 == process::generation() {
            let _ = fs::remove_dir(&self.0);
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "listener_tests.rs"]
mod tests;
