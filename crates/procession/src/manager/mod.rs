//! Managers: a server process that keeps objects which other processes use through proxies, on this machine or another.
//!
//! A [`Manager`] starts the server and makes objects in it: dictionaries, lists, queues, locks and values of the
//! program's own types ([`managed`](crate::managed)). What it returns is a proxy. Each call of a proxy's method is done
//! by the server; the arguments go there, and the result comes back.
//!
//! ```
//! use procession::{Manager, Process, manager::DictProxy};
//!
//! fn count_words(counts: DictProxy<String, usize>, text: String) {
//!     for word in text.split_whitespace() {
//!         let count = counts.get(word).unwrap().unwrap_or_default();
//!         counts.set(word.to_string(), count + 1).unwrap();
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     procession::init();
//!     let manager = Manager::new()?;
//!     let counts = manager.dict([])?;
//!     Process::spawn(count_words, (counts.clone(), "to be or not to be".into()))?.join()?;
//!     assert_eq!(counts.get("be")?, Some(2));
//!     Ok(())
//! }
//! ```
//!
//! # What is slow and what isn't
//!
//! A call is a message to another process and back: some ten microseconds. Related processes of one machine share data and wait
//! for each other much more quickly through [`Lock`](crate::Lock), [`Queue`](crate::Queue) and the others that stand on shared memory. A manager is for
//! what these can't do: dictionaries and lists, types of one's own, and other machines.
//!
//! # Proxies
//!
//! A proxy is cheap to clone, can be used from any thread, and can be sent to wherever a message goes: as an argument of a process, through
//! a queue or a connection, as a task of a pool, or into another object of a manager. The object lives as
//! long as there is a proxy of it, in whatever process, or on its way to one.
//!
//! The manager's key goes with a proxy only to processes on the same machine. A process of another machine has to
//! [connect](Manager::connect) first.
//!
//! Where a lock, semaphore or queue in shared memory returns an error because it would have to wait, or timed out, a proxy returns
//! `Ok(None)` or `Ok(false)`: its [`ManagerError`] means that the manager can't be asked, so that `?` can pass it on,
//! and that an object was busy is an answer. (Putting gives the item back, and a barrier that timed out is broken: these
//! are errors here too.)
//!
//! # Death
//!
//! The server ends with its [`Manager`], and with the process that started it. Then each call fails at once, also those that wait. A
//! process that dies while it holds a lock or a permit of a manager doesn't keep it; what it referred to is freed.

mod barrier;
mod builder;
mod condition;
mod dict;
mod error;
mod event;
mod list;
mod lock;
mod managed;
mod peer;
mod queue;
mod reference;
mod registry;
mod semaphore;
mod server;
mod value;
mod wire;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

pub use barrier::BarrierProxy;
pub use builder::ManagerBuilder;
pub use condition::{ConditionProxy, ConditionProxyGuard};
pub use dict::{DictProxy, NamespaceProxy};
pub use error::{ManagerError, Refusal};
pub use event::EventProxy;
pub use list::{ArrayProxy, ListProxy};
pub use lock::{Died, LockProxy, LockProxyGuard, RLockProxy, RLockProxyGuard};
pub use managed::{Managed, ManagedProxy};
pub use queue::{JoinableQueueProxy, QueueProxy, QueuePutError};
pub use semaphore::{BoundedSemaphoreProxy, Permit as PermitProxy, SemaphoreProxy};
pub use server::ManagerServer;
pub use value::ValueProxy;

#[doc(hidden)]
pub mod __private {
    //! For what `#[procession::managed]` generates.
    pub use super::managed::{Arguments, Unexposed, construct_unknown, create};
    pub use procession_core::manager::Failure;
    pub use serde;
}

use crate::Address;
use peer::Peer;
use procession_core::{manager::protocol::ServerId, sync::Wait};
use reference::Reference;
use server::Helper;
use wire::Writer;

/// A server of objects that processes share, and the way to make objects in it: see the [module](self).
///
/// One that has started its server ends it when it is dropped, or when the process ends. One that is connected to a server
/// leaves it alone.
#[derive(Debug)]
pub struct Manager {
    peer: Arc<Peer>,
    /// The server, if this has started it.
    helper: Option<Helper>,
}

impl Manager {
    /// Starts a server that only this user's processes can reach, and which has the standard types.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let list = manager.list([1, 2, 3])?;
    ///     assert_eq!(list.len()?, 3);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ManagerError::Start`]: the process can't be started.
    pub fn new() -> Result<Self, ManagerError> {
        Self::builder().start()
    }

    /// For a server at an address of its own, or with other types than the standard ones.
    pub fn builder() -> ManagerBuilder {
        ManagerBuilder::default()
    }

    /// Connects to a server that is there already, on this machine or another one.
    ///
    /// ```
    /// use procession::{Address, Manager};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let address = Address::tcp("localhost", 0);
    ///     let manager = Manager::builder().address(address).authkey("a secret").start()?;
    ///
    ///     // As another machine would do it:
    ///     let remote = Manager::connect(manager.address(), "a secret")?;
    ///     assert_eq!(remote.list(["x".to_string()])?.to_vec()?, ["x"]);
    ///     assert!(Manager::connect(manager.address(), "a guess").is_err());
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ManagerError::Unreachable`], [`ManagerError::Authkey`], [`ManagerError::Protocol`].
    pub fn connect(address: impl Into<Address>, authkey: impl AsRef<[u8]>) -> Result<Self, ManagerError> {
        Ok(Self { peer: Peer::connect(&address.into(), authkey.as_ref())?, helper: None })
    }

    /// Where its server is. If it was told to listen at port 0, this has the real one.
    pub fn address(&self) -> &Address {
        &self.peer.address
    }

    /// Ends the server, whoever started it. Its objects are gone with it.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let value = manager.value(5)?;
    ///     manager.shutdown()?;
    ///     assert!(value.get().is_err());
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn shutdown(mut self) -> Result<(), ManagerError> {
        self.peer.client.shut_down(&mut Wait::forever())?;
        if let Some(helper) = self.helper.take() {
            helper.end();
        }
        Ok(())
    }

    /// How many objects the server has.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let value = manager.value(5)?;
    ///     assert_eq!(manager.number_of_objects()?, 1);
    ///     drop(value);
    ///     assert_eq!(manager.number_of_objects()?, 0);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn number_of_objects(&self) -> Result<usize, ManagerError> {
        Ok(self.peer.client.number_of_objects(&mut Wait::forever())? as usize)
    }

    /// The process of the server, if this has started it.
    pub fn pid(&self) -> Option<u32> {
        self.helper.as_ref().map(Helper::pid)
    }

    fn make(&self, name: &str, arguments: &Writer) -> Result<Reference, ManagerError> {
        Reference::create(&self.peer, name, arguments)
    }

    fn server(&self) -> ServerId {
        self.peer.client.server()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(helper) = self.helper.take().filter(Helper::is_own) {
            let _ = self.peer.client.shut_down(&mut Wait::timeout(server::PATIENCE));
            helper.end();
        }
    }
}

/// The moment at which a time to wait is over, counted from now.
fn deadline(limit: u64) -> Option<Instant> {
    if limit == wire::FOREVER { None } else { Instant::now().checked_add(Duration::from_nanos(limit)) }
}
