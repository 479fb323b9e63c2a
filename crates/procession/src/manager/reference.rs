//! The base of all proxies: a reference to an object of a server, which can be sent anywhere. See the core's
//! `manager/PROTOCOL.md`, *References*.

use std::{
    cell::RefCell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use procession_core::{
    manager::{
        Answer,
        protocol::{ObjectId, Request, ServerId},
    },
    process,
    sync::Wait,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::{
    ManagerError,
    peer::Peer,
    wire::{FOREVER, Reader, Value, Writer},
};
use crate::{
    Address, Message,
    handover::{self, DescriptorError, Reach},
    message,
};

/// How long a proxy that arrives waits for the manager: who gets a message must not be kept by a server that is stopped.
const ARRIVAL: Duration = Duration::from_secs(1);

/// A reference to an object. Cloning it costs nothing; the server counts one for each process.
#[derive(Clone)]
pub(super) struct Reference(Arc<Inner>);

struct Inner {
    peer: Arc<Peer>,
    object: ObjectId,
    /// The process generation in which the server counts a reference for this, plus one; zero if it doesn't.
    held: AtomicU64,
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the manager at {}", self.0.object, self.0.peer.address)
    }
}

impl PartialEq for Reference {
    fn eq(&self, other: &Self) -> bool {
        (self.server(), self.0.object) == (other.server(), other.0.object)
    }
}

impl Eq for Reference {}

fn this_generation() -> u64 {
    u64::from(process::generation()) + 1
}

impl Reference {
    /// For an object that this process has a reference to, or doesn't have one as yet.
    fn new(peer: Arc<Peer>, object: ObjectId, held: bool) -> Self {
        let held = AtomicU64::new(if held { this_generation() } else { 0 });
        Self(Arc::new(Inner { peer, object, held }))
    }

    /// Makes an object.
    pub(super) fn create(peer: &Arc<Peer>, name: &str, arguments: &Writer) -> Result<Self, ManagerError> {
        let object = peer.client.create(name, &arguments.0, &mut Wait::forever())?;
        Ok(Self::new(Arc::clone(peer), object, true))
    }

    pub(super) fn server(&self) -> ServerId {
        self.0.peer.client.server()
    }

    /// Calls a method. Blocks until it returns.
    pub(super) fn call(&self, method: &str, arguments: &Writer) -> Result<Answer, ManagerError> {
        self.hold()?;
        Ok(self.0.peer.client.call(self.0.object, method, &arguments.0, &mut Wait::forever())?)
    }

    /// Calls a method that returns nothing.
    pub(super) fn tell(&self, method: &str, arguments: &Writer) -> Result<(), ManagerError> {
        let answer = self.call(method, arguments)?;
        Ok(Reader(&answer).end()?)
    }

    /// Calls a method that returns a number.
    pub(super) fn ask_number(&self, method: &str, arguments: &Writer) -> Result<u64, ManagerError> {
        let answer = self.call(method, arguments)?;
        Ok(Reader(&answer).number()?)
    }

    /// Calls a method that returns yes or no.
    pub(super) fn ask_flag(&self, method: &str, arguments: &Writer) -> Result<bool, ManagerError> {
        let answer = self.call(method, arguments)?;
        Ok(Reader(&answer).flag()?)
    }

    /// Calls a method that returns a value.
    pub(super) fn ask<T: Message>(&self, method: &str, arguments: &Writer) -> Result<T, ManagerError> {
        let answer = self.call(method, arguments)?;
        self.read(&mut Reader(&answer))
    }

    /// Calls a method that may return a value.
    pub(super) fn ask_maybe<T: Message>(&self, method: &str, arguments: &Writer) -> Result<Option<T>, ManagerError> {
        let answer = self.call(method, arguments)?;
        let reader = &mut Reader(&answer);
        if reader.flag()? { self.read(reader).map(Some) } else { Ok(None) }
    }

    /// Calls a method that returns any number of values.
    pub(super) fn ask_all<T: Message>(&self, method: &str, arguments: &Writer) -> Result<Vec<T>, ManagerError> {
        let answer = self.call(method, arguments)?;
        let reader = &mut Reader(&answer);
        let count = reader.index()?;
        self.read_all(reader, count)
    }

    /// Reads a value of a reply.
    pub(super) fn read<T: Message>(&self, reader: &mut Reader<'_>) -> Result<T, ManagerError> {
        let value = reader.value()?;
        decode(&self.0.peer, &value)
    }

    /// Reads so many values. If one can't be read, the references within the others are given back all the same.
    pub(super) fn read_all<T: Message>(&self, reader: &mut Reader<'_>, count: usize) -> Result<Vec<T>, ManagerError> {
        let mut all = Vec::new();
        let mut failed = None;
        for _ in 0..count {
            match self.read(reader) {
                Ok(value) => all.push(value),
                // What follows can't be found.
                Err(ManagerError::Malformed) => return Err(ManagerError::Malformed),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(all), Err)
    }

    /// Gives the references back that came with a value which nobody reads.
    pub(super) fn forget(&self, value: &Value<'_>) {
        value.objects().for_each(|object| self.0.peer.client.release(object));
    }

    /// Writes a value into arguments.
    pub(super) fn write<T: Message>(&self, writer: &mut Writer, value: &T) -> Result<(), ManagerError> {
        encode(self.server(), value, writer)
    }

    /// Arguments of one value.
    pub(super) fn one<T: Message>(&self, value: &T) -> Result<Writer, ManagerError> {
        let mut writer = Writer::default();
        self.write(&mut writer, value)?;
        Ok(writer)
    }

    /// Gets a reference for this process, unless it has one: it was forked, or there was none to be had when the proxy
    /// arrived.
    fn hold(&self) -> Result<(), ManagerError> {
        let Inner { peer, object, held } = &*self.0;
        let before = held.load(Ordering::Acquire);
        let now = this_generation();
        if before == now {
            return Ok(());
        }
        peer.client.ask(&Request::Retain(*object), &mut Wait::forever())?;
        if held.compare_exchange(before, now, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // Another thread was faster.
            peer.client.release(*object);
        }
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if *self.held.get_mut() == this_generation() {
            self.peer.client.release(self.object);
        }
    }
}

/// A time to wait, as it is sent.
pub(super) fn limit(timeout: Option<Duration>) -> u64 {
    timeout.map_or(FOREVER, |timeout| u64::try_from(timeout.as_nanos()).unwrap_or(FOREVER))
}

/// What proxies that are being encoded or decoded are part of: a call of a server.
enum Call {
    /// The objects that the value has proxies of.
    Arguments { server: ServerId, objects: Vec<ObjectId> },
    /// The references that came with a value and that no proxy has as yet.
    Result { peer: Arc<Peer>, granted: Vec<ObjectId> },
}

thread_local! {
    static CALL: RefCell<Option<Call>> = const { RefCell::new(None) };
}

/// Runs `act` as part of a call; what became of `call`.
fn within<R>(call: Call, act: impl FnOnce() -> R) -> (R, Option<Call>) {
    /// Puts the outer one back, also when `act` panics.
    struct Outer(Option<Call>);
    impl Drop for Outer {
        fn drop(&mut self) {
            CALL.set(self.0.take());
        }
    }
    let outer = Outer(CALL.replace(Some(call)));
    let result = act();
    let call = CALL.take();
    drop(outer);
    (result, call)
}

/// Writes a value for the objects of a server.
pub(super) fn encode<T: Message>(server: ServerId, value: &T, writer: &mut Writer) -> Result<(), ManagerError> {
    let mut room = Vec::new();
    let call = Call::Arguments { server, objects: Vec::new() };
    // Wherever it comes to, no descriptor of this process does.
    let (encoded, call) = within(call, || message::encode(value, &mut room, Reach::Remote));
    let objects = match &call {
        Some(Call::Arguments { objects, .. }) => &objects[..],
        _ => &[],
    };
    writer.value(objects, encoded?.bytes);
    Ok(())
}

/// Reads a value that came from a server, with a reference to each object within.
pub(super) fn decode<T: Message>(peer: &Arc<Peer>, value: &Value<'_>) -> Result<T, ManagerError> {
    let granted: Vec<_> = value.objects().collect();
    let call = Call::Result { peer: Arc::clone(peer), granted };
    let (decoded, call) = within(call, || message::decode(value.bytes, Vec::new(), Reach::Remote));
    if let Some(Call::Result { granted, .. }) = call {
        for object in granted {
            peer.client.release(object);
        }
    }
    Ok(decoded?)
}

/// A proxy as bytes.
#[derive(Serialize, Deserialize)]
enum Sent {
    /// To or from the server that has the object.
    Within(ObjectId),
    /// To another process.
    Elsewhere {
        server: u128,
        /// As text.
        address: String,
        object: ObjectId,
        /// The number of the reference that is on its way; zero if there is none.
        loan: u64,
        /// Only to a process of the same user on this machine.
        key: Option<Vec<u8>>,
    },
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Inner { peer, object, .. } = &*self.0;
        let within = CALL.with_borrow_mut(|call| match call {
            Some(Call::Arguments { server, objects }) if *server == self.server() => {
                objects.push(*object);
                true
            }
            _ => false,
        });
        let failed =
            |error: ManagerError| ser::Error::custom(handover::report(DescriptorError::Proxy(error.to_string())));
        // A child that was forked has to have a reference before it can lend one.
        self.hold().map_err(failed)?;
        let sent = if within {
            Sent::Within(*object)
        } else {
            let loan = peer.client.lend(*object, &mut Wait::forever());
            Sent::Elsewhere {
                server: self.server().0,
                address: peer.address.to_string(),
                object: *object,
                loan: loan.map_err(|error| failed(error.into()))?,
                key: (handover::reach() == Some(Reach::Related)).then(|| peer.key.to_vec()),
            }
        };
        sent.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let failed = |text: String| de::Error::custom(handover::report(DescriptorError::Proxy(text)));
        match Sent::deserialize(deserializer)? {
            Sent::Within(object) => {
                let (peer, held) = CALL
                    .with_borrow_mut(|call| match call {
                        Some(Call::Result { peer, granted }) => {
                            let place = granted.iter().position(|granted| *granted == object);
                            let granted = place.map(|place| granted.swap_remove(place));
                            Some((Arc::clone(peer), granted.is_some()))
                        }
                        _ => None,
                    })
                    .ok_or_else(|| failed("a proxy that only its own manager can send".into()))?;
                Ok(Self::new(peer, object, held))
            }
            Sent::Elsewhere { server, address, object, loan, key } => {
                // Nobody else has a say in whom this process trusts.
                let key = key.filter(|_| handover::reach() == Some(Reach::Related));
                let address: Address = address.parse().map_err(|_| failed(format!("no address: {address:?}")))?;
                let peer = Peer::of(ServerId(server), &address, key.as_deref())
                    .ok_or_else(|| failed(ManagerError::NoAuthkey(address.to_string()).to_string()))?;
                // A process that is given a proxy has to come up even if the manager is gone or does not answer: the first
                // call gets a reference, or tells. (If the claim is done late, this process has one too many, until it ends.)
                let held = peer.client.claim(object, loan, &mut Wait::timeout(ARRIVAL)).is_ok();
                Ok(Self::new(peer, object, held))
            }
        }
    }
}

/// Defines a proxy: a [`Reference`] of a type of its own.
macro_rules! proxy {
    ($(#[$attribute:meta])* $name:ident $(<$($parameter:ident),+>)?) => {
        $(#[$attribute])*
        pub struct $name$(<$($parameter),+>)? {
            pub(super) reference: $crate::manager::reference::Reference,
            types: std::marker::PhantomData<fn() -> ($($($parameter,)+)?)>,
        }

        impl$(<$($parameter),+>)? $name$(<$($parameter),+>)? {
            pub(super) fn new(reference: $crate::manager::reference::Reference) -> Self {
                Self { reference, types: std::marker::PhantomData }
            }
        }

        impl$(<$($parameter),+>)? Clone for $name$(<$($parameter),+>)? {
            fn clone(&self) -> Self {
                Self::new(self.reference.clone())
            }
        }

        impl$(<$($parameter),+>)? std::fmt::Debug for $name$(<$($parameter),+>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.reference).finish()
            }
        }

        /// Proxies are equal if they stand for the same object.
        impl$(<$($parameter),+>)? PartialEq for $name$(<$($parameter),+>)? {
            fn eq(&self, other: &Self) -> bool {
                self.reference == other.reference
            }
        }

        impl$(<$($parameter),+>)? Eq for $name$(<$($parameter),+>)? {}

        impl$(<$($parameter),+>)? serde::Serialize for $name$(<$($parameter),+>)? {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.reference.serialize(serializer)
            }
        }

        impl<'de $($(, $parameter)+)?> serde::Deserialize<'de> for $name$(<$($parameter),+>)? {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                serde::Deserialize::deserialize(deserializer).map(Self::new)
            }
        }
    };
}
pub(super) use proxy;
