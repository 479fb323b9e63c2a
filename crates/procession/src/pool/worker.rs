//! The life of a worker process.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;

use procession_core::{
    channel::TakeError,
    pool::{Definition, Port, Verdict, Worker},
    process,
    sync::Wait,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};

use super::{
    error::Failure,
    task::{Arguments, Reply, Run},
};
use crate::{
    code::Code,
    handover::Reach,
    interrupts,
    message::{Message, encode},
    panic::catch,
    start::Started,
};

/// What a worker is told when it is started.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Orders {
    /// Its place in the pool.
    pub(super) slot: usize,
    /// After how many tasks it ends.
    pub(super) most: Option<u64>,
    /// With how many bytes of resident memory it ends.
    pub(super) memory: Option<u64>,
    /// The CPUs that it may run on, if it is not to run on any.
    pub(super) cpus: Vec<usize>,
    /// What it runs last.
    pub(super) exit: Option<Code>,
    /// What it runs first, and that function's arguments.
    pub(super) initializer: Option<(Code, Vec<u8>)>,
}

/// How many descriptors there are of the pool's memory, and of its couriers; the initializer's follow.
const PORT: usize = 4;

/// Runs an initializer.
pub(super) type Initialize = fn(&[u8], Vec<OwnedFd>) -> Result<(), String>;

pub(super) fn initialize<F, Args>(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<(), String>
where
    F: crate::Function<Args, Output = ()>,
    Args: Message,
{
    let args: Args = crate::message::decode(bytes, descriptors, Reach::Related).map_err(|error| error.to_string())?;
    // SAFETY: the pool's builder was given a value.
    unsafe { crate::function::conjure::<F>() }.call(args);
    Ok(())
}

/// Runs what a worker runs last; returns the bytes of its result, or of why there is none.
pub(super) type Leave = fn() -> Result<Vec<u8>, Failure>;

pub(super) fn leave<F>() -> Result<Vec<u8>, Failure>
where
    F: crate::Function<(), Output: Message>,
{
    // SAFETY: the pool's builder was given a value.
    let result = catch(|| unsafe { crate::function::conjure::<F>() }.call(())).map_err(Failure::Panicked)?;
    let mut room = Vec::new();
    let encoded = encode(&result, &mut room, Reach::Related).map_err(|error| Failure::Unsendable(error.to_string()))?;
    if encoded.descriptors.is_empty() {
        Ok(encoded.bytes.to_vec())
    } else {
        Err(Failure::Unsendable("queues, locks and files can't be left behind".into()))
    }
}

/// Does tasks until there are no more. Returns the exit code.
pub(super) fn work(started: Started) -> i32 {
    match serve(started) {
        Ok(()) => 0,
        Err(problem) => {
            if !problem.is_empty() {
                eprintln!("a worker of a pool (process {}) gives up: {problem}", std::process::id());
            }
            1
        }
    }
}

fn serve(started: Started) -> Result<(), String> {
    ignore_interrupts();
    let text = |error: &dyn std::error::Error| error.to_string();
    let orders: Orders = postcard::from_bytes(&started.payload).map_err(|error| text(&error))?;
    bind_to(&orders.cpus).map_err(|error| text(&error))?;
    let mut descriptors = started.descriptors.into_iter();
    let mut next = || -> Result<[OwnedFd; PORT], String> {
        let four: Vec<_> = descriptors.by_ref().take(PORT).collect();
        four.try_into().map_err(|_| "descriptors are missing".to_owned())
    };
    let port = Port::attach_with_couriers(next()?, next()?).map_err(|error| text(&error))?;
    let rest = descriptors.collect();
    let worker = Worker::enter(port, orders.slot).map_err(|error| text(&error))?;
    if let Some((code, arguments)) = orders.initializer {
        let address = code.address().map_err(|error| text(&error))?;
        // SAFETY: the parent, of the same build, took this address from a function of this type.
        let initialize: Initialize = unsafe { std::mem::transmute(address) };
        // Its panic was printed.
        catch(|| initialize(&arguments, rest)).map_err(|_| String::new())??;
    }
    worker.ready();
    let mut functions = Functions::default();
    let mut room = Vec::new();
    let mut done = 0;
    while orders.most.is_none_or(|most| done < most) {
        let mut task = match worker.take(&mut Wait::forever()) {
            Ok(Some(task)) => task,
            Ok(None) => break,
            Err(TakeError::Wait(_) | TakeError::Empty | TakeError::Busy) => continue,
            Err(error) => return Err(text(&error)),
        };
        let run = functions.get(&worker, task.definition())?;
        let id = task.id();
        Reply::new(&worker, id, &mut room).run(run, Arguments::of(&mut task)).map_err(|error| text(&error))?;
        if room.capacity() > ROOM {
            room = Vec::new();
        }
        worker.recycle(task);
        done += 1;
        if orders.memory.is_some_and(|most| process::resident().is_ok_and(|resident| resident > most)) {
            break;
        }
    }
    if let Some(code) = orders.exit.filter(|_| !worker.is_condemned()) {
        leave_words(&worker, code).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Sends what the worker leaves.
fn leave_words(worker: &Worker, code: Code) -> Result<(), Box<dyn std::error::Error>> {
    let address = code.address()?;
    // SAFETY: the parent, of the same build, took this address from a function of this type.
    let leave: Leave = unsafe { std::mem::transmute(address) };
    match catch(leave).unwrap_or_else(|panic| Err(Failure::Panicked(panic))) {
        Ok(bytes) => worker.leave(Verdict::Done, &bytes)?,
        Err(failure) => worker.leave(Verdict::Failed, &postcard::to_allocvec(&failure)?)?,
    }
    Ok(())
}

/// Has this process run on these CPUs only, if there are any.
fn bind_to(cpus: &[usize]) -> std::io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// As much room as a worker keeps for the next result.
const ROOM: usize = 8 << 20;

/// The numbers of definitions go up from zero. One beyond is looked up each time: whatever it says, no memory is made for it.
const MOST_KNOWN: usize = 1 << 16;

/// The functions this worker was asked to run, by the numbers of their definitions.
#[derive(Debug, Default)]
struct Functions(Vec<Option<Run>>);

impl Functions {
    fn get(&mut self, worker: &Worker, definition: Definition) -> Result<Run, String> {
        let number = definition.number as usize;
        if let Some(Some(known)) = self.0.get(number) {
            return Ok(*known);
        }
        let bytes = worker.definition(definition).map_err(|error| error.to_string())?;
        let code: Code = postcard::from_bytes(&bytes).map_err(|error| error.to_string())?;
        let address = code.address().map_err(|error| error.to_string())?;
        // SAFETY: the parent, of the same build, took this address from a function of this type.
        let run: Run = unsafe { std::mem::transmute(address) };
        if number < MOST_KNOWN {
            if self.0.len() <= number {
                self.0.resize(number + 1, None);
            }
            self.0[number] = Some(run);
        }
        Ok(run)
    }
}

/// Ctrl-C in a terminal goes to the workers as well; it is for the parent to say what becomes of them.
fn ignore_interrupts() {
    extern "C" fn ignore(_signal: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = ignore;
    // SAFETY: all zeroes is a `sigaction` without flags and with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // A handler, and not SIG_IGN, which programs that a task starts would inherit.
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler does nothing, so it may run at any time.
    unsafe { libc::sigaction(libc::SIGINT, &raw const action, std::ptr::null_mut()) };
    // It was blocked while the process was started.
    interrupts::block(false);
}
