use super::*;

fn disk_with_file() -> (SimDisk, Arc<dyn File>) {
    let disk = SimDisk::new(1);
    disk.make_dir(Path::new("/d")).unwrap();
    let file = disk.open(Path::new("/d/a"), Open::CreateNew).unwrap();
    (disk, file)
}

fn after_crash(disk: &SimDisk) -> Option<Vec<u8>> {
    disk.files().remove(Path::new("/d/a"))
}

#[test]
fn what_was_synced_survives_and_the_rest_may_be_torn_by_sector() {
    let (mut whole, mut torn, mut gone) = (0, 0, 0);
    for seed in 0..200 {
        let (disk, file) = disk_with_file();
        file.write_at(&[1; 2048], 0).unwrap();
        file.sync().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        file.write_at(&[2; 2048], 0).unwrap();
        disk.crash(seed);
        assert!(file.len().is_err(), "a handle survived the crash");
        let content = after_crash(&disk).unwrap();
        for sector in content.chunks(node::SECTOR) {
            assert!(
                sector.iter().all(|byte| *byte == sector[0]),
                "torn within a sector"
            );
        }
        match content.iter().filter(|byte| **byte == 2).count() {
            2048 => whole += 1,
            0 => gone += 1,
            _ => torn += 1,
        }
    }
    assert!(
        whole > 20 && torn > 50 && gone > 20,
        "{whole} {torn} {gone}"
    );
}

#[test]
fn names_are_durable_only_with_their_directory() {
    let (mut old, mut new, mut none) = (0, 0, 0);
    for seed in 0..100 {
        let (disk, file) = disk_with_file();
        file.sync().unwrap();
        if seed % 2 == 0 {
            disk.sync_dir(Path::new("/d")).unwrap();
        }
        disk.rename(Path::new("/d/a"), Path::new("/d/b")).unwrap();
        disk.crash(seed);
        match disk.list(Path::new("/d")).unwrap().as_slice() {
            [name] if name == "a" => old += 1,
            [name] if name == "b" => new += 1,
            [] if seed % 2 == 1 => none += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(old > 0 && new > 0 && none > 0, "{old} {new} {none}");
}

#[test]
fn a_failed_sync_may_lose_writes_that_a_later_one_does_not_bring_back() {
    let mut lost = 0;
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let file = disk.open(Path::new("/a"), Open::CreateNew).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        file.write_at(&[7; 512], 0).unwrap();
        disk.fault_at(disk.operations() + 1, Fault::Fail);
        assert!(file.sync().is_err());
        let mut seen = [0; 1];
        file.read_at(&mut seen, 0).unwrap();
        assert_eq!(seen, [7], "the page is still in memory");
        file.sync().unwrap();
        disk.crash(seed);
        lost += u32::from(disk.files()[Path::new("/a")] != [7; 512]);
    }
    assert!((5..45).contains(&lost), "{lost}");
}

#[test]
fn a_lying_sync_says_yes_and_a_full_disk_no() {
    let mut lost = 0;
    for seed in 0..50 {
        let (disk, file) = disk_with_file();
        disk.sync_dir(Path::new("/d")).unwrap();
        file.write_at(&[1; 512], 0).unwrap();
        disk.fault_at(disk.operations() + 1, Fault::Lie);
        file.sync().unwrap();
        disk.crash(seed);
        lost += u32::from(after_crash(&disk).unwrap() != [1; 512]);
    }
    assert!(lost > 5, "{lost}");
    let (disk, file) = disk_with_file();
    disk.set_capacity(Some(1024));
    file.allocate(1024).unwrap();
    file.write_at(&[1; 1024], 0).unwrap();
    for full in [file.allocate(1025), file.write_at(&[1], 1024)] {
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
    assert_eq!(disk.used(), 1024);
    disk.set_capacity(None);
    file.allocate(4096).unwrap();
}

#[test]
fn faults_come_at_their_operation_and_the_power_stays_off() {
    let (disk, file) = disk_with_file();
    assert_eq!(disk.operations(), 2);
    disk.fault_at(4, Fault::Fail);
    file.write_at(&[1], 0).unwrap();
    assert!(file.write_at(&[1; 600], 0).is_err());
    file.write_at(&[1], 0).unwrap();
    disk.fault_at(6, Fault::FailFromHereOn);
    assert!(file.sync().is_err() && file.set_len(1).is_err());
    disk.mend();
    file.sync().unwrap();
    disk.fault_at(disk.operations() + 1, Fault::PowerCut);
    assert!(disk.rename(Path::new("/d/a"), Path::new("/d/b")).is_err());
    assert!(file.read_at(&mut [0], 0).is_err() && disk.list(Path::new("/d")).is_err());
    disk.crash(0);
    assert!(disk.list(Path::new("/d")).is_ok());
}
