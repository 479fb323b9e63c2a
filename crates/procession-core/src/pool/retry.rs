//! Tasks that are given to another worker when theirs dies: what is kept of them, and giving them again.
//!
//! See PROTOCOL.md, "A task is tried again".

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use super::{
    engine::{Engine, State},
    job::Job,
    message::{TaskHeader, TaskId},
};

/// A task as it was put into the ring.
#[derive(Debug)]
pub(super) struct Message {
    header: TaskHeader,
    payload: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Message {
    /// A copy of what is about to be submitted.
    ///
    /// # Errors
    ///
    /// If there is no room for copies of the descriptors.
    pub(super) fn copy_of(header: TaskHeader, payload: &[&[u8]], descriptors: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let descriptors = descriptors.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<_>>()?;
        Ok(Self { header, payload: payload.concat(), descriptors })
    }
}

/// The tasks of a job that may be given again, by their indices.
#[derive(Debug, Default)]
pub(super) struct Kept(BTreeMap<u64, Retried>);

#[derive(Debug)]
struct Retried {
    message: Arc<Message>,
    /// How many workers have died of it.
    deaths: u32,
}

impl Kept {
    /// Keeps a task until its outcome is known.
    pub(super) fn insert(&mut self, index: u64, message: Message) {
        self.0.insert(index, Retried { message: Arc::new(message), deaths: 0 });
    }

    /// The task has an outcome. Returns how many workers have died of it.
    pub(super) fn remove(&mut self, index: u64) -> u32 {
        self.0.remove(&index).map_or(0, |task| task.deaths)
    }

    /// One more worker has died of it. Tells whether it is to be given to another, which is done so often.
    pub(super) fn lose(&mut self, index: u64, retries: u32) -> bool {
        let Some(task) = self.0.get_mut(&index).filter(|task| task.deaths < retries) else {
            return false;
        };
        task.deaths += 1;
        true
    }

    /// What to give to the other worker.
    pub(super) fn message(&self, index: u64) -> Option<Arc<Message>> {
        self.0.get(&index).map(|task| task.message.clone())
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Engine {
    /// Gives those tasks to the workers again that were lost and are to be retried. What can't be put at the moment, for
    /// want of memory, say, is left for later on, of which `false` tells.
    pub(super) fn submit_again(&self) -> bool {
        loop {
            let Some((job, index)) = self.state().again.pop_front() else {
                return true;
            };
            // It is not there if the job has come to its end meanwhile.
            let Some(message) = job.kept(index) else {
                continue;
            };
            match self.put_again(&job, &message) {
                Ok(()) => self.submitted(),
                Err(_) if self.is_terminated() => return true,
                Err(_) => {
                    self.state().again.push_front((job, index));
                    return false;
                }
            }
        }
    }

    fn put_again(&self, job: &Job, message: &Message) -> io::Result<()> {
        let descriptors: Vec<_> = message.descriptors.iter().map(AsFd::as_fd).collect();
        self.put_task(job, message.header, &[&message.payload], &descriptors, Vec::new(), || {
            // This may be the thread that workers need to go on.
            Err(io::ErrorKind::WouldBlock.into())
        })
    }
}

impl State {
    /// A task was lost with its worker. Tells whether it is to be given to another one instead of being delivered so.
    pub(super) fn retry(&mut self, id: TaskId) -> bool {
        let Some(job) = self.dispatch.lose(id) else {
            return false;
        };
        self.again.push_back((job, id.index));
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_lost_when_its_retries_are_used_up() {
        let message = || Message::copy_of(TaskHeader::STOP, &[b"pay", b"load"], &[]).unwrap();
        let mut kept = Kept::default();
        kept.insert(4, message());
        kept.insert(5, message());
        assert!(kept.lose(4, 2));
        assert_eq!(kept.message(4).unwrap().payload, b"payload");
        assert!(kept.lose(4, 2));
        assert!(!kept.lose(4, 2));
        assert!(!kept.lose(6, 2), "it was not kept");
        assert_eq!(kept.remove(4), 2);
        assert!(kept.message(4).is_none());
        assert_eq!(kept.remove(5), 0);
    }
}
