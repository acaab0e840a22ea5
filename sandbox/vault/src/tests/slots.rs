use zeroize::Zeroizing;

use super::{Bench, read};
use crate::kek::{Cost, KekError, KekProvider, Passphrase, Released};
use crate::{Access, CreateOptions, Kek, SlotInfo, SlotKind, Vault, VaultError};

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
