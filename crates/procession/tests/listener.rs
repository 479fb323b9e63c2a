//! Listeners and their clients between real processes.

use std::{
    fs::File,
    io::{self, Write},
    net::TcpListener,
    os::fd::OwnedFd,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use procession::{
    AcceptError, Address, Child, Client, ConnectError, Connection, Handle, Listener, Process, RecvError, SendError,
};

procession::test_support!();

const SHORT: Duration = Duration::from_millis(20);
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(100);

#[test]
fn nothing_is_left_open() {
    /// In a process of its own, where nobody else opens files.
    fn use_many() -> (usize, usize) {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let round = || {
            let listener: Listener<Handle<OwnedFd>, u32> = Listener::builder().authkey(b"key").private().unwrap();
            let address = listener.address().clone();
            let clients = thread::spawn(move || {
                let wrong = Client::new(address.clone()).authkey(b"wrong").connect::<u32, u32>();
                assert!(wrong.is_err());
                let right: Connection<u32, Handle<OwnedFd>> = Client::new(address).authkey(b"key").connect().unwrap();
                drop(right.recv().unwrap());
                // Left unread: a descriptor on its way.
                right.poll(LONG).unwrap();
            });
            let connections: Vec<_> = listener.incoming().take(2).collect();
            let [Err(_), Ok(connection)] = &connections[..] else { panic!("{connections:?}") };
            for _ in 0..2 {
                connection.send(&Handle(io::pipe().unwrap().0.into())).unwrap();
            }
            clients.join().unwrap();
        };
        round();
        let before = open();
        (0..20).for_each(|_| round());
        (before, open())
    }
    let (before, after) = Process::spawn(use_many, ()).unwrap().join().unwrap();
    assert_eq!(before, after);
}

#[test]
fn clients_of_each_kind() {
    fn client(address: Address) {
        let connection: Connection<String, u32> = Client::new(address).connect().unwrap();
        connection.send(&"one, please".to_owned()).unwrap();
        assert_eq!(connection.recv().unwrap(), 1);
        assert!(matches!(connection.recv(), Err(RecvError::Disconnected)));
    }
    let name = format!("procession-face-{}", std::process::id());
    let listeners: [Listener<u32, String>; 3] = [
        Listener::private().unwrap(),
        Listener::bind(Address::abstract_name(name)).unwrap(),
        Listener::bind(Address::tcp("localhost", 0)).unwrap(),
    ];
    for listener in listeners {
        let child = Process::spawn(client, (listener.address().clone(),)).unwrap();
        let connection = listener.accept().unwrap();
        assert_eq!(connection.peer_address().is_some(), !listener.address().is_local());
        assert_eq!(connection.recv().unwrap(), "one, please");
        connection.send(&1).unwrap();
        drop(connection);
        child.join().unwrap();
    }
}

#[test]
fn descriptors_go_to_local_clients_only() {
    for (address, local) in [(None, true), (Some(Address::tcp("localhost", 0)), false)] {
        let listener: Listener<Handle<OwnedFd>, ()> = address.map_or_else(Listener::private, Listener::bind).unwrap();
        let there = listener.address().clone();
        let client = thread::spawn(|| Client::new(there).connect::<(), Handle<OwnedFd>>().unwrap());
        let connection = listener.accept().unwrap();
        let client = client.join().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let sent = connection.send(&Handle(writer.into()));
        if local {
            sent.unwrap();
            File::from(client.recv().unwrap().0).write_all(b"here").unwrap();
            assert_eq!(io::read_to_string(reader).unwrap(), "here");
        } else {
            let error = sent.unwrap_err();
            assert!(matches!(error, SendError::Encode(_)), "{error:?}");
            assert_eq!(
                error.to_string(),
                "the value can't be sent: it has descriptors, which can't be sent to another machine or another user"
            );
        }
    }
}

#[test]
fn a_listener_is_served_by_several_processes() {
    fn serve(listener: Listener<u32, ()>) {
        // It ends with the test.
        for connection in listener.incoming().flatten() {
            connection.send(&std::process::id()).unwrap();
        }
    }
    let listener = Listener::private().unwrap();
    let servers: Vec<_> = (0..2).map(|_| Process::spawn(serve, (listener.clone(),)).unwrap()).collect();
    let pids: Vec<u32> = servers.iter().map(Child::pid).collect();
    for _ in 0..20 {
        let client: Connection<(), u32> = Client::new(listener.address().clone()).connect().unwrap();
        assert!(pids.contains(&client.recv().unwrap()));
    }
    let path = listener.address().path().unwrap().to_owned();
    for server in servers {
        server.kill().unwrap();
        server.join().unwrap_err();
    }
    assert!(path.exists());
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn the_standard_package_of_python_is_understood() {
    let script = "
import sys
from multiprocessing.connection import Client
with Client(sys.argv[1], authkey=b'our key') as connection:
    connection.send_bytes(b'from Python')
    print(connection.recv_bytes().decode())
";
    let listener: Listener<Vec<u8>, String> = Listener::builder().authkey(b"our key").private().unwrap();
    let python = std::env::var("VIRTUAL_ENV").map_or("python3".into(), |venv| format!("{venv}/bin/python"));
    let path = listener.address().path().unwrap();
    let Ok(client) = Command::new(python).args(["-c", script]).arg(path).stdout(Stdio::piped()).spawn() else {
        eprintln!("there is no Python to talk to: nothing was tested");
        return;
    };
    let connection = listener.accept().unwrap();
    assert_eq!(connection.recv().unwrap(), "from Python");
    connection.send(&b"from Rust".to_vec()).unwrap();
    assert_eq!(client.wait_with_output().unwrap().stdout, b"from Rust\n");
}

#[test]
fn keys_that_differ_keep_apart() {
    let listener: Listener<u32, u32> = Listener::builder().authkey(b"one").private().unwrap();
    let address = listener.address().clone();
    let client = thread::spawn(|| Client::new(address).authkey(b"another").connect::<u32, u32>());
    let error = listener.accept().unwrap_err();
    assert!(matches!(error, AcceptError::Client { error: ConnectError::Authentication(_), peer: None }), "{error:?}");
    let error = client.join().unwrap().unwrap_err();
    assert!(matches!(error, ConnectError::Authentication(_)), "{error:?}");
}

#[test]
fn one_who_says_nothing_is_given_up_and_holds_up_nobody() {
    let listener: Arc<Listener<u32, u32>> =
        Arc::new(Listener::builder().handshake_timeout(Duration::from_millis(200)).private().unwrap());
    let silent = std::os::unix::net::UnixStream::connect(listener.address().path().unwrap()).unwrap();
    let address = listener.address().clone();
    let client = thread::spawn(|| Client::new(address).connect::<u32, u32>().unwrap());
    let mut refused = 0;
    let connection = loop {
        match listener.accept_timeout(LONG) {
            Ok(connection) => break connection,
            Err(AcceptError::Client { error: ConnectError::TimedOut, .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    };
    connection.send(&1).unwrap();
    assert_eq!(client.join().unwrap().recv().unwrap(), 1);
    if refused == 0 {
        let error = listener.accept_timeout(LONG).unwrap_err();
        assert!(matches!(error, AcceptError::Client { error: ConnectError::TimedOut, .. }), "{error:?}");
    }
    drop(silent);
}

#[test]
fn a_listener_that_says_nothing_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::new(silent.local_addr().unwrap());
    let error = client.clone().timeout(SHORT).connect::<u32, u32>().unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut), "{error:?}");
    let other = thread::spawn(move || silent.accept().map(|_| silent.accept().map(drop)));
    let error = client.connect::<u32, u32>().unwrap_err();
    assert!(matches!(error, ConnectError::Disconnected | ConnectError::Io(_)), "{error:?}");
    other.join().unwrap().unwrap().unwrap();
}

#[test]
fn a_child_of_another_key_is_refused() {
    fn client(address: Address) -> bool {
        procession::current_process().set_authkey(b"made up");
        Client::new(address).connect::<u32, u32>().is_err()
    }
    let listener = Listener::<u32, u32>::private().unwrap();
    let child = Process::spawn(client, (listener.address().clone(),)).unwrap();
    listener.accept().unwrap_err();
    assert!(child.join().unwrap());
}
