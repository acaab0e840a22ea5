//! What a fuzzer feeds to the readers of a log.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::checkpoint::Head;
use super::key::LogKey;
use super::leaf::Leaf;
use super::proof::{Consistency, Proof};
use super::record::{Entry, Record};
use super::redact::Disclosure;
use super::store::Entries;
use super::{LogVerifier, WitnessVerifier, wal};

/// The log whose key everything here is checked with.
pub(crate) const ORIGIN: &str = "example.org/fuzz";

fn verifier() -> Option<LogVerifier> {
    LogKey::from_seed(&[9; 32]).ok()?.verifier(ORIGIN).ok()
}

/// The bytes of a leaf: what is accepted has one spelling.
pub(crate) fn record(bytes: &[u8]) {
    match Entry::decode(bytes) {
        Ok(entry) => {
            assert_eq!(entry.encode().ok().as_deref(), Some(bytes));
            let _ = entry.to_string();
        }
        Err(_) => assert!(Leaf::scan(bytes).is_err()),
    }
}

/// A bundle of entries.
pub(crate) fn bundle(bytes: &[u8]) {
    let entries = Entries::new(bytes);
    assert_eq!(entries.number(), entries.clone().count() as u64);
    entries.take(300).for_each(record);
}

/// A signed checkpoint, the text that was signed, and a verifier key.
pub(crate) fn checkpoint(bytes: &[u8]) {
    let Some(verifier) = verifier() else { return };
    if let Ok(checkpoint) = verifier.open(bytes) {
        assert_eq!(checkpoint.note().as_bytes(), bytes);
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(head) = Head::decode(&text) {
        assert_eq!(head.encode().ok().as_deref(), Some(&*text));
    }
    if let Ok(key) = text.parse::<LogVerifier>() {
        assert_eq!(key.to_string(), text.strip_suffix('\n').unwrap_or(&text));
    }
    if let Ok(key) = text.parse::<WitnessVerifier>() {
        assert_eq!(key.to_string(), text);
    }
}

/// An inclusion or consistency proof.
pub(crate) fn proof(bytes: &[u8]) {
    let Some(verifier) = verifier() else { return };
    if let Ok(proof) = serde_json::from_slice::<Proof>(bytes)
        && let Ok(entry) = proof.check(&verifier)
    {
        assert_eq!(entry.seq, proof.index);
    }
    if let Ok(proof) = serde_json::from_slice::<Consistency>(bytes)
        && let Ok(since) = verifier.open(proof.checkpoint.as_bytes())
    {
        let _ = proof.check(&verifier, &since);
    }
}

/// A segment of acknowledged records.
pub(crate) fn segment(bytes: &[u8]) {
    let mut number = 0;
    let scanned = wal::scan_bytes(bytes, 0, Path::new("segment"), &mut |entries: Entries<
        '_,
    >| {
        number += entries.number();
        Ok(())
    });
    if let Ok(tail) = scanned {
        assert_eq!(tail.next, number);
    }
}

/// What a field of a record says, beside a record that commits to nothing and one that commits to this.
pub(crate) fn disclosure(bytes: &[u8]) {
    let Ok(disclosure) = serde_json::from_slice::<Disclosure>(bytes) else {
        return;
    };
    let commitment = disclosure.commitment_text();
    let entry = |payload| Entry {
        seq: 0,
        boot: [0; 16],
        origin: ORIGIN.into(),
        record: Record::new("fuzz", Duration::ZERO, 0, payload),
    };
    assert!(!disclosure.is_of(&entry(json!({}))));
    if let Some(commitment) = commitment {
        let payload = json!({ disclosure.name.as_str(): { "commitment": commitment } });
        assert!(disclosure.is_of(&entry(payload)));
    }
}
