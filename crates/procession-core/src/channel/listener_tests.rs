use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    thread,
};

use super::*;
use crate::channel::AuthenticationError;

fn forever() -> Wait<'static> {
    Wait::forever()
}

fn soon() -> Wait<'static> {
    Wait::timeout(Duration::from_millis(20))
}

fn options() -> ListenerOptions {
    ListenerOptions::default()
}

fn private() -> Listener {
    Listener::private(&options()).unwrap()
}

fn path_of(listener: &Listener) -> PathBuf {
    match listener.address() {
        Address::Path(path) => path.clone(),
        other => panic!("{other} is no path"),
    }
}

/// A listener of each kind.
fn each_kind() -> Vec<Listener> {
    let name = format!("procession-test-{}-{:?}", std::process::id(), thread::current().id());
    let mut addresses = vec![Address::Abstract(name.into_bytes()), ("127.0.0.1", 0).into(), ("localhost", 0).into()];
    // Not every machine has IPv6.
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        addresses.push(("::1", 0).into());
    }
    let mut listeners = vec![private()];
    listeners.extend(addresses.iter().map(|address| Listener::bind(address, &options()).unwrap()));
    listeners
}

#[test]
fn a_client_of_each_kind_connects() {
    for listener in each_kind() {
        let text = listener.address().to_string();
        let client = connect(&text.parse().unwrap(), &mut forever()).unwrap();
        let (connection, peer) = listener.accept(&mut forever()).unwrap();
        assert_eq!(peer.is_some(), !listener.address().is_local(), "{text}");
        client.send(b"there", &mut forever()).unwrap();
        assert_eq!(connection.receive(&mut forever()).unwrap(), b"there");
        connection.send(b"and back", &mut forever()).unwrap();
        assert_eq!(client.receive(&mut forever()).unwrap(), b"and back");
    }
}

#[test]
fn a_client_of_each_kind_with_the_key_is_let_in() {
    for listener in each_kind() {
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let client = connect_authenticated(listener.address(), b"key", &mut forever()).unwrap();
                // More than the handshake in one go: nothing of it may be taken for a part of that.
                client.send(b"at once", &mut forever()).unwrap();
                client.receive(&mut forever()).unwrap()
            });
            let (connection, _) =
                listener.accept_authenticated(b"key", Duration::from_secs(60), &mut forever()).unwrap();
            assert_eq!(connection.receive(&mut forever()).unwrap(), b"at once");
            connection.send(b"yes", &mut forever()).unwrap();
            assert_eq!(client.join().unwrap(), b"yes");
        });
    }
}

#[test]
fn without_a_client_accepting_ends_with_the_time() {
    for listener in each_kind() {
        let error = listener.accept(&mut soon()).unwrap_err();
        assert!(matches!(error, ConnectionError::Wait(WaitError::TimedOut)), "{error:?}");
        let error = listener.accept_authenticated(b"key", Duration::MAX, &mut soon()).unwrap_err();
        assert!(matches!(error, AcceptError::Wait(WaitError::TimedOut)), "{error:?}");
    }
}

#[test]
fn only_the_owner_may_enter_and_the_files_go_with_the_listener() {
    let listener = private();
    let path = path_of(&listener);
    let folder = path.parent().unwrap().to_owned();
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&folder)), (0o600, 0o700));
    drop(listener);
    assert!(!folder.exists());

    let folder = PrivateFolder::create().unwrap();
    let path = folder.0.join("here");
    let listener = Listener::bind(&path.clone().into(), &ListenerOptions { mode: 0o640, ..options() }).unwrap();
    assert_eq!(mode(&path), 0o640);
    let error = Listener::bind(&path.clone().into(), &options()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(path.exists(), "a listener that could not be made has removed the file of another");
    listener.close().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_listener_is_handed_over_by_its_socket() {
    for listener in each_kind() {
        let copy = Listener::from_socket(listener.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(copy.address(), listener.address());
        drop(copy);
        let copy = Listener::from_socket(listener.as_fd().try_clone_to_owned().unwrap()).unwrap();
        connect(listener.address(), &mut forever()).unwrap();
        copy.accept(&mut forever()).unwrap();
    }
    let (one, _other) = UnixStream::pair().unwrap();
    for other in [OwnedFd::from(one), io::pipe().unwrap().0.into()] {
        assert_eq!(Listener::from_socket(other).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

#[test]
fn a_file_that_came_in_its_place_stays() {
    let folder = PrivateFolder::create().unwrap();
    let path = folder.0.join("here");
    let first = Listener::bind(&path.clone().into(), &options()).unwrap();
    fs::rename(&path, folder.0.join("there")).unwrap();
    let second = Listener::bind(&path.clone().into(), &options()).unwrap();
    first.close().unwrap();
    drop(connect(second.address(), &mut forever()).unwrap());
    drop(second);
    fs::remove_file(folder.0.join("there")).unwrap();
}

#[test]
#[allow(unsafe_code)]
fn a_forked_child_removes_nothing() {
    let listener = private();
    // SAFETY: the child only drops the listener, which closes a descriptor, and exits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(listener);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    let mut status = -1;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
    drop(connect(listener.address(), &mut forever()).unwrap());
    listener.accept(&mut forever()).unwrap();
}

#[test]
fn where_nobody_listens_connecting_is_an_error() {
    let listener = private();
    let address = listener.address().clone();
    drop(listener);
    let kind = |address: &Address| match connect(address, &mut forever()).unwrap_err() {
        ConnectionError::Io(error) => error.kind(),
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(&address), io::ErrorKind::NotFound);
    let listener = Listener::bind(&("127.0.0.1", 0).into(), &options()).unwrap();
    let address = listener.address().clone();
    drop(listener);
    assert_eq!(kind(&address), io::ErrorKind::ConnectionRefused);
    assert_eq!(kind(&Address::Path("/".repeat(200).into())), io::ErrorKind::InvalidFilename);
    assert_eq!(kind(&Address::Abstract(vec![1; 108])), io::ErrorKind::InvalidFilename);
}

#[test]
fn a_client_waits_for_room_in_the_backlog() {
    let listener = Listener::private(&ListenerOptions { backlog: 0, ..options() }).unwrap();
    let _first = connect(listener.address(), &mut forever()).unwrap();
    let error = connect(listener.address(), &mut soon()).unwrap_err();
    assert!(matches!(error, ConnectionError::Wait(WaitError::TimedOut)), "{error:?}");
    thread::scope(|scope| {
        let second = scope.spawn(|| connect(listener.address(), &mut forever()).unwrap());
        listener.accept(&mut forever()).unwrap();
        second.join().unwrap().send(b"in", &mut forever()).unwrap();
        let (connection, _) = listener.accept(&mut forever()).unwrap();
        assert_eq!(connection.receive(&mut forever()).unwrap(), b"in");
    });
}

#[test]
fn a_client_with_another_key_is_disconnected_and_the_next_one_served() {
    let listener = private();
    thread::scope(|scope| {
        let wrong = scope.spawn(|| connect_authenticated(listener.address(), b"another", &mut forever()));
        let error = listener.accept_authenticated(b"key", Duration::MAX, &mut forever()).unwrap_err();
        assert!(
            matches!(
                error,
                AcceptError::Client { error: HandshakeError::Authentication(AuthenticationError::WrongDigest), .. }
            ),
            "{error:?}"
        );
        let error = wrong.join().unwrap().unwrap_err();
        assert!(matches!(error, HandshakeError::Authentication(AuthenticationError::Rejected)), "{error:?}");
        scope.spawn(|| connect_authenticated(listener.address(), b"key", &mut forever()).unwrap());
        listener.accept_authenticated(b"key", Duration::MAX, &mut forever()).unwrap();
    });
}

#[test]
fn silent_clients_hold_up_nobody_and_are_disconnected_in_the_end() {
    let listener = private();
    let path = path_of(&listener);
    let mut silent: Vec<_> = (0..5).map(|_| UnixStream::connect(&path).unwrap()).collect();
    // One that stops in the middle of its answer.
    silent[0].write_all(b"\0\0\0\x28{sha256}").unwrap();
    let patience = Duration::from_millis(300);
    thread::scope(|scope| {
        scope.spawn(|| connect_authenticated(listener.address(), b"key", &mut forever()).unwrap());
        // Was its time over sooner, on a busy machine, another one's error may come first.
        while listener.accept_authenticated(b"key", patience, &mut forever()).is_err() {}
    });
    // The others were left to whoever accepts next. Some may have been told of already.
    while let Err(error) = listener.accept_authenticated(b"key", patience, &mut Wait::timeout(patience * 3)) {
        match error {
            AcceptError::Client { error, .. } => assert!(
                matches!(error, HandshakeError::Connection(ConnectionError::Wait(WaitError::TimedOut))),
                "{error:?}"
            ),
            AcceptError::Wait(_) => break,
            AcceptError::Io(error) => panic!("{error}"),
        }
    }
    for mut peer in silent {
        let mut all = Vec::new();
        // What was sent to it is a challenge, and then the end.
        peer.read_to_end(&mut all).unwrap();
        assert!(all[4..].starts_with(b"#CHALLENGE#{sha256}"));
    }
}

#[test]
fn any_number_of_silent_clients_keeps_nobody_out() {
    let listener = private();
    let path = path_of(&listener);
    thread::scope(|scope| {
        let silent = scope.spawn(|| (0..100).map(|_| UnixStream::connect(&path).unwrap()).collect::<Vec<_>>());
        scope.spawn(|| connect_authenticated(listener.address(), b"key", &mut forever()).unwrap());
        while listener.accept_authenticated(b"key", Duration::MAX, &mut forever()).is_err() {}
        drop(silent.join().unwrap());
    });
}

#[test]
fn garbage_ends_the_connection_it_came_over_only() {
    let listener = Listener::bind(&("127.0.0.1", 0).into(), &options()).unwrap();
    let Address::Tcp { host, port } = listener.address().clone() else { panic!() };
    let garbage: [&[u8]; 5] =
        [b"GET / HTTP/1.1\r\n\r\n", &[0x80, 0, 0, 0], &[255; 12], &257_i32.to_be_bytes(), b"\0\0\0\x09#WELCOME#"];
    for bytes in garbage {
        let mut peer = TcpStream::connect((host.as_str(), port)).unwrap();
        peer.write_all(bytes).unwrap();
        let error = listener.accept_authenticated(b"key", Duration::MAX, &mut forever()).unwrap_err();
        let AcceptError::Client { peer: from, error } = error else { panic!("{error:?}") };
        assert_eq!(from, Some(peer.local_addr().unwrap().into()));
        assert!(!matches!(error, HandshakeError::Connection(ConnectionError::Wait(_))), "{error:?}");
    }
    thread::scope(|scope| {
        scope.spawn(|| connect_authenticated(listener.address(), b"key", &mut forever()).unwrap());
        listener.accept_authenticated(b"key", Duration::MAX, &mut forever()).unwrap();
    });
}

#[test]
fn many_clients_and_many_threads_that_accept() {
    let listener = private();
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                let client = connect_authenticated(listener.address(), b"key", &mut forever()).unwrap();
                assert_eq!(client.receive(&mut forever()).unwrap(), b"welcome");
            });
        }
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let (connection, _) = listener.accept_authenticated(b"key", Duration::MAX, &mut forever()).unwrap();
                    connection.send(b"welcome", &mut forever()).unwrap();
                }
            });
        }
    });
}

mod in_parts {
    use proptest::prelude::*;

    use super::*;
    use crate::channel::{Handshake, Step, frame::Header};

    /// A client that sends what it has to in pieces of such lengths, and its listener, served whenever a piece has come.
    fn handshake(lengths: &[usize], theirs: &[u8], ours: &[u8]) -> Result<(), HandshakeError> {
        let (here, mut there) = UnixStream::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        let mut pending = Pending::new(here.into(), None, Handshake::listener(ours).unwrap(), Duration::MAX);
        let mut client = Handshake::client(theirs).unwrap();
        let mut lengths = lengths.iter().cycle();
        let mut received = Vec::new();
        loop {
            if pending.is_over() {
                return match pending.result() {
                    Ok(_) => Ok(()),
                    Err(AcceptError::Client { error, .. }) => Err(error),
                    Err(error) => panic!("{error:?}"),
                };
            }
            match client.step() {
                Step::Send(message) => {
                    let mut rest = &[Header::new(message.len(), false).as_bytes(), &message].concat()[..];
                    while !rest.is_empty() {
                        let length = *lengths.next().unwrap();
                        let (piece, after) = rest.split_at(length.min(rest.len()));
                        there.write_all(piece).unwrap();
                        rest = after;
                        assert!(rest.is_empty() || !pending.is_over());
                    }
                }
                Step::Receive => {
                    let mut piece = [0; 7];
                    if let Ok(length) = there.read(&mut piece) {
                        received.extend(&piece[..length]);
                    }
                    if let Some(length) =
                        received.get(3).map(|&length| usize::from(length)).filter(|it| received.len() == 4 + it)
                    {
                        client.received(&received[4..][..length]);
                        received.clear();
                    }
                }
                Step::End(_) => {}
            }
        }
    }

    proptest! {
        #[test]
        fn a_handshake_may_come_in_any_pieces(lengths in proptest::collection::vec(1..60usize, 1..10)) {
            prop_assert!(handshake(&lengths, b"key", b"key").is_ok());
            let refused = handshake(&lengths, b"another", b"key");
            prop_assert!(matches!(refused, Err(HandshakeError::Authentication(_))), "{:?}", refused);
        }

        #[test]
        fn whatever_a_client_sends_it_is_refused_or_waited_for(
            bytes in proptest::collection::vec(prop_oneof![3 => 0..5u8, 1 => any::<u8>()], 0..600),
        ) {
            let (here, mut there) = UnixStream::pair().unwrap();
            let mut pending = Pending::new(here.into(), None, Handshake::listener(b"key").unwrap(), Duration::MAX);
            there.write_all(&bytes).unwrap();
            if !pending.is_over() {
                drop(there);
                prop_assert!(pending.is_over());
            }
            prop_assert!(pending.result().is_err());
        }
    }
}

/// The standard package of each Python found, at the other end.
mod interoperation {
    use std::{
        io::{BufRead, BufReader},
        process::{Child, Command, Stdio},
    };

    use super::*;
    use crate::channel::{Digest, answer_challenge, deliver_challenge};

    /// Those that the Makefile names, and the one that is found without.
    fn interpreters() -> Vec<String> {
        let named = std::env::var("PYTHONS").unwrap_or_default();
        let venv = std::env::var("VIRTUAL_ENV").map(|venv| format!("{venv}/bin/python")).ok();
        let all = venv.into_iter().chain(["python3".to_owned()]).chain(named.split_whitespace().map(str::to_owned));
        let mut found: Vec<String> = all
            .filter(|python| {
                let tried = Command::new(python).args(["-c", "import multiprocessing.connection"]).output();
                tried.is_ok_and(|output| output.status.success())
            })
            .collect();
        found.dedup();
        if found.is_empty() {
            eprintln!("there is no Python to talk to: nothing was tested");
        }
        found
    }

    const PEER: &str = "
import sys
from multiprocessing import AuthenticationError, connection
role, key, address, digest = sys.argv[1:]
key = key.encode()
if address.startswith('tcp:'):
    host, port = address[4:].rsplit(':', 1)
    address = (host, int(port))
elif address.startswith('unix:'):
    address = address[5:]
try:
    if role == 'client':
        conn = connection.Client(address, authkey=key)
    elif role == 'listener':
        listener = connection.Listener(address if address != 'any' else None, authkey=key)
        where = listener.address
        print('unix:' + where if isinstance(where, str) else 'tcp:%s:%d' % where, flush=True)
        conn = listener.accept()
    elif role == 'answers':
        conn = connection.Client(address)
        connection.answer_challenge(conn, key)
    elif role == 'asks':
        conn = connection.Client(address)
        connection.deliver_challenge(conn, key, digest)
    conn.send_bytes(conn.recv_bytes()[::-1])
    print('done', flush=True)
except AuthenticationError:
    print('refused', flush=True)
except TypeError:
    print('too old for that', flush=True)
";

    struct Peer(Child, BufReader<std::process::ChildStdout>);

    impl Peer {
        fn start(python: &str, role: &str, key: &str, address: &str, digest: &str) -> Self {
            let mut child = Command::new(python)
                .args(["-c", PEER, role, key, address, digest])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let output = BufReader::new(child.stdout.take().unwrap());
            Self(child, output)
        }

        fn says(&mut self) -> String {
            let mut line = String::new();
            self.1.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        }
    }

    impl Drop for Peer {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn talk(connection: &Connection) {
        // Long enough for many pieces.
        let message: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
        connection.send(&message, &mut forever()).unwrap();
        let back = connection.receive(&mut forever()).unwrap();
        assert!(back.iter().rev().eq(&message));
    }

    fn listeners() -> [Listener; 2] {
        [private(), Listener::bind(&("127.0.0.1", 0).into(), &options()).unwrap()]
    }

    #[test]
    fn its_client_comes_to_our_listener() {
        for python in interpreters() {
            for listener in listeners() {
                let address = listener.address().to_string();
                let mut peer = Peer::start(&python, "client", "key", &address, "");
                let accept = |key| listener.accept_authenticated(key, Duration::MAX, &mut forever());
                talk(&accept(b"key").unwrap().0);
                assert_eq!(peer.says(), "done", "{python}");
                let mut peer = Peer::start(&python, "client", "another", &address, "");
                let error = accept(b"key").unwrap_err();
                assert!(
                    matches!(error, AcceptError::Client { error: HandshakeError::Authentication(_), .. }),
                    "{python}: {error:?}"
                );
                assert_eq!(peer.says(), "refused", "{python}");
            }
        }
    }

    #[test]
    fn our_client_comes_to_its_listener() {
        for python in interpreters() {
            for address in ["any", "tcp:127.0.0.1:0"] {
                let mut peer = Peer::start(&python, "listener", "key", address, "");
                let there = peer.says().parse().unwrap();
                talk(&connect_authenticated(&there, b"key", &mut forever()).unwrap());
                assert_eq!(peer.says(), "done", "{python}");
                let mut peer = Peer::start(&python, "listener", "key", address, "");
                let there = peer.says().parse().unwrap();
                let error = connect_authenticated(&there, b"another", &mut forever()).unwrap_err();
                assert!(matches!(error, HandshakeError::Authentication(_)), "{python}: {error:?}");
                assert_eq!(peer.says(), "refused", "{python}");
            }
        }
    }

    #[test]
    fn every_digest_is_understood_both_ways() {
        for python in interpreters() {
            for digest in Digest::ALL {
                let listener = private();
                let address = listener.address().to_string();
                let mut peer = Peer::start(&python, "answers", "key", &address, "");
                let (connection, _) = listener.accept(&mut forever()).unwrap();
                deliver_challenge(&connection, b"key", digest, &mut forever()).unwrap();
                talk(&connection);
                assert_eq!(peer.says(), "done", "{python}, {digest}");

                let mut peer = Peer::start(&python, "asks", "key", &address, digest.name());
                let (connection, _) = listener.accept(&mut forever()).unwrap();
                match answer_challenge(&connection, b"key", &mut forever()) {
                    Ok(()) => talk(&connection),
                    // Python 3.11 and older can't be told which one to ask for.
                    Err(error) => {
                        assert_eq!(peer.says(), "too old for that", "{python}, {digest}: {error}");
                        continue;
                    }
                }
                assert_eq!(peer.says(), "done", "{python}, {digest}");
            }
        }
    }
}
