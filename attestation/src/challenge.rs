//! What evidence must answer: a nonce, and everything the guest binds to it.

use ring::digest::{SHA512, digest};

use crate::encoding::Hex;

/// 32 random bytes, used once.
pub type Nonce = [u8; 32];

/// Separates report data of this layout from every other use of a hardware report.
const DOMAIN: &[u8; 32] = b"casemate/attestation/report-data";
const LAYOUT: u8 = 1;

/// On whose behalf evidence is given.
///
/// Bound into report data, so that evidence of one side cannot be reflected as evidence of the
/// other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Role {
    /// A guest that asks for keys. Encoded as 1.
    Guest,
    /// A broker that proves itself to a guest. Encoded as 2.
    Broker,
    /// An application that asked the agent of its guest for evidence. Encoded as 3. It opens nothing: the
    /// nonce is a digest of what the application says and of who it is, and no verifier's.
    Application,
}

/// Everything that one piece of evidence is bound to.
///
/// The verifier chose `nonce`; the attester adds the rest and sends it along. Changing any field
/// changes [`Challenge::report_data`], so evidence vouches for all of them at once.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Challenge {
    /// Whose evidence this is.
    pub role: Role,
    /// Chosen by the verifier for this one appraisal.
    #[serde(with = "hex")]
    pub nonce: Nonce,
    /// The channel the evidence is sent over, for example the TLS exporter of RFC 9266;
    /// `None` if it travels outside any channel.
    #[serde(
        with = "optional_hex",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub channel: Option<[u8; 32]>,
    /// SHA-256 of the policy bundle in force.
    #[serde(with = "hex")]
    pub policy_digest: [u8; 32],
    /// Ed25519 public key of the audit log (RFC 8032 encoding).
    #[serde(with = "hex")]
    pub log_key: [u8; 32],
    /// X25519 public key that released secrets are sealed to (RFC 7748 encoding).
    #[serde(with = "hex")]
    pub release_key: [u8; 32],
}

impl Challenge {
    /// The 64 bytes that the hardware signs: SHA-512 over these 196 bytes.
    ///
    /// ```text
    ///   0  32  "casemate/attestation/report-data" (ASCII)
    ///  32   1  layout, 1
    ///  33   1  role: 1 guest, 2 broker, 3 application
    ///  34   1  1 if there is a channel, else 0
    ///  35   1  0
    ///  36  32  nonce
    ///  68  32  channel, or zeroes if there is none
    /// 100  32  policy digest
    /// 132  32  log key
    /// 164  32  release key
    /// ```
    ///
    /// Every field has one place and one length, so no two challenges share an encoding.
    #[must_use]
    pub fn report_data(&self) -> [u8; 64] {
        let role = match self.role {
            Role::Guest => 1,
            Role::Broker => 2,
            Role::Application => 3,
        };
        let mut message = Vec::with_capacity(196);
        message.extend_from_slice(DOMAIN);
        message.extend_from_slice(&[LAYOUT, role, u8::from(self.channel.is_some()), 0]);
        message.extend_from_slice(&self.nonce);
        message.extend_from_slice(&self.channel.unwrap_or_default());
        message.extend_from_slice(&self.policy_digest);
        message.extend_from_slice(&self.log_key);
        message.extend_from_slice(&self.release_key);
        let mut data = [0; 64];
        data.copy_from_slice(digest(&SHA512, &message).as_ref());
        data
    }
}

mod hex {
    use super::Hex;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        Hex(*bytes).serialize(s)
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        Hex::deserialize(d).map(|hex| hex.0)
    }
}

mod optional_hex {
    use super::Hex;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        bytes: &Option<[u8; 32]>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        bytes.map(Hex).serialize(s)
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<[u8; 32]>, D::Error> {
        Ok(Option::<Hex<32>>::deserialize(d)?.map(|hex| hex.0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn challenge() -> Challenge {
        Challenge {
            role: Role::Guest,
            nonce: [1; 32],
            channel: Some([2; 32]),
            policy_digest: [3; 32],
            log_key: [4; 32],
            release_key: [5; 32],
        }
    }

    #[test]
    fn report_data_depends_on_every_field() {
        let base = challenge();
        let others = [
            Challenge {
                role: Role::Broker,
                ..base.clone()
            },
            Challenge {
                role: Role::Application,
                ..base.clone()
            },
            Challenge {
                nonce: [9; 32],
                ..base.clone()
            },
            Challenge {
                channel: Some([9; 32]),
                ..base.clone()
            },
            Challenge {
                channel: None,
                ..base.clone()
            },
            Challenge {
                channel: Some([0; 32]),
                ..base.clone()
            },
            Challenge {
                policy_digest: [9; 32],
                ..base.clone()
            },
            Challenge {
                log_key: [9; 32],
                ..base.clone()
            },
            Challenge {
                release_key: [9; 32],
                ..base.clone()
            },
        ];
        let mut seen: Vec<_> = others.iter().map(Challenge::report_data).collect();
        seen.push(base.report_data());
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all);
    }

    #[test]
    fn the_encoding_is_the_documented_one() {
        let mut message = b"casemate/attestation/report-data\x01\x01\x01\x00".to_vec();
        for field in 1..=5_u8 {
            message.extend_from_slice(&[field; 32]);
        }
        assert_eq!(message.len(), 196);
        assert_eq!(
            challenge().report_data(),
            digest(&SHA512, &message).as_ref()
        );
    }

    #[test]
    fn a_challenge_survives_json() {
        let json = serde_json::to_string(&challenge()).unwrap();
        assert_eq!(
            serde_json::from_str::<Challenge>(&json).unwrap(),
            challenge()
        );
        assert!(serde_json::from_str::<Challenge>(&json.replace("role", "rule")).is_err());
    }
}
