//! Results of pools in asynchronous code.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use procession::{Pool, TaskError};

procession::test_support!();

fn square(n: u64) -> u64 {
    n * n
}

/// Wakes a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest executor there is.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn results_are_awaited() {
    let pool = Pool::new(2).unwrap();
    for n in 0..300 {
        assert_eq!(block_on(pool.apply_async(square, (n,)).unwrap()).unwrap(), square(n));
    }
    assert_eq!(block_on(pool.map_async(square, 0..1000).unwrap()).unwrap()[999], 998_001);
    let all: Vec<_> = (0..300).map(|n| pool.apply_async(square, (n,)).unwrap()).collect();
    block_on(async {
        for (n, result) in (0..).zip(all) {
            assert_eq!(result.await.unwrap(), square(n));
        }
    });
}

#[test]
fn one_that_is_there_already_is_ready_at_once() {
    let pool = Pool::new(1).unwrap();
    let result = pool.apply_async(square, (6,)).unwrap();
    result.wait();
    let mut result = pin!(result);
    let context = &mut Context::from_waker(Waker::noop());
    assert!(matches!(result.as_mut().poll(context), Poll::Ready(Ok(36))));
    assert!(matches!(result.as_mut().poll(context), Poll::Ready(Err(TaskError::Taken))));
}

#[test]
fn the_last_waker_counts() {
    let pool = Pool::new(1).unwrap();
    let mut result = pool.apply_async(|| thread::sleep(Duration::from_millis(100)), ()).unwrap();
    assert!(pin!(&mut result).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    block_on(result).unwrap();
}

#[test]
fn failures_are_awaited_too() {
    let pool = Pool::new(1).unwrap();
    let panicked = block_on(pool.apply_async(|| -> u8 { panic!("no") }, ()).unwrap());
    assert!(matches!(panicked, Err(TaskError::Panicked(_))));
    let lost = block_on(pool.apply_async(|| -> u8 { std::process::exit(3) }, ()).unwrap());
    assert!(matches!(lost, Err(TaskError::WorkerLost { exit: procession::Exit::Code(3), .. })));
    let stuck = pool.apply_async(|| thread::sleep(Duration::from_secs(600)), ()).unwrap();
    let waiting = thread::spawn(|| block_on(stuck));
    thread::sleep(Duration::from_millis(30));
    drop(pool);
    assert!(matches!(waiting.join().unwrap(), Err(TaskError::Terminated)));
}

#[test]
fn one_with_a_callback_comes_after_it() {
    let pool = Pool::new(1).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let callback = move |n: &u64| {
        thread::sleep(Duration::from_millis(20));
        sender.send(*n).unwrap();
    };
    let result = pool.apply_async_with(square, (7,), callback, |_| ()).unwrap();
    assert_eq!(block_on(result).unwrap(), 49);
    assert_eq!(receiver.try_recv(), Ok(49));
}

#[test]
fn what_is_no_longer_awaited_is_forgotten() {
    let pool = Pool::new(1).unwrap();
    for _ in 0..50 {
        let mut result = pool.apply_async(square, (7,)).unwrap();
        let _ = pin!(&mut result).poll(&mut Context::from_waker(Waker::noop()));
        drop(result);
    }
    pool.join();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_tokio_await_them() {
    let pool = Arc::new(Pool::new(2).unwrap());
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.apply_async(square, (n,)).unwrap().await.unwrap() })
        })
        .collect();
    for (n, task) in (0..).zip(tasks) {
        assert_eq!(task.await.unwrap(), square(n));
    }
    // One that is not awaited to its end.
    let nap = pool.apply_async(|| thread::sleep(Duration::from_secs(600)), ()).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(30), nap).await.is_err());
    assert_eq!(pool.map_async(square, 0..100).unwrap().await.unwrap()[99], 9801);
}
