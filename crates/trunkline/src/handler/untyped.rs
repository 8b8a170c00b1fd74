//! Handlers of events without a Rust type: whatever a filter matches, and dead letters.

use std::future::Future;
use std::sync::Arc;

use trunkline_core::engine::Boxed;
use trunkline_core::{Filter, Result};

use super::{Delivered, Handles, Outcome};
use crate::bus::Bus;
use crate::dead_letter::Buried;
use crate::extract::FromDelivery;
use crate::failure::{Disposition, Failure};
use crate::raw::Incoming;

/// A function that handles events whatever their type.
///
/// It is async; its first argument is the event as it came, `Arc<Incoming>`, its data not decoded;
/// up to seven more are extractors ([`FromDelivery`]); all are owned. It returns `()` or
/// `Result<(), F>`, as a [`Handler`](super::Handler) does.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of events without a type",
    label = "not a handler",
    note = "it is an async fn: first the event as `Arc<Incoming>`, then up to seven extractors (`Context`, \
            `State<T>`, `Meta`, `Attempt`), all owned, never references",
    note = "it returns `()` or `Result<(), F>` with any error `F`, and its future must be `Send`"
)]
pub trait RawHandler<Args>: Send + Sync + 'static {
    /// Runs it.
    fn call(&self, delivered: Delivered) -> Boxed<'static, Result<(), Failure>>;

    /// Whether a bus can ever give it what it asks for.
    ///
    /// # Errors
    /// Why not, and what to do.
    fn check(bus: &Bus) -> Result<()>;
}

/// A function that handles dead letters.
///
/// It is async; its first argument is the dead letter, `Arc<Buried>`; up to seven more are extractors
/// ([`FromDelivery`]); all are owned. It returns `()` or `Result<(), F>`, as a
/// [`Handler`](super::Handler) does.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of dead letters",
    label = "not a handler",
    note = "it is an async fn: first the dead letter as `Arc<dead_letter::Buried>`, then up to seven extractors \
            (`Context`, `State<T>`, `Meta`, `Attempt`), all owned, never references",
    note = "it returns `()` or `Result<(), F>` with any error `F`, and its future must be `Send`"
)]
pub trait DeadLetterHandler<Args>: Send + Sync + 'static {
    /// Runs it.
    fn call(&self, delivered: Delivered) -> Boxed<'static, Result<(), Failure>>;

    /// Whether a bus can ever give it what it asks for.
    ///
    /// # Errors
    /// Why not, and what to do.
    fn check(bus: &Bus) -> Result<()>;
}

fn incoming(delivered: &Delivered) -> Result<Arc<Incoming>, Failure> {
    Ok(Arc::clone(&delivered.incoming))
}

fn dead_letter(delivered: &Delivered) -> Result<Arc<Buried>, Failure> {
    delivered.dead_letter.clone().ok_or_else(|| {
        let what = "what was delivered is no dead letter";
        Failure::new(Disposition::Permanent, "failed", what)
    })
}

macro_rules! untyped {
    ($handler:ident, $first:ty, $take:path, $($argument:ident)*) => {
        #[allow(non_snake_case, reason = "type parameters name the arguments, where there are any")]
        impl<Function, Running, $($argument,)*> $handler<($($argument,)*)> for Function
        where
            Function: Fn($first, $($argument,)*) -> Running + Send + Sync + 'static,
            Running: Future + Send + 'static,
            Running::Output: Outcome,
            $($argument: FromDelivery + Send,)*
        {
            fn call(&self, delivered: Delivered) -> Boxed<'static, Result<(), Failure>> {
                $(let $argument = match $argument::from_delivery(&delivered) {
                    Ok(argument) => argument,
                    Err(failure) => return Box::pin(std::future::ready(Err(failure))),
                };)*
                let first = match $take(&delivered) {
                    Ok(first) => first,
                    Err(failure) => return Box::pin(std::future::ready(Err(failure))),
                };
                let running = self(first, $($argument,)*);
                Box::pin(async move { running.await.into_result() })
            }

            fn check(bus: &Bus) -> Result<()> {
                let _ = bus;
                $($argument::check(bus)?;)*
                Ok(())
            }
        }
    };
    ($($argument:ident)*) => {
        untyped!(RawHandler, Arc<Incoming>, incoming, $($argument)*);
        untyped!(DeadLetterHandler, Arc<Buried>, dead_letter, $($argument)*);
    };
}

untyped!();
untyped!(A2);
untyped!(A2 A3);
untyped!(A2 A3 A4);
untyped!(A2 A3 A4 A5);
untyped!(A2 A3 A4 A5 A6);
untyped!(A2 A3 A4 A5 A6 A7);
untyped!(A2 A3 A4 A5 A6 A7 A8);

/// A handler of what a filter matches, its arguments forgotten.
pub(crate) struct RawRegistration {
    /// Over the types' subjects, without the root.
    pub(crate) filter: Filter,
    pub(crate) handler: Arc<dyn Handles>,
}

impl RawRegistration {
    pub(crate) fn new<Args: 'static, H: RawHandler<Args>>(filter: Filter, handler: H) -> Self {
        let handler = Arc::new(Untyped {
            check: H::check,
            call: move |delivered| handler.call(delivered),
        });
        Self { filter, handler }
    }
}

/// A handler of dead letters, its arguments forgotten.
pub(crate) fn of_dead_letters<Args: 'static, H: DeadLetterHandler<Args>>(
    handler: H,
) -> Arc<dyn Handles> {
    Arc::new(Untyped {
        check: H::check,
        call: move |delivered| handler.call(delivered),
    })
}

struct Untyped<Call> {
    check: fn(&Bus) -> Result<()>,
    call: Call,
}

impl<Call> Handles for Untyped<Call>
where
    Call: Fn(Delivered) -> Boxed<'static, Result<(), Failure>> + Send + Sync,
{
    fn check(&self, bus: &Bus) -> Result<()> {
        (self.check)(bus)
    }

    fn call(&self, delivered: Delivered) -> Boxed<'static, Result<(), Failure>> {
        (self.call)(delivered)
    }
}
