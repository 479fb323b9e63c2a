//! The client of a manager's server. See `PROTOCOL.md`, *Lines*.

use std::{
    fmt, io,
    ops::Deref,
    os::fd::AsFd,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use super::{
    protocol::{self, ClientId, Hello, ObjectId, ProtocolError, Request, ServerId, Status, Welcome, read_reply},
    server::random,
};
use crate::{
    channel::{Asking, Connection, ConnectionError, HandshakeError},
    process::{self, ForkLocal, ProcessId, Unshared},
    sync::Wait,
    sys::{io as sys, rights},
};

/// So many lines are kept for later calls; what a burst of calls opened beyond is closed.
const MOST_IDLE: usize = 16;

/// A line that takes the place of an interrupted one is to be open after so long.
const REPLACEMENT: Duration = Duration::from_secs(5);

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The server is not there, or has another key.
    #[error("can't connect to the manager: {0}")]
    Connect(#[source] HandshakeError),
    /// The server is gone, or the connection to it.
    #[error("the manager is gone: {0}")]
    Gone(#[source] ConnectionError),
    /// At the address is a server, but not the one that was there before.
    #[error("the manager is gone: another one has its address")]
    OtherServer,
    /// The server sends what is no message of the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The object doesn't exist, or no longer.
    #[error("the manager has no such object: nobody referred to it any more")]
    NoSuchObject,
    /// The object has no such method, or doesn't expose it.
    #[error("a shared object of type {object} has no method {method}")]
    NoSuchMethod {
        /// The type of the object.
        object: String,
        /// The method.
        method: String,
    },
    /// The manager has no such type.
    #[error("the manager has no type {name}, only: {known}")]
    NoSuchType {
        /// The type.
        name: String,
        /// Those that it has.
        known: String,
    },
    /// The arguments are not what the method or type takes.
    #[error("wrong arguments: {0}")]
    BadArguments(String),
    /// The object refused: the face's bytes say why.
    #[error("the shared object refused the call")]
    Raised(Answer),
    /// The server failed.
    #[error("the manager failed: {0}")]
    Failed(String),
}

/// The result of a request: its bytes.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Answer(Vec<u8>);

impl Deref for Answer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.get(protocol::REPLY..).unwrap_or_default()
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({} bytes)", self.len())
    }
}

/// What a client is told to open a connection with: it comes back authenticated.
type Connect = dyn Fn(&mut Wait<'_>) -> Result<Connection, HandshakeError> + Send + Sync;

/// A client of one server.
///
/// All calls may come from any thread, and each that is under way has a connection (a line) of its own, so none waits for
/// another. A forked child opens lines of its own.
pub struct Client {
    connect: Box<Connect>,
    server: ServerId,
    session: ForkLocal<Session>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("server", &self.server).finish_non_exhaustive()
    }
}

/// The lines of this process.
#[derive(Debug, Default)]
struct Session(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    /// Those without a request under way; the one used last is used next.
    idle: Vec<Line>,
    /// References to give back when there is a line.
    to_release: Vec<ObjectId>,
}

#[derive(Debug)]
struct Line {
    connection: Connection,
    /// What requests and replies go over, if the server is on this machine.
    shared: Option<Asking>,
    sequence: u32,
    // A forked child's copy would hide the death of this process from the server.
    _unshared: Unshared,
}

/// Who this process is to all servers.
fn client_id() -> io::Result<ClientId> {
    static CLIENT: ForkLocal<OnceLock<ClientId>> = ForkLocal::new();
    let new = ClientId(random()?);
    Ok(*CLIENT.get().get_or_init(|| new))
}

impl Client {
    /// Connects for the first time, with what opens an authenticated connection: now, and later whenever one is needed.
    ///
    /// # Errors
    ///
    /// [`CallError::Connect`], [`CallError::Gone`], [`CallError::Protocol`].
    pub fn connect(
        connect: impl Fn(&mut Wait<'_>) -> Result<Connection, HandshakeError> + Send + Sync + 'static,
        wait: &mut Wait<'_>,
    ) -> Result<Self, CallError> {
        let (line, server) = Line::open(&connect, wait)?;
        let client = Self::new(server, connect);
        client.session.get().give_back(line);
        Ok(client)
    }

    /// For a server that is known; connects when first asked.
    pub fn new(
        server: ServerId,
        connect: impl Fn(&mut Wait<'_>) -> Result<Connection, HandshakeError> + Send + Sync + 'static,
    ) -> Self {
        Self { connect: Box::new(connect), server, session: ForkLocal::new() }
    }

    /// Which server it is.
    pub fn server(&self) -> ServerId {
        self.server
    }

    /// Asks, and waits for the reply.
    ///
    /// # Errors
    ///
    /// [`CallError`]. If the wait was interrupted or timed out, that is one of the connection: the request may have been
    /// done all the same.
    pub fn ask(&self, request: &Request<'_>, wait: &mut Wait<'_>) -> Result<Answer, CallError> {
        let session = self.session.get();
        let mut line = match session.take() {
            Some(line) => line,
            None => self.open(wait)?,
        };
        match line.exchange(request, wait) {
            Ok((status, answer)) => {
                session.give_back(line);
                outcome(status, answer, request)
            }
            Err(error) => {
                if line.connection.number().is_none_or(sys::hung_up) {
                    // The server has ended: the others are of no use either.
                    session.hang_up_dead();
                } else if let Ok(another) = self.open(&mut Wait::timeout(REPLACEMENT)) {
                    // *Interrupted*: it may be the only line, and without one this client is gone.
                    session.give_back(another);
                }
                Err(error)
            }
        }
    }

    /// Calls a method of an object.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub fn call(
        &self,
        object: ObjectId,
        method: &str,
        arguments: &[u8],
        wait: &mut Wait<'_>,
    ) -> Result<Answer, CallError> {
        let thread = process::thread_id(ProcessId::current());
        self.ask(&Request::Call { object, thread, method, arguments }, wait)
    }

    /// Makes an object; this process has a reference to it.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub fn create(&self, name: &str, arguments: &[u8], wait: &mut Wait<'_>) -> Result<ObjectId, CallError> {
        number(&self.ask(&Request::Create { name, arguments }, wait)?)
    }

    /// Announces that another process will be told of an object: it stays until that has arrived and called
    /// [`claim`](Self::claim) with the number returned. A message that never arrives keeps it until this process has ended.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub fn lend(&self, object: ObjectId, wait: &mut Wait<'_>) -> Result<u64, CallError> {
        number(&self.ask(&Request::Lend(object), wait)?)
    }

    /// Makes a reference of this process, in the place of the one that was on its way.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub fn claim(&self, object: ObjectId, loan: u64, wait: &mut Wait<'_>) -> Result<(), CallError> {
        self.ask(&Request::Claim { object, loan }, wait).map(drop)
    }

    /// How many objects the server has.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub fn number_of_objects(&self, wait: &mut Wait<'_>) -> Result<u64, CallError> {
        number(&self.ask(&Request::Count, wait)?)
    }

    /// Gives a reference back. Waits for nobody; if all lines are in use, it is done when one gets free.
    pub fn release(&self, object: ObjectId) {
        let session = self.session.get();
        let mut line = {
            let mut lines = session.lock();
            match lines.idle.pop() {
                Some(line) => line,
                None => return lines.to_release.push(object),
            }
        };
        if line.send(&Request::Release(object), &mut Wait::forever()).is_ok() {
            session.give_back(line);
        }
    }

    /// Ends the server.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub fn shut_down(&self, wait: &mut Wait<'_>) -> Result<(), CallError> {
        self.ask(&Request::Shutdown, wait).map(drop)
    }

    fn open(&self, wait: &mut Wait<'_>) -> Result<Line, CallError> {
        let (line, server) = Line::open(&*self.connect, wait)?;
        if server == self.server { Ok(line) } else { Err(CallError::OtherServer) }
    }
}

impl Session {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Line> {
        self.lock().idle.pop()
    }

    fn give_back(&self, mut line: Line) {
        loop {
            let mut lines = self.lock();
            if lines.to_release.is_empty() {
                if lines.idle.len() < MOST_IDLE {
                    lines.idle.push(line);
                }
                return;
            }
            let to_release = std::mem::take(&mut lines.to_release);
            drop(lines);
            for object in to_release {
                if line.send(&Request::Release(object), &mut Wait::forever()).is_err() {
                    return;
                }
            }
        }
    }

    fn hang_up_dead(&self) {
        self.lock().idle.retain(|line| !line.connection.number().is_none_or(sys::hung_up));
    }
}

impl Line {
    fn open(connect: &Connect, wait: &mut Wait<'_>) -> Result<(Self, ServerId), CallError> {
        loop {
            let forks = process::forks();
            let connection = connect(wait).map_err(CallError::Connect)?;
            let unshared = Unshared::new(connection.number().unwrap_or(-1));
            if process::forks() != forks {
                continue;
            }
            let client = client_id().map_err(|error| CallError::Gone(ConnectionError::Io(error)))?;
            let hello = Hello { client, process: Some(ProcessId::current()) };
            let local = connection.number().is_some_and(rights::can_carry);
            // Without memory or descriptors for it, the connection alone will do.
            let shared = if local { Asking::create().ok() } else { None };
            let descriptor: Vec<_> = shared.iter().map(AsFd::as_fd).collect();
            connection.send_with(&hello.to_bytes(), &descriptor, wait).map_err(CallError::Gone)?;
            let Welcome { server, shares } = Welcome::from_bytes(&connection.receive(wait).map_err(CallError::Gone)?)?;
            let shared = shared.filter(|_| shares);
            return Ok((Self { connection, shared, sequence: 0, _unshared: unshared }, server));
        }
    }

    fn send(&mut self, request: &Request<'_>, wait: &mut Wait<'_>) -> Result<(), CallError> {
        self.sequence = self.sequence.wrapping_add(1);
        let (fixed, name, arguments) = request.parts(self.sequence)?;
        let parts = [&fixed[..], name.as_bytes(), arguments];
        let sent = match &mut self.shared {
            Some(shared) => shared.send(&self.connection, &parts, wait),
            None => self.connection.sending(&parts).and_then(|mut sending| sending.finish(wait)),
        };
        sent.map_err(CallError::Gone)
    }

    fn exchange(&mut self, request: &Request<'_>, wait: &mut Wait<'_>) -> Result<(Status, Answer), CallError> {
        self.send(request, wait)?;
        let mut answer = Vec::new();
        let received = match &mut self.shared {
            Some(shared) => shared.receive(&self.connection, &mut answer, wait),
            None => self.connection.receive(wait).map(|received| answer = received),
        };
        received.map_err(CallError::Gone)?;
        let status = read_reply(self.sequence, &answer)?;
        Ok((status, Answer(answer)))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // A child that was forked at the wrong moment may have a copy: the server sees the end nevertheless.
        if let Some(number) = self.connection.number() {
            sys::shutdown(number);
        }
    }
}

fn number(answer: &Answer) -> Result<u64, CallError> {
    let bytes = <[u8; 8]>::try_from(&**answer).map_err(|_| ProtocolError::Length)?;
    Ok(u64::from_le_bytes(bytes))
}

fn outcome(status: Status, answer: Answer, request: &Request<'_>) -> Result<Answer, CallError> {
    let name = match *request {
        Request::Call { method, .. } => method,
        Request::Create { name, .. } => name,
        _ => "",
    };
    let text = || String::from_utf8_lossy(&answer).into_owned();
    Err(match status {
        Status::Done => return Ok(answer),
        Status::Raised => CallError::Raised(answer),
        Status::NoSuchObject => CallError::NoSuchObject,
        Status::NoSuchMethod => CallError::NoSuchMethod { object: text(), method: name.to_owned() },
        Status::NoSuchType => CallError::NoSuchType { name: name.to_owned(), known: text() },
        Status::BadArguments => CallError::BadArguments(text()),
        Status::Failed => CallError::Failed(text()),
    })
}
