//! Evidence in the name of a session, for whoever the agent serves.
//!
//! The caller chooses a payload. Label, role and caller are the agent's: what the hardware signs is the
//! challenge of [`attestation::Challenge`] in the role `application`, with
//!
//! ```text
//! nonce = SHA-256( "casemate/agent/application-evidence" | 0
//!                | 1 inside the sandbox, 0 outside | uid u32 | length of session u32 | session
//!                | length of payload u32 | payload )                    integers are big-endian
//! ```
//!
//! So nobody gets evidence with report data of his choice, in another's name, or that a broker would take
//! for a guest's answer to its nonce.

use sha2::{Digest, Sha256};

use crate::api::Asker;

/// Most bytes of a payload.
pub const MAX_PAYLOAD: usize = 64;
/// Separates these digests from every other.
const LABEL: &[u8] = b"casemate/agent/application-evidence\0";

/// The nonce of evidence that this caller asked for with this payload.
#[must_use]
pub fn nonce(asker: &Asker, payload: &[u8]) -> [u8; 32] {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    let session = asker.session.as_bytes();
    let mut digest = Sha256::new();
    digest.update(LABEL);
    digest.update([u8::from(asker.inside)]);
    digest.update(asker.uid.to_be_bytes());
    digest.update(length(session));
    digest.update(session);
    digest.update(length(payload));
    digest.update(payload);
    digest.finalize().into()
}

/// Reads a payload in hexadecimal.
#[must_use]
pub fn payload(text: &str) -> Option<Vec<u8>> {
    let fits = text.len() <= 2 * MAX_PAYLOAD && text.len().is_multiple_of(2) && text.is_ascii();
    let digits = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok()?;
        // A sign is no digit here.
        pair.bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            .then(|| u8::from_str_radix(pair, 16).ok())?
    };
    fits.then(|| text.as_bytes().chunks(2).map(digits).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker() -> Asker {
        Asker {
            session: "a-1-1-1".into(),
            inside: false,
            uid: 7,
        }
    }

    #[test]
    fn evidence_names_its_caller_and_no_two_callers_share_a_nonce() {
        let base = nonce(&asker(), b"payload");
        let others = [
            nonce(
                &Asker {
                    inside: true,
                    ..asker()
                },
                b"payload",
            ),
            nonce(&Asker { uid: 8, ..asker() }, b"payload"),
            nonce(
                &Asker {
                    session: "a-1-1-".into(),
                    ..asker()
                },
                b"1payload",
            ),
            nonce(&asker(), b"payloae"),
            nonce(&asker(), b""),
        ];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn a_payload_is_at_most_64_bytes_in_lower_case() {
        assert_eq!(payload(""), Some(Vec::new()));
        assert_eq!(payload("00ff"), Some(vec![0, 255]));
        assert_eq!(payload(&"ab".repeat(64)).map(|it| it.len()), Some(64));
        for wrong in ["0", "0g", "+1", "FF", "é", &"00".repeat(65)] {
            assert_eq!(payload(wrong), None, "{wrong}");
        }
    }
}
