//! The first line of `main`: what makes a started program a child.

use std::{
    ffi::{CString, OsStr, OsString},
    os::{
        fd::RawFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};

use crate::{bootstrap, published::Published};

/// The last argument of a child begins so; the number of a descriptor follows.
const ARGUMENT: &str = "--procession-child=";

/// Whether a child of this program would find its way.
static INITIALISED: AtomicBool = AtomicBool::new(false);

static EXECUTABLE: Published<Executable> = Published::new();

/// What is run as a child instead of this program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Executable {
    program: OsString,
    arguments: Vec<OsString>,
}

impl Executable {
    /// What was set; children are told, since in them `init` is as far as the program gets.
    pub(crate) fn of_this_process() -> Option<Self> {
        EXECUTABLE.get().cloned()
    }

    pub(crate) fn inherit(self) {
        EXECUTABLE.set(self);
    }
}

/// Makes this process a child, if it was started as one; to be called as the first line of `main`.
///
/// Children run this same program. In a child this function runs what the child was started for, and does not return.
/// In the process that the user started, it only takes note that it was called: without it no process can be started, which is
/// [`StartError::NotInitialised`](crate::StartError::NotInitialised).
///
/// What stands before it runs in each child, too. Threads that were started there are a burden to the child, and what is
/// printed there is printed once more by each of them.
///
/// `#[procession::main]` on `main` does the same. For tests there is [`test_support!`](crate::test_support), for
/// libraries that are loaded by other programs [`set_executable`].
///
/// ```
/// use procession::Process;
///
/// fn main() {
///     procession::init();
///
///     let child = Process::spawn(|a: u32, b: u32| a + b, (1, 2)).unwrap();
///     assert_eq!(child.join().unwrap(), 3);
/// }
/// ```
pub fn init() {
    if let Some(socket) = invited() {
        bootstrap::run_spawned(socket);
    }
    INITIALISED.store(true, Ordering::Relaxed);
}

/// Sets the program that is to be run as a child, with these arguments and one more, which [`init`] looks at.
///
/// By default that is the program that runs now. This is for libraries that are loaded by a program which knows nothing of
/// processes (an extension module of an interpreter, a plug-in): its `main` can't call `init`. The library exports a function
/// that does, and names a program that loads the library and calls that function before anything else. It stands in for the call
/// of `init` in this process.
///
/// Functions are looked for in the library, so it must be the same build of it, usually the very file. `program` is a path; `PATH` is not searched.
///
/// ```
/// use std::ffi::{CStr, OsStr, c_char};
/// use std::os::unix::ffi::OsStrExt;
///
/// /// What a program calls first after it has loaded this library from `path`. The children are the same program, with the
/// /// path as its argument.
/// ///
/// /// # Safety
/// ///
/// /// `path` is a string that ends with a null byte.
/// #[unsafe(no_mangle)]
/// pub unsafe extern "C" fn my_library_init(path: *const c_char) {
///     // Does not return in a child.
///     procession::init();
///     // SAFETY: the caller's promise.
///     let path = OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes());
///     procession::set_executable("/proc/self/exe", [path]);
/// }
/// ```
///
/// In a module of Python, where the program is the interpreter, that is
///
/// ```
/// # let interpreter = "/usr/bin/python3";
/// procession::set_executable(interpreter, ["-c", "import my_module; my_module._init()"]);
/// ```
pub fn set_executable(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = impl Into<OsString>>) {
    EXECUTABLE
        .set(Executable { program: program.into().into(), arguments: arguments.into_iter().map(Into::into).collect() });
    // A child that starts children before it has become one would do so for ever.
    if invited().is_none() {
        INITIALISED.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn is_initialised() -> bool {
    INITIALISED.load(Ordering::Relaxed)
}

/// For a process that becomes a child: its own children find their way as well.
pub(crate) fn note_initialised() {
    INITIALISED.store(true, Ordering::Relaxed);
}

/// What is to be executed as a child that has the descriptor.
pub(crate) fn executable(socket: RawFd) -> (PathBuf, Vec<CString>) {
    // Arguments have come from a system call, in which a null byte would have been their end.
    let plain = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
    let last = plain(format!("{ARGUMENT}{socket}").as_bytes());
    if let Some(Executable { program, arguments }) = EXECUTABLE.get() {
        let words = arguments.iter().map(|word| plain(word.as_bytes()));
        return (program.into(), [plain(program.as_bytes())].into_iter().chain(words).chain([last]).collect());
    }
    let name = std::env::args_os().next().map_or_else(|| c"procession".into(), |name| plain(name.as_bytes()));
    // The very file that runs, even if another one has taken its place meanwhile.
    ("/proc/self/exe".into(), vec![name, last])
}

/// The descriptor that this process was invited with, as text, if it was started as a child.
fn invited() -> Option<OsString> {
    invitation_in(&last_argument()?)
}

pub(crate) fn last_argument() -> Option<OsString> {
    std::env::args_os().next_back()
}

/// What the argument says, if it is that of a child.
pub(crate) fn invitation_in(argument: &OsStr) -> Option<OsString> {
    argument.as_bytes().strip_prefix(ARGUMENT.as_bytes()).map(|number| OsString::from_vec(number.to_vec()))
}
