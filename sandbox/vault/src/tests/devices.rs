//! Vaults whose key a device keeps.

use super::Bench;
use crate::kek::{KekError, Tpm, parse_tpm};
use crate::tpm::tests::Emulator;
use crate::tpm::{Pcrs, Tpm as Device};
use crate::{Access, SlotKind, Vault, VaultError};

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
