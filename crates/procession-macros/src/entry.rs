//! `#[procession::main]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, ItemFn, Result};

pub(crate) fn main(arguments: TokenStream, function: TokenStream) -> Result<TokenStream> {
    if !arguments.is_empty() {
        return Err(Error::new_spanned(arguments, "#[procession::main] takes no arguments"));
    }
    let ItemFn { attrs, vis, sig, block } = syn::parse2(function)?;
    if sig.asyncness.is_some() {
        let text = "the attribute of the asynchronous runtime has to stand above #[procession::main], so that the \
                    runtime is started only in the process that needs it";
        return Err(Error::new_spanned(sig.asyncness, text));
    }
    if !sig.inputs.is_empty() {
        return Err(Error::new_spanned(sig.inputs, "`main` takes no arguments"));
    }
    Ok(quote! {
        #(#attrs)* #vis #sig {
            ::procession::init();
            #block
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(arguments: TokenStream, function: TokenStream) -> String {
        main(arguments, function).map_or_else(|error| error.to_string(), |tokens| tokens.to_string())
    }

    #[test]
    fn init_comes_first() {
        let expected = quote! {
            #[allow(x)] pub fn main() -> Result<(), E> {
                ::procession::init();
                { work() }
            }
        };
        let function = quote! { #[allow(x)] pub fn main() -> Result<(), E> { work() } };
        assert_eq!(expanded(quote!(), function), expected.to_string());
    }

    #[test]
    fn what_can_not_be_is_refused() {
        assert!(expanded(quote!(5), quote! { fn main() {} }).contains("no arguments"));
        assert!(expanded(quote!(), quote! { fn main(n: u32) {} }).contains("no arguments"));
        assert!(expanded(quote!(), quote! { async fn main() {} }).contains("above"));
        assert!(expanded(quote!(), quote! { struct Main; }).contains("expected"));
    }
}
