//! The baselines: what one would use without Trunkline, each at its best.

pub mod tokio_channels;

pub mod ruststream_memory;

pub mod routing;
