//! Live messages: a ring for each listener, nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use tokio::sync::watch;

use super::{Waiter, until_closed};
use crate::engine::{Boxed, Heard, Link, Listener, Message};
use crate::error::{Error, ErrorKind, Result};
use crate::matcher::{Key, Matcher};
use crate::name::Name;
use crate::subject::{Filter, Subject};

/// Every listener of a bus.
#[derive(Clone, Default)]
pub struct Listeners(Arc<Shared>);

#[derive(Default)]
struct Shared {
    matcher: RwLock<Matcher<Arc<Ring>>>,
    /// The matcher's generation, readable without its lock.
    generation: AtomicU64,
    /// Whose turn it is in each group, for as long as it has a member.
    turns: Mutex<BTreeMap<Name, Weak<AtomicUsize>>>,
}

/// What one listener has not received yet.
struct Ring {
    inner: Mutex<RingInner>,
    waiter: Waiter,
    capacity: usize,
    /// The group that it shares with others, and whose turn it is there.
    share: Option<(Name, Arc<AtomicUsize>)>,
    /// Whether one message can match two of its filters.
    many_filters: bool,
}

#[derive(Default)]
struct RingInner {
    messages: VecDeque<Message>,
    lost: u64,
    no_responders: u64,
}

impl Ring {
    fn push(&self, message: Message) {
        let mut inner = self.inner.lock();
        if inner.messages.len() == self.capacity {
            inner.messages.pop_front();
            inner.lost += 1;
        }
        inner.messages.push_back(message);
        drop(inner);
        self.waiter.wake();
    }
}

/// Who gets a message: everyone in `each`, one of each group.
#[derive(Default)]
struct Targets {
    each: SmallVec<[Arc<Ring>; 2]>,
    groups: Vec<Group>,
}

struct Group {
    name: Name,
    members: Vec<Arc<Ring>>,
    turn: Arc<AtomicUsize>,
}

impl Targets {
    fn add(&mut self, ring: &Arc<Ring>) {
        let Some((name, turn)) = &ring.share else {
            if !ring.many_filters || !self.each.iter().any(|other| Arc::ptr_eq(other, ring)) {
                self.each.push(Arc::clone(ring));
            }
            return;
        };
        match self.groups.iter_mut().find(|group| group.name == *name) {
            Some(group) if group.members.iter().any(|other| Arc::ptr_eq(other, ring)) => {}
            Some(group) => group.members.push(Arc::clone(ring)),
            None => self.groups.push(Group {
                name: name.clone(),
                members: vec![Arc::clone(ring)],
                turn: Arc::clone(turn),
            }),
        }
    }

    fn is_empty(&self) -> bool {
        self.each.is_empty() && self.groups.is_empty()
    }

    fn send(&self, message: Message) {
        for group in &self.groups {
            let turn = group.turn.fetch_add(1, Ordering::Relaxed);
            group.members[turn % group.members.len()].push(message.clone());
        }
        // The last one takes the message itself, so that a lone listener costs no clone.
        if let Some((last, others)) = self.each.split_last() {
            for ring in others {
                ring.push(message.clone());
            }
            last.push(message);
        }
    }
}

impl Shared {
    /// Whose turn it is in a group: one counter for all its members, however a message finds them.
    fn turn(&self, group: &Name) -> Arc<AtomicUsize> {
        let mut turns = self.turns.lock();
        if let Some(turn) = turns.get(group).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(group.clone(), Arc::downgrade(&turn));
        turn
    }

    fn resolve(&self, subject: &Subject) -> (u64, Targets) {
        let matcher = self.matcher.read();
        let mut targets = Targets::default();
        matcher.each(subject, |ring| targets.add(ring));
        (matcher.generation(), targets)
    }

    fn deliver(&self, message: Message, targets: &Targets) {
        if targets.is_empty() {
            // The asker is told that nobody answers, as a NATS server would tell it.
            if let Some(reply) = &message.reply {
                self.matcher.read().each(reply, |ring| {
                    ring.inner.lock().no_responders += 1;
                    ring.waiter.wake();
                });
            }
            return;
        }
        targets.send(message);
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").finish_non_exhaustive()
    }
}

impl Listeners {
    /// Delivers one message. Engines check it before.
    pub fn send(&self, message: Message) {
        let (_, targets) = self.0.resolve(&message.subject);
        self.0.deliver(message, &targets);
    }

    /// Listens to whatever matches one of the filters, until the link says that it is closed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] without a filter or capacity.
    pub fn listen(
        &self,
        filters: &[Filter],
        share: Option<&Name>,
        capacity: usize,
        link: watch::Receiver<Link>,
    ) -> Result<Box<dyn Listener>> {
        if filters.is_empty() || capacity == 0 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "a listener needs a filter and a capacity of at least 1",
            ));
        }
        let ring = Arc::new(Ring {
            inner: Mutex::default(),
            waiter: Waiter::default(),
            capacity,
            share: share.map(|name| (name.clone(), self.0.turn(name))),
            many_filters: filters.len() > 1,
        });
        let mut matcher = self.0.matcher.write();
        let keys = filters
            .iter()
            .map(|filter| (filter.clone(), matcher.insert(filter, Arc::clone(&ring))))
            .collect();
        self.0
            .generation
            .store(matcher.generation(), Ordering::Release);
        Ok(Box::new(RingListener {
            listeners: Arc::clone(&self.0),
            link,
            ring,
            keys,
        }))
    }
}

/// Who listens to one subject, looked up once and then fast. It stays right as listeners come and go.
pub struct Resolved {
    listeners: Arc<Shared>,
    subject: Subject,
    /// Right as long as the generation is the listeners' own.
    targets: RwLock<(u64, Targets)>,
}

impl Resolved {
    /// The listeners of a subject.
    pub fn new(listeners: &Listeners, subject: Subject) -> Self {
        Self {
            listeners: Arc::clone(&listeners.0),
            subject,
            targets: RwLock::new((u64::MAX, Targets::default())),
        }
    }

    /// Delivers one message to that subject.
    pub fn send(&self, message: Message) {
        let listeners = &self.listeners;
        {
            let targets = self.targets.read();
            if targets.0 == listeners.generation.load(Ordering::Acquire) {
                listeners.deliver(message, &targets.1);
                return;
            }
        }
        let mut targets = self.targets.write();
        *targets = listeners.resolve(&self.subject);
        listeners.deliver(message, &targets.1);
    }
}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Resolved").field(&self.subject).finish()
    }
}

struct RingListener {
    listeners: Arc<Shared>,
    link: watch::Receiver<Link>,
    ring: Arc<Ring>,
    keys: Vec<(Filter, Key)>,
}

impl Listener for RingListener {
    fn receive<'a>(&'a mut self, max: usize, out: &'a mut Vec<Message>) -> Boxed<'a, Heard> {
        Box::pin(async move {
            loop {
                let parked = {
                    let mut inner = self.ring.inner.lock();
                    if inner.no_responders > 0 {
                        inner.no_responders -= 1;
                        return Heard::NoResponders;
                    }
                    if inner.lost > 0 {
                        return Heard::Lagged {
                            at_least: std::mem::take(&mut inner.lost),
                        };
                    }
                    let count = inner.messages.len().min(max);
                    if count > 0 {
                        out.extend(inner.messages.drain(..count));
                        return Heard::Messages(count);
                    }
                    self.ring.waiter.park()
                };
                tokio::select! {
                    biased;
                    () = parked.wait() => {}
                    () = until_closed(self.link.clone()) => return Heard::Closed,
                }
            }
        })
    }
}

impl Drop for RingListener {
    fn drop(&mut self) {
        let mut matcher = self.listeners.matcher.write();
        for (filter, key) in &self.keys {
            matcher.remove(filter, *key);
        }
        self.listeners
            .generation
            .store(matcher.generation(), Ordering::Release);
    }
}
