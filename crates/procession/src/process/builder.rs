//! Starting a process with a function.
#![allow(unsafe_code)]

use std::{ffi::OsStr, path::PathBuf};

use super::{Child, Resource, Settings, Stdio, children};
use crate::{
    Function, Message, StartError, StartMethod,
    function::conjure,
    handover::Reach,
    message::{self, Encoded},
    panic,
    start::{Launch, Started, launch, start_method},
};

/// Where processes are started from: see [`Process::spawn`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Process;

impl Process {
    /// Starts a process that calls a function with these arguments, which are a tuple. What the function returns is to be had from the
    /// [`Child`].
    ///
    /// The function is any `fn`, or a closure that captures nothing: see [`Function`]. It runs in a process of its own that
    /// shares nothing with this one but what it is given: queues, locks, shared values, connections and files can be
    /// among the arguments.
    ///
    /// The child's standard input is `/dev/null`; output and errors go where those of this process go. At its normal end,
    /// this process waits for the child. For other ways see [`builder`](Self::builder).
    ///
    /// # Errors
    ///
    /// [`StartError`], most of all if [`init`](crate::init()) was not called. What goes wrong in the child is told by
    /// [`Child::join`].
    ///
    /// # Examples
    ///
    /// ```
    /// use procession::Process;
    ///
    /// fn greet(name: String) -> String {
    ///     format!("hello {name}, from process {}", std::process::id())
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let child = Process::spawn(greet, ("world".to_string(),))?;
    /// println!("{}", child.join()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn<F, Args>(function: F, args: Args) -> Result<Child<F::Output>, StartError>
    where
        F: Function<Args, Output: Message>,
        Args: Message,
    {
        Self::builder().spawn(function, args)
    }

    /// Sets up a process before it is started.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

/// Sets up processes and starts them. Each that it starts is set up alike.
///
/// ```
/// use std::io::Read;
/// use procession::{Process, Stdio};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// procession::init();
/// let mut child = Process::builder()
///     .name("speaker")
///     .env("GREETING", "hello")
///     .stdout(Stdio::piped())
///     .spawn(|| println!("{}", std::env::var("GREETING").unwrap()), ())?;
/// let mut text = String::new();
/// child.take_stdout().unwrap().read_to_string(&mut text)?;
/// assert_eq!(text, "hello\n");
/// child.join()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use = "it starts a process only when told so"]
pub struct Builder {
    pub(super) settings: Settings,
    method: Option<StartMethod>,
}

impl Builder {
    /// Gives it a name, for [`current_process`](super::current_process) and [`Child::name`]. The system's tools show the
    /// first 15 bytes of it. Without one it is called `Process-1`, and so on.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// Whether it ends with this process. A daemonic process is killed when this process ends, however that happens, and
    /// can have daemonic children only; the workers of a pool can have any, which end with them. This process waits at its normal end for the children that are not.
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.settings.daemon = daemon;
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.settings.environment.set(name.as_ref(), Some(value.as_ref()));
        self
    }

    /// Removes a variable from its environment.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.settings.environment.set(name.as_ref(), None);
        self
    }

    /// Has it begin with an empty environment, but for what is set after this.
    pub fn env_clear(mut self) -> Self {
        self.settings.environment.cleared = true;
        self.settings.environment.changes.clear();
        self
    }

    /// Has it run in another directory.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.settings.directory = Some(directory.into());
        self
    }

    /// Where its standard input comes from; from `/dev/null` unless this is called.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.settings.stdio[0] = Some(stdin.into());
        self
    }

    /// Where its standard output goes to; to where this process's goes unless this is called.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.settings.stdio[1] = Some(stdout.into());
        self
    }

    /// Where its standard error output goes to; to where this process's goes unless this is called.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.settings.stdio[2] = Some(stderr.into());
        self
    }

    /// Limits its use of something. It can't set a higher limit for itself, and has none that is higher than this process may
    /// set.
    ///
    /// ```
    /// use std::fs::File;
    /// use procession::{Process, process::Resource};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let child = Process::builder().limit(Resource::OpenFiles, 20).spawn(
    ///     || (0..20).map(|_| File::open("/dev/null")).collect::<Result<Vec<_>, _>>().is_err(),
    ///     (),
    /// )?;
    /// assert!(child.join()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn limit(mut self, resource: Resource, most: u64) -> Self {
        self.settings.limits.push((resource, most));
        self
    }

    /// How it is started, if not as [`start_method`] says.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.method = Some(method);
        self
    }

    /// Starts a process, as [`Process::spawn`] does.
    ///
    /// # Errors
    ///
    /// As there. Limits can't be looked at beforehand: if one can't be set, [`Child::join`] tells.
    pub fn spawn<F, Args>(&self, _function: F, args: Args) -> Result<Child<F::Output>, StartError>
    where
        F: Function<Args, Output: Message>,
        Args: Message,
    {
        let mut room = Vec::new();
        let Encoded { bytes, descriptors } = message::encode(&args, &mut room, Reach::Related)?;
        children::sweep();
        let launched = launch(Launch {
            entry: call::<F, Args>,
            payload: bytes,
            descriptors,
            settings: &self.settings,
            method: self.method.unwrap_or_else(start_method),
        })?;
        Ok(Child::adopted(launched, self.settings.daemon))
    }
}

/// The entry of a process that calls `F`.
fn call<F, Args>(started: Started) -> i32
where
    F: Function<Args, Output: Message>,
    Args: Message,
{
    let Started { payload, descriptors, back } = started;
    // What deserializes the arguments is the program's code, too, and may panic.
    let decoded = panic::catch(|| message::decode::<Args>(&*payload, descriptors, Reach::Related));
    drop(payload);
    match decoded {
        Ok(Ok(args)) => {
            // SAFETY: the starter had one.
            let function = unsafe { conjure::<F>() };
            back.conclude(panic::catch(|| function.call(args)))
        }
        Ok(Err(error)) => back.refuse(&format!("its arguments can't be read: {error}")),
        Err(panic) => back.conclude::<F::Output>(Err(panic)),
    }
}
