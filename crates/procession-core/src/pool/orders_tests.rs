use std::{sync::Arc, thread};

use super::{
    super::{
        engine::Event,
        job::{Next, Order},
        message::{Definition, Verdict},
        supervisor::Reaction,
        terms::Terms,
        worker::Worker,
    },
    *,
};
use crate::kills::KillTest;

fn soon() -> Wait<'static> {
    Wait::timeout(Duration::from_secs(60))
}

fn open(engine: &Engine, priority: i32) -> Arc<Job> {
    engine.open_with(Order::Arrival, false, Terms { priority, ..Terms::default() })
}

fn submit(engine: &Engine, job: &Job, index: u64) {
    engine.submit(job, index, Definition::default(), 7, &[&index.to_le_bytes()]).unwrap();
}

/// With a block that holds the index.
fn submit_laden(engine: &Engine, job: &Job, index: u64) {
    let block = engine.fill(job, &[&index.to_le_bytes(), &[7; 10_000]], Duration::ZERO).unwrap();
    engine.submit_laden(job, index, Definition::default(), 7, &[b"laden"], &[], vec![block]).unwrap();
}

/// Does one task and tells which, with its block as the result.
fn send_block_back(engine: &Engine, worker: &Worker) -> Option<(u64, u64)> {
    let mut task = worker.take(&mut Wait::timeout(Duration::ZERO)).ok().flatten()?;
    let [block] = task.take_blocks().try_into().unwrap();
    let block = block.hold().unwrap();
    assert_eq!((task.payload(), &block[..8]), (b"laden".as_slice(), task.id().index.to_le_bytes().as_slice()));
    let answers = [worker.fill(&[&block], Duration::ZERO).unwrap()];
    let along = Along { blocks: &answers, ..Along::default() };
    worker.finish_along(task.id(), Verdict::Done, 0, &[], along, &[]).unwrap();
    engine.poll();
    Some((task.id().job, task.id().index))
}

#[test]
fn blocks_are_taken_back_with_their_tasks_and_freed_with_those_that_are_cancelled() {
    let engine = Engine::create(1).unwrap();
    let (_, worker) = hire(&engine);
    let (plain, unwanted, urgent) = (open(&engine, 0), open(&engine, 0), open(&engine, 5));
    for index in 0..3 {
        submit_laden(&engine, &plain, index);
        submit_laden(&engine, &unwanted, index);
    }
    submit_laden(&engine, &urgent, 0);
    assert!(engine.cancel(&unwanted));
    let order: Vec<_> = std::iter::from_fn(|| send_block_back(&engine, &worker)).collect();
    assert_eq!(order, [(urgent.id(), 0), (plain.id(), 0), (plain.id(), 1), (plain.id(), 2)]);
    engine.seal(&plain, 3);
    let mut kept = Vec::new();
    while let Next::Outcome(index, mut outcome) = plain.next() {
        let [block] = outcome.take_blocks().try_into().unwrap();
        let block = block.hold().unwrap();
        assert_eq!(block[..8], index.to_le_bytes());
        kept.push(block);
    }
    assert_eq!(kept.len(), 3);
    assert_eq!(engine.tasks.blocks().unwrap().in_use(), 0);
    assert_eq!(engine.results.blocks().unwrap().in_use(), 4, "three are kept, one was not looked at");
}

#[test]
fn a_task_that_may_be_retried_has_no_blocks() {
    let engine = Engine::create(1).unwrap();
    let job = engine.open_with(Order::Arrival, false, Terms { retries: 1, ..Terms::default() });
    assert!(engine.fill(&job, &[&[7; 10_000]], Duration::ZERO).is_none());
    let block = engine.fill(&open(&engine, 0), &[b"x"], Duration::ZERO).unwrap();
    assert!(engine.submit_laden(&job, 0, Definition::default(), 7, &[], &[], vec![block]).is_err());
    assert_eq!(engine.tasks.blocks().unwrap().in_use(), 0);
}

fn job_of(engine: &Engine, priority: i32, tasks: u64) -> Arc<Job> {
    let job = open(engine, priority);
    (0..tasks).for_each(|index| submit(engine, &job, index));
    engine.seal(&job, tasks);
    job
}

fn hire(engine: &Engine) -> (usize, Worker) {
    let slot = engine.hire().unwrap().unwrap();
    (slot, enter(engine, slot))
}

fn enter(engine: &Engine, slot: usize) -> Worker {
    let worker = Worker::enter(engine.port(), slot).unwrap();
    worker.ready();
    worker
}

/// Does one task and tells which; `None` if there is none.
fn work(engine: &Engine, worker: &Worker) -> Option<(u64, u64)> {
    let done = serve(worker);
    engine.poll();
    done
}

fn serve(worker: &Worker) -> Option<(u64, u64)> {
    let task = worker.take(&mut Wait::timeout(Duration::ZERO)).ok().flatten()?;
    worker.finish(task.id(), Verdict::Done, &[task.payload()]).unwrap();
    Some((task.id().job, task.id().index))
}

fn verdicts(job: &Job) -> Vec<Verdict> {
    std::iter::from_fn(|| match job.next() {
        Next::Outcome(_, outcome) => Some(outcome.verdict),
        Next::Pending => panic!("the job is not done"),
        Next::End => None,
    })
    .collect()
}

#[test]
fn what_is_cancelled_is_not_begun_and_others_are_done_in_their_order() {
    let engine = Engine::create(1).unwrap();
    let (_, worker) = hire(&engine);
    let jobs: Vec<_> = (0..5).map(|_| job_of(&engine, 0, 3)).collect();
    assert_eq!(work(&engine, &worker), Some((jobs[0].id(), 0)));
    assert_eq!(work(&engine, &worker), Some((jobs[0].id(), 1)));
    for at in [0, 2, 3] {
        assert!(engine.cancel(&jobs[at]));
        assert!(engine.cancel(&jobs[at]), "it is cancelled, however often that is said");
        assert!(jobs[at].is_cancelled() && jobs[at].is_done());
    }
    assert_eq!(engine.statistics().queued, 6);
    assert!(!engine.is_ordered());
    let order: Vec<_> = std::iter::from_fn(|| work(&engine, &worker)).collect();
    let expected: Vec<_> = [1, 4].iter().flat_map(|at| (0..3).map(|index| (jobs[*at].id(), index))).collect();
    assert_eq!(order, expected);
    assert_eq!(verdicts(&jobs[0]), [Verdict::Done, Verdict::Done, Verdict::Cancelled]);
    assert_eq!(verdicts(&jobs[2]), [Verdict::Cancelled]);
    assert_eq!(verdicts(&jobs[4]), [Verdict::Done; 3]);
    assert!(!engine.cancel(&jobs[4]), "it is done");
    assert_eq!(engine.jobs(), 0);
}

#[test]
fn a_cancelled_task_that_is_submitted_later_on_is_not_begun() {
    let engine = Engine::create(1).unwrap();
    let (_, worker) = hire(&engine);
    let job = open(&engine, 0);
    submit(&engine, &job, 0);
    assert!(engine.cancel(&job));
    submit(&engine, &job, 1);
    engine.end(&job, 2);
    assert_eq!(work(&engine, &worker), None);
    assert_eq!(verdicts(&job), [Verdict::Cancelled]);
}

#[test]
fn many_are_cancelled_one_by_one_without_all_being_moved_each_time() {
    const JOBS: usize = 20_000;
    let engine = Engine::create(2).unwrap();
    let (_, worker) = hire(&engine);
    let jobs: Vec<_> = (0..JOBS).map(|_| job_of(&engine, 0, 1)).collect();
    let before = engine.tasks.put_count();
    for job in jobs.iter().skip(1).step_by(2) {
        assert!(engine.cancel(job));
    }
    assert!(engine.tasks.put_count() - before < 20 * JOBS as u64);
    assert!(engine.is_ordered());
    for job in jobs.iter().step_by(2) {
        assert_eq!(work(&engine, &worker), Some((job.id(), 0)));
    }
    assert_eq!(work(&engine, &worker), None);
    assert!(!engine.is_ordered(), "the usual way is taken again");
    assert_eq!(engine.statistics().queued, 0);
}

#[test]
fn who_is_at_a_cancelled_task_is_to_be_killed_and_takes_no_other() {
    let engine = Engine::create(2).unwrap();
    let ((busy, first), (_, second)) = (hire(&engine), hire(&engine));
    let (job, other) = (job_of(&engine, 0, 1), job_of(&engine, 0, 1));
    let task = first.take(&mut soon()).unwrap().unwrap();
    assert!(engine.cancel(&job));
    assert!(matches!(engine.run().unwrap(), Event::Condemned(slot) if slot == busy));
    // It gets done before it is killed.
    first.finish(task.id(), Verdict::Done, &[]).unwrap();
    assert!(first.take(&mut soon()).unwrap().is_none());
    assert_eq!(work(&engine, &second), Some((other.id(), 0)));
    assert_eq!(engine.retire(busy, b"how"), Reaction::Replace);
    assert_eq!(verdicts(&job), [Verdict::Cancelled]);
    assert_eq!(verdicts(&other), [Verdict::Done]);
}

#[test]
fn a_worker_that_has_ended_meanwhile_is_not_the_one_to_be_killed() {
    let engine = Engine::create(1).unwrap();
    let (slot, worker) = hire(&engine);
    let job = job_of(&engine, 0, 1);
    drop(worker.take(&mut soon()).unwrap().unwrap());
    assert!(engine.cancel(&job));
    engine.retire(slot, b"how");
    assert_eq!(hire(&engine).0, slot);
    assert!(engine.state().to_kill.is_empty());
}

#[test]
fn whoever_waits_for_a_job_hears_that_it_is_cancelled() {
    let engine = Engine::create(1).unwrap();
    let job = engine.open(Order::Collected, true);
    engine.seal(&job, 1);
    thread::scope(|scope| {
        let waiters: Vec<_> =
            (0..3).map(|_| scope.spawn(|| engine.wait(&job, Job::is_done, &mut soon()).unwrap())).collect();
        while engine.state().followers.len() < 2 {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(engine.cancel(&job));
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
    assert!(matches!(engine.run().unwrap(), Event::Finished(done) if done.id() == job.id()));
    assert_eq!(verdicts(&job), [Verdict::Cancelled]);
}

#[test]
fn a_worker_killed_anywhere_while_tasks_are_taken_back_loses_what_it_has_in_hand_and_no_more() {
    const TASKS: u64 = 4;
    let engine = Engine::create(2).unwrap();
    let ((first, _), (second, _)) = (hire(&engine), hire(&engine));
    let job = std::cell::RefCell::new(job_of(&engine, 0, TASKS));
    let dropped = std::cell::RefCell::new(job_of(&engine, 0, 2));
    let life = || {
        let worker = enter(&engine, first);
        for _ in 0..2 {
            serve(&worker);
        }
    };
    let check = |point: i64, killed: bool| {
        assert!(engine.cancel(&dropped.borrow()));
        engine.retire(first, b"how");
        let other = enter(&engine, second);
        while work(&engine, &other).is_some() {}
        engine.wait(&job.borrow(), Job::is_done, &mut soon()).unwrap();
        let verdicts = verdicts(&job.borrow());
        assert_eq!(verdicts.len() as u64, TASKS);
        let lost = verdicts.iter().filter(|verdict| **verdict == Verdict::Lost).count();
        assert!(lost <= usize::from(killed), "{lost} tasks lost by a kill at point {point}");
        assert_eq!(engine.statistics().queued, 0);
        assert_eq!(engine.hire().unwrap(), Some(first));
        job.replace(job_of(&engine, 0, TASKS));
        dropped.replace(job_of(&engine, 0, 2));
    };
    KillTest::new("a worker whose tasks are taken back").at_every_point(life, check);
}

#[test]
fn what_there_is_no_memory_for_is_done_later_on() {
    for lacking in 1..8 {
        let engine = Engine::create(1).unwrap();
        let (slot, worker) = hire(&engine);
        let (job, other) = (job_of(&engine, 0, 2), job_of(&engine, 0, 2));
        message::lack::TIMES.set(lacking);
        assert!(engine.cancel(&job));
        engine.shrink(0).unwrap();
        message::lack::TIMES.set(0);
        // The thread that attends to the pool.
        engine.see_to_orders(&mut engine.state());
        assert_eq!(work(&engine, &worker), Some((other.id(), 0)));
        assert_eq!(work(&engine, &worker), Some((other.id(), 1)));
        assert_eq!(work(&engine, &worker), None);
        assert!(!engine.state().orders.are_due());
        engine.retire(slot, b"");
    }
}

#[test]
fn larger_priorities_come_first() {
    let engine = Engine::create(1).unwrap();
    let (_, worker) = hire(&engine);
    let running = job_of(&engine, 0, 1);
    let task = worker.take(&mut soon()).unwrap().unwrap();
    let priorities = [0, -5, 3, 0, 7, 3, -5, 7];
    let jobs: Vec<_> = priorities.iter().map(|priority| job_of(&engine, *priority, 2)).collect();
    assert_eq!(engine.statistics().queued, 16);
    assert!(engine.tasks.len() <= 1, "only as much is in the ring as is needed");
    worker.finish(task.id(), Verdict::Done, &[]).unwrap();
    engine.poll();
    assert_eq!(verdicts(&running), [Verdict::Done]);
    let mut expected: Vec<_> = jobs.iter().collect();
    expected.sort_by_key(|job| -job.terms().priority);
    for job in expected {
        assert_eq!(work(&engine, &worker), Some((job.id(), 0)));
        assert_eq!(work(&engine, &worker), Some((job.id(), 1)));
    }
    assert_eq!(work(&engine, &worker), None);
    assert!(!engine.is_ordered());
    // From here on it is as before.
    let plain = job_of(&engine, 0, 3);
    assert_eq!(engine.tasks.len(), 3);
    assert_eq!(work(&engine, &worker), Some((plain.id(), 0)));
}

#[test]
fn workers_never_wait_for_what_waits_in_the_parent() {
    let engine = Engine::create(2).unwrap();
    let workers = [hire(&engine), hire(&engine)];
    let jobs: Vec<_> = (0..100).map(|number| job_of(&engine, number % 5, 20)).collect();
    thread::scope(|scope| {
        for (_, worker) in &workers {
            scope.spawn(|| {
                while let Ok(Some(task)) = worker.take(&mut soon()) {
                    worker.finish(task.id(), Verdict::Done, &[]).unwrap();
                }
            });
        }
        // Nobody waits for any of the results: the doorbell is rung for each.
        scope.spawn(|| assert!(matches!(engine.run().unwrap(), Event::Over)));
        while engine.results.put_count() < 100 * 20 {
            thread::sleep(Duration::from_millis(1));
        }
        // The thread in `run` may be the one that reads them.
        while !jobs.iter().all(|job| job.is_done()) {
            engine.poll();
            thread::yield_now();
        }
        for _ in &workers {
            message::put(&engine.tasks, &TaskHeader::STOP.to_bytes(), &[]).unwrap();
        }
        engine.terminate();
    });
    assert!(jobs.iter().all(|job| verdicts(job) == [Verdict::Done; 20]));
}

#[test]
fn a_backlog_counts_for_those_that_come_after_it() {
    let engine = Engine::create(1).unwrap();
    let (_, worker) = hire(&engine);
    let large = vec![0; 1 << 20];
    let job = open(&engine, 0);
    let mut count = 0;
    while !engine.is_full() {
        engine.submit(&job, count, Definition::default(), 7, &[&large]).unwrap();
        count += 1;
    }
    assert_eq!([1, 0, -1].map(|priority| engine.is_full_for(priority)), [false, true, true]);
    let urgent = open(&engine, 1);
    let mut more = 0;
    while !engine.is_full_for(1) {
        engine.submit(&urgent, more, Definition::default(), 7, &[&large]).unwrap();
        more += 1;
    }
    assert!((2..20).contains(&more));
    assert!(!engine.is_full_for(2) && engine.is_full_for(0));
    assert_eq!(work(&engine, &worker), Some((urgent.id(), 0)));
    assert!(engine.cancel(&urgent) && engine.cancel(&job));
    engine.poll();
    assert_eq!([1, 0, -1].map(|priority| engine.is_full_for(priority)), [false; 3]);
    assert!(!engine.is_full());
}

#[test]
fn nothing_is_left_in_the_parent_when_nobody_can_do_it() {
    let engine = Engine::create(1).unwrap();
    let jobs = [job_of(&engine, 1, 3), job_of(&engine, 0, 3)];
    while engine.retire(engine.hire().unwrap().unwrap(), b"why") != Reaction::GiveUp {}
    engine.poll();
    for job in &jobs {
        assert_eq!(verdicts(job), [Verdict::Unserved; 3]);
    }
    let late = job_of(&engine, 2, 1);
    engine.submitted();
    engine.poll();
    assert_eq!(verdicts(&late), [Verdict::Unserved]);
}

#[test]
fn a_pool_that_is_terminated_forgets_what_waits() {
    let engine = Engine::create(1).unwrap();
    let jobs = [job_of(&engine, 1, 3), job_of(&engine, 0, 3)];
    engine.terminate();
    for job in &jobs {
        assert_eq!(verdicts(job), [Verdict::Terminated]);
        assert!(!engine.cancel(job));
    }
    assert!(engine.state().orders.drawer.len() == 0);
}

#[test]
fn workers_that_are_not_needed_leave_before_they_take_what_waits() {
    let engine = Engine::create(3).unwrap();
    let workers = [hire(&engine), hire(&engine), hire(&engine)];
    let job = job_of(&engine, 0, 10);
    let task = workers[0].1.take(&mut soon()).unwrap().unwrap();
    assert_eq!(engine.shrink(3).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    engine.shrink(2).unwrap();
    assert_eq!(engine.places(), 1);
    for (slot, worker) in &workers[1..] {
        assert!(worker.take(&mut soon()).unwrap().is_none());
        assert_eq!(engine.retire(*slot, b""), Reaction::Shrink);
    }
    workers[0].1.finish(task.id(), Verdict::Done, &[]).unwrap();
    for index in 1..10 {
        assert_eq!(work(&engine, &workers[0].1), Some((job.id(), index)));
    }
    assert_eq!(engine.retire(workers[0].0, b""), Reaction::Replace);
    engine.grow(2);
    assert_eq!(engine.places(), 3);
    let again = [hire(&engine), hire(&engine), hire(&engine)];
    assert_eq!(engine.retire(again[0].0, b""), Reaction::Replace);
}

#[test]
fn a_worker_too_many_that_leaves_is_replaced() {
    let engine = Engine::create(2).unwrap();
    let workers = [hire(&engine), hire(&engine)];
    engine.shrink(1).unwrap();
    // It dies, and the word to stop that it might have taken is there still.
    assert_eq!(engine.retire(workers[0].0, b""), Reaction::Shrink);
    assert!(workers[1].1.take(&mut soon()).unwrap().is_none());
    assert_eq!(engine.retire(workers[1].0, b""), Reaction::Replace);
    let (_, worker) = hire(&engine);
    let job = job_of(&engine, 0, 1);
    assert_eq!(work(&engine, &worker), Some((job.id(), 0)));
}

#[test]
fn who_is_hired_when_all_have_left_finds_what_waits_in_the_parent() {
    let engine = Engine::create(3).unwrap();
    let workers = [hire(&engine), hire(&engine), hire(&engine)];
    let job = job_of(&engine, 2, 3);
    engine.shrink(1).unwrap();
    // It dies, so the word to stop in the ring is one too many.
    assert_eq!(engine.retire(workers[2].0, b""), Reaction::Shrink);
    engine.shrink(1).unwrap();
    for (worker, reaction) in workers[..2].iter().zip([Reaction::Shrink, Reaction::Replace]) {
        assert!(worker.1.take(&mut soon()).unwrap().is_none());
        assert_eq!(engine.retire(worker.0, b""), reaction);
    }
    let (_, worker) = hire(&engine);
    for index in 0..3 {
        assert_eq!(work(&engine, &worker), Some((job.id(), index)));
    }
    assert!(job.is_done());
}

#[test]
fn who_is_hired_while_others_are_long_at_work_finds_what_waits_in_the_parent() {
    let engine = Engine::create(1).unwrap();
    let (_, first) = hire(&engine);
    let job = job_of(&engine, 2, 3);
    let long = first.take(&mut soon()).unwrap().unwrap();
    engine.grow(1);
    let (_, second) = hire(&engine);
    for index in 1..3 {
        assert_eq!(work(&engine, &second), Some((job.id(), index)));
    }
    first.finish(long.id(), Verdict::Done, &[]).unwrap();
    engine.poll();
    assert!(job.is_done());
}

#[test]
fn who_is_hired_after_a_dead_worker_is_not_killed_in_its_place() {
    // The outcome of the dead one's task is announced and heard between the looks at its slot.
    for _ in 0..1000 {
        let engine = Engine::create(1).unwrap();
        let (slot, worker) = hire(&engine);
        let job = job_of(&engine, 0, 2);
        assert!(worker.take(&mut soon()).unwrap().is_some());
        let start = std::sync::Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                assert!(engine.cancel(&job), "one of its tasks is still to come");
            });
            start.wait();
            assert_eq!(engine.retire(slot, b""), Reaction::Replace);
        });
        assert_eq!(hire(&engine).0, slot);
        assert!(engine.state().to_kill.is_empty(), "it has done nothing");
    }
}

#[test]
fn what_is_cancelled_does_not_wait_for_its_turn_to_be_forgotten() {
    let engine = Engine::create(1).unwrap();
    let urgent = job_of(&engine, 1, 3);
    let later: Vec<_> = (0..20).map(|_| job_of(&engine, -1, 1)).collect();
    assert_eq!(engine.statistics().queued, 23);
    for job in &later {
        assert!(engine.cancel(job));
    }
    assert!(engine.statistics().queued <= 6, "no worker has done anything, and no more are kept than are wanted");
    let (_, worker) = hire(&engine);
    assert!((0..3).all(|_| work(&engine, &worker).is_some()));
    assert!(urgent.is_done());
}
