use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::*;
use crate::kills::KillTest;

fn soon() -> Wait<'static> {
    Wait::timeout(Duration::from_secs(30))
}

fn bytes_of(message: &Message<'_>) -> io::Result<Vec<u8>> {
    message.to_vec()
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn the_descriptor_is_readable_while_something_is_there() {
    let queue = Queue::create(None).unwrap();
    queue.try_put(&[b"before it was asked for"]).unwrap();
    let other = queue.clone();
    assert!(readable(queue.pollable()));
    queue.take_now_with(&mut soon(), bytes_of).unwrap();
    assert!(!readable(queue.shared.pollable.as_fd()));
    for _ in 0..3 {
        other.put_now(&[b"x"], &mut soon()).unwrap();
        other.put(&[b"y"], &mut soon()).unwrap();
        assert!(readable(queue.shared.pollable.as_fd()));
        queue.take_with(&mut soon(), bytes_of).unwrap();
        assert!(readable(queue.shared.pollable.as_fd()));
        assert_eq!(queue.take_many_with(5, &mut soon(), |_| Ok(())).unwrap(), 1);
        assert!(!readable(queue.shared.pollable.as_fd()));
    }
}

#[test]
fn the_descriptor_tells_the_truth_after_a_kill_anywhere() {
    let queue = Queue::create(None).unwrap();
    let fd = queue.pollable();
    let put_and_take = || {
        queue.put(&[b"x"], &mut soon()).unwrap();
        queue.take_with(&mut soon(), bytes_of).unwrap();
    };
    let check = |_, _| {
        // A poller must not wait for what is there. It may look once in vain, and that sets it right.
        assert!(queue.ring().is_empty() || readable(fd));
        if queue.take_now_with(&mut soon(), bytes_of).is_ok() {
            assert!(matches!(queue.take_now_with(&mut soon(), bytes_of), Err(TakeError::Empty)));
        }
        assert!(!readable(fd));
    };
    KillTest::new("a queue that is polled").at_every_point(put_and_take, check);
}

#[test]
fn pollers_of_many_producers_see_each_message() {
    let queue = Queue::create(Some(3)).unwrap();
    let fd = queue.pollable();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..2000).for_each(|_| queue.put(&[b"x"], &mut soon()).unwrap()));
        }
        for _ in 0..6000 {
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 1, "a message was not announced");
            queue.take_now_with(&mut soon(), bytes_of).unwrap();
        }
    });
    assert!(!readable(fd));
}

#[test]
fn join_ends_when_all_is_done() {
    let queue = Queue::create(None).unwrap();
    queue.join(&mut soon(), |_| {}).unwrap();
    assert_eq!(queue.task_done(), Err(TooManyDone));
    for _ in 0..10 {
        queue.try_put(&[b"x"]).unwrap();
    }
    assert_eq!(queue.join(&mut Wait::timeout(Duration::from_millis(10)), |_| {}), Err(WaitError::TimedOut));
    std::thread::scope(|scope| {
        let joiners: Vec<_> = (0..2).map(|_| scope.spawn(|| queue.join(&mut soon(), |_| {}))).collect();
        for left in (0..10).rev() {
            queue.task_done().unwrap();
            assert_eq!(queue.unfinished(), left);
        }
        for joiner in joiners {
            joiner.join().unwrap().unwrap();
        }
    });
    assert_eq!(queue.task_done(), Err(TooManyDone));
}

#[test]
fn join_does_not_wait_for_what_the_dead_had() {
    let queue = Queue::create(None).unwrap();
    queue.keep_holders();
    let take_and_deal = || {
        queue.take_with(&mut soon(), bytes_of).unwrap();
        queue.task_done().unwrap();
        assert_eq!(queue.take_many_with(2, &mut soon(), |_| Ok(())).unwrap(), 2);
        queue.task_done().unwrap();
        queue.task_done().unwrap();
    };
    let check = |_, _| {
        // What is still there is dealt with by another, who has one in hand meanwhile: that one is waited for.
        let mut left = queue.len();
        while left > 0 {
            queue.take_with(&mut soon(), bytes_of).unwrap();
            left -= 1;
            if left == 0 {
                let waited = queue.join(&mut Wait::timeout(Duration::from_millis(200)), |_| {});
                assert_eq!(waited, Err(WaitError::TimedOut));
            }
            queue.task_done().unwrap();
        }
        queue.join(&mut soon(), |_| {}).unwrap();
        assert_eq!(queue.unfinished(), 0);
        for _ in 0..3 {
            queue.try_put(&[b"x"]).unwrap();
        }
    };
    check(0, false);
    KillTest::new("a consumer of a queue that is joined").at_every_point(take_and_deal, check);
}

#[test]
fn a_refused_message_is_in_nobodys_hands() {
    let queue = Queue::create(None).unwrap();
    queue.keep_holders();
    queue.try_put(&[b"x"]).unwrap();
    let refuse = |_: &Message<'_>| Err::<(), _>(io::Error::other("not now"));
    assert!(matches!(queue.take_with(&mut soon(), refuse), Err(TakeError::Read(_))));
    assert_eq!(queue.unfinished(), 1);
    queue.take_with(&mut soon(), bytes_of).unwrap();
    queue.task_done().unwrap();
    assert_eq!(queue.task_done(), Err(TooManyDone));
}

#[test]
fn a_queue_sent_twice_is_one() {
    let queue = Queue::create(Some(2)).unwrap();
    let copies = || {
        let (ring, pollable) = queue.descriptors();
        (ring.try_clone_to_owned().unwrap(), pollable.try_clone_to_owned().unwrap())
    };
    let (ring, pollable) = copies();
    let other = Queue::attach(Some(2), ring, pollable).unwrap();
    assert!(Arc::ptr_eq(&queue.shared, &other.shared));
    let (ring, pollable) = copies();
    drop((queue, other));
    let again = Queue::attach(Some(2), ring, pollable).unwrap();
    again.try_put(&[b"x"]).unwrap();
    assert!(readable(again.pollable()));
}
