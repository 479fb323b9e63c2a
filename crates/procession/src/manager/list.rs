//! A list that processes share, and an array of fixed length.

use std::{
    ops::{Bound, RangeBounds},
    sync::{Mutex, PoisonError},
};

use procession_core::manager::{Caller, Failure, Object, protocol::ServerId};

use super::{
    Manager, ManagerError, Refusal,
    reference::{Reference, encode, proxy},
    wire::{Reader, Stored, Writer},
};
use crate::Message;

/// The server's side of a list or an array.
#[derive(Debug)]
pub(super) struct List {
    /// An array does not grow or shrink.
    fixed: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    elements: Vec<Stored>,
    /// Grows with each change of the elements, or of their order.
    version: u64,
}

impl State {
    fn at(&mut self, place: usize) -> Result<&mut Stored, Failure> {
        let length = self.elements.len() as u64;
        let refusal = Refusal::OutOfRange { place: place as u64, length };
        self.elements.get_mut(place).ok_or_else(|| refusal.into())
    }

    /// That part of a range which there is.
    fn range(&self, start: usize, end: usize) -> &[Stored] {
        let end = end.min(self.elements.len());
        self.elements.get(start..end).unwrap_or_default()
    }
}

fn read_many(arguments: &mut Reader<'_>, caller: &Caller<'_>) -> Result<Vec<Stored>, Failure> {
    let count = arguments.index()?;
    let mut values = Vec::new();
    for _ in 0..count {
        values.push(arguments.value()?.keep(caller)?);
    }
    arguments.end()?;
    Ok(values)
}

fn write_many(reply: &mut Writer, values: &[Stored], caller: &Caller<'_>) {
    reply.number(values.len() as u64);
    for value in values {
        reply.stored(value, caller);
    }
}

impl List {
    /// With elements, if the arguments have any.
    pub(super) fn new(fixed: bool, arguments: &[u8], caller: &Caller<'_>) -> Result<Self, Failure> {
        let elements = read_many(&mut Reader(arguments), caller)?;
        Ok(Self { fixed, state: Mutex::new(State { elements, version: 0 }) })
    }
}

impl Object for List {
    fn type_name(&self) -> &'static str {
        if self.fixed { "Array" } else { "list" }
    }

    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        let arguments = &mut Reader(arguments);
        let mut reply = Writer::default();
        // What is taken out is dropped after the lock is released: it may be the last of an object, and that of many.
        let mut dropped = Vec::new();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match method {
            "get" => {
                let place = arguments.index()?;
                reply.maybe(state.elements.get(place), caller);
                return Ok(reply.0);
            }
            "len" => {
                reply.number(state.elements.len() as u64);
                return Ok(reply.0);
            }
            "slice" => {
                let (start, end) = (arguments.index()?, arguments.index()?);
                reply.number(state.version);
                write_many(&mut reply, state.range(start, end), caller);
                return Ok(reply.0);
            }
            "position" => {
                let bytes = arguments.value()?.bytes;
                let place = state.elements.iter().position(|element| &*element.bytes == bytes);
                reply.flag(place.is_some()).number(place.unwrap_or_default() as u64);
                return Ok(reply.0);
            }
            "set" => {
                let place = arguments.index()?;
                let value = arguments.value()?.keep(caller)?;
                dropped.push(std::mem::replace(state.at(place)?, value));
            }
            "set_slice" => {
                let start = arguments.index()?;
                let values = read_many(arguments, caller)?;
                if let Some(last) = values.len().checked_sub(1) {
                    state.at(start.saturating_add(last))?;
                    dropped.extend(state.elements.splice(start..=start + last, values));
                }
            }
            "reverse" => state.elements.reverse(),
            "permute" => {
                let version = arguments.number()?;
                let places = (0..state.elements.len()).map(|_| arguments.index()).collect::<Result<Vec<_>, _>>();
                let current = version == state.version;
                reply.flag(current);
                if !current {
                    return Ok(reply.0);
                }
                permute(&mut state.elements, &places?)?;
                arguments.end()?;
            }
            _ if self.fixed => return Err(Failure::NoSuchMethod),
            "push" => {
                let value = arguments.value()?.keep(caller)?;
                state.elements.push(value);
            }
            "extend" => state.elements.extend(read_many(arguments, caller)?),
            "insert" => {
                let place = arguments.index()?.min(state.elements.len());
                let value = arguments.value()?.keep(caller)?;
                state.elements.insert(place, value);
            }
            "pop" => {
                let last = state.elements.pop();
                reply.maybe(last.as_ref(), caller);
                dropped.extend(last);
            }
            "remove" => {
                let place = arguments.index()?;
                state.at(place)?;
                let removed = state.elements.remove(place);
                reply.stored(&removed, caller);
                dropped.push(removed);
            }
            "clear" => dropped.append(&mut state.elements),
            _ => return Err(Failure::NoSuchMethod),
        }
        state.version += 1;
        drop(state);
        Ok(reply.0)
    }
}

/// Puts the elements into another order: first the one that was at the first of `places`.
fn permute(elements: &mut Vec<Stored>, places: &[usize]) -> Result<(), Failure> {
    let mut taken: Vec<_> = std::mem::take(elements).into_iter().map(Some).collect();
    let ordered: Option<Vec<_>> = places.iter().map(|place| taken.get_mut(*place).and_then(Option::take)).collect();
    // A client of this program sends each place once.
    *elements = ordered.ok_or_else(|| Failure::BadArguments("they are no order of the elements".into()))?;
    Ok(())
}

fn range_of(range: impl RangeBounds<usize>) -> Writer {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => usize::MAX,
    };
    let mut arguments = Writer::default();
    arguments.number(start as u64).number(end as u64);
    arguments
}

/// Writes any number of values. They are to be kept until the call is made: they may be proxies that are the last of their
/// objects.
fn write_all<T: Message>(
    server: ServerId,
    arguments: &mut Writer,
    values: impl IntoIterator<Item = T>,
) -> Result<Vec<T>, ManagerError> {
    let values: Vec<_> = values.into_iter().collect();
    arguments.number(values.len() as u64);
    for value in &values {
        encode(server, value, arguments)?;
    }
    Ok(values)
}

/// The version of the list, and a part of it.
fn slice<T: Message>(reference: &Reference, range: impl RangeBounds<usize>) -> Result<(u64, Vec<T>), ManagerError> {
    let answer = reference.call("slice", &range_of(range))?;
    let reader = &mut Reader(&answer);
    let (version, count) = (reader.number()?, reader.index()?);
    Ok((version, reference.read_all(reader, count)?))
}

fn place(place: usize) -> Writer {
    let mut arguments = Writer::default();
    arguments.number(place as u64);
    arguments
}

fn place_and_value<T: Message>(reference: &Reference, at: usize, value: &T) -> Result<Writer, ManagerError> {
    let mut arguments = place(at);
    reference.write(&mut arguments, value)?;
    Ok(arguments)
}

proxy! {
    /// A list in a manager, which all processes that have a proxy of it share.
    ///
    /// Each call is one step, and nothing keeps others from changing the list between two of them: for more than one, take a
    /// [`LockProxy`](super::LockProxy).
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let names = manager.list(["Bob".to_string()])?;
    ///     names.push("Ada".into())?;
    ///     names.sort()?;
    ///     assert_eq!(names.to_vec()?, ["Ada", "Bob"]);
    ///     assert_eq!(names.pop()?, Some("Bob".into()));
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Each call may fail with a [`ManagerError`]: most of all, the manager has ended.
    ListProxy<T>
}

impl Manager {
    /// Makes a list, with elements if there are any to begin with.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn list<T: Message>(&self, elements: impl IntoIterator<Item = T>) -> Result<ListProxy<T>, ManagerError> {
        let mut arguments = Writer::default();
        let _values = write_all(self.server(), &mut arguments, elements)?;
        self.make("list", &arguments).map(ListProxy::new)
    }

    /// Makes an array: a list whose length does not change.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn array<T: Message>(&self, elements: impl IntoIterator<Item = T>) -> Result<ArrayProxy<T>, ManagerError> {
        let mut arguments = Writer::default();
        let _values = write_all(self.server(), &mut arguments, elements)?;
        self.make("Array", &arguments).map(ArrayProxy::new)
    }
}

#[expect(clippy::missing_errors_doc, reason = "said for all of them at the type")]
impl<T: Message> ListProxy<T> {
    /// Puts an element at the end.
    #[doc(alias = "append")]
    pub fn push(&self, value: T) -> Result<(), ManagerError> {
        self.reference.tell("push", &self.reference.one(&value)?)
    }

    /// Puts many elements at the end, in one step.
    pub fn extend(&self, values: impl IntoIterator<Item = T>) -> Result<(), ManagerError> {
        let mut arguments = Writer::default();
        let _values = write_all(self.reference.server(), &mut arguments, values)?;
        self.reference.tell("extend", &arguments)
    }

    /// Puts an element before the one at `index`, or at the end if there is none.
    pub fn insert(&self, index: usize, value: T) -> Result<(), ManagerError> {
        self.reference.tell("insert", &place_and_value(&self.reference, index, &value)?)
    }

    /// Takes the last element out.
    pub fn pop(&self) -> Result<Option<T>, ManagerError> {
        self.reference.ask_maybe("pop", &Writer::default())
    }

    /// Takes the element at `index` out. [`Refusal::OutOfRange`] if there is none.
    pub fn remove(&self, index: usize) -> Result<T, ManagerError> {
        self.reference.ask("remove", &place(index))
    }

    /// Takes everything out.
    pub fn clear(&self) -> Result<(), ManagerError> {
        self.reference.tell("clear", &Writer::default())
    }

    /// Sorts the elements. Equal ones keep their order.
    ///
    /// They are compared in this process, and sorted anew if others changed the list meanwhile.
    pub fn sort(&self) -> Result<(), ManagerError>
    where
        T: Ord,
    {
        self.sort_by(T::cmp)
    }

    /// Sorts the elements as a function compares them. Equal ones keep their order.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # procession::init();
    /// # let manager = procession::Manager::new()?;
    /// let list = manager.list([0.5_f64, -1.0, 3.0])?;
    /// list.sort_by(|a, b| b.total_cmp(a))?;
    /// assert_eq!(list.to_vec()?, [3.0, 0.5, -1.0]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn sort_by(&self, mut compare: impl FnMut(&T, &T) -> std::cmp::Ordering) -> Result<(), ManagerError> {
        loop {
            let (version, elements) = slice::<T>(&self.reference, ..)?;
            let mut places: Vec<_> = (0..elements.len()).collect();
            places.sort_by(|a, b| compare(&elements[*a], &elements[*b]));
            let mut arguments = Writer::default();
            arguments.number(version);
            for place in places {
                arguments.number(place as u64);
            }
            if self.reference.ask_flag("permute", &arguments)? {
                return Ok(());
            }
        }
    }
}

proxy! {
    /// An array in a manager, whose length does not change, and which all processes that have a proxy share.
    ///
    /// Related processes of one machine share numbers more quickly through [`Array`](crate::Array); this one can be had from
    /// anywhere, and holds values of any type.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let numbers = manager.array(vec![0; 5])?;
    ///     numbers.set(1, 10)?;
    ///     numbers.set_slice(3, [7, 8])?;
    ///     assert_eq!(numbers.to_vec()?, [0, 10, 0, 7, 8]);
    ///     assert!(numbers.set(5, 1).is_err());
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Each call may fail with a [`ManagerError`]: most of all, the manager has ended.
    ArrayProxy<T>
}

/// What lists and arrays have in common.
macro_rules! sequence {
    ($name:ident) => {
        #[expect(clippy::missing_errors_doc, reason = "said for all of them at the type")]
        impl<T: Message> $name<T> {
            /// The element at `index`, if there is one.
            pub fn get(&self, index: usize) -> Result<Option<T>, ManagerError> {
                self.reference.ask_maybe("get", &place(index))
            }

            /// Puts another element in the place of the one at `index`. [`Refusal::OutOfRange`] if there is none.
            pub fn set(&self, index: usize, value: T) -> Result<(), ManagerError> {
                self.reference.tell("set", &place_and_value(&self.reference, index, &value)?)
            }

            /// Puts other elements in the place of those from `start` on, in one step. [`Refusal::OutOfRange`] if there are
            /// less.
            pub fn set_slice(&self, start: usize, values: impl IntoIterator<Item = T>) -> Result<(), ManagerError> {
                let mut arguments = place(start);
                let _values = write_all(self.reference.server(), &mut arguments, values)?;
                self.reference.tell("set_slice", &arguments)
            }

            /// How many elements there are.
            pub fn len(&self) -> Result<usize, ManagerError> {
                self.reference.ask_number("len", &Writer::default()).map(|length| length as usize)
            }

            /// Whether there is no element.
            pub fn is_empty(&self) -> Result<bool, ManagerError> {
                self.len().map(|length| length == 0)
            }

            /// A copy of the elements: to go through them, too.
            #[doc(alias = "iter")]
            pub fn to_vec(&self) -> Result<Vec<T>, ManagerError> {
                self.slice(..)
            }

            /// A copy of those elements of a range that there are.
            pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<Vec<T>, ManagerError> {
                slice(&self.reference, range).map(|(_, elements)| elements)
            }

            /// The place of the first element that is sent as the same bytes as `value`: for most types, that is equal to it.
            #[doc(alias = "index")]
            pub fn position(&self, value: &T) -> Result<Option<usize>, ManagerError> {
                let answer = self.reference.call("position", &self.reference.one(value)?)?;
                let reader = &mut Reader(&answer);
                let (found, place) = (reader.flag()?, reader.index()?);
                Ok(found.then_some(place))
            }

            /// Whether there is an element that is sent as the same bytes as `value`.
            pub fn contains(&self, value: &T) -> Result<bool, ManagerError> {
                self.position(value).map(|place| place.is_some())
            }

            /// Puts the elements into the opposite order.
            pub fn reverse(&self) -> Result<(), ManagerError> {
                self.reference.tell("reverse", &Writer::default())
            }
        }
    };
}

sequence!(ListProxy);
sequence!(ArrayProxy);
