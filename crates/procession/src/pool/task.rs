//! What a task is: a function of this build that reads arguments, calls the user's function and writes the result.
//!
//! There is one such function for each function of the user and each way of calling it. Workers get to know it by its
//! [`Code`](crate::code::Code); here is what runs in them.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use procession_core::{
    channel::Along,
    memory::Claimed,
    pool::{Job, Outcome, Task, TaskId, Verdict, Worker},
};

use super::{
    error::{Failure, TaskError, error_of},
    submit::PATIENCE,
};
use crate::{
    function::{Function, conjure},
    handover::{Loading, Reach},
    message::{DecodeError, EncodeError, Laden, Message, decode_with, encode_with},
    panic::{Panic, catch},
};

/// Reads arguments, calls a function, sends what comes of it.
pub(super) type Run = fn(Arguments<'_>, &mut Reply<'_>) -> io::Result<()>;

/// What a function is to be applied to.
#[derive(Debug)]
pub(super) struct Arguments<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) blocks: Vec<Claimed>,
}

impl<'a> Arguments<'a> {
    pub(super) fn of(task: &'a mut Task) -> Self {
        let (descriptors, blocks) = (task.take_descriptors(), task.take_blocks());
        Self { bytes: task.payload(), descriptors, blocks }
    }

    fn read<T: Message>(self) -> Result<T, DecodeError> {
        read(self.bytes, self.descriptors, self.blocks)
    }
}

/// The value of a message with what came along.
fn read<T: Message>(bytes: &[u8], descriptors: Vec<OwnedFd>, blocks: Vec<Claimed>) -> Result<T, DecodeError> {
    let blocks = blocks.into_iter().map(Claimed::hold).collect::<io::Result<_>>().map_err(DecodeError::Copy)?;
    decode_with(bytes, descriptors, blocks, Reach::Related)
}

/// A call: the arguments are a tuple.
pub(super) fn call<F, Args>(arguments: Arguments<'_>, reply: &mut Reply<'_>) -> io::Result<()>
where
    F: Function<Args>,
    Args: Message,
    F::Output: Message,
{
    match arguments.read::<Args>() {
        // SAFETY: `definition_of` had a value.
        Ok(args) => reply.value(&unsafe { conjure::<F>() }.call(args)),
        Err(error) => reply.failure(&Failure::Arguments(error.to_string())),
    }
}

/// A chunk of a map: a `Vec` of items in, a `Vec` of results out. `star` says that items are the arguments themselves.
fn chunk<Item: Message, R: Message>(
    arguments: Arguments<'_>,
    reply: &mut Reply<'_>,
    call: impl Fn(Item) -> R,
) -> io::Result<()> {
    match arguments.read::<Vec<Item>>() {
        Ok(items) => {
            let (began, count) = (Instant::now(), items.len());
            let results: Vec<R> = items.into_iter().map(call).collect();
            reply.pace = pace(began, count);
            reply.value(&results)
        }
        Err(error) => reply.failure(&Failure::Arguments(error.to_string())),
    }
}

/// How long each of so many items took, in nanoseconds.
fn pace(began: Instant, items: usize) -> u32 {
    u32::try_from(began.elapsed().as_nanos() / items.max(1) as u128).unwrap_or(u32::MAX).max(1)
}

/// A chunk of a map of single arguments.
pub(super) fn map_chunk<F, Item>(arguments: Arguments<'_>, reply: &mut Reply<'_>) -> io::Result<()>
where
    F: Function<(Item,)>,
    Item: Message,
    F::Output: Message,
{
    // SAFETY: `definition_of` had a value.
    let function = unsafe { conjure::<F>() };
    chunk(arguments, reply, |item: Item| function.call((item,)))
}

/// A chunk of a map of tuples.
pub(super) fn starmap_chunk<F, Args>(arguments: Arguments<'_>, reply: &mut Reply<'_>) -> io::Result<()>
where
    F: Function<Args>,
    Args: Message,
    F::Output: Message,
{
    // SAFETY: `definition_of` had a value.
    let function = unsafe { conjure::<F>() };
    chunk(arguments, reply, |args: Args| function.call(args))
}

/// A chunk of a stream: as that of a map, but of a function that panics only the item is lost.
pub(super) fn stream_chunk<F, Item>(arguments: Arguments<'_>, reply: &mut Reply<'_>) -> io::Result<()>
where
    F: Function<(Item,)>,
    Item: Message,
    F::Output: Message,
{
    let items = match arguments.read::<Vec<Item>>() {
        Ok(items) => items,
        Err(error) => return reply.failure(&Failure::Arguments(error.to_string())),
    };
    // SAFETY: `definition_of` had a value.
    let function = unsafe { conjure::<F>() };
    let (began, count) = (Instant::now(), items.len());
    let mut items = items.into_iter();
    let mut results = Vec::with_capacity(count);
    for item in items.by_ref() {
        match catch(|| function.call((item,))) {
            Ok(result) => results.push(result),
            Err(panic) => {
                // From here on, each is told apart.
                let mut each: Vec<Result<F::Output, Panic>> = results.into_iter().map(Ok).collect();
                each.push(Err(panic));
                each.extend(items.map(|item| catch(|| function.call((item,)))));
                return reply.send(Verdict::Done, EACH, &each);
            }
        }
    }
    reply.pace = pace(began, count);
    reply.send(Verdict::Done, ALL, &results)
}

/// What follows of a stream's chunk: all results, or each with its failure. The last byte of the payload.
const ALL: &[u8] = &[0];
const EACH: &[u8] = &[1];

/// Sends what has come of a task, once.
#[derive(Debug)]
pub(super) struct Reply<'a> {
    worker: &'a Worker,
    id: TaskId,
    /// For the bytes.
    room: &'a mut Vec<u8>,
    /// How long each item took, in nanoseconds, if that was measured.
    pace: u32,
    sent: bool,
}

impl<'a> Reply<'a> {
    pub(super) fn new(worker: &'a Worker, id: TaskId, room: &'a mut Vec<u8>) -> Self {
        Self { worker, id, room, pace: 0, sent: false }
    }

    /// Has the task done, whatever happens in it.
    pub(super) fn run(mut self, run: Run, arguments: Arguments<'_>) -> io::Result<()> {
        match catch(|| run(arguments, &mut self)) {
            Ok(sent) => sent,
            // What it dropped last has panicked: the result is on its way already.
            Err(_) if self.sent => Ok(()),
            Err(panic) => self.failure(&Failure::Panicked(panic)),
        }
    }

    fn value<T: Message>(&mut self, value: &T) -> io::Result<()> {
        self.send(Verdict::Done, &[], value)
    }

    fn send<T: Message>(&mut self, verdict: Verdict, mark: &[u8], value: &T) -> io::Result<()> {
        match self.try_send(verdict, mark, value) {
            Ok(()) => Ok(()),
            Err(error) => self.failure(&Failure::Unsendable(error.to_string())),
        }
    }

    fn try_send<T: Message>(&mut self, verdict: Verdict, mark: &[u8], value: &T) -> Result<(), Unsendable> {
        let worker = self.worker;
        let load = |bytes: &[u8]| worker.fill(&[bytes], PATIENCE).map_or(Loading::Bytes, Loading::Block);
        let Laden { bytes, descriptors, blocks } = encode_with(value, self.room, Reach::Related, Some(&load))?;
        let lent: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let along = Along { descriptors: &lent, blocks: &blocks };
        // Without a mark it is one part less to put together.
        let parts: &[&[u8]] = if mark.is_empty() { &[bytes] } else { &[bytes, mark] };
        worker.finish_along(self.id, verdict, self.pace, parts, along, &[])?;
        self.sent = true;
        Ok(())
    }

    pub(super) fn failure(&mut self, failure: &Failure) -> io::Result<()> {
        let bytes = postcard::to_allocvec(failure).map_err(io::Error::other)?;
        self.worker.finish(self.id, Verdict::Failed, &[&bytes])?;
        self.sent = true;
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum Unsendable {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("there is no room for it: {0}")]
    Room(#[from] io::Error),
}

/// The result of a call.
pub(super) fn result_of<R: Message>(outcome: &mut Outcome, job: &Job) -> Result<R, TaskError> {
    if let Some(error) = error_of(outcome, job) {
        return Err(error);
    }
    let (descriptors, blocks) = (outcome.take_descriptors(), outcome.take_blocks());
    Ok(read(outcome.payload(), descriptors, blocks)?)
}

/// The results of a stream's chunk.
pub(super) fn results_of<R: Message>(outcome: &mut Outcome, job: &Job) -> Result<Vec<Result<R, TaskError>>, TaskError> {
    if let Some(error) = error_of(outcome, job) {
        return Err(error);
    }
    let (descriptors, blocks) = (outcome.take_descriptors(), outcome.take_blocks());
    let Some((bytes, mark)) = outcome.payload().split_last_chunk::<1>() else {
        return Err(DecodeError::Malformed("mark").into());
    };
    if mark == ALL {
        let all: Vec<R> = read(bytes, descriptors, blocks)?;
        return Ok(all.into_iter().map(Ok).collect());
    }
    let each: Vec<Result<R, Panic>> = read(bytes, descriptors, blocks)?;
    Ok(each.into_iter().map(|result| result.map_err(TaskError::Panicked)).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use procession_core::{
        pool::{Definition, Engine, Next, Order},
        sync::Wait,
    };

    use super::*;
    use crate::message::encode;

    /// What comes of a task, with a worker in this process.
    fn outcome_of(args: &impl Message, act: impl FnOnce(&Worker, Arguments<'_>, TaskId)) -> (Outcome, Arc<Job>) {
        let engine = Engine::create_with_couriers(1).unwrap();
        let slot = engine.hire().unwrap().unwrap();
        let worker = Worker::enter(engine.port(), slot).unwrap();
        let job = engine.admit(Order::Collected, false, Some(1)).unwrap();
        let mut room = Vec::new();
        let encoded = encode(args, &mut room, Reach::Related).unwrap();
        engine.submit(&job, 0, Definition::default(), 0, &[encoded.bytes]).unwrap();
        let mut task = worker.take(&mut Wait::forever()).unwrap().unwrap();
        let id = task.id();
        act(&worker, Arguments::of(&mut task), id);
        engine.poll();
        match job.next() {
            Next::Outcome(0, outcome) => (outcome, job),
            other => panic!("{other:?}"),
        }
    }

    fn run<T: Message>(run: Run, args: &T) -> (Outcome, Arc<Job>) {
        outcome_of(args, |worker, arguments, id| {
            let mut room = Vec::new();
            Reply::new(worker, id, &mut room).run(run, arguments).unwrap();
        })
    }

    fn told<R>((mut outcome, job): (Outcome, Arc<Job>), read: fn(&mut Outcome, &Job) -> R) -> R {
        read(&mut outcome, &job)
    }

    fn third(n: u32) -> u32 {
        assert_ne!(n, 3, "three");
        n / 3
    }

    #[test]
    fn a_call_has_its_value_or_why_not() {
        fn type_of<F: Function<(u32,), Output = u32>>(_: F) -> Run {
            call::<F, (u32,)>
        }
        let third_of = |n: u32| told(run(type_of(third), &(n,)), result_of::<u32>);
        assert_eq!(third_of(9).unwrap(), 3);
        assert!(matches!(third_of(3), Err(TaskError::Panicked(panic)) if panic.message.contains("three")));
        let short = told(run(type_of(third), &()), result_of::<u32>);
        assert!(matches!(short, Err(TaskError::Arguments(_))), "{short:?}");
        let other = told(run(type_of(third), &(9_u32,)), result_of::<(u32, String)>);
        assert!(matches!(other, Err(TaskError::Decode(_))), "{other:?}");
    }

    #[test]
    fn a_chunk_of_a_stream_has_each_result() {
        fn type_of<F: Function<(u32,), Output = u32>>(_: F) -> Run {
            stream_chunk::<F, u32>
        }
        let chunk = |items: Vec<u32>| told(run(type_of(third), &items), results_of::<u32>).unwrap();
        let values = |items| chunk(items).into_iter().map(Result::ok).collect::<Vec<_>>();
        assert_eq!(values(vec![0, 6, 9]), [Some(0), Some(2), Some(3)]);
        assert_eq!(values(vec![3, 6, 3, 9]), [None, Some(2), None, Some(3)]);
        assert!(values(vec![]).is_empty());
    }

    #[test]
    fn what_is_no_result_of_a_chunk_is_an_error() {
        for payload in [&[][..], &[9], &[1, 1], &[5, 5, 0]] {
            let sent = outcome_of(&(), |worker, _, id| worker.finish(id, Verdict::Done, &[payload]).unwrap());
            assert!(matches!(told(sent, results_of::<String>), Err(TaskError::Decode(_))), "{payload:?}");
        }
    }

    #[test]
    fn a_panic_behind_the_result_changes_nothing() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("too late");
            }
        }
        let late: Run = |_, reply| {
            let _bomb = Bomb;
            reply.value(&5_u8)
        };
        assert_eq!(told(run(late, &()), result_of::<u8>).unwrap(), 5);
    }
}
