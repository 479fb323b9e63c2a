//! The attributes of the crate `procession`, which re-exports them: use that one.

mod entry;

use proc_macro::TokenStream;

/// Puts `procession::init()` before everything else in `main`.
///
/// An asynchronous runtime has to start after it: its attribute is the first of the two (`#[tokio::main]`, and below it
/// `#[procession::main]`).
#[proc_macro_attribute]
pub fn main(arguments: TokenStream, function: TokenStream) -> TokenStream {
    entry::main(arguments.into(), function.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
