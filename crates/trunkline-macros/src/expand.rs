//! The text of the implementation. Every path is absolute, because the derive cannot know what
//! is in scope where it is used.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::{Error, Path};

use crate::check::Part;
use crate::plan::{Delivery, FieldPath, Plan};

/// `impl Event` for the type in `input`, or errors for the compiler to show.
pub(crate) fn derive(input: TokenStream) -> TokenStream {
    let plan = syn::parse2(input).and_then(Plan::new);
    plan.map_or_else(Error::into_compile_error, |plan| expand(&plan))
}

fn expand(plan: &Plan) -> TokenStream {
    let Plan {
        ident,
        trunkline,
        event_type,
        version,
        ..
    } = plan;
    let (impl_generics, type_generics, where_clause) = plan.generics.split_for_impl();
    let delivery = match plan.delivery {
        Delivery::Durable => quote!(Durable),
        Delivery::Ephemeral => quote!(Ephemeral),
        Delivery::Command => quote!(Command),
    };
    let tokens = plan.subject.iter().map(|part| match part {
        Part::Literal(text) => quote!(#trunkline::Token::Literal(#text)),
        Part::Placeholder(path) => quote!(#trunkline::Token::Field(#path)),
    });
    let keyed = plan.key.is_some();
    let key = match &plan.key {
        Some(path) => some_text(trunkline, path),
        None => quote!(::core::option::Option::None),
    };
    let arms = plan.placeholders.iter().map(|path| {
        let (name, text) = (&path.text, some_text(trunkline, path));
        quote!(#name => #text,)
    });
    quote! {
        #[automatically_derived]
        impl #impl_generics #trunkline::Event for #ident #type_generics #where_clause {
            type Delivery = #trunkline::#delivery;

            const TYPE: &'static str = #event_type;
            const VERSION: u32 = #version;
            const SUBJECT: #trunkline::Template = #trunkline::Template(&[#(#tokens),*]);
            const KEYED: bool = #keyed;

            fn key(&self) -> ::core::option::Option<::std::borrow::Cow<'_, str>> {
                #key
            }

            fn field(&self, name: &str) -> ::core::option::Option<::std::borrow::Cow<'_, str>> {
                match name {
                    #(#arms)*
                    _ => ::core::option::Option::None,
                }
            }
        }
    }
}

/// The text of a field. The argument lies where the attribute names the field, so that a type
/// that has no text is reported there; `self` is the generated one, whatever wrote the attribute.
fn some_text(trunkline: &Path, path: &FieldPath) -> TokenStream {
    let members = &path.members;
    let this = quote_spanned!(Span::call_site().located_at(path.span)=> self);
    let field = quote_spanned!(path.span=> &#this #(.#members)*);
    let call = quote_spanned!(path.span=> #trunkline::KeyText::key_text(#field));
    quote!(::core::option::Option::Some(#call))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: TokenStream, expect: &TokenStream) {
        assert_eq!(derive(input).to_string(), expect.to_string());
    }

    /// Every message, in order; the test fails if there is another number of them.
    #[track_caller]
    fn refuses(input: TokenStream, expect: &[&str]) {
        let error = syn::parse2(input)
            .and_then(Plan::new)
            .err()
            .expect("it is refused");
        let messages = error
            .into_iter()
            .map(|it| it.to_string())
            .collect::<Vec<_>>();
        assert_eq!(messages.len(), expect.len(), "{messages:#?}");
        for (message, expect) in messages.iter().zip(expect) {
            assert!(
                message.contains(expect),
                "{message:?} does not say {expect:?}"
            );
        }
    }

    #[test]
    fn a_keyed_struct_becomes_a_durable_event() {
        check(
            quote! {
                #[event(type = "order.placed", key = "order_id")]
                #[serde(rename_all = "camelCase")]
                struct OrderPlaced { order_id: String, total_cents: u64 }
            },
            &quote! {
                #[automatically_derived]
                impl ::trunkline::Event for OrderPlaced {
                    type Delivery = ::trunkline::Durable;

                    const TYPE: &'static str = "order.placed";
                    const VERSION: u32 = 1u32;
                    const SUBJECT: ::trunkline::Template = ::trunkline::Template(&[
                        ::trunkline::Token::Literal("order"),
                        ::trunkline::Token::Literal("placed")
                    ]);
                    const KEYED: bool = true;

                    fn key(&self) -> ::core::option::Option<::std::borrow::Cow<'_, str>> {
                        ::core::option::Option::Some(
                            ::trunkline::KeyText::key_text(&self.order_id)
                        )
                    }

                    fn field(&self, name: &str)
                        -> ::core::option::Option<::std::borrow::Cow<'_, str>> {
                        match name {
                            _ => ::core::option::Option::None,
                        }
                    }
                }
            },
        );
    }

    #[test]
    fn every_option_has_its_place() {
        let text = derive(quote! {
            #[event(type = "agent.message", version = 2, ephemeral)]
            #[event(subject = "agent.{to.0.type}.{role}.{role}", crate = "bus::re")]
            struct Said<T: Bound, const N: usize = 3> where T: Other { to: T, role: Role }
        });
        let says = |part: TokenStream| {
            assert!(
                text.to_string().contains(&part.to_string()),
                "{text}\nhas no\n{part}"
            );
        };
        says(quote!(impl<T: Bound, const N: usize> bus::re::Event for Said<T, N> where T: Other));
        says(quote!(
            type Delivery = bus::re::Ephemeral;
        ));
        says(quote!(
            const VERSION: u32 = 2u32;
        ));
        says(quote! {
            const SUBJECT: bus::re::Template = bus::re::Template(&[
                bus::re::Token::Literal("agent"),
                bus::re::Token::Field("to.0.type"),
                bus::re::Token::Field("role"),
                bus::re::Token::Field("role")
            ]);
            const KEYED: bool = false;
        });
        says(quote! {
            match name {
                "to.0.type" => ::core::option::Option::Some(
                    bus::re::KeyText::key_text(&self.to.0.r#type)
                ),
                "role" => ::core::option::Option::Some(bus::re::KeyText::key_text(&self.role)),
                _ => ::core::option::Option::None,
            }
        });
    }

    #[test]
    fn a_field_is_found_raw_or_not_and_by_its_place() {
        let check = |input: TokenStream, access: &str| {
            let text = derive(input).to_string();
            assert!(
                text.contains(&format!("key_text (& self{access})")),
                "{text}"
            );
        };
        let raw = quote!(
            struct A {
                r#type: u8,
            }
        );
        check(quote!(#[event(type = "a", key = "type")] #raw), " . r#type");
        check(
            quote!(#[event(type = "a", key = "r#type")] #raw),
            " . r#type",
        );
        let tuple = quote!(
            struct A(u8, (u8, u8));
        );
        check(quote!(#[event(type = "a", key = "0")] #tuple), " . 0");
        check(quote!(#[event(type = "a", key = "1.1")] #tuple), " . 1 . 1");
    }

    #[test]
    fn ephemeral_and_command_exclude_each_other() {
        let fault = "`ephemeral` and `command` exclude each other";
        refuses(
            quote!(
                #[event(type = "a", ephemeral, command)]
                struct A;
            ),
            &[fault],
        );
    }

    #[test]
    fn a_missing_type_names_the_line_to_add() {
        let fix = r#"such as `#[event(type = "order.placed")]`"#;
        refuses(
            quote!(
                struct OrderPlaced;
            ),
            &[fix],
        );
        refuses(
            quote!(
                #[event()]
                struct OrderPlaced;
            ),
            &[fix],
        );
        refuses(
            quote!(
                #[event(version = 2)]
                enum OrderPlaced {}
            ),
            &[fix],
        );
    }

    #[test]
    fn an_attribute_of_another_shape_is_not_also_a_missing_type() {
        refuses(
            quote!(
                #[event]
                struct A;
            ),
            &["the options are `type"],
        );
        refuses(
            quote!(
                #[event = "a"]
                struct A;
            ),
            &["the options are `type"],
        );
        refuses(
            quote!(
                #[event("a")]
                struct A;
            ),
            &["the options are `type"],
        );
        refuses(
            quote!(
                #[event(type = order.placed)]
                struct A;
            ),
            &[r#"write `type = "order.placed"`"#],
        );
    }

    #[test]
    fn independent_mistakes_are_reported_together() {
        refuses(
            quote! {
                #[event(
                    typ = "a" + b, type = "a..b", key = "oder_id", version = 0, version = 3,
                    ephemeral, command = true, subject = "a.{x}.{order_id}.{y.z}",
                )]
                struct A { order_id: u8, total: u8 }
            },
            &[
                "unknown option `typ`; the options are `type",
                "`version` is given twice; the options are `type",
                "takes no value",
                "a version is a number from 1",
                "an empty token",
                "`A` has no field `oder_id` for its key; its fields are `order_id`, `total`",
                "`A` has no field `x` for its placeholder",
                "`A` has no field `y` for its placeholder",
            ],
        );
    }

    #[test]
    fn only_structs_have_keys_and_placeholders() {
        let options = quote!(#[event(type = "a", key = "id", subject = "a.{id}")]);
        let fault = "`A` is not a struct, so it has no field `id`";
        refuses(quote!(#options enum A { B { id: u8 } }), &[fault, fault]);
        refuses(
            quote!(#[event(type = "a")] union A { b: u8 }),
            &["a struct or an enum"],
        );
        let fault = "`A` has no field `id` for its key; it has no fields";
        refuses(
            quote!(
                #[event(type = "a", key = "id")]
                struct A;
            ),
            &[fault],
        );
    }

    #[test]
    fn a_path_is_refused_before_it_is_generated() {
        let check = |key: &str, fault| {
            refuses(
                quote!(
                    #[event(type = "a", key = #key)]
                    struct A {
                        b: u8,
                    }
                ),
                &[fault],
            );
        };
        check("self", "is not the name of a field");
        check("b.x²", "is not the name of a field");
        check("b()", "is not the name of a field");
        check("{b}", "is not the name of a field");
    }
}
