//! Limits and retries.

use std::{sync::atomic::AtomicUsize, thread};

use super::{
    super::worker::Worker,
    tests::{expect_done, outcomes, soon, work},
    *,
};
use crate::kills::KillTest;

fn limited(limit: Duration) -> Terms {
    Terms { limit: Some(limit), ..Terms::default() }
}

fn retried(retries: u32) -> Terms {
    Terms { retries, ..Terms::default() }
}

/// A job with so many tasks, each with its own number as the payload.
fn job_with(engine: &Engine, tasks: u64, terms: Terms) -> Arc<Job> {
    let job = engine.open_with(Order::Sequence, false, terms);
    for index in 0..tasks {
        engine.submit(&job, index, Definition::default(), 7, &[b"task ", &index.to_le_bytes()]).unwrap();
    }
    engine.seal(&job, tasks);
    job
}

/// A worker that has just been started.
fn hired(engine: &Engine) -> (usize, Worker) {
    let slot = engine.hire().unwrap().unwrap();
    let worker = Worker::enter(engine.port(), slot).unwrap();
    worker.ready();
    (slot, worker)
}

/// How the one task of a job ended.
fn end_of(engine: &Engine, job: &Arc<Job>) -> (Verdict, u32) {
    let all = outcomes(engine, job);
    let [(0, outcome)] = &all[..] else { panic!("one task, one outcome: {all:?}") };
    (outcome.verdict, outcome.deaths)
}

#[test]
fn each_task_has_its_own_limit() {
    let engine = Engine::create(3).unwrap();
    let workers = [(); 3].map(|()| hired(&engine));
    let terms = [limited(Duration::from_secs(600)), limited(Duration::from_millis(40)), Terms::default()];
    let jobs = terms.map(|terms| job_with(&engine, 1, terms));
    let tasks = workers.each_ref().map(|(_, worker)| worker.take(&mut soon()).unwrap().unwrap());
    assert_eq!(tasks.each_ref().map(|task| task.id().job), jobs.each_ref().map(|job| job.id()));
    assert!(matches!(engine.run().unwrap(), Event::Condemned(slot) if slot == workers[1].0));
    engine.retire(workers[1].0, b"how");
    assert_eq!(end_of(&engine, &jobs[1]), (Verdict::Overdue, 0));
    assert!(!jobs[0].is_done() && !jobs[2].is_done());
    // A worker that ends by itself loses its task in the usual way.
    engine.retire(workers[0].0, b"how");
    assert_eq!(end_of(&engine, &jobs[0]), (Verdict::Lost, 1));
}

#[test]
fn the_limit_of_the_pool_is_for_jobs_that_have_none() {
    let engine = Engine::create(1).unwrap();
    engine.limit(Duration::from_secs(5));
    assert_eq!(engine.open(Order::Collected, false).terms().limit, Some(Duration::from_secs(5)));
    let own = engine.open_with(Order::Collected, false, limited(Duration::from_secs(7)));
    assert_eq!(own.terms().limit, Some(Duration::from_secs(7)));
    let shortest = engine.admit_with(Order::Collected, false, None, limited(Duration::ZERO)).unwrap();
    assert_eq!(shortest.terms().limit, Some(Duration::from_millis(1)));
}

#[test]
fn who_sleeps_is_woken_for_a_limit_that_is_shorter_than_the_sleep() {
    for sleeps_for_ever in [true, false] {
        let engine = Engine::create(1).unwrap();
        let (slot, worker) = hired(&engine);
        let until = if sleeps_for_ever { Terms::default() } else { limited(Duration::from_secs(3000)) };
        let _under_way = engine.open_with(Order::Collected, false, until);
        thread::scope(|scope| {
            let attendant = scope.spawn(|| engine.run().unwrap());
            while !sleeps_for_ever && engine.state().next_look.is_none() {
                thread::sleep(Duration::from_millis(1));
            }
            job_with(&engine, 1, limited(Duration::from_millis(5)));
            worker.take(&mut soon()).unwrap().unwrap();
            assert!(matches!(attendant.join().unwrap(), Event::Condemned(condemned) if condemned == slot));
        });
    }
}

#[test]
fn a_task_is_given_to_as_many_workers_as_it_has_retries() {
    const RETRIES: u32 = 3;
    let engine = Engine::create(1).unwrap();
    for survived in [true, false] {
        let job = job_with(&engine, 1, retried(RETRIES));
        for _ in 0..RETRIES + u32::from(!survived) {
            assert!(!job.is_done());
            let (slot, worker) = hired(&engine);
            let task = worker.take(&mut soon()).unwrap().unwrap();
            assert_eq!(task.payload(), [b"task ", &0_u64.to_le_bytes()[..]].concat());
            assert_eq!(engine.retire(slot, b"how"), Reaction::Replace);
        }
        if survived {
            let slot = engine.hire().unwrap().unwrap();
            assert_eq!(work(&engine, slot, 1, soon()), 1);
            engine.retire(slot, b"");
            assert_eq!(end_of(&engine, &job), (Verdict::Done, RETRIES));
        } else {
            assert_eq!(end_of(&engine, &job), (Verdict::Lost, RETRIES + 1));
        }
        assert!(engine.tasks.is_empty(), "it was not given once more");
    }
}

#[test]
fn neither_failures_nor_limits_are_retried() {
    let engine = Engine::create(1).unwrap();
    let (_, worker) = hired(&engine);
    let failing = job_with(&engine, 1, retried(5));
    let task = worker.take(&mut soon()).unwrap().unwrap();
    worker.finish(task.id(), Verdict::Failed, &[]).unwrap();
    assert_eq!(end_of(&engine, &failing), (Verdict::Failed, 0));
    let late = job_with(&engine, 1, Terms { retries: 5, ..limited(Duration::from_millis(1)) });
    worker.take(&mut soon()).unwrap().unwrap();
    let Event::Condemned(slot) = engine.run().unwrap() else { panic!("it has had its time") };
    engine.retire(slot, b"how");
    assert_eq!(end_of(&engine, &late), (Verdict::Overdue, 0));
    assert!(engine.tasks.is_empty());
}

#[test]
fn a_retry_waits_for_memory() {
    let engine = Engine::create(1).unwrap();
    let job = engine.open_with(Order::Sequence, true, retried(1));
    engine.submit(&job, 0, Definition::default(), 7, &[b"task ", &0_u64.to_le_bytes()]).unwrap();
    engine.seal(&job, 1);
    let (slot, worker) = hired(&engine);
    worker.take(&mut soon()).unwrap().unwrap();
    engine.control.prepare(slot).unwrap();
    assert!(engine.state().retry(TaskId { job: job.id(), index: 0 }));
    message::lack::TIMES.set(3);
    assert!(!engine.submit_again(), "no memory");
    thread::scope(|scope| {
        scope.spawn(|| work(&engine, slot, 1, soon()));
        assert!(matches!(engine.run().unwrap(), Event::Finished(_)));
    });
    assert_eq!(message::lack::TIMES.get(), 0);
    assert_eq!(end_of(&engine, &job), (Verdict::Done, 1));
}

#[test]
fn a_task_with_descriptors_is_given_again_with_them() {
    let engine = Engine::create_with_couriers(1).unwrap();
    let job = engine.open_with(Order::Sequence, false, retried(1));
    let (mut reader, writer) = io::pipe().unwrap();
    engine.submit_with(&job, 0, Definition::default(), 7, &[b"pipe"], &[writer.as_fd()]).unwrap();
    engine.seal(&job, 1);
    drop(writer);
    let (slot, worker) = hired(&engine);
    drop(worker.take(&mut soon()).unwrap().unwrap());
    engine.retire(slot, b"how");
    let (_, worker) = hired(&engine);
    let mut task = worker.take(&mut soon()).unwrap().unwrap();
    let writer = task.take_descriptors().pop().unwrap();
    worker.finish(task.id(), Verdict::Done, &[]).unwrap();
    assert_eq!(end_of(&engine, &job), (Verdict::Done, 1));
    rustix::io::write(&writer, b"through").unwrap();
    drop(writer);
    assert_eq!(io::read_to_string(&mut reader).unwrap(), "through", "nobody else has kept it open");
}

#[test]
fn a_worker_killed_anywhere_loses_nothing_that_is_retried_and_nothing_is_done_twice() {
    const TASKS: u64 = 4;
    let engine = Engine::create(2).unwrap();
    let (first, second) = (engine.hire().unwrap().unwrap(), engine.hire().unwrap().unwrap());
    let job = std::cell::RefCell::new(job_with(&engine, TASKS, retried(1)));
    let (again, kills) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let life = || {
        work(&engine, first, 2, soon());
    };
    let check = |point: i64, killed: bool| {
        engine.retire(first, b"how");
        engine.poll();
        let left = engine.tasks.len();
        assert_eq!(left, job.borrow().remaining(), "a kill at point {point}: what has a result is not given again");
        assert_eq!(work(&engine, second, left as usize, soon()), left as usize);
        let mut deaths = 0;
        for (index, outcome) in outcomes(&engine, &job.borrow()) {
            expect_done(index, &outcome);
            deaths += outcome.deaths as usize;
        }
        assert!(deaths <= usize::from(killed), "{deaths} deaths by a kill at point {point}");
        again.fetch_add(deaths, Ordering::Relaxed);
        kills.fetch_add(usize::from(killed), Ordering::Relaxed);
        engine.control.prepare(first).unwrap();
        job.replace(job_with(&engine, TASKS, retried(1)));
    };
    KillTest::new("a worker with a task that is retried").at_every_point(life, check);
    let (again, kills) = (again.into_inner(), kills.into_inner());
    assert!(again >= 2 && again < kills, "{again} tasks given again in {kills} deaths");
}
