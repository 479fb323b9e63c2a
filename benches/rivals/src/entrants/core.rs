//! The core of procession: bytes through queues.

use std::{io, mem::MaybeUninit};

use procession_core::{
    channel::{Message, Queue},
    sync::Wait,
};

use crate::{
    Outcome,
    channel::{Channel, Invitation},
    many::Shared,
    peer::Orders,
};

impl Shared for Queue {
    fn open() -> Outcome<(Self, Vec<std::os::fd::OwnedFd>)> {
        let queue = Queue::create(None)?;
        let (ring, pollable) = queue.descriptors();
        let descriptors = vec![ring.try_clone_to_owned()?, pollable.try_clone_to_owned()?];
        Ok((queue, descriptors))
    }

    fn accept(orders: &mut Orders) -> Outcome<Self> {
        let [ring, pollable] = orders.descriptors()?;
        Ok(Queue::attach(None, ring, pollable)?)
    }

    fn put(&mut self, number: u64) -> Outcome<()> {
        Ok(Queue::put(self, &[&number.to_le_bytes()], &mut Wait::forever())?)
    }

    fn take(&mut self) -> Outcome<u64> {
        Ok(self.take_with(&mut Wait::forever(), number)?)
    }
}

fn number(message: &Message<'_>) -> io::Result<u64> {
    let mut bytes = [MaybeUninit::new(0); 8];
    message.copy_from(0, &mut bytes)?;
    #[allow(unsafe_code)]
    // SAFETY: all of it was initialized.
    Ok(u64::from_le_bytes(bytes.map(|byte| unsafe { byte.assume_init() })))
}

pub struct Queues {
    out: Queue,
    into: Queue,
}

impl Queues {
    fn open() -> Outcome<(Self, Invitation)> {
        let queues = Self { out: Queue::create(None)?, into: Queue::create(None)? };
        let mut invitation = Invitation::default();
        for queue in [&queues.into, &queues.out] {
            let (ring, pollable) = queue.descriptors();
            for fd in [ring, pollable] {
                invitation.descriptors.push(fd.try_clone_to_owned()?);
            }
        }
        Ok((queues, invitation))
    }

    fn accept(orders: &mut Orders) -> Outcome<Self> {
        let [out, out_pollable, into, into_pollable] = orders.descriptors()?;
        Ok(Self { out: Queue::attach(None, out, out_pollable)?, into: Queue::attach(None, into, into_pollable)? })
    }

    fn put(&self, bytes: &[u8]) -> Outcome<()> {
        Ok(self.out.put(&[bytes], &mut Wait::forever())?)
    }
}

impl Channel<u64> for Queues {
    type Pending = Self;

    fn open() -> Outcome<(Self, Invitation)> {
        Self::open()
    }

    fn connect(pending: Self) -> Outcome<Self> {
        Ok(pending)
    }

    fn accept(orders: &mut Orders) -> Outcome<Self> {
        Self::accept(orders)
    }

    fn send(&mut self, message: &u64) -> Outcome<()> {
        self.put(&message.to_le_bytes())
    }

    fn receive(&mut self) -> Outcome<u64> {
        Ok(self.into.take_with(&mut Wait::forever(), number)?)
    }
}

impl Channel<Vec<u8>> for Queues {
    type Pending = Self;

    fn open() -> Outcome<(Self, Invitation)> {
        Self::open()
    }

    fn connect(pending: Self) -> Outcome<Self> {
        Ok(pending)
    }

    fn accept(orders: &mut Orders) -> Outcome<Self> {
        Self::accept(orders)
    }

    fn send(&mut self, message: &Vec<u8>) -> Outcome<()> {
        self.put(message)
    }

    fn receive(&mut self) -> Outcome<Vec<u8>> {
        Ok(self.into.take_with(&mut Wait::forever(), |message: &Message<'_>| message.to_vec())?)
    }
}
