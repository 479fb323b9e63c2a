//! What a process is given at its start besides its function.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// How a process is set up, whatever it runs.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) name: Option<String>,
    pub(crate) daemon: bool,
    /// It is a worker, whose tasks may start what processes they like: these end with it.
    pub(crate) nests: bool,
    /// It is not one of the children that the program counts.
    pub(crate) helper: bool,
    pub(crate) environment: Environment,
    pub(crate) directory: Option<PathBuf>,
    /// Of stdin, stdout and stderr.
    pub(crate) stdio: [Option<Stdio>; 3],
    pub(crate) limits: Vec<(Resource, u64)>,
}

/// What the environment of a process is to differ in from that of whoever starts it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) cleared: bool,
    /// Names with new values, or without one: they are removed. Later ones count.
    pub(crate) changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Environment {
    pub(crate) fn is_inherited(&self) -> bool {
        !self.cleared && self.changes.is_empty()
    }

    pub(crate) fn set(&mut self, name: &OsStr, value: Option<&OsStr>) {
        self.changes.push((name.as_bytes().to_vec(), value.map(|value| value.as_bytes().to_vec())));
    }

    /// The whole environment, as `NAME=value`; `None` if it is this process's own.
    pub(crate) fn whole(&self) -> io::Result<Option<Vec<CString>>> {
        if self.is_inherited() {
            return Ok(None);
        }
        self.check()?;
        let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        if !self.cleared {
            all.extend(std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())));
        }
        for (name, value) in &self.changes {
            all.retain(|(known, _)| known != name);
            all.extend(value.iter().map(|value| (name.clone(), value.clone())));
        }
        let lines = all.into_iter().map(|(name, value)| CString::new([&name, &b"="[..], &value].concat()));
        Ok(Some(lines.collect::<Result<_, _>>()?))
    }

    /// For a process that changes its environment itself.
    pub(crate) fn checked(&self) -> io::Result<Self> {
        self.check()?;
        Ok(self.clone())
    }

    /// That names and values are such as an environment can have.
    fn check(&self) -> io::Result<()> {
        let wrong = |(name, value): &(Vec<u8>, Option<Vec<u8>>)| {
            name.is_empty()
                || name.contains(&b'=')
                || name.contains(&0)
                || value.as_ref().is_some_and(|v| v.contains(&0))
        };
        match self.changes.iter().find(|change| wrong(change)) {
            None => Ok(()),
            Some((name, _)) => {
                let text = format!("no environment can have a variable like {:?}", String::from_utf8_lossy(name));
                Err(io::Error::new(io::ErrorKind::InvalidInput, text))
            }
        }
    }
}

/// Where the standard input, output or error stream of a process leads to: see [`Builder`](super::Builder). A file, an end of a
/// pipe or any descriptor can be made into one.
///
/// ```
/// use std::io::{Read, Write};
/// use procession::{Process, Stdio};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # procession::init();
/// let (mut reader, writer) = std::io::pipe()?;
/// let shout = || print!("{}", std::io::read_to_string(std::io::stdin()).unwrap().to_uppercase());
/// let mut child = Process::builder().stdin(Stdio::piped()).stdout(writer).spawn(shout, ())?;
/// child.take_stdin().unwrap().write_all(b"hello")?;
/// child.join()?;
/// let mut text = String::new();
/// reader.read_to_string(&mut text)?;
/// assert_eq!(text, "HELLO");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Stdio(pub(crate) Way);

#[derive(Debug)]
pub(crate) enum Way {
    Inherit,
    Null,
    Piped,
    Given(OwnedFd),
}

impl Stdio {
    /// To where that of the starter leads.
    pub fn inherit() -> Self {
        Self(Way::Inherit)
    }

    /// To `/dev/null`.
    pub fn null() -> Self {
        Self(Way::Null)
    }

    /// To the starter, through a pipe: see [`Child::take_stdin`](super::Child::take_stdin) and its siblings.
    pub fn piped() -> Self {
        Self(Way::Piped)
    }
}

impl From<OwnedFd> for Stdio {
    fn from(fd: OwnedFd) -> Self {
        Self(Way::Given(fd))
    }
}

impl From<File> for Stdio {
    fn from(file: File) -> Self {
        OwnedFd::from(file).into()
    }
}

impl From<io::PipeReader> for Stdio {
    fn from(pipe: io::PipeReader) -> Self {
        OwnedFd::from(pipe).into()
    }
}

impl From<io::PipeWriter> for Stdio {
    fn from(pipe: io::PipeWriter) -> Self {
        OwnedFd::from(pipe).into()
    }
}

/// What the use of can be limited: see [`Builder::limit`](super::Builder::limit) and `setrlimit(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Resource {
    /// Bytes of address space: beyond it, allocations fail.
    AddressSpace,
    /// Seconds of processor time: beyond it, the process is killed.
    CpuTime,
    /// Bytes of a core file; zero for none.
    CoreFile,
    /// Bytes that a file can grow to.
    FileSize,
    /// Bytes that can be locked into memory.
    LockedMemory,
    /// Open descriptors: every number is below it.
    OpenFiles,
    /// Processes and threads of the user.
    Processes,
    /// Bytes of the stack that the kernel grows: that of the main thread.
    Stack,
}

impl Resource {
    pub(crate) fn known(self) -> rustix::process::Resource {
        use rustix::process::Resource as R;
        match self {
            Self::AddressSpace => R::As,
            Self::CpuTime => R::Cpu,
            Self::CoreFile => R::Core,
            Self::FileSize => R::Fsize,
            Self::LockedMemory => R::Memlock,
            Self::OpenFiles => R::Nofile,
            Self::Processes => R::Nproc,
            Self::Stack => R::Stack,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_changed_in_order() {
        let mut environment = Environment::default();
        assert_eq!(environment.whole().unwrap(), None);
        environment.cleared = true;
        environment.set("A".as_ref(), Some("1".as_ref()));
        environment.set("B".as_ref(), Some("2".as_ref()));
        environment.set("A".as_ref(), None);
        environment.set("B".as_ref(), Some("3".as_ref()));
        assert_eq!(environment.whole().unwrap().unwrap(), [CString::from(c"B=3")]);
    }

    #[test]
    fn what_no_environment_can_have_is_an_error() {
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
            let mut environment = Environment::default();
            environment.set(name.as_ref(), Some(value.as_ref()));
            assert_eq!(environment.whole().unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
