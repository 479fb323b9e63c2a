//! The engine of a pool: tasks to worker processes, and what comes of them.
//!
//! It deals in task ids and bytes. A face supplies two things: how to start a worker process, and how to run the bytes of a task.
//!
//! * [`Engine`]: the parent's end
//! * [`Worker`]: the worker's end
//! * [`Job`]: the tasks of one call
//!
//! How the processes work together, and what happens when one dies, is in `PROTOCOL.md` beside this file.

mod alarm;
mod attend;
mod control;
mod dispatch;
mod drawer;
mod engine;
mod exits;
mod gate;
mod job;
mod message;
mod orders;
mod pace;
mod reader;
mod retry;
mod supervisor;
mod terms;
mod worker;

pub use engine::{Engine, Event, Statistics};
pub use job::{Job, Next, Order, Outcome};
pub use message::{Definition, TaskId, Verdict};
pub use pace::Pace;
pub use supervisor::Reaction;
pub use terms::Terms;
pub use worker::{Port, Task, Worker};
