//! Tokens: what they say, and which are refused.

use super::*;
use crate::attester::Attester as _;
use crate::tee::simulated::SimulatedTeeBuilder;
use crate::{SimulatedTee, Verifier};

const NOW: UnixTime = UnixTime(1_790_000_000);
const DATA: [u8; 64] = [7; 64];

fn issuer() -> Issuer {
    Issuer {
        developer: "https://casemate.example".to_owned(),
        build: "test".to_owned(),
        lifetime: 300,
    }
}

fn appraisal(tee: SimulatedTeeBuilder) -> Appraisal {
    let verifier = Verifier::builder()
        .reference_values(SimulatedTee::new(NOW).unwrap().reference_values())
        .dangerous()
        .accept_simulated()
        .build()
        .unwrap();
    let evidence = tee.build().unwrap().attest(&DATA).unwrap();
    verifier.appraise_bound_to(&evidence, &DATA, NOW).unwrap()
}

fn good() -> Appraisal {
    appraisal(SimulatedTee::builder(NOW))
}

fn keys() -> [TokenKey; 2] {
    let random = SystemRandom::new();
    let p384 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random).unwrap();
    let ed25519 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    [p384.as_ref(), ed25519.as_ref()].map(|der| TokenKey::from_pkcs8(der).unwrap())
}

fn vector_of(appraisal: &Appraisal) -> Value {
    let claims: Value = serde_json::from_str(&claims(appraisal, &issuer())).unwrap();
    claims["submods"]["simulated"]["ear.trustworthiness-vector"].clone()
}

#[test]
fn a_token_says_what_the_appraisal_said_under_either_algorithm() {
    for key in keys() {
        let verifier = key.verifier().unwrap();
        let token = key.sign(&good(), &issuer()).unwrap();
        let ear = verifier.verify(&token, NOW).unwrap();
        assert_eq!(ear.tier(), TrustTier::Affirming);
        assert_eq!(ear.issued(), NOW);
        assert_eq!(ear.expires(), NOW.plus_seconds(300));
        let submod = &ear.claims()["submods"]["simulated"];
        assert_eq!(submod["casemate.simulated"], true);
        assert_eq!(submod["casemate.report-data"], Hex(DATA).to_string());
        let again: TokenVerifier = verifier.to_string().parse().unwrap();
        assert_eq!(again, verifier);
    }
}

#[test]
fn the_same_evidence_at_the_same_time_gives_the_same_bytes() {
    let appraisal = good();
    assert_eq!(
        claims(&appraisal, &issuer()),
        claims(&appraisal.clone(), &issuer())
    );
    let [es384, eddsa] = keys();
    let twice = |key: &TokenKey| [(); 2].map(|()| key.sign(&appraisal, &issuer()).unwrap());
    let [first, second] = twice(&eddsa);
    assert_eq!(first, second);
    // ECDSA takes random numbers; what it signs does not.
    let [first, second] = twice(&es384);
    assert_eq!(
        first.rsplit_once('.').unwrap().0,
        second.rsplit_once('.').unwrap().0
    );
}

#[test]
fn a_token_ends_with_what_it_rests_on_or_before() {
    let short = appraisal(SimulatedTee::builder(NOW).vek_validity(NOW, NOW.plus_seconds(10)));
    let [key, _] = keys();
    let token = key.sign(&short, &issuer()).unwrap();
    let verify = |now| key.verifier().unwrap().verify(&token, now);
    assert!(verify(NOW.plus_seconds(10)).is_ok());
    assert_eq!(
        verify(NOW.plus_seconds(11)).unwrap_err().code(),
        "ear-expired"
    );
    assert_eq!(
        verify(NOW.minus_seconds(1)).unwrap_err().code(),
        "ear-not-yet-valid"
    );
}

#[test]
fn the_vector_tells_what_stands_against_the_evidence_and_is_never_better_than_the_status() {
    let tee = || SimulatedTee::builder(NOW);
    let worst = |vector: &Value| {
        let numbers = vector
            .as_object()
            .unwrap()
            .values()
            .map(|it| it.as_i64().unwrap());
        numbers.max().unwrap()
    };
    // Of the hardware nothing is said, since there is none.
    let vector = vector_of(&good());
    assert_eq!(
        (vector["hardware"].as_i64(), vector["executables"].as_i64()),
        (Some(0), Some(3))
    );
    for (tee, category, value) in [
        (tee().debug(true), "runtime-opaque", 96),
        (tee().measurement([1; 48]), "executables", 96),
        (tee().migration_agent(true), "configuration", 96),
        (tee().platform_info(0x125), "hardware", 32),
        (tee().vmpl(1), "configuration", 96),
    ] {
        let appraisal = appraisal(tee);
        let vector = vector_of(&appraisal);
        assert_eq!(vector[category], value, "{category}");
        let tier = i64::from(appraisal.tier().value());
        assert_eq!(worst(&vector) / 32, tier / 32, "{vector}");
    }
}

#[test]
fn a_changed_token_is_refused() {
    for key in keys() {
        let verifier = key.verifier().unwrap();
        let token = key.sign(&good(), &issuer()).unwrap();
        for at in (0..token.len()).step_by(11) {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(verifier.verify(&changed, NOW).is_err(), "letter {at}");
        }
        for cut in [0, 1, token.len() / 2, token.len() - 1] {
            assert!(verifier.verify(&token[..cut], NOW).is_err());
        }
    }
}

#[test]
fn the_token_does_not_choose_its_algorithm() {
    let [es384, eddsa] = keys();
    let token = es384.sign(&good(), &issuer()).unwrap();
    let error = eddsa.verifier().unwrap().verify(&token, NOW).unwrap_err();
    assert_eq!(error.code(), "ear-algorithm");
    let (_, rest) = token.split_once('.').unwrap();
    for header in [
        r#"{"alg":"none","typ":"JWT","kid":""}"#,
        r#"{"alg":"HS384","typ":"JWT","kid":""}"#,
        r#"{"alg":"ES384","typ":"JWT","kid":"","crit":["x"]}"#,
    ] {
        let forged = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header));
        let error = es384.verifier().unwrap().verify(&forged, NOW).unwrap_err();
        assert_eq!(error.code(), "ear-algorithm", "{header}");
    }
    let [other, _] = keys();
    let error = other.verifier().unwrap().verify(&token, NOW).unwrap_err();
    assert_eq!(error.code(), "ear-signature");
}

#[test]
fn what_is_signed_and_no_attestation_result_is_refused() {
    let [_, key] = keys();
    let Pair::EdDsa(pair) = &key.0 else {
        panic!("Ed25519 comes second");
    };
    let verifier = key.verifier().unwrap();
    let whole = claims(&good(), &issuer());
    for odd in [
        "{}".to_owned(),
        whole.replace(PROFILE, "tag:example"),
        whole.replace("\"affirming\"", "\"fine\""),
        whole.replace("\"submods\"", "\"others\""),
        "[]".to_owned(),
    ] {
        let header = r#"{"alg":"EdDSA","typ":"JWT","kid":""}"#;
        let signed = [header, &odd]
            .map(|it| URL_SAFE_NO_PAD.encode(it))
            .join(".");
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes()));
        let error = verifier
            .verify(&format!("{signed}.{signature}"), NOW)
            .unwrap_err();
        assert_eq!(error.code(), "ear-claims", "{odd}");
    }
}

#[test]
fn keys_of_other_kinds_are_refused() {
    assert!(TokenKey::from_pkcs8(b"").is_err());
    for jwk in [
        "",
        "{}",
        r#"{"kty":"OKP","crv":"Ed25519","x":"AA"}"#,
        r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#,
    ] {
        assert!(jwk.parse::<TokenVerifier>().is_err(), "{jwk}");
    }
}
