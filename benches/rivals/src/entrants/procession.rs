//! procession.

use std::time::Duration;

use procession::{Child, Connection, Message, Pool, Process, Queue, StartMethod};
use serde::{Deserialize, Serialize};

use super::WORKERS;
use crate::{
    Outcome,
    channel::{Payload, check, timed},
    many::{LAST, SIDE},
};

/// Something with two ends, either of which can be sent to another process.
pub trait Link<M>: Message {
    fn pair() -> Outcome<(Self, Self)>;
    fn send(&self, message: &M) -> Outcome<()>;
    fn receive(&self) -> Outcome<M>;
}

/// Two queues, one for each direction.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Queues<M: Message> {
    out: Queue<M>,
    into: Queue<M>,
}

impl<M: Message> Link<M> for Queues<M> {
    fn pair() -> Outcome<(Self, Self)> {
        let (there, back) = (Queue::new()?, Queue::new()?);
        Ok((Self { out: there.clone(), into: back.clone() }, Self { out: back, into: there }))
    }

    fn send(&self, message: &M) -> Outcome<()> {
        Ok(self.out.put_ref(message)?)
    }

    fn receive(&self) -> Outcome<M> {
        Ok(self.into.get()?)
    }
}

/// `procession::pipe()`.
impl<M: Message> Link<M> for Connection<M, M> {
    fn pair() -> Outcome<(Self, Self)> {
        Ok(procession::pipe()?)
    }

    fn send(&self, message: &M) -> Outcome<()> {
        Ok(Connection::send(self, message)?)
    }

    fn receive(&self) -> Outcome<M> {
        Ok(self.recv()?)
    }
}

/// The peer sends, we receive.
pub fn streaming<L: Link<M>, M: Payload + Message>(count: u64) -> Outcome<Duration> {
    fn peer<L: Link<M>, M: Payload>(orders: Queue<u64>, link: L) {
        let mut message = M::make(0);
        while let Ok(count @ 1..) = orders.get() {
            for number in 0..count {
                message.renumber(number);
                link.send(&message).unwrap();
            }
        }
    }

    let (ours, theirs) = L::pair()?;
    let orders = Queue::new()?;
    let child = Process::spawn(peer::<L, M>, (orders.clone(), theirs))?;
    let duration = timed(count, |count| {
        orders.put(count)?;
        for number in 0..count {
            check(&ours.receive()?, number)?;
        }
        Ok(())
    })?;
    orders.put(0)?;
    child.join()?;
    Ok(duration)
}

/// We send, and the peer sends back, one at a time.
pub fn round_trip<L: Link<M>, M: Payload + Message>(count: u64) -> Outcome<Duration> {
    fn peer<L: Link<M>, M: Payload>(orders: Queue<u64>, link: L) {
        while let Ok(count @ 1..) = orders.get() {
            for _ in 0..count {
                let message = link.receive().unwrap();
                link.send(&message).unwrap();
            }
        }
    }

    let (ours, theirs) = L::pair()?;
    let orders = Queue::new()?;
    let child = Process::spawn(peer::<L, M>, (orders.clone(), theirs))?;
    let mut message = M::make(0);
    let duration = timed(count, |count| {
        orders.put(count)?;
        for number in 0..count {
            message.renumber(number);
            ours.send(&message)?;
            check(&ours.receive()?, number)?;
        }
        Ok(())
    })?;
    orders.put(0)?;
    child.join()?;
    Ok(duration)
}

/// Many producers, many consumers.
pub fn many(count: u64) -> Outcome<Duration> {
    fn produce(orders: Queue<u64>, answers: Queue<u64>, out: Queue<u64>) {
        while let Ok(count @ 1..) = orders.get() {
            (0..count).for_each(|number| out.put(number).unwrap());
            answers.put(count).unwrap();
        }
    }

    fn consume(orders: Queue<u64>, answers: Queue<u64>, into: Queue<u64>) {
        while let Ok(1..) = orders.get() {
            let mut done = 0;
            while into.get().unwrap() != LAST {
                done += 1;
            }
            answers.put(done).unwrap();
        }
    }

    let queue = Queue::new()?;
    let (sent, received) = (Queue::new()?, Queue::new()?);
    let mut children = Vec::new();
    let mut orders = Vec::new();
    for _ in 0..SIDE {
        let (producer, consumer) = (Queue::new()?, Queue::new()?);
        children.push(Process::spawn(produce, (producer.clone(), sent.clone(), queue.clone()))?);
        children.push(Process::spawn(consume, (consumer.clone(), received.clone(), queue.clone()))?);
        orders.extend([producer, consumer]);
    }
    let duration = timed(count, |count| {
        for orders in &orders {
            orders.put(count / SIDE)?;
        }
        for _ in 0..SIDE {
            sent.get()?;
        }
        for _ in 0..SIDE {
            queue.put(LAST)?;
        }
        let taken = (0..SIDE).map(|_| received.get()).sum::<Result<u64, _>>()?;
        if taken == count / SIDE * SIDE { Ok(()) } else { Err(format!("{taken} messages of {count}").into()) }
    })?;
    for orders in &orders {
        orders.put(0)?;
    }
    children.into_iter().try_for_each(Child::join)?;
    Ok(duration)
}

fn start_by(method: StartMethod, count: u64) -> Outcome<Duration> {
    let builder = Process::builder().start_method(method);
    timed(count, |count| {
        for _ in 0..count {
            builder.spawn(|| (), ())?.join()?;
        }
        Ok(())
    })
}

/// Starts a process that does nothing, and waits for its end.
pub fn spawn(count: u64) -> Outcome<Duration> {
    start_by(StartMethod::Spawn, count)
}

/// As a copy of the fork server.
pub fn forkserver(count: u64) -> Outcome<Duration> {
    start_by(StartMethod::Forkserver, count)
}

fn double(number: u64) -> u64 {
    number * 2
}

fn warm_pool() -> Outcome<Pool> {
    let pool = Pool::new(WORKERS)?;
    for number in 0..100 {
        pool.apply(double, (number,))?;
    }
    Ok(pool)
}

/// One call of a pool after another.
pub fn calls(count: u64) -> Outcome<Duration> {
    let pool = warm_pool()?;
    timed(count, |count| {
        for number in 0..count {
            if pool.apply(double, (number,))? != number * 2 {
                return Err("a wrong result".into());
            }
        }
        Ok(())
    })
}

/// Many calls of a pool at once, then all results.
pub fn pipelined(count: u64) -> Outcome<Duration> {
    let pool = warm_pool()?;
    timed(count, |count| {
        let calls = (0..count).map(|number| pool.apply_async(double, (number,)));
        for (number, call) in calls.collect::<Result<Vec<_>, _>>()?.into_iter().enumerate() {
            if call.get()? != number as u64 * 2 {
                return Err("a wrong result".into());
            }
        }
        Ok(())
    })
}
