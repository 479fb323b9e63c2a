//! The list of points.

/// The name of each point, and the label of the test (`KillTest::new`) that has to kill there.
///
/// A new point needs a line here; without, and without a test that comes by it, the tests fail.
pub const POINTS: &[(&str, &str)] = &[
    // channel/put.rs, channel/published.rs
    ("ring: a part of a message about to be copied", "a producer of a ring"),
    ("ring: pages of the window secured, not noted", "a producer of a ring"),
    ("ring: messages in place, none published", "a producer of a ring"),
    ("ring: a word of the next state stored, not published", "a producer of a ring"),
    ("ring: messages published, nobody woken", "a producer of a ring"),
    ("ring: a message in place, its descriptors not sent", "a producer with descriptors"),
    ("ring: descriptors sent, their message not published", "a producer with descriptors"),
    ("ring: a message with descriptors published, nobody woken", "a producer with descriptors"),
    ("ring: a block knows its message, which is not published", "a sender of a block"),
    // memory/blocks
    ("block: to be filled, its position that of its former message", "a sender of a block"),
    ("block: about to get memory, which is noted already", "a sender of a block"),
    ("block: filled, its message not put", "a sender of a block"),
    ("block: claimed, its message still in the ring", "a receiver of a block"),
    ("block: let go, not free yet", "a receiver of a block"),
    ("block: its memory given back, not noted", "a receiver of a block"),
    ("block: of a dead process, about to be given back", "a sweeper of blocks"),
    // channel/spill.rs
    ("spill: a part of a message about to be written", "a producer of a ring"),
    ("spill: pages given back, not noted", "a consumer that gives memory back"),
    ("spill: empty and given back, its beginning not moved", "a producer that begins the spill anew"),
    // channel/take.rs
    ("ring: a message about to be read", "a consumer of a ring"),
    ("ring: messages read, not taken", "a consumer of a ring"),
    ("ring: messages taken, nobody told of the room", "a consumer of a ring"),
    ("ring: descriptors taken out after their message", "a consumer with descriptors"),
    // channel/sleepers.rs, channel/pollable.rs
    ("sleepers: counted, not asleep", "a consumer that waits"),
    ("queue: its descriptor about to change, the state unknown", "a queue that is polled"),
    ("queue: its descriptor changed, the state still unknown", "a queue that is polled"),
    // channel/holders.rs
    ("holders: an entry taken, the message not", "a consumer of a queue that is joined"),
    ("holders: a message counted as dealt with, still in hands", "a consumer of a queue that is joined"),
    // sync/
    ("lock: free, nobody woken", "a user of a lock"),
    ("semaphore: logged, no permit taken", "a user of a semaphore"),
    ("semaphore: a permit taken, nobody told", "a user of a semaphore"),
    ("semaphore: marked as contended, not asleep", "a waiter for a semaphore"),
    ("semaphore: a permit given back, nobody woken", "a user of a semaphore"),
    ("semaphore: a permit given back, still in the log", "a user of a semaphore"),
    ("condition: a place taken, the lock still held", "a waiter for a condition"),
    ("condition: the lock given up, not asleep", "a waiter for a condition"),
    ("condition: woken, without the lock", "a waiter for a condition"),
    ("condition: notified, nobody woken", "a notifier of a condition"),
    ("event: set, nobody woken", "a setter of an event"),
    ("event: marked as slept on, not asleep", "a waiter for an event"),
    ("barrier: passed, nobody woken", "a party of a barrier"),
    // channel/line.rs and its folder
    ("line: a piece of a request about to be written", "a client of a line"),
    ("line: a piece of a reply read, not noted", "a client of a line"),
    ("line: the client woke up", "a client of a line"),
    ("line: a piece of a reply about to be written", "a server of a line"),
    ("line: a request read and noted", "a server of a line"),
    ("line: the server woke up", "a server of a line"),
    ("line: the turn about to be given away", "a client of a line"),
    ("line: the turn given away, nobody woken", "a client of a line"),
    ("line: about to sleep, not looked again", "a client of a line"),
    // pool/control.rs
    ("pool: a task read, not claimed", "a worker"),
    ("pool: a former claimant's task struck out", "a worker"),
    ("pool: a task claimed, not named", "a worker"),
    ("pool: a task named, its place not stored", "a worker"),
    ("pool: a task in hand, still in the ring", "a worker"),
    ("pool: a result sent, its task still in hand", "a worker"),
    ("pool: a task done, not counted", "a worker"),
];
