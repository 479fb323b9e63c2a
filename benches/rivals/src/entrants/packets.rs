//! One pair of packet sockets that all processes share: who receives gets a whole message, which no other gets.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use crate::{Outcome, many::Shared, peer::Orders};

pub struct Packets {
    out: OwnedFd,
    into: OwnedFd,
}

impl Shared for Packets {
    fn open() -> Outcome<(Self, Vec<OwnedFd>)> {
        let (out, into) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let descriptors = vec![out.try_clone()?, into.try_clone()?];
        Ok((Self { out, into }, descriptors))
    }

    fn accept(orders: &mut Orders) -> Outcome<Self> {
        let [out, into] = orders.descriptors()?;
        Ok(Self { out, into })
    }

    fn put(&mut self, number: u64) -> Outcome<()> {
        let mut room = [0; 10];
        send(&self.out, postcard::to_slice(&number, &mut room)?, SendFlags::empty())?;
        Ok(())
    }

    fn take(&mut self) -> Outcome<u64> {
        let mut room = [0; 10];
        let (length, _) = recv(&self.into, &mut room, RecvFlags::empty())?;
        Ok(postcard::from_bytes(&room[..length])?)
    }
}
