//! Fields that are taken back, and proofs that hold all the same.

use super::*;

const FIELD: &str = "subject";

fn telling(n: u64, subject: &str) -> Record {
    let mut record = record(n);
    record.payload = json!({ "action": "read", "actor": "job-1", FIELD: subject, "n": n });
    record
}

/// A closed log, in which record 1 commits to its subject; the record, and everything that proves it.
fn redactable(dir: &Path) -> (Entry, Proof) {
    let log = create(dir, LIMITS).unwrap();
    log.append(&telling(0, "open")).unwrap();
    let receipt = log
        .append_redactable(&telling(1, "alice"), &[FIELD])
        .unwrap();
    assert_eq!(receipt.index, 1);
    log.close().unwrap();
    let proof = prove(dir, &verifier(), 1).unwrap();
    let entry = proof.check(&verifier()).unwrap();
    (entry, proof)
}

#[test]
fn a_redacted_field_is_gone_and_every_proof_still_holds() {
    let (_root, dir) = scratch();
    let (entry, proof) = redactable(&dir);
    assert!(!entry.to_string().contains("alice"));
    let shown = disclosures(&dir, &entry).unwrap();
    assert_eq!((shown.len(), &shown[0].value), (1, &json!("alice")));
    assert!(shown[0].is_of(&entry) && !format!("{shown:?}").contains("alice"));

    redact(&dir, &entry, FIELD).unwrap();
    redact(&dir, &entry, FIELD).unwrap();
    assert_eq!(disclosures(&dir, &entry).unwrap(), []);
    for file in files(&dir) {
        let bytes = std::fs::read(&file).unwrap();
        let told = bytes.windows(5).any(|part| part == b"alice");
        assert!(!told, "{}", file.display());
    }
    assert_eq!(proof.check(&verifier()).unwrap(), entry);
    assert_eq!(prove(&dir, &verifier(), 1).unwrap(), proof);
    assert_eq!(verify(&dir, Some(&verifier()), None).unwrap().size(), 2);
    // Whoever was shown it before can still show that it was recorded.
    assert!(shown[0].is_of(&entry));
}

#[test]
fn who_did_what_and_why_cannot_be_redacted() {
    let (_root, dir) = scratch();
    let log = create(&dir, LIMITS).unwrap();
    for field in IN_THE_OPEN.into_iter().chain(["nothing"]) {
        let mut record = telling(0, "alice");
        if field != "nothing" {
            record.payload[field] = json!("x");
        }
        let refused = log.append_redactable(&record, &[FIELD, field]);
        let as_said =
            matches!(&refused, Err(LogError::Record(RecordError::Field(name, _))) if name == field);
        assert!(as_said, "{refused:?}");
    }
    drop(log);
    assert!(
        !dir.join("fields").exists(),
        "something was kept of what was refused"
    );
    // Nor can what was recorded as it is.
    let (_root, dir) = scratch();
    let (entry, _) = redactable(&dir);
    for field in ["actor", "action", "n", "../checkpoint"] {
        let refused = redact(&dir, &entry, field);
        assert!(matches!(refused, Err(LogError::Record(_))), "{refused:?}");
    }
}

#[test]
fn another_value_salt_name_or_record_does_not_match_a_commitment() {
    let (_root, dir) = scratch();
    let (entry, _) = redactable(&dir);
    let shown = disclosures(&dir, &entry).unwrap().remove(0);
    let file = files(&dir.join("fields")).remove(0);
    let changes: [fn(&mut Disclosure); 4] = [
        |it| it.value = json!("alicf"),
        |it| it.value = json!(["alice"]),
        |it| it.salt = it.salt.replace(|c: char| c != '0', "0"),
        |it| it.name = "n".into(),
    ];
    for change in changes {
        let mut forged = shown.clone();
        change(&mut forged);
        assert!(!forged.is_of(&entry), "{forged:?}");
        std::fs::write(&file, serde_json::to_vec(&forged).unwrap()).unwrap();
        let read = disclosures(&dir, &entry);
        assert!(matches!(read, Err(LogError::Damaged { .. })), "{read:?}");
    }
    let whole = serde_json::to_vec(&shown).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert!(disclosures(&dir, &entry).is_err(), "byte {at}");
    }
    let mut other = entry.clone();
    other.record.payload[FIELD] = json!({ "commitment": "0".repeat(64) });
    assert!(!shown.is_of(&other));
    // The same value twice does not look the same.
    let (_root, dir) = scratch();
    assert_ne!(
        redactable(&dir).0.record.payload[FIELD],
        entry.record.payload[FIELD]
    );
}
