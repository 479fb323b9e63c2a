//! What is measured, and who takes part.

use std::time::Duration;

use ::procession::{Buffer, Connection};

use crate::{
    Outcome,
    channel::{LARGE, round_trip, streaming},
    entrants::{
        command, crossmist,
        iceoryx::{self, Events, Polling},
        ipc_channel,
        packets::Packets,
        procession, procspawn,
        sockets::{Local, Pair, Postcard, Raw},
    },
    many::many,
    peer::Orders,
};

/// One way to do the work of a workload.
pub struct Entrant {
    pub name: &'static str,
    /// Does the work so many times, and says how long that took.
    pub measure: fn(u64) -> Outcome<Duration>,
    /// What the other process does, if it is started by [`crate::peer::Peer`].
    pub peer: fn(Orders) -> Outcome<()>,
}

impl Entrant {
    /// One that starts what it needs by its own means.
    pub fn alone(name: &'static str, measure: fn(u64) -> Outcome<Duration>) -> Self {
        Self { name, measure, peer: |_| Err("it has no peer".into()) }
    }
}

/// What the figures are given in.
#[derive(Clone, Copy)]
pub enum Unit {
    /// Messages a second.
    PerSecond,
    /// Gigabytes a second, each time so many bytes.
    Gigabytes(usize),
    Microseconds,
    Milliseconds,
}

/// What the first entrant is to reach.
#[derive(Clone, Copy)]
pub enum Target {
    /// So many times as fast as that entrant.
    Times(f64, &'static str),
    /// So much, in the unit of the workload.
    AtLeast(f64),
}

pub struct Workload {
    pub name: &'static str,
    pub title: &'static str,
    pub unit: Unit,
    pub count: u64,
    pub quick: u64,
    /// procession first.
    pub entrants: Vec<Entrant>,
    pub targets: &'static [Target],
}

impl Workload {
    pub fn entrant(&self, name: &str) -> Outcome<&Entrant> {
        let found = self.entrants.iter().find(|entrant| entrant.name == name);
        found.ok_or_else(|| format!("{name} does not take part in {}", self.name).into())
    }
}

pub fn find(name: &str) -> Outcome<Workload> {
    all().into_iter().find(|workload| workload.name == name).ok_or_else(|| format!("no workload {name}").into())
}

pub fn all() -> Vec<Workload> {
    vec![
        Workload {
            name: "u64",
            title: "u64 from one process to another",
            unit: Unit::PerSecond,
            count: 2_000_000,
            quick: 100_000,
            entrants: vec![
                Entrant::alone("procession Queue<u64>", procession::streaming::<procession::Queues<u64>, u64>),
                streaming::<ipc_channel::Typed<u64>, u64>("ipc-channel"),
                streaming::<iceoryx::Ports<u64, Polling>, u64>("iceoryx2, busy polling"),
                streaming::<iceoryx::Ports<u64, Events>, u64>("iceoryx2, events"),
                crossmist::u64(),
                streaming::<Postcard<Local>, u64>("interprocess, postcard"),
                streaming::<Postcard<Pair>, u64>("Unix socket, postcard"),
            ],
            targets: &[Target::Times(10.0, "ipc-channel"), Target::AtLeast(5e6)],
        },
        Workload {
            name: "many",
            title: "u64 from four processes to four others",
            unit: Unit::PerSecond,
            count: 400_000,
            quick: 100_000,
            entrants: vec![
                Entrant::alone("procession Queue<u64>", procession::many),
                many::<Packets>("Unix packet socket, postcard"),
            ],
            targets: &[],
        },
        Workload {
            name: "large",
            title: "Vec<u8> of 1 MiB from one process to another",
            unit: Unit::Gigabytes(LARGE),
            count: 1000,
            quick: 100,
            entrants: vec![
                Entrant::alone(
                    "procession Queue<Vec<u8>>",
                    procession::streaming::<procession::Queues<Vec<u8>>, Vec<u8>>,
                ),
                Entrant::alone(
                    "procession Queue<Buffer<u8>>",
                    procession::streaming::<procession::Queues<Buffer<u8>>, Buffer<u8>>,
                ),
                streaming::<ipc_channel::Typed<Vec<u8>>, Vec<u8>>("ipc-channel"),
                streaming::<ipc_channel::Bytes, Vec<u8>>("ipc-channel bytes_channel"),
                streaming::<iceoryx::Ports<[u8], Polling>, Vec<u8>>("iceoryx2, busy polling"),
                crossmist::large(),
                streaming::<Raw<Local>, Vec<u8>>("interprocess"),
                streaming::<Raw<Pair>, Vec<u8>>("Unix socket"),
            ],
            targets: &[Target::Times(3.0, "ipc-channel bytes_channel"), Target::AtLeast(5.0)],
        },
        Workload {
            name: "round-trip",
            title: "round trip of a u64, one at a time",
            unit: Unit::Microseconds,
            count: 50_000,
            quick: 5_000,
            entrants: vec![
                Entrant::alone("procession, two Queue<u64>", procession::round_trip::<procession::Queues<u64>, u64>),
                Entrant::alone("procession pipe()", procession::round_trip::<Connection<u64, u64>, u64>),
                round_trip::<ipc_channel::Typed<u64>, u64>("ipc-channel"),
                round_trip::<iceoryx::Ports<u64, Polling>, u64>("iceoryx2, busy polling"),
                round_trip::<iceoryx::Ports<u64, Events>, u64>("iceoryx2, events"),
                crossmist::round_trip(),
                round_trip::<Postcard<Local>, u64>("interprocess, postcard"),
                round_trip::<Postcard<Pair>, u64>("Unix socket, postcard"),
            ],
            targets: &[Target::Times(1.0, "ipc-channel")],
        },
        Workload {
            name: "call",
            title: "calls of a pool, one after another",
            unit: Unit::Microseconds,
            count: 10_000,
            quick: 1_000,
            entrants: vec![
                Entrant::alone("procession", procession::calls),
                Entrant::alone("procspawn", procspawn::calls),
            ],
            targets: &[Target::Times(3.0, "procspawn")],
        },
        Workload {
            name: "pipelined",
            title: "10,000 calls of a pool at once",
            unit: Unit::Microseconds,
            count: 10_000,
            quick: 10_000,
            entrants: vec![
                Entrant::alone("procession", procession::pipelined),
                Entrant::alone("procspawn", procspawn::pipelined),
            ],
            targets: &[Target::Times(20.0, "procspawn")],
        },
        Workload {
            name: "spawn",
            title: "start of a process for a function, and its end",
            unit: Unit::Milliseconds,
            count: 200,
            quick: 50,
            entrants: vec![
                Entrant::alone("procession, spawn", procession::spawn),
                Entrant::alone("procspawn", procspawn::start),
                crossmist::start(),
                Entrant::alone("Command of `true`", command::start),
            ],
            targets: &[Target::Times(1.0, "procspawn")],
        },
        Workload {
            name: "forkserver",
            title: "start of a process for a function, and its end, with a fork server",
            unit: Unit::Milliseconds,
            count: 400,
            quick: 100,
            entrants: vec![
                Entrant::alone("procession, forkserver", procession::forkserver),
                Entrant::alone("procspawn", procspawn::start),
            ],
            targets: &[Target::Times(3.0, "procspawn")],
        },
    ]
}
