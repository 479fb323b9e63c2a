//! A driver and its actors, as a scenario has them.

use std::{
    cell::RefCell,
    ffi::OsString,
    fmt::Display,
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// After so long without an answer a scenario has failed.
const WATCHDOG: Duration = Duration::from_secs(60);
/// How long is looked whether somebody really waits.
const A_MOMENT: Duration = Duration::from_millis(60);
/// How long it may take until somebody waits. The standard package does not always wait as we can see it.
const ARRIVAL: Duration = Duration::from_secs(5);

/// How a driver is started.
#[derive(Clone, Debug)]
pub struct Driver {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, before that of the socket.
    pub arguments: Vec<OsString>,
}

impl Driver {
    /// A program with arguments.
    pub fn new<A: Into<OsString>>(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = A>) -> Self {
        Self { program: program.into(), arguments: arguments.into_iter().map(Into::into).collect() }
    }
}

/// A driver that was started, with what it has made. Dropping it ends the driver and all actors.
#[derive(Debug)]
pub struct Stage {
    listener: UnixListener,
    socket: Socket,
    driver: Child,
    main: Option<Actor>,
}

/// A path that is removed at the end.
#[derive(Debug)]
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Socket {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("procession-conformance-{}-{number}", std::process::id())))
    }
}

impl Stage {
    /// Starts a driver.
    ///
    /// # Panics
    ///
    /// If it does not come up.
    pub fn open(driver: &Driver) -> Self {
        let socket = Socket::new();
        let listener = UnixListener::bind(&socket.0).expect("a socket for the actors");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let started = Command::new(&driver.program).args(&driver.arguments).arg(&socket.0).spawn();
        let driver = started.unwrap_or_else(|error| panic!("{}: {error}", driver.program.display()));
        let mut stage = Self { listener, socket, driver, main: None };
        stage.main = Some(stage.arrival("main"));
        stage
    }

    /// Has an object made, described as in `PROTOCOL.md`. Actors that are started from now on have it.
    pub fn make(&self, object: &str) {
        assert_eq!(self.main().call(format_args!("make {object}")), "");
    }

    /// The driver itself: a process that has all objects, too.
    ///
    /// # Panics
    ///
    /// Never: it is there from the beginning.
    pub fn main(&self) -> &Actor {
        self.main.as_ref().expect("there from the beginning")
    }

    /// Starts an actor.
    pub fn start(&mut self, name: &str) -> Actor {
        assert_eq!(self.main().call(format_args!("start {name}")), "");
        self.arrival(name)
    }

    /// Starts so many.
    pub fn crowd(&mut self, count: usize) -> Vec<Actor> {
        (0..count).map(|number| self.start(&format!("actor{number}"))).collect()
    }

    /// Waits for a connection.
    fn arrival(&mut self, name: &str) -> Actor {
        let began = Instant::now();
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("no actor: {error}"),
            }
            if let Some(status) = self.driver.try_wait().expect("asking for the driver") {
                panic!("the driver ended ({status}) before {name:?} was there");
            }
            assert!(began.elapsed() < WATCHDOG, "{name:?} did not come to {}", self.socket.0.display());
            std::thread::sleep(Duration::from_millis(1));
        };
        stream.set_nonblocking(false).expect("a socket that blocks");
        Actor::meet(stream, name)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// A process of the driver, and the connection to it. Dropping it kills the process.
#[derive(Debug)]
pub struct Actor {
    name: String,
    pid: u32,
    pidfd: OwnedFd,
    connection: RefCell<Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: BufReader<UnixStream>,
    /// What has arrived of an answer.
    line: String,
    /// What was asked last.
    command: String,
}

impl Connection {
    /// Reads an answer; `None` if it is not there in time.
    fn line(&mut self, limit: Duration) -> io::Result<Option<String>> {
        if self.line.ends_with('\n') {
            return Ok(Some(std::mem::take(&mut self.line)));
        }
        self.stream.get_ref().set_read_timeout(Some(limit))?;
        match self.stream.read_line(&mut self.line) {
            Ok(_) if self.line.ends_with('\n') => Ok(Some(std::mem::take(&mut self.line))),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Actor {
    fn meet(stream: UnixStream, name: &str) -> Self {
        let command = "hello".to_owned();
        let mut connection = Connection { stream: BufReader::new(stream), line: String::new(), command };
        let hello = connection.line(WATCHDOG).expect("a connection").expect("an actor that says hello");
        let mut words = hello.split_ascii_whitespace();
        assert_eq!((words.next(), words.next()), (Some("hello"), Some(name)));
        let pid: u32 = words.next().and_then(|word| word.parse().ok()).expect("the number of the process");
        let process = Pid::from_raw(pid.cast_signed()).expect("the number of a process");
        let pidfd = pidfd_open(process, PidfdFlags::empty()).expect("a process that lives");
        Self { name: name.to_owned(), pid, pidfd, connection: RefCell::new(connection) }
    }

    /// The number of the process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks for something, and does not wait for the answer.
    pub fn begin(&self, command: impl Display) {
        let mut connection = self.connection.borrow_mut();
        connection.command = command.to_string();
        let line = format!("{command}\n");
        let sent = connection.stream.get_mut().write_all(line.as_bytes());
        sent.unwrap_or_else(|error| panic!("{} can't be asked for {command}: {error}", self.name));
    }

    /// Waits for the answer: what was returned, or `error` and what was raised.
    pub fn answer(&self) -> String {
        let mut connection = self.connection.borrow_mut();
        let (name, command) = (&self.name, connection.command.clone());
        match connection.line(WATCHDOG) {
            Ok(Some(line)) => {
                let line = line.trim_end();
                line.strip_prefix("ok").map_or_else(|| line.to_owned(), |result| result.trim_start().to_owned())
            }
            Ok(None) => panic!("{name} waits for ever in: {command}"),
            Err(error) => panic!("{name} is gone ({error}) in: {command}"),
        }
    }

    /// Asks for something and waits for the answer.
    pub fn call(&self, command: impl Display) -> String {
        self.begin(command);
        self.answer()
    }

    /// Makes sure that the answer is not there for a while.
    pub fn is_waiting(&self) {
        let began = Instant::now();
        loop {
            let mut connection = self.connection.borrow_mut();
            let (name, command) = (&self.name, connection.command.clone());
            match connection.line(A_MOMENT) {
                Ok(None) => {}
                Ok(Some(line)) => panic!("{name} does not wait in: {command}. It says: {line}"),
                Err(error) => panic!("{name} is gone ({error}) in: {command}"),
            }
            // On a busy machine it may not have come so far yet.
            if self.sleeps_on_a_word() || began.elapsed() > ARRIVAL {
                return;
            }
        }
    }

    /// Whether its first thread sleeps on a word of memory, as all that wait here do. True if that can't be known.
    fn sleeps_on_a_word(&self) -> bool {
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", self.pid)).unwrap_or_default();
        let number: Option<i64> = call.split(' ').next().and_then(|number| number.parse().ok());
        match number {
            Some(number) => number == libc::SYS_futex,
            None => call.is_empty(),
        }
    }

    /// Whether the answer is there by now. Waits a moment for it.
    pub fn answers(&self) -> bool {
        let mut connection = self.connection.borrow_mut();
        match connection.line(A_MOMENT) {
            Ok(None) => false,
            Ok(Some(line)) => {
                connection.line = line;
                true
            }
            Err(error) => panic!("{} is gone ({error}) in: {}", self.name, connection.command),
        }
    }

    /// Asks for something that has to wait, and makes sure that it does.
    pub fn begin_to_wait(&self, command: impl Display) {
        self.begin(command);
        self.is_waiting();
    }

    /// Kills the process, and waits until nothing of it runs any more. Returns its number.
    pub fn kill(self) -> u32 {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        // A pidfd is readable from the moment that its process is a zombie.
        let mut ended = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        let limit = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut ended, Some(&limit));
        self.pid
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

/// Where this crate has files that are no Rust.
pub fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
