//! Handlers of events without a Rust type: whatever a filter matches.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use trunkline_core::engine::Boxed;
use trunkline_core::{Filter, Result};

use super::{Delivered, Handles, Outcome};
use crate::bus::Bus;
use crate::extract::FromDelivery;
use crate::failure::Failure;
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

macro_rules! raw_handler {
    ($($argument:ident)*) => {
        #[allow(non_snake_case, reason = "type parameters name the arguments, where there are any")]
        impl<Function, Running, $($argument,)*> RawHandler<($($argument,)*)> for Function
        where
            Function: Fn(Arc<Incoming>, $($argument,)*) -> Running + Send + Sync + 'static,
            Running: Future + Send + 'static,
            Running::Output: Outcome,
            $($argument: FromDelivery + Send,)*
        {
            fn call(&self, delivered: Delivered) -> Boxed<'static, Result<(), Failure>> {
                $(let $argument = match $argument::from_delivery(&delivered) {
                    Ok(argument) => argument,
                    Err(failure) => return Box::pin(std::future::ready(Err(failure))),
                };)*
                let running = self(delivered.incoming, $($argument,)*);
                Box::pin(async move { running.await.into_result() })
            }

            fn check(bus: &Bus) -> Result<()> {
                let _ = bus;
                $($argument::check(bus)?;)*
                Ok(())
            }
        }
    };
}

raw_handler!();
raw_handler!(A2);
raw_handler!(A2 A3);
raw_handler!(A2 A3 A4);
raw_handler!(A2 A3 A4 A5);
raw_handler!(A2 A3 A4 A5 A6);
raw_handler!(A2 A3 A4 A5 A6 A7);
raw_handler!(A2 A3 A4 A5 A6 A7 A8);

/// A handler of what a filter matches, its arguments forgotten.
pub(crate) struct RawRegistration {
    /// Over the types' subjects, without the root.
    pub(crate) filter: Filter,
    pub(crate) handler: Arc<dyn Handles>,
}

impl RawRegistration {
    pub(crate) fn new<Args: 'static>(filter: Filter, handler: impl RawHandler<Args>) -> Self {
        let handler = Arc::new(Untyped {
            handler,
            args: PhantomData,
        });
        Self { filter, handler }
    }
}

struct Untyped<H, Args> {
    handler: H,
    args: PhantomData<fn(Args)>,
}

impl<H: RawHandler<Args>, Args> Handles for Untyped<H, Args> {
    fn check(&self, bus: &Bus) -> Result<()> {
        H::check(bus)
    }

    fn call(&self, delivered: Delivered) -> Boxed<'static, Result<(), Failure>> {
        self.handler.call(delivered)
    }
}
