//! The simulated root, whose private keys are part of this source.
//!
//! The two RSA keys in `keys/` were made once with `openssl genpkey`. They are public and protect
//! nothing. They are fixed, not made when needed, because an RSA key of 4096 bits takes seconds to
//! make, and so that a relying party that does accept the simulated root accepts one root only.

use ring::rand::SystemRandom;
use ring::signature::{RSA_PSS_SHA384, RsaKeyPair};

use super::x509::{CrlTemplate, Template, authority, signed};
use crate::attester::AttestError;
use crate::encoding::Hex;
use crate::endorsement::{PSS_SHA384_EXPLICIT, RSA_ENCRYPTION};
use crate::evidence::Endorsements;
use crate::tee::snp::{Anchor, Product};
use crate::time::UnixTime;

const ARK_KEY: &[u8] = include_bytes!("keys/ark.pkcs8.der");
const ASK_KEY: &[u8] = include_bytes!("keys/ask.pkcs8.der");
const ARK: &[u8] = include_bytes!("keys/ark.certificate.der");
const ASK: &[u8] = include_bytes!("keys/ask.certificate.der");

const ARK_SERIAL: u32 = 0x5a_0000;
const ASK_SERIAL: u32 = 0x5a_0001;
const ASVK_SERIAL: u32 = 0x5a_0101;
/// 2049-12-31T23:59:59Z, the end of UTCTime.
const END: UnixTime = UnixTime(2_524_607_999);

/// The simulated root as a trust anchor.
pub(crate) fn anchor() -> Anchor {
    Anchor {
        spki: Hex(*b"\xc1\x0a\x5f\xa0\x67\x99\x57\x10\x21\xa2\xe5\x78\xeb\x90\x75\xb3\x1a\x27\xbf\xe7\x94\x6a\x99\xa6\xde\x04\x33\xb6\x24\xfb\xc5\xb1"),
        product: Product::Genoa,
        simulated: true,
    }
}

/// A revocation list of the simulated root.
///
/// `next_update` may be left out and the intermediates may be revoked, so that a verifier can be
/// shown to refuse.
///
/// # Errors
///
/// [`AttestError::Simulated`] if the operating system gives no random numbers.
pub fn simulated_crl(
    this_update: UnixTime,
    next_update: Option<UnixTime>,
    revoke_intermediates: bool,
) -> Result<Vec<u8>, AttestError> {
    let template = CrlTemplate {
        issuer: "ARK-Genoa".to_owned(),
        this_update,
        next_update,
        revoked: if revoke_intermediates {
            vec![ASK_SERIAL, ASVK_SERIAL]
        } else {
            Vec::new()
        },
        algorithm: PSS_SHA384_EXPLICIT.to_vec(),
    };
    sign(&template.tbs(), PSS_SHA384_EXPLICIT, ARK_KEY)
}

/// The certificates that a simulated key is endorsed with.
#[derive(Clone, Copy)]
pub(super) enum Chain {
    /// Under the simulated root.
    Simulated,
    /// Under a root of the same name with another key.
    LookAlike,
    /// Under the simulated root, after its certificate and then the intermediate's were changed.
    #[cfg(test)]
    Edited(fn(&mut Template), fn(&mut Template)),
}

impl Chain {
    pub(super) fn endorse(
        self,
        vek: &Template,
        is_vlek: bool,
    ) -> Result<Endorsements, AttestError> {
        // The look-alike swaps the two keys, which is as good as having others.
        let (root_key, intermediate_key) = match self {
            Self::LookAlike => (ASK_KEY, ARK_KEY),
            _ => (ARK_KEY, ASK_KEY),
        };
        let (root, intermediate) = match (self, is_vlek) {
            (Self::Simulated, false) => (ARK.to_vec(), ASK.to_vec()),
            _ => {
                let mut templates = [
                    root_template(&public(root_key)?),
                    intermediate_template(&public(intermediate_key)?, is_vlek),
                ];
                self.edit(&mut templates);
                let [root, intermediate] = templates.map(|it| certificate(&it, root_key));
                (root?, intermediate?)
            }
        };
        Ok(Endorsements::default()
            .with_vek(certificate(vek, intermediate_key)?)?
            .with_intermediate(intermediate)?
            .with_root(root)?)
    }

    #[cfg(test)]
    fn edit(self, [root, intermediate]: &mut [Template; 2]) {
        if let Self::Edited(edit_root, edit_intermediate) = self {
            edit_root(root);
            edit_intermediate(intermediate);
        }
    }

    #[cfg(not(test))]
    fn edit(self, _: &mut [Template; 2]) {}
}

fn root_template(key: &[u8]) -> Template {
    Template {
        serial: ARK_SERIAL,
        issuer: "ARK-Genoa".to_owned(),
        subject: "ARK-Genoa".to_owned(),
        not_before: UnixTime(0),
        not_after: END,
        key_algorithm: RSA_ENCRYPTION.to_vec(),
        public_key: key.to_vec(),
        extensions: authority(),
        algorithm: PSS_SHA384_EXPLICIT.to_vec(),
    }
}

fn intermediate_template(key: &[u8], of_vleks: bool) -> Template {
    let (serial, subject) = if of_vleks {
        (ASVK_SERIAL, "SEV-VLEK-Genoa")
    } else {
        (ASK_SERIAL, "SEV-Genoa")
    };
    Template {
        serial,
        subject: subject.to_owned(),
        ..root_template(key)
    }
}

fn certificate(template: &Template, key: &[u8]) -> Result<Vec<u8>, AttestError> {
    sign(&template.tbs(), &template.algorithm, key)
}

fn sign(tbs: &[u8], algorithm: &[u8], key: &[u8]) -> Result<Vec<u8>, AttestError> {
    let key = pair(key)?;
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PSS_SHA384, &SystemRandom::new(), tbs, &mut signature)
        .map_err(|_| AttestError::Simulated("cannot sign a certificate"))?;
    Ok(signed(tbs, algorithm, &signature))
}

fn public(key: &[u8]) -> Result<Vec<u8>, AttestError> {
    Ok(pair(key)?.public().as_ref().to_vec())
}

fn pair(key: &[u8]) -> Result<RsaKeyPair, AttestError> {
    RsaKeyPair::from_pkcs8(key).map_err(|_| AttestError::Simulated("cannot read its root key"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::endorsement::Certificate;
    use ring::digest::{SHA256, digest};

    /// Everything but the signatures, which are salted.
    fn committed() -> [(&'static [u8], Template); 2] {
        [
            (ARK, root_template(&public(ARK_KEY).unwrap())),
            (ASK, intermediate_template(&public(ASK_KEY).unwrap(), false)),
        ]
    }

    #[test]
    fn the_stored_certificates_are_those_of_the_stored_keys() {
        for (der, template) in committed() {
            let tbs = template.tbs();
            assert_eq!(der.get(4..4 + tbs.len()), Some(&tbs[..]));
        }
    }

    #[test]
    fn the_anchor_is_the_stored_root() {
        let root = Certificate::parse(ARK).unwrap();
        assert_eq!(digest(&SHA256, root.spki).as_ref(), anchor().spki.0);
    }

    #[test]
    #[ignore = "writes the certificates anew; run by hand after a change of `root_template`"]
    fn write_certificates() {
        let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tee/simulated/keys");
        for (name, (_, template)) in ["ark", "ask"].into_iter().zip(committed()) {
            let der = certificate(&template, ARK_KEY).unwrap();
            std::fs::write(format!("{keys}/{name}.certificate.der"), der).unwrap();
        }
    }
}
