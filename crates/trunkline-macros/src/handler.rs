//! `#[handler]`: an async function that knows which consumer it belongs to.
//!
//! The function stays as it is. Beside it comes a type of the same name, which lives where types
//! do and not where functions do, so that `handlers![bill]` finds it and tests still call `bill`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::{Error, Ident, ItemFn, LitStr, Path, Result, Token, parse_quote};

/// What stands in the attribute.
struct Options {
    consumer: LitStr,
    trunkline: Path,
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let (mut consumer, mut trunkline) = (None, None);
        while !input.is_empty() {
            let name = input.call(Ident::parse_any)?;
            input.parse::<Token![=]>()?;
            let value: LitStr = input.parse()?;
            match name.to_string().as_str() {
                "consumer" => consumer = Some(value),
                "crate" => trunkline = Some(value.parse()?),
                other => {
                    let message = format!(
                        "`{other}` is not an option of a handler; there are `consumer` and `crate`"
                    );
                    return Err(Error::new(name.span(), message));
                }
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        let missing =
            || input.error("a handler names its consumer: `#[handler(consumer = \"billing\")]`");
        Ok(Self {
            consumer: consumer.ok_or_else(missing)?,
            trunkline: trunkline.unwrap_or_else(|| parse_quote!(::trunkline)),
        })
    }
}

pub(crate) fn attribute(options: TokenStream, item: TokenStream) -> TokenStream {
    expand(options, item).unwrap_or_else(Error::into_compile_error)
}

fn expand(options: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let function: ItemFn = syn::parse2(item)?;
    let signature = &function.sig;
    if signature.asyncness.is_none() {
        return Err(Error::new_spanned(
            signature.fn_token,
            "a handler is an `async fn`",
        ));
    }
    if let Some(receiver) = signature.receiver() {
        return Err(Error::new_spanned(
            receiver,
            "a handler is a free function; take what it needs as `State<T>`",
        ));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &signature.generics,
            "a handler handles one type of event, so it is not generic",
        ));
    }
    let Options {
        consumer,
        trunkline,
    } = syn::parse2(options)?;
    let name = consumer.value();
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(legal) {
        let message = format!("{name:?} is not a name: use 1 to 64 characters of A-Z a-z 0-9 _ -");
        return Err(Error::new(consumer.span(), message));
    }
    let (visibility, ident) = (&function.vis, &signature.ident);
    Ok(quote! {
        #function

        #[doc(hidden)]
        #[allow(non_camel_case_types)]
        #visibility struct #ident {}

        #[automatically_derived]
        impl #trunkline::consumer::Declare for #ident {
            const CONSUMER: &'static str = #consumer;

            fn add(consumer: #trunkline::Consumer) -> #trunkline::Consumer {
                consumer.on(#ident)
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(options: TokenStream, item: TokenStream) -> String {
        expand(options, item).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_handler_is_told_why() {
        let named = || quote!(consumer = "billing");
        assert!(
            fault(
                named(),
                quote!(
                    fn bill() {}
                )
            )
            .contains("async fn")
        );
        assert!(
            fault(
                named(),
                quote!(
                    async fn bill(&self) {}
                )
            )
            .contains("State<T>")
        );
        assert!(
            fault(
                named(),
                quote!(
                    async fn bill<T>(event: T) {}
                )
            )
            .contains("not generic")
        );
        assert!(
            fault(
                quote!(),
                quote!(
                    async fn bill() {}
                )
            )
            .contains("names its consumer")
        );
        assert!(
            fault(
                quote!(consumer = "a b"),
                quote!(
                    async fn bill() {}
                )
            )
            .contains("not a name")
        );
        assert!(
            fault(
                quote!(queue = "x"),
                quote!(
                    async fn bill() {}
                )
            )
            .contains("`consumer` and `crate`")
        );
    }
}
