//! Pairs of connections.

use std::io;

use procession_core::channel;

use crate::{Connection, Receiver, Sender};

/// Two connected ends: what one sends, the other receives, both ways.
///
/// A value of up to 64 KiB goes over with one system call on each side. Descriptors go with it.
///
/// ```
/// use procession::{Process, pipe};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let (ours, theirs) = pipe::<(u32, u32), u32>()?;
///     let child = Process::spawn(
///         |connection: procession::Connection<u32, (u32, u32)>| {
///             let (a, b) = connection.recv().unwrap();
///             connection.send(&(a * b)).unwrap();
///         },
///         (theirs,),
///     )?;
///     ours.send(&(6, 7))?;
///     assert_eq!(ours.recv()?, 42);
///     child.join()?;
///     Ok(())
/// }
/// ```
///
/// # Errors
///
/// Too many files are open.
pub fn pipe<A, B>() -> io::Result<(Connection<A, B>, Connection<B, A>)> {
    let (one, other) = channel::pipe()?;
    Ok((Connection::new(one), Connection::new(other)))
}

/// An end that receives, and one that sends.
///
/// ```
/// use procession::{Process, Sender, one_way_pipe};
///
/// fn count(numbers: Sender<u32>) {
///     (0..5).for_each(|number| numbers.send(&number).unwrap());
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let (receiver, sender) = one_way_pipe()?;
///     let child = Process::spawn(count, (sender,))?;
///     // The child has the only end that sends, so its end is that of the numbers.
///     let numbers: Vec<u32> = receiver.iter().collect::<Result<_, _>>()?;
///     assert_eq!(numbers, [0, 1, 2, 3, 4]);
///     child.join()?;
///     Ok(())
/// }
/// ```
///
/// # Errors
///
/// Too many files are open.
pub fn one_way_pipe<T>() -> io::Result<(Receiver<T>, Sender<T>)> {
    // Not a pipe of the system: sockets keep the boundaries of messages, and descriptors go along.
    let (receiver, sender) = channel::pipe()?;
    Ok((Connection::new(receiver), Connection::new(sender)))
}
