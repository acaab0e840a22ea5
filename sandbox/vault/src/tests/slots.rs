use std::cell::{Cell, RefCell};

use zeroize::Zeroizing;

use super::{Bench, read};
use crate::kek::{Cost, KekError, KekProvider, Passphrase, Released};
use crate::{Access, CreateOptions, Kek, Part, SlotInfo, SlotKind, Vault, VaultError};

fn passphrase(phrase: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(phrase.as_bytes().to_vec())).with_cost(Cost::LEAST)
}

#[test]
fn a_passphrase_opens_what_it_made_and_another_does_not() {
    let bench = Bench::new();
    let kek = passphrase("correct horse");
    let mut vault = Vault::create(&bench.path(), &kek, CreateOptions::default()).unwrap();
    vault.put("a", &b"x"[..]).unwrap();
    drop(vault);
    let vault = Vault::open(&bench.path(), &kek, Access::ReadOnly).unwrap();
    assert_eq!(read(&vault, "a").unwrap(), b"x");
    let wrong = Vault::open(
        &bench.path(),
        &passphrase("battery staple"),
        Access::ReadOnly,
    );
    assert!(matches!(wrong, Err(VaultError::WrongKek)));
}

#[test]
fn a_wrong_key_and_a_key_of_another_kind_are_told_apart() {
    let bench = Bench::new();
    drop(bench.create());
    let wrong = Released::take(&mut [1; 32]).unwrap();
    let refused = Vault::open(&bench.path(), &wrong, Access::ReadOnly);
    assert!(matches!(refused, Err(VaultError::WrongKek)));
    let refused = Vault::open(&bench.path(), &passphrase("x"), Access::ReadOnly);
    assert!(matches!(
        refused,
        Err(VaultError::NoSlot {
            kind: SlotKind::Passphrase
        })
    ));
}

#[test]
fn costs_out_of_bounds_make_no_vault() {
    let bench = Bench::new();
    let cost = Cost {
        memory_kib: u32::MAX,
        passes: 1,
        lanes: 1,
    };
    let refused = Vault::create(
        &bench.path(),
        &passphrase("x").with_cost(cost),
        CreateOptions::default(),
    );
    assert!(matches!(
        refused,
        Err(VaultError::Kek(KekError::Parameters))
    ));
    assert_eq!(std::fs::read_dir(bench.dir.path()).unwrap().count(), 0);
}

#[test]
fn a_provider_that_fails_leaves_the_vault_closed() {
    struct Unavailable;
    impl KekProvider for Unavailable {
        fn kind(&self) -> SlotKind {
            SlotKind::Broker
        }
        fn new_slot(&self) -> Result<Vec<u8>, KekError> {
            Ok(Vec::new())
        }
        fn kek(&self, _: &SlotInfo) -> Result<Kek, KekError> {
            Err(KekError::Unavailable(std::io::ErrorKind::TimedOut.into()))
        }
    }
    let bench = Bench::new();
    drop(bench.create());
    let refused = Vault::open(&bench.path(), &Unavailable, Access::ReadOnly);
    assert!(matches!(
        refused,
        Err(VaultError::Kek(KekError::Unavailable(_)))
    ));
}

pub(super) fn released(byte: u8) -> Released {
    Released::take(&mut [byte; 32]).unwrap()
}

fn opens(bench: &Bench, kek: &dyn KekProvider) -> bool {
    match Vault::open(&bench.path(), kek, Access::ReadOnly) {
        Ok(_) => true,
        Err(VaultError::WrongKek | VaultError::NoSlot { .. }) => false,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn every_key_of_a_slot_opens_the_vault_and_a_removed_one_does_not() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"x"[..]).unwrap();
    let (first, phrase) = (vault.slots()[0].slot_id, passphrase("correct horse"));
    let second = vault.add_slot(&released(2)).unwrap();
    let third = vault.add_slot(&phrase).unwrap();
    let kinds: Vec<_> = vault.slots().iter().map(|s| (s.kind, s.epoch)).collect();
    assert_eq!(
        kinds,
        [
            (SlotKind::Broker, 1),
            (SlotKind::Broker, 2),
            (SlotKind::Passphrase, 3)
        ]
    );
    assert_eq!(vault.slots()[2].slot_id, third.slot_id);
    // The one writer holds the vault all along; readers come and go.
    for kek in [&bench.kek() as &dyn KekProvider, &released(2), &phrase] {
        let vault = Vault::open(&bench.path(), kek, Access::ReadOnly).unwrap();
        assert_eq!(read(&vault, "a").unwrap(), b"x");
    }
    vault.remove_slot(first).unwrap();
    vault.remove_slot(third.slot_id).unwrap();
    vault.put("b", &b"y"[..]).unwrap();
    drop(vault);
    assert!(!opens(&bench, &bench.kek()) && !opens(&bench, &phrase));
    let vault = Vault::open(&bench.path(), &released(2), Access::ReadOnly).unwrap();
    assert_eq!(vault.slots()[0].slot_id, second.slot_id);
    assert_eq!(read(&vault, "b").unwrap(), b"y");
}

#[test]
fn the_last_slot_stays_and_an_unknown_one_is_told() {
    let bench = Bench::new();
    let mut vault = bench.create();
    let only = vault.slots()[0].slot_id;
    assert!(matches!(vault.remove_slot(only), Err(VaultError::LastSlot)));
    assert!(matches!(
        vault.remove_slot([0; 16]),
        Err(VaultError::NoSuchSlot)
    ));
    assert!(matches!(
        vault.add_slot(&bench.kek()),
        Err(VaultError::KeyInUse)
    ));
    // A refusal changes nothing, and the vault goes on.
    assert_eq!((vault.slots().len(), vault.generation()), (1, 1));
    vault.put("a", &b"x"[..]).unwrap();
    drop(vault);
    assert!(opens(&bench, &bench.kek()));
    let mut reading = bench.open().unwrap();
    assert!(matches!(
        reading.add_slot(&released(2)),
        Err(VaultError::ReadOnly)
    ));
    assert!(matches!(
        reading.remove_slot(only),
        Err(VaultError::ReadOnly)
    ));
}

#[test]
fn sixteen_keys_fit_and_no_more() {
    let bench = Bench::new();
    let mut vault = bench.create();
    for byte in 1..16 {
        vault.add_slot(&released(byte)).unwrap();
    }
    assert!(matches!(
        vault.add_slot(&released(16)),
        Err(VaultError::SlotsFull)
    ));
    drop(vault);
    assert!(opens(&bench, &released(15)) && opens(&bench, &bench.kek()));
}

#[test]
fn a_header_with_a_removed_slot_cannot_be_put_back() {
    let bench = Bench::new();
    let mut vault = bench.create();
    let added = vault.add_slot(&released(2)).unwrap();
    let old = std::fs::read(bench.path().join("vault")).unwrap();
    vault.remove_slot(added.slot_id).unwrap();
    drop(vault);
    std::fs::write(bench.path().join("vault"), old).unwrap();
    for kek in [bench.kek(), released(2)] {
        let refused = Vault::open(&bench.path(), &kek, Access::ReadOnly);
        assert!(matches!(
            refused,
            Err(VaultError::Tampered {
                what: Part::Header,
                ..
            })
        ));
    }
}

/// Kills a writer at every step of a change to the slots. What it leaves opens with the first key,
/// and with the second exactly if the new header is there; the next writer makes that final.
fn killed_at_every_step(
    prepare: impl Fn(&mut Vault),
    act: impl Fn(&mut Vault) -> Result<(), VaultError>,
) {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"x"[..]).unwrap();
    prepare(&mut vault);
    let slots = vault.slots().len();
    drop(vault);
    let before = bench.files();
    let header = bench.path().join("vault");
    let (mut olds, mut news) = (0, 0);
    for steps in 0.. {
        bench.restore(&before);
        let old_header = std::fs::read(&header).unwrap();
        let mut vault = bench.write().unwrap();
        vault.shared().store.faults.die_after(steps);
        let through = act(&mut vault).is_ok();
        drop(vault);

        let vault = bench.open().unwrap();
        let new = vault.slots().len() != slots;
        let second = vault.slots().len() == 2;
        assert_eq!(read(&vault, "a").unwrap(), b"x", "step {steps}");
        drop(vault);
        assert_eq!(opens(&bench, &released(2)), second, "step {steps}");
        assert!(new || !through, "step {steps} was acknowledged and is lost");
        (olds, news) = (olds + usize::from(!new), news + usize::from(new));

        drop(bench.write().unwrap());
        assert!(!bench.path().join("vault.new").exists(), "step {steps}");
        if new {
            std::fs::write(&header, old_header).unwrap();
            assert!(
                bench.open().is_err(),
                "step {steps}: the old header is taken"
            );
        }
        if through && steps > 30 {
            break;
        }
    }
    assert!(olds >= 5 && news >= 5, "{olds} deaths before, {news} after");
}

#[test]
fn a_slot_is_added_whole_or_not_at_all() {
    killed_at_every_step(|_| (), |vault| vault.add_slot(&released(2)).map(drop));
}

#[test]
fn a_slot_is_removed_whole_or_not_at_all() {
    killed_at_every_step(
        |vault| drop(vault.add_slot(&released(2)).unwrap()),
        |vault| vault.remove_slot(vault.slots()[1].slot_id),
    );
}

/// A provider that is asked while a writer replaces the header.
struct Overtaken<'a> {
    kek: Released,
    writer: RefCell<&'a mut Vault>,
    times: Cell<u8>,
}

impl KekProvider for Overtaken<'_> {
    fn kind(&self) -> SlotKind {
        SlotKind::Broker
    }

    fn new_slot(&self) -> Result<Vec<u8>, KekError> {
        self.kek.new_slot()
    }

    fn kek(&self, slot: &SlotInfo) -> Result<Kek, KekError> {
        let times = self.times.get();
        if times > 0 {
            self.times.set(times - 1);
            self.writer.borrow_mut().add_slot(&released(times)).unwrap();
        }
        self.kek.kek(slot)
    }
}

#[test]
fn a_reader_that_is_overtaken_by_new_headers_looks_again() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"x"[..]).unwrap();
    let overtaken = Overtaken {
        kek: bench.kek(),
        writer: RefCell::new(&mut vault),
        times: Cell::new(3),
    };
    let reading = Vault::open(&bench.path(), &overtaken, Access::ReadOnly).unwrap();
    assert_eq!(reading.slots().len(), 4);
    assert_eq!(read(&reading, "a").unwrap(), b"x");
}

#[test]
fn readers_open_while_slots_come_and_go() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"x"[..]).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut opened = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) || opened == 0 {
                assert_eq!(read(&bench.open().unwrap(), "a").unwrap(), b"x");
                opened += 1;
            }
        });
        for _ in 0..20 {
            let added = vault.add_slot(&released(2)).unwrap();
            vault.remove_slot(added.slot_id).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().unwrap();
    });
}
