//! The server of a manager, as clients that have the key may treat it: with requests of all kinds for objects that are
//! there or not, and with what is no request. No client may harm it or the others, and what a client that is gone had is
//! given back.
#![no_main]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use procession_core::{
    channel::{Connection, ConnectionError, pipe},
    manager::{
        Caller, Failure, Held, Object, Server, Types,
        protocol::{ClientId, Hello, Request, Welcome, read_reply},
    },
    sync::Wait,
};

static LIVING: AtomicUsize = AtomicUsize::new(0);

/// Keeps a text and other objects.
#[derive(Default)]
struct Thing(Mutex<(Vec<u8>, Vec<Held>)>);

impl Thing {
    fn new() -> Arc<Self> {
        LIVING.fetch_add(1, Ordering::Relaxed);
        Arc::default()
    }
}

impl Drop for Thing {
    fn drop(&mut self) {
        LIVING.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Object for Thing {
    fn type_name(&self) -> &str {
        "Thing"
    }

    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let place = arguments.first().map_or(0, |first| u64::from(*first));
        match method {
            // Nobody reads before all is sent: the replies have to find room.
            "get" => return Ok(state.0.iter().copied().take(100).collect()),
            "set" => state.0 = arguments.to_vec(),
            "keep" => state.1.push(caller.hold(place)?),
            "drop" => drop(std::mem::take(&mut state.1)),
            "give" => state.1.iter().for_each(|held| caller.grant(held)),
            "late" => caller.if_undelivered(|| ()),
            "raise" => return Err(Failure::Raised(arguments.to_vec())),
            "who" => return Ok(format!("{:?} {:?}", caller.process(), caller.thread()).into_bytes()),
            _ => return Err(Failure::NoSuchMethod),
        }
        Ok(Vec::new())
    }
}

struct Things;

impl Types for Things {
    fn create(&self, name: &str, _: &[u8], _: &Caller<'_>) -> Result<Arc<dyn Object>, Failure> {
        if name == "Thing" { Ok(Thing::new()) } else { Err(Failure::NoSuchType("Thing".into())) }
    }
}

#[derive(Arbitrary, Debug)]
enum Number {
    Small(u8),
    Any(u64),
}

impl Number {
    fn value(&self) -> u64 {
        match self {
            Self::Small(small) => (small % 8).into(),
            Self::Any(any) => *any,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Name {
    Method(u8),
    Any(String),
}

const METHODS: [&str; 9] = ["get", "set", "keep", "drop", "give", "late", "raise", "who", "none"];

impl Name {
    fn text(&self) -> &str {
        match self {
            Self::Method(number) => METHODS[usize::from(*number) % METHODS.len()],
            Self::Any(text) => text,
        }
    }
}

/// What a client sends.
#[derive(Arbitrary, Debug)]
enum Sent {
    Call { object: Number, thread: u64, method: Name, arguments: Vec<u8> },
    Create { known: bool, name: Name, arguments: Vec<u8> },
    Retain(Number),
    Release(Number),
    Lend(Number),
    Claim { object: Number, loan: Number },
    Count,
    Shutdown,
    /// One of these, with a byte changed, or cut off.
    Changed { what: Box<Sent>, at: u8, to: u8 },
    Cut { what: Box<Sent>, length: u8 },
    Raw(Vec<u8>),
}

impl Sent {
    fn request(&self) -> Option<Request<'_>> {
        Some(match self {
            Self::Call { object, thread, method, arguments } => {
                Request::Call { object: object.value(), thread: *thread, method: method.text(), arguments }
            }
            Self::Create { known, name, arguments } => {
                Request::Create { name: if *known { "Thing" } else { name.text() }, arguments }
            }
            Self::Retain(object) => Request::Retain(object.value()),
            Self::Release(object) => Request::Release(object.value()),
            Self::Lend(object) => Request::Lend(object.value()),
            Self::Claim { object, loan } => Request::Claim { object: object.value(), loan: loan.value() },
            Self::Count => Request::Count,
            Self::Shutdown => Request::Shutdown,
            Self::Changed { .. } | Self::Cut { .. } | Self::Raw(_) => return None,
        })
    }

    fn bytes(&self, sequence: u32) -> Vec<u8> {
        match self {
            Self::Changed { what, at, to } => {
                let mut bytes = what.bytes(sequence);
                if !bytes.is_empty() {
                    let at = usize::from(*at) % bytes.len();
                    bytes[at] = *to;
                }
                bytes
            }
            Self::Cut { what, length } => {
                let mut bytes = what.bytes(sequence);
                bytes.truncate((*length).into());
                bytes
            }
            Self::Raw(bytes) => bytes.clone(),
            request => match request.request().map(|request| request.parts(sequence)) {
                Some(Ok((fixed, name, arguments))) => [&fixed[..], name.as_bytes(), arguments].concat(),
                _ => Vec::new(),
            },
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Opening {
    Good { client: u8 },
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Client {
    opening: Opening,
    sends: Vec<Sent>,
}

/// Says all of it to the server, and looks at the replies. Returns how many loans it may have.
fn serve(server: &Server, client: &Client) -> usize {
    let (ours, theirs) = pipe().unwrap();
    let hello = match &client.opening {
        Opening::Good { client } => Hello { client: ClientId((*client % 3).into()), process: None }.to_bytes().to_vec(),
        Opening::Bytes(bytes) => bytes.clone(),
    };
    ours.send(&hello, &mut Wait::forever()).unwrap();
    for (sequence, sent) in client.sends.iter().enumerate() {
        ours.send(&sent.bytes(sequence as u32), &mut Wait::forever()).unwrap();
    }
    shut_down(&ours);
    let _ = server.serve_connection(theirs, None);
    if let Some(welcome) = next(&ours) {
        assert_eq!(Welcome::from_bytes(&welcome).unwrap().server, server.id());
    }
    let mut loans = 0;
    // Of those that are requests, each has its reply, in turn, as far as the server has come.
    for (sequence, sent) in client.sends.iter().enumerate() {
        let bytes = sent.bytes(sequence as u32);
        let Ok((number, request)) = Request::from_bytes(&bytes) else { break };
        loans += usize::from(matches!(request, Request::Lend(_)));
        if !matches!(request, Request::Release(_))
            && let Some(reply) = next(&ours)
        {
            read_reply(number, &reply).unwrap();
        }
    }
    loans
}

/// What the server sent next.
fn next(ours: &Connection) -> Option<Vec<u8>> {
    loop {
        match ours.receive(&mut Wait::forever()) {
            Ok(message) => return Some(message),
            Err(ConnectionError::Ended) => return None,
            // It closed its end with something unread. That is told first, once.
            Err(ConnectionError::Io(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn shut_down(connection: &Connection) {
    use std::os::fd::BorrowedFd;

    // SAFETY: the connection is open.
    let socket = unsafe { BorrowedFd::borrow_raw(connection.number().unwrap()) };
    rustix::net::shutdown(socket, rustix::net::Shutdown::Write).unwrap();
}

fuzz_target!(|clients: Vec<Client>| {
    let room = |client: &Client| client.sends.iter().map(|sent| sent.bytes(0).len() + 1024).sum::<usize>() < 60_000;
    if clients.len() > 10 || !clients.iter().all(room) {
        return;
    }
    for client in &clients {
        for (sequence, sent) in client.sends.iter().enumerate() {
            let bytes = sent.bytes(sequence as u32);
            if let Ok((number, request)) = Request::from_bytes(&bytes) {
                let (fixed, name, arguments) = request.parts(number).unwrap();
                assert_eq!([&fixed[..], name.as_bytes(), arguments].concat(), bytes);
            }
            let _ = (Welcome::from_bytes(&bytes), read_reply(sequence as u32, &bytes));
        }
    }
    let server = Server::new(Things).unwrap();
    let loans: usize = clients.iter().map(|client| serve(&server, client)).sum();
    let left = server.number_of_objects();
    let mut sends = clients.iter().flat_map(|client| &client.sends);
    // What two objects keep of each other stays as long as the server.
    if !sends.clone().any(keeps) {
        assert!(left <= loans, "{left} objects are left, with {loans} loans under way");
        assert_eq!(LIVING.load(Ordering::Relaxed), left);
    }
    if !sends.any(|sent| matches!(Request::from_bytes(&sent.bytes(0)), Ok((_, Request::Shutdown)))) {
        let create = Sent::Create { known: true, name: Name::Method(0), arguments: Vec::new() };
        let honest = Client { opening: Opening::Good { client: 7 }, sends: vec![create, Sent::Count] };
        assert_eq!(serve(&server, &honest), 0);
        assert_eq!(server.number_of_objects(), left);
    }
    drop(server);
    assert_eq!(LIVING.load(Ordering::Relaxed), 0);
});

fn keeps(sent: &Sent) -> bool {
    match sent {
        Sent::Changed { what, .. } | Sent::Cut { what, .. } => keeps(what),
        Sent::Call { method, .. } => method.text() == "keep",
        // It may say anything.
        Sent::Raw(bytes) => bytes.windows(4).any(|four| four == b"keep"),
        _ => false,
    }
}
