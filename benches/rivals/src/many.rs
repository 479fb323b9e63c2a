//! Many producers and many consumers on one queue.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use crate::{
    Outcome,
    channel::timed,
    peer::{Orders, Peer},
    workload::Entrant,
};

/// How many processes there are on either side.
pub const SIDE: u64 = 4;
/// What tells a consumer that the round is over.
pub const LAST: u64 = u64::MAX;

/// A queue that any number of processes can use.
pub trait Shared: Sized {
    fn open() -> Outcome<(Self, Vec<OwnedFd>)>;
    fn accept(orders: &mut Orders) -> Outcome<Self>;
    fn put(&mut self, number: u64) -> Outcome<()>;
    fn take(&mut self) -> Outcome<u64>;
}

pub fn many<Q: Shared>(name: &'static str) -> Entrant {
    Entrant { name, measure: measure::<Q>, peer: peer::<Q> }
}

fn measure<Q: Shared>(count: u64) -> Outcome<Duration> {
    let (mut queue, descriptors) = Q::open()?;
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let start = |role: &str| (0..SIDE).map(|_| Peer::start(role, &descriptors)).collect::<Outcome<Vec<_>>>();
    let (mut producers, mut consumers) = (start("producer")?, start("consumer")?);
    for peer in producers.iter_mut().chain(&mut consumers) {
        peer.answer()?;
    }
    timed(count, |count| {
        for peer in consumers.iter_mut().chain(&mut producers) {
            peer.order(count / SIDE)?;
        }
        for producer in &mut producers {
            producer.answer()?;
        }
        for _ in 0..SIDE {
            queue.put(LAST)?;
        }
        let mut taken = 0;
        for consumer in &mut consumers {
            taken += consumer.answer()?;
        }
        if taken == count / SIDE * SIDE { Ok(()) } else { Err(format!("{taken} messages of {count}").into()) }
    })
}

fn peer<Q: Shared>(mut orders: Orders) -> Outcome<()> {
    let mut queue = Q::accept(&mut orders)?;
    let produces = orders.argument == "producer";
    orders.answer(0)?;
    while let Some(count) = orders.next() {
        let mut done = 0;
        if produces {
            while done < count {
                queue.put(done)?;
                done += 1;
            }
        } else {
            while queue.take()? != LAST {
                done += 1;
            }
        }
        orders.answer(done)?;
    }
    Ok(())
}
