//! One thread that does requests for many lines.
//!
//! Where requests are done one at a time anyway, as under the lock of an interpreter, a thread for each line is a convoy:
//! each request wakes another one, which waits for the lock that the one before it just gave back. So the lines that are
//! busy are left to one thread, the attendant. Their own threads stay on their doorbells: whatever the attendant does not do,
//! or does not do in time, is done there, so nothing ever depends on it. See `LINE.md`, "Attendant".

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{Serving, State, patience::Patience};
use crate::{
    channel::{Connection, ConnectionError},
    sync::{Wait, WaitError},
    sys::futex,
};

/// Requests that come no more than this apart are many.
const CLOSE: Duration = Duration::from_millis(1);
/// After so many the line is busy.
const MANY: u32 = 8;
/// A line with nothing to do is looked at so many times.
const LOOKS: u32 = 20_000;

/// What can be attended: a line with its connection, and whatever belongs to it.
pub trait Attended: Send + Sync {
    /// The line.
    fn serving(&self) -> &Serving;
    /// The connection that is its doorbell.
    ///
    /// # Errors
    ///
    /// It is closed.
    fn connection(&self) -> Result<&Connection, ConnectionError>;

    /// Leaves the line to its own thread.
    fn leave(&self) {
        if let Ok(connection) = self.connection() {
            self.serving().leave(connection);
        }
    }
}

/// The lines that are left to an attendant.
#[derive(Debug)]
pub struct Attendance<L> {
    began: Instant,
    /// The last time that a thread did a request of its own line, in ns since `began`, without the lowest byte; in that, a part
    /// of the line's address.
    last: AtomicU64,
    coming: Mutex<Coming<L>>,
    /// Counts the lines that came, to sleep on.
    count: AtomicU32,
}

#[derive(Debug)]
struct Coming<L> {
    lines: Vec<Arc<L>>,
    /// Whether there is an attendant.
    present: bool,
    /// Whether it has lines.
    busy: bool,
}

/// How busy a line is, as its own thread sees it.
#[derive(Debug, Default)]
pub struct Pace {
    last: Option<Instant>,
    close: u32,
}

/// A request that an attendant may do.
#[derive(Debug)]
pub struct Pending<'a> {
    serving: &'a Serving,
    connection: &'a Connection,
    state: State,
    _at_work: MutexGuard<'a, ()>,
}

impl<L> Default for Attendance<L> {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
            coming: Mutex::new(Coming { lines: Vec::new(), present: false, busy: false }),
            count: AtomicU32::new(0),
        }
    }
}

impl<L: Attended> Attendance<L> {
    fn coming(&self) -> MutexGuard<'_, Coming<L>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a line's own thread, after it has replied: leaves the line to the attendant if there is one and many lines are busy. The
    /// thread goes on with [`Serving::receive`], in either case.
    pub fn leave(&self, line: &Arc<L>, pace: &mut Pace) {
        let now = Instant::now();
        let close = pace.last.replace(now).is_some_and(|last| now - last < CLOSE);
        pace.close = if close { pace.close.saturating_add(1) } else { 0 };
        let ours = (Arc::as_ptr(line) as usize >> 6) as u64 & 0xff;
        let time = now.duration_since(self.began).as_nanos() as u64 & !0xff;
        let last = self.last.swap(time | ours, Relaxed);
        let others = last & 0xff != ours && time.saturating_sub(last & !0xff) < CLOSE.as_nanos() as u64;
        if pace.close < MANY {
            return;
        }
        let mut coming = self.coming();
        if coming.present && (others || coming.busy) {
            line.serving().watch();
            coming.lines.push(Arc::clone(line));
            self.count.fetch_add(1, Relaxed);
            let asleep = !coming.busy;
            coming.busy = true;
            drop(coming);
            if asleep {
                futex::wake(&self.count, 1);
            }
        }
    }

    /// Makes the caller the attendant. False if there is one.
    pub fn enter(&self) -> bool {
        !std::mem::replace(&mut self.coming().present, true)
    }

    /// For the attendant: waits until one of its `lines` has a request. They are what this has made of them before, at first
    /// none.
    ///
    /// # Errors
    ///
    /// [`WaitError`]
    pub fn wait(&self, lines: &mut Lines<L>, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        loop {
            self.take_in(lines);
            if lines.known.is_empty() {
                self.sleep(wait)?;
            } else if lines.patience.look(|| lines.known.iter().any(|known| known.line.serving().is_asked())) {
                lines.known.retain_mut(|known| {
                    known.looks += 1;
                    if known.line.serving().is_asked() {
                        known.looks = 0;
                    } else if known.looks > LOOKS {
                        known.line.leave();
                    }
                    known.line.serving().is_watched()
                });
                return Ok(());
            } else {
                lines.known.drain(..).for_each(|known| known.line.leave());
            }
        }
    }

    fn take_in(&self, lines: &mut Lines<L>) {
        let count = self.count.load(Relaxed);
        if lines.count == count && !lines.known.is_empty() {
            return;
        }
        let mut coming = self.coming();
        lines.count = self.count.load(Relaxed);
        for line in coming.lines.drain(..) {
            // Its thread may have taken it back, and come again.
            if !lines.known.iter().any(|known| Arc::ptr_eq(&known.line, &line)) {
                lines.known.push(Known { line, looks: 0 });
            }
        }
        coming.busy = !lines.known.is_empty();
    }

    fn sleep(&self, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        let count = self.count.load(Relaxed);
        if self.coming().lines.is_empty() {
            wait.remaining(Duration::MAX)?;
            match futex::wait(&self.count, count, None) {
                futex::Slept::Interrupted => wait.signalled()?,
                futex::Slept::Woken | futex::Slept::TimedOut => {}
            }
        }
        Ok(())
    }
}

/// The lines of an attendant.
#[derive(Debug)]
pub struct Lines<L> {
    known: Vec<Known<L>>,
    count: u32,
    patience: Patience,
}

#[derive(Debug)]
struct Known<L> {
    line: Arc<L>,
    /// How often it was looked at since it had a request.
    looks: u32,
}

impl<L> Default for Lines<L> {
    fn default() -> Self {
        Self { known: Vec::new(), count: 0, patience: Patience::new() }
    }
}

impl<L> Lines<L> {
    /// The lines.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<L>> {
        self.known.iter().map(|known| &known.line)
    }
}

impl<'a> Pending<'a> {
    /// The request of a line, if it has one and an attendant is to look at it.
    pub fn of(line: &'a impl Attended) -> Option<Self> {
        let serving = line.serving();
        if !serving.is_asked() {
            return None;
        }
        let connection = line.connection().ok()?;
        let (at_work, state) = serving.attend()?;
        Some(Self { serving, connection, state, _at_work: at_work })
    }

    /// Takes the request, and puts it in `request`, which is emptied first. False if there is none to take: it comes in
    /// pieces, and is left to the line's own thread.
    pub fn take(&self, request: &mut Vec<u8>) -> bool {
        let taken = self.serving.read(self.state, request).unwrap_or(false);
        if !taken {
            // Its own thread sees for itself what is wrong.
            let _ = self.serving.dismiss(self.connection);
        }
        taken
    }

    /// Replies, with parts one after another.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Ended`] if the client has ended.
    pub fn answer(self, parts: &[&[u8]]) -> Result<(), ConnectionError> {
        self.serving.answer(self.connection, self.state, parts)
    }

    /// Leaves the request, which was taken, to the line's own thread: it finds it as it would have without an attendant.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Ended`] if the client has ended.
    pub fn refuse(self) -> Result<(), ConnectionError> {
        self.serving.give_back(self.connection, self.state)
    }
}
