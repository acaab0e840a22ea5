use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Bench, content, terms};
use crate::{Damage, Expiry, Lease, LeaseError, LeaseTerms, Part, Rights};

#[test]
fn a_revoked_lease_yields_nothing_also_for_open_objects() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, 9000)[..]).unwrap();
    let lease = vault.lease(terms()).unwrap();
    let object = lease.open("a").unwrap();
    let mut buf = [0; 100];
    assert_eq!(lease.read_at(&object, &mut buf, 8950).unwrap(), 50);
    lease.revoke();
    let mut buf = [0; 100];
    assert!(matches!(
        lease.read_at(&object, &mut buf, 0),
        Err(LeaseError::Revoked)
    ));
    assert_eq!(buf, [0; 100]);
    assert!(matches!(lease.open("a"), Err(LeaseError::Revoked)));
    assert!(matches!(lease.list(), Err(LeaseError::Revoked)));
    assert!(lease.has_ended());
    let usage = lease.usage();
    assert_eq!(
        (usage.opens, usage.reads, usage.bytes, usage.refused),
        (1, 1, 50, 3)
    );
    // The vault itself is as it was.
    assert!(vault.object("a").is_ok());
}

#[test]
fn no_read_is_under_way_once_revocation_has_returned() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, 100_000)[..]).unwrap();
    for _ in 0..20 {
        let lease = Arc::new(vault.lease(terms()).unwrap());
        let revoked = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (lease, revoked) = (Arc::clone(&lease), Arc::clone(&revoked));
                std::thread::spawn(move || {
                    let Ok(object) = lease.open("a") else { return };
                    let mut buf = vec![0; 30_000];
                    loop {
                        let delivered = lease.read_and(&object, &mut buf, 0, |_| {
                            assert!(
                                !revoked.load(Ordering::SeqCst),
                                "handed out after revocation"
                            );
                        });
                        if delivered.is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        while lease.usage().reads < 5 {
            std::thread::yield_now();
        }
        lease.revoke();
        revoked.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.join().unwrap();
        }
    }
}

#[test]
fn a_lease_ends_with_its_time_and_a_clock_set_back_brings_nothing_back() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"x"[..]).unwrap();
    let now = Arc::new(AtomicU64::new(10));
    let told = Arc::clone(&now);
    let clock = Arc::new(move || Duration::from_secs(told.load(Ordering::SeqCst)));
    let expires = Some(Expiry {
        at: Duration::from_secs(20),
        clock,
    });
    let lease = vault.lease(LeaseTerms { expires, ..terms() }).unwrap();
    let object = lease.open("a").unwrap();
    assert_eq!(lease.read_at(&object, &mut [0; 1], 0).unwrap(), 1);
    now.store(20, Ordering::SeqCst);
    assert!(matches!(
        lease.read_at(&object, &mut [0; 1], 0),
        Err(LeaseError::Expired)
    ));
    now.store(10, Ordering::SeqCst);
    assert!(matches!(
        lease.read_at(&object, &mut [0; 1], 0),
        Err(LeaseError::Expired)
    ));
    assert!(lease.has_ended());
}

#[test]
fn a_lease_reaches_its_prefix_and_its_rights_and_no_further() {
    let bench = Bench::new();
    let mut vault = bench.create();
    for name in ["eu/a", "eu/b/c", "eu-other", "us/a"] {
        vault.put(name, &b"x"[..]).unwrap();
    }
    let lease = vault
        .lease(LeaseTerms {
            prefix: "eu".to_owned(),
            ..terms()
        })
        .unwrap();
    let names: Vec<_> = lease
        .list()
        .unwrap()
        .into_iter()
        .map(|info| info.name)
        .collect();
    assert_eq!(names, ["eu/a", "eu/b/c"]);
    for name in ["us/a", "eu-other", "none"] {
        assert!(
            matches!(lease.open(name), Err(LeaseError::NotFound)),
            "{name}"
        );
    }
    let rights = Rights {
        list: true,
        read: false,
        write: false,
    };
    let lease = vault.lease(LeaseTerms { rights, ..terms() }).unwrap();
    assert!(lease.list().is_ok());
    assert!(matches!(lease.open("us/a"), Err(LeaseError::NotGranted)));
    let lease = vault
        .lease(LeaseTerms {
            rights: Rights::default(),
            ..terms()
        })
        .unwrap();
    assert!(matches!(lease.list(), Err(LeaseError::NotGranted)));
}

#[test]
fn an_object_of_one_lease_cannot_be_read_through_another() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"x"[..]).unwrap();
    let (one, two) = (vault.lease(terms()).unwrap(), vault.lease(terms()).unwrap());
    let (of_one, _of_two) = (one.open("a").unwrap(), two.open("a").unwrap());
    assert!(matches!(
        two.read_at(&of_one, &mut [0; 1], 0),
        Err(LeaseError::NotFound)
    ));
}

#[test]
fn a_lease_keeps_its_view_while_the_vault_goes_on() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"old"[..]).unwrap();
    let lease = vault.lease(terms()).unwrap();
    vault.put("a", &b"new"[..]).unwrap();
    vault.remove("a").unwrap();
    let object = lease.open("a").unwrap();
    let mut buf = [0; 3];
    lease.read_at(&object, &mut buf, 0).unwrap();
    assert_eq!(&buf, b"old");
}

#[test]
fn dropping_a_lease_ends_it() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"x"[..]).unwrap();
    let lease = vault.lease(terms()).unwrap();
    let told = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&told);
    lease.at_end(move || tell.store(true, Ordering::SeqCst));
    drop(lease);
    assert!(told.load(Ordering::SeqCst));
}

#[test]
fn revocation_gives_back_the_memory_of_its_keys() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"x"[..]).unwrap();
    let arena = vault.shared().keys.arena.clone();
    let before = arena.in_use();
    let lease = vault.lease(terms()).unwrap();
    let _open = [lease.open("a").unwrap(), lease.open("a").unwrap()];
    assert_eq!(arena.in_use(), before + 2);
    lease.revoke();
    assert_eq!(arena.in_use(), before);
}

/// Keeps what is told of damage under this lease.
fn watched(lease: &Lease) -> Arc<Mutex<Vec<Damage>>> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    lease.on_damage(move |damage| tell.lock().unwrap().push(damage.clone()));
    told
}

#[test]
fn damage_met_under_a_lease_is_told_once_for_each_object() {
    let bench = Bench::new();
    let mut vault = bench.create();
    for name in ["chunk", "file", "whole"] {
        vault.put(name, &content(1, 9000)[..]).unwrap();
    }
    bench.damage(&vault, "chunk", 96 + 4096);
    bench.damage(&vault, "file", 70);
    let lease = vault.lease(terms()).unwrap();
    let told = watched(&lease);
    let (chunk, whole) = (lease.open("chunk").unwrap(), lease.open("whole").unwrap());
    let mut buf = [0; 9000];
    assert_eq!(lease.read_at(&whole, &mut buf, 0).unwrap(), 9000);
    assert_eq!(lease.read_at(&chunk, &mut buf[..100], 0).unwrap(), 100);
    assert!(told.lock().unwrap().is_empty());
    for _ in 0..3 {
        let refused = lease.read_at(&chunk, &mut buf, 0).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "chunk 1 of object `chunk` was tampered with or damaged"
        );
        let refused = lease.open("file").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "object `file` was tampered with or damaged"
        );
    }
    let damage = |object: &str, what| Damage {
        object: object.to_owned(),
        what,
    };
    assert_eq!(
        *told.lock().unwrap(),
        [
            damage("chunk", Part::Chunk(1)),
            damage("file", Part::Object)
        ]
    );
}

#[test]
fn the_end_of_a_lease_is_no_damage() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, 9000)[..]).unwrap();
    let lease = vault.lease(terms()).unwrap();
    let told = watched(&lease);
    let object = lease.open("a").unwrap();
    bench.damage(&vault, "a", 100);
    lease.revoke();
    assert!(lease.read_at(&object, &mut [0; 10], 0).is_err());
    assert!(lease.open("a").is_err());
    let expires = Some(Expiry {
        at: Duration::ZERO,
        clock: Arc::new(|| Duration::ZERO),
    });
    let expired = vault.lease(LeaseTerms { expires, ..terms() }).unwrap();
    let told_of_expired = watched(&expired);
    assert!(expired.open("a").is_err());
    assert!(told.lock().unwrap().is_empty() && told_of_expired.lock().unwrap().is_empty());
}

#[test]
fn whoever_is_told_of_damage_may_read_on_and_revoke() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, 9000)[..]).unwrap();
    bench.damage(&vault, "a", 100);
    let lease = Arc::new(vault.lease(terms()).unwrap());
    let (weak, calls) = (Arc::downgrade(&lease), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&calls);
    lease.on_damage(move |damage| {
        counted.fetch_add(1, Ordering::SeqCst);
        let lease = weak.upgrade().unwrap();
        let object = lease.open(&damage.object).unwrap();
        assert!(lease.read_at(&object, &mut [0; 10], 0).is_err());
        lease.revoke();
    });
    let object = lease.open("a").unwrap();
    assert!(matches!(
        lease.read_at(&object, &mut [0; 10], 0),
        Err(LeaseError::Read(_))
    ));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert!(lease.has_ended());
}

#[test]
fn a_lease_tells_of_so_many_damaged_objects_and_no_more() {
    let bench = Bench::new();
    let vault = bench.create();
    let names: Vec<_> = (0..1030).map(|n| format!("n{n}")).collect();
    let lease = vault.lease(terms()).unwrap();
    let told = watched(&lease);
    for name in &names {
        let damaged: Result<(), _> = Err(LeaseError::Read(crate::ReadError::damaged(Part::Object)));
        if let Some(damage) = lease.new_damage(name, &damaged) {
            lease.tell(&damage);
        }
    }
    assert_eq!(told.lock().unwrap().len(), 1024);
}
