//! A dictionary that processes share.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use procession_core::manager::{Caller, Failure, Object};

use super::{
    Manager, ManagerError,
    reference::{Reference, encode, proxy},
    wire::{Reader, Stored, Writer},
};
use crate::Message;

/// The server's side of a dictionary or a namespace: keys are bytes.
#[derive(Debug)]
pub(super) struct Dict {
    type_name: &'static str,
    items: Mutex<Items>,
}

#[derive(Debug, Default)]
struct Items {
    by_key: HashMap<Arc<[u8]>, Item>,
    /// The keys in the order in which they came.
    order: BTreeMap<u64, Arc<[u8]>>,
    next: u64,
}

#[derive(Debug)]
struct Item {
    place: u64,
    /// The key, as it was when it came: it may hold objects as well.
    key: Stored,
    value: Stored,
}

impl Items {
    /// Returns what was there. A key that was there keeps its place.
    fn insert(&mut self, key: Stored, value: Stored) -> Option<Stored> {
        if let Some(item) = self.by_key.get_mut(&key.bytes[..]) {
            return Some(std::mem::replace(&mut item.value, value));
        }
        let bytes: Arc<[u8]> = key.bytes[..].into();
        self.order.insert(self.next, Arc::clone(&bytes));
        self.by_key.insert(bytes, Item { place: self.next, key, value });
        self.next += 1;
        None
    }

    fn remove(&mut self, key: &[u8]) -> Option<Item> {
        let item = self.by_key.remove(key)?;
        self.order.remove(&item.place);
        Some(item)
    }

    fn in_order(&self) -> impl Iterator<Item = &Item> {
        self.order.values().filter_map(|key| self.by_key.get(key))
    }

    fn write<'a>(&'a self, caller: &Caller<'_>, mut parts: impl FnMut(&'a Item) -> [Option<&'a Stored>; 2]) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.number(self.by_key.len() as u64);
        for item in self.in_order() {
            for part in parts(item).into_iter().flatten() {
                writer.stored(part, caller);
            }
        }
        writer.0
    }
}

/// Keys with their values, and nothing after them.
fn pairs(arguments: &mut Reader<'_>, caller: &Caller<'_>) -> Result<Vec<(Stored, Stored)>, Failure> {
    let mut pairs = Vec::new();
    for _ in 0..arguments.index()? {
        pairs.push((arguments.value()?.keep(caller)?, arguments.value()?.keep(caller)?));
    }
    arguments.end()?;
    Ok(pairs)
}

impl Dict {
    pub(super) fn namespace() -> Self {
        Self { type_name: "Namespace", items: Mutex::default() }
    }

    /// A dictionary with the items that the arguments are.
    pub(super) fn with_items(arguments: &[u8], caller: &Caller<'_>) -> Result<Self, Failure> {
        let mut items = Items::default();
        for (key, value) in pairs(&mut Reader(arguments), caller)? {
            items.insert(key, value);
        }
        Ok(Self { type_name: "dict", items: Mutex::new(items) })
    }
}

impl Object for Dict {
    fn type_name(&self) -> &str {
        self.type_name
    }

    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        let arguments = &mut Reader(arguments);
        let mut reply = Writer::default();
        // What is taken out is dropped after the lock is released: it may be the last of an object, and that of many.
        let dropped;
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        match method {
            "get" => {
                let key = arguments.value()?;
                reply.maybe(items.by_key.get(key.bytes).map(|item| &item.value), caller);
            }
            "set" | "insert" => {
                let (key, value) = (arguments.value()?.keep(caller)?, arguments.value()?.keep(caller)?);
                arguments.end()?;
                dropped = items.insert(key, value);
                if method == "insert" {
                    reply.maybe(dropped.as_ref(), caller);
                }
            }
            "set_default" => {
                let (key, value) = (arguments.value()?, arguments.value()?);
                if !items.by_key.contains_key(key.bytes) {
                    items.insert(key.keep(caller)?, value.keep(caller)?);
                }
                if let Some(item) = items.by_key.get(key.bytes) {
                    reply.stored(&item.value, caller);
                }
            }
            "update" => {
                // All or nothing: what is wrong is found out before the first is put in.
                let new = pairs(arguments, caller)?;
                let old: Vec<_> = new.into_iter().map(|(key, value)| items.insert(key, value)).collect();
                drop(items);
                drop(old);
            }
            "remove" => {
                let key = arguments.value()?;
                let item = items.remove(key.bytes);
                drop(items);
                reply.maybe(item.as_ref().map(|item| &item.value), caller);
            }
            "pop_item" => {
                let last = items.order.last_key_value().map(|(_, key)| Arc::clone(key));
                let item = last.and_then(|key| items.remove(&key));
                drop(items);
                reply.flag(item.is_some());
                if let Some(item) = item {
                    reply.stored(&item.key, caller).stored(&item.value, caller);
                }
            }
            "contains_key" => {
                reply.flag(items.by_key.contains_key(arguments.value()?.bytes));
            }
            "len" => {
                reply.number(items.by_key.len() as u64);
            }
            "keys" => return Ok(items.write(caller, |item| [Some(&item.key), None])),
            "values" => return Ok(items.write(caller, |item| [None, Some(&item.value)])),
            "items" => return Ok(items.write(caller, |item| [Some(&item.key), Some(&item.value)])),
            "clear" => {
                let all = std::mem::take(&mut *items);
                drop(items);
                drop(all);
            }
            _ => return Err(Failure::NoSuchMethod),
        }
        Ok(reply.0)
    }
}

proxy! {
    /// A dictionary in a manager, which all processes that have a proxy of it share.
    ///
    /// Keys and values are kept as the bytes that they are sent as, so two keys are one if their bytes are equal. For most
    /// types that is when they are equal; not so for `0.0` and `-0.0`, for a `HashMap` within a key, or a type with an `Eq`
    /// of its own. Items are in the order in which their keys came.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let ages = manager.dict::<String, u32>([])?;
    ///     ages.set("Ada".into(), 36)?;
    ///     assert_eq!(ages.insert("Ada".into(), 37)?, Some(36));
    ///     assert_eq!(ages.get("Ada")?, Some(37));
    ///     assert_eq!(ages.get("Bob")?, None);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Each call may fail with a [`ManagerError`]: most of all, the manager has ended.
    DictProxy<K, V>
}

impl Manager {
    /// Makes a dictionary, with items if there are any to begin with. Of two with the same key the later one stays.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let ages = manager.dict([("Ada".to_string(), 36), ("Bob".to_string(), 5)])?;
    ///     assert_eq!(ages.get("Bob")?, Some(5));
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn dict<K: Message, V: Message>(
        &self,
        items: impl IntoIterator<Item = (K, V)>,
    ) -> Result<DictProxy<K, V>, ManagerError> {
        // Kept until the call is made: they may be proxies that are the last of their objects.
        let items: Vec<_> = items.into_iter().collect();
        let mut arguments = Writer::default();
        arguments.number(items.len() as u64);
        for (key, value) in &items {
            encode(self.server(), key, &mut arguments)?;
            encode(self.server(), value, &mut arguments)?;
        }
        self.make("dict", &arguments).map(DictProxy::new)
    }
}

#[expect(clippy::missing_errors_doc, reason = "said for all of them at the type")]
impl<K: Message, V: Message> DictProxy<K, V> {
    /// The arguments of a call with a key.
    fn key<Q: ToOwned<Owned = K> + ?Sized>(&self, key: &Q) -> Result<Writer, ManagerError>
    where
        K: Borrow<Q>,
    {
        self.reference.one(&key.to_owned())
    }

    fn item(&self, key: &K, value: &V) -> Result<Writer, ManagerError> {
        let mut arguments = self.reference.one(key)?;
        self.reference.write(&mut arguments, value)?;
        Ok(arguments)
    }

    /// The value of a key, if the key is there.
    pub fn get<Q: ToOwned<Owned = K> + ?Sized>(&self, key: &Q) -> Result<Option<V>, ManagerError>
    where
        K: Borrow<Q>,
    {
        self.reference.ask_maybe("get", &self.key(key)?)
    }

    /// Sets the value of a key. [`insert`](Self::insert) without the old value, which need not be sent.
    pub fn set(&self, key: K, value: V) -> Result<(), ManagerError> {
        self.reference.tell("set", &self.item(&key, &value)?)
    }

    /// Sets the value of a key; returns the one that it had.
    pub fn insert(&self, key: K, value: V) -> Result<Option<V>, ManagerError> {
        self.reference.ask_maybe("insert", &self.item(&key, &value)?)
    }

    /// The value of a key, which is set to `value` if the key is not there.
    #[doc(alias = "setdefault")]
    pub fn set_default(&self, key: K, value: V) -> Result<V, ManagerError> {
        self.reference.ask("set_default", &self.item(&key, &value)?)
    }

    /// Sets many items, in one step: nobody sees a part of it.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # procession::init();
    /// # let manager = procession::Manager::new()?;
    /// let squares = manager.dict::<u32, u32>([])?;
    /// squares.update((0..10).map(|n| (n, n * n)))?;
    /// assert_eq!(squares.len()?, 10);
    /// # Ok(())
    /// # }
    /// ```
    pub fn update(&self, items: impl IntoIterator<Item = (K, V)>) -> Result<(), ManagerError> {
        // Kept until the call is made: they may be proxies that are the last of their objects.
        let items: Vec<_> = items.into_iter().collect();
        let mut arguments = Writer::default();
        arguments.number(items.len() as u64);
        for (key, value) in &items {
            self.reference.write(&mut arguments, key)?;
            self.reference.write(&mut arguments, value)?;
        }
        self.reference.tell("update", &arguments)
    }

    /// Takes a key out; returns its value. The standard package calls this `pop`.
    #[doc(alias = "pop")]
    pub fn remove<Q: ToOwned<Owned = K> + ?Sized>(&self, key: &Q) -> Result<Option<V>, ManagerError>
    where
        K: Borrow<Q>,
    {
        self.reference.ask_maybe("remove", &self.key(key)?)
    }

    /// Takes the item out whose key came last.
    #[doc(alias = "popitem")]
    pub fn pop_item(&self) -> Result<Option<(K, V)>, ManagerError> {
        let answer = self.reference.call("pop_item", &Writer::default())?;
        let reader = &mut Reader(&answer);
        if !reader.flag()? {
            return Ok(None);
        }
        let (key, value) = (self.reference.read(reader), self.reference.read(reader));
        Ok(Some((key?, value?)))
    }

    /// Whether a key is there.
    pub fn contains_key<Q: ToOwned<Owned = K> + ?Sized>(&self, key: &Q) -> Result<bool, ManagerError>
    where
        K: Borrow<Q>,
    {
        self.reference.ask_flag("contains_key", &self.key(key)?)
    }

    /// How many items there are.
    pub fn len(&self) -> Result<usize, ManagerError> {
        self.reference.ask_number("len", &Writer::default()).map(|length| length as usize)
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> Result<bool, ManagerError> {
        self.len().map(|length| length == 0)
    }

    /// A copy of all keys.
    pub fn keys(&self) -> Result<Vec<K>, ManagerError> {
        self.reference.ask_all("keys", &Writer::default())
    }

    /// A copy of all values.
    pub fn values(&self) -> Result<Vec<V>, ManagerError> {
        self.reference.ask_all("values", &Writer::default())
    }

    /// A copy of all items. Others may change the dictionary meanwhile; the copy is of one moment.
    pub fn items(&self) -> Result<Vec<(K, V)>, ManagerError> {
        let answer = self.reference.call("items", &Writer::default())?;
        let reader = &mut Reader(&answer);
        let count = reader.index()?;
        read_pairs(&self.reference, reader, count)
    }

    /// Takes everything out.
    pub fn clear(&self) -> Result<(), ManagerError> {
        self.reference.tell("clear", &Writer::default())
    }
}

fn read_pairs<K: Message, V: Message>(
    reference: &Reference,
    reader: &mut Reader<'_>,
    count: usize,
) -> Result<Vec<(K, V)>, ManagerError> {
    let mut pairs = Vec::new();
    let mut failed = None;
    for _ in 0..count {
        // The value is read even if the key can't be, so that the references within are given back.
        match (reference.read(reader), reference.read(reader)) {
            (Ok(key), Ok(value)) => pairs.push((key, value)),
            (Err(error), _) | (_, Err(error)) => failed = failed.or(Some(error)),
        }
        if matches!(failed, Some(ManagerError::Malformed)) {
            break;
        }
    }
    failed.map_or(Ok(pairs), Err)
}

proxy! {
    /// Values under names, each of a type of its own, which all processes that have a proxy share.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let settings = manager.namespace()?;
    ///     settings.set("title", "a picture".to_string())?;
    ///     settings.set("size", (640, 480))?;
    ///     assert_eq!(settings.get::<(i32, i32)>("size")?, Some((640, 480)));
    ///     assert_eq!(settings.names()?, ["title", "size"]);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Each call may fail with a [`ManagerError`]: most of all, the manager has ended.
    NamespaceProxy
}

impl Manager {
    /// Makes an empty namespace.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn namespace(&self) -> Result<NamespaceProxy, ManagerError> {
        self.make("Namespace", &Writer::default()).map(NamespaceProxy::new)
    }
}

#[expect(clippy::missing_errors_doc, reason = "said for all of them at the type")]
impl NamespaceProxy {
    fn name(&self, name: &str) -> Result<Writer, ManagerError> {
        self.reference.one(&name.to_owned())
    }

    /// The value of a name. It is to be read as the type that it was set as; if that can't be, the error says so.
    pub fn get<T: Message>(&self, name: &str) -> Result<Option<T>, ManagerError> {
        self.reference.ask_maybe("get", &self.name(name)?)
    }

    /// Sets the value of a name.
    pub fn set<T: Message>(&self, name: &str, value: T) -> Result<(), ManagerError> {
        let mut arguments = self.name(name)?;
        self.reference.write(&mut arguments, &value)?;
        self.reference.tell("set", &arguments)
    }

    /// Takes a name out; whether it was there.
    pub fn remove(&self, name: &str) -> Result<bool, ManagerError> {
        let answer = self.reference.call("remove", &self.name(name)?)?;
        let reader = &mut Reader(&answer);
        let there = reader.flag()?;
        if there {
            self.reference.forget(&reader.value()?);
        }
        Ok(there)
    }

    /// Whether a name is there.
    pub fn contains(&self, name: &str) -> Result<bool, ManagerError> {
        self.reference.ask_flag("contains_key", &self.name(name)?)
    }

    /// The names, in the order in which they came.
    pub fn names(&self) -> Result<Vec<String>, ManagerError> {
        self.reference.ask_all("keys", &Writer::default())
    }
}
