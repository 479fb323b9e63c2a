//! Ways for messages between processes: rings in shared memory and the queues on them, and connections over descriptors.
//!
//! PROTOCOL.md beside this file tells the scenarios that the comments name; CONNECTION.md those of connections.

mod address;
pub mod apart;
mod auth;
mod connection;
mod courier;
mod descriptor;
mod early;
mod frame;
mod holders;
mod layout;
mod line;
mod listener;
mod message;
mod patience;
mod pending;
mod pipe;
mod pollable;
mod published;
mod put;
mod queue;
mod ring;
mod room;
mod sleepers;
mod spill;
mod take;
mod wait;

pub use address::{Address, BadAddress};
pub use auth::{
    AuthenticationError, Digest, Handshake, HandshakeError, LONGEST_MESSAGE, Step, answer_challenge, create_response,
    deliver_challenge, verify_response,
};
pub use connection::{Connection, ConnectionError, Incoming, Outgoing, Partial};
pub use holders::Lost;
pub use line::{AREA as LINE_AREA, Asking, Attendance, Attended, Lines, Pace, Pending, Serving};
pub use listener::{AcceptError, Listener, ListenerOptions, connect, connect_authenticated, peer_address};
pub use message::Message;
pub use pipe::{one_way_pipe, pipe};
pub use put::{Along, PutError};
pub use queue::{Queue, TooManyDone, hand_on};
pub use ring::{Delivered, Ring};
pub use take::TakeError;
pub use wait::wait;
