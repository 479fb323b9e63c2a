//! A queue in a manager.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use procession_core::manager::{Caller, Ended, Failure, Object};
use thiserror::Error;

use super::{
    Manager, ManagerError, Refusal, deadline,
    reference::{Reference, limit, proxy},
    wire::{Reader, Stored, Writer},
};
use crate::Message;

/// The server's side of a queue, with or without the counting of tasks.
#[derive(Debug)]
pub(super) struct Queue {
    joinable: bool,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Zero is without a limit.
    most: usize,
    state: Mutex<State>,
    not_empty: Condvar,
    not_full: Condvar,
    all_done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Stored>,
    unfinished: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    pub(super) fn new(joinable: bool, arguments: &[u8]) -> Result<Self, Failure> {
        let most = Reader(arguments).index()?;
        let shared = Shared {
            most,
            state: Mutex::default(),
            not_empty: Condvar::new(),
            not_full: Condvar::new(),
            all_done: Condvar::new(),
        };
        Ok(Self { joinable, shared: Arc::new(shared) })
    }

    /// Whether there was room in time.
    fn put(&self, item: Stored, limit: u64, caller: &Caller<'_>) -> Result<bool, Failure> {
        let mut state = self.shared.lock();
        let mut waiting = caller.waiting(deadline(limit));
        while self.shared.most > 0 && state.items.len() >= self.shared.most {
            state = match waiting.wait(&self.shared.not_full, state) {
                Ok(state) => state,
                Err((_, Ended::Gone)) => return Err(Failure::Gone),
                Err((_, Ended::TimedOut)) => return Ok(false),
            };
        }
        state.items.push_back(item);
        state.unfinished += 1;
        drop(state);
        self.shared.not_empty.notify_one();
        Ok(true)
    }

    /// The first item, if there was one in time.
    fn get(&self, limit: u64, caller: &Caller<'_>) -> Result<Option<Stored>, Failure> {
        let mut state = self.shared.lock();
        let mut waiting = caller.waiting(deadline(limit));
        loop {
            if let Some(item) = state.items.pop_front() {
                drop(state);
                self.shared.not_full.notify_one();
                return Ok(Some(item));
            }
            state = match waiting.wait(&self.shared.not_empty, state) {
                Ok(state) => state,
                Err((_, Ended::Gone)) => return Err(Failure::Gone),
                Err((_, Ended::TimedOut)) => return Ok(None),
            };
        }
    }
}

impl Object for Queue {
    fn type_name(&self) -> &'static str {
        if self.joinable { "JoinableQueue" } else { "Queue" }
    }

    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        let arguments = &mut Reader(arguments);
        let mut reply = Writer::default();
        match method {
            "put" => {
                let limit = arguments.number()?;
                let item = arguments.value()?.keep(caller)?;
                reply.flag(self.put(item, limit, caller)?);
            }
            "get" => {
                let item = self.get(arguments.number()?, caller)?;
                reply.maybe(item.as_ref(), caller);
                if let Some(item) = item {
                    // Its client died just now: the item is for another.
                    let shared = Arc::clone(&self.shared);
                    caller.if_undelivered(move || {
                        shared.lock().items.push_front(item);
                        shared.not_empty.notify_one();
                    });
                }
            }
            "len" => {
                reply.number(self.shared.lock().items.len() as u64);
            }
            "is_full" => {
                let most = self.shared.most;
                reply.flag(most > 0 && self.shared.lock().items.len() >= most);
            }
            "task_done" if self.joinable => {
                let mut state = self.shared.lock();
                state.unfinished = state.unfinished.checked_sub(1).ok_or(Refusal::TooManyDone)?;
                if state.unfinished == 0 {
                    self.shared.all_done.notify_all();
                }
            }
            "join" if self.joinable => {
                let mut state = self.shared.lock();
                let mut waiting = caller.waiting(deadline(arguments.number()?));
                while state.unfinished > 0 {
                    state = match waiting.wait(&self.shared.all_done, state) {
                        Ok(state) => state,
                        Err((_, Ended::Gone)) => return Err(Failure::Gone),
                        Err((_, Ended::TimedOut)) => return Ok(reply.flag(false).0.clone()),
                    };
                }
                reply.flag(true);
            }
            _ => return Err(Failure::NoSuchMethod),
        }
        Ok(reply.0)
    }
}

/// An item was not put into a managed queue: here it is again.
#[derive(Debug, Error)]
pub enum QueuePutError<T> {
    /// There was no room in time.
    #[error("the queue is full")]
    Full(T),
    /// The call failed.
    #[error("{1}")]
    Manager(T, #[source] ManagerError),
}

impl<T> QueuePutError<T> {
    /// The item.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(item) | Self::Manager(item, _) => item,
        }
    }

    /// Whether there was no room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }
}

proxy! {
    /// A queue in a manager: any number of processes put items into it, and any number get them.
    ///
    /// Related processes of one machine have [`Queue`](crate::Queue), which is many times as fast. This one can be had from
    /// anywhere.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let queue = manager.queue::<String>(2)?;
    ///     queue.put("one".into())?;
    ///     queue.put("two".into())?;
    ///     assert_eq!(queue.try_put("three".into()).unwrap_err().into_inner(), "three");
    ///     assert_eq!(queue.get()?, "one");
    ///     assert_eq!(queue.len()?, 1);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Each call may fail with a [`ManagerError`]: most of all, the manager has ended. Who waits blocks nobody but the
    /// thread itself. An item that a process took, and that was not yet on its way to it when it died, is put back.
    QueueProxy<T>
}

proxy! {
    /// A [`QueueProxy`] that also counts tasks: those put in, and those that somebody said are done.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let tasks = manager.joinable_queue(0)?;
    ///     tasks.put(5)?;
    ///     assert_eq!(tasks.get()?, 5);
    ///     tasks.task_done()?;
    ///     tasks.join()?;
    ///     Ok(())
    /// }
    /// ```
    JoinableQueueProxy<T>
}

impl Manager {
    /// Makes a queue for so many items; without a limit if that is zero.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn queue<T: Message>(&self, max_size: usize) -> Result<QueueProxy<T>, ManagerError> {
        self.make("Queue", Writer::default().number(max_size as u64)).map(QueueProxy::new)
    }

    /// Makes a queue that counts tasks, for so many items; without a limit if that is zero.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn joinable_queue<T: Message>(&self, max_size: usize) -> Result<JoinableQueueProxy<T>, ManagerError> {
        self.make("JoinableQueue", Writer::default().number(max_size as u64)).map(JoinableQueueProxy::new)
    }
}

fn put<T: Message>(reference: &Reference, item: T, timeout: Option<Duration>) -> Result<(), QueuePutError<T>> {
    let mut arguments = Writer::default();
    arguments.number(limit(timeout));
    let put = reference.write(&mut arguments, &item).and_then(|()| reference.ask_flag("put", &arguments));
    match put {
        Ok(true) => Ok(()),
        Ok(false) => Err(QueuePutError::Full(item)),
        Err(error) => Err(QueuePutError::Manager(item, error)),
    }
}

fn get<T: Message>(reference: &Reference, timeout: Option<Duration>) -> Result<Option<T>, ManagerError> {
    reference.ask_maybe("get", Writer::default().number(limit(timeout)))
}

/// What the two kinds have in common.
macro_rules! queue {
    ($name:ident) => {
        #[expect(clippy::missing_errors_doc, reason = "said for all of them at the type")]
        impl<T: Message> $name<T> {
            /// Puts an item in; blocks while there is no room.
            pub fn put(&self, item: T) -> Result<(), QueuePutError<T>> {
                put(&self.reference, item, None)
            }

            /// Puts an item in if there is room now.
            pub fn try_put(&self, item: T) -> Result<(), QueuePutError<T>> {
                self.put_timeout(item, Duration::ZERO)
            }

            /// Puts an item in; blocks while there is no room, but not longer.
            pub fn put_timeout(&self, item: T, timeout: Duration) -> Result<(), QueuePutError<T>> {
                put(&self.reference, item, Some(timeout))
            }

            /// Takes the first item out; blocks while there is none.
            pub fn get(&self) -> Result<T, ManagerError> {
                // Without a limit it is never told that there was none.
                get(&self.reference, None)?.ok_or(ManagerError::Malformed)
            }

            /// Takes the first item out, if there is one now.
            pub fn try_get(&self) -> Result<Option<T>, ManagerError> {
                self.get_timeout(Duration::ZERO)
            }

            /// Takes the first item out; blocks while there is none, but not longer.
            pub fn get_timeout(&self, timeout: Duration) -> Result<Option<T>, ManagerError> {
                get(&self.reference, Some(timeout))
            }

            /// How many items there are.
            pub fn len(&self) -> Result<usize, ManagerError> {
                self.reference.ask_number("len", &Writer::default()).map(|length| length as usize)
            }

            /// Whether there is no item.
            pub fn is_empty(&self) -> Result<bool, ManagerError> {
                self.len().map(|length| length == 0)
            }

            /// Whether there is no room.
            pub fn is_full(&self) -> Result<bool, ManagerError> {
                self.reference.ask_flag("is_full", &Writer::default())
            }
        }
    };
}

queue!(QueueProxy);
queue!(JoinableQueueProxy);

#[expect(clippy::missing_errors_doc, reason = "said for all of them at the type")]
impl<T: Message> JoinableQueueProxy<T> {
    /// Says that a task is done which was taken out. [`Refusal::TooManyDone`] if there was none.
    pub fn task_done(&self) -> Result<(), ManagerError> {
        self.reference.tell("task_done", &Writer::default())
    }

    /// Blocks until all tasks that were put in are done.
    pub fn join(&self) -> Result<(), ManagerError> {
        self.reference.ask_flag("join", Writer::default().number(limit(None))).map(drop)
    }

    /// Blocks until all tasks are done, but not longer; whether they are.
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool, ManagerError> {
        self.reference.ask_flag("join", Writer::default().number(limit(Some(timeout))))
    }
}
