//! Reference values: what the relying party expects of a guest and its platform.
//!
//! ```json
//! {
//!   "sev-snp": {
//!     "measurements": ["<96 hexadecimal digits>"],
//!     "minimum-tcb": { "genoa": { "bootloader": 10, "tee": 0, "snp": 23, "microcode": 84 } },
//!     "required-platform": ["alias-check-complete"]
//!   },
//!   "tdx": {
//!     "measurements": ["<96 hexadecimal digits>"],
//!     "rtmr1": ["<96 hexadecimal digits>"],
//!     "rtmr2": ["<96 hexadecimal digits>"],
//!     "minimum-tcb-evaluation": 18
//!   },
//!   "vtpm": { "pcrs": { "4": ["<64 hexadecimal digits>"] }, "require-secure-boot": true },
//!   "gpu": { "driver-versions": ["550.90.07"], "measurements": { "1": ["<96 hexadecimal digits>"] } }
//! }
//! ```
//!
//! This is a form of our own and not CoRIM (draft-ietf-rats-corim): that describes environments and
//! their measurements in triples of CBOR, has no agreed profile for what is asked for here (policy
//! bits, platform flags, TCB floors, PCRs, who may be revoked), and is not a file that people write
//! or review. What is here maps to its reference-value triples field by field.
//!
//! Every field is optional. What is left out of `measurements`, `minimum-tcb`, `rtmr1`, `rtmr2` or
//! `pcrs` is unknown, and an unknown never affirms. An empty list allows nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::appraisal::{Appraisal, Claims, SnpClaims, TdxClaims};
use crate::encoding::Hex;
use crate::tee::snp::{PlatformFlag, PolicyFlag, Product, TcbVersion};

/// The most bytes a reference value file may have.
pub const MAX_REFERENCE_VALUES: usize = 4 * 1024 * 1024;

/// What is expected, by kind of TEE. The default expects nothing, and so affirms nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ReferenceValues {
    /// What is expected of SEV-SNP guests, simulated ones included.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sev_snp: SnpReferenceValues,
    /// What is expected of TDX guests.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tdx: TdxReferenceValues,
    /// What is expected of the virtual TPM of a guest that has one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub vtpm: VtpmReferenceValues,
    /// What is expected of each GPU of a guest that has some.
    #[serde(default, skip_serializing_if = "is_default")]
    pub gpu: GpuReferenceValues,
}

/// What is expected of an SEV-SNP guest and its platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SnpReferenceValues {
    /// Launch measurements that are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurements: Option<Vec<Hex<48>>>,
    /// HOST_DATA values that are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_data: Option<Vec<Hex<32>>>,
    /// Digests of ID keys that are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_key_digests: Option<Vec<Hex<48>>>,
    /// Digests of author keys that are allowed; a guest without an author key has none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author_key_digests: Option<Vec<Hex<48>>>,
    /// The lowest security version of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_guest_svn: Option<u32>,
    /// Processor generations that are allowed. Naming one here also accepts that the TCB table
    /// distrusts it as a whole; naming Milan, that the root secret of its chips can be extracted in
    /// software (arXiv 2605.12990).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub products: Option<Vec<Product>>,
    /// Chips that are allowed (128 digits; for Turin, 16 digits followed by zeroes): the answer to
    /// attacks that need the machine in hand. A VLEK proves no chip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chip_ids: Option<Vec<Hex<64>>>,
    /// Cloud service providers whose keys (VLEK) are allowed, as their certificates name them, for
    /// example `CN=cc-eu-west-1.amazonaws.com`. The key of a chip is no provider's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub providers: Option<Vec<String>>,
    /// The lowest firmware versions, by generation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub minimum_tcb: BTreeMap<Product, TcbVersion>,
    /// For how many days after a better level was published a platform may stay behind it and pass.
    /// The status says out of date all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcb_grace_days: Option<u32>,
    /// The lowest version that the TCB table may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_tcb_table: Option<u32>,
    /// Mitigations (CURRENT_MIT_VECTOR bits) that must be in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required_mitigations: Option<u64>,
    /// What the guest must have been launched to ask for, for example `ciphertext-hiding` and
    /// `page-swap-disabled` against side channels in ciphertext.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required_policy: Vec<PolicyFlag>,
    /// What the guest must not have been launched to allow, for example `cxl`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forbidden_policy: Vec<PolicyFlag>,
    /// What must be on at the platform.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required_platform: Vec<PlatformFlag>,
    /// What must be off at the platform, for example `smt`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forbidden_platform: Vec<PlatformFlag>,
    /// The least privileged VMPL that may ask for evidence; 0 if not given.
    #[serde(default, skip_serializing_if = "is_default")]
    pub max_vmpl: u32,
    /// Whether evidence needs a current CRL to be affirmed; also so once the verifier has any CRL.
    #[serde(default, skip_serializing_if = "is_default")]
    pub require_revocation_check: bool,
    /// Whether a guest may be associated with a migration agent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow_migration_agent: bool,
    /// Whether firmware may run that the platform could still be rolled back from.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow_provisional_firmware: bool,
    /// Whether the host may read the guest's memory. Costs the evidence its affirming tier even so.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dangerously_allow_debug: bool,
}

/// What is expected of a TDX guest and its platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TdxReferenceValues {
    /// MRTD values that are allowed: the firmware that the guest was built with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurements: Option<Vec<Hex<48>>>,
    /// RTMR0 values that are allowed: firmware configuration and virtual hardware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmr0: Option<Vec<Hex<48>>>,
    /// RTMR1 values that are allowed: boot loader and kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmr1: Option<Vec<Hex<48>>>,
    /// RTMR2 values that are allowed: command line and initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmr2: Option<Vec<Hex<48>>>,
    /// RTMR3 values that are allowed: whatever the guest's software extends it with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmr3: Option<Vec<Hex<48>>>,
    /// Programs (Authenticode digest, SHA-384) that the firmware may start; needs the event log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_applications: Option<Vec<Hex<48>>>,
    /// MRCONFIGID values that are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mr_config_ids: Option<Vec<Hex<48>>>,
    /// MROWNER values that are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mr_owners: Option<Vec<Hex<48>>>,
    /// MROWNERCONFIG values that are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mr_owner_configs: Option<Vec<Hex<48>>>,
    /// TDX modules (MRSEAM) that are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mr_seams: Option<Vec<Hex<48>>>,
    /// Signers of TDX modules (MRSIGNERSEAM) that are allowed; only Intel, all zeroes, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mr_signer_seams: Option<Vec<Hex<48>>>,
    /// Service TDs (MRSERVICETD) that may be bound to the guest; none if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mr_service_tds: Option<Vec<Hex<48>>>,
    /// Processor packages (PPID) that are allowed: the answer to attacks that need the machine in
    /// hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppids: Option<Vec<Hex<16>>>,
    /// Families of platforms (FMSPC) that are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fmspcs: Option<Vec<Hex<6>>>,
    /// XFAM bits that the guest may use; any if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_xfam: Option<u64>,
    /// The lowest `tcbEvaluationDataNumber` that collateral may have: how recent an event of
    /// Intel's it must take into account. Older collateral is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_tcb_evaluation: Option<u32>,
    /// Whether simultaneous multithreading must be off, and certified to be.
    #[serde(default, skip_serializing_if = "is_default")]
    pub forbid_smt: bool,
    /// Whether the host may make pages disappear under the guest with an exception that the guest
    /// handles itself (SEPT_VE_DISABLE clear).
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow_sept_ve: bool,
    /// Whether the guest may be migrated, by the service TDs that `mr-service-tds` allows.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow_migration: bool,
    /// Whether the guest may use performance monitoring, which leaks to and from the host.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow_perfmon: bool,
    /// Whether the host may read the guest's memory. Costs the evidence its affirming tier even so.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dangerously_allow_debug: bool,
}

/// What is expected of a virtual TPM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VtpmReferenceValues {
    /// Values that are allowed, by number of the PCR; each named PCR has to be quoted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pcrs: BTreeMap<u8, Vec<Hex<32>>>,
    /// Programs (Authenticode digest, SHA-256) that the firmware may start; needs the event log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_applications: Option<Vec<Hex<32>>>,
    /// Whether secure boot has to be on, as the paravisor says.
    #[serde(default, skip_serializing_if = "is_default")]
    pub require_secure_boot: bool,
    /// Whether a certificate is enough for the attestation key, where nothing ties it to the
    /// processor: the host keeps the TPM then, and may lend it to another guest of its own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub accept_certified_key: bool,
}

/// What is expected of a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GpuReferenceValues {
    /// Digests that are allowed, by index of the measurement: those of NVIDIA's reference integrity
    /// manifests for the driver and the VBIOS.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measurements: BTreeMap<u8, Vec<Hex<48>>>,
    /// Versions of the driver that are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_versions: Option<Vec<String>>,
    /// Versions of the VBIOS that are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vbios_versions: Option<Vec<String>>,
}

/// Whether nothing was stated, so that files without it stay as they were.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Why bytes are not reference values.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// The file is larger than [`MAX_REFERENCE_VALUES`].
    #[error("reference values have {0} bytes, at most 4194304 are taken")]
    TooLarge(usize),
    /// The file is not JSON of the documented form.
    #[error("reference values are not the documented JSON")]
    Json(#[source] serde_json::Error),
}

impl ReferenceValues {
    /// Names the guest and the platform of this appraisal: what they consist of, and the firmware
    /// that they have at least.
    ///
    /// This is how to write reference values down, not a reason to trust them: whoever keeps them
    /// says that this guest is the right one. What contraindicates the guest itself, a debug policy for
    /// example, still does.
    #[must_use]
    pub fn naming(appraisal: &Appraisal) -> Self {
        let mut values = Self::default();
        match appraisal.claims() {
            Claims::SevSnp(claims) => values.sev_snp = SnpReferenceValues::naming(claims),
            Claims::Tdx(claims) => values.tdx = TdxReferenceValues::naming(claims),
        }
        if let Some(tpm) = appraisal.vtpm() {
            let pcrs = tpm.pcrs.iter().map(|(pcr, value)| (*pcr, vec![*value]));
            values.vtpm.pcrs = pcrs.collect();
        }
        for gpu in appraisal.gpus() {
            for (index, digest) in &gpu.measurements {
                let allowed = values.gpu.measurements.entry(*index).or_default();
                if !allowed.contains(digest) {
                    allowed.push(*digest);
                }
            }
        }
        values
    }

    /// Reads the JSON form. Unknown fields and digests of the wrong length are errors.
    ///
    /// # Errors
    ///
    /// [`ReferenceError::TooLarge`] or [`ReferenceError::Json`].
    pub fn from_json(json: &[u8]) -> Result<Self, ReferenceError> {
        if json.len() > MAX_REFERENCE_VALUES {
            return Err(ReferenceError::TooLarge(json.len()));
        }
        serde_json::from_slice(json).map_err(ReferenceError::Json)
    }

    /// Writes the JSON form.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Maps have string keys and nothing else can fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl SnpReferenceValues {
    pub(crate) fn naming(claims: &SnpClaims) -> Self {
        Self {
            measurements: Some(vec![claims.measurement]),
            products: Some(vec![claims.product]),
            minimum_tcb: [(claims.product, claims.reported_tcb)].into(),
            max_vmpl: claims.vmpl,
            ..Self::default()
        }
    }
}

impl TdxReferenceValues {
    pub(crate) fn naming(claims: &TdxClaims) -> Self {
        let [_, rtmr1, rtmr2, _] = claims.rtmrs;
        Self {
            measurements: Some(vec![claims.mr_td]),
            rtmr1: Some(vec![rtmr1]),
            rtmr2: Some(vec![rtmr2]),
            minimum_tcb_evaluation: claims.tcb_evaluation,
            ..Self::default()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_requirement_is_an_error_not_ignored() {
        for json in [
            r#"{"sev-snp":{"mesurements":[]}}"#,
            r#"{"snp":{}}"#,
            r#"{"sev-snp":{"measurements":["00"]}}"#,
            r#"{"sev-snp":{"allow-debug":true}}"#,
            r#"{"sev-snp":{"minimum-tcb":{"genoa":{"bootloader":1,"tee":0,"snp":2}}}}"#,
            r#"{"sev-snp":{"products":["rome"]}}"#,
            r#"{"tdx":{"mrtd":[]}}"#,
            r#"{"tdx":{"measurements":["00"]}}"#,
            r#"{"sev-snp":{}} x"#,
            "",
        ] {
            assert!(
                ReferenceValues::from_json(json.as_bytes()).is_err(),
                "{json}"
            );
        }
    }

    #[test]
    fn reference_values_survive_json() {
        let mut values = ReferenceValues::default();
        values.sev_snp.measurements = Some(vec![Hex([7; 48])]);
        values.sev_snp.required_platform = vec![PlatformFlag::AliasCheckComplete];
        let tcb = TcbVersion {
            fmc: None,
            bootloader: 1,
            tee: 2,
            snp: 3,
            microcode: 4,
        };
        values.sev_snp.minimum_tcb.insert(Product::Genoa, tcb);
        values.tdx.rtmr1 = Some(vec![Hex([8; 48])]);
        let json = values.to_json();
        assert_eq!(ReferenceValues::from_json(json.as_bytes()).unwrap(), values);
    }
}
