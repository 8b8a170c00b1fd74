//! The door over real connections.

mod support;

mod access;
mod publish;
mod read;
mod shutdown;
