//! Making a manager that is not the usual one.

use std::fmt;

use super::{
    Manager, ManagerError,
    managed::Managed,
    peer::Peer,
    registry::{Register, Registry},
    server::{Helper, ManagerServer},
};
use crate::{Address, process::Current};

/// What a manager's server is to be like. Made by [`Manager::builder`].
///
/// ```
/// use procession::Manager;
///
/// pub struct Counter(u64);
///
/// #[procession::managed]
/// impl Counter {
///     pub fn new(start: u64) -> Self {
///         Self(start)
///     }
///
///     pub fn increment(&mut self, by: u64) -> u64 {
///         self.0 += by;
///         self.0
///     }
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let manager = Manager::builder().register::<Counter>().start()?;
///     let counter = CounterProxy::new(&manager, 40)?;
///     assert_eq!(counter.increment(2)?, 42);
///     Ok(())
/// }
/// ```
#[derive(Clone, Default)]
#[must_use = "nothing is started as yet"]
pub struct ManagerBuilder {
    pub(super) address: Option<Address>,
    authkey: Option<Vec<u8>>,
    pub(super) types: Vec<Register>,
}

impl fmt::Debug for ManagerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key.
        f.debug_struct("ManagerBuilder").field("address", &self.address).finish_non_exhaustive()
    }
}

impl ManagerBuilder {
    /// Where the server is to listen. Without this, it is a Unix socket that only this user's processes can reach.
    ///
    /// Over TCP, messages are authenticated at the beginning of a connection, but not encrypted.
    pub fn address(mut self, address: impl Into<Address>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// The key that clients have to have. Without this, it is that of this process and its children
    /// ([`CurrentProcess::authkey`](crate::process::CurrentProcess::authkey)).
    pub fn authkey(mut self, key: impl AsRef<[u8]>) -> Self {
        self.authkey = Some(key.as_ref().to_vec());
        self
    }

    /// Lets clients make objects of a type of the program's own: see [`managed`](crate::managed).
    pub fn register<T: Managed>(mut self) -> Self {
        self.types.push(Registry::register::<T>);
        self
    }

    /// Starts the server as a process that ends with the manager, and with this process.
    ///
    /// # Errors
    ///
    /// [`ManagerError::Start`]: the process can't be started, or the address can't be had.
    pub fn start(self) -> Result<Manager, ManagerError> {
        let key = self.key();
        let (helper, address) = Helper::start(&self, &key)?;
        match Peer::connect(&address, &key) {
            Ok(peer) => Ok(Manager { peer, helper: Some(helper) }),
            Err(error) => {
                helper.kill();
                Err(error)
            }
        }
    }

    /// Makes a server in this process. It listens, but nobody is served before
    /// [`ManagerServer::serve_forever`].
    ///
    /// # Errors
    ///
    /// [`ManagerError::Start`]: the address can't be had.
    pub fn bind(self) -> Result<ManagerServer, ManagerError> {
        let key = self.key();
        ManagerServer::bind(self.address.as_ref(), &key, &self.types)
    }

    /// Serves in this process, until a client asks for the end ([`Manager::shutdown`]).
    ///
    /// # Errors
    ///
    /// [`ManagerError::Start`]: the address can't be had, or the listener failed.
    pub fn serve_forever(self) -> Result<(), ManagerError> {
        self.bind()?.serve_forever()
    }

    fn key(&self) -> Vec<u8> {
        self.authkey.clone().unwrap_or_else(|| Current::get().authkey.clone())
    }
}
