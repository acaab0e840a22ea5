//! What peers say of evidence: `dcap-qvl` of TDX quotes, `sev` of SEV-SNP reports.
//!
//! Both are oracles here and nothing else: neither is a dependency of the verifier. Where the verdicts
//! differ, `tests/` lists the difference and argues it.

#![forbid(unsafe_code)]

use attestation::{Endorsements, UnixTime};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::verify::QuoteVerifier;
use serde_json::value::RawValue;
use sev::certs::snp::{Certificate, Chain, Verifiable as _, ca};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser as _;

/// What `dcap-qvl` says of a quote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdxVerdict {
    /// The converged status, in Intel's spelling.
    pub status: String,
    /// The advisories of the levels found.
    pub advisories: Vec<String>,
}

/// Puts collateral into the form that `dcap-qvl` takes; `None` if a part is missing.
///
/// `crls` are those of the PCK CA and of the root; `root` is Intel's root certificate, DER.
#[must_use]
pub fn tdx_collateral(
    endorsements: &Endorsements,
    crls: [&[u8]; 2],
    root: &[u8],
) -> Option<QuoteCollateralV3> {
    let chain = pem(endorsements.tcb_signing()?) + &pem(root);
    let (tcb_info, tcb_info_signature) = signed(endorsements.tcb_info()?, "tcbInfo")?;
    let (qe_identity, qe_identity_signature) =
        signed(endorsements.qe_identity()?, "enclaveIdentity")?;
    let [pck_crl, root_ca_crl] = crls.map(<[u8]>::to_vec);
    Some(QuoteCollateralV3 {
        pck_crl_issuer_chain: String::new(),
        root_ca_crl,
        pck_crl,
        tcb_info_issuer_chain: chain.clone(),
        tcb_info,
        tcb_info_signature,
        qe_identity_issuer_chain: chain,
        qe_identity,
        qe_identity_signature,
        pck_certificate_chain: None,
    })
}

/// Has `dcap-qvl` verify a quote.
///
/// # Errors
///
/// Its message.
pub fn tdx_verdict(
    quote: &[u8],
    collateral: &QuoteCollateralV3,
    now: UnixTime,
    lenient: bool,
) -> Result<TdxVerdict, String> {
    let verifier = QuoteVerifier::new_prod()
        .allow_debug(lenient)
        .allow_service_td(lenient);
    match verifier.verify(quote, collateral, now.0) {
        Ok(report) => Ok(TdxVerdict {
            status: report.status,
            advisories: report.advisory_ids,
        }),
        Err(error) => Err(error.to_string()),
    }
}

/// Has `sev` verify a report under a VEK, its intermediate and a root, all DER.
///
/// # Errors
///
/// What it could not do: read the report, read a certificate, or verify a signature.
pub fn snp_verdict(report: &[u8], vek: &[u8], ask: &[u8], ark: &[u8]) -> Result<(), String> {
    let said = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let report = AttestationReport::from_bytes(report).map_err(said("report"))?;
    let certificate = |der| Certificate::from_der(der).map_err(said("certificate"));
    let chain = Chain {
        ca: ca::Chain {
            ark: certificate(ark)?,
            ask: certificate(ask)?,
        },
        vek: certificate(vek)?,
    };
    (&chain, &report).verify().map_err(said("signature"))
}

/// The signed part of a document of Intel's, byte for byte, and its signature.
fn signed(json: &[u8], name: &str) -> Option<(String, Vec<u8>)> {
    let document: std::collections::BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(json).ok()?;
    let inner = document.get(name)?.get().to_owned();
    let hex: String = serde_json::from_str(document.get("signature")?.get()).ok()?;
    let signature = hex.parse::<attestation::Hex<64>>().ok()?;
    Some((inner, signature.0.to_vec()))
}

fn pem(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}
