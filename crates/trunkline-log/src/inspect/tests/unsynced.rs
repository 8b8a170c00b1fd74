//! A directory whose owner synced less than always, and was not closed.

use super::*;
use crate::engine::sync::{self, UNSYNCED};
use crate::inspect::{Remedy, Severity};

/// One whose consumer has settled what the stream has lost.
fn cut(announced: Seq) -> SimDisk {
    let (disk, _) = written(3, false);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut journal, _) =
        Journal::open(Arc::clone(&shared), Path::new(ROOT), OPTIONS, time(900)).unwrap();
    let settled = Record::Settled {
        at: consumer(),
        stretches: vec![(1, EVENTS + 30)],
        lost: 0,
    };
    journal.stage(settled, time(900)).unwrap();
    drop(journal.close().unwrap());
    sync::write(
        &*shared,
        Path::new(ROOT),
        &BTreeMap::from([(name("orders"), announced)]),
    )
    .unwrap();
    copy_of(&disk)
}

#[test]
fn what_was_announced_and_is_gone_is_no_damage() {
    let found = verify(&cut(EVENTS + 50));
    let found: Vec<_> = found.findings.iter().collect();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        (found[0].severity, found[0].remedy),
        (Severity::Leftover, Remedy::Opening)
    );
    assert_eq!(found[0].file, Path::new(UNSYNCED));
    // What nobody announced was durable, and is missing.
    assert_eq!(verify(&cut(EVENTS + 20)).damage().count(), 1);
}

#[test]
fn damage_to_it_is_found_and_a_repair_goes_on_behind_all_that_may_have_been_stored() {
    let whole = cut(EVENTS + 50);
    let path = Path::new(ROOT).join(UNSYNCED);
    let len = whole.files()[&path].len() as u64;
    for at in 0..len {
        let disk = copy_of(&whole);
        assert!(disk.flip(&path, at, 1));
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let error = sync::read(&*shared, Path::new(ROOT)).unwrap_err();
        assert!(error.message().contains(UNSYNCED), "{error}");
        let found = verify(&disk);
        let is_it = |finding: &&crate::inspect::Finding| finding.file == Path::new(UNSYNCED);
        assert!(
            found.damage().any(|finding| is_it(&finding)),
            "{at}: {:#?}",
            found.findings
        );
    }
    let disk = copy_of(&whole);
    assert!(disk.flip(&path, 5, 1));
    let done = directory(&disk)
        .repair_held(time(2_000), true, &mut |_| {})
        .unwrap();
    assert!(
        done.kept
            .iter()
            .any(|kept| kept.starts_with("unsynced.damaged")),
        "{:?}",
        done.kept
    );
    let after = done.after.unwrap();
    assert_eq!(after.damage().count(), 0, "{:#?}", after.findings);
    let ends = sync::read(&disk, Path::new(ROOT)).unwrap().unwrap();
    assert!(ends[&name("orders")] > EVENTS + 50, "{ends:?}");
}
