use std::{sync::atomic::AtomicUsize, thread, time::Instant};

use super::{
    super::{
        job::{Next, Outcome},
        worker::Worker,
    },
    *,
};
use crate::{kills::KillTest, process::ProcessId, sync::WaitError};

pub(super) fn soon() -> Wait<'static> {
    Wait::timeout(Duration::from_secs(60))
}

/// A job with so many tasks, each with its own number as the payload.
pub(super) fn job_of(engine: &Engine, order: Order, tasks: u64) -> Arc<Job> {
    let job = engine.open(order, false);
    for index in 0..tasks {
        engine.submit(&job, index, Definition::default(), 7, &[b"task ", &index.to_le_bytes()]).unwrap();
    }
    engine.seal(&job, tasks);
    job
}

/// Does at most so many tasks: sends back what it got. Returns how many there were.
pub(super) fn work(engine: &Engine, slot: usize, most: usize, mut wait: Wait<'_>) -> usize {
    let worker = Worker::enter(engine.port(), slot).unwrap();
    worker.ready();
    let mut done = 0;
    while done < most
        && let Ok(Some(task)) = worker.take(&mut wait)
    {
        assert_eq!(task.mode(), 7);
        worker.finish(task.id(), Verdict::Done, &[task.payload()]).unwrap();
        worker.recycle(task);
        done += 1;
    }
    done
}

/// All outcomes of a job, waited for.
pub(super) fn outcomes(engine: &Engine, job: &Arc<Job>) -> Vec<(u64, Outcome)> {
    let mut all = Vec::new();
    loop {
        match job.next() {
            Next::Outcome(index, outcome) => all.push((index, outcome)),
            Next::Pending => engine.wait(job, Job::has_next, &mut soon()).unwrap(),
            Next::End => return all,
        }
    }
}

pub(super) fn expect_done(index: u64, outcome: &Outcome) {
    assert_eq!(outcome.verdict, Verdict::Done);
    assert_eq!(outcome.payload(), [b"task ", &index.to_le_bytes()[..]].concat());
}

#[test]
fn tasks_are_done_by_workers_and_heard_by_many_waiters() {
    let engine = Engine::create(2).unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            let slot = engine.hire().unwrap().unwrap();
            let engine = &engine;
            scope.spawn(move || work(engine, slot, usize::MAX, soon()));
        }
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for tasks in 1..60 {
                        let all = outcomes(&engine, &job_of(&engine, Order::Sequence, tasks));
                        assert_eq!(all.len() as u64, tasks);
                        for (index, outcome) in &all {
                            expect_done(*index, outcome);
                        }
                    }
                })
            })
            .collect();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        for _ in 0..2 {
            message::put(&engine.tasks, &TaskHeader::STOP.to_bytes(), &[]).unwrap();
        }
    });
}

#[test]
fn a_worker_killed_anywhere_loses_the_task_in_its_hands_and_no_other() {
    const TASKS: u64 = 4;
    let mut test = KillTest::new("a worker");
    for retired_first in [true, false] {
        let engine = Engine::create(2).unwrap();
        let (first, second) = (engine.hire().unwrap().unwrap(), engine.hire().unwrap().unwrap());
        let job = std::cell::RefCell::new(job_of(&engine, Order::Sequence, TASKS));
        let (lost, kills) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let life = || {
            work(&engine, first, 2, soon());
        };
        let check = |point: i64, killed: bool| {
            if retired_first {
                engine.retire(first, b"how");
            }
            // Another worker does the rest; the lock of the dead one it gets in its time.
            work(&engine, second, TASKS as usize, Wait::timeout(Duration::from_millis(100)));
            if !retired_first {
                engine.retire(first, b"how");
            }
            let all = outcomes(&engine, &job.borrow());
            assert_eq!(all.iter().map(|(index, _)| *index).collect::<Vec<_>>(), (0..TASKS).collect::<Vec<_>>());
            let mut gone = 0;
            for (index, outcome) in &all {
                if outcome.verdict == Verdict::Lost {
                    assert_eq!(outcome.payload(), b"how");
                    gone += 1;
                } else {
                    expect_done(*index, outcome);
                }
            }
            assert!(gone <= usize::from(killed), "{gone} tasks lost by a kill at point {point}");
            lost.fetch_add(gone, Ordering::Relaxed);
            kills.fetch_add(usize::from(killed), Ordering::Relaxed);
            engine.control.prepare(first).unwrap();
            job.replace(job_of(&engine, Order::Sequence, TASKS));
        };
        test.at_every_point(life, check);
        // Points before the commit and behind the result were among them, and points in between.
        let (lost, kills) = (lost.into_inner(), kills.into_inner());
        assert!(lost >= 2 && lost < kills, "{lost} tasks lost in {kills} deaths");
    }
}

#[test]
fn what_nobody_can_do_is_given_up() {
    let engine = Engine::create(1).unwrap();
    let job = job_of(&engine, Order::Arrival, 3);
    let mut reaction = Reaction::Replace;
    for _ in 0..100 {
        let slot = engine.hire().unwrap().unwrap();
        reaction = engine.retire(slot, b"why");
        if reaction == Reaction::GiveUp {
            break;
        }
    }
    assert_eq!(reaction, Reaction::GiveUp);
    let later = job_of(&engine, Order::Collected, 2);
    engine.submitted();
    for (job, count) in [(job, 3), (later, 1)] {
        let all = outcomes(&engine, &job);
        assert_eq!(all.len(), count);
        assert!(all.iter().all(|(_, outcome)| outcome.verdict == Verdict::Unserved && outcome.payload() == b"why"));
    }
}

#[test]
fn whoever_waits_hears_of_the_end() {
    let engine = Engine::create(1).unwrap();
    let jobs: Vec<_> = (0..3).map(|_| job_of(&engine, Order::Collected, 1)).collect();
    thread::scope(|scope| {
        for job in &jobs {
            scope.spawn(|| engine.wait(job, Job::is_done, &mut soon()).unwrap());
        }
        thread::sleep(Duration::from_millis(20));
        engine.terminate();
        assert!(matches!(engine.run().unwrap(), Event::Over));
    });
    let after = engine.open(Order::Collected, true);
    assert!(after.is_settled());
    assert!(engine.hire().unwrap().is_none());
}

#[test]
fn the_face_is_told_of_what_it_asked_for() {
    let engine = Engine::create(1).unwrap();
    let slot = engine.hire().unwrap().unwrap();
    let (sentinel, end) = rustix::pipe::pipe().unwrap();
    engine.watch(slot, sentinel.as_fd()).unwrap();
    let job = engine.open(Order::Collected, true);
    engine.submit(&job, 0, Definition::default(), 7, &[b"task ", &0_u64.to_le_bytes()]).unwrap();
    engine.seal(&job, 1);
    engine.close();
    thread::scope(|scope| {
        scope.spawn(|| {
            work(&engine, slot, usize::MAX, soon());
            // As a pidfd at the end of its process.
            drop(end);
        });
        let Event::Finished(finished) = engine.run().unwrap() else { panic!("the job is done first") };
        assert_eq!(finished.id(), job.id());
        assert!(job.is_done() && !job.is_settled());
        engine.settle(&job);
        assert!(job.is_settled());
        assert!(matches!(engine.run().unwrap(), Event::Ended(ended) if ended == slot));
        assert_eq!(engine.retire(slot, b""), Reaction::Shrink);
        assert!(matches!(engine.run().unwrap(), Event::Over));
    });
}

#[test]
fn a_wait_ends_at_its_time_and_passes_the_office_on() {
    let engine = Engine::create(1).unwrap();
    let slot = engine.hire().unwrap().unwrap();
    let (never, soon_done) = (engine.open(Order::Collected, false), engine.open(Order::Collected, false));
    engine.submit(&soon_done, 0, Definition::default(), 7, &[b"x"]).unwrap();
    engine.seal(&soon_done, 1);
    thread::scope(|scope| {
        // The first becomes the reader and gives up; the second has to take over.
        scope.spawn(|| {
            let mut wait = Wait::timeout(Duration::from_millis(50));
            assert_eq!(engine.wait(&never, Job::is_done, &mut wait), Err(WaitError::TimedOut));
        });
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(10));
            engine.wait(&soon_done, Job::is_done, &mut soon()).unwrap();
        });
        thread::sleep(Duration::from_millis(100));
        work(&engine, slot, 1, soon());
    });
    assert!(engine.belongs_here());
    assert_eq!(engine.control.remains(slot).process, Some(ProcessId::current()));
}

#[test]
fn a_backlog_makes_itself_known() {
    let engine = Engine::create(1).unwrap();
    let slot = engine.hire().unwrap().unwrap();
    let job = engine.open(Order::Arrival, false);
    let large = vec![0; 1 << 20];
    let mut count = 0;
    while !engine.is_full() {
        engine.submit(&job, count, Definition::default(), 7, &[&large]).unwrap();
        count += 1;
    }
    assert!((2..20).contains(&count));
    assert_eq!(work(&engine, slot, 3, soon()), 3);
    assert!(!engine.is_full());
}

#[test]
fn nobody_waits_for_callbacks_that_a_terminated_pool_does_not_call() {
    let engine = Engine::create(1).unwrap();
    let job = engine.open(Order::Collected, true);
    engine.seal(&job, 1);
    engine.refuse(&job, 0);
    engine.poll();
    assert!(job.is_done() && !job.is_settled());
    // The face was not told of it before, and will not be any more.
    engine.terminate();
    assert!(matches!(engine.run().unwrap(), Event::Over));
    engine.wait(&job, Job::is_settled, &mut soon()).unwrap();
}

#[test]
fn workers_are_told_to_stop_when_there_is_memory_to_say_so() {
    let engine = Engine::create(2).unwrap();
    let watched: Vec<_> = (0..2).map(|_| (engine.hire().unwrap().unwrap(), rustix::pipe::pipe().unwrap())).collect();
    for (slot, (sentinel, _)) in &watched {
        engine.watch(*slot, sentinel.as_fd()).unwrap();
    }
    engine.close();
    message::lack::TIMES.set(3);
    thread::scope(|scope| {
        let mut sentinels = Vec::new();
        for (slot, (sentinel, end)) in watched {
            sentinels.push(sentinel);
            let engine = &engine;
            scope.spawn(move || {
                work(engine, slot, usize::MAX, soon());
                drop(end);
            });
        }
        for left in (0..2).rev() {
            let Event::Ended(slot) = engine.run().unwrap() else { panic!("{left} workers are left") };
            engine.retire(slot, b"");
        }
        assert!(matches!(engine.run().unwrap(), Event::Over));
    });
    assert_eq!(message::lack::TIMES.get(), 0);
}

#[test]
fn results_that_there_is_no_memory_for_are_waited_for_at_rest() {
    let engine = Engine::create(1).unwrap();
    let slot = engine.hire().unwrap().unwrap();
    let job = engine.open(Order::Collected, true);
    engine.submit(&job, 0, Definition::default(), 7, &[b"task"]).unwrap();
    engine.seal(&job, 1);
    work(&engine, slot, 1, soon());
    message::lack::TIMES.set(6);
    let began = Instant::now();
    assert!(matches!(engine.run().unwrap(), Event::Finished(done) if done.id() == job.id()));
    // 1 + 2 + 4 + 8 + 16 + 32: it has not tried again and again.
    assert!(began.elapsed() >= Duration::from_millis(63));
}

#[test]
fn a_worker_that_takes_too_long_is_pointed_out() {
    let engine = Engine::create(2).unwrap();
    engine.limit(Duration::from_millis(30));
    let (slow, quick) = (engine.hire().unwrap().unwrap(), engine.hire().unwrap().unwrap());
    let job = job_of(&engine, Order::Sequence, 3);
    let worker = Worker::enter(engine.port(), slow).unwrap();
    let task = worker.take(&mut soon()).unwrap().unwrap();
    assert_eq!(work(&engine, quick, 1, soon()), 1);
    assert!(matches!(engine.run().unwrap(), Event::Condemned(slot) if slot == slow));
    assert_eq!(engine.statistics(), Statistics { done: 1, queued: 1, at_work: 1 });
    // It gets done while it is about to be killed: its result counts, and it harms no other task.
    worker.finish(task.id(), Verdict::Done, &[task.payload()]).unwrap();
    assert!(worker.take(&mut soon()).unwrap().is_none());
    engine.retire(slow, b"how");
    assert_eq!(engine.statistics(), Statistics { done: 2, queued: 1, at_work: 0 });
    assert_eq!(work(&engine, quick, 1, soon()), 1);
    for (index, outcome) in outcomes(&engine, &job) {
        expect_done(index, &outcome);
    }
}

#[test]
fn nothing_is_admitted_once_the_pool_is_closed() {
    let engine = Engine::create(1).unwrap();
    let job = engine.admit(Order::Collected, false, Some(0)).unwrap();
    assert!(job.is_done());
    let open = engine.admit(Order::Sequence, true, None).unwrap();
    engine.close();
    assert!(engine.admit(Order::Collected, false, Some(1)).is_none());
    engine.seal(&open, 0);
    assert!(open.is_done());
    engine.terminate();
    assert!(engine.admit(Order::Collected, false, None).is_none());
}

#[test]
fn the_face_is_told_of_what_it_asks_for_later_on() {
    let engine = Engine::create(1).unwrap();
    let slot = engine.hire().unwrap().unwrap();
    for already_there in [true, false] {
        let job = job_of(&engine, Order::Collected, 1);
        thread::scope(|scope| {
            if already_there {
                work(&engine, slot, 1, soon());
            }
            assert!(engine.notify(&job));
            if !already_there {
                scope.spawn(|| work(&engine, slot, 1, soon()));
            }
            assert!(matches!(engine.run().unwrap(), Event::Finished(done) if done.id() == job.id()));
        });
        assert!(!engine.notify(&job));
    }
}

/// The parent's end of a pool whose messages may have descriptors, and its port as another process attaches it.
fn with_couriers() -> (Engine, Port) {
    let engine = Engine::create_with_couriers(2).unwrap();
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let port = Port::attach_with_couriers(engine.descriptors().map(copy), engine.couriers().unwrap().map(copy));
    (engine, port.unwrap())
}

/// Does so many tasks: sends back what came with them.
fn send_back(port: Port, slot: usize, tasks: usize) {
    let worker = Worker::enter(port, slot).unwrap();
    worker.ready();
    for _ in 0..tasks {
        let mut task = worker.take(&mut soon()).unwrap().unwrap();
        let descriptors = task.take_descriptors();
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        worker.finish_with(task.id(), Verdict::Done, &[task.payload()], &descriptors).unwrap();
    }
}

/// A job with so many tasks, each with the writing end of a pipe; and the reading ends.
fn job_with_pipes(engine: &Engine, tasks: u64) -> (Arc<Job>, Vec<io::PipeReader>) {
    let job = engine.open(Order::Sequence, false);
    let mut readers = Vec::new();
    for index in 0..tasks {
        let (reader, writer) = io::pipe().unwrap();
        engine.submit_with(&job, index, Definition::default(), 7, &[b"pipe"], &[writer.as_fd()]).unwrap();
        readers.push(reader);
    }
    engine.seal(&job, tasks);
    (job, readers)
}

#[test]
fn descriptors_go_to_the_worker_and_come_back() {
    let (engine, port) = with_couriers();
    let slot = engine.hire().unwrap().unwrap();
    let (job, readers) = job_with_pipes(&engine, 20);
    thread::scope(|scope| {
        scope.spawn(|| send_back(port, slot, 20));
        for ((_, mut outcome), mut reader) in outcomes(&engine, &job).into_iter().zip(readers) {
            let writer = outcome.take_descriptors().pop().unwrap();
            rustix::io::write(&writer, b"through").unwrap();
            drop(writer);
            assert_eq!(io::read_to_string(&mut reader).unwrap(), "through");
        }
    });
    let plain = Engine::create(1).unwrap();
    let job = plain.open(Order::Collected, false);
    assert!(plain.submit_with(&job, 0, Definition::default(), 7, &[], &[plain.doorbell.as_fd()]).is_err());
}

#[test]
fn more_results_with_descriptors_than_can_be_on_their_way_are_heard_where_nobody_waits() {
    const TASKS: usize = 2000;
    let (engine, port) = with_couriers();
    let slot = engine.hire().unwrap().unwrap();
    let job = engine.open(Order::Arrival, true);
    engine.seal(&job, TASKS as u64);
    let pipe = io::pipe().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| send_back(port, slot, TASKS));
        scope.spawn(|| {
            for index in 0..TASKS as u64 {
                let end = [pipe.1.as_fd()];
                engine.submit_with(&job, index, Definition::default(), 7, &[b"x"], &end).unwrap();
                if let Next::Outcome(_, mut outcome) = job.next() {
                    assert_eq!(outcome.take_descriptors().len(), 1);
                }
            }
        });
        assert!(matches!(engine.run().unwrap(), Event::Finished(_)));
        engine.settle(&job);
    });
}

#[test]
fn a_put_that_waits_for_room_ends_with_the_pool() {
    let (engine, _port) = with_couriers();
    let job = engine.open(Order::Collected, false);
    let pipe = io::pipe().unwrap();
    thread::scope(|scope| {
        let producer = scope.spawn(|| {
            loop {
                let end = [pipe.1.as_fd()];
                if let Err(error) = engine.submit_with(&job, 0, Definition::default(), 7, &[], &end) {
                    return error.kind();
                }
            }
        });
        thread::sleep(Duration::from_millis(50));
        engine.terminate();
        assert_eq!(producer.join().unwrap(), io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn a_worker_killed_anywhere_leaves_nothing_of_its_descriptors() {
    const TASKS: u64 = 3;
    let (engine, port) = with_couriers();
    let (first, second) = (engine.hire().unwrap().unwrap(), engine.hire().unwrap().unwrap());
    let round = std::cell::RefCell::new(job_with_pipes(&engine, TASKS));
    let check = |_, _| {
        engine.retire(first, b"how");
        let left = engine.tasks.put_count() - engine.tasks.get_count();
        send_back(port.clone(), second, left as usize);
        let (job, _) = round.replace(job_with_pipes(&engine, TASKS));
        for (_, mut outcome) in outcomes(&engine, &job) {
            assert_eq!(outcome.take_descriptors().len(), usize::from(outcome.verdict == Verdict::Done));
        }
        engine.control.prepare(first).unwrap();
    };
    KillTest::new("a worker with descriptors").at_every_point(|| send_back(port.clone(), first, 2), check);
    let left = engine.tasks.put_count() - engine.tasks.get_count();
    send_back(port.clone(), second, left as usize);
    let (job, readers) = round.into_inner();
    drop(outcomes(&engine, &job));
    for reader in readers {
        assert_eq!(io::read_to_string(reader).unwrap(), "");
    }
}
