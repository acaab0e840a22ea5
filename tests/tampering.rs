//! Whatever byte is changed, of a vault or of a log, is noticed; and what was changed is never shown
//! as if it had not been.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use casemate::Why;
use casemate::isolation::child::Ending;
use casemate::record::Record;
use common::{DATA, Policy, Room, copy, files};
use vault::anchor::{FileAnchor, FreshnessAnchor};
use vault::audit::{VerifyError, verify};
use vault::{Access, OpenOptions, Vault};

/// Flips the bits of one byte, looks, and puts it back.
fn with_flipped<T>(file: &Path, at: usize, look: impl FnOnce() -> T) -> T {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0xff], at as u64).unwrap();
    let seen = look();
    file.write_all_at(&byte, at as u64).unwrap();
    seen
}

/// What the vault crate gives for the room's object: its content, or a refusal.
fn read(room: &Room) -> Result<Vec<u8>, String> {
    let vault =
        Vault::open(&room.vault(), &room.kek(), Access::ReadOnly).map_err(|e| e.to_string())?;
    let mut content = Vec::new();
    vault
        .get("customers.csv", &mut content)
        .map_err(|e| e.to_string())?;
    vault.verify(|_| {}).map_err(|e| e.to_string())?;
    Ok(content)
}

#[test]
fn no_flipped_byte_of_a_vault_gives_wrong_plaintext() {
    let Some(room) = Room::new() else { return };
    assert_eq!(read(&room).unwrap(), DATA.as_bytes());
    let (mut refused, mut harmless) = (0, 0);
    for file in files(&room.vault()) {
        for at in 0..fs::read(&file).unwrap().len() {
            match with_flipped(&file, at, || read(&room)) {
                Err(_) => refused += 1,
                Ok(content) => {
                    // The older of the two manifests is not in use; the other one is whole.
                    assert_eq!(content, DATA.as_bytes(), "{} byte {at}", file.display());
                    let name = file.file_name().unwrap().to_str().unwrap();
                    assert!(
                        name.starts_with("manifest."),
                        "{} byte {at} is not noticed",
                        file.display()
                    );
                    harmless += 1;
                }
            }
        }
    }
    assert!(refused > harmless, "{refused} refused, {harmless} harmless");
}

#[test]
fn a_session_shows_no_byte_of_a_vault_that_was_changed() {
    let Some(room) = Room::new() else { return };
    let policy = Policy::shell("cat /data/customers.csv").with_data();
    let mut refused = 0;
    for file in files(&room.vault()) {
        let length = fs::read(&file).unwrap().len();
        if length == 0 {
            continue;
        }
        // The first, the last, and some between.
        for at in (0..length).step_by(length.div_ceil(3)).chain([length - 1]) {
            let told = with_flipped(&file, at, || room.setup(&policy).run());
            match &told.result {
                Ok(outcome) if outcome.ending == Ending::Code(0) => {
                    assert_eq!(told.stdout, DATA, "{} byte {at}", file.display());
                }
                // Opened, and refused at the read of the chunk: an error for cat, and no byte.
                Ok(_) => {
                    assert_eq!(told.stdout, "", "{} byte {at}", file.display());
                    refused += 1;
                }
                Err(_) => {
                    assert_eq!(told.stdout, "", "{} byte {at}", file.display());
                    assert!(!told.kinds().contains(&"started"));
                    refused += 1;
                }
            }
        }
    }
    assert!(refused >= 5, "{refused} refused");
}

#[test]
fn every_flipped_byte_of_a_log_is_noticed() {
    let Some(room) = Room::new() else { return };
    let told = room.run("exit 0");
    let mut flipped = 0;
    for file in files(&told.log) {
        for at in 0..fs::read(&file).unwrap().len() {
            let seen = with_flipped(&file, at, || verify(&told.log, Some(&told.pinned), None));
            // Where the tail after the checkpoint was to be, nothing stands for records.
            assert!(seen.is_err(), "{} byte {at} is not noticed", file.display());
            flipped += 1;
        }
    }
    assert!(flipped > 1000, "{flipped}");
    assert!(verify(&told.log, Some(&told.pinned), None).is_ok());
}

#[test]
fn a_lost_tail_of_a_log_is_noticed() {
    let Some(room) = Room::new() else { return };
    let told = room.run("exit 0");
    let entries = told.log.join("tile/entries");
    let bundle = files(&entries).pop().unwrap();
    let whole = fs::read(&bundle).unwrap();
    for kept in [0, whole.len() / 2, whole.len() - 1] {
        fs::write(&bundle, &whole[..kept]).unwrap();
        assert!(
            verify(&told.log, Some(&told.pinned), None).is_err(),
            "{kept} bytes kept"
        );
    }
    fs::remove_file(&bundle).unwrap();
    let lost = verify(&told.log, Some(&told.pinned), None).unwrap_err();
    assert!(
        matches!(lost, VerifyError::TailLost { .. } | VerifyError::Missing(_)),
        "{lost}"
    );
}

#[test]
fn a_log_that_was_written_anew_is_noticed_with_the_pinned_key() {
    let Some(room) = Room::new() else { return };
    let (told, forged) = (room.run("exit 0"), room.run("exit 0"));
    fs::remove_dir_all(&told.log).unwrap();
    copy(&forged.log, &told.log);
    assert!(
        verify(&told.log, None, None).is_ok(),
        "by itself it is in order"
    );
    assert!(matches!(
        verify(&told.log, Some(&told.pinned), None),
        Err(VerifyError::OtherKey)
    ));
}

#[test]
fn damage_met_while_the_workload_reads_is_a_signal_that_rules_can_act_on() {
    let Some(room) = Room::new() else { return };
    // The first byte of the object's ciphertext: it is looked at when it is read, not before.
    const CIPHERTEXT: usize = 96;
    let object = files(&room.vault())
        .into_iter()
        .find(|file| {
            file.parent()
                .is_some_and(|folder| folder.ends_with("objects"))
        })
        .unwrap();
    let policy = Policy::shell("cat /data/customers.csv || echo refused; sleep 60")
        .with_data()
        .with_rules(
            "damaged-data = { adds = 90, half-life = \"1h\" }",
            "forbid (principal, action == Action::\"live\", resource) \
             when { context.risk >= 80 };",
        );
    let told = with_flipped(&object, CIPHERTEXT, || room.setup(&policy).run());
    assert!(!told.stdout.contains("Ada"), "{}", told.stdout);
    match &told.result {
        Ok(outcome) => {
            assert!(matches!(outcome.why, Why::Policy(_)), "{outcome:?}");
            assert_eq!(told.signals("damaged-data"), 1, "{:#?}", told.records);
        }
        // Without FUSE everything is read before the workload starts, and then it does not.
        Err(_) => assert!(told.error().contains("customers.csv"), "{}", told.error()),
    }
}

#[test]
fn a_vault_put_back_to_an_earlier_day_is_refused_where_an_anchor_remembers_it() {
    let Some(room) = Room::new() else { return };
    let anchor: Arc<dyn FreshnessAnchor> = Arc::new(FileAnchor::new(room.path().join("anchor")));
    let policy = Policy::shell("cat /data/customers.csv").with_data();
    let run = |anchored: bool| {
        let mut setup = room.setup(&policy);
        setup.anchor = anchored.then(|| Arc::clone(&anchor));
        let told = setup.run();
        let gaps = told.records.iter().find_map(|record| match record {
            Record::Prepared { enforcement, .. } => Some(enforcement.clone()),
            _ => None,
        });
        let gap = gaps.is_some_and(|items| items.iter().any(|item| item.id == "freshness"));
        (told, gap)
    };
    // Nothing is remembered yet: said, not refused.
    for anchored in [false, true] {
        let (told, gap) = run(anchored);
        assert!(told.stdout == DATA && gap, "{anchored}");
    }
    let options = || OpenOptions {
        access: Access::ReadWrite,
        anchor: Some(Arc::clone(&anchor)),
        ..OpenOptions::default()
    };
    let old = room.path().join("old.vault");
    copy(&room.vault(), &old);
    let mut vault = Vault::open_with(&room.vault(), &room.kek(), options()).unwrap();
    vault.put("customers.csv", DATA.as_bytes()).unwrap();
    drop(vault);
    let (told, gap) = run(true);
    assert!(told.stdout == DATA && !gap);

    fs::rename(room.vault(), room.path().join("new.vault")).unwrap();
    fs::rename(&old, room.vault()).unwrap();
    let (told, gap) = run(true);
    assert!(!told.kinds().contains(&"started"), "{:?}", told.kinds());
    assert_eq!((told.stdout.as_str(), gap), ("", false));
    let error = told.result.unwrap_err();
    let error = casemate::error::describe(&error);
    assert!(error.contains("put back to generation"), "{error}");
}
