//! Calls of a function for each of many items.

use std::sync::Arc;

use procession_core::pool::{Job, Order, Outcome};

use super::{
    Call, Crew, Pool,
    error::{SubmitError, TaskError},
    result::AsyncResult,
    stream::IMap,
    submit::Manner,
    task::{self, Run, result_of},
};
use crate::{Function, Message};

/// How many chunks of a map there are for each worker, unless it is said how large they are to be.
const CHUNKS: usize = 4;
/// How many tasks of a stream may be under way for each worker, and at least, unless it is said.
const WINDOW: usize = 16;
const LEAST_WINDOW: usize = 64;

/// How the items of a map are handed to the workers: from [`Pool::options`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// procession::init();
/// let pool = procession::Pool::new(2)?;
///
/// // Ten at a time, and never more than four such chunks under way.
/// let squares = pool.options().chunk_size(10).window(4).imap(|n: u64| n * n, 0..)?;
/// let sum: u64 = squares.take(1000).sum::<Result<u64, _>>()?;
/// assert_eq!(sum, 332_833_500);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "these are only options"]
pub struct MapOptions<'a> {
    pool: &'a Pool,
    chunk_size: Option<usize>,
    window: Option<usize>,
}

impl Pool {
    /// Options for maps: how many items make a task, and how many tasks may be under way.
    pub fn options(&self) -> MapOptions<'_> {
        MapOptions { pool: self, chunk_size: None, window: None }
    }

    /// Calls a function for each item, in the workers, and waits for the results, which are in the order of the items.
    ///
    /// The items are handed over in chunks, four for each worker; [`options`](Self::options) changes that. An iterator that
    /// does not know how many items it has is collected first.
    ///
    /// # Errors
    ///
    /// The first failure to arrive, once all chunks are done: see [`TaskError`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(2)?;
    /// let lengths = pool.map(|word: String| word.len(), ["to", "be", "or", "not"].map(String::from))?;
    /// assert_eq!(lengths, [2, 2, 2, 3]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn map<F, I>(&self, function: F, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        self.options().map(function, items)
    }

    /// As [`map`](Self::map), without waiting for the results.
    ///
    /// # Errors
    ///
    /// [`SubmitError`], if not all items can be handed over.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(2)?;
    /// let cubes = pool.map_async(|n: i64| n.pow(3), 0..1000)?;
    /// let squares = pool.map_async(|n: i64| n.pow(2), 0..1000)?;
    /// assert_eq!((cubes.get()?[999], squares.get()?[999]), (997_002_999, 998_001));
    /// # Ok(())
    /// # }
    /// ```
    pub fn map_async<F, I>(&self, function: F, items: I) -> Result<AsyncResult<Vec<F::Output>>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        self.options().map_async(function, items)
    }

    /// As [`map_async`](Self::map_async), with callbacks, of which one is called: see
    /// [`apply_async_with`](Self::apply_async_with).
    ///
    /// # Errors
    ///
    /// As [`map_async`](Self::map_async).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(2)?;
    /// let done = pool.map_async_with(
    ///     |n: u8| n + 1,
    ///     0..10,
    ///     |numbers| println!("{} numbers", numbers.len()),
    ///     |error| eprintln!("{error}"),
    /// )?;
    /// assert_eq!(done.get()?[9], 10);
    /// # Ok(())
    /// # }
    /// ```
    pub fn map_async_with<F, I>(
        &self,
        function: F,
        items: I,
        callback: impl FnOnce(&Vec<F::Output>) + Send + 'static,
        error_callback: impl FnOnce(&TaskError) + Send + 'static,
    ) -> Result<AsyncResult<Vec<F::Output>>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message + Send>,
    {
        self.options().map_async_with(function, items, callback, error_callback)
    }

    /// As [`map`](Self::map), of a function of several arguments: each item is a tuple of them.
    ///
    /// # Errors
    ///
    /// As [`map`](Self::map).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(2)?;
    /// assert_eq!(pool.starmap(u64::pow, [(2, 10), (3, 4)])?, [1024, 81]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn starmap<F, I>(&self, function: F, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<I::Item, Output: Message>,
    {
        self.options().starmap(function, items)
    }

    /// As [`starmap`](Self::starmap), without waiting for the results.
    ///
    /// # Errors
    ///
    /// As [`map_async`](Self::map_async).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(2)?;
    /// let joined = pool.starmap_async(|a: String, b: u8| format!("{a}{b}"), [("a".to_string(), 1)])?;
    /// assert_eq!(joined.get()?, ["a1"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn starmap_async<F, I>(&self, function: F, items: I) -> Result<AsyncResult<Vec<F::Output>>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<I::Item, Output: Message>,
    {
        self.options().starmap_async(function, items)
    }

    /// Calls a function for each item, in the workers, and returns an iterator over the results, in the order of the
    /// items. These are taken as results are asked for: see [`IMap`].
    ///
    /// # Errors
    ///
    /// [`SubmitError`], if the pool takes no tasks. What goes wrong with an item is an `Err` in its place.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(2)?;
    /// // There is no end to these items.
    /// let mut squares = pool.imap(|n: u64| n * n, 0..)?;
    /// assert_eq!(squares.nth(1000).unwrap()?, 1_000_000);
    /// # Ok(())
    /// # }
    /// ```
    pub fn imap<F, I>(&self, function: F, items: I) -> Result<IMap<I::IntoIter, F::Output>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        self.options().imap(function, items)
    }

    /// As [`imap`](Self::imap), with the results as they come.
    ///
    /// # Errors
    ///
    /// As [`imap`](Self::imap).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(2)?;
    /// let mut sum = 0;
    /// for square in pool.imap_unordered(|n: u64| n * n, 1..=3)? {
    ///     sum += square?;
    /// }
    /// assert_eq!(sum, 14);
    /// # Ok(())
    /// # }
    /// ```
    pub fn imap_unordered<F, I>(&self, function: F, items: I) -> Result<IMap<I::IntoIter, F::Output>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        self.options().imap_unordered(function, items)
    }
}

impl MapOptions<'_> {
    /// How many items make a task, at least one. For `imap` and `imap_unordered` it is one unless this is called.
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.chunk_size = Some(items.max(1));
        self
    }

    /// For `imap` and `imap_unordered`: how many tasks may be under way, that is taken from the iterator and not given out.
    /// At least one; 16 for each worker, but no less than 64, unless this is called.
    pub fn window(mut self, tasks: usize) -> Self {
        self.window = Some(tasks.max(1));
        self
    }

    fn crew(&self) -> &Arc<Crew> {
        &self.pool.crew
    }

    /// [`Pool::map`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn map<F, I>(self, _function: F, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        self.run(task::map_chunk::<F, I::Item>, items)
    }

    /// [`Pool::map_async`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn map_async<F, I>(self, _function: F, items: I) -> Result<AsyncResult<Vec<F::Output>>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        self.begin(task::map_chunk::<F, I::Item>, items)
    }

    /// [`Pool::map_async_with`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn map_async_with<F, I>(
        self,
        _function: F,
        items: I,
        callback: impl FnOnce(&Vec<F::Output>) + Send + 'static,
        error_callback: impl FnOnce(&TaskError) + Send + 'static,
    ) -> Result<AsyncResult<Vec<F::Output>>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message + Send>,
    {
        let mut call = None;
        self.feed(task::map_chunk::<F, I::Item>, items, Manner::Notify, |job| {
            let made = Call::new(self.crew().clone(), job.clone(), Some(Vec::new()), add_chunk);
            made.call_back(callback, error_callback);
            call = Some(made);
        })?;
        // It is made before anything can go wrong that is not an error.
        call.map(AsyncResult::new).ok_or(SubmitError::Closed)
    }

    /// [`Pool::starmap`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn starmap<F, I>(self, _function: F, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<I::Item, Output: Message>,
    {
        self.run(task::starmap_chunk::<F, I::Item>, items)
    }

    /// [`Pool::starmap_async`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn starmap_async<F, I>(self, _function: F, items: I) -> Result<AsyncResult<Vec<F::Output>>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<I::Item, Output: Message>,
    {
        self.begin(task::starmap_chunk::<F, I::Item>, items)
    }

    /// [`Pool::imap`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn imap<F, I>(self, _function: F, items: I) -> Result<IMap<I::IntoIter, F::Output>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        self.stream::<F, I>(items, Order::Sequence)
    }

    /// [`Pool::imap_unordered`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn imap_unordered<F, I>(self, _function: F, items: I) -> Result<IMap<I::IntoIter, F::Output>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        self.stream::<F, I>(items, Order::Arrival)
    }

    fn stream<F, I>(self, items: I, order: Order) -> Result<IMap<I::IntoIter, F::Output>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        let size = self.chunk_size.unwrap_or(1);
        let run = if size == 1 { task::call::<F, (I::Item,)> } else { task::stream_chunk::<F, I::Item> };
        let window = self.window.unwrap_or_else(|| (self.crew().places * WINDOW).max(LEAST_WINDOW));
        IMap::new(self.crew(), run, items.into_iter(), size, window as u64, order)
    }

    fn run<I, R>(self, run: Run, items: I) -> Result<Vec<R>, TaskError>
    where
        I: IntoIterator<Item: Message>,
        R: Message,
    {
        let job = self.feed(run, items, Manner::Wait, |_| {})?;
        AsyncResult::new(Call::new(self.crew().clone(), job, Some(Vec::new()), add_chunk)).get()
    }

    fn begin<I, R>(self, run: Run, items: I) -> Result<AsyncResult<Vec<R>>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        R: Message,
    {
        let job = self.feed(run, items, Manner::GoOn, |_| {})?;
        Ok(AsyncResult::new(Call::new(self.crew().clone(), job, Some(Vec::new()), add_chunk)))
    }

    /// Hands all items to the workers.
    fn feed<I>(
        self,
        run: Run,
        items: I,
        manner: Manner,
        opened: impl FnOnce(&Arc<Job>),
    ) -> Result<Arc<Job>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
    {
        let items = items.into_iter();
        let size = |count: usize| self.chunk_size.unwrap_or_else(|| count.div_ceil(self.crew().places * CHUNKS));
        match items.size_hint() {
            (least, Some(most)) if least == most => self.crew().call_chunks(run, items, size(least), manner, opened),
            _ => {
                let items: Vec<_> = items.collect();
                let size = size(items.len());
                self.crew().call_chunks(run, items.into_iter(), size, manner, opened)
            }
        }
    }
}

fn add_chunk<R: Message>(outcome: &mut Outcome, all: &mut Option<Vec<R>>) -> Result<(), TaskError> {
    let mut chunk: Vec<R> = result_of(outcome)?;
    match all {
        Some(all) if !all.is_empty() => all.append(&mut chunk),
        _ => *all = Some(chunk),
    }
    Ok(())
}
