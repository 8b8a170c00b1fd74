//! The macros of Trunkline: `#[derive(Event)]` and `#[handler]`. Use them through the `trunkline` crate, which re-exports them.
//!
//! What it can check, it checks here, at compile time, so that a wrong event type is an error
//! under the reader's cursor and not a surprise at the first publish:
//!
//! ```text
//!   attribute ──options──▶ Options ──plan──▶ Plan ──expand──▶ impl Event
//!                                     │
//!                                   check: pure functions on text
//! ```
//!
//! **Invariant:** nothing after `plan` can fail, and every independent mistake is reported in
//! one go.

mod check;
mod expand;
mod faults;
mod handler;
mod options;
mod plan;

use proc_macro::TokenStream;

/// Derives `trunkline::Event` for a struct or an enum that serde can read and write.
///
/// ```text
/// #[derive(Event, Serialize, Deserialize)]
/// #[event(type = "order.placed", key = "order_id")]
/// struct OrderPlaced {
///     order_id: String,
///     total_cents: u64,
/// }
/// ```
///
/// | option | meaning | default |
/// |---|---|---|
/// | `type = "order.placed"` | the event type: at most 16 tokens of `A-Z a-z 0-9 _ -`, separated by single dots, 200 bytes in all, the last token not all digits | required |
/// | `key = "order_id"` | the field within which events keep their order; a dotted path (`customer.id`) reaches into it, `0` is the first field of a tuple struct | no key |
/// | `version = 2` | the version of the data's shape, from 1 | 1 |
/// | `ephemeral` | not stored: whoever listens gets it at most once | durable |
/// | `command` | stored until its one consumer has done it; excludes `ephemeral` | durable |
/// | `subject = "agent.message.{role}.{kind}"` | a subject of its own; a placeholder is a whole token and names a field like `key` does | the type |
/// | `crate = "path::to::trunkline"` | where `trunkline` is, when it is re-exported | `::trunkline` |
///
/// Fields that `key` and placeholders name must be strings, integers or UUIDs, because their
/// text has to be the same in every language. An enum has no fields of its own and takes
/// neither.
///
/// Generics are passed through, so their bounds must say what an event needs, once, and serde
/// must be told not to add its own:
///
/// ```text
/// #[derive(Event, Serialize, Deserialize)]
/// #[event(type = "row.changed")]
/// #[serde(bound = "")]
/// struct RowChanged<T: Serialize + DeserializeOwned + Send + Sync + 'static> {
///     row: T,
/// }
/// ```
#[proc_macro_derive(Event, attributes(event))]
pub fn derive_event(input: TokenStream) -> TokenStream {
    expand::derive(input.into()).into()
}

/// Says which consumer an async function is a handler of; `Bus::start` starts those that
/// `handlers!` names.
///
/// ```text
/// #[handler(consumer = "billing")]
/// async fn bill(order: OrderPlaced, cx: Context) -> Result<(), BillingError> { … }
///
/// bus.start(handlers![bill]).await?;
/// ```
///
/// The function stays an ordinary function. `crate = "path::to::trunkline"` says where `trunkline`
/// is, when it is re-exported.
#[proc_macro_attribute]
pub fn handler(options: TokenStream, item: TokenStream) -> TokenStream {
    handler::attribute(options.into(), item.into()).into()
}
