//! The attributes of the crate `procession`, which re-exports them: use that one.

mod entry;
mod managed;

use proc_macro::TokenStream;

/// Puts `procession::init()` before everything else in `main`.
///
/// An asynchronous runtime has to start after it: its attribute is the first of the two (`#[tokio::main]`, and below it
/// `#[procession::main]`).
#[proc_macro_attribute]
pub fn main(arguments: TokenStream, function: TokenStream) -> TokenStream {
    entry::main(arguments.into(), function.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Lets objects of a type be in a manager: on an `impl` block of the type.
///
/// Its public functions that return `Self` make an object there; its public methods with `&self` and `&mut self` can be called
/// from every process that has a proxy. `#[managed]` on `Counter` makes `CounterProxy`, which has all of these, and each returns
/// a `Result`. What is private is not exposed.
///
/// Those with `&self` are called at the same time, each in a thread of its caller's; those with `&mut self` have the object
/// to themselves. What they take and return is sent from process to process, so it can't be a reference.
///
/// `#[managed(name = "counter")]` sets the name by which programs of different builds agree on the type, which otherwise is
/// its path; `#[managed(proxy = Counted)]` the name of the proxy.
#[proc_macro_attribute]
pub fn managed(arguments: TokenStream, block: TokenStream) -> TokenStream {
    managed::managed(arguments.into(), block.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
