//! The verdict, in one schema for every TEE.

use serde::{Deserialize, Serialize};

use crate::encoding::Hex;
use crate::evidence::Tee;
use crate::tee::gpu::GpuClaims;
use crate::tee::snp::{PlatformFlag, Product, TcbVersion};
use crate::tee::vtpm::VtpmClaims;
use crate::time::UnixTime;

/// How welcome believed evidence is: the tiers of AR4SI (draft-ietf-rats-ar4si).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrustTier {
    /// Nothing is said.
    None,
    /// Every check passed.
    Affirming,
    /// Something is unknown or out of date.
    Warning,
    /// Something is as it must not be.
    Contraindicated,
}

impl TrustTier {
    /// The name used in appraisals and policies.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Affirming => "affirming",
            Self::Warning => "warning",
            Self::Contraindicated => "contraindicated",
        }
    }

    /// The number that AR4SI gives to the tier.
    #[must_use]
    pub fn value(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Affirming => 2,
            Self::Warning => 32,
            Self::Contraindicated => 96,
        }
    }

    /// The less trusting of two tiers; nothing said is less than affirming.
    #[must_use]
    pub fn or_worse(self, other: Self) -> Self {
        let rank = |tier| match tier {
            Self::Affirming => 0,
            Self::None => 1,
            Self::Warning => 2,
            Self::Contraindicated => 3,
        };
        if rank(other) > rank(self) {
            other
        } else {
            self
        }
    }
}

/// How the platform's firmware compares with what is asked for: by the reference values and by the
/// TCB table for SEV-SNP, by Intel's TCB info for TDX, whose words these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TcbStatus {
    /// Every component reaches the stated minimum.
    UpToDate,
    /// Up to date, if the software in the TEE is hardened against what hardware leaves open.
    SwHardeningNeeded,
    /// Up to date, if the platform is configured as the advisories say.
    ConfigurationNeeded,
    /// Up to date, if the platform is configured and the software hardened.
    ConfigurationAndSwHardeningNeeded,
    /// The platform was updated after the TD was built; it has to be launched again to gain by it.
    TdRelaunchAdvised,
    /// As [`TcbStatus::TdRelaunchAdvised`], and the platform needs configuration.
    TdRelaunchAdvisedConfigurationNeeded,
    /// Some component stays below the stated minimum.
    OutOfDate,
    /// Some component stays below the stated minimum, and the platform needs configuration.
    OutOfDateConfigurationNeeded,
    /// Some component must not be relied on any more.
    Revoked,
    /// No minimum is stated for this product, or no level for a platform this old.
    Unknown,
}

impl TcbStatus {
    /// The worse of two statuses, for one platform judged twice.
    #[must_use]
    pub fn or_worse(self, other: Self) -> Self {
        let rank = |status| match status {
            Self::UpToDate => 0,
            Self::SwHardeningNeeded => 1,
            Self::ConfigurationNeeded => 2,
            Self::ConfigurationAndSwHardeningNeeded => 3,
            Self::TdRelaunchAdvised => 4,
            Self::TdRelaunchAdvisedConfigurationNeeded => 5,
            Self::OutOfDate => 6,
            Self::OutOfDateConfigurationNeeded => 7,
            Self::Unknown => 8,
            Self::Revoked => 9,
        };
        if rank(other) > rank(self) {
            other
        } else {
            self
        }
    }

    /// The name used in appraisals and policies.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UpToDate => "up-to-date",
            Self::SwHardeningNeeded => "sw-hardening-needed",
            Self::ConfigurationNeeded => "configuration-needed",
            Self::ConfigurationAndSwHardeningNeeded => "configuration-and-sw-hardening-needed",
            Self::TdRelaunchAdvised => "td-relaunch-advised",
            Self::TdRelaunchAdvisedConfigurationNeeded => {
                "td-relaunch-advised-configuration-needed"
            }
            Self::OutOfDate => "out-of-date",
            Self::OutOfDateConfigurationNeeded => "out-of-date-configuration-needed",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown",
        }
    }
}

/// How one check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// What was observed meets what is required.
    Pass,
    /// It does not.
    Fail,
    /// Nothing is required.
    Skipped,
    /// It cannot be told. Never counts as passed.
    Unknown,
}

/// One check: what was seen, what had to be, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Check {
    /// Stable name, for example `snp.policy.debug`.
    pub id: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// What the evidence says.
    pub observed: String,
    /// What was asked for.
    pub required: String,
    /// Where the requirement comes from: a specification, or the reference values.
    pub source: &'static str,
    /// The best tier that this check leaves possible.
    pub leaves: TrustTier,
}

/// Evidence that answered its challenge and chained to a trust anchor.
///
/// Only [`crate::Verifier`] makes one. It tells how far the claims can be trusted, not what they are
/// good for. Two appraisals of the same evidence with the same inputs and time serialize to the same
/// bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Appraisal {
    pub(crate) tee: Tee,
    pub(crate) simulated: bool,
    pub(crate) tier: TrustTier,
    pub(crate) tcb_status: TcbStatus,
    pub(crate) appraised_at: UnixTime,
    pub(crate) not_after: UnixTime,
    pub(crate) evidence_digest: Hex<32>,
    pub(crate) root: Hex<32>,
    pub(crate) claims: Claims,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vtpm: Option<VtpmClaims>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) gpus: Vec<GpuClaims>,
    pub(crate) checks: Vec<Check>,
}

impl Appraisal {
    /// What kind of TEE gave the evidence, as its root proves it.
    #[must_use]
    pub fn tee(&self) -> Tee {
        self.tee
    }

    /// Whether the verdict rests on the simulated root and so proves nothing about hardware.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        self.simulated
    }

    /// How welcome the evidence is.
    #[must_use]
    pub fn tier(&self) -> TrustTier {
        self.tier
    }

    /// How the platform's firmware compares with the reference values.
    #[must_use]
    pub fn tcb_status(&self) -> TcbStatus {
        self.tcb_status
    }

    /// The time that certificates were checked against.
    #[must_use]
    pub fn appraised_at(&self) -> UnixTime {
        self.appraised_at
    }

    /// The last second at which the same evidence could still be appraised: the earliest end of all
    /// certificates and revocation lists used.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// SHA-256 of the signed part of the report; with a virtual TPM, SHA-256 of that and of the
    /// SHA-256 of its quote.
    ///
    /// Of the signed part only: an ECDSA signature can be rewritten by anybody into a second valid
    /// one, which must not make the evidence look new.
    #[must_use]
    pub fn evidence_digest(&self) -> &[u8; 32] {
        &self.evidence_digest.0
    }

    /// SHA-256 of the public key of the root that the evidence chains to.
    #[must_use]
    pub fn root(&self) -> &[u8; 32] {
        &self.root.0
    }

    /// What the evidence says, authenticated.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// What the virtual TPM says, authenticated, if its quote came along.
    #[must_use]
    pub fn vtpm(&self) -> Option<&VtpmClaims> {
        self.vtpm.as_ref()
    }

    /// What the GPUs say, authenticated, in the order of the evidence.
    #[must_use]
    pub fn gpus(&self) -> &[GpuClaims] {
        &self.gpus
    }

    /// Every check, passed or not, in a fixed order.
    #[must_use]
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// The check of this name.
    #[must_use]
    pub fn check(&self, id: &str) -> Option<&Check> {
        self.checks.iter().find(|check| check.id == id)
    }

    /// Whether the host may read and change the guest's memory.
    #[must_use]
    pub fn debug(&self) -> bool {
        match &self.claims {
            Claims::SevSnp(claims) => claims.debug,
            Claims::Tdx(claims) => claims.debug,
        }
    }

    /// The launch measurement, SHA-384: MEASUREMENT for SEV-SNP, MRTD for TDX.
    #[must_use]
    pub fn measurement(&self) -> &[u8] {
        match &self.claims {
            Claims::SevSnp(claims) => &claims.measurement.0,
            Claims::Tdx(claims) => &claims.mr_td.0,
        }
    }

    /// The 64 bytes that the processor's evidence is bound to; with a virtual TPM or GPUs, they bind
    /// what was asked for indirectly.
    #[must_use]
    pub fn report_data(&self) -> &[u8; 64] {
        match &self.claims {
            Claims::SevSnp(claims) => &claims.report_data.0,
            Claims::Tdx(claims) => &claims.report_data.0,
        }
    }
}

/// What evidence says, by kind of TEE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Claims {
    /// An SEV-SNP report.
    SevSnp(Box<SnpClaims>),
    /// A TDX quote.
    Tdx(Box<TdxClaims>),
}

/// The fields of an SEV-SNP report and of the certificate of its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct SnpClaims {
    /// Version of the report.
    pub report_version: u32,
    /// Processor generation, as its root proves it.
    pub product: Product,
    /// CPUID family, model and stepping; unknown before version 3.
    pub cpuid: Option<[u8; 3]>,
    /// Chip that signed; `None` if the key is a provider's (VLEK).
    pub chip_id: Option<Hex<64>>,
    /// Cloud service provider whose key signed (VLEK).
    pub provider: Option<String>,
    /// Whether the host may read and change the guest's memory.
    pub debug: bool,
    /// Whether a migration agent may be associated.
    pub migration_agent: bool,
    /// Whether the guest may run with simultaneous multithreading.
    pub smt_allowed: bool,
    /// The whole policy.
    pub policy: u64,
    /// Security version that the guest states.
    pub guest_svn: u32,
    /// Privilege level that asked for the report; 0 is the highest.
    pub vmpl: u32,
    /// Launch digest.
    pub measurement: Hex<48>,
    /// What the report is bound to.
    pub report_data: Hex<64>,
    /// What the host stated at launch.
    pub host_data: Hex<32>,
    /// Digest of the key that signed the ID block; zeroes if there is none.
    pub id_key_digest: Hex<48>,
    /// Digest of the key that signed the ID key, if there is one.
    pub author_key_digest: Option<Hex<48>>,
    /// Family of the guest's image.
    pub family_id: Hex<16>,
    /// Identity of the guest's image.
    pub image_id: Hex<16>,
    /// Identity of this guest while it runs.
    pub report_id: Hex<32>,
    /// TCB that the signing key belongs to.
    pub reported_tcb: TcbVersion,
    /// TCB that runs.
    pub current_tcb: TcbVersion,
    /// TCB that the platform cannot go back behind.
    pub committed_tcb: TcbVersion,
    /// TCB at launch.
    pub launch_tcb: TcbVersion,
    /// Running firmware: major, minor, build.
    pub current_firmware: [u8; 3],
    /// Committed firmware: major, minor, build.
    pub committed_firmware: [u8; 3],
    /// What is on at the platform.
    pub platform: Vec<PlatformFlag>,
    /// All bits of PLATFORM_INFO.
    pub platform_info: u64,
    /// Mitigations at launch; unknown before version 5.
    pub launch_mitigations: Option<u64>,
    /// Mitigations now; unknown before version 5.
    pub current_mitigations: Option<u64>,
    /// Offsets of reserved bytes that are not zero, whose meaning is unknown.
    pub reserved_in_use: Vec<usize>,
    /// Version of the TCB table that the status comes from, if there was one.
    pub tcb_table: Option<u32>,
    /// The date of the level that the status comes from.
    pub tcb_date: Option<UnixTime>,
    /// Advisories that the platform is open to, of those that the table covers.
    pub advisories: Vec<String>,
}

/// The fields of a TDX quote and of the certificate of its platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct TdxClaims {
    /// Version of the quote.
    pub quote_version: u16,
    /// Zeroes that came after the quote.
    pub padding: usize,
    /// Whether the host may read and change the guest's memory.
    pub debug: bool,
    /// All bits of TDATTRIBUTES.
    pub td_attributes: u64,
    /// Extended processor state that the guest may use.
    pub xfam: u64,
    /// Digest of what was built into the guest.
    pub mr_td: Hex<48>,
    /// Registers that firmware and guest extended since.
    pub rtmrs: [Hex<48>; 4],
    /// What the host stated about configuration.
    pub mr_config_id: Hex<48>,
    /// What the host stated about the owner.
    pub mr_owner: Hex<48>,
    /// What the host stated about the owner's configuration.
    pub mr_owner_config: Hex<48>,
    /// What the report is bound to.
    pub report_data: Hex<64>,
    /// Digest of the TDX module.
    pub mr_seam: Hex<48>,
    /// Who signed the TDX module; zeroes for Intel.
    pub mr_signer_seam: Hex<48>,
    /// Attributes of the TDX module.
    pub seam_attributes: Hex<8>,
    /// Digest of the service TDs bound to the guest; unknown before TDX 1.5.
    pub mr_service_td: Option<Hex<48>>,
    /// Service TD that the guest was built with; unknown before the extension of TDX 1.5.
    pub initial_service_td: Option<Hex<48>>,
    /// Service TD bound to the guest now; unknown before the extension of TDX 1.5.
    pub current_service_td: Option<Hex<48>>,
    /// Versions of the TDX module when the guest was built.
    pub tee_tcb_svn: Hex<16>,
    /// Versions of the TDX module now; unknown before TDX 1.5.
    pub tee_tcb_svn_2: Option<Hex<16>>,
    /// Identity of the processor package.
    pub ppid: Hex<16>,
    /// Identity of the platform; only under the Platform CA.
    pub platform_instance: Option<Hex<16>>,
    /// Family of the platform.
    pub fmspc: Hex<6>,
    /// Version of the processor's TCB that the platform's key belongs to.
    pub cpu_svn: Hex<16>,
    /// Version of the provisioning certification enclave.
    pub pce_svn: u16,
    /// Whether simultaneous multithreading is on; only under the Platform CA.
    pub smt: Option<bool>,
    /// Version of the quoting enclave.
    pub qe_svn: u16,
    /// `tcbEvaluationDataNumber` of the TCB info, if there was one.
    pub tcb_evaluation: Option<u32>,
    /// The oldest date of the levels that the TCB status comes from.
    pub tcb_date: Option<UnixTime>,
    /// Advisories that the platform is open to.
    pub advisories: Vec<String>,
}
