//! Where the programs of one side run, and what they connect to.

use std::future::Future;

use tokio::runtime::Runtime;

use crate::pair::{Result, Side};
use crate::runtime::Flavour;
use crate::stopwatch::Stopwatch;

/// A bus or a server that is new, and the threads of those who use it.
pub struct Site {
    pub url: String,
    pub programs: Runtime,
}

impl Site {
    pub fn new(url: String) -> Result<Self> {
        Ok(Self {
            url,
            programs: Flavour::AcrossThreads.runtime()?,
        })
    }

    /// Runs work where its connections run too, as an application would.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.programs
            .block_on(async { self.programs.spawn(work).await? })
    }
}

/// A site with the work to be done there, and with what it needs for as long: a server that is to
/// run, a directory that is to stay.
pub struct Working<W, K> {
    // Dropped in this order: whoever uses the ground goes first.
    pub site: Site,
    pub work: W,
    pub ground: K,
}

/// What a site stands on.
pub trait Ground {
    /// The process id of the server that works for this side alone, if one does.
    fn server(&self) -> Option<u32>;
}

impl<W, K> Side for Working<W, K>
where
    W: Fn(&Site, u64, &mut Stopwatch) -> Result<()>,
    K: Ground,
{
    fn round(&mut self, events: u64, watch: &mut Stopwatch) -> Result<()> {
        (self.work)(&self.site, events, watch)
    }

    fn server(&self) -> Option<u32> {
        self.ground.server()
    }
}
