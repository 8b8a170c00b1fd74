//! That the rivals do the work which the rows say.

use super::place::Place;
use super::store::{Form, Maker, Record, Store};
use super::{Fjall, RawFile, Redb, Sqlite};

fn record(id: u8, body: usize) -> Record {
    Record {
        subject: "a.b",
        id: [id; 16],
        body: vec![id; body].into(),
    }
}

fn bodies<S: Store>(store: &S, events: u64) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    let seen = store
        .scan(events, |body| {
            bodies.push(body.to_vec());
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, bodies.len() as u64);
    bodies
}

fn keeps_events_in_order<S: Store>() {
    let place = Place::new().unwrap();
    let mut store = S::open(place.path()).unwrap();
    assert_eq!((store.count(), bodies(&store, 9).len()), (0, 0));
    store.append(&[record(3, 5), record(1, 300)]).unwrap();
    drop(store);
    let mut store = S::open(place.path()).unwrap();
    assert_eq!(store.count(), 2);
    store.append(&[record(2, 0)]).unwrap();
    assert_eq!(
        bodies(&store, 9),
        [vec![3; 5], vec![1; 300], Vec::new()],
        "{}",
        S::LABEL
    );
    assert_eq!(bodies(&store, 2).len(), 2);
}

fn knows_a_repeat<S: Store>() {
    let place = Place::new().unwrap();
    let mut store = S::open(place.path()).unwrap();
    store.append(&[record(1, 1), record(2, 2)]).unwrap();
    store.append(&[record(1, 9), record(3, 3)]).unwrap();
    assert_eq!(store.count(), 3, "{}", S::LABEL);
    assert_eq!(bodies(&store, 9), [vec![1; 1], vec![2; 2], vec![3; 3]]);
}

#[test]
fn publishers_that_begin_at_once_make_different_ids() {
    let ids = || {
        let made = || Maker::new(Form::Bytes).unwrap().record().unwrap().id;
        (0..20_000).map(|_| made()).collect::<Vec<_>>()
    };
    let mut made: Vec<_> = std::thread::scope(|scope| {
        let threads = [scope.spawn(ids), scope.spawn(ids)];
        threads
            .into_iter()
            .flat_map(|one| one.join().unwrap())
            .collect()
    });
    made.sort_unstable();
    made.dedup();
    assert_eq!(made.len(), 40_000);
}

#[test]
fn rivals_keep_events_in_order_and_go_on_after_they_were_opened_again() {
    keeps_events_in_order::<RawFile>();
    keeps_events_in_order::<Sqlite>();
    keeps_events_in_order::<Fjall>();
    keeps_events_in_order::<Redb>();
}

#[test]
fn libraries_store_a_repeat_once_and_the_raw_file_is_marked() {
    knows_a_repeat::<Sqlite>();
    knows_a_repeat::<Fjall>();
    knows_a_repeat::<Redb>();
    assert!(RawFile::LABEL.contains("no dedup"));
}

#[test]
fn a_raw_file_goes_on_in_the_next_segment() {
    let place = Place::new().unwrap();
    let mut store = RawFile::open(place.path()).unwrap();
    for id in 1..=3 {
        store.append(&[record(id, 30 << 20)]).unwrap();
    }
    drop(store);
    let store = RawFile::open(place.path()).unwrap();
    let firsts: Vec<u8> = bodies(&store, 9).iter().map(|body| body[0]).collect();
    assert_eq!((store.count(), firsts), (3, vec![1, 2, 3]));
}

#[test]
fn ids_differ_and_begin_with_the_time() {
    let mut maker = Maker::new(Form::Bytes).unwrap();
    let one = maker.record().unwrap();
    let other = maker.record().unwrap();
    assert_ne!(one.id, other.id);
    assert!(one.id[..6] <= other.id[..6]);
    assert_eq!(one.body, other.body);
}

#[test]
fn a_directory_goes_with_its_place() {
    let place = Place::new().unwrap();
    let dir = place.path().to_owned();
    std::fs::write(dir.join("a"), "b").unwrap();
    drop(place);
    assert!(!dir.exists());
}
