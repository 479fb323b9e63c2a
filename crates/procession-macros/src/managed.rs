//! `#[procession::managed]`: proxies of a type of the program's own.

use proc_macro2::{Group, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::{
    Attribute, Error, FnArg, Ident, ImplItem, ImplItemFn, ItemImpl, LitStr, Pat, ReturnType, Type, Visibility,
    parse::Parser, spanned::Spanned,
};

/// What the attribute is given.
#[derive(Default)]
struct Options {
    name: Option<LitStr>,
    proxy: Option<Ident>,
}

/// How a method has its object.
enum Way {
    /// `&self`
    Look,
    /// `&mut self`
    Change,
    /// It makes one.
    Construct,
}

/// A function that clients can call.
struct Exposed<'a> {
    way: Way,
    name: &'a Ident,
    attributes: Vec<&'a Attribute>,
    arguments: Vec<(Ident, TokenStream)>,
    output: TokenStream,
}

pub(crate) fn managed(arguments: TokenStream, block: TokenStream) -> syn::Result<TokenStream> {
    let options = options(arguments)?;
    let block: ItemImpl = syn::parse2(block)?;
    let name = type_name(&block)?;
    let exposed = all_exposed(&block, name)?;
    let proxy = options.proxy.unwrap_or_else(|| format_ident!("{name}Proxy"));
    let text = name.to_string();
    let path = quote!(::core::concat!(::core::module_path!(), "::", #text));
    let called = options.name.map_or(path, |name| quote!(#name));
    let server = server_side(name, &proxy, &called, &exposed);
    let client = client_side(name, &proxy, &exposed);
    Ok(quote!(#block #server #client))
}

/// The functions that clients can call; or all that is wrong with them.
fn all_exposed<'a>(block: &'a ItemImpl, name: &Ident) -> syn::Result<Vec<Exposed<'a>>> {
    let mut all = Vec::new();
    let mut errors: Option<Error> = None;
    for item in &block.items {
        let ImplItem::Fn(function) = item else { continue };
        if !matches!(function.vis, Visibility::Public(_)) {
            continue;
        }
        match (exposed(function, name), &mut errors) {
            (Some(Ok(exposed)), _) => all.push(exposed),
            (Some(Err(error)), Some(errors)) => errors.combine(error),
            (Some(Err(error)), None) => errors = Some(error),
            (None, _) => {}
        }
    }
    errors.map_or(Ok(all), Err)
}

fn options(arguments: TokenStream) -> syn::Result<Options> {
    let mut options = Options::default();
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("name") {
            options.name = Some(meta.value()?.parse()?);
        } else if meta.path.is_ident("proxy") {
            options.proxy = Some(meta.value()?.parse()?);
        } else {
            return Err(meta.error("managed takes `name = \"...\"` and `proxy = Name`"));
        }
        Ok(())
    });
    parser.parse2(arguments)?;
    Ok(options)
}

fn type_name(block: &ItemImpl) -> syn::Result<&Ident> {
    if let Some((_, path, _)) = &block.trait_ {
        return Err(Error::new(path.span(), "managed stands on an `impl` of the type itself, not of a trait"));
    }
    if !block.generics.params.is_empty() {
        let message = "a managed type can't be generic: the manager makes objects of types that it knows by name";
        return Err(Error::new(block.generics.span(), message));
    }
    match &*block.self_ty {
        Type::Path(path) if path.qself.is_none() => {
            let last = path.path.segments.last().filter(|last| last.arguments.is_none());
            last.map(|last| &last.ident)
        }
        _ => None,
    }
    .ok_or_else(|| Error::new(block.self_ty.span(), "managed stands on an `impl` of a type that has a name"))
}

/// `None` for what clients have no way to call: a function without an object that does not make one.
fn exposed<'a>(function: &'a ImplItemFn, name: &Ident) -> Option<syn::Result<Exposed<'a>>> {
    let signature = &function.sig;
    let way = match signature.receiver() {
        Some(receiver) if receiver.colon_token.is_some() || receiver.reference.is_none() => {
            let message = "a managed method takes `&self` or `&mut self`: the object stays in the manager";
            return Some(Err(Error::new(receiver.span(), message)));
        }
        Some(receiver) if receiver.mutability.is_some() => Way::Change,
        Some(_) => Way::Look,
        None => match &signature.output {
            ReturnType::Type(_, output) if is_self(output, name) => Way::Construct,
            ReturnType::Type(_, output) if mentions_self(&output.to_token_stream()) => {
                let message = "a managed type is made by functions that return `Self`; one that can fail may panic, or be private";
                return Some(Err(Error::new(output.span(), message)));
            }
            _ => return None,
        },
    };
    Some(checked(function, way, name))
}

fn checked<'a>(function: &'a ImplItemFn, way: Way, name: &Ident) -> syn::Result<Exposed<'a>> {
    let signature = &function.sig;
    if let Some(keyword) = &signature.asyncness {
        return Err(Error::new(
            keyword.span(),
            "a managed method can't be async: it has a thread of the manager to itself",
        ));
    }
    if let Some(keyword) = &signature.unsafety {
        return Err(Error::new(keyword.span(), "a managed method can't be unsafe: whoever has a proxy can call it"));
    }
    if !signature.generics.params.is_empty() {
        let message = "a managed method can't be generic: it is called by name, in another process";
        return Err(Error::new(signature.generics.span(), message));
    }
    let mut arguments = Vec::new();
    for (place, argument) in signature.inputs.iter().enumerate() {
        let FnArg::Typed(argument) = argument else { continue };
        check_type(&argument.ty, "take it by value (`String` for `&str`, `Vec<T>` for `&[T]`)")?;
        let argument_name = match &*argument.pat {
            Pat::Ident(pattern) => pattern.ident.clone(),
            _ => format_ident!("argument_{place}"),
        };
        arguments.push((argument_name, with_type(argument.ty.to_token_stream(), name)));
    }
    let output = match &signature.output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, output) => {
            check_type(output, "return a copy of it (`String` for `&str`, `Vec<T>` for `&[T]`)")?;
            with_type(output.to_token_stream(), name)
        }
    };
    let attributes =
        function.attrs.iter().filter(|attribute| attribute.path().is_ident("doc") || attribute.path().is_ident("cfg"));
    Ok(Exposed { way, name: &signature.ident, attributes: attributes.collect(), arguments, output })
}

fn check_type(checked: &Type, instead: &str) -> syn::Result<()> {
    match checked {
        Type::Reference(_) => {
            let message = format!("a reference can't be sent to the manager or from it: {instead}");
            Err(Error::new(checked.span(), message))
        }
        Type::ImplTrait(_) => Err(Error::new(checked.span(), "a managed method names the types that are sent")),
        _ => Ok(()),
    }
}

/// Whether a type is `Self`, or the name of the type itself.
fn is_self(output: &Type, name: &Ident) -> bool {
    matches!(output, Type::Path(path) if path.path.is_ident("Self") || path.path.is_ident(name))
}

fn mentions_self(tokens: &TokenStream) -> bool {
    tokens.clone().into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "Self",
        TokenTree::Group(group) => mentions_self(&group.stream()),
        _ => false,
    })
}

/// With the type's name in the place of `Self`, which is the proxy where the tokens are put.
fn with_type(tokens: TokenStream, name: &Ident) -> TokenStream {
    tokens
        .into_iter()
        .map(|token| match token {
            TokenTree::Ident(ident) if ident == "Self" => TokenTree::Ident(Ident::new(&name.to_string(), ident.span())),
            TokenTree::Group(group) => {
                let mut replaced = Group::new(group.delimiter(), with_type(group.stream(), name));
                replaced.set_span(group.span());
                TokenTree::Group(replaced)
            }
            other => other,
        })
        .collect()
}

/// What the manager's server calls.
fn server_side(name: &Ident, proxy: &Ident, called: &TokenStream, exposed: &[Exposed<'_>]) -> TokenStream {
    let mut constructors = Vec::new();
    let mut methods = Vec::new();
    let mut new = quote!(::procession::manager::__private::Unexposed);
    for Exposed { way, name: function, attributes, arguments, .. } in exposed {
        let text = function.to_string();
        let cfgs = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
        let (names, types): (Vec<_>, Vec<_>) = arguments.iter().map(|(name, of)| (name, of)).unzip();
        let object = format_ident!("object_of_call");
        let (list, arm) = match way {
            Way::Construct => {
                if text == "new" {
                    new = quote!((#(#types,)*));
                }
                let arm = quote!(arguments.construct(|(#(#names,)*): (#(#types,)*)| <#name>::#function(#(#names),*)));
                (&mut constructors, arm)
            }
            Way::Look => {
                let call = quote!(|#object: &#name, (#(#names,)*): (#(#types,)*)| #object.#function(#(#names),*));
                (&mut methods, quote!(arguments.look(object, #call)))
            }
            Way::Change => {
                let call = quote!(|#object: &mut #name, (#(#names,)*): (#(#types,)*)| #object.#function(#(#names),*));
                (&mut methods, quote!(arguments.change(object, #call)))
            }
        };
        list.push(quote!(#(#cfgs)* #text => #arm,));
    }
    quote! {
        impl ::procession::manager::Managed for #name {
            const NAME: &'static str = #called;
            type Proxy = #proxy;
            type New = #new;

            #[allow(unused_variables)]
            fn __construct(
                constructor: &str,
                arguments: ::procession::manager::__private::Arguments<'_>,
            ) -> ::core::result::Result<Self, ::procession::manager::__private::Failure> {
                match constructor {
                    #(#constructors)*
                    _ => ::core::result::Result::Err(
                        ::procession::manager::__private::construct_unknown::<Self>(constructor),
                    ),
                }
            }

            #[allow(unused_variables)]
            fn __call(
                object: &::std::sync::RwLock<Self>,
                method: &str,
                arguments: ::procession::manager::__private::Arguments<'_>,
            ) -> ::core::result::Result<::std::vec::Vec<u8>, ::procession::manager::__private::Failure> {
                match method {
                    #(#methods)*
                    _ => ::core::result::Result::Err(::procession::manager::__private::Failure::NoSuchMethod),
                }
            }
        }
    }
}

/// The proxy.
fn client_side(name: &Ident, proxy: &Ident, exposed: &[Exposed<'_>]) -> TokenStream {
    let methods = exposed.iter().map(|Exposed { way, name: function, attributes, arguments, output }| {
        let text = function.to_string();
        let (names, types): (Vec<_>, Vec<_>) = arguments.iter().map(|(name, of)| (name, of)).unzip();
        let errors = "\n\n# Errors\n\nThose of every call of a manager: see [`ManagerError`](::procession::manager::ManagerError).";
        if let Way::Construct = way {
            let says = format!("Makes one in a manager: calls `{name}::{text}` there.{errors}");
            quote! {
                #(#attributes)*
                #[doc = #says]
                pub fn #function(
                    manager: &::procession::manager::Manager,
                    #(#names: #types),*
                ) -> ::core::result::Result<Self, ::procession::manager::ManagerError> {
                    ::procession::manager::__private::create::<#name>(manager, #text, (#(#names,)*))
                }
            }
        } else {
            let says = format!("Calls `{name}::{text}` in the manager.{errors}");
            quote! {
                #(#attributes)*
                #[doc = #says]
                pub fn #function(
                    &self,
                    #(#names: #types),*
                ) -> ::core::result::Result<#output, ::procession::manager::ManagerError> {
                    self.0.call(#text, (#(#names,)*))
                }
            }
        }
    });
    let says = format!("A proxy of a [`{name}`] in a manager.");
    quote! {
        #[doc = #says]
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct #proxy(::procession::manager::ManagedProxy<#name>);

        #[allow(dead_code, clippy::too_many_arguments, clippy::new_ret_no_self, clippy::doc_markdown)]
        impl #proxy {
            #(#methods)*
        }

        impl ::core::convert::From<::procession::manager::ManagedProxy<#name>> for #proxy {
            fn from(proxy: ::procession::manager::ManagedProxy<#name>) -> Self {
                Self(proxy)
            }
        }

        impl ::procession::manager::__private::serde::Serialize for #proxy {
            fn serialize<S: ::procession::manager::__private::serde::Serializer>(
                &self,
                serializer: S,
            ) -> ::core::result::Result<S::Ok, S::Error> {
                ::procession::manager::__private::serde::Serialize::serialize(&self.0, serializer)
            }
        }

        impl<'de> ::procession::manager::__private::serde::Deserialize<'de> for #proxy {
            fn deserialize<D: ::procession::manager::__private::serde::Deserializer<'de>>(
                deserializer: D,
            ) -> ::core::result::Result<Self, D::Error> {
                ::procession::manager::__private::serde::Deserialize::deserialize(deserializer).map(Self)
            }
        }
    }
}
