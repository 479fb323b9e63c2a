//! The server and its clients, over real sockets, with objects of the tests' own.
#![allow(unsafe_code)]

use std::{
    sync::{Condvar, atomic::AtomicU32},
    thread,
};

use proptest::prelude::*;

use super::*;
use crate::{
    channel::{ListenerOptions, connect, connect_authenticated, pipe},
    manager::{CallError, Client, Ended, Held, Object, protocol::ObjectId},
    process::{Exit, Sentinel},
};

const KEY: &[u8] = b"the key of these tests";

/// How often a cell was told that a client is gone, and how many cells were dropped.
static DROPPED: AtomicU32 = AtomicU32::new(0);

/// A text that can be set, waited for, and owned by one client at a time; keeps other objects.
#[derive(Default)]
struct Cell {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    text: Vec<u8>,
    owner: Option<ClientId>,
    kept: Vec<Held>,
}

fn id_of(arguments: &[u8]) -> ObjectId {
    arguments.try_into().map(u64::from_le_bytes).unwrap_or_default()
}

impl Object for Cell {
    fn type_name(&self) -> &'static str {
        "Cell"
    }

    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match method {
            "get" => Ok(state.text.clone()),
            "set" => {
                state.text = arguments.to_vec();
                self.changed.notify_all();
                Ok(Vec::new())
            }
            // Until it is what the arguments say.
            "await" => {
                let mut waiting = caller.waiting(None);
                while state.text != arguments {
                    state = waiting.wait(&self.changed, state).map_err(|(_, ended)| {
                        assert_eq!(ended, Ended::Gone);
                        Failure::Gone
                    })?;
                }
                Ok(Vec::new())
            }
            "own" => {
                let mut waiting = caller.waiting(None);
                while state.owner.is_some() {
                    state = waiting.wait(&self.changed, state).map_err(|_| Failure::Gone)?;
                }
                state.owner = Some(caller.client());
                Ok(Vec::new())
            }
            "keep" => {
                state.kept.push(caller.hold(id_of(arguments))?);
                Ok(Vec::new())
            }
            "take" => {
                let held = state.kept.pop().ok_or_else(|| Failure::Raised(b"empty".to_vec()))?;
                caller.grant(&held);
                Ok(held.id().to_le_bytes().to_vec())
            }
            "panic" => panic!("on purpose"),
            _ => Err(Failure::NoSuchMethod),
        }
    }

    fn client_gone(&self, client: ClientId) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.owner == Some(client) {
            state.owner = None;
            self.changed.notify_all();
        }
    }
}

struct PanicsAtItsEnd;

impl Object for PanicsAtItsEnd {
    fn type_name(&self) -> &'static str {
        "PanicsAtItsEnd"
    }

    fn call(&self, _: &str, _: &[u8], _: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        Err(Failure::NoSuchMethod)
    }
}

impl Drop for PanicsAtItsEnd {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
        panic!("at its end");
    }
}

struct Kinds;

impl Types for Kinds {
    fn create(&self, name: &str, arguments: &[u8], _: &Caller<'_>) -> Result<Arc<dyn Object>, Failure> {
        match name {
            "Cell" if arguments.is_empty() => Ok(Arc::new(Cell::default())),
            "Cell" => Err(Failure::BadArguments("a cell takes none".into())),
            "PanicsAtItsEnd" => Ok(Arc::new(PanicsAtItsEnd)),
            _ => Err(Failure::NoSuchType("Cell".into())),
        }
    }
}

/// A server on a socket of its own, shut down at the end of the test.
struct Served {
    server: Server,
    address: channel::Address,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

impl Served {
    fn start() -> Self {
        let server = Server::new(Kinds).unwrap();
        let listener = Listener::private(&ListenerOptions::default()).unwrap();
        let address = listener.address().clone();
        let thread = thread::spawn({
            let server = server.clone();
            move || server.serve(&listener, KEY)
        });
        Self { server, address, thread: Some(thread) }
    }

    fn client(&self) -> Client {
        let address = self.address.clone();
        Client::connect(move |wait| connect_authenticated(&address, KEY, wait), &mut Wait::forever()).unwrap()
    }

    /// Runs `what` in a forked child, which has a copy of everything.
    fn forked(what: impl FnOnce()) -> Sentinel {
        // SAFETY: the child only uses what is made anew in it, and allocates, which the C library sees to.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "cannot fork");
        if pid == 0 {
            let done = catch_unwind(AssertUnwindSafe(what));
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(done.is_err())) };
        }
        Sentinel::open(pid as u32).unwrap()
    }

    fn await_objects(&self, count: usize) {
        while self.server.number_of_objects() != count {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.shut_down();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

fn forever() -> Wait<'static> {
    Wait::forever()
}

fn cell(client: &Client) -> ObjectId {
    client.create("Cell", &[], &mut forever()).unwrap()
}

fn call(client: &Client, object: ObjectId, method: &str, arguments: &[u8]) -> Result<Vec<u8>, CallError> {
    client.call(object, method, arguments, &mut forever()).map(|answer| answer.to_vec())
}

fn exit_of(child: &Sentinel) -> Exit {
    child.wait(&mut forever()).unwrap();
    child.exit().unwrap().unwrap()
}

#[test]
fn objects_are_made_called_and_freed() {
    let served = Served::start();
    let client = served.client();
    let object = cell(&client);
    call(&client, object, "set", b"text").unwrap();
    assert_eq!(call(&client, object, "get", b"").unwrap(), b"text");
    // Large messages too.
    let large = vec![7; 5_000_000];
    call(&client, object, "set", &large).unwrap();
    assert_eq!(call(&client, object, "get", b"").unwrap(), large);
    let other = served.client();
    assert_eq!(call(&other, object, "get", b"").unwrap(), large);
    assert_eq!(client.number_of_objects(&mut forever()).unwrap(), 1);
    client.release(object);
    assert_eq!(client.number_of_objects(&mut forever()).unwrap(), 0);
    assert!(matches!(call(&client, object, "get", b""), Err(CallError::NoSuchObject)));
}

#[test]
fn what_does_not_exist_is_an_error_that_says_so() {
    let served = Served::start();
    let client = served.client();
    let object = cell(&client);
    let error = call(&client, object, "nothing", b"").unwrap_err();
    assert_eq!(error.to_string(), "a shared object of type Cell has no method nothing");
    let error = client.create("Thing", &[], &mut forever()).unwrap_err();
    assert_eq!(error.to_string(), "the manager has no type Thing, only: Cell");
    let error = client.create("Cell", &[1], &mut forever()).unwrap_err();
    assert_eq!(error.to_string(), "wrong arguments: a cell takes none");
    assert!(matches!(call(&client, 77, "get", b""), Err(CallError::NoSuchObject)));
    assert!(matches!(call(&client, object, "take", b""), Err(CallError::Raised(bytes)) if *bytes == *b"empty"));
    assert!(matches!(call(&client, object, "keep", &[7; 8]), Err(CallError::BadArguments(_))));
    assert!(matches!(client.lend(77, &mut forever()), Err(CallError::NoSuchObject)));
    assert!(matches!(client.claim(77, 1, &mut forever()), Err(CallError::NoSuchObject)));
    // The line is as it was.
    call(&client, object, "set", b"text").unwrap();
}

#[test]
fn a_panic_fails_one_call() {
    let served = Served::start();
    let client = served.client();
    let object = cell(&client);
    let error = call(&client, object, "panic", b"").unwrap_err();
    assert_eq!(error.to_string(), "the manager failed: panicked: on purpose");
    call(&client, object, "set", b"text").unwrap();
    let last = client.create("PanicsAtItsEnd", &[], &mut forever()).unwrap();
    client.release(last);
    assert_eq!(client.number_of_objects(&mut forever()).unwrap(), 1);
    assert_eq!(DROPPED.load(Ordering::Relaxed), 1);
}

#[test]
fn a_call_that_waits_holds_up_nobody() {
    let served = Served::start();
    let client = served.client();
    let object = cell(&client);
    let held = cell(&client);
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..20).map(|_| scope.spawn(|| call(&client, object, "await", b"go").unwrap())).collect();
        // While all lines are in use, a reference is given back with the next reply.
        client.release(held);
        call(&client, object, "set", b"go").unwrap();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
    assert_eq!(client.number_of_objects(&mut forever()).unwrap(), 1);
}

#[test]
fn a_reference_on_its_way_keeps_the_object_and_arrives_once() {
    let served = Served::start();
    let client = served.client();
    let object = cell(&client);
    let loan = client.lend(object, &mut forever()).unwrap();
    client.release(object);
    assert_eq!(client.number_of_objects(&mut forever()).unwrap(), 1);
    client.claim(object, loan, &mut forever()).unwrap();
    // Read a second time, it is a reference like another.
    client.claim(object, loan, &mut forever()).unwrap();
    client.release(object);
    assert_eq!(client.number_of_objects(&mut forever()).unwrap(), 1);
    client.release(object);
    assert_eq!(client.number_of_objects(&mut forever()).unwrap(), 0);
    // A reference that it doesn't have is not given back.
    client.release(object);
    client.ask(&Request::Retain(object), &mut forever()).unwrap_err();
}

#[test]
fn what_a_dead_sender_lent_arrives() {
    let served = Served::start();
    let client = served.client();
    let (reader, writer) = pipe().unwrap();
    let child = Served::forked(|| {
        let object = cell(&client);
        call(&client, object, "set", b"inherited").unwrap();
        let loan = client.lend(object, &mut forever()).unwrap();
        writer.send(&[object.to_le_bytes(), loan.to_le_bytes()].concat(), &mut forever()).unwrap();
    });
    assert_eq!(exit_of(&child), Exit::Code(0));
    let sent = reader.receive(&mut forever()).unwrap();
    let (object, loan) = (id_of(&sent[..8]), id_of(&sent[8..]));
    client.claim(object, loan, &mut forever()).unwrap();
    assert_eq!(call(&client, object, "get", b"").unwrap(), b"inherited");
    client.release(object);
    served.await_objects(0);
}

#[test]
fn a_forked_child_is_another_client() {
    let served = Served::start();
    let client = served.client();
    let object = cell(&client);
    call(&client, object, "own", b"").unwrap();
    let child = Served::forked(|| {
        for _ in 0..100 {
            call(&client, object, "set", b"from the child").unwrap();
        }
        // It has no reference that it could give back.
        client.release(object);
        let own = cell(&client);
        call(&client, own, "own", b"").unwrap();
    });
    for _ in 0..100 {
        call(&client, object, "get", b"").unwrap();
    }
    assert_eq!(exit_of(&child), Exit::Code(0));
    // Its object is gone with it; ours and that we own it are not.
    served.await_objects(1);
    assert_eq!(call(&client, object, "get", b"").unwrap(), b"from the child");
    let watcher = served.server.0.objects.find(object).unwrap();
    watcher.client_gone(ClientId(0));
    let child = Served::forked(|| drop(call(&client, object, "own", b"")));
    thread::sleep(Duration::from_millis(100));
    assert!(child.exit().unwrap().is_none());
    child.send_signal(libc::SIGKILL).unwrap();
    exit_of(&child);
}

#[test]
fn what_a_killed_client_had_is_given_back() {
    let served = Served::start();
    let client = served.client();
    let object = cell(&client);
    let (reader, writer) = pipe().unwrap();
    let child = Served::forked(|| {
        let own = cell(&client);
        call(&client, own, "own", b"").unwrap();
        call(&client, object, "own", b"").unwrap();
        writer.send(b"owns", &mut forever()).unwrap();
        // It dies in a call that would never end.
        let _ = call(&client, object, "await", b"never");
    });
    reader.receive(&mut forever()).unwrap();
    thread::sleep(Duration::from_millis(20));
    child.send_signal(libc::SIGKILL).unwrap();
    assert_eq!(exit_of(&child), Exit::Signal(libc::SIGKILL));
    call(&client, object, "own", b"").unwrap();
    served.await_objects(1);
}

#[test]
fn a_fork_does_not_hide_the_death_of_its_parent() {
    let served = Served::start();
    let client = served.client();
    let object = cell(&client);
    let (reader, writer) = pipe().unwrap();
    let child = Served::forked(|| {
        call(&client, object, "own", b"").unwrap();
        // The grandchild outlives it, with copies of its descriptors but for the lines'.
        let grandchild = Served::forked(|| thread::sleep(Duration::from_secs(60)));
        let pid = grandchild.pid();
        std::mem::forget(grandchild);
        writer.send(&pid.to_le_bytes(), &mut forever()).unwrap();
        thread::sleep(Duration::from_secs(60));
    });
    let pid = u32::from_le_bytes(reader.receive(&mut forever()).unwrap().try_into().unwrap());
    child.send_signal(libc::SIGKILL).unwrap();
    exit_of(&child);
    call(&client, object, "own", b"").unwrap();
    // SAFETY: signals the grandchild, which lives.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
}

#[test]
fn what_is_kept_from_within_goes_with_its_keeper() {
    let served = Served::start();
    let client = served.client();
    let outer = cell(&client);
    let inner = cell(&client);
    call(&client, outer, "keep", &inner.to_le_bytes()).unwrap();
    client.release(inner);
    assert_eq!(client.number_of_objects(&mut forever()).unwrap(), 2);
    // Taken out again: the reply carries a reference.
    assert_eq!(call(&client, outer, "take", b"").unwrap(), inner.to_le_bytes());
    client.release(outer);
    assert_eq!(client.number_of_objects(&mut forever()).unwrap(), 1);
    // However deep they are nested.
    let mut last = inner;
    for _ in 0..50_000 {
        let next = cell(&client);
        call(&client, next, "keep", &last.to_le_bytes()).unwrap();
        client.release(last);
        last = next;
    }
    client.release(last);
    assert_eq!(client.number_of_objects(&mut forever()).unwrap(), 0);
}

#[test]
fn without_the_key_nobody_is_let_in() {
    let served = Served::start();
    let address = served.address.clone();
    let error = Client::connect(move |wait| connect_authenticated(&address, b"another key", wait), &mut forever());
    assert!(matches!(error, Err(CallError::Connect(HandshakeError::Authentication(_)))));
    // Nor who says nothing of a key, or speaks of something else.
    for garbage in
        [&Hello { client: ClientId(1), process: None }.to_bytes()[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 300]]
    {
        let stranger = connect(&served.address, &mut forever()).unwrap();
        stranger.receive(&mut forever()).unwrap();
        stranger.send(garbage, &mut forever()).unwrap();
        while stranger.receive(&mut forever()).is_ok() {}
    }
    served.client();
}

#[test]
fn garbage_ends_its_connection_only() {
    let served = Served::start();
    let client = served.client();
    let object = cell(&client);
    let hello = Hello { client: ClientId(5), process: None }.to_bytes();
    // After the handshake: no greeting, one of another version, no request, a length that no memory has.
    let mut newer = hello;
    newer[6] = 200;
    for messages in [vec![&b"hello"[..]], vec![&newer], vec![&hello, b"no request"], vec![&hello, &[0; 24]]] {
        let connection = connect_authenticated(&served.address, KEY, &mut forever()).unwrap();
        for message in messages {
            connection.send(message, &mut forever()).unwrap();
        }
        while connection.receive(&mut forever()).is_ok() {}
    }
    let connection = connect_authenticated(&served.address, KEY, &mut forever()).unwrap();
    connection.send(&hello, &mut forever()).unwrap();
    connection.receive(&mut forever()).unwrap();
    let length = [&(-1i32).to_be_bytes()[..], &(1u64 << 61).to_be_bytes()].concat();
    sys::send(connection.number().unwrap(), &[io::IoSlice::new(&length)], sys::Blocking::Yes).unwrap();
    assert!(connection.receive(&mut forever()).is_err());
    call(&client, object, "get", b"").unwrap();
}

#[test]
fn a_client_of_another_version_is_told() {
    let server = Server::new(Kinds).unwrap();
    let (ours, theirs) = pipe().unwrap();
    let served = thread::spawn(move || server.serve_connection(theirs, None));
    let mut hello = Hello { client: ClientId(1), process: None }.to_bytes();
    hello[6] = 9;
    ours.send(&hello, &mut forever()).unwrap();
    Welcome::from_bytes(&ours.receive(&mut forever()).unwrap()).unwrap();
    assert!(matches!(served.join().unwrap(), Err(ServeError::Protocol(ProtocolError::Version(9)))));
}

#[test]
fn connections_are_bounded() {
    let served = Served::start();
    served.server.set_most_connections(2);
    let clients = [served.client(), served.client()];
    let address = served.address.clone();
    let third = Client::connect(move |wait| connect_authenticated(&address, KEY, wait), &mut forever());
    assert!(matches!(third, Err(CallError::Connect(_))));
    drop(clients);
    while served.server.0.connections.load(Ordering::Relaxed) > 0 {
        thread::sleep(Duration::from_millis(1));
    }
    served.client();
}

#[test]
fn the_end_of_the_server_is_seen_at_once() {
    let served = Served::start();
    let (client, other) = (served.client(), served.client());
    let object = cell(&client);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| call(&client, object, "await", b"never").unwrap_err());
        thread::sleep(Duration::from_millis(20));
        other.shut_down(&mut forever()).unwrap();
        assert!(matches!(waiter.join().unwrap(), CallError::Gone(_)));
    });
    for _ in 0..3 {
        assert!(matches!(call(&client, object, "get", b""), Err(CallError::Gone(_) | CallError::Connect(_))));
    }
    client.release(object);
}

#[test]
fn another_server_at_the_address_is_told_from_the_first() {
    let (first, second) = (Served::start(), Served::start());
    let address = Arc::new(Mutex::new(first.address.clone()));
    let client = {
        let address = Arc::clone(&address);
        let connect = move |wait: &mut Wait<'_>| connect_authenticated(&address.lock().unwrap(), KEY, wait);
        Client::connect(connect, &mut forever()).unwrap()
    };
    let object = cell(&client);
    *address.lock().unwrap() = second.address.clone();
    first.server.shut_down();
    assert!(matches!(call(&client, object, "get", b""), Err(CallError::Gone(_))));
    assert!(matches!(call(&client, object, "get", b""), Err(CallError::OtherServer)));
}

#[test]
fn an_interrupted_call_costs_its_line_only() {
    let served = Served::start();
    let client = served.client();
    let object = cell(&client);
    let wait = &mut Wait::timeout(Duration::from_millis(20));
    assert!(matches!(client.call(object, "await", b"never", wait), Err(CallError::Gone(ConnectionError::Wait(_)))));
    call(&client, object, "set", b"text").unwrap();
    assert_eq!(call(&client, object, "get", b"").unwrap(), b"text");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_of_a_client_bring_the_server_down(messages in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..64), 1..8,
    ), kinds in proptest::collection::vec(1..8u8, 8)) {
        let server = Server::new(Kinds).unwrap();
        let (ours, theirs) = pipe().unwrap();
        let served = {
            let server = server.clone();
            thread::spawn(move || server.serve_connection(theirs, None))
        };
        let hello = Hello { client: ClientId(1), process: None };
        ours.send(&hello.to_bytes(), &mut forever()).unwrap();
        for (mut message, kind) in messages.into_iter().zip(kinds) {
            // Mostly a request of a known kind, with anything in it.
            if let [first, zero, low, high, ..] = &mut message[..] {
                (*first, *zero, *low, *high) = (kind, 0, *low % 8, 0);
            }
            if ours.send(&message, &mut forever()).is_err() {
                break;
            }
        }
        drop(ours);
        let _ = served.join().unwrap();
        prop_assert_eq!(server.number_of_objects(), 0);
    }
}
