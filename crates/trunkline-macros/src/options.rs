//! The `#[event(…)]` attribute as data. It only reads what is written: whether an option makes
//! sense is for [`plan`](crate::plan), which alone knows the struct.

use proc_macro2::{Span, TokenTree};
use quote::ToTokens;
use syn::meta::ParseNestedMeta;
use syn::parse::{Parse, ParseBuffer};
use syn::spanned::Spanned;
use syn::{Attribute, Error, LitInt, LitStr, Path, Result, Token};

use crate::faults::Faults;

/// What `#[event(…)]` says, each option where it is written.
#[derive(Default)]
pub(crate) struct Options {
    /// The attribute, if there is one: where what is missing from it is reported.
    pub(crate) attribute: Option<Span>,
    /// The names of all options, also of those whose value could not be read.
    pub(crate) given: Vec<&'static str>,
    pub(crate) event_type: Option<LitStr>,
    pub(crate) key: Option<LitStr>,
    pub(crate) version: Option<LitInt>,
    pub(crate) ephemeral: Option<Span>,
    pub(crate) command: Option<Span>,
    pub(crate) subject: Option<LitStr>,
    pub(crate) trunkline: Option<Path>,
}

/// Every option with an example of how to write it.
const KNOWN: [(&str, &str); 7] = [
    ("type", r#"type = "order.placed""#),
    ("key", r#"key = "order_id""#),
    ("version", "version = 2"),
    ("ephemeral", "ephemeral"),
    ("command", "command"),
    ("subject", r#"subject = "order.placed.{region}""#),
    ("crate", r#"crate = "path::to::trunkline""#),
];

impl Options {
    /// Reads all `#[event(…)]` among `attributes`; others, such as serde's, are not ours.
    pub(crate) fn read(attributes: &[Attribute], faults: &mut Faults) -> Self {
        let mut options = Self::default();
        for attribute in attributes.iter().filter(|it| it.path().is_ident("event")) {
            options.attribute.get_or_insert(attribute.path().span());
            let read = attribute.parse_nested_meta(|meta| {
                // A mistake in one option must not hide those in the next.
                if let Err(error) = options.read_one(&meta) {
                    faults.push(error);
                    skip_to_comma(&meta)?;
                }
                Ok(())
            });
            if let Err(error) = read {
                // What could not be read may have been the type; do not complain that it is missing.
                options.given.push("type");
                faults.add(error.span(), format!("{error}; {}", known()));
            }
        }
        options
    }

    fn read_one(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        let name = meta.path.to_token_stream().to_string();
        let Some(&(name, example)) = KNOWN.iter().find(|(known, _)| *known == name) else {
            return Err(meta.error(format!("unknown option `{name}`; {}", known())));
        };
        if self.given.contains(&name) {
            return Err(meta.error(format!(
                "`{name}` is given twice; {}, each at most once",
                known()
            )));
        }
        self.given.push(name);
        let span = meta.path.span();
        match name {
            "type" => self.event_type = Some(value(meta, example)?),
            "key" => self.key = Some(value(meta, example)?),
            "version" => self.version = Some(value(meta, example)?),
            "subject" => self.subject = Some(value(meta, example)?),
            "ephemeral" => self.ephemeral = Some(flag(meta, span)?),
            "command" => self.command = Some(flag(meta, span)?),
            _ => {
                let path: LitStr = value(meta, example)?;
                self.trunkline = Some(path.parse_with(Path::parse_mod_style)?);
            }
        }
        Ok(())
    }
}

fn known() -> String {
    let examples = KNOWN.map(|(_, example)| format!("`{example}`"));
    format!("the options are {}", examples.join(", "))
}

fn value<T: Parse>(meta: &ParseNestedMeta<'_>, example: &str) -> Result<T> {
    let value = meta.value().and_then(ParseBuffer::parse);
    value.map_err(|error| Error::new(error.span(), format!("{error}; write `{example}`")))
}

fn flag(meta: &ParseNestedMeta<'_>, span: Span) -> Result<Span> {
    if meta.input.is_empty() || meta.input.peek(Token![,]) {
        Ok(span)
    } else {
        Err(meta.error("this option takes no value; write it alone or leave it out"))
    }
}

fn skip_to_comma(meta: &ParseNestedMeta<'_>) -> Result<()> {
    while !meta.input.is_empty() && !meta.input.peek(Token![,]) {
        meta.input.parse::<TokenTree>()?;
    }
    Ok(())
}
