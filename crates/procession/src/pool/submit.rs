//! Handing calls to the workers.

use std::{os::fd::AsFd, sync::Arc, time::Duration};

use procession_core::{
    pool::{Definition, Job, Order, Pace, Terms},
    sync::Wait,
};

use super::{Crew, error::SubmitError, task::Run};
use crate::{
    handover::{Loading, Reach},
    message::{Laden, Message, encode_with},
    room,
};

impl Crew {
    /// As an error, that this process was forked from the one that has the pool.
    pub(super) fn check_process(&self) -> Result<(), SubmitError> {
        if self.engine.belongs_here() { Ok(()) } else { Err(SubmitError::Forked) }
    }

    /// A job of one task. `opened` is called before anything can have come of it; with `notify`, the crew's thread is
    /// told when it is done.
    pub(super) fn call<T: Message>(
        &self,
        run: Run,
        args: &T,
        notify: bool,
        terms: Terms,
        opened: impl FnOnce(&Arc<Job>),
    ) -> Result<Arc<Job>, SubmitError> {
        self.check_process()?;
        let definition = self.define(run)?;
        let total = (!notify).then_some(1);
        let job = self.engine.admit_with(Order::Collected, notify, total, terms).ok_or(SubmitError::Closed)?;
        let mut opening = Opening { crew: self, job, submitted: 0, sealed: false };
        opened(&opening.job);
        opening.submit(definition, args)?;
        if notify {
            opening.seal();
        }
        Ok(opening.done())
    }

    /// A job of as many tasks as there are chunks. `opened` as above.
    pub(super) fn call_chunks<T: Message>(
        &self,
        run: Run,
        items: impl Iterator<Item = T>,
        mut size: Size,
        manner: Manner,
        terms: Terms,
        opened: impl FnOnce(&Arc<Job>),
    ) -> Result<Arc<Job>, SubmitError> {
        self.check_process()?;
        let definition = self.define(run)?;
        let notify = manner == Manner::Notify;
        let job = self.engine.admit_with(Order::Collected, notify, None, terms).ok_or(SubmitError::Closed)?;
        let mut opening = Opening { crew: self, job, submitted: 0, sealed: false };
        opened(&opening.job);
        let mut items = items.fuse();
        let mut chunk = Vec::new();
        if matches!(size, Size::Paced(_)) {
            opening.job.paces();
        }
        loop {
            let size = self.next_size(&opening.job, &mut size, &items);
            chunk.extend(items.by_ref().take(size));
            if chunk.is_empty() {
                opening.seal();
                return Ok(opening.done());
            }
            opening.submit(definition, &chunk)?;
            chunk.clear();
            while manner == Manner::Wait && self.engine.is_full_for(terms.priority) && !self.engine.is_terminated() {
                self.engine.wait_for_room();
            }
        }
    }
}

impl Crew {
    /// How large the next chunk is to be. Waits until it is time to make it, if that depends on former ones.
    fn next_size<T>(&self, job: &Arc<Job>, size: &mut Size, items: &impl Iterator<Item = T>) -> usize {
        match size {
            Size::Fixed(size) => (*size).max(1),
            Size::Paced(pace) => {
                let window = pace.window();
                // Neither a deadline nor a signal ends it.
                let _ = self.wait(job, |job| job.under_way() < window || job.is_done(), &mut Wait::forever());
                pace.next(job.pace(), items.size_hint().1.map(|left| left as u64))
            }
        }
    }
}

/// How large chunks are.
#[derive(Debug)]
pub(super) enum Size {
    Fixed(usize),
    /// As former ones tell.
    Paced(Pace),
}

/// How a map is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// The caller waits for all of it anyway, so it may wait for workers while it submits.
    Wait,
    /// The caller goes on.
    GoOn,
    /// The caller goes on, and wants to be told.
    Notify,
}

/// A job that gets its tasks. If that does not come to its end, what was submitted is of no use to anybody.
struct Opening<'a> {
    crew: &'a Crew,
    job: Arc<Job>,
    submitted: u64,
    sealed: bool,
}

impl Opening<'_> {
    fn submit<T: Message>(&mut self, definition: Definition, arguments: &T) -> Result<(), SubmitError> {
        submit(self.crew, &self.job, self.submitted, definition, arguments)?;
        self.submitted += 1;
        Ok(())
    }

    fn seal(&mut self) {
        self.sealed = true;
        self.crew.engine.seal(&self.job, self.submitted);
    }

    fn done(mut self) -> Arc<Job> {
        self.sealed = true;
        self.job.clone()
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.sealed {
            self.crew.forget(self.job.id());
            self.job.abandon();
            self.seal();
        }
    }
}

/// How long a submitter, or a worker with a result, waits at most for a block whose memory is warm.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Hands a task to the workers.
pub(super) fn submit<T: Message>(
    crew: &Crew,
    job: &Job,
    index: u64,
    definition: Definition,
    arguments: &T,
) -> Result<(), SubmitError> {
    let engine = &crew.engine;
    let load = |bytes: &[u8]| engine.fill(job, &[bytes], PATIENCE).map_or(Loading::Bytes, Loading::Block);
    room::with(|room| {
        let Laden { bytes, descriptors, blocks } = encode_with(arguments, room, Reach::Related, Some(&load))?;
        let lent: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        engine.submit_laden(job, index, definition, 0, &[bytes], &lent, blocks).map_err(SubmitError::from)
    })?;
    engine.submitted();
    Ok(())
}
