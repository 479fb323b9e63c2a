//! The server of a manager: keeps objects, and calls their methods for clients. See `PROTOCOL.md`.

use std::{
    cell::Cell,
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::{Resource, getrlimit};

use super::{
    Caller, Failure, Types,
    caller::Undo,
    objects::Objects,
    protocol::{ClientId, Hello, ProtocolError, Request, ServerId, Status, Welcome, reply},
};
use crate::{
    channel::{
        self, Address, Connection, ConnectionError, Handshake, HandshakeError, LONGEST_MESSAGE, Listener, Serving,
    },
    process::{ProcessId, Unshared},
    sync::Wait,
    sys::io as sys,
};

/// A peer that has not shown its key after so long is sent away.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// Connections at one time, unless told otherwise. Each has a thread of the server.
const CONNECTIONS: usize = 4096;

/// A server of objects.
///
/// Whatever waits does it in a thread of its own client's connection, so no client holds up another.
#[derive(Clone, Debug)]
pub struct Server(Arc<Shared>);

pub(super) struct Shared {
    pub(super) objects: Arc<Objects>,
    pub(super) stopping: AtomicBool,
    id: ServerId,
    types: Box<dyn Types>,
    /// By client, its connections.
    lines: Mutex<HashMap<ClientId, Vec<Arc<Line>>>>,
    /// Connections under way, those in their handshake too.
    connections: AtomicUsize,
    most_connections: AtomicUsize,
    /// Its reading end comes to its end when the server stops.
    stopped: (io::PipeReader, Mutex<Option<io::PipeWriter>>),
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("id", &self.id).field("objects", &self.objects).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Objects that keep others hold on to all of them.
        self.objects.clear();
    }
}

/// A connection of a client: carries one request at a time.
#[derive(Debug)]
pub(super) struct Line {
    connection: Connection,
    /// What requests and replies go over, if the client is on this machine.
    shared: Option<Serving>,
    pub(super) client: ClientId,
    pub(super) process: Option<ProcessId>,
    // A forked child's copy would hide the death of this process from the client.
    _unshared: Unshared,
}

impl Line {
    /// Whether the client has closed it. What it sent before may still be there.
    pub(super) fn hung_up(&self) -> bool {
        self.connection.number().is_none_or(sys::hung_up)
    }

    fn receive(&self, message: &mut Vec<u8>) -> Result<(), ConnectionError> {
        let wait = &mut Wait::forever();
        match &self.shared {
            Some(shared) => shared.receive(&self.connection, message, wait),
            None => self.connection.receive(wait).map(|received| *message = received),
        }
    }

    fn send(&self, parts: &[&[u8]]) -> Result<(), ConnectionError> {
        let wait = &mut Wait::forever();
        match &self.shared {
            Some(shared) => shared.send(&self.connection, parts, wait),
            None => self.connection.sending(parts).and_then(|mut sending| sending.finish(wait)),
        }
    }

    /// Whether the client ended without having read the last reply, as far as can be known.
    fn is_unread(&self) -> bool {
        self.shared.as_ref().is_some_and(Serving::is_unread)
    }
}

/// The shared memory that a client sent the descriptor of, if it is of use: over the connection alone it goes as well. A
/// line has two descriptors then; where half of all are in use, one has to do.
fn shared_memory(descriptor: Option<OwnedFd>) -> Option<Serving> {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let descriptor = descriptor.filter(|descriptor| (descriptor.as_raw_fd() as u64) < most / 2)?;
    Serving::attach(descriptor).ok()
}

/// Why a connection was not served, or no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The client didn't show the key, or went away over it.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The client sent what is no message of the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The connection failed.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl Server {
    /// Without objects, and with the types of objects that a face has.
    ///
    /// # Errors
    ///
    /// No descriptor is left, or there is no random source.
    pub fn new(types: impl Types) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        Ok(Self(Arc::new(Shared {
            objects: Arc::default(),
            stopping: AtomicBool::new(false),
            id: ServerId(random()?),
            types: Box::new(types),
            lines: Mutex::default(),
            connections: AtomicUsize::new(0),
            most_connections: AtomicUsize::new(CONNECTIONS),
            stopped: (reader, Mutex::new(Some(writer))),
        })))
    }

    /// Has connections beyond so many at one time refused.
    pub fn set_most_connections(&self, most: usize) {
        self.0.most_connections.store(most, Ordering::Relaxed);
    }

    /// Who it is.
    pub fn id(&self) -> ServerId {
        self.0.id
    }

    /// How many objects there are.
    pub fn number_of_objects(&self) -> usize {
        self.0.objects.len()
    }

    /// Takes no more connections and ends those there are. [`serve`](Self::serve) returns.
    pub fn shut_down(&self) {
        self.0.stop();
    }

    /// Serves clients that connect to a listener and have the key, each in a thread of its own, until the server is shut
    /// down. At an abstract address, only those of the same user are let in.
    ///
    /// # Errors
    ///
    /// The listener failed. That there are too many open descriptors or threads is none: clients have to wait then.
    pub fn serve(&self, listener: &Listener, authkey: &[u8]) -> io::Result<()> {
        let key: Arc<[u8]> = authkey.into();
        // A name, unlike a file, has no mode that keeps others away.
        let private = matches!(listener.address(), Address::Abstract(_));
        let (socket, stopped) = (listener.as_fd().as_raw_fd(), self.0.stopped.0.as_raw_fd());
        while !self.0.stopping.load(Ordering::Relaxed) {
            channel::wait(&[socket, stopped], &mut Wait::forever()).map_err(into_io)?;
            match listener.accept(&mut Wait::timeout(Duration::ZERO)) {
                Ok((connection, _)) if private && !of_this_user(&connection) => drop(connection),
                Ok((connection, _)) => self.serve_in_thread(connection, &key),
                Err(ConnectionError::Wait(_)) => {}
                Err(ConnectionError::Io(error)) if is_lack(&error) => {
                    let _ = channel::wait(&[stopped], &mut Wait::timeout(Duration::from_millis(20)));
                }
                Err(error) => return Err(into_io(error)),
            }
        }
        Ok(())
    }

    fn serve_in_thread(&self, connection: Connection, key: &Arc<[u8]>) {
        let (server, key) = (self.clone(), Arc::clone(key));
        let entered = Counted::new(&self.0);
        if entered.number > self.0.most_connections.load(Ordering::Relaxed) {
            // The client finds the connection closed.
            return;
        }
        let serve = move || {
            let _entered = entered;
            // What ended a connection is the client's to know.
            let _ = server.serve_connection(connection, Some(&key));
        };
        // Without a thread for it, the client finds the connection closed.
        let _ = std::thread::Builder::new().name("manager".into()).spawn(serve);
    }

    /// Serves a new connection in this thread, until the client closes it. Without a key, the client needs none: for
    /// connections that nobody else can have made.
    ///
    /// # Errors
    ///
    /// [`ServeError`]; none if the client closed it in order.
    pub fn serve_connection(&self, connection: Connection, authkey: Option<&[u8]>) -> Result<(), ServeError> {
        let wait = &mut Wait::timeout(HANDSHAKE);
        if let Some(key) = authkey {
            Handshake::listener(key).map_err(ConnectionError::Io)?.run(&connection, wait)?;
        }
        let welcome = |shares| Welcome { server: self.0.id, shares }.to_bytes();
        let mut incoming = connection.receiving_with()?;
        if incoming.length(wait)? > LONGEST_MESSAGE {
            return Err(ConnectionError::BadLength.into());
        }
        let hello = Hello::from_bytes(&incoming.body(wait)?);
        let offered = incoming.take_descriptors().into_iter().next();
        drop(incoming);
        if let Err(ProtocolError::Version(_)) = hello {
            // A client of another version sees ours, and can say so.
            connection.send(&welcome(false), wait)?;
        }
        let Hello { client, process } = hello?;
        let unshared = Unshared::new(connection.number().unwrap_or(-1));
        let shared = shared_memory(offered);
        let line = Arc::new(Line { connection, shared, client, process, _unshared: unshared });
        // Before the client knows: it may close another line then, and is not gone.
        let Some(_entered) = self.0.enter(&line) else {
            return Ok(());
        };
        line.connection.send(&welcome(line.shared.is_some()), wait)?;
        let (mut message, mut undo) = (Vec::new(), None);
        loop {
            match line.receive(&mut message) {
                // What comes by shared memory comes although the connection was shut down.
                Ok(()) if self.0.stopping.load(Ordering::Relaxed) => return Ok(()),
                Ok(()) => {}
                Err(ConnectionError::Ended) => {
                    // *Undelivered*
                    if let Some(undo) = undo.filter(|_: &Undo| line.is_unread()) {
                        undo();
                    }
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
            let (sequence, request) = Request::from_bytes(&message)?;
            match self.0.serve_request(&line, sequence, &request) {
                Ok(undoes) => undo = undoes,
                Err(_) if self.0.stopping.load(Ordering::Relaxed) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if matches!(request, Request::Shutdown) {
                self.0.stop();
            }
        }
    }
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, HashMap<ClientId, Vec<Arc<Line>>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line in, unless the server stops.
    fn enter<'a>(&'a self, line: &'a Arc<Line>) -> Option<Entered<'a>> {
        let mut lines = self.lines();
        if self.stopping.load(Ordering::Relaxed) {
            return None;
        }
        lines.entry(line.client).or_default().push(Arc::clone(line));
        Some(Entered { server: self, line })
    }

    fn stop(&self) {
        let lines = self.lines();
        self.stopping.store(true, Ordering::Relaxed);
        for line in lines.values().flatten() {
            if let Some(number) = line.connection.number() {
                sys::shutdown(number);
            }
        }
        drop(lines);
        self.stopped.1.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Does what is asked, and replies. Returns what undoes it should the reply turn out not to have been read. An error is one
    /// of the connection.
    fn serve_request(
        &self,
        line: &Line,
        sequence: u32,
        request: &Request<'_>,
    ) -> Result<Option<Undo>, ConnectionError> {
        let client = line.client;
        let (mut undo, mut of_type) = (None, String::new());
        let done = |known: bool| if known { Ok(Vec::new()) } else { Err(Failure::NoSuchObject) };
        let result = match *request {
            Request::Call { object, thread, method, arguments } => {
                let caller = Caller { server: self, line, thread, undo: Cell::new(None) };
                let object = self.objects.find(object);
                let result = object.as_ref().ok_or(Failure::NoSuchObject);
                let result = result.and_then(|object| guarded(|| object.call(method, arguments, &caller)));
                if let (Some(object), Err(Failure::NoSuchMethod)) = (&object, &result) {
                    object.type_name().clone_into(&mut of_type);
                }
                undo = caller.undo.take();
                result
            }
            Request::Create { name, arguments } => {
                let caller = Caller { server: self, line, thread: 0, undo: Cell::new(None) };
                let made = guarded(|| self.types.create(name, arguments, &caller));
                made.map(|object| self.objects.add(object, client).to_le_bytes().to_vec())
            }
            Request::Retain(object) => done(self.objects.retain(client, object)),
            Request::Release(object) => {
                self.objects.release(client, object);
                // Whoever releases waits for nobody, but shared memory is used by turns.
                return line.shared.as_ref().map_or(Ok(()), |_| line.send(&[])).map(|()| None);
            }
            Request::Lend(object) => {
                let loan = self.objects.lend(client, object);
                loan.map(|loan| loan.to_le_bytes().to_vec()).ok_or(Failure::NoSuchObject)
            }
            Request::Claim { object, loan } => done(self.objects.claim(client, object, loan)),
            Request::Count => Ok((self.objects.len() as u64).to_le_bytes().to_vec()),
            Request::Shutdown => Ok(Vec::new()),
        };
        let (status, body) = match result {
            Ok(body) => (Status::Done, body),
            Err(Failure::NoSuchObject) => (Status::NoSuchObject, Vec::new()),
            Err(Failure::NoSuchMethod) => (Status::NoSuchMethod, of_type.into_bytes()),
            Err(Failure::NoSuchType(known)) => (Status::NoSuchType, known.into_bytes()),
            Err(Failure::BadArguments(text)) => (Status::BadArguments, text.into_bytes()),
            Err(Failure::Raised(bytes)) => (Status::Raised, bytes),
            Err(Failure::Failed(text)) => (Status::Failed, text.into_bytes()),
            Err(Failure::Gone) => return Err(ConnectionError::Ended),
        };
        let parts = [&reply(sequence, status)[..], &body];
        match line.send(&parts) {
            Ok(()) => Ok(undo),
            Err(error) => {
                if let Some(undo) = undo {
                    undo();
                }
                Err(error)
            }
        }
    }

    /// Drops everything that a client had, unless it is there after all. See `PROTOCOL.md`, *Client gone*.
    fn part_with(&self, client: ClientId) {
        if self.lines().get(&client).is_some_and(|lines| !lines.iter().all(|line| line.hung_up())) {
            return;
        }
        for object in self.objects.all() {
            let _ = guarded(|| {
                object.client_gone(client);
                Ok(())
            });
        }
        self.objects.forget(client);
    }
}

/// A connection, counted from before its handshake to its end.
struct Counted {
    server: Arc<Shared>,
    number: usize,
}

impl Counted {
    fn new(server: &Arc<Shared>) -> Self {
        let before = server.connections.fetch_add(1, Ordering::Relaxed);
        Self { server: Arc::clone(server), number: before + 1 }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.server.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether the process at the other end of a Unix socket was started by the user that this one runs as, or may be anybody.
fn of_this_user(connection: &Connection) -> bool {
    let owner = connection.number().and_then(sys::peer_user);
    owner.is_some_and(|owner| owner == 0 || owner == rustix::process::geteuid().as_raw())
}

fn into_io(error: ConnectionError) -> io::Error {
    match error {
        ConnectionError::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// Whether there are too many descriptors, or no memory is left, for now.
fn is_lack(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// A line that is being served.
struct Entered<'a> {
    server: &'a Shared,
    line: &'a Arc<Line>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let client = self.line.client;
        let mut lines = self.server.lines();
        if let Some(of_client) = lines.get_mut(&client) {
            of_client.retain(|line| !Arc::ptr_eq(line, self.line));
            if of_client.is_empty() {
                lines.remove(&client);
            }
        }
        drop(lines);
        self.server.part_with(client);
    }
}

/// Calls what belongs to a face: if that panics, the call has failed and nothing else.
fn guarded<T>(call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Failure::Failed(format!("panicked: {}", text.as_deref().unwrap_or("(not with a text)"))))
    })
}

/// 128 random bits.
pub(super) fn random() -> io::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(u128::from_ne_bytes(bytes))
}

#[cfg(all(test, not(loom)))]
#[path = "server_tests.rs"]
mod tests;
