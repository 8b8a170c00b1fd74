//! The engine as a process reaches it: every call a packet there and, perhaps, one back.

use std::fmt;
use std::sync::Arc;

use trunkline::core::engine::{
    Admission, Admitted, Append, AppendMode, Backlog, Batch, Boxed, Bucket, Capabilities, Change,
    Commit, Committed, Consume, ConsumerRef, Credit, Durability, Engine, Entries, Fact, Follow,
    Gauges, Inspection, Limits, Link, Listener, Live, Log, Membership, Message, Outcome, Page,
    Position, Reach, Removal, Rev, Route, State, StateKey, SubjectCount, Topology, Watch,
};
use trunkline::core::{Filter, Subject};
use trunkline::{Error, ErrorKind, Name, Result};

use super::host::{Once, Port};
use super::hub::Call;
use super::readers::{SimFeed, SimFollow, SimListener, SimSettler, SimWatch};
use super::site::Site;

/// A process's connection to the engine.
#[derive(Clone)]
pub(crate) struct SimNet {
    pub(crate) port: Arc<Port>,
    pub(crate) closed: Arc<Once>,
}

impl SimNet {
    pub(crate) fn new(port: Arc<Port>) -> Self {
        Self {
            port,
            closed: Arc::default(),
        }
    }

    fn check_open(&self) -> Result<()> {
        match self.closed.has_happened() {
            true => Err(Error::new(
                ErrorKind::Closed,
                "this connection to the bus is closed",
            )),
            false => Ok(()),
        }
    }

    /// Both stages of a question at once.
    pub(crate) async fn ask<T, F>(&self, call: Call, text: String, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Site>) -> Boxed<'static, Result<T>> + Send + 'static,
    {
        self.check_open()?;
        self.port.ask(call, text, work).await?.await
    }
}

impl Engine for SimNet {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: Durability::Crash,
            reach: Reach::Host,
            shares_values: false,
        }
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn facts(&self) -> Vec<Fact> {
        vec![Fact::new(Fact::ID, "simulated")]
    }

    fn link(&self) -> tokio::sync::watch::Receiver<Link> {
        self.port.link()
    }

    fn live(&self) -> &dyn Live {
        self
    }

    fn log(&self) -> &dyn Log {
        self
    }

    fn consume(&self) -> &dyn Consume {
        self
    }

    fn state(&self) -> &dyn State {
        self
    }

    fn topology(&self) -> &dyn Topology {
        self
    }

    fn gauges(&self) -> Option<&dyn Gauges> {
        None
    }

    fn close(&self) -> Boxed<'_, ()> {
        self.closed.happen();
        self.port.set_link(&Link::Closed);
        Box::pin(std::future::ready(()))
    }
}

impl fmt::Debug for SimNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimNet").field(&self.port.name).finish()
    }
}

impl Log for SimNet {
    fn append(
        &self,
        stream: &Name,
        batch: Batch<Append>,
        mode: AppendMode,
    ) -> Admitted<'_, Vec<Outcome>> {
        let (stream, count) = (stream.clone(), batch.len());
        Admitted::waiting(async move {
            self.check_open()?;
            let subjects: Vec<String> = match self.port.hub.is_verbose {
                true => batch.iter().map(|item| item.subject.to_string()).collect(),
                false => Vec::new(),
            };
            let asked = self
                .port
                .ask(Call::Append, subjects.join(" "), move |site| {
                    Box::pin(async move {
                        let log = site.engine.log();
                        log.append(&stream, batch, mode).completed().await
                    })
                });
            let answered = asked.await?;
            Ok(Admission::waiting(async move {
                match answered.await {
                    Err(error) if error.kind() == ErrorKind::TimedOut => {
                        Ok(vec![Outcome::Unknown(error); count])
                    }
                    answered => answered,
                }
            }))
        })
    }

    fn read<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
        max: Credit,
    ) -> Boxed<'a, Result<Page>> {
        let (stream, filters) = (stream.clone(), filters.to_vec());
        Box::pin(self.ask(Call::Read, format!("from {from}"), move |site| {
            Box::pin(async move { site.engine.log().read(&stream, from, &filters, max).await })
        }))
    }

    fn follow<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
    ) -> Boxed<'a, Result<Box<dyn Follow>>> {
        Box::pin(async move {
            let follow = SimFollow::open(self, stream.clone(), from, filters.to_vec()).await?;
            let follow: Box<dyn Follow> = Box::new(follow);
            Ok(follow)
        })
    }

    fn remove<'a>(&'a self, stream: &'a Name, what: Removal) -> Boxed<'a, Result<u64>> {
        let stream = stream.clone();
        Box::pin(self.ask(Call::Remove, String::new(), move |site| {
            Box::pin(async move { site.engine.log().remove(&stream, what).await })
        }))
    }
}

impl State for SimNet {
    fn commit(&self, bucket: &Bucket, commit: Commit) -> Admitted<'_, Committed> {
        let bucket = bucket.clone();
        Admitted::waiting(async move {
            self.check_open()?;
            let id = commit.id.clone();
            let asked = self.port.ask(Call::Commit, id.to_string(), move |site| {
                Box::pin(async move { site.commit(&bucket, commit).await })
            });
            Ok(Admission::waiting(asked.await?))
        })
    }

    fn scan<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        after: Option<&'a StateKey>,
        at_least: Rev,
        max: Credit,
    ) -> Boxed<'a, Result<Entries>> {
        let (bucket, prefix, after) = (bucket.clone(), prefix.cloned(), after.cloned());
        Box::pin(self.ask(Call::Scan, String::from("a bucket"), move |site| {
            Box::pin(async move {
                site.scan(&bucket, prefix.as_ref(), after.as_ref(), at_least, max)
                    .await
            })
        }))
    }

    fn watch<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        from: Rev,
    ) -> Boxed<'a, Result<Box<dyn Watch>>> {
        Box::pin(async move {
            let watch = SimWatch::open(self, bucket.clone(), prefix.cloned(), from).await?;
            let watch: Box<dyn Watch> = Box::new(watch);
            Ok(watch)
        })
    }
}

impl Consume for SimNet {
    fn open<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Membership>> {
        Box::pin(async move {
            let (feed, settler) = SimFeed::open(self, consumer.clone()).await?;
            let membership: Membership = (Box::new(feed), settler);
            Ok(membership)
        })
    }
}

impl SimNet {
    /// The settling end of a consumer: the server keeps the real one.
    pub(crate) fn settler(
        &self,
        settler: Arc<dyn trunkline::core::engine::Settler>,
    ) -> Arc<SimSettler> {
        Arc::new(SimSettler {
            net: self.clone(),
            settler,
        })
    }
}

impl Topology for SimNet {
    fn inspect(&self) -> Boxed<'_, Result<Inspection>> {
        Box::pin(self.ask(Call::Topology, String::from("inspect"), |site| {
            Box::pin(async move { site.engine.topology().inspect().await })
        }))
    }

    fn apply(&self, changes: Vec<Change>) -> Boxed<'_, Result<()>> {
        Box::pin(self.ask(Call::Topology, String::from("apply"), |site| {
            Box::pin(async move { site.engine.topology().apply(changes).await })
        }))
    }

    fn backlog<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Backlog>> {
        let consumer = consumer.clone();
        Box::pin(
            self.ask(Call::Topology, String::from("backlog"), move |site| {
                Box::pin(async move { site.engine.topology().backlog(&consumer).await })
            }),
        )
    }

    fn subjects<'a>(
        &'a self,
        stream: &'a Name,
        filter: &'a Filter,
        max: usize,
    ) -> Boxed<'a, Result<Vec<SubjectCount>>> {
        let (stream, filter) = (stream.clone(), filter.clone());
        Box::pin(
            self.ask(Call::Topology, String::from("subjects"), move |site| {
                Box::pin(async move {
                    let topology = site.engine.topology();
                    topology.subjects(&stream, &filter, max).await
                })
            }),
        )
    }
}

impl Live for SimNet {
    fn send(&self, batch: Batch<Message>) -> Admitted<'_, ()> {
        let sent = self.check_open().map(|()| {
            self.port.tell(Call::Live, None, String::new, |site| {
                Box::pin(async move {
                    // Live messages promise nothing, and the sender is gone by now.
                    let _ = site.engine.live().send(batch).completed().await;
                })
            });
        });
        Admitted::done(sent)
    }

    fn route(&self, subject: &Subject) -> Arc<dyn Route> {
        Arc::new(SimRoute {
            net: self.clone(),
            subject: subject.clone(),
        })
    }

    fn listen(
        &self,
        filters: &[Filter],
        share: Option<&Name>,
        capacity: usize,
    ) -> Boxed<'_, Result<Box<dyn Listener>>> {
        let (filters, share) = (filters.to_vec(), share.cloned());
        Box::pin(async move {
            let listener = SimListener::open(self, filters, share, capacity).await?;
            let listener: Box<dyn Listener> = Box::new(listener);
            Ok(listener)
        })
    }
}

struct SimRoute {
    net: SimNet,
    subject: Subject,
}

impl Route for SimRoute {
    fn send(&self, message: Message) -> Admitted<'_, ()> {
        let subject = self.subject.clone();
        self.net.send(
            [Message { subject, ..message }]
                .into_iter()
                .collect::<Batch<Message>>(),
        )
    }
}
