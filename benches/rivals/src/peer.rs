//! The other process of a measurement: this program again, told what to do through a pipe.
#![allow(unsafe_code)]

use std::{
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use crate::Outcome;

/// A peer that was started.
pub struct Peer {
    child: Child,
    orders: Option<ChildStdin>,
    answers: ChildStdout,
}

impl Peer {
    /// Starts the peer of the entrant that is being measured in this process, with an argument and descriptors.
    pub fn start(argument: &str, descriptors: &[BorrowedFd<'_>]) -> Outcome<Self> {
        let measured: Vec<String> = std::env::args().skip(2).take(2).collect();
        let inherited: Vec<OwnedFd> = descriptors.iter().map(rustix::io::dup).collect::<Result<_, _>>()?;
        let numbers: Vec<String> = inherited.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let mut child = Command::new(std::env::current_exe()?)
            .arg("peer")
            .args(measured)
            .args([argument, &numbers.join(",")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().ok_or("no pipe")?;
        Ok(Self { child, orders, answers })
    }

    /// Has it do something so many times.
    pub fn order(&mut self, count: u64) -> Outcome<()> {
        Ok(self.orders.as_mut().ok_or("no pipe")?.write_all(&count.to_le_bytes())?)
    }

    /// Waits for what it has to say.
    pub fn answer(&mut self) -> Outcome<u64> {
        let mut word = [0; 8];
        self.answers.read_exact(&mut word)?;
        Ok(u64::from_le_bytes(word))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A peer's own side.
pub struct Orders {
    pub argument: String,
    descriptors: Vec<OwnedFd>,
}

impl Orders {
    pub fn new(argument: &str, descriptors: &str) -> Outcome<Self> {
        let mut owned = Vec::new();
        for number in descriptors.split(',').filter(|number| !number.is_empty()) {
            // SAFETY: the descriptor was inherited for this process to own.
            owned.push(unsafe { OwnedFd::from_raw_fd(number.parse()?) });
        }
        Ok(Self { argument: argument.to_owned(), descriptors: owned })
    }

    pub fn descriptors<const N: usize>(&mut self) -> Outcome<[OwnedFd; N]> {
        let count = self.descriptors.len();
        let descriptors = std::mem::take(&mut self.descriptors);
        descriptors.try_into().map_err(|_| format!("{count} descriptors instead of {N}").into())
    }

    /// The next order; none when the starter is gone.
    pub fn next(&mut self) -> Option<u64> {
        let mut word = [0; 8];
        std::io::stdin().read_exact(&mut word).ok()?;
        Some(u64::from_le_bytes(word))
    }

    pub fn answer(&mut self, word: u64) -> Outcome<()> {
        let mut out = std::io::stdout().as_fd().try_clone_to_owned().map(std::fs::File::from)?;
        Ok(out.write_all(&word.to_le_bytes())?)
    }
}
