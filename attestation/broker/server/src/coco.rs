//! Evidence as the attesters of Confidential Containers send it.
//!
//! Their SEV-SNP guests send the report field by field, as the crate `sev` (6 and later) writes it with serde, and
//! the certificates that the host has put beside it. The bytes that the processor signed are put together again
//! here, reserved ones as zeroes: a field that is wrong or missing makes a signature that does not verify.
//! Follows "SEV Secure Nested Paging Firmware ABI Specification", ATTESTATION_REPORT structure.

use attestation::{Endorsements, Evidence, Tee, snp};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use crate::wire::FormError;

/// Most certificates beside a report: one of each kind, and some of others.
const MAX_CERTIFICATES: usize = 16;

/// What a TDX guest sends.
#[derive(Deserialize)]
struct Tdx {
    quote: String,
    #[serde(default)]
    cc_eventlog: Option<String>,
}

/// What an SEV-SNP guest sends.
#[derive(Deserialize)]
struct Snp {
    attestation_report: Report,
    cert_chain: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    /// A name; an object for kinds that have none.
    cert_type: Value,
    data: Vec<u8>,
}

#[derive(Deserialize)]
struct Report {
    version: u32,
    guest_svn: u32,
    policy: u64,
    family_id: Bytes<16>,
    image_id: Bytes<16>,
    vmpl: u32,
    sig_algo: u32,
    current_tcb: Tcb,
    plat_info: u64,
    key_info: u32,
    report_data: Bytes<64>,
    measurement: Bytes<48>,
    host_data: Bytes<32>,
    id_key_digest: Bytes<48>,
    author_key_digest: Bytes<48>,
    report_id: Bytes<32>,
    report_id_ma: Bytes<32>,
    reported_tcb: Tcb,
    cpuid_fam_id: Option<u8>,
    cpuid_mod_id: Option<u8>,
    cpuid_step: Option<u8>,
    chip_id: Bytes<64>,
    committed_tcb: Tcb,
    current: Firmware,
    committed: Firmware,
    launch_tcb: Tcb,
    launch_mit_vector: Option<u64>,
    current_mit_vector: Option<u64>,
    signature: Signature,
}

#[derive(Deserialize)]
struct Tcb {
    /// Of Turin and later alone, which order the others differently.
    fmc: Option<u8>,
    bootloader: u8,
    tee: u8,
    snp: u8,
    microcode: u8,
}

#[derive(Deserialize)]
struct Firmware {
    major: u8,
    minor: u8,
    build: u8,
}

#[derive(Deserialize)]
struct Signature {
    r: Bytes<72>,
    s: Bytes<72>,
}

/// So many bytes, as an array of numbers.
#[derive(Deserialize)]
#[serde(try_from = "Vec<u8>")]
struct Bytes<const N: usize>([u8; N]);

impl<const N: usize> TryFrom<Vec<u8>> for Bytes<N> {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        let bytes = bytes.try_into();
        bytes.map(Self).map_err(|_| "another number of bytes")
    }
}

/// Reads evidence of either kind.
///
/// # Errors
///
/// [`FormError`].
pub fn evidence(value: &Value) -> Result<Evidence, FormError> {
    if let Ok(tdx) = Tdx::deserialize(value) {
        return tdx.evidence();
    }
    let snp = Snp::deserialize(value).map_err(|_| FormError::Unknown)?;
    snp.evidence()
}

impl Tdx {
    fn evidence(&self) -> Result<Evidence, FormError> {
        let bytes = |text: &str| STANDARD.decode(text).map_err(|_| FormError::Base64);
        let evidence = Evidence::new(Tee::Tdx, bytes(&self.quote)?, Endorsements::default())?;
        match self.cc_eventlog.as_deref() {
            None | Some("") => Ok(evidence),
            Some(log) => Ok(evidence.with_event_log(bytes(log)?)?),
        }
    }
}

impl Snp {
    fn evidence(self) -> Result<Evidence, FormError> {
        let mut endorsements = Endorsements::default();
        let entries = self.cert_chain.unwrap_or_default();
        if entries.len() > MAX_CERTIFICATES {
            return Err(FormError::Unknown);
        }
        for entry in entries {
            endorsements = match entry.cert_type.as_str() {
                Some("VCEK" | "VLEK") => endorsements.with_vek(entry.data)?,
                Some("ASK") => endorsements.with_intermediate(entry.data)?,
                Some("ARK") => endorsements.with_root(entry.data)?,
                // Nothing that appraising needs.
                _ => endorsements,
            };
        }
        let report = self.attestation_report.bytes();
        Ok(Evidence::new(Tee::SevSnp, report, endorsements)?)
    }
}

impl Report {
    /// As the processor signed it.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(snp::REPORT_LENGTH);
        let mut put = |piece: &[u8]| bytes.extend_from_slice(piece);
        put(&self.version.to_le_bytes());
        put(&self.guest_svn.to_le_bytes());
        put(&self.policy.to_le_bytes());
        put(&self.family_id.0);
        put(&self.image_id.0);
        put(&self.vmpl.to_le_bytes());
        put(&self.sig_algo.to_le_bytes());
        put(&self.current_tcb.bytes());
        put(&self.plat_info.to_le_bytes());
        put(&self.key_info.to_le_bytes());
        put(&[0; 4]);
        put(&self.report_data.0);
        put(&self.measurement.0);
        put(&self.host_data.0);
        put(&self.id_key_digest.0);
        put(&self.author_key_digest.0);
        put(&self.report_id.0);
        put(&self.report_id_ma.0);
        put(&self.reported_tcb.bytes());
        let cpuid = [self.cpuid_fam_id, self.cpuid_mod_id, self.cpuid_step];
        put(&cpuid.map(Option::unwrap_or_default));
        put(&[0; 21]);
        put(&self.chip_id.0);
        put(&self.committed_tcb.bytes());
        put(&self.current.bytes());
        put(&self.committed.bytes());
        put(&self.launch_tcb.bytes());
        put(&self.launch_mit_vector.unwrap_or_default().to_le_bytes());
        put(&self.current_mit_vector.unwrap_or_default().to_le_bytes());
        put(&[0; 152]);
        put(&self.signature.r.0);
        put(&self.signature.s.0);
        bytes.resize(snp::REPORT_LENGTH, 0);
        bytes
    }
}

impl Tcb {
    fn bytes(&self) -> [u8; 8] {
        let Self {
            bootloader,
            tee,
            snp,
            microcode,
            ..
        } = *self;
        match self.fmc {
            None => [bootloader, tee, 0, 0, 0, 0, snp, microcode],
            Some(fmc) => [fmc, bootloader, tee, snp, 0, 0, 0, microcode],
        }
    }
}

impl Firmware {
    fn bytes(&self) -> [u8; 4] {
        [self.build, self.minor, self.major, 0]
    }
}

#[cfg(test)]
#[path = "../tests/play/snp_json.rs"]
pub(crate) mod snp_json;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::{Path, PathBuf};

    use attestation::Verifier;
    use attestation::selftest::Vectors;

    use super::*;

    /// Genuine reports are read from `$CASEMATE_VECTORS`, or else beside the workspace.
    fn vectors() -> Option<Vectors> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/vectors");
        let root = std::env::var_os("CASEMATE_VECTORS").map_or(beside, PathBuf::from);
        if root.join("snp").is_dir() {
            return Some(Vectors::open(root).unwrap());
        }
        assert!(std::env::var_os("CI").is_none(), "no {}", root.display());
        eprintln!("SKIPPED: no vectors in {}", root.display());
        None
    }

    #[test]
    fn genuine_reports_come_through_field_by_field_as_the_processor_signed_them() {
        let Some(vectors) = vectors() else { return };
        let verifier = Verifier::builder().build().unwrap();
        let mut products = std::collections::BTreeSet::new();
        for case in vectors.snp().unwrap() {
            let sent = snp_json::of(&case.evidence);
            let read = evidence(&sent).unwrap();
            assert_eq!(read.report(), case.evidence.report(), "{}", case.name);
            // What was believed as a bundle is believed like this, and nothing else is.
            let verdict = |evidence: &Evidence| {
                let verdict = verifier.appraise_bound_to(evidence, &case.report_data, case.now);
                verdict.map(|it| it.tier()).map_err(|error| error.code())
            };
            assert_eq!(verdict(&read), verdict(&case.evidence), "{}", case.name);
            if verdict(&read).is_ok() {
                products.insert(case.name.split('-').next().unwrap().to_owned());
            }
            let mut other = sent.clone();
            other["attestation_report"]["guest_svn"] = 77.into();
            assert!(verdict(&evidence(&other).unwrap()).is_err());
        }
        for product in ["milan", "genoa", "turin"] {
            let believed = products.iter().any(|name| name.contains(product));
            assert!(believed, "none of {product} in {products:?}");
        }
    }

    #[test]
    fn what_is_no_report_or_too_much_is_refused() {
        let mut tee = attestation::SimulatedTee::new(attestation::UnixTime(1_790_000_000)).unwrap();
        let good = attestation::Attester::attest(&mut tee, &[1; 64]).unwrap();
        let good = snp_json::of(&good);
        assert!(evidence(&good).is_ok());
        for (field, wrong) in [
            ("version", Value::from(-1)),
            ("report_data", Value::from(vec![0; 63])),
            ("measurement", Value::from(vec![256; 48])),
            ("signature", Value::Null),
        ] {
            let mut other = good.clone();
            other["attestation_report"][field] = wrong;
            assert!(
                matches!(evidence(&other), Err(FormError::Unknown)),
                "{field}"
            );
        }
        let mut other = good.clone();
        let chain = other["cert_chain"].as_array_mut().unwrap();
        let first = chain[0].clone();
        chain.resize(MAX_CERTIFICATES + 1, first);
        assert!(matches!(evidence(&other), Err(FormError::Unknown)));
        let mut other = good;
        other["cert_chain"][0]["data"] = vec![0; 1 << 20].into();
        assert!(matches!(evidence(&other), Err(FormError::Evidence(_))));
    }
}
