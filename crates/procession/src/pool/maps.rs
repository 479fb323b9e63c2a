//! Calls of a function for each of many items.

use super::{
    Pool,
    error::{SubmitError, TaskError},
    result::AsyncResult,
    stream::IMap,
};
use crate::{Function, Message};

impl Pool {
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
