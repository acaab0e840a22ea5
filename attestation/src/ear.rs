//! An appraisal as a token that others can rely on: EAT Attestation Results.
//!
//! Follows draft-ietf-rats-ear (claims, JSON form), draft-ietf-rats-ar4si (trustworthiness vector and
//! its numbers) and RFC 7515 (JWS, compact). Signed with ES384 or EdDSA.
//!
//! The claims depend on the appraisal and the issuer alone, so the same evidence at the same time
//! gives the same bytes; with EdDSA so does the whole token.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, ED25519, EcdsaKeyPair,
    Ed25519KeyPair, KeyPair as _, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::appraisal::{Appraisal, TrustTier};
use crate::encoding::Hex;
use crate::time::UnixTime;

/// `eat_profile` of the draft.
pub const PROFILE: &str = "tag:github.com,2023:veraison/ear";
/// The most bytes a token may have.
pub const MAX_TOKEN: usize = 64 * 1024;

/// Who issues a token, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// `developer` of `ear.verifier-id`.
    pub developer: String,
    /// `build` of `ear.verifier-id`.
    pub build: String,
    /// Seconds after which the token ends, unless what it rests on ends before.
    pub lifetime: u64,
}

/// A key that signs tokens.
pub struct TokenKey(Pair);

enum Pair {
    Es384(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
}

/// A key that tokens are verified with. Prints as a JWK (RFC 7517), and is read from one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenVerifier {
    /// ECDSA on P-384 with SHA-384: an uncompressed point.
    Es384([u8; 97]),
    /// Ed25519.
    EdDsa([u8; 32]),
}

/// A token that verified, and was valid at the time given.
#[derive(Clone, Debug, PartialEq)]
pub struct Ear {
    tier: TrustTier,
    issued: UnixTime,
    expires: UnixTime,
    claims: Value,
}

/// Why a token is not to be believed, or not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EarError {
    /// The key is not PKCS#8 of an Ed25519 or P-384 key.
    #[error("the key is not PKCS#8 of an Ed25519 or a P-384 key")]
    Key,
    /// The text is not a JWS in its compact form, or larger than [`MAX_TOKEN`].
    #[error("the text is not a token")]
    Form,
    /// The header names another algorithm, or something that must be understood and is not.
    #[error("the token is not signed with the algorithm of the key")]
    Algorithm,
    /// The signature does not verify.
    #[error("the signature on the token does not verify")]
    Signature,
    /// The claims are not those of an attestation result.
    #[error("the token is not an attestation result")]
    Claims,
    /// The token is from the future.
    #[error("the token is not valid before {0}")]
    NotYetValid(UnixTime),
    /// The token has ended.
    #[error("the token expired on {0}")]
    Expired(UnixTime),
}

impl EarError {
    /// The stable name of this reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Key => "ear-key",
            Self::Form => "ear-form",
            Self::Algorithm => "ear-algorithm",
            Self::Signature => "ear-signature",
            Self::Claims => "ear-claims",
            Self::NotYetValid(_) => "ear-not-yet-valid",
            Self::Expired(_) => "ear-expired",
        }
    }
}

/// The claims of a token about an appraisal, as JSON.
///
/// The end is that of the appraisal, or of the issuer's lifetime if that comes first.
#[must_use]
pub fn claims(appraisal: &Appraisal, issuer: &Issuer) -> String {
    let issued = appraisal.appraised_at();
    let expires = issued
        .plus_seconds(issuer.lifetime)
        .min(appraisal.not_after());
    let limiting: Vec<&str> = appraisal
        .checks()
        .iter()
        .filter(|check| check.leaves != TrustTier::Affirming)
        .map(|check| check.id)
        .collect();
    json!({
        "eat_profile": PROFILE,
        "iat": issued,
        "exp": expires,
        "ear.verifier-id": { "developer": issuer.developer, "build": issuer.build },
        "submods": {
            appraisal.tee().name(): {
                "ear.status": appraisal.tier().name(),
                "ear.trustworthiness-vector": vector(appraisal),
                "casemate.simulated": appraisal.is_simulated(),
                "casemate.tcb-status": appraisal.tcb_status().name(),
                "casemate.evidence-digest": Hex(*appraisal.evidence_digest()),
                "casemate.report-data": Hex(*appraisal.report_data()),
                "casemate.root": Hex(*appraisal.root()),
                "casemate.limited-by": limiting,
                "casemate.claims": appraisal.claims(),
            },
        },
    })
    .to_string()
}

/// What a claim of the vector is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Category {
    Instance,
    Configuration,
    Executables,
    Hardware,
    RuntimeOpaque,
}

impl Category {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Instance, "instance-identity"),
        (Self::Configuration, "configuration"),
        (Self::Executables, "executables"),
        (Self::Hardware, "hardware"),
        (Self::RuntimeOpaque, "runtime-opaque"),
    ];

    /// Where a check belongs: by the name after that of the TEE.
    fn of(check: &str) -> Self {
        let name = check.split_once('.').map_or(check, |(_, name)| name);
        match name {
            "chip-id" | "provider" | "ppid" | "fmspc" | "vek-identity" | "report-data" => {
                Self::Instance
            }
            "measurement" | "id-key" | "author-key" | "guest-svn" | "mr-td" | "rtmr1" | "rtmr2"
            | "rtmr3" | "mr-owner" => Self::Executables,
            "policy.debug" | "attributes.debug" | "attributes.profiling" => Self::RuntimeOpaque,
            "host-data" | "vmpl" | "rtmr0" | "mr-config-id" | "mr-owner-config" => {
                Self::Configuration
            }
            _ if [
                "policy.",
                "attributes.",
                "xfam",
                "service-td",
                "mr-service-td",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix)) =>
            {
                Self::Configuration
            }
            _ => Self::Hardware,
        }
    }

    /// The number of AR4SI for the worst that a check leaves.
    fn value(self, tier: TrustTier) -> i8 {
        use TrustTier::{Affirming, Contraindicated, None, Warning};
        match (self, tier) {
            (_, None) => 0,
            // Recognized, approved, approved at boot, genuine, encrypted memory.
            (Self::Executables, Affirming) => 3,
            (_, Affirming) => 2,
            // Not recognized at run time.
            (Self::Executables, Warning) => 33,
            (_, Warning) => 32,
            (_, Contraindicated) => 96,
        }
    }
}

fn vector(appraisal: &Appraisal) -> Value {
    let entries = Category::ALL.map(|(category, name)| {
        let checks = appraisal.checks().iter();
        let tier = checks
            .filter(|check| Category::of(check.id) == category)
            .fold(TrustTier::Affirming, |tier, check| {
                tier.or_worse(check.leaves)
            });
        // Nothing is said of the hardware behind a simulator.
        let silent = appraisal.is_simulated()
            && tier == TrustTier::Affirming
            && matches!(
                category,
                Category::Hardware | Category::Instance | Category::RuntimeOpaque
            );
        let tier = if silent { TrustTier::None } else { tier };
        (name.to_owned(), Value::from(category.value(tier)))
    });
    Value::Object(entries.into_iter().collect())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

impl TokenKey {
    /// Reads a private key: PKCS#8, DER.
    ///
    /// # Errors
    ///
    /// [`EarError::Key`].
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, EarError> {
        let random = SystemRandom::new();
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, der, &random) {
            return Ok(Self(Pair::Es384(pair)));
        }
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map(|pair| Self(Pair::EdDsa(pair)))
            .map_err(|_| EarError::Key)
    }

    /// What tokens of this key are verified with.
    ///
    /// # Errors
    ///
    /// Never in practice: [`EarError::Key`] if the public half had another length than its kind has.
    pub fn verifier(&self) -> Result<TokenVerifier, EarError> {
        match &self.0 {
            Pair::Es384(pair) => pair
                .public_key()
                .as_ref()
                .try_into()
                .map(TokenVerifier::Es384),
            Pair::EdDsa(pair) => pair
                .public_key()
                .as_ref()
                .try_into()
                .map(TokenVerifier::EdDsa),
        }
        .map_err(|_| EarError::Key)
    }

    /// Signs the claims about an appraisal: a JWS in its compact form.
    ///
    /// # Errors
    ///
    /// [`EarError::Signature`] if the operating system gives no random numbers, which ES384 takes.
    pub fn sign(&self, appraisal: &Appraisal, issuer: &Issuer) -> Result<String, EarError> {
        let verifier = self.verifier()?;
        let header = Header {
            alg: verifier.algorithm().to_owned(),
            typ: "JWT".to_owned(),
            kid: verifier.thumbprint(),
        };
        let header = serde_json::to_vec(&header).map_err(|_| EarError::Form)?;
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let signed = format!(
            "{}.{}",
            encode(&header),
            encode(claims(appraisal, issuer).as_bytes())
        );
        let signature = match &self.0 {
            Pair::Es384(pair) => pair
                .sign(&SystemRandom::new(), signed.as_bytes())
                .map_err(|_| EarError::Signature)?
                .as_ref()
                .to_vec(),
            Pair::EdDsa(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
        };
        Ok(format!("{signed}.{}", encode(&signature)))
    }
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey(..)")
    }
}

impl TokenVerifier {
    fn algorithm(&self) -> &'static str {
        match self {
            Self::Es384(_) => "ES384",
            Self::EdDsa(_) => "EdDSA",
        }
    }

    /// The members that RFC 7638 makes a thumbprint of, in its order.
    fn members(&self) -> String {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Es384([_, point @ ..]) => {
                let (x, y) = point.split_at(48);
                let (x, y) = (encode(x), encode(y));
                format!(r#"{{"crv":"P-384","kty":"EC","x":"{x}","y":"{y}"}}"#)
            }
            Self::EdDsa(key) => {
                let x = encode(key);
                format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#)
            }
        }
    }

    /// `kid`: the thumbprint of the key (RFC 7638).
    #[must_use]
    pub fn thumbprint(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest(&SHA256, self.members().as_bytes()))
    }

    /// Verifies a token and checks that it is valid at `now`.
    ///
    /// # Errors
    ///
    /// [`EarError`]; nothing in the token is believed before its signature was verified.
    pub fn verify(&self, token: &str, now: UnixTime) -> Result<Ear, EarError> {
        if token.len() > MAX_TOKEN {
            return Err(EarError::Form);
        }
        let (signed, signature) = token.trim_end().rsplit_once('.').ok_or(EarError::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(EarError::Form)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| EarError::Form);
        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| EarError::Algorithm)?;
        // The key says which algorithm it is for. The token does not choose.
        if header.alg != self.algorithm() {
            return Err(EarError::Algorithm);
        }
        let signature = decode(signature)?;
        match self {
            Self::Es384(key) => UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &key[..])
                .verify(signed.as_bytes(), &signature),
            Self::EdDsa(key) => {
                UnparsedPublicKey::new(&ED25519, &key[..]).verify(signed.as_bytes(), &signature)
            }
        }
        .map_err(|_| EarError::Signature)?;
        let claims: Value =
            serde_json::from_slice(&decode(payload)?).map_err(|_| EarError::Claims)?;
        Ear::valid(claims, now)
    }
}

impl std::fmt::Display for TokenVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.members())
    }
}

impl std::str::FromStr for TokenVerifier {
    type Err = EarError;

    fn from_str(jwk: &str) -> Result<Self, EarError> {
        #[derive(Deserialize)]
        struct Jwk {
            kty: String,
            crv: String,
            x: String,
            #[serde(default)]
            y: String,
        }
        let jwk: Jwk = serde_json::from_str(jwk).map_err(|_| EarError::Key)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| EarError::Key);
        let (x, y) = (decode(&jwk.x)?, decode(&jwk.y)?);
        match (jwk.kty.as_str(), jwk.crv.as_str(), x.len(), y.len()) {
            ("EC", "P-384", 48, 48) => [&[4], &x[..], &y[..]].concat().try_into().map(Self::Es384),
            ("OKP", "Ed25519", 32, 0) => x.try_into().map(Self::EdDsa),
            _ => return Err(EarError::Key),
        }
        .map_err(|_| EarError::Key)
    }
}

impl Ear {
    fn valid(claims: Value, now: UnixTime) -> Result<Self, EarError> {
        let time = |name| {
            let seconds = claims.get(name).and_then(Value::as_u64);
            seconds.map(UnixTime).ok_or(EarError::Claims)
        };
        if claims.get("eat_profile").and_then(Value::as_str) != Some(PROFILE) {
            return Err(EarError::Claims);
        }
        let (issued, expires) = (time("iat")?, time("exp")?);
        if now < issued {
            return Err(EarError::NotYetValid(issued));
        }
        if now > expires {
            return Err(EarError::Expired(expires));
        }
        let submods = claims.get("submods").and_then(Value::as_object);
        let submods = submods
            .filter(|it| !it.is_empty())
            .ok_or(EarError::Claims)?;
        // Of several, the worst counts.
        let mut tier = TrustTier::Affirming;
        for submod in submods.values() {
            let name = submod.get("ear.status").and_then(Value::as_str);
            let status = [
                TrustTier::None,
                TrustTier::Affirming,
                TrustTier::Warning,
                TrustTier::Contraindicated,
            ]
            .into_iter()
            .find(|tier| Some(tier.name()) == name)
            .ok_or(EarError::Claims)?;
            tier = tier.or_worse(status);
        }
        Ok(Self {
            tier,
            issued,
            expires,
            claims,
        })
    }

    /// The worst status of all that was appraised.
    #[must_use]
    pub fn tier(&self) -> TrustTier {
        self.tier
    }

    /// When the appraisal was made.
    #[must_use]
    pub fn issued(&self) -> UnixTime {
        self.issued
    }

    /// The last second at which the token is valid.
    #[must_use]
    pub fn expires(&self) -> UnixTime {
        self.expires
    }

    /// Everything it says, as JSON.
    #[must_use]
    pub fn claims(&self) -> &Value {
        &self.claims
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
