//! What procession promises to get over: one test per row of tests/deaths/catalogue.py that the Rust face has the thing
//! for, and of the row's name; further ones beside them.
//!
//! What the standard package of Python and its peers do in each of these cases is told in docs/reliability.md.
#![allow(unsafe_code)]

#[path = "../support/mod.rs"]
mod support;

mod limits;
mod locks;
mod managers;
mod points;
mod pools;
mod programs;
mod queues;

procession::test_support!();
