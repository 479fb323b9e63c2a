//! Connections whose messages are awaited.
#![allow(unsafe_code)]

use std::{
    fmt, io,
    marker::PhantomData,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use tokio::{io::unix::AsyncFd, sync::Mutex};

use super::{Connection, End, RecvError, SendError, Until};
use crate::Message;

impl<S, R> Connection<S, R> {
    /// The connection for a program on tokio: its messages are awaited.
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
    ///     let ours = ours.into_async()?;
    ///     ours.send(&21).await?;
    ///     assert_eq!(ours.recv().await?, 42);
    ///     drop(ours);
    ///     child.join()?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::ResourceBusy`] if there are clones of the connection; otherwise that it can't be registered, as a
    /// file that is always ready.
    ///
    /// # Panics
    ///
    /// Outside of a runtime of tokio, or in one without I/O.
    pub fn into_async(self) -> io::Result<AsyncConnection<S, R>> {
        let end = Arc::try_unwrap(self.end).map_err(|_| {
            io::Error::new(io::ErrorKind::ResourceBusy, "clones of the connection could take what it waits for")
        })?;
        // A number of its own, as a number can be registered only once.
        let number = end.as_fd().try_clone_to_owned()?;
        // SAFETY: it is open, and stays so until the `AsyncFd`, which owns it, drops it.
        let ready = unsafe { AsyncFd::register(number) }?;
        Ok(AsyncConnection { end, ready, sending: Mutex::new(()), receiving: Mutex::new(()), types: PhantomData })
    }
}

/// A [`Connection`] whose messages are awaited: see [`Connection::into_async`].
///
/// It belongs to the runtime in which it was made. Several tasks may use it (in an `Arc`): those that send take turns, and so do
/// those that receive.
///
/// ```
/// use std::{sync::Arc, time::Duration};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let (ours, theirs) = procession::pipe::<u32, u32>()?;
///     let (ours, theirs) = (ours.into_async()?, Arc::new(theirs.into_async()?));
///     let echo = tokio::spawn({
///         let theirs = theirs.clone();
///         async move { theirs.send(&theirs.recv().await.unwrap()).await.unwrap() }
///     });
///     // Nothing is there as yet; giving up loses nothing.
///     assert!(tokio::time::timeout(Duration::from_millis(5), ours.recv()).await.is_err());
///     ours.send(&7).await?;
///     assert_eq!(ours.recv().await?, 7);
///     echo.await?;
///     Ok(())
/// }
/// ```
pub struct AsyncConnection<S, R> {
    end: End,
    ready: AsyncFd<OwnedFd>,
    sending: Mutex<()>,
    receiving: Mutex<()>,
    types: PhantomData<fn(S) -> R>,
}

impl<S: Message + Sync, R> AsyncConnection<S, R> {
    /// Sends a value, when there is room for it.
    ///
    /// A future that is dropped before the end may have sent a part of a value of more than 64 KiB. Then the connection
    /// sends no more ([`SendError::OutOfStep`]); let another task send what must not be cut off.
    ///
    /// # Errors
    ///
    /// [`SendError`].
    pub async fn send(&self, value: &S) -> Result<(), SendError> {
        let mut room = Vec::new();
        let encoded = self.end.encode(value, &mut room)?;
        let descriptors: Vec<_> = encoded.descriptors.iter().map(AsFd::as_fd).collect();
        let parts = [encoded.bytes];
        let _turn = self.sending.lock().await;
        let mut outgoing = self.end.core().sending_with(&parts, &descriptors)?;
        while !outgoing.try_finish()? {
            let mut ready = self.ready.writable().await.map_err(SendError::Io)?;
            if outgoing.try_finish()? {
                break;
            }
            ready.clear_ready();
        }
        Ok(())
    }
}

impl<S, R: Message> AsyncConnection<S, R> {
    /// Receives a value, when there is one.
    ///
    /// A future that is dropped loses nothing: if a long value has come in part, the next call goes on with it.
    ///
    /// # Errors
    ///
    /// [`RecvError`].
    pub async fn recv(&self) -> Result<R, RecvError> {
        let _turn = self.receiving.lock().await;
        loop {
            if let Some(value) = self.end.receive(Until::Now)? {
                return Ok(value);
            }
            let mut ready = self.ready.readable().await.map_err(RecvError::Io)?;
            if let Some(value) = self.end.receive(Until::Now)? {
                return Ok(value);
            }
            ready.clear_ready();
        }
    }
}

impl<S, R> AsyncConnection<S, R> {
    /// The connection for the rest of the program.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> std::io::Result<()> {
    /// let (ours, _theirs) = procession::pipe::<u32, u32>()?;
    /// let ours = ours.into_async()?.into_sync();
    /// assert!(ours.try_recv().is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_sync(self) -> Connection<S, R> {
        Connection::with(Arc::new(self.end))
    }
}

impl<S, R> fmt::Debug for AsyncConnection<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncConnection").field("fd", &self.end.as_fd()).finish_non_exhaustive()
    }
}
