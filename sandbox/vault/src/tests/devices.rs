//! Vaults whose key a device keeps.

use std::sync::Arc;

use super::Bench;
use crate::anchor::{AnchorError, FreshnessAnchor, TpmAnchor};
use crate::kek::{KekError, Tpm, parse_tpm};
use crate::tpm::tests::Emulator;
use crate::tpm::{Pcrs, Tpm as Device};
use crate::{Access, OpenOptions, SlotKind, Vault, VaultError};

fn opened(bench: &Bench, emulator: &Emulator) -> Result<Vault, VaultError> {
    let tpm = Tpm::open(&emulator.socket(), Pcrs::default()).unwrap();
    Vault::open(&bench.path(), &tpm, Access::ReadOnly)
}

#[test]
fn a_vault_opens_on_the_machine_whose_tpm_sealed_its_key() {
    let (Some(mine), Some(other)) = (Emulator::start(), Emulator::start()) else {
        return;
    };
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"x"[..]).unwrap();
    let pcrs = Pcrs::new([7, 16]).unwrap();
    // Slots of both machines: each opens its own, whichever comes first.
    for emulator in [&other, &mine] {
        let tpm = Tpm::open(&emulator.socket(), pcrs).unwrap();
        let slot = vault.add_slot(&tpm).unwrap();
        assert_eq!(slot.kind, SlotKind::Tpm);
        assert!(slot.parameters.len() < 512, "{}", slot.parameters.len());
    }
    drop(vault);
    assert_eq!(
        super::read(&opened(&bench, &mine).unwrap(), "a").unwrap(),
        b"x"
    );
    assert!(opened(&bench, &other).is_ok());
    let mut device = Device::open(&mine.socket()).unwrap();
    device.extend(16, &[1; 32]);
    drop(device);
    // Another state of the machine: refused, until a slot is sealed to that one.
    assert!(matches!(
        opened(&bench, &mine),
        Err(VaultError::Kek(KekError::Refused(_)))
    ));
    let tpm = Tpm::open(&mine.socket(), pcrs).unwrap();
    bench.write().unwrap().add_slot(&tpm).unwrap();
    drop(tpm);
    assert!(opened(&bench, &mine).is_ok());
}

#[test]
fn parameters_of_a_tpm_slot_are_parsed_whole_or_not_at_all() {
    let whole = [&[0x80, 0, 1, 0, 2, 0][..], b"pr", &[3, 0], b"pub"].concat();
    let (pcrs, sealed) = parse_tpm(&whole).unwrap();
    assert_eq!(pcrs, Pcrs::new([7, 16]).unwrap());
    assert_eq!(
        (&sealed.private[..], &sealed.public[..]),
        (&b"pr"[..], &b"pub"[..])
    );
    (0..whole.len()).for_each(|len| assert!(parse_tpm(&whole[..len]).is_err()));
    assert!(parse_tpm(&[&whole[..], &[0]].concat()).is_err());
}

#[test]
fn a_tpm_remembers_what_a_copy_of_the_disk_does_not_bring_back() {
    let Some(emulator) = Emulator::start() else {
        return;
    };
    let bench = Bench::new();
    let anchor: Arc<dyn FreshnessAnchor> =
        Arc::new(TpmAnchor::new(emulator.socket(), 0x0180_0001).unwrap());
    let options = |access| OpenOptions {
        access,
        anchor: Some(Arc::clone(&anchor)),
        ..OpenOptions::default()
    };
    let open = |access| Vault::open_with(&bench.path(), &bench.kek(), options(access));
    let mut vault = bench.create();
    vault.put("a", &b"old"[..]).unwrap();
    drop(vault);
    // Nothing is remembered yet, and a reader has nothing to say about it.
    assert!(!open(Access::ReadOnly).unwrap().is_anchored());
    assert!(open(Access::ReadWrite).unwrap().is_anchored());
    let old = bench.files();
    let mut vault = open(Access::ReadWrite).unwrap();
    vault.put("a", &b"new"[..]).unwrap();
    assert!(vault.is_anchored());
    drop(vault);
    assert!(open(Access::ReadOnly).unwrap().is_anchored());
    bench.restore(&old);
    assert!(matches!(
        open(Access::ReadOnly),
        Err(VaultError::RolledBack { .. })
    ));
    // An index that another vault has is not taken over.
    let other = Bench::new();
    drop(other.create());
    let taken = Vault::open_with(&other.path(), &other.kek(), options(Access::ReadWrite));
    assert!(matches!(
        taken,
        Err(VaultError::Anchor(AnchorError::Damaged))
    ));
}
