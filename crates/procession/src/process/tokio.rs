//! Awaiting children.

use std::{
    future::{self, Future, IntoFuture},
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::{Pin, pin},
    task::Poll,
};

use procession_core::process::Exit;

use super::{ActiveChild, Child, JoinError};
use crate::{Message, asynchronous, launched::Launched};

/// Waits until it has ended, and until it is known how.
async fn ended(launched: &Launched) -> io::Result<()> {
    readable(launched.sentinel.as_fd()).await?;
    while !launched.knows_its_end()? {
        // If the fork server ends without having told, nothing may ever come: a process that the child has left behind
        // may hold its socket open.
        let mut told = pin!(readable(launched.socket.as_fd()));
        let mut gone = pin!(async {
            match launched.server_control() {
                Some(control) => readable(control).await,
                None => future::pending().await,
            }
        });
        future::poll_fn(|context| match told.as_mut().poll(context) {
            Poll::Pending => gone.as_mut().poll(context),
            ready @ Poll::Ready(_) => ready,
        })
        .await?;
    }
    Ok(())
}

/// Waits until a descriptor is readable.
async fn readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    // The runtime takes each descriptor once, and several may wait for one child.
    asynchronous::readable(fd.try_clone_to_owned()?)?.readable().await.map(drop)
}

impl<R: Message> Child<R> {
    /// [`join`](Self::join) for asynchronous programs: waits without blocking the thread. `child.await` is the same.
    ///
    /// ```
    /// use procession::Process;
    ///
    /// #[tokio::main(flavor = "current_thread")]
    /// #[procession::main]
    /// async fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let first = Process::spawn(|a: u32, b: u32| a + b, (1, 2))?;
    ///     let second = Process::spawn(|a: u32, b: u32| a * b, (3, 4))?;
    ///     assert_eq!(first.join_async().await? + second.await?, 15);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join).
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime whose I/O is enabled.
    pub async fn join_async(mut self) -> Result<R, JoinError> {
        if !self.shared.is_own() {
            return Err(JoinError::Unknown);
        }
        ended(&self.shared.launched).await?;
        self.shared.forget();
        self.result()
    }
}

impl<R> Child<R> {
    /// [`wait`](Self::wait) for asynchronous programs: waits without blocking the thread.
    ///
    /// # Errors
    ///
    /// The runtime can't wait for it: no descriptor is left.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime whose I/O is enabled.
    pub async fn wait_async(&self) -> io::Result<Exit> {
        ended(&self.shared.launched).await?;
        Ok(self.wait())
    }
}

impl ActiveChild {
    /// [`wait`](Self::wait) for asynchronous programs: waits without blocking the thread.
    ///
    /// # Errors
    ///
    /// The runtime can't wait for it: no descriptor is left.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime whose I/O is enabled.
    pub async fn wait_async(&self) -> io::Result<Exit> {
        ended(&self.0.launched).await?;
        Ok(self.wait())
    }
}

/// Waits for it as [`join_async`](Child::join_async) does.
impl<R: Message> IntoFuture for Child<R> {
    type Output = Result<R, JoinError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.join_async())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Process, StartMethod};

    #[tokio::test]
    async fn children_are_awaited() {
        for method in [StartMethod::Spawn, StartMethod::Forkserver] {
            let builder = Process::builder().start_method(method);
            let added = builder.spawn(|a: u32, b: u32| a + b, (1, 2)).unwrap();
            let failed = builder.spawn(|| std::process::exit(3), ()).unwrap();
            let killed = builder.spawn(std::thread::park, ()).unwrap();
            let (one, other) = tokio::join!(failed.wait_async(), failed.wait_async());
            assert_eq!((one.unwrap(), other.unwrap()), (Exit::Code(3), Exit::Code(3)));
            assert!(matches!(Child::<()>::into_future(failed).await, Err(JoinError::Exited(3))));
            assert_eq!(added.await.unwrap(), 3);
            let waiting = tokio::time::timeout(Duration::from_millis(20), killed.wait_async());
            assert!(waiting.await.is_err());
            killed.kill().unwrap();
            assert!(matches!(killed.join_async().await, Err(JoinError::Killed(libc::SIGKILL))));
        }
    }
}
