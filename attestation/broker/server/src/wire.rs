//! What goes over the wire: the JSON of the KBS attestation protocol.
//!
//! Follows Trustee's "KBS Attestation Protocol": Request, Challenge, Attestation, ErrorInformation.

use attestation::{Evidence, EvidenceError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha384};

use crate::coco;

/// Most bytes of a request: evidence, and what goes around it.
pub const MAX_BODY: usize = attestation::MAX_EVIDENCE + (64 << 10);
/// Most bytes of the first request.
pub const MAX_AUTH: usize = 16 << 10;

/// `POST /kbs/v0/auth`.
#[derive(Debug, Deserialize)]
pub struct Request {
    /// Version of the protocol.
    pub version: String,
    /// Kind of TEE, as the protocol names it.
    pub tee: String,
}

/// The answer to it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Challenge {
    /// 32 bytes, Base64.
    pub nonce: String,
    /// Nothing.
    pub extra_params: &'static str,
}

/// `POST /kbs/v0/attest`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attestation {
    /// Nonce and key: what the evidence is bound to.
    pub runtime_data: Value,
    /// The evidence.
    pub tee_evidence: Composite,
}

/// Evidence of the processor, and of what comes beside it.
#[derive(Debug, Deserialize)]
pub struct Composite {
    /// Of the processor.
    pub primary_evidence: Value,
    /// Of devices, as JSON in a string.
    #[serde(default)]
    pub additional_evidence: String,
}

/// Why a client gets nothing. It tells no more than it must.
#[derive(Debug, Serialize)]
pub struct ErrorInformation {
    /// What kind of error.
    #[serde(rename = "type")]
    pub kind: String,
    /// In words.
    pub detail: String,
}

/// Why evidence cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormError {
    /// It is evidence of a device, which the binding of this protocol does not cover here.
    #[error("additional evidence is not taken")]
    Additional,
    /// It is of no form that is known.
    #[error("the evidence is neither a bundle nor that of a guest of Confidential Containers")]
    Unknown,
    /// Base64 it is not.
    #[error("a part of the evidence is not Base64")]
    Base64,
    /// It is too large.
    #[error("the evidence is too large")]
    Evidence(#[from] EvidenceError),
}

impl Composite {
    /// Reads the evidence: a bundle as [`Evidence`] has it, or what guests of Confidential Containers send ([`coco`]).
    ///
    /// # Errors
    ///
    /// [`FormError`].
    pub fn evidence(&self) -> Result<Evidence, FormError> {
        if !["", "{}", "null"].contains(&self.additional_evidence.as_str()) {
            return Err(FormError::Additional);
        }
        if let Ok(evidence) = Evidence::deserialize(&self.primary_evidence) {
            return Ok(evidence);
        }
        coco::evidence(&self.primary_evidence)
    }
}

/// What evidence is bound to in this protocol: SHA-384 over the runtime data in canonical JSON (RFC 8785),
/// and 16 zeroes.
pub fn report_data(runtime_data: &Value) -> [u8; 64] {
    let mut text = String::new();
    canonical(runtime_data, &mut text);
    let mut report_data = [0; 64];
    report_data[..48].copy_from_slice(&Sha384::digest(text));
    report_data
}

/// Writes JSON with sorted keys and no white space. Numbers that are no integers are written as they
/// come: whoever spells them otherwise gets another digest, and nothing.
pub(crate) fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            // RFC 8785 sorts by UTF-16 code units.
            sorted.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
            out.push('{');
            for (at, (name, value)) in sorted.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use attestation::Tee;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;

    #[test]
    fn runtime_data_is_hashed_in_canonical_json_whatever_the_order_of_its_fields() {
        let text = r#"{"tee-pubkey":{"kty":"EC","alg":"a"},"nonce":"n"}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        let digest = Sha384::digest(r#"{"nonce":"n","tee-pubkey":{"alg":"a","kty":"EC"}}"#);
        assert_eq!(report_data(&value)[..48], digest[..]);
        assert_eq!(report_data(&value)[48..], [0; 16]);
    }

    #[test]
    fn canonical_json_is_that_of_rfc_8785() {
        let mut text = String::new();
        let value =
            json!({ "\u{20ac}": 1, "\r": [true, null, "a\"\n\u{7f}"], "1": {}, "\u{1f600}": -2 });
        canonical(&value, &mut text);
        assert_eq!(
            text,
            "{\"\\r\":[true,null,\"a\\\"\\n\u{7f}\"],\"1\":{},\"\u{20ac}\":1,\"\u{1f600}\":-2}"
        );
    }

    #[test]
    fn a_quote_is_taken_as_tdx_guests_send_it_and_nothing_beside_it() {
        let composite = |primary: Value, additional: &str| Composite {
            primary_evidence: primary,
            additional_evidence: additional.into(),
        };
        let quote = json!({ "quote": STANDARD.encode([4; 700]), "cc_eventlog": null });
        assert_eq!(
            composite(quote.clone(), "").evidence().unwrap().tee(),
            Tee::Tdx
        );
        assert!(matches!(
            composite(quote, r#"{"nvidia":{}}"#).evidence(),
            Err(FormError::Additional)
        ));
        assert!(matches!(
            composite(json!({}), "").evidence(),
            Err(FormError::Unknown)
        ));
        assert!(matches!(
            composite(json!({ "quote": "?" }), "").evidence(),
            Err(FormError::Base64)
        ));
    }
}
