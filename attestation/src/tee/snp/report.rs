//! The SEV-SNP attestation report, as bytes and as fields.
//!
//! Follows "SEV Secure Nested Paging Firmware ABI Specification", ATTESTATION_REPORT structure,
//! versions 2 to 5. Parsing looks at length and version only. Whether a report is believed:
//! `super::verifier`.

use serde::{Deserialize, Serialize};

use super::platform::Product;

/// Bytes of a report.
pub const REPORT_LENGTH: usize = 0x4a0;
/// Bytes of a report that are signed.
pub(crate) const SIGNED_LENGTH: usize = 0x2a0;

/// Where fields begin.
pub(crate) mod at {
    pub(crate) const VERSION: usize = 0x000;
    pub(crate) const GUEST_SVN: usize = 0x004;
    pub(crate) const POLICY: usize = 0x008;
    pub(crate) const FAMILY_ID: usize = 0x010;
    pub(crate) const IMAGE_ID: usize = 0x020;
    pub(crate) const VMPL: usize = 0x030;
    pub(crate) const SIGNATURE_ALGO: usize = 0x034;
    pub(crate) const CURRENT_TCB: usize = 0x038;
    pub(crate) const PLATFORM_INFO: usize = 0x040;
    pub(crate) const SIGNER_INFO: usize = 0x048;
    pub(crate) const RESERVED_SIGNER: usize = 0x04c;
    pub(crate) const REPORT_DATA: usize = 0x050;
    pub(crate) const MEASUREMENT: usize = 0x090;
    pub(crate) const HOST_DATA: usize = 0x0c0;
    pub(crate) const ID_KEY_DIGEST: usize = 0x0e0;
    pub(crate) const AUTHOR_KEY_DIGEST: usize = 0x110;
    pub(crate) const REPORT_ID: usize = 0x140;
    pub(crate) const REPORT_ID_MA: usize = 0x160;
    pub(crate) const REPORTED_TCB: usize = 0x180;
    pub(crate) const CPUID: usize = 0x188;
    pub(crate) const RESERVED_CPUID: usize = 0x18b;
    pub(crate) const CHIP_ID: usize = 0x1a0;
    pub(crate) const COMMITTED_TCB: usize = 0x1e0;
    pub(crate) const CURRENT_FIRMWARE: usize = 0x1e8;
    pub(crate) const COMMITTED_FIRMWARE: usize = 0x1ec;
    pub(crate) const LAUNCH_TCB: usize = 0x1f0;
    pub(crate) const LAUNCH_MITIGATIONS: usize = 0x1f8;
    pub(crate) const CURRENT_MITIGATIONS: usize = 0x200;
    pub(crate) const RESERVED_END: usize = 0x208;
    pub(crate) const SIGNATURE_R: usize = 0x2a0;
    pub(crate) const SIGNATURE_S: usize = 0x2e8;
    pub(crate) const RESERVED_SIGNATURE: usize = 0x330;
}

/// VMPL of a report that the host asked for.
pub(crate) const HOST_VMPL: u32 = u32::MAX;

/// An attestation report: exactly [`REPORT_LENGTH`] bytes of a version from 2 on.
///
/// Holding one proves nothing about who made it.
#[derive(Clone, PartialEq, Eq)]
pub struct Report {
    bytes: [u8; REPORT_LENGTH],
}

/// Why bytes are not an attestation report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The length is not that of a report.
    #[error("report has {0} bytes instead of 1184")]
    Length(usize),
    /// The version is one that no released firmware writes.
    #[error("report version {0} is not supported")]
    Version(u32),
}

/// Which key signed a report, by its SIGNER_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningKey {
    /// Versioned Chip Endorsement Key: of one chip and one TCB.
    Vcek,
    /// Versioned Loaded Endorsement Key: of one cloud provider and one TCB.
    Vlek,
    /// No key: the report is not signed.
    None,
    /// A value that the specification reserves.
    Reserved(u8),
}

/// One bit of PLATFORM_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PlatformFlag {
    /// Simultaneous multithreading is on.
    Smt,
    /// Transparent memory encryption is on.
    Tsme,
    /// Memory has error-correcting codes.
    Ecc,
    /// Running average power limits are off.
    RaplDisabled,
    /// Ciphertext in memory is hidden from the host.
    CiphertextHiding,
    /// Memory was checked for aliases (answers BadRAM, CVE-2024-21944).
    AliasCheckComplete,
    /// Trusted I/O is on.
    TrustedIo,
}

impl PlatformFlag {
    /// Every flag that has a meaning.
    pub const ALL: [Self; 7] = [
        Self::Smt,
        Self::Tsme,
        Self::Ecc,
        Self::RaplDisabled,
        Self::CiphertextHiding,
        Self::AliasCheckComplete,
        Self::TrustedIo,
    ];

    /// The bit of PLATFORM_INFO.
    #[must_use]
    pub fn mask(self) -> u64 {
        match self {
            Self::Smt => 1,
            Self::Tsme => 1 << 1,
            Self::Ecc => 1 << 2,
            Self::RaplDisabled => 1 << 3,
            Self::CiphertextHiding => 1 << 4,
            Self::AliasCheckComplete => 1 << 5,
            Self::TrustedIo => 1 << 7,
        }
    }

    /// The name in reference values.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Smt => "smt",
            Self::Tsme => "tsme",
            Self::Ecc => "ecc",
            Self::RaplDisabled => "rapl-disabled",
            Self::CiphertextHiding => "ciphertext-hiding",
            Self::AliasCheckComplete => "alias-check-complete",
            Self::TrustedIo => "trusted-io",
        }
    }
}

/// One bit of POLICY that a relying party may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PolicyFlag {
    /// The guest may run with simultaneous multithreading.
    Smt,
    /// The guest runs on one socket only.
    SingleSocket,
    /// Devices on CXL may be attached.
    Cxl,
    /// Memory is encrypted with AES-256-XTS.
    Aes256Xts,
    /// Running average power limits must be off.
    RaplDisabled,
    /// Ciphertext in memory must be hidden from the host.
    CiphertextHiding,
    /// The host may not swap pages of the guest, which moves their ciphertext.
    PageSwapDisabled,
}

impl PolicyFlag {
    /// The bit of POLICY.
    #[must_use]
    pub fn mask(self) -> u64 {
        match self {
            Self::Smt => 1 << 16,
            Self::SingleSocket => 1 << 20,
            Self::Cxl => 1 << 21,
            Self::Aes256Xts => 1 << 22,
            Self::RaplDisabled => 1 << 23,
            Self::CiphertextHiding => 1 << 24,
            Self::PageSwapDisabled => 1 << 25,
        }
    }

    /// The name in reference values.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Smt => "smt",
            Self::SingleSocket => "single-socket",
            Self::Cxl => "cxl",
            Self::Aes256Xts => "aes256-xts",
            Self::RaplDisabled => "rapl-disabled",
            Self::CiphertextHiding => "ciphertext-hiding",
            Self::PageSwapDisabled => "page-swap-disabled",
        }
    }
}

impl Report {
    /// Takes the bytes of a report.
    ///
    /// Versions above 5 are taken too: the layout has only ever grown into reserved space, and what
    /// is new in them shows up in [`Report::reserved_in_use`].
    ///
    /// # Errors
    ///
    /// [`ReportError::Length`] or [`ReportError::Version`] (0 and 1).
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        let report = Self {
            bytes: bytes
                .try_into()
                .map_err(|_| ReportError::Length(bytes.len()))?,
        };
        match report.version() {
            version @ (0 | 1) => Err(ReportError::Version(version)),
            _ => Ok(report),
        }
    }

    /// The report as received.
    #[must_use]
    pub fn bytes(&self) -> &[u8; REPORT_LENGTH] {
        &self.bytes
    }

    pub(crate) fn signed(&self) -> &[u8; SIGNED_LENGTH] {
        self.array::<0, SIGNED_LENGTH>()
    }

    pub(crate) fn signature_r(&self) -> &[u8; 72] {
        self.array::<{ at::SIGNATURE_R }, 72>()
    }

    pub(crate) fn signature_s(&self) -> &[u8; 72] {
        self.array::<{ at::SIGNATURE_S }, 72>()
    }

    pub(crate) fn signature_reserved(&self) -> &[u8; 368] {
        self.array::<{ at::RESERVED_SIGNATURE }, 368>()
    }

    /// VERSION: 2 to 5 in released firmware.
    #[must_use]
    pub fn version(&self) -> u32 {
        u32::from_le_bytes(*self.array::<{ at::VERSION }, 4>())
    }

    /// GUEST_SVN: the security version that the guest's ID block states.
    #[must_use]
    pub fn guest_svn(&self) -> u32 {
        u32::from_le_bytes(*self.array::<{ at::GUEST_SVN }, 4>())
    }

    /// POLICY: what the guest was launched to allow.
    #[must_use]
    pub fn policy(&self) -> u64 {
        u64::from_le_bytes(*self.array::<{ at::POLICY }, 8>())
    }

    /// FAMILY_ID of the guest's ID block.
    #[must_use]
    pub fn family_id(&self) -> &[u8; 16] {
        self.array::<{ at::FAMILY_ID }, 16>()
    }

    /// IMAGE_ID of the guest's ID block.
    #[must_use]
    pub fn image_id(&self) -> &[u8; 16] {
        self.array::<{ at::IMAGE_ID }, 16>()
    }

    /// VMPL: 0 to 3, or `0xffff_ffff` if the host asked for the report.
    #[must_use]
    pub fn vmpl(&self) -> u32 {
        u32::from_le_bytes(*self.array::<{ at::VMPL }, 4>())
    }

    /// SIGNATURE_ALGO: 1 for ECDSA P-384 with SHA-384.
    #[must_use]
    pub fn signature_algorithm(&self) -> u32 {
        u32::from_le_bytes(*self.array::<{ at::SIGNATURE_ALGO }, 4>())
    }

    /// CURRENT_TCB: what runs now; layout by [`Product`], likewise below.
    #[must_use]
    pub fn current_tcb(&self) -> [u8; 8] {
        *self.array::<{ at::CURRENT_TCB }, 8>()
    }

    /// PLATFORM_INFO as bits; see [`PlatformFlag`].
    #[must_use]
    pub fn platform_info(&self) -> u64 {
        u64::from_le_bytes(*self.array::<{ at::PLATFORM_INFO }, 8>())
    }

    fn signer_info(&self) -> u32 {
        u32::from_le_bytes(*self.array::<{ at::SIGNER_INFO }, 4>())
    }

    /// AUTHOR_KEY_EN of SIGNER_INFO: whether the ID block has an author key.
    #[must_use]
    pub fn has_author_key(&self) -> bool {
        self.signer_info() & 1 != 0
    }

    /// MASK_CHIP_KEY of SIGNER_INFO: whether the platform withholds its signature.
    #[must_use]
    pub fn masks_chip_key(&self) -> bool {
        self.signer_info() & 2 != 0
    }

    /// SIGNING_KEY of SIGNER_INFO.
    #[must_use]
    pub fn signing_key(&self) -> SigningKey {
        match (self.signer_info() >> 2) & 0b111 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            7 => SigningKey::None,
            // Three bits fit a byte.
            other => SigningKey::Reserved(other as u8),
        }
    }

    /// REPORT_DATA: the 64 bytes that whoever asked for the report chose.
    #[must_use]
    pub fn report_data(&self) -> &[u8; 64] {
        self.array::<{ at::REPORT_DATA }, 64>()
    }

    /// MEASUREMENT: the launch digest, SHA-384.
    #[must_use]
    pub fn measurement(&self) -> &[u8; 48] {
        self.array::<{ at::MEASUREMENT }, 48>()
    }

    /// HOST_DATA: what the host stated at launch.
    #[must_use]
    pub fn host_data(&self) -> &[u8; 32] {
        self.array::<{ at::HOST_DATA }, 32>()
    }

    /// ID_KEY_DIGEST: SHA-384 of the key that signed the ID block, or zeroes.
    #[must_use]
    pub fn id_key_digest(&self) -> &[u8; 48] {
        self.array::<{ at::ID_KEY_DIGEST }, 48>()
    }

    /// AUTHOR_KEY_DIGEST: SHA-384 of the key that signed the ID key, or zeroes.
    #[must_use]
    pub fn author_key_digest(&self) -> &[u8; 48] {
        self.array::<{ at::AUTHOR_KEY_DIGEST }, 48>()
    }

    /// REPORT_ID of this guest.
    #[must_use]
    pub fn report_id(&self) -> &[u8; 32] {
        self.array::<{ at::REPORT_ID }, 32>()
    }

    /// REPORT_ID_MA of its migration agent; all ones if it has none.
    #[must_use]
    pub fn report_id_ma(&self) -> &[u8; 32] {
        self.array::<{ at::REPORT_ID_MA }, 32>()
    }

    /// REPORTED_TCB: the TCB that the signing key belongs to.
    #[must_use]
    pub fn reported_tcb(&self) -> [u8; 8] {
        *self.array::<{ at::REPORTED_TCB }, 8>()
    }

    /// CPUID family, model and stepping; `None` before version 3.
    #[must_use]
    pub fn cpuid(&self) -> Option<[u8; 3]> {
        (self.version() >= 3).then(|| *self.array::<{ at::CPUID }, 3>())
    }

    /// The generation that [`Report::cpuid`] names.
    #[must_use]
    pub fn product(&self) -> Option<Product> {
        let [family, model, _] = self.cpuid()?;
        Product::from_cpuid(family, model)
    }

    /// CHIP_ID: zeroes if masked; from Turin on, eight bytes followed by zeroes.
    #[must_use]
    pub fn chip_id(&self) -> &[u8; 64] {
        self.array::<{ at::CHIP_ID }, 64>()
    }

    /// COMMITTED_TCB: what the platform cannot go back behind.
    #[must_use]
    pub fn committed_tcb(&self) -> [u8; 8] {
        *self.array::<{ at::COMMITTED_TCB }, 8>()
    }

    /// Version of the running firmware: major, minor, build.
    #[must_use]
    pub fn current_firmware(&self) -> [u8; 3] {
        let [build, minor, major] = *self.array::<{ at::CURRENT_FIRMWARE }, 3>();
        [major, minor, build]
    }

    /// Version of the committed firmware: major, minor, build.
    #[must_use]
    pub fn committed_firmware(&self) -> [u8; 3] {
        let [build, minor, major] = *self.array::<{ at::COMMITTED_FIRMWARE }, 3>();
        [major, minor, build]
    }

    /// LAUNCH_TCB: the current TCB when the guest was launched or imported.
    #[must_use]
    pub fn launch_tcb(&self) -> [u8; 8] {
        *self.array::<{ at::LAUNCH_TCB }, 8>()
    }

    /// LAUNCH_MIT_VECTOR; `None` before version 5, which is not the same as none in force.
    #[must_use]
    pub fn launch_mitigations(&self) -> Option<u64> {
        (self.version() >= 5)
            .then(|| u64::from_le_bytes(*self.array::<{ at::LAUNCH_MITIGATIONS }, 8>()))
    }

    /// CURRENT_MIT_VECTOR; `None` before version 5.
    #[must_use]
    pub fn current_mitigations(&self) -> Option<u64> {
        (self.version() >= 5)
            .then(|| u64::from_le_bytes(*self.array::<{ at::CURRENT_MITIGATIONS }, 8>()))
    }

    /// Offsets of signed bytes that this version reserves and that are not zero.
    ///
    /// A later version may mean something by them that this code does not know.
    #[must_use]
    pub fn reserved_in_use(&self) -> Vec<usize> {
        let cpuid = if self.version() >= 3 {
            at::RESERVED_CPUID
        } else {
            at::CPUID
        };
        let end = if self.version() >= 5 {
            at::RESERVED_END
        } else {
            at::LAUNCH_MITIGATIONS
        };
        let reserved = [
            at::RESERVED_SIGNER..at::REPORT_DATA,
            cpuid..at::CHIP_ID,
            at::CURRENT_FIRMWARE + 3..at::COMMITTED_FIRMWARE,
            at::COMMITTED_FIRMWARE + 3..at::LAUNCH_TCB,
            end..SIGNED_LENGTH,
        ];
        let mut in_use: Vec<usize> = reserved
            .into_iter()
            .flatten()
            .filter(|offset| self.bytes.get(*offset).is_some_and(|byte| *byte != 0))
            .collect();
        if self.signer_info() >> 5 != 0 {
            in_use.push(at::SIGNER_INFO);
        }
        in_use
    }

    /// `N` bytes from `FROM`; that they lie within the report is checked when compiled.
    fn array<const FROM: usize, const N: usize>(&self) -> &[u8; N] {
        const { assert!(FROM + N <= REPORT_LENGTH) };
        // Never empty, by the assertion above.
        match self.bytes[FROM..].first_chunk() {
            Some(array) => array,
            None => &[0; N],
        }
    }
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Report(version {}, 1184 bytes)", self.version())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_1184_bytes_are_a_report() {
        let mut bytes = vec![0; REPORT_LENGTH];
        bytes[0] = 2;
        assert!(Report::parse(&bytes).is_ok());
        assert_eq!(Report::parse(&bytes[1..]), Err(ReportError::Length(1183)));
        bytes.push(0);
        assert_eq!(Report::parse(&bytes), Err(ReportError::Length(1185)));
    }

    #[test]
    fn versions_before_two_are_refused_and_later_ones_parse() {
        for (version, taken) in [
            (0, false),
            (1, false),
            (2, true),
            (6, true),
            (u32::MAX, true),
        ] {
            let mut bytes = [0; REPORT_LENGTH];
            bytes[..4].copy_from_slice(&u32::to_le_bytes(version));
            assert_eq!(Report::parse(&bytes).is_ok(), taken, "version {version}");
        }
    }

    #[test]
    fn mitigations_are_unknown_before_version_five() {
        let mut bytes = [0; REPORT_LENGTH];
        bytes[0] = 4;
        bytes[at::CURRENT_MITIGATIONS] = 1;
        let report = Report::parse(&bytes).unwrap();
        assert_eq!(report.current_mitigations(), None);
        assert_eq!(report.reserved_in_use(), [at::CURRENT_MITIGATIONS]);
        bytes[0] = 5;
        let report = Report::parse(&bytes).unwrap();
        assert_eq!(report.current_mitigations(), Some(1));
        assert!(report.reserved_in_use().is_empty());
    }

    proptest! {
        #[test]
        fn no_report_makes_an_accessor_panic(mut bytes in proptest::collection::vec(any::<u8>(), REPORT_LENGTH), version in 0_u32..8) {
            bytes[..4].copy_from_slice(&version.to_le_bytes());
            if let Ok(report) = Report::parse(&bytes) {
                let _ = (report.signing_key(), report.product(), report.reserved_in_use());
                let _ = (report.current_firmware(), report.launch_mitigations(), format!("{report:?}"));
            }
        }
    }
}
