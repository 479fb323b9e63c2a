//! Managers: a server process that keeps objects, and clients that call their methods.
//!
//! It deals in numbers of objects, names of methods, and bytes. A face supplies the types ([`Types`], [`Object`]) and what
//! the bytes mean; its proxies stand on [`Client`].
//!
//! * [`Server`]: keeps the objects, and counts who refers to them
//! * [`Client`]: asks a server
//! * [`protocol`]: the messages between the two
//!
//! How they work together, and what happens when one of them dies, is in `PROTOCOL.md` beside this file.

mod caller;
mod client;
mod objects;
pub mod protocol;
mod server;

use std::sync::Arc;

pub use caller::{Caller, Ended, Gone, Waiting};
pub use client::{Answer, CallError, Client};
pub use objects::Held;
pub use server::{ServeError, Server};

use protocol::ClientId;

/// An object that a server keeps.
///
/// Its methods are called by one thread for each client that calls, at the same time.
pub trait Object: Send + Sync + 'static {
    /// What its type is called, for messages.
    fn type_name(&self) -> &str;

    /// Calls a method; returns the bytes of the result.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure>;

    /// A client is gone: whatever it has of this object (a lock, permits) is to be given back. May be called more than once for
    /// the same client, and for one that has nothing.
    fn client_gone(&self, client: ClientId) {
        let _ = client;
    }
}

/// The types of objects that clients can make.
pub trait Types: Send + Sync + 'static {
    /// Makes an object of the type of this name.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    fn create(&self, name: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Arc<dyn Object>, Failure>;
}

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The object doesn't exist, or no longer.
    NoSuchObject,
    /// The object has no such method.
    NoSuchMethod,
    /// There is no type of the name; with the names there are.
    NoSuchType(String),
    /// The arguments are not what is taken; in what way.
    BadArguments(String),
    /// What the face sends for an error of its own.
    Raised(Vec<u8>),
    /// The server failed; how.
    Failed(String),
    /// The client that called is gone, or the server ends: there is nobody to reply to.
    Gone,
}
