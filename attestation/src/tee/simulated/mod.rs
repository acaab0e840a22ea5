//! A software TEE under a root of its own.
//!
//! [`SimulatedTee`] writes SEV-SNP reports byte by byte as firmware does, under certificates of the
//! form that AMD issues, so that the verifier for SEV-SNP appraises them with no second path. The
//! keys of its root are part of this source: its evidence is worth nothing, no verifier believes it
//! unless [`crate::VerifierBuilder::dangerous`] says so, and appraisals that rest on it are marked.
//!
//! A knob of [`SimulatedTeeBuilder`] exists for everything that a verifier has to refuse. The same for
//! TDX is [`SimulatedTdx`].

mod root;
pub(crate) mod tdx;
pub(crate) mod x509;

use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use crate::attester::{AttestError, Attester};
use crate::encoding::Hex;
use crate::evidence::{Endorsements, Evidence, Tee};
use crate::reference::{ReferenceValues, SnpReferenceValues};
use crate::tee::snp::report::{SIGNED_LENGTH, at};
use crate::tee::snp::{Product, REPORT_LENGTH, TcbVersion};
use crate::time::UnixTime;

pub(crate) use root::anchor;
pub use root::simulated_crl;
pub(crate) use tdx::anchor as tdx_anchor;
pub use tdx::{QuoteForm, SimulatedTdx, SimulatedTdxBuilder};

use root::Chain;
use x509::{Template, VekTemplate};

/// The launch measurement of a simulated guest, unless another is set: 48 ASCII characters that say
/// what it is worth.
pub const DEFAULT_MEASUREMENT: [u8; 48] = *b"casemate simulated guest: launch digest, a dummy";

/// The TCB of a simulated platform, unless another is set.
pub const DEFAULT_TCB: TcbVersion = TcbVersion {
    fmc: None,
    bootloader: 10,
    tee: 0,
    snp: 25,
    microcode: 84,
};

const YEAR: u64 = 365 * 24 * 60 * 60;

type Edit = Box<dyn FnMut(&mut [u8; REPORT_LENGTH]) + Send>;

/// A software stand-in for a Genoa processor with one guest on it.
///
/// Every instance has a VCEK of its own, made when it is built.
pub struct SimulatedTee {
    template: [u8; REPORT_LENGTH],
    vek: EcdsaKeyPair,
    endorsements: Endorsements,
    answers: Option<[u8; 64]>,
    attestations_left: Option<u32>,
    before_signing: Option<Edit>,
    after_signing: Option<Edit>,
}

/// Collects what a [`SimulatedTee`] reports, and how it misbehaves.
pub struct SimulatedTeeBuilder {
    now: UnixTime,
    report: [u8; REPORT_LENGTH],
    vek: VekTemplate,
    chain: Chain,
    answers: Option<[u8; 64]>,
    fail_after: Option<u32>,
    before_signing: Option<Edit>,
    after_signing: Option<Edit>,
    edit_certificate: Option<fn(&mut Template)>,
}

impl SimulatedTee {
    /// Starts a TEE whose certificates are valid from a day before `now` for seven years, and
    /// whose guest is as it should be: version 3, no debug, VMPL 0, [`DEFAULT_MEASUREMENT`],
    /// [`DEFAULT_TCB`].
    #[must_use]
    pub fn builder(now: UnixTime) -> SimulatedTeeBuilder {
        let chip = [0x5a; 64];
        let mut report = [0; REPORT_LENGTH];
        put(&mut report, at::VERSION, &3_u32.to_le_bytes());
        put(&mut report, at::POLICY, &0x30000_u64.to_le_bytes());
        put(&mut report, at::SIGNATURE_ALGO, &1_u32.to_le_bytes());
        put(&mut report, at::PLATFORM_INFO, &0x25_u64.to_le_bytes());
        put(&mut report, at::MEASUREMENT, &DEFAULT_MEASUREMENT);
        put(&mut report, at::REPORT_ID_MA, &[0xff; 32]);
        put(&mut report, at::CPUID, &[0x19, 0x11, 0x01]);
        put(&mut report, at::CHIP_ID, &chip);
        put(&mut report, at::CURRENT_FIRMWARE, &[43, 55, 1]);
        put(&mut report, at::COMMITTED_FIRMWARE, &[43, 55, 1]);
        SimulatedTeeBuilder {
            now,
            report,
            vek: VekTemplate {
                tcb: [0; 8],
                chip: Some(chip.to_vec()),
                provider: None,
                not_before: now.minus_seconds(24 * 60 * 60),
                not_after: now.plus_seconds(7 * YEAR),
            },
            chain: Chain::Simulated,
            answers: None,
            fail_after: None,
            before_signing: None,
            after_signing: None,
            edit_certificate: None,
        }
        .tcb(DEFAULT_TCB)
    }

    /// A well-behaved TEE; see [`SimulatedTee::builder`].
    ///
    /// # Errors
    ///
    /// [`AttestError::Simulated`] if the operating system gives no random numbers.
    pub fn new(now: UnixTime) -> Result<Self, AttestError> {
        Self::builder(now).build()
    }

    /// Reference values that affirm this guest on this platform.
    #[must_use]
    pub fn reference_values(&self) -> ReferenceValues {
        let mut measurement = [0; 48];
        measurement.copy_from_slice(&self.template[at::MEASUREMENT..at::HOST_DATA]);
        let mut reported = [0; 8];
        reported.copy_from_slice(&self.template[at::REPORTED_TCB..at::CPUID]);
        let tcb = TcbVersion::from_bytes(reported, Product::Genoa);
        ReferenceValues {
            sev_snp: SnpReferenceValues {
                measurements: Some(vec![Hex(measurement)]),
                minimum_tcb: [(Product::Genoa, tcb)].into(),
                ..SnpReferenceValues::default()
            },
            ..ReferenceValues::default()
        }
    }
}

impl Attester for SimulatedTee {
    fn tee(&self) -> Tee {
        Tee::Simulated
    }

    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        if let Some(left) = &mut self.attestations_left {
            *left = left
                .checked_sub(1)
                .ok_or(AttestError::Simulated("was told to fail by now"))?;
        }
        let mut report = self.template;
        put(
            &mut report,
            at::REPORT_DATA,
            self.answers.as_ref().unwrap_or(report_data),
        );
        if let Some(edit) = &mut self.before_signing {
            edit(&mut report);
        }
        let signature = self
            .vek
            .sign(&SystemRandom::new(), &report[..SIGNED_LENGTH])
            .map_err(|_| AttestError::Simulated("cannot sign"))?;
        let (r, s) = signature.as_ref().split_at(48);
        for (offset, number) in [(at::SIGNATURE_R, r), (at::SIGNATURE_S, s)] {
            let little_endian: Vec<u8> = number.iter().rev().copied().collect();
            put(&mut report, offset, &little_endian);
        }
        if let Some(edit) = &mut self.after_signing {
            edit(&mut report);
        }
        Ok(Evidence::new(
            Tee::Simulated,
            report.to_vec(),
            self.endorsements.clone(),
        )?)
    }
}

impl std::fmt::Debug for SimulatedTee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimulatedTee(..)")
    }
}

impl std::fmt::Debug for SimulatedTeeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimulatedTeeBuilder(..)")
    }
}

/// What the guest is and where it runs.
impl SimulatedTeeBuilder {
    /// Writes a report of another version. CPUID is cleared for version 2, mitigation vectors of 1
    /// are reported from version 5 on.
    #[must_use]
    pub fn report_version(mut self, version: u32) -> Self {
        put(&mut self.report, at::VERSION, &version.to_le_bytes());
        if version < 3 {
            put(&mut self.report, at::CPUID, &[0; 3]);
        }
        if version >= 5 {
            put(
                &mut self.report,
                at::LAUNCH_MITIGATIONS,
                &1_u64.to_le_bytes(),
            );
            put(
                &mut self.report,
                at::CURRENT_MITIGATIONS,
                &1_u64.to_le_bytes(),
            );
        }
        self
    }

    /// Lets the host read the guest's memory.
    #[must_use]
    pub fn debug(mut self, debug: bool) -> Self {
        self.set_policy_bit(19, debug);
        self
    }

    /// Lets a migration agent be associated.
    #[must_use]
    pub fn migration_agent(mut self, allowed: bool) -> Self {
        self.set_policy_bit(18, allowed);
        self
    }

    /// Asks for the report from another VMPL.
    #[must_use]
    pub fn vmpl(mut self, vmpl: u32) -> Self {
        put(&mut self.report, at::VMPL, &vmpl.to_le_bytes());
        self
    }

    /// Launches another guest.
    #[must_use]
    pub fn measurement(mut self, measurement: [u8; 48]) -> Self {
        put(&mut self.report, at::MEASUREMENT, &measurement);
        self
    }

    /// States other host data.
    #[must_use]
    pub fn host_data(mut self, host_data: [u8; 32]) -> Self {
        put(&mut self.report, at::HOST_DATA, &host_data);
        self
    }

    /// States another security version of the guest.
    #[must_use]
    pub fn guest_svn(mut self, svn: u32) -> Self {
        put(&mut self.report, at::GUEST_SVN, &svn.to_le_bytes());
        self
    }

    /// Signs the ID block with a key of this digest.
    #[must_use]
    pub fn id_key_digest(mut self, digest: [u8; 48]) -> Self {
        put(&mut self.report, at::ID_KEY_DIGEST, &digest);
        self
    }

    /// Sets all bits of PLATFORM_INFO.
    #[must_use]
    pub fn platform_info(mut self, bits: u64) -> Self {
        put(&mut self.report, at::PLATFORM_INFO, &bits.to_le_bytes());
        self
    }

    /// Runs on another chip, with the key of that chip.
    #[must_use]
    pub fn chip_id(mut self, chip: [u8; 64]) -> Self {
        put(&mut self.report, at::CHIP_ID, &chip);
        self.vek.chip = Some(chip.to_vec());
        self
    }

    /// Sets the current, reported, committed and launch TCB, and that of the key.
    #[must_use]
    pub fn tcb(mut self, tcb: TcbVersion) -> Self {
        self.vek.tcb = tcb.to_bytes(Product::Genoa);
        self.current_tcb(tcb)
            .reported_tcb(tcb)
            .committed_tcb(tcb)
            .launch_tcb(tcb)
    }

    /// Sets the current TCB alone.
    #[must_use]
    pub fn current_tcb(self, tcb: TcbVersion) -> Self {
        self.put_tcb(at::CURRENT_TCB, tcb)
    }

    /// Sets the reported TCB alone; the key keeps its own. See [`Self::vek_tcb`].
    #[must_use]
    pub fn reported_tcb(self, tcb: TcbVersion) -> Self {
        self.put_tcb(at::REPORTED_TCB, tcb)
    }

    /// Sets the committed TCB alone.
    #[must_use]
    pub fn committed_tcb(self, tcb: TcbVersion) -> Self {
        self.put_tcb(at::COMMITTED_TCB, tcb)
    }

    /// Sets the launch TCB alone.
    #[must_use]
    pub fn launch_tcb(self, tcb: TcbVersion) -> Self {
        self.put_tcb(at::LAUNCH_TCB, tcb)
    }

    fn put_tcb(mut self, offset: usize, tcb: TcbVersion) -> Self {
        put(&mut self.report, offset, &tcb.to_bytes(Product::Genoa));
        self
    }

    fn set_policy_bit(&mut self, bit: u32, on: bool) {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.report[at::POLICY..at::FAMILY_ID]);
        let policy = u64::from_le_bytes(bytes) & !(1 << bit) | u64::from(on) << bit;
        put(&mut self.report, at::POLICY, &policy.to_le_bytes());
    }
}

/// How it endorses its key, and how it misbehaves.
impl SimulatedTeeBuilder {
    /// Signs with the key of a cloud service provider instead of that of the chip, and masks the
    /// chip's identity.
    #[must_use]
    pub fn vlek(mut self, provider: &str) -> Self {
        put(&mut self.report, at::CHIP_ID, &[0; 64]);
        put(
            &mut self.report,
            at::SIGNER_INFO,
            &(1_u32 << 2).to_le_bytes(),
        );
        self.vek.chip = None;
        self.vek.provider = Some(provider.to_owned());
        self
    }

    /// Sets the TCB that the key says it belongs to.
    #[must_use]
    pub fn vek_tcb(mut self, tcb: TcbVersion) -> Self {
        self.vek.tcb = tcb.to_bytes(Product::Genoa);
        self
    }

    /// Sets the chip that the key says it belongs to.
    #[must_use]
    pub fn vek_chip_id(mut self, chip: &[u8]) -> Self {
        self.vek.chip = Some(chip.to_vec());
        self
    }

    /// Sets when the key's certificate is valid, both ends included.
    #[must_use]
    pub fn vek_validity(mut self, not_before: UnixTime, not_after: UnixTime) -> Self {
        self.vek.not_before = not_before;
        self.vek.not_after = not_after;
        self
    }

    /// Lets the key's certificate have expired a second ago.
    #[must_use]
    pub fn expired_vek(self) -> Self {
        let now = self.now;
        self.vek_validity(now.minus_seconds(YEAR), now.minus_seconds(1))
    }

    /// Endorses the key under a root that looks the same but is not the simulated one.
    #[must_use]
    pub fn other_root(mut self) -> Self {
        self.chain = Chain::LookAlike;
        self
    }

    /// Answers every challenge with this report data.
    #[must_use]
    pub fn answering(mut self, report_data: [u8; 64]) -> Self {
        self.answers = Some(report_data);
        self
    }

    /// Succeeds `attestations` times and fails from then on.
    #[must_use]
    pub fn fail_after(mut self, attestations: u32) -> Self {
        self.fail_after = Some(attestations);
        self
    }

    /// Changes each report before it is signed: claims that are false but authentic.
    #[must_use]
    pub fn edit_report(
        mut self,
        edit: impl FnMut(&mut [u8; REPORT_LENGTH]) + Send + 'static,
    ) -> Self {
        self.before_signing = Some(Box::new(edit));
        self
    }

    /// Changes each report after it was signed: what an attacker in between can do.
    #[must_use]
    pub fn tamper_report(
        mut self,
        edit: impl FnMut(&mut [u8; REPORT_LENGTH]) + Send + 'static,
    ) -> Self {
        self.after_signing = Some(Box::new(edit));
        self
    }

    /// Changes the key's certificate before it is signed.
    #[cfg(test)]
    pub(crate) fn edit_certificate(mut self, edit: fn(&mut Template)) -> Self {
        self.edit_certificate = Some(edit);
        self
    }

    /// Changes the certificates of the root and of the intermediate before the root signs them.
    #[cfg(test)]
    pub(crate) fn edit_authorities(
        mut self,
        root: fn(&mut Template),
        intermediate: fn(&mut Template),
    ) -> Self {
        self.chain = Chain::Edited(root, intermediate);
        self
    }

    /// Makes the key and its certificate.
    ///
    /// # Errors
    ///
    /// [`AttestError::Simulated`] if the operating system gives no random numbers.
    pub fn build(mut self) -> Result<SimulatedTee, AttestError> {
        let random = SystemRandom::new();
        let failed = |_| AttestError::Simulated("cannot make a key");
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random)
            .map_err(failed)?;
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, pkcs8.as_ref(), &random)
                .map_err(|_| AttestError::Simulated("cannot make a key"))?;
        random
            .fill(&mut self.report[at::REPORT_ID..at::REPORT_ID_MA])
            .map_err(failed)?;
        let mut template = self.vek.certificate(key.public_key().as_ref());
        if let Some(edit) = self.edit_certificate {
            edit(&mut template);
        }
        Ok(SimulatedTee {
            template: self.report,
            endorsements: self.chain.endorse(&template, self.vek.provider.is_some())?,
            vek: key,
            answers: self.answers,
            attestations_left: self.fail_after,
            before_signing: self.before_signing,
            after_signing: self.after_signing,
        })
    }
}

fn put(report: &mut [u8; REPORT_LENGTH], offset: usize, bytes: &[u8]) {
    for (to, from) in report.iter_mut().skip(offset).zip(bytes) {
        *to = *from;
    }
}
