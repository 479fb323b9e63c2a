//! What is Linux's own, behind small functions: another system is another file here.

pub(crate) mod available;
pub(crate) mod futex;
pub(crate) mod io;
pub(crate) mod poll;
pub(crate) mod rights;
pub(crate) mod timer;
