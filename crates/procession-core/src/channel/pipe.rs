//! Pairs of connections.

use std::{io, os::fd::OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::Connection;

/// Two connected ends, each of which sends and receives.
///
/// A message of up to 64 KiB is one packet: one system call sends it, one receives it, and it arrives whole or not at all.
///
/// # Errors
///
/// Those of socketpair(2), most of all that there are too many open descriptors.
pub fn pipe() -> io::Result<(Connection, Connection)> {
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((one.into(), other.into()))
}

/// An end that receives, and one that sends. The system keeps up to 64 KiB of messages between them.
///
/// # Errors
///
/// Those of pipe(2), most of all that there are too many open descriptors.
pub fn one_way_pipe() -> io::Result<(Connection, Connection)> {
    let (reader, writer) = io::pipe()?;
    Ok((OwnedFd::from(reader).into(), OwnedFd::from(writer).into()))
}
