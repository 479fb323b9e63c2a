//! Awaiting messages.
#![allow(unsafe_code)]

use std::{
    io,
    ops::ControlFlow,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::unix::AsyncFd,
    runtime::{Handle, Id},
};

use super::{Connection, End, RecvError, SendError, Until};
use crate::Message;

/// The descriptor as it is registered with the runtime that has waited for it last.
#[derive(Debug, Default)]
pub(super) struct Registered(Mutex<Option<(Id, Arc<AsyncFd<OwnedFd>>)>>);

impl Registered {
    fn get(&self, end: &End) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
        let runtime = Handle::current().id();
        let mut registered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, fd)) = &*registered
            && *known == runtime
        {
            return Ok(fd.clone());
        }
        // A number of its own, as a runtime takes each number only once.
        let number = end.as_fd().try_clone_to_owned()?;
        // SAFETY: it is open, and stays so until the `AsyncFd`, which owns it, drops it.
        let fd = Arc::new(unsafe { AsyncFd::register(number) }?);
        *registered = Some((runtime, fd.clone()));
        Ok(fd)
    }
}

impl<S: Message + Sync, R> Connection<S, R> {
    /// [`send`](Self::send) for asynchronous programs.
    ///
    /// A future that is dropped before the end may have sent a part of a value of more than 64 KiB, or over a socket of a
    /// listener of any. Then the connection sends no more ([`SendError::OutOfStep`]): let a task of its own send what
    /// must not be cut off.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (ours, theirs) = procession::pipe::<Vec<u8>, ()>()?;
    /// // More than there is room for, so both have to be under way.
    /// let sending = tokio::spawn(async move { ours.send_async(&vec![1; 10_000_000]).await });
    /// assert_eq!(theirs.recv_async().await?.len(), 10_000_000);
    /// sending.await??;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SendError`].
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime whose I/O is enabled, if it has to wait.
    pub async fn send_async(&self, value: &S) -> Result<(), SendError> {
        let mut room = Vec::new();
        let encoded = self.end.encode(value, &mut room)?;
        let descriptors: Vec<_> = encoded.descriptors.iter().map(AsFd::as_fd).collect();
        let parts = [encoded.bytes];
        let _turn = self.end.sending.take_async().await;
        let mut outgoing = self.end.core().sending_with(&parts, &descriptors)?;
        while !outgoing.try_finish()? {
            let registered = self.end.registered.get(&self.end).map_err(SendError::Io)?;
            let mut ready = registered.writable().await.map_err(SendError::Io)?;
            if outgoing.try_finish()? {
                break;
            }
            ready.clear_ready();
        }
        Ok(())
    }
}

impl<S, R: Message> Connection<S, R> {
    /// [`recv`](Self::recv) for asynchronous programs.
    ///
    /// A future that is dropped loses nothing: if a long value has come in part, the next call goes on with it.
    ///
    /// ```
    /// use procession::{Connection, Process, pipe};
    ///
    /// fn double(connection: Connection<u32, u32>) {
    ///     while let Ok(number) = connection.recv() {
    ///         connection.send(&(2 * number)).unwrap();
    ///     }
    /// }
    ///
    /// #[tokio::main]
    /// #[procession::main]
    /// async fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let (ours, theirs) = pipe()?;
    ///     let child = Process::spawn(double, (theirs,))?;
    ///     ours.send_async(&21).await?;
    ///     assert_eq!(ours.recv_async().await?, 42);
    ///     drop(ours);
    ///     child.join()?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RecvError`].
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime whose I/O is enabled, if it has to wait.
    pub async fn recv_async(&self) -> Result<R, RecvError> {
        let mut turn = self.end.receiving.take_async().await;
        loop {
            turn = match self.end.receive_in(turn, Until::Now)? {
                ControlFlow::Break(value) => return Ok(value),
                ControlFlow::Continue(turn) => turn,
            };
            let registered = self.end.registered.get(&self.end).map_err(RecvError::Io)?;
            let mut ready = registered.readable().await.map_err(RecvError::Io)?;
            turn = match self.end.receive_in(turn, Until::Now)? {
                ControlFlow::Break(value) => return Ok(value),
                ControlFlow::Continue(turn) => turn,
            };
            ready.clear_ready();
        }
    }
}
