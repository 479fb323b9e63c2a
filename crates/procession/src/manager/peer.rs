//! What this process knows of a manager's server: where it is, its key, the lines to it.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use procession_core::{
    channel::connect_authenticated,
    manager::{Client, protocol::ServerId},
    process::ForkLocal,
    sync::Wait,
};

use super::ManagerError;
use crate::Address;

/// A server, as its clients in this process see it. All proxies of a process share it.
pub(super) struct Peer {
    pub(super) client: Client,
    pub(super) address: Address,
    pub(super) key: Arc<[u8]>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key.
        f.debug_tuple("Peer").field(&self.address).finish()
    }
}

/// Those that are in use.
static KNOWN: ForkLocal<Mutex<HashMap<ServerId, Weak<Peer>>>> = ForkLocal::new();

fn known() -> MutexGuard<'static, HashMap<ServerId, Weak<Peer>>> {
    KNOWN.get().lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    /// Connects to a server of which nothing is known.
    pub(super) fn connect(address: &Address, key: &[u8]) -> Result<Arc<Self>, ManagerError> {
        let (address, key): (_, Arc<[u8]>) = (address.clone(), key.into());
        let client = Client::connect(connector(&address, &key), &mut Wait::forever())?;
        Ok(Self { client, address, key }.shared())
    }

    /// The server that a proxy from elsewhere belongs to. Without a key if it comes from another machine.
    pub(super) fn of(server: ServerId, address: &Address, key: Option<&[u8]>) -> Option<Arc<Self>> {
        if let Some(peer) = known().get(&server).and_then(Weak::upgrade) {
            return Some(peer);
        }
        let (address, key): (_, Arc<[u8]>) = (address.clone(), key?.into());
        let client = Client::new(server, connector(&address, &key));
        Some(Self { client, address, key }.shared())
    }

    /// Has others find it, unless there is one already.
    fn shared(self) -> Arc<Self> {
        let mut known = known();
        let peer = known.get(&self.client.server()).and_then(Weak::upgrade);
        let peer = peer.unwrap_or_else(|| {
            let peer = Arc::new(self);
            known.retain(|_, peer| peer.strong_count() > 0);
            known.insert(peer.client.server(), Arc::downgrade(&peer));
            peer
        });
        drop(known);
        peer
    }
}

type Connected = Result<procession_core::channel::Connection, procession_core::channel::HandshakeError>;

fn connector(address: &Address, key: &Arc<[u8]>) -> impl Fn(&mut Wait<'_>) -> Connected + Send + Sync + 'static {
    let (address, key) = (address.clone(), Arc::clone(key));
    move |wait| connect_authenticated(&address.0, &key, wait)
}
