//! Types of the program's own in a manager: what stands behind `#[procession::managed]`.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use procession_core::manager::{Caller, Failure, Object, protocol::Request};

use super::{
    Manager, ManagerError,
    error::PANIC,
    peer::Peer,
    reference::{decode, encode, proxy},
    registry::Home,
    wire::{Reader, Writer},
};
use crate::{Message, panic};

/// A type whose objects can be in a manager. Implemented by [`#[procession::managed]`](crate::managed) on an `impl` block.
pub trait Managed: Send + Sync + Sized + 'static {
    /// What it is called between clients and servers.
    const NAME: &'static str;

    /// Its proxies.
    type Proxy: From<ManagedProxy<Self>>;

    /// What its function `new` takes, as a tuple; a type that has no value if there is no such function.
    type New;

    /// Calls the function of this name that makes an object. In the server.
    #[doc(hidden)]
    fn __construct(constructor: &str, arguments: Arguments<'_>) -> Result<Self, Failure>;

    /// Calls the method of this name. In the server.
    #[doc(hidden)]
    fn __call(object: &RwLock<Self>, method: &str, arguments: Arguments<'_>) -> Result<Vec<u8>, Failure>;
}

/// There is no function `new`.
#[doc(hidden)]
#[derive(Debug)]
pub enum Unexposed {}

/// The arguments of a call, in the server.
#[doc(hidden)]
pub struct Arguments<'a> {
    bytes: Reader<'a>,
    peer: &'a Arc<Peer>,
    caller: &'a Caller<'a>,
}

impl fmt::Debug for Arguments<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arguments").finish_non_exhaustive()
    }
}

#[expect(clippy::missing_errors_doc, reason = "called by what the attribute generates")]
impl Arguments<'_> {
    fn read<A: Message>(mut self) -> Result<A, Failure> {
        let value = self.bytes.value()?;
        // The proxies among them are this process's now: each has a reference.
        let client = &self.peer.client;
        for (before, object) in value.objects().enumerate() {
            if let Err(error) = client.ask(&Request::Retain(object), &mut procession_core::sync::Wait::forever()) {
                // Nobody reads the arguments.
                value.objects().take(before).for_each(|object| client.release(object));
                return Err(Failure::BadArguments(error.to_string()));
            }
        }
        decode(self.peer, &value).map_err(|error| Failure::BadArguments(error.to_string()))
    }

    /// Makes an object.
    pub fn construct<A: Message, T>(self, construct: impl FnOnce(A) -> T) -> Result<T, Failure> {
        let arguments = self.read()?;
        panic::catch(|| construct(arguments)).map_err(|panic| raised(&panic))
    }

    /// Calls a method that only looks; others may look at the same time.
    pub fn look<T, A: Message, R: Message>(
        self,
        object: &RwLock<T>,
        method: impl FnOnce(&T, A) -> R,
    ) -> Result<Vec<u8>, Failure> {
        self.call(|arguments| method(&object.read().unwrap_or_else(PoisonError::into_inner), arguments))
    }

    /// Calls a method that changes the object.
    pub fn change<T, A: Message, R: Message>(
        self,
        object: &RwLock<T>,
        method: impl FnOnce(&mut T, A) -> R,
    ) -> Result<Vec<u8>, Failure> {
        self.call(|arguments| method(&mut object.write().unwrap_or_else(PoisonError::into_inner), arguments))
    }

    fn call<A: Message, R: Message>(self, method: impl FnOnce(A) -> R) -> Result<Vec<u8>, Failure> {
        let (peer, caller) = (self.peer, self.caller);
        let arguments = self.read()?;
        let result = panic::catch(|| method(arguments)).map_err(|panic| raised(&panic))?;
        let mut reply = Writer::default();
        let encoded = encode(peer.client.server(), &result, &mut reply);
        encoded.map_err(|error| Failure::Failed(format!("the result can't be sent: {error}")))?;
        // The proxies in it become the client's before they go here.
        for object in Reader(&reply.0).value()?.objects() {
            caller.grant(&caller.hold(object)?);
        }
        Ok(reply.0)
    }
}

fn raised(panic: &crate::Panic) -> Failure {
    match postcard::to_extend(panic, vec![PANIC]) {
        Ok(bytes) => Failure::Raised(bytes),
        Err(error) => Failure::Failed(error.to_string()),
    }
}

/// No function of the name makes an object.
#[doc(hidden)]
pub fn construct_unknown<T: Managed>(constructor: &str) -> Failure {
    Failure::BadArguments(format!("{} has no function {constructor} that makes one", T::NAME))
}

/// The server's side of an object.
pub(super) struct Shared<T> {
    home: Home,
    object: RwLock<T>,
}

/// The peer that the server's own process is.
fn peer(home: &Home) -> Result<&Arc<Peer>, Failure> {
    home.get().ok_or_else(|| Failure::Failed("the server does not know its address".into()))
}

impl<T: Managed> Shared<T> {
    pub(super) fn new(home: &Home, arguments: &[u8], caller: &Caller<'_>) -> Result<Self, Failure> {
        let mut bytes = Reader(arguments);
        let constructor = std::str::from_utf8(bytes.bytes()?).map_err(|_| Failure::BadArguments("no name".into()))?;
        let object = T::__construct(constructor, Arguments { bytes, peer: peer(home)?, caller })?;
        Ok(Self { home: Arc::clone(home), object: RwLock::new(object) })
    }
}

impl<T: Managed> Object for Shared<T> {
    fn type_name(&self) -> &'static str {
        T::NAME
    }

    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        let arguments = Arguments { bytes: Reader(arguments), peer: peer(&self.home)?, caller };
        T::__call(&self.object, method, arguments)
    }
}

proxy! {
    /// A proxy of an object of one of the program's own types. The attribute [`managed`](crate::managed) makes one with the
    /// methods of the type, which stands on this one.
    ManagedProxy<T>
}

impl<T: Managed> ManagedProxy<T> {
    /// Calls a method by its name, with its arguments as a tuple. The methods of the typed proxy do this.
    ///
    /// # Errors
    ///
    /// [`ManagerError::NoSuchMethod`] if the type has none of the name, or does not expose it;
    /// [`ManagerError::BadArguments`]; [`ManagerError::Panicked`]; and those of every call.
    pub fn call<R: Message>(&self, method: &str, arguments: impl Message) -> Result<R, ManagerError> {
        self.reference.ask(method, &self.reference.one(&arguments)?)
    }
}

/// Makes an object with one of the type's functions.
#[doc(hidden)]
pub fn create<T: Managed>(
    manager: &Manager,
    constructor: &str,
    arguments: impl Message,
) -> Result<T::Proxy, ManagerError> {
    let mut writer = Writer::default();
    writer.bytes(constructor.as_bytes());
    encode(manager.server(), &arguments, &mut writer)?;
    Ok(ManagedProxy::new(manager.make(T::NAME, &writer)?).into())
}

impl Manager {
    /// Makes an object of one of the program's own types with its function `new`, whose arguments are given as a tuple. The
    /// typed proxy has functions for this and for every other way to make one.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// pub struct Greeter(String);
    ///
    /// #[procession::managed]
    /// impl Greeter {
    ///     pub fn new(greeting: String) -> Self {
    ///         Self(greeting)
    ///     }
    ///
    ///     pub fn greet(&self, name: String) -> String {
    ///         format!("{}, {name}", self.0)
    ///     }
    /// }
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::builder().register::<Greeter>().start()?;
    ///     let greeter = manager.create::<Greeter>(("Hello".into(),))?;
    ///     assert_eq!(greeter.greet("Ada".into())?, "Hello, Ada");
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ManagerError::NoSuchType`] if the type is not registered; [`ManagerError::Panicked`] if the function panicked; and
    /// those of every call.
    pub fn create<T: Managed>(&self, arguments: T::New) -> Result<T::Proxy, ManagerError>
    where
        T::New: Message,
    {
        create::<T>(self, "new", arguments)
    }
}
