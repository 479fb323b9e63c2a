//! A tour of procession in a few seconds: what is there, what happens when a process dies, and how long things take.
//!
//!     cargo run --release --example tour

use std::{
    error::Error,
    process,
    thread::{available_parallelism, sleep},
    time::{Duration, Instant},
};

use procession::{
    Connection, Lock, Manager, Pool, Process, Queue, RawArray, StartMethod, Stdio, manager::DictProxy, pipe,
};
use rustix::process::{Pid, Signal, kill_process};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
type Stop = (&'static str, fn() -> Outcome);

const STOPS: [Stop; 8] = [
    ("Processes", processes),
    ("Processes from the fork server", fork_server),
    ("Pools", pools),
    ("Queues", queues),
    ("Pipes", pipes),
    ("Locks", locks),
    ("Arrays", arrays),
    ("Managers", managers),
];

fn main() -> Outcome {
    // In a process that was started this does not return: it runs what the process was started for.
    procession::init();

    println!("procession {}, on {} processors", env!("CARGO_PKG_VERSION"), available_parallelism()?);
    let begin = Instant::now();
    for (title, stop) in STOPS {
        println!("\n{title}");
        stop()?;
    }
    println!("\nAll that in {:.1} s. Its program: crates/procession/examples/tour.rs", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Prints one line of what there is to see.
macro_rules! see {
    ($what:literal, $($seen:tt)*) => {
        println!("  {:<46}{}", $what, format_args!($($seen)*))
    };
}

fn processes() -> Outcome {
    let child = Process::spawn(|a: f64, b: f64| a.hypot(b), (3.0, 4.0))?;
    see!("a closure, run by another process", "hypot(3, 4) = {}", child.join()?);

    // It prints its panic, too, as any process does. That is of no use here.
    let silent = Process::builder().stderr(Stdio::null());
    let child = silent.spawn(|text: String| -> u32 { panic!("{text} is no number") }, ("12x".to_owned(),))?;
    see!("a closure that panics", "{}", child.join().unwrap_err());

    let child = Process::spawn(|| sleep(Duration::from_secs(60)), ())?;
    child.kill()?;
    see!("a process that is killed", "{}", child.join().unwrap_err());

    see!("from start to end, spawned", "{}", median(20, || Ok(Process::spawn(|| (), ())?.join()?))?);
    Ok(())
}

fn fork_server() -> Outcome {
    let builder = Process::builder().start_method(StartMethod::Forkserver);
    // The first one starts the server.
    let child = builder.spawn(process::id, ())?;
    see!("a copy of a server that has no threads", "process {} of {}", child.join()?, process::id());
    see!("from start to end", "{}", median(50, || Ok(builder.spawn(|| (), ())?.join()?))?);
    Ok(())
}

fn pools() -> Outcome {
    let pool = Pool::new(2)?;
    see!("map", "{:?}", pool.map(|n: u64| n * n, 0..10)?);

    // Only so many of the numbers are on the way as keep the workers busy.
    let sum: u64 = pool.imap(|n: u64| n % 7, 0..)?.take(1000).sum::<Result<_, _>>()?;
    see!("the first 1000 of an endless imap", "sum {sum}");

    see!("apply: one call, waited for", "{}", median(1000, || Ok(pool.apply(|n: u64| n, (1,))?))?);
    let begin = Instant::now();
    let results = (0..100_000).map(|n| pool.apply_async(|n: u64| n, (n,))).collect::<Result<Vec<_>, _>>()?;
    for result in results {
        result.get()?;
    }
    see!("apply_async: each of 100 000 calls", "{}", time(begin.elapsed() / 100_000));

    // A worker that dies fails its own task and no other, and another one takes its place.
    let results = (1..=4).map(|n| pool.apply_async(die_at_three, (n,))).collect::<Result<Vec<_>, _>>()?;
    for (n, result) in (1..).zip(results) {
        match result.get() {
            Ok(hundreds) => see!("a task beside one whose worker is killed", "{n}: {hundreds}"),
            Err(error) => see!("that one", "{n}: {error}"),
        }
    }
    Ok(())
}

fn die_at_three(n: u32) -> u32 {
    if n == 3 {
        die();
    }
    n * 100
}

fn queues() -> Outcome {
    let (queue, count) = (Queue::new()?, 10_000_000);
    let child = Process::spawn(produce, (queue.clone(), count))?;
    // The clock runs from the first number on, without the start of the process.
    let mut sum = queue.get()?;
    let begin = Instant::now();
    for _ in 1..count {
        sum += queue.get()?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    child.join()?;
    assert_eq!(sum, (0..count).sum());
    see!("numbers from another process", "{:.1} million a second", count as f64 / seconds / 1e6);

    let (queue, count) = (Queue::bounded(4)?, 1000);
    let child = Process::spawn(produce_buffers, (queue.clone(), count))?;
    queue.get()?;
    let begin = Instant::now();
    for n in 1..count {
        assert_eq!(queue.get()?[12345], n as u8);
    }
    let bytes = f64::from(count - 1) * f64::from(MEBIBYTE);
    let seconds = begin.elapsed().as_secs_f64();
    child.join()?;
    see!("buffers of a mebibyte", "{:.1} GB a second", bytes / seconds / 1e9);

    // Queues are messages themselves, as are pipes, locks, and open files.
    let (questions, answers) = (Queue::new()?, Queue::new()?);
    questions.put(("a queue went along".to_owned(), answers.clone()))?;
    Process::spawn(answer, (questions,))?.join()?;
    see!("an answer, on a queue sent with the question", "{}", answers.get()?);
    Ok(())
}

fn produce(queue: Queue<u64>, count: u64) {
    for n in 0..count {
        queue.put(n).unwrap();
    }
}

const MEBIBYTE: u32 = 1 << 20;

fn produce_buffers(queue: Queue<Vec<u8>>, count: u16) {
    for n in 0..count {
        queue.put(vec![n as u8; MEBIBYTE as usize]).unwrap();
    }
}

fn answer(questions: Queue<(String, Queue<String>)>) {
    let (question, answers) = questions.get().unwrap();
    answers.put(question.to_uppercase()).unwrap();
}

fn pipes() -> Outcome {
    let (ours, theirs) = pipe()?;
    let child = Process::spawn(echo, (theirs,))?;
    let round_trip = median(5000, || {
        ours.send(&1)?;
        Ok(ours.recv()?)
    })?;
    see!("there and back", "{round_trip}");
    // The other end learns that this one is gone.
    drop(ours);
    child.join()?;
    Ok(())
}

fn echo(connection: Connection<u64, u64>) {
    while let Ok(n) = connection.recv() {
        connection.send(&n).unwrap();
    }
}

fn locks() -> Outcome {
    let account = Lock::new(100)?;
    let child = Process::spawn(withdraw_and_die, (account.clone(),))?;
    let died = child.join().is_err();
    let recovered = account.acquire().expect_err("its owner died");
    assert!(died);
    see!("a lock whose owner was killed", "recovered from process {}", recovered.owner());
    // The lock owns what it guards, and nothing that is half done is seen of it.
    see!("what it guards", "{}, as it was before", *recovered.into_inner());

    let begin = Instant::now();
    for _ in 0..1_000_000 {
        *account.acquire().unwrap() += 1;
    }
    see!("acquire, change, release", "{}", time(begin.elapsed() / 1_000_000));
    Ok(())
}

fn withdraw_and_die(account: Lock<i64>) {
    let mut balance = account.acquire().unwrap();
    *balance -= 30;
    die();
}

fn arrays() -> Outcome {
    const SIZE: usize = 1_000_000;
    let array = RawArray::zeroed(SIZE)?;
    let fill_part = |part| Process::spawn(fill, (array.clone(), part * SIZE / 4, (part + 1) * SIZE / 4));
    for child in (0..4).map(fill_part).collect::<Result<Vec<_>, _>>()? {
        child.join()?;
    }
    see!("a million roots, by four processes", "their sum is {:.3}", array.iter().sum::<f64>());
    Ok(())
}

fn fill(array: RawArray<f64>, from: usize, to: usize) {
    let roots: Vec<_> = (from..to).map(|n| (n as f64).sqrt()).collect();
    array.write(from, &roots).unwrap();
}

fn managers() -> Outcome {
    let manager = Manager::new()?;
    let words = manager.dict([])?;
    for text in ["one two three", "three four"] {
        Process::spawn(count, (words.clone(), text.to_owned()))?.join()?;
    }
    see!("a dictionary that processes share", "{:?}", words.items()?);
    see!("one call", "{}", median(1000, || Ok(words.get("three")?))?);
    Ok(())
}

fn count(words: DictProxy<String, u32>, text: String) {
    for word in text.split_whitespace() {
        let before = words.get(word).unwrap().unwrap_or_default();
        words.set(word.to_owned(), before + 1).unwrap();
    }
}

/// Ends this process as `kill -9` does.
fn die() {
    let pid = Pid::from_raw(process::id().cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// The median time of so many runs.
fn median<R>(runs: usize, mut run: impl FnMut() -> Outcome<R>) -> Outcome<String> {
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let begin = Instant::now();
        run()?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(time(times[runs / 2]))
}

/// Three digits and a unit.
fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (number, unit) = match seconds {
        1e-3.. => (seconds * 1e3, "ms"),
        1e-6.. => (seconds * 1e6, "us"),
        _ => (seconds * 1e9, "ns"),
    };
    let digits = match number {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{number:.digits$} {unit}")
}
