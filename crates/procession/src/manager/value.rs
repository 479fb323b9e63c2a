//! A value that processes share.

use std::sync::{Mutex, PoisonError};

use procession_core::manager::{Caller, Failure, Object};

use super::{
    Manager, ManagerError,
    reference::proxy,
    wire::{Reader, Stored, Writer},
};
use crate::Message;

/// The server's side of a value.
#[derive(Debug)]
pub(super) struct Value(Mutex<State>);

#[derive(Debug)]
struct State {
    value: Stored,
    /// Grows with each change.
    version: u64,
}

impl State {
    fn replace(&mut self, value: Stored) -> Stored {
        self.version += 1;
        std::mem::replace(&mut self.value, value)
    }
}

impl Value {
    pub(super) fn new(arguments: &[u8], caller: &Caller<'_>) -> Result<Self, Failure> {
        let value = Reader(arguments).value()?.keep(caller)?;
        Ok(Self(Mutex::new(State { value, version: 0 })))
    }
}

impl Object for Value {
    fn type_name(&self) -> &'static str {
        "Value"
    }

    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        let arguments = &mut Reader(arguments);
        let mut reply = Writer::default();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match method {
            "get" => {
                reply.number(state.version).stored(&state.value, caller);
            }
            "set" | "replace" => {
                let value = arguments.value()?.keep(caller)?;
                let old = state.replace(value);
                // The old one may be the last of an object, and that of many.
                drop(state);
                if method == "replace" {
                    reply.stored(&old, caller);
                }
            }
            "set_if" => {
                let current = arguments.number()? == state.version;
                reply.flag(current);
                if current {
                    let value = arguments.value()?.keep(caller)?;
                    let old = state.replace(value);
                    drop(state);
                    drop(old);
                }
            }
            _ => return Err(Failure::NoSuchMethod),
        }
        Ok(reply.0)
    }
}

proxy! {
    /// A value in a manager, which all processes that have a proxy of it share.
    ///
    /// Related processes of one machine share plain data more quickly through [`Value`](crate::Value); this one can be had
    /// from anywhere, and is of any type.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let longest = manager.value(String::new())?;
    ///     longest.set("word".into())?;
    ///     longest.update(|word| word.push('s'))?;
    ///     assert_eq!(longest.get()?, "words");
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Each call may fail with a [`ManagerError`]: most of all, the manager has ended.
    ValueProxy<T>
}

impl Manager {
    /// Makes a value.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn value<T: Message>(&self, value: T) -> Result<ValueProxy<T>, ManagerError> {
        let mut arguments = Writer::default();
        super::reference::encode(self.server(), &value, &mut arguments)?;
        self.make("Value", &arguments).map(ValueProxy::new)
    }
}

#[expect(clippy::missing_errors_doc, reason = "said for all of them at the type")]
impl<T: Message> ValueProxy<T> {
    fn get_version(&self) -> Result<(u64, T), ManagerError> {
        let answer = self.reference.call("get", &Writer::default())?;
        let reader = &mut Reader(&answer);
        Ok((reader.number()?, self.reference.read(reader)?))
    }

    /// A copy of the value.
    pub fn get(&self) -> Result<T, ManagerError> {
        self.get_version().map(|(_, value)| value)
    }

    /// Puts another one in its place.
    pub fn set(&self, value: T) -> Result<(), ManagerError> {
        self.reference.tell("set", &self.reference.one(&value)?)
    }

    /// Puts another one in its place; returns the old one.
    pub fn replace(&self, value: T) -> Result<T, ManagerError> {
        self.reference.ask("replace", &self.reference.one(&value)?)
    }

    /// Changes the value, in one step as others see it; returns what `change` does.
    ///
    /// The function is called in this process, and again with the newer value if another process set one meanwhile.
    pub fn update<R>(&self, mut change: impl FnMut(&mut T) -> R) -> Result<R, ManagerError> {
        loop {
            let (version, mut value) = self.get_version()?;
            let result = change(&mut value);
            let mut arguments = Writer::default();
            arguments.number(version);
            self.reference.write(&mut arguments, &value)?;
            if self.reference.ask_flag("set_if", &arguments)? {
                return Ok(result);
            }
        }
    }
}
