//! The driver of the Rust face: `rust_driver METHOD SOCKET`.

use std::{
    cell::RefCell,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    rc::Rc,
};

use procession::{
    AcquireTimeoutError, Barrier, BoundedSemaphore, Condition, ConditionError, Event, JoinableQueue, Lock, LockGuard,
    Permit, Process, Queue, RLock, RLockGuard, RawValue, Recovered, Semaphore, StartMethod, TryAcquireError,
    sync::Guard,
};
use procession_conformance::serve::{
    Answer, DONE, Object, Objects, call, connect, expanded, number, seconds, serve, shortened, told, unknown,
};
use serde::{Deserialize, Serialize};

/// An object as it is handed to actors.
#[derive(Clone, Serialize, Deserialize)]
enum Shared {
    Lock(Lock),
    RLock(RLock),
    Semaphore(Semaphore),
    Bounded(BoundedSemaphore),
    Condition(Condition, String),
    Event(Event),
    Barrier(Barrier, Option<Event>),
    Queue(Queue<String>),
    Joinable(JoinableQueue<String>),
    Counter(RawValue<u64>),
}

/// All objects, in the order in which they were made.
type Given = Vec<(String, Shared)>;

/// What has guards. It is leaked, since the guards borrow it and stand beside it.
struct Held<L: 'static, G> {
    lock: &'static L,
    guards: RefCell<Vec<G>>,
    counters: Counters,
}

type Counters = Rc<RefCell<Vec<(String, RawValue<u64>)>>>;

impl<L, G> Held<L, G> {
    fn new(lock: L, counters: &Counters) -> Rc<Self> {
        Rc::new(Self { lock: Box::leak(Box::new(lock)), guards: RefCell::default(), counters: counters.clone() })
    }

    fn keep(&self, guard: G) -> Answer {
        self.guards.borrow_mut().push(guard);
        told("held")
    }

    fn recovered(&self, recovered: Recovered<G>) -> Answer {
        let owner = recovered.owner();
        self.keep(recovered.into_inner())?;
        told(format_args!("recovered {owner}"))
    }

    /// Gives up the guard that was got last. False if there is none.
    fn give_up(&self) -> bool {
        self.guards.borrow_mut().pop().is_some()
    }
}

macro_rules! acquirable {
    ($lock:ty, $guard:ty, $error:literal, $value:expr) => {
        impl Object for Held<$lock, $guard> {
            fn call(&self, method: &str, arguments: &[&str]) -> Answer {
                match (method, arguments) {
                    ("acquire", []) => match self.lock.acquire() {
                        Ok(guard) => self.keep(guard),
                        Err(recovered) => self.recovered(recovered),
                    },
                    ("acquire", [limit]) => match self.lock.acquire_timeout(seconds(limit)) {
                        Ok(guard) => self.keep(guard),
                        Err(AcquireTimeoutError::Recovered(recovered)) => self.recovered(recovered),
                        Err(_) => told("no"),
                    },
                    ("try", []) => match self.lock.try_acquire() {
                        Ok(guard) => self.keep(guard),
                        Err(TryAcquireError::Recovered(recovered)) => self.recovered(recovered),
                        Err(_) => told("no"),
                    },
                    ("release", []) if self.give_up() => DONE,
                    ("release", []) => self.lock.release().map_err(|_| $error).and(DONE),
                    ("count", [counter, times]) => {
                        let counters = self.counters.borrow();
                        let (_, counter) =
                            counters.iter().find(|(name, _)| name == counter).ok_or("no such counter")?;
                        for _ in 0..number(times) {
                            let _held = self.lock.acquire().unwrap_or_else(Recovered::into_inner);
                            counter.set(counter.get() + 1);
                        }
                        DONE
                    }
                    ("value", []) => told($value(self.lock)),
                    _ => unknown(&[method]),
                }
            }
        }
    };
}

type HeldLock = Rc<Held<Lock, LockGuard<'static>>>;
type HeldRLock = Rc<Held<RLock, RLockGuard<'static>>>;

acquirable!(Lock, LockGuard<'static>, "too_many", |lock: &Lock| u32::from(!lock.is_locked()));
acquirable!(RLock, RLockGuard<'static>, "not_owner", |lock: &RLock| u32::from(!lock.is_locked()));
acquirable!(Semaphore, Permit<'static>, "too_many", Semaphore::value);
acquirable!(BoundedSemaphore, Permit<'static>, "too_many", BoundedSemaphore::value);

/// A condition, with the lock whose guard it is used with.
struct ACondition<H>(Condition, H);

impl<L, G: Guard> Object for ACondition<Rc<Held<L, G>>> {
    fn call(&self, method: &str, arguments: &[&str]) -> Answer {
        let Self(condition, held) = self;
        let mut guards = held.guards.borrow_mut();
        let guard = guards.last_mut().ok_or("no guard: the types allow no such call")?;
        match (method, arguments) {
            ("wait", []) => match condition.wait(guard) {
                Ok(()) => told("notified"),
                Err(ConditionError::Recovered(recovered)) => {
                    told(format_args!("notified recovered {}", recovered.owner()))
                }
                Err(_) => Err("not_held"),
            },
            ("wait", [limit]) => {
                let outcome = |notified| if notified { "notified" } else { "timed_out" };
                match condition.wait_timeout(guard, seconds(limit)) {
                    Ok(notified) => told(outcome(notified)),
                    Err(ConditionError::Recovered(recovered)) => {
                        told(format_args!("{} recovered {}", outcome(*recovered.get_ref()), recovered.owner()))
                    }
                    Err(_) => Err("not_held"),
                }
            }
            ("notify", [count]) => condition.notify(guard, number(count) as usize).map_err(|_| "not_held").and(DONE),
            ("notify_all", []) => condition.notify_all(guard).map_err(|_| "not_held").and(DONE),
            _ => unknown(&[method]),
        }
    }
}

struct AnEvent(Event);

impl Object for AnEvent {
    fn call(&self, method: &str, arguments: &[&str]) -> Answer {
        match (method, arguments) {
            ("set", []) => self.0.set(),
            ("clear", []) => self.0.clear(),
            ("is_set", []) => return told(self.0.is_set()),
            ("wait", []) => {
                self.0.wait();
                return told(true);
            }
            ("wait", [limit]) => return told(self.0.wait_timeout(seconds(limit))),
            _ => return unknown(&[method]),
        }
        DONE
    }
}

struct ABarrier(Barrier, Option<Event>);

impl ABarrier {
    fn pass(&self, limit: &[&str]) -> Answer {
        let Self(barrier, event) = self;
        let action = |event: &Event| {
            assert!(!event.is_set(), "the action fails");
            event.set();
        };
        let passed = match (event, limit) {
            (None, []) => barrier.wait(),
            (None, [limit, ..]) => barrier.wait_timeout(seconds(limit)),
            (Some(event), []) => barrier.wait_with(|| action(event)),
            (Some(event), [limit, ..]) => barrier.wait_timeout_with(seconds(limit), || action(event)),
        };
        told(passed.map_err(|_| "broken")?)
    }
}

impl Object for ABarrier {
    fn call(&self, method: &str, arguments: &[&str]) -> Answer {
        match (method, arguments) {
            ("wait", limit) => {
                return catch_unwind(AssertUnwindSafe(|| self.pass(limit))).unwrap_or(Err("failed"));
            }
            ("abort", []) => self.0.abort(),
            ("reset", []) => self.0.reset(),
            ("waiting", []) => return told(self.0.waiting()),
            ("broken", []) => return told(self.0.is_broken()),
            _ => return unknown(&[method]),
        }
        DONE
    }
}

/// A queue, and itself if it can be joined.
struct AQueue(Queue<String>, Option<JoinableQueue<String>>);

impl AQueue {
    fn put(&self, text: &str) -> Answer {
        self.0.put(expanded(text)).map_err(|_| "the queue failed").and(DONE)
    }

    fn get(&self) -> Result<String, &'static str> {
        self.0.get().map_err(|_| "the queue failed")
    }

    fn joinable(&self) -> Result<&JoinableQueue<String>, &'static str> {
        self.1.as_ref().ok_or("not joinable")
    }
}

impl Object for AQueue {
    fn call(&self, method: &str, arguments: &[&str]) -> Answer {
        let Self(queue, _) = self;
        match (method, arguments) {
            ("put", [text]) => self.put(text),
            ("put", [text, limit]) => match queue.put_timeout(expanded(text), seconds(limit)) {
                Ok(()) => DONE,
                Err(error) if error.is_timed_out() => Err("full"),
                Err(_) => Err("the queue failed"),
            },
            ("try_put", [text]) => match queue.try_put(expanded(text)) {
                Ok(()) => DONE,
                Err(error) if error.is_full() => Err("full"),
                Err(_) => Err("the queue failed"),
            },
            ("get", []) => told(shortened(&self.get()?)),
            ("get", [limit]) => match queue.get_timeout(seconds(limit)) {
                Ok(text) => told(shortened(&text)),
                Err(error) if error.is_timed_out() => Err("empty"),
                Err(_) => Err("the queue failed"),
            },
            ("try_get", []) => match queue.try_get() {
                Ok(text) => told(shortened(&text)),
                Err(error) if error.is_empty() => Err("empty"),
                Err(_) => Err("the queue failed"),
            },
            ("put_many", [prefix, count]) => {
                (0..number(count)).try_for_each(|at| self.put(&format!("{prefix}{at}")).map(drop)).and(DONE)
            }
            ("get_many", [count]) => {
                let texts: Result<Vec<_>, _> = (0..number(count)).map(|_| self.get()).collect();
                told(texts?.join(" "))
            }
            ("len", []) => told(queue.len()),
            ("done", []) => self.joinable()?.task_done().map_err(|_| "too_many").and(DONE),
            ("join", []) => {
                self.joinable()?.join();
                DONE
            }
            _ => unknown(&[method]),
        }
    }
}

struct ACounter(RawValue<u64>);

impl Object for ACounter {
    fn call(&self, method: &str, _arguments: &[&str]) -> Answer {
        if method == "value" { told(self.0.get()) } else { unknown(&[method]) }
    }
}

/// The objects of this process.
#[derive(Default)]
struct Here {
    given: Given,
    objects: Objects,
    locks: Vec<(String, HeldLock)>,
    rlocks: Vec<(String, HeldRLock)>,
    counters: Counters,
}

fn named<'a, T>(list: &'a [(String, T)], name: &str) -> Option<&'a T> {
    list.iter().find(|(known, _)| known == name).map(|(_, object)| object)
}

impl Here {
    fn add(&mut self, name: &str, shared: Shared) {
        let object: Box<dyn Object> = match shared.clone() {
            Shared::Lock(lock) => {
                let held = Held::new(lock, &self.counters);
                self.locks.push((name.to_owned(), held.clone()));
                Box::new(held)
            }
            Shared::RLock(lock) => {
                let held = Held::new(lock, &self.counters);
                self.rlocks.push((name.to_owned(), held.clone()));
                Box::new(held)
            }
            Shared::Semaphore(semaphore) => Box::new(Held::<_, Permit<'static>>::new(semaphore, &self.counters)),
            Shared::Bounded(semaphore) => Box::new(Held::<_, Permit<'static>>::new(semaphore, &self.counters)),
            Shared::Condition(condition, lock) => match (named(&self.locks, &lock), named(&self.rlocks, &lock)) {
                (Some(held), _) => Box::new(ACondition(condition, held.clone())),
                (_, Some(held)) => Box::new(ACondition(condition, held.clone())),
                _ => panic!("no lock {lock}"),
            },
            Shared::Event(event) => Box::new(AnEvent(event)),
            Shared::Barrier(barrier, event) => Box::new(ABarrier(barrier, event)),
            Shared::Queue(queue) => Box::new(AQueue(queue, None)),
            Shared::Joinable(queue) => Box::new(AQueue((*queue).clone(), Some(queue))),
            Shared::Counter(counter) => {
                self.counters.borrow_mut().push((name.to_owned(), counter.clone()));
                Box::new(ACounter(counter))
            }
        };
        self.objects.insert(name.to_owned(), object);
        self.given.push((name.to_owned(), shared));
    }

    fn make(&self, kind: &str, arguments: &[&str]) -> io::Result<Shared> {
        let bound = |text: &str| number(text) as usize;
        Ok(match (kind, arguments) {
            ("lock", []) => Shared::Lock(Lock::new(())?),
            ("rlock", []) => Shared::RLock(RLock::new()?),
            ("semaphore", [value]) => Shared::Semaphore(Semaphore::new(number(value))?),
            ("bounded", [value]) => Shared::Bounded(BoundedSemaphore::new(number(value))?),
            ("condition", [lock]) => Shared::Condition(Condition::new()?, (*lock).to_owned()),
            ("event", []) => Shared::Event(Event::new()?),
            ("barrier", [parties]) => Shared::Barrier(Barrier::new(number(parties))?, None),
            ("barrier", [parties, event]) => match named(&self.given, event) {
                Some(Shared::Event(event)) => Shared::Barrier(Barrier::new(number(parties))?, Some(event.clone())),
                _ => return Err(io::Error::other("no such event")),
            },
            ("queue", []) => Shared::Queue(Queue::new()?),
            ("queue", [most]) => Shared::Queue(Queue::bounded(bound(most))?),
            ("joinable", []) => Shared::Joinable(JoinableQueue::new()?),
            ("joinable", [most]) => Shared::Joinable(JoinableQueue::bounded(bound(most))?),
            ("counter", []) => Shared::Counter(RawValue::new(0)?),
            _ => return Err(io::Error::other("no such kind")),
        })
    }
}

/// The life of an actor.
fn act(socket: PathBuf, name: String, given: Given) {
    let mut here = Here::default();
    for (name, shared) in given {
        here.add(&name, shared);
    }
    let served = connect(&socket, &name).and_then(|stream| serve(stream, |words| call(&here.objects, words)));
    served.expect("a connection to the suite");
}

fn start(method: StartMethod, socket: &Path, name: &str, here: &Here) -> Answer {
    let builder = Process::builder().daemon(true).start_method(method);
    match builder.spawn(act, (socket.to_owned(), name.to_owned(), here.given.clone())) {
        Ok(_) => DONE,
        Err(error) => {
            eprintln!("{error}");
            Err("can't be started")
        }
    }
}

fn main() -> io::Result<()> {
    procession::init();
    let mut arguments = std::env::args().skip(1);
    let (Some(method), Some(socket)) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("a start method and the path of a socket are needed"));
    };
    let method = match &*method {
        "spawn" => StartMethod::Spawn,
        "forkserver" => StartMethod::Forkserver,
        _ => return Err(io::Error::other("no such start method")),
    };
    let socket = PathBuf::from(socket);
    let mut here = Here::default();
    serve(connect(&socket, "main")?, |words| match words {
        ["make", kind, name, arguments @ ..] => {
            let made = here.make(kind, arguments).map_err(|error| {
                eprintln!("{error}");
                "can't be made"
            })?;
            here.add(name, made);
            DONE
        }
        ["start", name] => start(method, &socket, name, &here),
        words => call(&here.objects, words),
    })
}
