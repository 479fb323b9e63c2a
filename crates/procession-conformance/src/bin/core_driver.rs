//! The driver of the core: its actors are forks of it.
#![allow(unsafe_code)]

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
};

use procession_conformance::serve::{
    Answer, DONE, Object, Objects, call, connect, expanded, number, seconds, serve, shortened, told, unknown,
};
use procession_core::{
    channel::{Message, PutError, Queue, TakeError},
    memory::Bytes,
    sync::{
        Acquired, Barrier, Condition, ConditionError, Event, Lock, Monitor, Passage, RLock, Semaphore, Wait, WaitError,
    },
};

fn wait(arguments: &[&str]) -> Wait<'static> {
    arguments.first().map_or_else(Wait::forever, |text| Wait::timeout(seconds(text)))
}

fn acquired(how: Result<Acquired, WaitError>) -> Answer {
    match how {
        Ok(Acquired::Held) => told("held"),
        Ok(Acquired::Recovered(owner)) => told(format_args!("recovered {}", owner.pid())),
        Err(_) => told("no"),
    }
}

/// A number in shared memory without any protection.
#[derive(Clone)]
struct Counter(Rc<Bytes>);

impl Counter {
    fn get(&self) -> u64 {
        let mut bytes = [0; 8];
        self.0.read(0, &mut bytes).expect("eight bytes");
        u64::from_ne_bytes(bytes)
    }

    fn add_one(&self) {
        let more = self.get() + 1;
        self.0.write(0, &more.to_ne_bytes()).expect("eight bytes");
    }
}

impl Object for Counter {
    fn call(&self, method: &str, _arguments: &[&str]) -> Answer {
        if method == "value" { told(self.get()) } else { unknown(&[method]) }
    }
}

type Counters = Rc<RefCell<Vec<(String, Counter)>>>;

macro_rules! acquirable {
    ($name:ident, $core:ty, $error:literal, $value:expr) => {
        struct $name(Rc<$core>, Counters);

        impl Object for $name {
            fn call(&self, method: &str, arguments: &[&str]) -> Answer {
                match (method, arguments) {
                    ("acquire", limit) => acquired(self.0.acquire(&mut wait(limit))),
                    ("try", []) => acquired(self.0.try_acquire_or_recover()),
                    ("release", []) => self.0.release().map_err(|_| $error).and(DONE),
                    ("count", [counter, times]) => {
                        let counters = self.1.borrow();
                        let (_, counter) =
                            counters.iter().find(|(name, _)| name == counter).ok_or("no such counter")?;
                        for _ in 0..number(times) {
                            let _ = self.0.acquire(&mut Wait::forever());
                            counter.add_one();
                            self.0.release().map_err(|_| $error)?;
                        }
                        DONE
                    }
                    ("value", []) => told($value(&self.0)),
                    _ => unknown(&[method]),
                }
            }
        }
    };
}

acquirable!(ALock, Lock, "too_many", |lock: &Lock| u32::from(lock.owner().is_none()));
acquirable!(AnRLock, RLock, "not_owner", |lock: &RLock| u32::from(lock.owner().is_none()));
acquirable!(ASemaphore, Semaphore, "too_many", Semaphore::value);

struct ACondition<M>(Condition, Rc<M>);

impl<M: Monitor> Object for ACondition<M> {
    fn call(&self, method: &str, arguments: &[&str]) -> Answer {
        let Self(condition, lock) = self;
        let not_held = |_: ConditionError| "not_held";
        match (method, arguments) {
            ("wait", limit) => {
                let waited = condition.wait(&**lock, &mut wait(limit)).map_err(not_held)?;
                let outcome = if waited.outcome.is_ok() { "notified" } else { "timed_out" };
                match waited.lock {
                    Acquired::Held => told(outcome),
                    Acquired::Recovered(owner) => told(format_args!("{outcome} recovered {}", owner.pid())),
                }
            }
            ("notify", [count]) => condition.notify(&**lock, number(count) as usize).map_err(not_held).and(DONE),
            ("notify_all", []) => condition.notify(&**lock, usize::MAX).map_err(not_held).and(DONE),
            _ => unknown(&[method]),
        }
    }
}

#[derive(Clone)]
struct AnEvent(Rc<Event>);

impl Object for AnEvent {
    fn call(&self, method: &str, arguments: &[&str]) -> Answer {
        match (method, arguments) {
            ("set", []) => self.0.set(),
            ("clear", []) => self.0.clear(),
            ("is_set", []) => return told(self.0.is_set()),
            ("wait", limit) => return told(self.0.wait(&mut wait(limit)).is_ok()),
            _ => return unknown(&[method]),
        }
        DONE
    }
}

struct ABarrier(Barrier, Option<AnEvent>);

impl Object for ABarrier {
    fn call(&self, method: &str, arguments: &[&str]) -> Answer {
        let Self(barrier, event) = self;
        match (method, arguments) {
            ("wait", limit) => match barrier.wait(event.is_some(), &mut wait(limit)).map_err(|_| "broken")? {
                Passage::Passed(place) => told(place),
                Passage::Act(turn) => {
                    let event = event.as_ref().ok_or("no action")?;
                    if event.0.is_set() {
                        // Dropping the turn is what a failure is for the core.
                        return Err("failed");
                    }
                    event.0.set();
                    told(turn.finish().map_err(|_| "broken")?)
                }
            },
            ("abort", []) => {
                barrier.abort();
                DONE
            }
            ("reset", []) => {
                barrier.reset();
                DONE
            }
            ("waiting", []) => told(barrier.waiting()),
            ("broken", []) => told(barrier.is_broken()),
            _ => unknown(&[method]),
        }
    }
}

struct AQueue(Queue);

fn contents(message: &Message<'_>) -> std::io::Result<Vec<u8>> {
    message.to_vec()
}

impl AQueue {
    fn put(&self, text: &str, limit: &[&str]) -> Answer {
        self.0.put(&[expanded(text).as_bytes()], &mut wait(limit)).map_err(|error| Self::refused(&error)).and(DONE)
    }

    fn refused(error: &PutError) -> &'static str {
        match error {
            PutError::Full | PutError::Wait(_) => "full",
            _ => "the queue failed",
        }
    }

    fn taken(bytes: Result<Vec<u8>, TakeError>) -> Answer {
        match bytes {
            Ok(bytes) => told(shortened(&String::from_utf8_lossy(&bytes))),
            Err(TakeError::Empty | TakeError::Wait(_)) => Err("empty"),
            Err(_) => Err("the queue failed"),
        }
    }
}

impl Object for AQueue {
    fn call(&self, method: &str, arguments: &[&str]) -> Answer {
        let Self(queue) = self;
        match (method, arguments) {
            ("put", [text, limit @ ..]) => self.put(text, limit),
            ("try_put", [text]) => {
                let put = queue.put_now(&[expanded(text).as_bytes()], &mut Wait::forever());
                put.map_err(|error| Self::refused(&error)).and(DONE)
            }
            ("get", limit) => Self::taken(queue.take_with(&mut wait(limit), contents)),
            ("try_get", []) => Self::taken(queue.take_now_with(&mut Wait::forever(), contents)),
            ("put_many", [prefix, count]) => {
                (0..number(count)).try_for_each(|at| self.put(&format!("{prefix}{at}"), &[]).map(drop)).and(DONE)
            }
            ("get_many", [count]) => {
                let texts: Result<Vec<_>, _> = (0..number(count)).map(|_| self.call("get", &[])).collect();
                told(texts?.join(" "))
            }
            ("len", []) => told(queue.len()),
            ("done", []) => queue.task_done().map_err(|_| "too_many").and(DONE),
            ("join", []) => queue.join(&mut Wait::forever(), |_| {}).map_err(|_| "interrupted").and(DONE),
            _ => unknown(&[method]),
        }
    }
}

/// What objects are made of that others refer to.
#[derive(Default)]
struct Made {
    locks: Vec<(String, Rc<Lock>)>,
    rlocks: Vec<(String, Rc<RLock>)>,
    events: Vec<(String, AnEvent)>,
    counters: Counters,
}

fn named<T: Clone>(list: &[(String, T)], name: &str) -> Option<T> {
    list.iter().find(|(known, _)| known == name).map(|(_, object)| object.clone())
}

impl Made {
    fn make(&mut self, kind: &str, name: &str, arguments: &[&str]) -> std::io::Result<Box<dyn Object>> {
        let name = name.to_owned();
        Ok(match (kind, arguments) {
            ("lock", []) => {
                let lock = Rc::new(Lock::create()?);
                self.locks.push((name, lock.clone()));
                Box::new(ALock(lock, self.counters.clone()))
            }
            ("rlock", []) => {
                let lock = Rc::new(RLock::create()?);
                self.rlocks.push((name, lock.clone()));
                Box::new(AnRLock(lock, self.counters.clone()))
            }
            ("semaphore", [value]) => {
                let semaphore = Semaphore::create(number(value), Semaphore::MAXIMUM)?;
                Box::new(ASemaphore(Rc::new(semaphore), self.counters.clone()))
            }
            ("bounded", [value]) => {
                let semaphore = Semaphore::create(number(value), number(value))?;
                Box::new(ASemaphore(Rc::new(semaphore), self.counters.clone()))
            }
            ("condition", [lock]) => match (named(&self.locks, lock), named(&self.rlocks, lock)) {
                (Some(lock), _) => Box::new(ACondition(Condition::create()?, lock)),
                (_, Some(lock)) => Box::new(ACondition(Condition::create()?, lock)),
                _ => return Err(std::io::Error::other("no such lock")),
            },
            ("event", []) => {
                let event = AnEvent(Rc::new(Event::create()?));
                self.events.push((name, event.clone()));
                Box::new(event)
            }
            ("barrier", [parties, event @ ..]) => {
                let event = event.first().and_then(|event| named(&self.events, event));
                Box::new(ABarrier(Barrier::create(number(parties))?, event))
            }
            ("queue" | "joinable", bound) => {
                Box::new(AQueue(Queue::create(bound.first().map(|text| number(text).into()))?))
            }
            ("counter", []) => {
                let counter = Counter(Rc::new(Bytes::allocate(8)?));
                self.counters.borrow_mut().push((name, counter.clone()));
                Box::new(counter)
            }
            _ => return Err(std::io::Error::other("no such kind")),
        })
    }
}

/// Starts an actor, which has copies of all objects; never returns in it.
fn start(socket: &Path, name: &str, objects: &Objects) -> Answer {
    // SAFETY: this program has one thread, so the child is a process like any other.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let served = connect(socket, name).and_then(|stream| serve(stream, |words| call(objects, words)));
        // SAFETY: ends the child, without the destructors of what it has from its parent.
        unsafe { libc::_exit(i32::from(served.is_err())) };
    }
    if pid > 0 { DONE } else { Err("no fork") }
}

fn main() -> std::io::Result<()> {
    let socket: PathBuf = std::env::args_os().next_back().expect("the path of a socket").into();
    let (mut made, mut objects) = (Made::default(), Objects::new());
    serve(connect(&socket, "main")?, |words| match words {
        ["make", kind, name, arguments @ ..] => {
            let object = made.make(kind, name, arguments).map_err(|error| {
                eprintln!("{error}");
                "can't be made"
            })?;
            objects.insert((*name).to_owned(), object);
            DONE
        }
        ["start", name] => start(&socket, name, &objects),
        words => call(&objects, words),
    })
}
