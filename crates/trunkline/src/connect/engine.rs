//! From a URL to the engine behind it.

use std::sync::Arc;

use trunkline_core::engine::{Engine, LinkOptions};
use trunkline_core::{Clock, Error, ErrorKind, Result};

use super::Nats;

/// What a URL may begin with, which feature has the engine, and how such a URL looks.
const SCHEMES: &[(&str, &str, &str)] = &[
    ("memory", "memory", "`memory:` and `memory:name`"),
    ("file", "log", "`file:PATH` of a directory"),
    ("nats", "nats", "`nats://HOST:PORT` of a NATS server"),
    ("tls", "nats", "`tls://HOST:PORT` of one that speaks TLS"),
    (
        "http",
        "remote",
        "`http://HOST:PORT` of a running `trunkline up`",
    ),
];

pub(super) async fn open(
    url: &str,
    clock: &Arc<dyn Clock>,
    link: LinkOptions,
    nats: &Nats,
) -> Result<Arc<dyn Engine>> {
    // Without any engine nobody needs them.
    let _ = (clock, link, nats);
    match url.split(':').next().unwrap_or_default() {
        #[cfg(feature = "memory")]
        "memory" => {
            use trunkline_memory::{MemoryEngine, MemoryOptions};
            let options = MemoryOptions::from_url(url)?;
            Ok(Arc::new(MemoryEngine::connect(options, Arc::clone(clock))?))
        }
        #[cfg(feature = "log")]
        "file" => super::file::open(url, clock, link).await,
        #[cfg(feature = "nats")]
        "nats" | "tls" => {
            use trunkline_nats::NatsEngine;
            let options = nats.options()?.with_url(url)?;
            Ok(Arc::new(
                NatsEngine::connect(&options, link, Arc::clone(clock)).await?,
            ))
        }
        #[cfg(feature = "remote")]
        "http" => {
            use trunkline_remote::RemoteEngine;
            let engine = RemoteEngine::connect(url, link, Arc::clone(clock)).await?;
            Ok(Arc::new(engine))
        }
        scheme => Err(unknown(scheme)),
    }
}

/// Nothing but the scheme is quoted: the rest of a URL may hold a password, and so may what is no
/// scheme.
fn unknown(scheme: &str) -> Error {
    if let Some((_, feature, _)) = SCHEMES.iter().find(|(known, ..)| *known == scheme) {
        return Error::new(
            ErrorKind::InvalidUrl,
            format!(
                "this build has no engine for `{scheme}:`; compile `trunkline` with its feature `{feature}`"
            ),
        );
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"+-".contains(&byte);
    let shown = match scheme.bytes().all(legal) {
        true => scheme,
        false => "something else than a scheme",
    };
    let known: Vec<_> = SCHEMES.iter().map(|(_, _, form)| *form).collect();
    Error::new(
        ErrorKind::InvalidUrl,
        format!(
            "there is no engine for URLs that begin with {shown:?}; there are {}",
            known.join(", and ")
        ),
    )
}
