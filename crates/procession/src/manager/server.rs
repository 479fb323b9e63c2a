//! The server of a manager, in this process or in one of its own.
#![allow(unsafe_code)]

use std::{
    fmt,
    io::{self, PipeWriter, Read, Write},
    os::fd::OwnedFd,
    sync::{Arc, OnceLock},
    time::Duration,
};

use procession_core::{
    channel::{Listener, ListenerOptions},
    manager::Server,
    process,
    sync::Wait,
};
use serde::{Deserialize, Serialize};

use super::{
    ManagerError,
    builder::ManagerBuilder,
    peer::Peer,
    registry::{Register, Registry},
};
use crate::{
    Address,
    code::Code,
    handover::Reach,
    launched::Launched,
    message,
    process::Settings,
    start::{Launch, Started, launch, start_method},
};

/// A server process is given so long to end after it was asked to, and again after SIGTERM.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// A manager's server in this process. Made by [`ManagerBuilder::bind`].
///
/// ```
/// use procession::{Address, Manager};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let server = Manager::builder().address(Address::tcp("localhost", 0)).authkey("a secret").bind()?;
///     let address = server.address().clone();
///     let serving = std::thread::spawn(move || server.serve_forever());
///
///     let manager = Manager::connect(&address, "a secret")?;
///     assert_eq!(manager.value(5)?.get()?, 5);
///     manager.shutdown()?;
///     serving.join().unwrap()?;
///     Ok(())
/// }
/// ```
pub struct ManagerServer {
    server: Server,
    listener: Listener,
    address: Address,
    key: Arc<[u8]>,
}

impl fmt::Debug for ManagerServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key.
        f.debug_struct("ManagerServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl ManagerServer {
    pub(super) fn bind(address: Option<&Address>, key: &[u8], types: &[Register]) -> Result<Self, ManagerError> {
        let home = Arc::new(OnceLock::new());
        let mut registry = Registry::new(Arc::clone(&home));
        for register in types {
            register(&mut registry);
        }
        let server = Server::new(registry).map_err(ManagerError::Start)?;
        // With a name instead of a file, nothing is left behind however the process ends.
        let own = || Address::abstract_name(format!("procession-manager-{:032x}", server.id().0));
        let address = address.cloned().unwrap_or_else(own);
        let listener = Listener::bind(&address.0, &ListenerOptions::default()).map_err(ManagerError::Start)?;
        if let Some(peer) = Peer::of(server.id(), &listener.address().clone().into(), Some(key)) {
            let _ = home.set(peer);
        }
        let address = listener.address().clone().into();
        Ok(Self { server, listener, address, key: key.into() })
    }

    /// Where it listens. If it was told to listen at port 0, this has the real one.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Serves clients, each of their threads in a thread of this process, until one asks for the end
    /// ([`Manager::shutdown`](super::Manager::shutdown)).
    ///
    /// # Errors
    ///
    /// [`ManagerError::Start`]: the listener failed.
    pub fn serve_forever(self) -> Result<(), ManagerError> {
        self.server.serve(&self.listener, &self.key).map_err(ManagerError::Start)
    }
}

/// What a server process is told.
#[derive(Serialize, Deserialize)]
struct Order {
    /// As text.
    address: Option<String>,
    key: Vec<u8>,
    types: Vec<Code>,
}

/// What a server process tells when it listens, or can't.
#[derive(Serialize, Deserialize)]
enum Told {
    Listens(String),
    Failed(String),
}

/// The process of a server, as its starter has it.
#[derive(Debug)]
pub(super) struct Helper {
    launched: Launched,
    generation: u32,
}

impl Helper {
    /// Starts a server; returns when it listens, and where.
    pub(super) fn start(builder: &ManagerBuilder, key: &[u8]) -> Result<(Self, Address), ManagerError> {
        let failed = |error: &dyn std::fmt::Display| ManagerError::Start(io::Error::other(error.to_string()));
        let types = builder.types.iter().map(|register| Code::of(*register as *const ())).collect::<Result<_, _>>();
        let order = Order {
            address: builder.address.as_ref().map(ToString::to_string),
            key: key.to_vec(),
            types: types.map_err(|error| failed(&error))?,
        };
        let mut room = Vec::new();
        let payload = message::encode(&order, &mut room, Reach::Related)?.bytes;
        let (mut reader, writer) = io::pipe().map_err(ManagerError::Start)?;
        let settings = Settings { name: Some("Manager".into()), daemon: true, ..Settings::default() };
        let launched = launch(Launch {
            entry: serve,
            payload,
            descriptors: vec![OwnedFd::from(writer)],
            settings: &settings,
            method: start_method(),
        });
        let helper = Self { launched: launched.map_err(|error| failed(&error))?, generation: process::generation() };
        let mut told = Vec::new();
        reader.read_to_end(&mut told).map_err(ManagerError::Start)?;
        let error = match postcard::from_bytes(&told) {
            Ok(Told::Listens(address)) => match address.parse() {
                Ok(address) => return Ok((helper, address)),
                Err(error) => failed(&error),
            },
            Ok(Told::Failed(text)) => failed(&text),
            Err(_) => failed(&"its process ended before it listened"),
        };
        helper.kill();
        Err(error)
    }

    pub(super) fn pid(&self) -> u32 {
        self.launched.pid()
    }

    /// Whether this is the process that started it, and not a forked child of that.
    pub(super) fn is_own(&self) -> bool {
        self.generation == process::generation()
    }

    /// Waits for the process, which was asked to end; after some time it is made to.
    pub(super) fn end(self) {
        if !self.is_own() {
            return;
        }
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            if self.launched.wait(&mut Wait::timeout(PATIENCE)).is_ok() {
                break;
            }
            let _ = self.launched.sentinel.send_signal(signal);
        }
        self.reap();
    }

    /// Ends the process without asking.
    pub(super) fn kill(self) {
        let _ = self.launched.sentinel.send_signal(libc::SIGKILL);
        self.reap();
    }

    fn reap(&self) {
        let _ = self.launched.wait(&mut Wait::forever());
        let _ = self.launched.exit();
    }
}

/// What a server process runs.
fn serve(started: Started) -> i32 {
    leave_interrupts_to_parent();
    let mut descriptors = started.descriptors.into_iter();
    let Some(mut tell) = descriptors.next().map(PipeWriter::from) else {
        return 1;
    };
    let server = bind(&started.payload);
    let told = match &server {
        Ok(server) => Told::Listens(server.address().to_string()),
        Err(error) => Told::Failed(error.to_string()),
    };
    let bytes = postcard::to_stdvec(&told).unwrap_or_default();
    let heard = tell.write_all(&bytes);
    drop(tell);
    match (server, heard) {
        (Ok(server), Ok(())) => i32::from(server.serve_forever().is_err()),
        _ => 1,
    }
}

fn bind(payload: &[u8]) -> Result<ManagerServer, ManagerError> {
    let order: Order = message::decode(payload, Vec::new(), Reach::Related)?;
    let other = |error: &dyn std::fmt::Display| ManagerError::Start(io::Error::other(error.to_string()));
    let address = order.address.map(|address| address.parse()).transpose().map_err(|error| other(&error))?;
    let types = order.types.into_iter().map(|code| {
        let address = code.address().map_err(|error| other(&error))?;
        // SAFETY: the starter, which is of the same build, has named a function of this type.
        Ok(unsafe { std::mem::transmute::<*const (), Register>(address) })
    });
    let types = types.collect::<Result<Vec<_>, ManagerError>>()?;
    ManagerServer::bind(address.as_ref(), &order.key, &types)
}

/// Ctrl-C is for the starter to see, which may still need its objects. Not `SIG_IGN`, which programs that methods start would
/// inherit.
fn leave_interrupts_to_parent() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGINT, nothing as extern "C" fn(libc::c_int) as libc::sighandler_t) };
}
