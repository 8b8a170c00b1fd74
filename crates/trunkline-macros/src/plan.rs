//! What is to be generated, once everything has been checked against the type it is for. After
//! this nothing can fail.

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::parse::Parser;
use syn::{
    Data, DeriveInput, Error, Fields, Generics, Ident, Index, LitStr, Member, Path, Result,
    parse_quote,
};

use crate::check::{self, Part};
use crate::faults::Faults;
use crate::options::Options;

/// An implementation of `Event`, but for its text.
pub(crate) struct Plan {
    pub(crate) ident: Ident,
    pub(crate) generics: Generics,
    /// Where `trunkline` is.
    pub(crate) trunkline: Path,
    pub(crate) delivery: Delivery,
    pub(crate) event_type: String,
    pub(crate) version: u32,
    pub(crate) subject: Vec<Part>,
    pub(crate) key: Option<FieldPath>,
    /// What the placeholders of the subject name, each once.
    pub(crate) placeholders: Vec<FieldPath>,
}

/// How events of the type travel.
#[derive(Clone, Copy)]
pub(crate) enum Delivery {
    Durable,
    Ephemeral,
    Command,
}

/// A field, or a field of a field, and the place in the attribute that names it.
pub(crate) struct FieldPath {
    pub(crate) text: String,
    pub(crate) members: Vec<Member>,
    pub(crate) span: Span,
}

impl Plan {
    /// Checks what `input` and its attributes say.
    ///
    /// # Errors
    /// All mistakes at once.
    pub(crate) fn new(input: DeriveInput) -> Result<Self> {
        let mut faults = Faults::default();
        let options = Options::read(&input.attrs, &mut faults);
        let target = Target::new(&input);

        if let Data::Union(data) = &input.data {
            let message = "an event is a struct or an enum; serde cannot read and write a union";
            faults.add(data.union_token.span, message);
        }
        if !options.given.contains(&"type") {
            let span = options.attribute.unwrap_or_else(|| input.ident.span());
            faults.add(span, missing_type(&input.ident));
        }

        let delivery = faults.take(delivery(&options));
        let version = faults.take(version(&options));
        let event_type = options.event_type.as_ref();
        let type_parts = event_type.map(|text| at(text, check::event_type(&text.value())));
        let type_parts = type_parts.and_then(|parts| faults.take(parts));
        let subject = options.subject.as_ref();
        let subject_parts = subject.map(|text| at(text, check::subject(&text.value())));
        let subject_parts = subject_parts.and_then(|parts| faults.take(parts));

        let key = options.key.as_ref();
        let key = key.and_then(|text| faults.take(target.find("key", &text.value(), text.span())));
        let mut placeholders: Vec<FieldPath> = Vec::new();
        for part in subject_parts.iter().flatten() {
            let (Part::Placeholder(path), Some(literal)) = (part, subject) else {
                continue;
            };
            if placeholders.iter().all(|known| known.text != *path) {
                let found = target.find("placeholder", path, literal.span());
                placeholders.extend(faults.take(found));
            }
        }

        faults.finish()?;
        Ok(Self {
            trunkline: options
                .trunkline
                .unwrap_or_else(|| parse_quote!(::trunkline)),
            delivery: delivery.unwrap_or(Delivery::Durable),
            event_type: event_type.map(LitStr::value).unwrap_or_default(),
            version: version.unwrap_or(1),
            subject: subject_parts.or(type_parts).unwrap_or_default(),
            key,
            placeholders,
            ident: input.ident,
            generics: input.generics,
        })
    }
}

fn at<T>(text: &LitStr, result: std::result::Result<T, String>) -> Result<T> {
    result.map_err(|message| Error::new(text.span(), message))
}

fn missing_type(ident: &Ident) -> String {
    let name = ident.unraw().to_string();
    let proposal = check::suggested_type(&name);
    format!("`{name}` has no event type; add one, such as `#[event(type = \"{proposal}\")]`")
}

fn delivery(options: &Options) -> Result<Delivery> {
    match (options.ephemeral, options.command) {
        (None, None) => Ok(Delivery::Durable),
        (Some(_), None) => Ok(Delivery::Ephemeral),
        (None, Some(_)) => Ok(Delivery::Command),
        (Some(_), Some(span)) => Err(Error::new(
            span,
            "`ephemeral` and `command` exclude each other: an ephemeral event is not stored, a \
             command is stored until its consumer has done it; remove one of them",
        )),
    }
}

fn version(options: &Options) -> Result<u32> {
    let Some(literal) = &options.version else {
        return Ok(1);
    };
    match literal.base10_parse() {
        Ok(version) if version > 0 => Ok(version),
        _ => Err(Error::new(
            literal.span(),
            format!(
                "a version is a number from 1 to {}, such as `version = 2`",
                u32::MAX
            ),
        )),
    }
}

/// The type that is to be an event, as far as a path can look into it.
struct Target<'a> {
    ident: &'a Ident,
    /// None for what has no fields of its own.
    fields: Option<&'a Fields>,
}

impl<'a> Target<'a> {
    fn new(input: &'a DeriveInput) -> Self {
        let fields = match &input.data {
            Data::Struct(data) => Some(&data.fields),
            Data::Enum(_) | Data::Union(_) => None,
        };
        Self {
            ident: &input.ident,
            fields,
        }
    }

    /// The field that `path` names. Only its first segment can be looked up: the rest belongs
    /// to other types, and the compiler will find it or not.
    fn find(&self, role: &str, path: &str, span: Span) -> Result<FieldPath> {
        let error = |message: String| Error::new(span, message);
        let segments = check::path(path).map_err(error)?;
        let Some(fields) = self.fields else {
            return Err(error(format!(
                "`{}` is not a struct, so it has no field `{path}` for a {role}; \
                 put it into a struct next to a field for the {role}",
                self.ident
            )));
        };
        let members = segments.iter().map(|segment| member(segment, span));
        let mut members = members.collect::<Result<Vec<_>>>()?;
        let wanted = members.first().map(name);
        match fields.members().find(|field| Some(name(field)) == wanted) {
            Some(field) => members[0] = located(field, span),
            None => return Err(error(self.no_such_field(role, path, fields))),
        }
        Ok(FieldPath {
            text: path.to_owned(),
            members,
            span,
        })
    }

    fn no_such_field(&self, role: &str, path: &str, fields: &Fields) -> String {
        let first = path.split('.').next().unwrap_or(path);
        let names = fields
            .members()
            .map(|member| format!("`{}`", name(&member)));
        let names = names.collect::<Vec<_>>().join(", ");
        let there = if names.is_empty() {
            "it has no fields".to_owned()
        } else {
            format!("its fields are {names}")
        };
        format!(
            "`{}` has no field `{first}` for its {role}; {there}",
            self.ident
        )
    }
}

/// The name of a field as one would say it: `type`, not `r#type`.
fn name(member: &Member) -> String {
    match member {
        Member::Named(ident) => ident.unraw().to_string(),
        Member::Unnamed(index) => index.index.to_string(),
    }
}

/// A segment as the compiler wants it: `type` becomes `r#type`.
fn member(segment: &str, span: Span) -> Result<Member> {
    if check::is_index(segment) {
        let index = segment.parse().map_err(|error| Error::new(span, error))?;
        return Ok(Member::Unnamed(Index { index, span }));
    }
    let bare = segment.strip_prefix("r#").unwrap_or(segment);
    let parsed = Ident::parse_any.parse_str(bare);
    if parsed.is_err() {
        return Err(Error::new(
            span,
            format!("`{segment}` is not the name of a field"),
        ));
    }
    // What parses only as "any" identifier is a keyword.
    let keyword = syn::parse_str::<Ident>(bare).is_err();
    let ident = if keyword {
        Ident::new_raw(bare, span)
    } else {
        Ident::new(bare, span)
    };
    Ok(Member::Named(ident))
}

/// The field itself, so that its hygiene stays, but reported where the attribute names it.
fn located(mut field: Member, span: Span) -> Member {
    match &mut field {
        Member::Named(ident) => ident.set_span(ident.span().located_at(span)),
        Member::Unnamed(index) => index.span = span,
    }
    field
}
