//! What the channels of all entrants have in common, and the two ways to measure them.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use procession::Buffer;

use crate::{
    Outcome,
    peer::{Orders, Peer},
    workload::Entrant,
};

/// What is sent: it knows what it must look like.
pub trait Payload: Sized {
    /// The message with a number.
    fn make(number: u64) -> Self;

    /// Turns it into the message with another number.
    fn renumber(&mut self, number: u64);

    fn is(&self, number: u64) -> bool;
}

impl Payload for u64 {
    fn make(number: u64) -> Self {
        number
    }

    fn renumber(&mut self, number: u64) {
        *self = number;
    }

    fn is(&self, number: u64) -> bool {
        *self == number
    }
}

/// A mebibyte.
pub const LARGE: usize = 1 << 20;

/// A large message. It has its number at both ends.
impl Payload for Vec<u8> {
    fn make(number: u64) -> Self {
        let mut bytes = vec![0x5a; LARGE];
        bytes.renumber(number);
        bytes
    }

    fn renumber(&mut self, number: u64) {
        let number = number.to_le_bytes();
        self[..8].copy_from_slice(&number);
        self[LARGE - 8..].copy_from_slice(&number);
    }

    fn is(&self, number: u64) -> bool {
        let number = number.to_le_bytes();
        self.len() == LARGE && self[..8] == number && self[LARGE - 8..] == number
    }
}

impl Payload for Buffer<u8> {
    fn make(number: u64) -> Self {
        Vec::make(number).into()
    }

    fn renumber(&mut self, number: u64) {
        let number = number.to_le_bytes();
        self[..8].copy_from_slice(&number);
        self[LARGE - 8..].copy_from_slice(&number);
    }

    fn is(&self, number: u64) -> bool {
        let number = number.to_le_bytes();
        self.len() == LARGE && self[..8] == number && self[LARGE - 8..] == number
    }
}

/// What the peer needs to find the channel.
#[derive(Default)]
pub struct Invitation {
    pub argument: String,
    pub descriptors: Vec<OwnedFd>,
}

/// One end of a channel with two directions.
pub trait Channel<M>: Sized {
    /// Our end, as long as the peer has not come.
    type Pending;

    fn open() -> Outcome<(Self::Pending, Invitation)>;

    /// Our end, when the peer is on its way.
    fn connect(pending: Self::Pending) -> Outcome<Self>;

    /// The peer's end.
    fn accept(orders: &mut Orders) -> Outcome<Self>;

    fn send(&mut self, message: &M) -> Outcome<()>;

    fn receive(&mut self) -> Outcome<M>;
}

fn start<C: Channel<M>, M>() -> Outcome<(C, Peer)> {
    let (pending, invitation) = C::open()?;
    let descriptors: Vec<_> = invitation.descriptors.iter().map(std::os::fd::AsFd::as_fd).collect();
    let mut peer = Peer::start(&invitation.argument, &descriptors)?;
    let channel = C::connect(pending)?;
    drop(invitation);
    // The peer has its end.
    peer.answer()?;
    Ok((channel, peer))
}

/// An error if it is another message.
pub fn check<M: Payload>(message: &M, number: u64) -> Outcome<()> {
    if message.is(number) { Ok(()) } else { Err(format!("message {number} is lost").into()) }
}

/// Runs `work` a tenth of `count` times, to warm up, then `count` times, which is timed.
pub fn timed(count: u64, mut work: impl FnMut(u64) -> Outcome<()>) -> Outcome<Duration> {
    work(count / 10 + 1)?;
    let began = Instant::now();
    work(count)?;
    Ok(began.elapsed())
}

/// The peer sends, we receive.
pub fn streaming<C: Channel<M>, M: Payload>(name: &'static str) -> Entrant {
    Entrant {
        name,
        measure: |count| {
            let (mut channel, mut peer) = start::<C, M>()?;
            timed(count, |count| {
                peer.order(count)?;
                for number in 0..count {
                    check(&channel.receive()?, number)?;
                }
                Ok(())
            })
        },
        peer: |mut orders| {
            let mut channel = C::accept(&mut orders)?;
            let mut message = M::make(0);
            orders.answer(0)?;
            while let Some(count) = orders.next() {
                for number in 0..count {
                    message.renumber(number);
                    channel.send(&message)?;
                }
            }
            Ok(())
        },
    }
}

/// We send, and the peer sends back, one at a time.
pub fn round_trip<C: Channel<M>, M: Payload>(name: &'static str) -> Entrant {
    Entrant {
        name,
        measure: |count| {
            let (mut channel, mut peer) = start::<C, M>()?;
            let mut message = M::make(0);
            timed(count, |count| {
                peer.order(count)?;
                for number in 0..count {
                    message.renumber(number);
                    channel.send(&message)?;
                    check(&channel.receive()?, number)?;
                }
                Ok(())
            })
        },
        peer: |mut orders| {
            let mut channel = C::accept(&mut orders)?;
            orders.answer(0)?;
            while let Some(count) = orders.next() {
                for _ in 0..count {
                    let message = channel.receive()?;
                    channel.send(&message)?;
                }
            }
            Ok(())
        },
    }
}
