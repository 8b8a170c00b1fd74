//! The runner with jobs that do as they are told.

use std::sync::mpsc;

use tokio::sync::Semaphore;

use super::*;
use crate::consumer::policy::Breaker;
use crate::failure::FailureExt;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A job that ends as it was told, at once or when it is let.
struct Told {
    number: u64,
    alone: bool,
    placed: bool,
    script: Script,
}

#[derive(Clone)]
enum Script {
    Well,
    Fails,
    Snoozes,
    Panics,
    /// Waits for ever, and panics when it is dropped.
    HangsBadly,
    Sleeps(Duration),
    Waits(Arc<Semaphore>),
    /// Blocks its thread: tells that it has begun, and waits to be let.
    Blocks(mpsc::Sender<()>, Arc<Mutex<mpsc::Receiver<()>>>),
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

impl Job for Told {
    type Hands = ();
    type Input = Script;

    fn input(&self) -> Script {
        self.script.clone()
    }

    async fn run(script: Script, (): &()) -> Result<(), Failure> {
        match script {
            Script::Well => {}
            Script::Fails => return Err("no".into()),
            Script::Snoozes => return Err("later".snooze(SECOND)),
            Script::Panics => panic!("bang"),
            Script::HangsBadly => {
                let _bomb = Bomb;
                std::future::pending::<()>().await;
            }
            Script::Sleeps(time) => tokio::time::sleep(time).await,
            Script::Waits(gate) => gate.acquire().await.unwrap().forget(),
            Script::Blocks(begun, ends) => {
                begun.send(()).unwrap();
                ends.lock().recv().unwrap();
            }
        }
        Ok(())
    }

    fn is_trouble(failure: &Failure, (): &()) -> bool {
        Policy::default().is_trouble(failure)
    }

    fn bytes(&self) -> usize {
        10
    }

    fn runs_alone(&self) -> bool {
        self.alone
    }

    fn has_place(&self) -> bool {
        self.placed
    }

    fn place(&self, (): &()) -> (Name, Seq) {
        (Name::new("TOLD").unwrap(), self.number)
    }
}

fn told(number: u64, script: Script) -> Told {
    Told {
        number,
        alone: false,
        placed: false,
        script,
    }
}

fn waits(number: u64, gate: &Arc<Semaphore>) -> Told {
    told(number, Script::Waits(Arc::clone(gate)))
}

fn gate() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(0))
}

fn pool(concurrency: usize, policy: &Policy) -> (Pool<Told>, watch::Sender<Control>) {
    let control = watch::Sender::new(Control {
        stop: None,
        concurrency,
        window_events: None,
        window_bytes: 1,
    });
    let name = Name::new("tests").unwrap();
    let patience = Duration::from_millis(50);
    let pool = Pool::with_patience((), name, policy, control.subscribe(), patience);
    (pool, control)
}

/// The events in hand, and their bytes.
fn held(pool: &Pool<Told>) -> (usize, usize) {
    let health = pool.vitals().upgrade().unwrap().health();
    (health.held, health.held_bytes)
}

/// Waits for that many to finish, and says how: in the order of their numbers.
async fn finished(pool: &mut Pool<Told>, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    let collect = async {
        while all.len() < count {
            pool.changed().await;
            all.extend(pool.take_finished().into_iter().map(|(job, ended)| {
                let ended = match ended {
                    Ended::Well => "well".to_owned(),
                    Ended::Failed(failure) => failure.reason().to_owned(),
                    Ended::Cancelled => "cancelled".to_owned(),
                };
                (job.number, ended)
            }));
        }
    };
    // Of virtual time, where it is.
    tokio::time::timeout(Duration::from_secs(3_600), collect)
        .await
        .unwrap();
    assert_eq!(all.len(), count, "{all:?}");
    all.sort_unstable();
    let line = |(number, ended)| format!("{number} {ended}");
    all.into_iter().map(line).collect()
}

/// Lets the workers do all that they can without time passing.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// The numbers of what runs.
fn running(pool: &Pool<Told>) -> Vec<u64> {
    let inner = pool.common.inner.lock();
    let runs = inner.slots.iter().filter_map(|slot| slot.run.as_ref());
    let mut numbers: Vec<_> = runs.map(|run| run.job.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers.len(), inner.running);
    numbers
}

#[tokio::test(start_paused = true)]
async fn every_job_comes_back_once_however_its_run_ends() {
    let (mut pool, _control) = pool(2, &Policy::default());
    let scripts = [
        Script::Well,
        Script::Fails,
        Script::Snoozes,
        Script::Panics,
        Script::HangsBadly,
        Script::Sleeps(SECOND),
        Script::Well,
    ];
    pool.push((0..).zip(scripts).map(|(n, script)| told(n, script)));
    assert_eq!(held(&pool), (7, 70));
    assert_eq!(
        finished(&mut pool, 7).await,
        [
            "0 well",
            "1 failed",
            "2 failed",
            "3 panicked",
            "4 timed_out",
            "5 well",
            "6 well"
        ]
    );
    settle().await;
    assert!(pool.is_idle());
    assert_eq!(held(&pool), (0, 0));
    // And the pool works as before.
    pool.push([told(8, Script::Well)].into_iter());
    assert_eq!(finished(&mut pool, 1).await, ["8 well"]);
}

#[tokio::test(start_paused = true)]
async fn c7_each_run_has_the_whole_time_out_to_itself() {
    let (mut pool, _control) = pool(1, &Policy::default().time_out(MINUTE));
    let start = Instant::now();
    pool.push(
        [
            told(0, Script::Sleeps(50 * SECOND)),
            told(1, Script::Sleeps(70 * SECOND)),
        ]
        .into_iter(),
    );
    assert_eq!(finished(&mut pool, 1).await, ["0 well"]);
    assert_eq!(finished(&mut pool, 1).await, ["1 timed_out"]);
    let took = start.elapsed();
    assert!(
        (110 * SECOND..111 * SECOND).contains(&took),
        "the second had {took:?} less 50 s"
    );
    let (mut pool, _control) = self::pool(1, &Policy::default().time_out(None));
    pool.push([told(2, Script::Sleeps(1_000 * SECOND))].into_iter());
    assert_eq!(finished(&mut pool, 1).await, ["2 well"]);
}

#[tokio::test(start_paused = true)]
async fn the_next_place_that_is_free_is_left_for_whoever_asked_for_one() {
    let (mut pool, _control) = pool(2, &Policy::default());
    let gates: Vec<_> = (0..8).map(|_| gate()).collect();
    let job = |n: u64| waits(n, &gates[usize::try_from(n).unwrap()]);
    pool.push((0..4).map(job));
    settle().await;
    assert!(!pool.keep_place(false), "both places are taken");
    gates[0].add_permits(1);
    assert_eq!(finished(&mut pool, 1).await, ["0 well"]);
    settle().await;
    assert_eq!(running(&pool), [1], "nothing of the queue came before it");
    assert!(pool.keep_place(false));
    settle().await;
    assert_eq!(
        running(&pool),
        [1],
        "the place is kept until its job is there"
    );
    pool.push(std::iter::once(Told {
        placed: true,
        ..job(4)
    }));
    settle().await;
    assert_eq!(running(&pool), [1, 4], "it went before those that wait");
    // One that is given up, or not asked for any more, is for all again.
    assert!(!pool.keep_place(false));
    gates[1].add_permits(1);
    assert_eq!(finished(&mut pool, 1).await, ["1 well"]);
    assert!(pool.keep_place(false));
    pool.give_up_place(false);
    settle().await;
    assert_eq!(running(&pool), [2, 4]);
    assert!(!pool.keep_place(true));
    gates[2].add_permits(1);
    assert_eq!(finished(&mut pool, 1).await, ["2 well"]);
    settle().await;
    assert_eq!(
        running(&pool),
        [4],
        "whoever must run alone waits for the others"
    );
    pool.stop_wishing();
    settle().await;
    assert_eq!(running(&pool), [3, 4]);
    assert_eq!(pool.take_queue().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_job_is_cancelled_and_its_neighbours_are_not() {
    let (mut pool, _control) = pool(2, &Policy::default());
    let gate = gate();
    pool.push((0..5).map(|n| waits(n, &gate)));
    settle().await;
    assert_eq!(running(&pool), [0, 1]);
    let taken = pool.cancel(|job| [0, 3].contains(&job.number));
    assert_eq!(taken.iter().map(|job| job.number).collect::<Vec<_>>(), [3]);
    assert_eq!(finished(&mut pool, 1).await, ["0 cancelled"]);
    settle().await;
    assert_eq!(running(&pool), [1, 2], "the place was not taken");
    gate.add_permits(3);
    assert_eq!(finished(&mut pool, 3).await, ["1 well", "2 well", "4 well"]);
    assert_eq!(held(&pool), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_not_cancelled_in_the_place_of_the_one_before() {
    let (mut pool, _control) = pool(1, &Policy::default());
    let ((begun, begins), (end, ends)) = (mpsc::channel(), mpsc::channel());
    let gate = gate();
    let blocks = Script::Blocks(begun, Arc::new(Mutex::new(ends)));
    pool.push([told(0, blocks), waits(1, &gate)].into_iter());
    begins.recv().unwrap();
    // Its worker is in the middle of it, and would take the next without an await between.
    pool.cancel(|job| job.number == 0);
    end.send(()).unwrap();
    assert_eq!(finished(&mut pool, 1).await, ["0 cancelled"]);
    gate.add_permits(1);
    assert_eq!(finished(&mut pool, 1).await, ["1 well"]);
}

#[tokio::test(start_paused = true)]
async fn c8_a_job_that_runs_alone_has_no_neighbours_and_none_begins_before_the_pool_is_opened() {
    let (mut pool, _control) = pool(3, &Policy::default());
    let gates: Vec<_> = (0..6).map(|_| gate()).collect();
    pool.push((0..6).map(|n| Told {
        alone: n == 2,
        ..waits(n, &gates[usize::try_from(n).unwrap()])
    }));
    let mut steps = Vec::new();
    for next in [0, 1, 2] {
        settle().await;
        steps.push(running(&pool));
        gates[next].add_permits(1);
        finished(&mut pool, 1).await;
    }
    settle().await;
    steps.push(running(&pool));
    pool.open();
    settle().await;
    steps.push(running(&pool));
    assert_eq!(steps, [vec![0, 1], vec![1], vec![2], vec![], vec![3, 4, 5]]);
}

#[tokio::test(start_paused = true)]
async fn c8_no_place_is_given_to_others_from_the_place_of_a_job_that_runs_alone_to_the_opening() {
    let (mut pool, _control) = pool(3, &Policy::default());
    let gate = gate();
    assert!(pool.keep_place(true));
    assert!(!pool.keep_place(false), "it is about to be pushed");
    pool.push(std::iter::once(Told {
        alone: true,
        placed: true,
        ..waits(0, &gate)
    }));
    assert!(!pool.keep_place(false), "it is about to start");
    settle().await;
    assert_eq!(running(&pool), [0]);
    assert!(!pool.keep_place(false), "it runs");
    gate.add_permits(1);
    assert_eq!(finished(&mut pool, 1).await, ["0 well"]);
    assert!(!pool.keep_place(false), "nobody knows how it ended");
    pool.open();
    assert!(pool.keep_place(false));
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_starts_nothing_and_then_one() {
    let breaker = Breaker::default().runs(4).pauses(MINUTE, 2 * MINUTE);
    let (mut pool, _control) = pool(4, &Policy::default().breaker(breaker));
    let start = Instant::now();
    // What the worker has in its queue is not run through before anybody looks.
    pool.push((0..50).map(|n| told(n, Script::Fails)));
    assert_eq!(finished(&mut pool, 2).await, ["0 failed", "1 failed"]);
    assert_eq!(held(&pool).0, 48);
    assert_eq!(pool.appetite(), Appetite::None);
    let state = |pool: &Pool<Told>| pool.vitals().upgrade().unwrap().health().breaker;
    assert_eq!(state(&pool), BreakerState::Open { again_in: MINUTE });
    // The probe fails, and so does the next.
    assert_eq!(finished(&mut pool, 1).await, ["2 failed"]);
    assert_eq!(start.elapsed().as_secs(), 60);
    assert_eq!(finished(&mut pool, 1).await, ["3 failed"]);
    assert_eq!(start.elapsed().as_secs(), 180);
    let rest = pool.take_queue();
    assert_eq!((rest.len(), held(&pool)), (46, (0, 0)));
    // With nothing to try it asks for one.
    assert_eq!(pool.appetite(), Appetite::None);
    pool.changed().await;
    assert_eq!(
        (pool.appetite(), state(&pool)),
        (Appetite::One, BreakerState::Probing)
    );
    let gate = gate();
    pool.push((100..104).map(|n| waits(n, &gate)));
    settle().await;
    assert_eq!(
        (running(&pool), pool.appetite()),
        (vec![100], Appetite::None)
    );
    // One that is cancelled says nothing: the next is tried.
    pool.cancel(|job| job.number == 100);
    assert_eq!(finished(&mut pool, 1).await, ["100 cancelled"]);
    settle().await;
    assert_eq!(running(&pool), [101]);
    gate.add_permits(1);
    assert_eq!(finished(&mut pool, 1).await, ["101 well"]);
    settle().await;
    assert_eq!(
        (running(&pool), pool.appetite()),
        (vec![102, 103], Appetite::Any)
    );
    assert_eq!(state(&pool), BreakerState::Closed);
}

#[tokio::test]
async fn c7_a_handler_that_blocks_its_thread_is_found_and_let_go() {
    // A blocked thread may hold up all that share its runtime, timers included.
    let elsewhere = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let policy = Policy::default().time_out(Duration::from_millis(20));
    let (mut pool, _control) = pool(2, &policy);
    let ((begun, begins), (end, ends)) = (mpsc::channel(), mpsc::channel());
    let blocks = Told {
        alone: true,
        ..told(7, Script::Blocks(begun, Arc::new(Mutex::new(ends))))
    };
    {
        let _there = elsewhere.enter();
        pool.push([blocks].into_iter());
    }
    begins.recv().unwrap();
    let vitals = pool.vitals();
    let health = || vitals.upgrade().unwrap().health();
    assert!(health().is_well());
    let kept = |pool: &Pool<Told>| {
        let mut kept = Vec::new();
        pool.each(|job| kept.push(job.number));
        kept
    };
    assert_eq!(kept(&pool), [7]);
    let found = async {
        while !kept(&pool).is_empty() {
            pool.changed().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found)
        .await
        .unwrap();
    let found = health();
    assert!(!found.is_well());
    assert_eq!((found.running, found.held), (1, 1));
    let [stuck] = &found.stuck[..] else {
        panic!("{found:?}");
    };
    assert_eq!((stuck.stream.as_str(), stuck.seq), ("TOLD", 7));
    assert!(stuck.running_for >= Duration::from_millis(70), "{stuck:?}");
    // The other place is of use still, although it was to have no neighbours.
    pool.push([told(8, Script::Well)].into_iter());
    assert_eq!(finished(&mut pool, 1).await, ["8 well"]);
    // Nobody waits for it for longer than is asked.
    assert_eq!(pool.cancel_all(Instant::now()).await, 1);
    end.send(()).unwrap();
    assert_eq!(finished(&mut pool, 1).await, ["7 well"]);
    assert_eq!(pool.cancel_all(Instant::now() + MINUTE).await, 0);
    assert!(health().is_well());
    elsewhere.shutdown_background();
}

// A stop takes what waits, also from under workers that are about to begin: nothing tells of those.
#[tokio::test(start_paused = true)]
async fn workers_that_find_nothing_keep_nobody_waiting() {
    let (mut pool, _control) = pool(3, &Policy::default());
    pool.push((1..=3).map(|number| told(number, Script::Well)));
    assert_eq!(pool.take_queue().len(), 3);
    let idle = async {
        while !pool.is_idle() {
            pool.changed().await;
        }
    };
    tokio::time::timeout(MINUTE, idle).await.unwrap();
    assert_eq!(held(&pool), (0, 0));
    assert!(pool.take_finished().is_empty());
}
