//! Processes, pools, queues, pipes, locks, shared values and managers: Python's `multiprocessing` for Rust programs.
//!
//! A function is run by another process as easily as by another thread. Processes share nothing unless they are told
//! to, so one can crash, be killed or run out of memory, and the others learn of it and go on: nobody waits for ever
//! for a process that has died, and nothing of it is left behind.
//!
//! Who knows the standard package of Python finds everything here under its name, with types.
//!
//! # Hello, world!
//!
//! ```
//! use procession::{Process, Queue};
//!
//! fn greet(greetings: Queue<String>, name: String) {
//!     greetings.put(format!("Hello, {name}!")).unwrap();
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     procession::init();
//!
//!     let greetings = Queue::new()?;
//!     let child = Process::spawn(greet, (greetings.clone(), "world".to_owned()))?;
//!     assert_eq!(greetings.get()?, "Hello, world!");
//!     child.join()?;
//!     Ok(())
//! }
//! ```
//!
//! # Start-up
//!
//! A process is started by executing the program once more. In [`init`] it finds out that it is not to be the program:
//! it runs the function that it was started for, and exits. So `init()` is the first line of `main`; what stands before
//! it is done by every process. [`#[procession::main]`](macro@main) puts it there:
//!
//! ```
//! #[procession::main]
//! fn main() {
//!     let child = procession::Process::spawn(std::process::id, ()).unwrap();
//!     assert_ne!(child.join().unwrap(), std::process::id());
//! }
//! ```
//!
//! Where it is missing nothing is started, and the error says so: [`StartError::NotInitialised`].
//!
//! # Functions, and what they are given
//!
//! Any `fn` can be run by another process, and any closure that captures nothing: see [`Function`]. There is nothing to
//! register, since the other process runs the same program. Arguments are given as a tuple. They are sent, and so is
//! the result: each is a [`Message`], that is whatever implements serde's `Serialize` and `Deserialize`, which structs
//! and enums derive.
//!
//! ```
//! use procession::Process;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Job {
//!     text: String,
//!     times: usize,
//! }
//!
//! impl Job {
//!     fn run(self) -> String {
//!         self.text.repeat(self.times)
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # procession::init();
//! // A method is a function, too. Here Python would derive a class from Process.
//! let child = Process::spawn(Job::run, (Job { text: "ab".into(), times: 3 },))?;
//! assert_eq!(child.join()?, "ababab");
//! # Ok(())
//! # }
//! ```
//!
//! [Queues](#queues), [connections](#pipes-and-connections), [locks and their kind](#locks), [shared
//! values](#shared-values) and the proxies of [managers](#managers) are messages themselves. What arrives is another
//! handle to the same thing. They travel as arguments, as results and inside of other messages: a queue through a
//! queue, if you like. Files and sockets do so in a [`Handle`].
//!
//! A `Vec` of bytes or numbers, and a `String`, goes as it lies in memory, without serde's way of element by element;
//! wrapped in [`Plain`] it does so inside of other values as well.
//!
//! # Processes
//!
//! [`Process::spawn`] returns a [`Child`], which knows its [`pid`](Child::pid) and its [`name`](Child::name), can be
//! waited for in several ways, and [terminated](Child::terminate) or [killed](Child::kill). [`join`](Child::join) gives
//! what the function returned, or an error that says what happened instead: a panic, with its message and its place in
//! the source; an exit code; a signal.
//!
//! ```
//! use procession::{JoinError, Process};
//! use std::{thread::sleep, time::Duration};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # procession::init();
//! let child = Process::spawn(|text: String| text.parse::<u32>().expect("a number"), ("12x".to_owned(),))?;
//! match child.join() {
//!     Err(JoinError::Panicked(panic)) => assert!(panic.message.starts_with("a number")),
//!     other => panic!("{other:?}"),
//! }
//!
//! let child = Process::builder().name("sleeper").daemon(true).spawn(|| sleep(Duration::from_secs(600)), ())?;
//! child.kill()?;
//! assert!(matches!(child.join(), Err(JoinError::Killed(9))));
//! # Ok(())
//! # }
//! ```
//!
//! With [`Process::builder`] a process gets a name, an environment, a working directory, standard streams of its own
//! and limits of what it may use. A daemonic one ends with its parent, even if that is killed; for all others the
//! parent waits at its end.
//!
//! # Pools
//!
//! A [`Pool`] has a number of processes at hand, which do one call after another:
//!
//! ```
//! use procession::Pool;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # procession::init();
//! let pool = Pool::new(2)?;
//!
//! // One call; one that is not waited for; one for each item, whose results come all at once; and one after the other.
//! assert_eq!(pool.apply(|a: f64, b: f64| a.hypot(b), (3.0, 4.0))?, 5.0);
//! let later = pool.apply_async(u64::pow, (2, 40))?;
//! assert_eq!(pool.map(|n: u64| n * n, 0..5)?, [0, 1, 4, 9, 16]);
//! for square in pool.imap(|n: u64| n * n, 0..)?.take(3) {
//!     println!("{}", square?);
//! }
//! assert_eq!(later.get()?, 1 << 40);
//! # Ok(())
//! # }
//! ```
//!
//! [`imap`](Pool::imap) asks its iterator for as many items as keep the workers busy, so that may be endless. What
//! [`apply_async`](Pool::apply_async) returns is also a [`Future`].
//!
//! A worker that dies fails the task that it was at, with an error that says how it died. It is replaced, and the pool
//! goes on. Each task ends in a result or an error, whatever happens.
//!
//! ```
//! use procession::{Exit, Pool, TaskError};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # procession::init();
//! let pool = Pool::new(2)?;
//! let result = pool.apply(|n: u32| if n == 7 { std::process::abort() } else { n }, (7,));
//! assert!(matches!(result, Err(TaskError::WorkerLost { exit: Exit::Signal(6), .. })));
//! assert_eq!(pool.apply(|n: u32| n + 1, (7,))?, 8);
//! # Ok(())
//! # }
//! ```
//!
//! [Options](Pool::options) of a call limit the time of its tasks, have them tried again when a worker dies, or put them before
//! others. What is not wanted any more is [cancelled](AsyncResult::cancel), and a pool can [grow](Pool::grow) and
//! [shrink](Pool::shrink). Its [builder](PoolBuilder) replaces workers after a number of tasks or with too much memory, binds
//! them to CPUs, and has them hand back at their end what they gathered.
//!
//! # Queues
//!
//! A [`Queue`] carries values between any number of processes and threads, on all sides of it. It is memory that they
//! share: a process that has put something may end, and what it has put is there. One that is bounded makes `put` wait
//! while it is full.
//!
//! ```
//! use procession::{Process, Queue};
//!
//! fn double(questions: Queue<u32>, answers: Queue<u32>) {
//!     loop {
//!         answers.put(questions.get().unwrap() * 2).unwrap();
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # procession::init();
//! let (questions, answers) = (Queue::bounded(10)?, Queue::new()?);
//! for _ in 0..2 {
//!     Process::builder().daemon(true).spawn(double, (questions.clone(), answers.clone()))?;
//! }
//! for n in 0..100 {
//!     questions.put(n)?;
//! }
//! assert_eq!((0..100).map(|_| answers.get()).sum::<Result<u32, _>>()?, 9900);
//! # Ok(())
//! # }
//! ```
//!
//! Each operation has three forms: `put` waits as long as it takes, `try_put` never does, `put_timeout` waits for so
//! long at most. What could not be put is given back in the error. A [`JoinableQueue`] knows besides whether what was
//! taken has also been dealt with, and a [`SimpleQueue`] is the least of them. Large plain data in a [`Buffer`] is handed over: the
//! receiver has it without a copy.
//!
//! # Pipes and connections
//!
//! [`pipe`] makes two connected ends. Each has two types: what it sends, and what it receives.
//!
//! ```
//! use procession::{Connection, Process, pipe};
//!
//! fn shout(connection: Connection<String, String>) {
//!     // Until the other end is gone.
//!     while let Ok(text) = connection.recv() {
//!         connection.send(&text.to_uppercase()).unwrap();
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # procession::init();
//! let (ours, theirs) = pipe()?;
//! let child = Process::spawn(shout, (theirs,))?;
//! ours.send(&"hello".to_owned())?;
//! assert_eq!(ours.recv()?, "HELLO");
//! drop(ours);
//! child.join()?;
//! # Ok(())
//! # }
//! ```
//!
//! Programs that are not related are connected by a [`Listener`] and a [`Client`], over a Unix socket or TCP, once each
//! has shown the other that it knows the key. [`wait`] waits for many connections, queues and children at once.
//!
//! # Locks
//!
//! A [`Lock`] owns what it guards, as a `Mutex` does. It works between processes, and it is released when its owner
//! dies. The next to acquire it is told so, by a [`Recovered`] with the guard in it; and as what was changed is written
//! back at the release, in one step, nothing half changed is ever seen.
//!
//! ```
//! use procession::{Lock, Process};
//!
//! fn withdraw(account: Lock<i64>) {
//!     let mut balance = account.acquire().unwrap();
//!     *balance -= 30;
//!     std::process::abort();
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # procession::init();
//! let account = Lock::new(100)?;
//! let child = Process::spawn(withdraw, (account.clone(),))?;
//! let pid = child.pid();
//! assert!(child.join().is_err());
//!
//! let recovered = account.acquire().unwrap_err();
//! assert_eq!(recovered.owner(), pid);
//! assert_eq!(*recovered.into_inner(), 100);
//! # Ok(())
//! # }
//! ```
//!
//! Its relatives are [`RLock`], [`Semaphore`], [`BoundedSemaphore`], [`Condition`], [`Event`] and [`Barrier`].
//!
//! # Shared values
//!
//! A [`Value`] and an [`Array`] are numbers, or structures of them ([`PlainData`]), in memory that processes share,
//! with a lock; a [`RawValue`] and a [`RawArray`] are so without. [`SharedMemory`] is a block of bytes with a name,
//! which processes that are not related can open, those of Python as well.
//!
//! ```
//! use procession::{Array, Process, Value};
//!
//! fn add_up(numbers: Array<u64>, sum: Value<u64>) {
//!     for number in &numbers {
//!         sum.update(|sum| *sum += number);
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # procession::init();
//! let (numbers, sum) = (Array::from_slice(&[1, 2, 3])?, Value::new(0)?);
//! Process::spawn(add_up, (numbers, sum.clone()))?.join()?;
//! assert_eq!(sum.get(), 6);
//! # Ok(())
//! # }
//! ```
//!
//! # Managers
//!
//! What shared memory cannot hold, a dictionary or a list that changes, or a type of your own, lives in the process of
//! a [`Manager`]. Others use it through proxies, which are messages. Processes of other programs and on other machines
//! [connect](Manager::connect) to it with its key.
//!
//! ```
//! use procession::{Manager, Process, manager::DictProxy};
//!
//! fn count(words: DictProxy<String, u32>, text: String) {
//!     for word in text.split_whitespace() {
//!         let before = words.get(word).unwrap().unwrap_or_default();
//!         words.set(word.to_owned(), before + 1).unwrap();
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # procession::init();
//! let manager = Manager::new()?;
//! let words = manager.dict([])?;
//! Process::spawn(count, (words.clone(), "to be or not to be".to_owned()))?.join()?;
//! assert_eq!(words.get("be")?, Some(2));
//! # Ok(())
//! # }
//! ```
//!
//! [`#[managed]`](macro@managed) on an `impl` block makes a type one that a manager can have, and a proxy for it.
//!
//! # When a process dies
//!
//! Whatever a process was at when it was killed, others go on, and learn of it where they would have waited for it:
//!
//! | It died | The others see |
//! | --- | --- |
//! | before its function returned | [`JoinError::Killed`] or [`JoinError::Exited`] from [`Child::join`] |
//! | as a worker of a pool, at a task | [`TaskError::WorkerLost`] for that task; a new worker |
//! | with a lock, or a permit of a semaphore | [`Recovered`], with the guard in it |
//! | putting into a queue, or getting from it | the queue, with the message or without it; the one it got is lost |
//! | at the other end of a pipe | what it had sent, then [`RecvError::Disconnected`] |
//! | waiting for a condition, an event or a barrier | nothing: nobody waits for an answer of the dead |
//! | as the server of a manager | an error of each call, at once |
//! | as the parent | daemonic children and the workers of its pools are killed; other children go on |
//!
//! Nothing has a name in the file system (but [`SharedMemory`], and the socket of a [`Listener`] that has one), so
//! nothing is left there.
//!
//! # Start methods
//!
//! | | a child is | it takes | it has |
//! | --- | --- | --- | --- |
//! | [`StartMethod::Spawn`] | the program, executed anew | about a millisecond | what it is given |
//! | [`StartMethod::Forkserver`] | a copy of a process that was started early and has no threads | a third of that | what it is given, and what was [prepared](forkserver::set_preload) |
//! | [`process::fork`] | a copy of this process | the less the smaller this is | everything; it is `unsafe`, and refuses where there are threads |
//!
//! Spawn is what is used unless [`set_start_method`] or a builder says otherwise.
//!
//! # Tests and libraries
//!
//! The harness of `cargo test` has a `main` of its own. [`test_support!`], once in each test program, stands in for
//! `init()` there; `cargo nextest` and unit tests are fine with it, too. In doctests with a `fn main`, `init()` is the
//! first line, as everywhere.
//!
//! A library for other Rust programs asks those to call [`init`]; what it starts is then found in their program. A
//! library that is loaded by a program which knows nothing of procession, such as an extension module or a plugin,
//! names a program that loads it and calls `init`, by [`set_executable`].
//!
//! # Features
//!
//! * `tokio`: queues, connections, results of pools and children can be awaited in a Tokio runtime.
//! * `tracing`: starts and ends of processes, lost workers and recovered locks are events.
//!
//! None is on unless asked for. procession runs on Linux.

mod address;
mod array;
#[cfg(feature = "tokio")]
mod asynchronous;
mod bootstrap;
mod buffer;
mod client;
mod code;
pub mod connection;
pub mod forkserver;
mod function;
mod handover;
mod init;
mod interrupts;
mod invitation;
mod joinable_queue;
mod launched;
mod listener;
pub mod manager;
mod message;
mod panic;
mod pipe;
pub mod pool;
pub mod process;
mod published;
pub mod queue;
mod raw_array;
mod room;
mod shared_memory;
mod simple_queue;
mod start;
pub mod sync;
mod test_support;
mod value;
mod wait;

pub use init::{init, set_executable};
/// Makes `init()` the first line of `main`.
///
/// ```
/// use procession::Process;
///
/// #[procession::main]
/// fn main() {
///     let child = Process::spawn(|a: u32, b: u32| a + b, (1, 2)).unwrap();
///     assert_eq!(child.join().unwrap(), 3);
/// }
/// ```
///
pub use procession_macros::main;
pub use start::{StartError, StartMethod, set_start_method, start_method};

pub use process::{
    ActiveChild, Child, Exit, JoinError, Process, Stdio, active_children, cpu_count, current_process, parent_process,
};

pub use pool::{AsyncResult, Pool, PoolBuilder, TaskError};

pub use joinable_queue::JoinableQueue;
pub use queue::Queue;
pub use simple_queue::SimpleQueue;

pub use address::{Address, BadAddress};
pub use client::{AuthenticationError, Client, ConnectError};
pub use connection::{Connection, Receiver, RecvError, RecvTimeoutError, SendError, Sender, TryRecvError};
pub use listener::{AcceptError, Listener, ListenerBuilder};
pub use pipe::{one_way_pipe, pipe};
pub use wait::wait;

pub use sync::{
    AcquireTimeoutError, Barrier, BoundedSemaphore, BrokenBarrier, Condition, ConditionError, Event, Lock, LockGuard,
    Permit, PlainData, RLock, RLockGuard, Recovered, Semaphore, TryAcquireError,
};

pub use array::{Array, ArrayGuard};
pub use procession_core::memory::OutOfRange;
pub use raw_array::{IndexError, RawArray};
pub use shared_memory::{SharedMemory, SharedMemoryError};
pub use value::{RawValue, Value};
/// For the derives that [`PlainData`] wants.
pub use zerocopy;

pub use manager::{Manager, ManagerError};
/// Lets objects of a type of the program be in a [`Manager`].
///
/// ```
/// use procession::Manager;
///
/// pub struct Account(i64);
///
/// #[procession::managed]
/// impl Account {
///     pub fn open() -> Self {
///         Self(0)
///     }
///
///     pub fn pay_in(&mut self, amount: u32) -> i64 {
///         self.0 += i64::from(amount);
///         self.0
///     }
///
///     pub fn balance(&self) -> i64 {
///         self.0
///     }
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let manager = Manager::builder().register::<Account>().start()?;
///     let account = AccountProxy::open(&manager)?;
///     account.pay_in(100)?;
///     assert_eq!(account.balance()?, 100);
///     Ok(())
/// }
/// ```
///
pub use procession_macros::managed;

pub use buffer::Buffer;
pub use code::ForeignCode;
pub use function::Function;
pub use handover::{DescriptorError, Handle};
pub use message::{DecodeError, EncodeError, Message, Plain};
pub use panic::{Location, Panic};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// For the macros only.
#[doc(hidden)]
pub mod __private {
    pub use crate::test_support::before_main;
}

#[cfg(test)]
test_support!();
