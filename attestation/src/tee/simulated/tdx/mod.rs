//! A TDX guest in software, under the simulated root.
//!
//! [`SimulatedTdx`] writes TD reports, quotes, certificates, revocation lists and collateral byte by
//! byte as the module, the quoting enclave and Intel's service do, so that the verifier for TDX
//! appraises them with no second path. As with [`crate::SimulatedTee`], its root's key is part of
//! this source, and no verifier believes it unless [`crate::VerifierBuilder::dangerous`] says so.

mod collateral;
pub(crate) mod platform;

use serde_json::json;

use crate::appraisal::TcbStatus;
use crate::attester::{AttestError, Attester};
use crate::encoding::Hex;
use crate::evidence::{Endorsements, Evidence, Tee};
use crate::reference::{ReferenceValues, TdxReferenceValues};
use crate::tee::tdx::Anchor;
use crate::time::UnixTime;

use platform::{Key, PLATFORM_CA, Platform, ROOT, at};

const ROOT_KEY: &[u8] = include_bytes!("../keys/tdx-root.pkcs8.der");

/// The simulated root as a trust anchor.
pub(crate) fn anchor() -> Anchor {
    Anchor {
        spki: Hex(
            *b"\x09\xa6\xa8\x62\x8e\x65\xed\x8f\x6a\xd5\x11\xa1\x3f\xd5\x96\x3b\x69\x6b\xca\xfe\xb6\x4f\xf6\xe9\xc8\xb0\xf9\xa6\x3f\x44\xd3\x67",
        ),
        simulated: true,
    }
}

/// Version of a quote, and of the TD report in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuoteForm {
    /// Version 4 with a report of TDX 1.0.
    V4,
    /// Version 5 with a report of TDX 1.0.
    V5Tdx10,
    /// Version 5 with a report of TDX 1.5.
    V5Tdx15,
    /// Version 5 with the extended report of TDX 1.5, which has service TDs and their history.
    V5Tdx15Extended,
}

type EditQuote = Box<dyn FnMut(&mut Vec<u8>) + Send>;
type Edit = Box<dyn FnOnce(&mut Platform) -> Result<(), AttestError> + Send>;

/// A software stand-in for a TDX guest on an up-to-date platform of family `90C06F000000`.
///
/// Its evidence says that it is TDX's; the appraisal of it says `simulated`. Every instance has keys
/// of its own under the one simulated root.
pub struct SimulatedTdx {
    platform: Platform,
    answers: Option<[u8; 64]>,
    attestations_left: Option<u32>,
    tamper: Option<EditQuote>,
}

/// Collects what a [`SimulatedTdx`] reports, and how it misbehaves.
pub struct SimulatedTdxBuilder {
    now: UnixTime,
    edits: Vec<Edit>,
    other_root: bool,
    answers: Option<[u8; 64]>,
    fail_after: Option<u32>,
    tamper: Option<EditQuote>,
}

impl SimulatedTdx {
    /// Starts a TD of TDX 1.5 as it should be: version 5, no debug, MRTD of all `11`, RTMR0 to RTMR3
    /// of all `20` to `23`. Certificates are valid for a year around `now`; collateral and lists, which
    /// come with the evidence, from the day before until 29 days later.
    #[must_use]
    pub fn builder(now: UnixTime) -> SimulatedTdxBuilder {
        SimulatedTdxBuilder {
            now,
            edits: Vec::new(),
            other_root: false,
            answers: None,
            fail_after: None,
            tamper: None,
        }
    }

    /// A well-behaved TD; see [`SimulatedTdx::builder`].
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
        let register = |offset: usize| {
            let mut register = [0; 48];
            let bytes = self.platform.body.iter().skip(offset);
            register
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
            Some(vec![Hex(register)])
        };
        ReferenceValues {
            tdx: TdxReferenceValues {
                measurements: register(at::MR_TD),
                rtmr1: register(at::RTMR0 + 48),
                rtmr2: register(at::RTMR0 + 96),
                ..TdxReferenceValues::default()
            },
            ..ReferenceValues::default()
        }
    }

    /// TCB info, QE identity and the certificate of their signer, for a verifier that holds collateral
    /// itself.
    ///
    /// # Errors
    ///
    /// [`AttestError::Simulated`] if the operating system gives no random numbers.
    pub fn collateral(&self) -> Result<Endorsements, AttestError> {
        self.platform.collateral()
    }
}

impl Attester for SimulatedTdx {
    fn tee(&self) -> Tee {
        Tee::Simulated
    }

    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        if let Some(left) = &mut self.attestations_left {
            *left = left
                .checked_sub(1)
                .ok_or(AttestError::Simulated("was told to fail by now"))?;
        }
        let report_data = self.answers.unwrap_or(*report_data);
        self.platform.put(at::REPORT_DATA, &report_data);
        let evidence = self.platform.evidence()?;
        let Some(tamper) = &mut self.tamper else {
            return Ok(evidence);
        };
        let mut quote = evidence.report().to_vec();
        tamper(&mut quote);
        let tampered = Evidence::new(Tee::Tdx, quote, evidence.endorsements().clone())?;
        let add = |tampered: Evidence, crl: &[u8]| tampered.with_crl(crl.to_vec());
        Ok(evidence.crls().try_fold(tampered, add)?)
    }
}

impl std::fmt::Debug for SimulatedTdx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimulatedTdx(..)")
    }
}

impl std::fmt::Debug for SimulatedTdxBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimulatedTdxBuilder(..)")
    }
}

/// What the guest is.
impl SimulatedTdxBuilder {
    /// Writes a quote of another form. Set it first: a report of TDX 1.0 has no room for some fields.
    #[must_use]
    pub fn quote_form(self, form: QuoteForm) -> Self {
        let (version, kind, length) = match form {
            QuoteForm::V4 => (4, 0, 584),
            QuoteForm::V5Tdx10 => (5, 2, 584),
            QuoteForm::V5Tdx15 => (5, 3, 648),
            QuoteForm::V5Tdx15Extended => (5, 4, 885),
        };
        self.edit(move |platform| {
            platform.header[0] = version;
            platform.body_kind = kind;
            platform.body.resize(length, 0);
        })
    }

    /// Builds the guest with another MRTD.
    #[must_use]
    pub fn measurement(self, mr_td: [u8; 48]) -> Self {
        self.put(at::MR_TD, &mr_td)
    }

    /// Sets RTMR0 to RTMR3.
    #[must_use]
    pub fn rtmrs(self, rtmrs: [[u8; 48]; 4]) -> Self {
        self.put(at::RTMR0, rtmrs.as_flattened())
    }

    /// Sets all bits of ATTRIBUTES, of which a guest as it should be has bit 28 alone.
    #[must_use]
    pub fn attributes(self, bits: u64) -> Self {
        self.put(at::TD_ATTRIBUTES, &bits.to_le_bytes())
    }

    /// Lets the host read the guest's memory.
    #[must_use]
    pub fn debug(self, debug: bool) -> Self {
        self.edit(move |platform| {
            if let Some(byte) = platform.body.get_mut(at::TD_ATTRIBUTES) {
                *byte = *byte & !1 | u8::from(debug);
            }
        })
    }

    /// Sets all bits of XFAM.
    #[must_use]
    pub fn xfam(self, bits: u64) -> Self {
        self.put(at::XFAM, &bits.to_le_bytes())
    }

    /// Sets MRCONFIGID.
    #[must_use]
    pub fn mr_config_id(self, digest: [u8; 48]) -> Self {
        self.put(at::MR_CONFIG_ID, &digest)
    }

    /// Binds service TDs to the guest.
    #[must_use]
    pub fn mr_service_td(self, digest: [u8; 48]) -> Self {
        self.put(at::MR_SERVICE_TD, &digest)
    }

    fn put(self, offset: usize, bytes: &[u8]) -> Self {
        let bytes = bytes.to_vec();
        self.edit(move |platform| platform.put(offset, &bytes))
    }

    fn edit(self, edit: impl FnOnce(&mut Platform) + Send + 'static) -> Self {
        self.try_edit(|platform| {
            edit(platform);
            Ok(())
        })
    }

    fn try_edit(
        mut self,
        edit: impl FnOnce(&mut Platform) -> Result<(), AttestError> + Send + 'static,
    ) -> Self {
        self.edits.push(Box::new(edit));
        self
    }
}

/// Where it runs, and what Intel says of that.
impl SimulatedTdxBuilder {
    /// Runs on another processor package.
    #[must_use]
    pub fn ppid(self, ppid: [u8; 16]) -> Self {
        self.edit(move |platform| platform.extensions.ppid = ppid)
    }

    /// Runs on another family of platforms than the collateral is about.
    #[must_use]
    pub fn other_family(self) -> Self {
        self.edit(|platform| platform.extensions.fmspc = vec![0; 6])
    }

    /// Sets the PCESVN of the platform: 13 is up to date, 5 out of date, less is no level at all.
    #[must_use]
    pub fn pce_svn(self, svn: u8) -> Self {
        self.edit(move |platform| platform.extensions.pce_svn = svn)
    }

    /// Sets the version of the TDX module, now and at the launch of the guest: 6 is up to date, 4 out
    /// of date.
    #[must_use]
    pub fn module_svn(self, now: u8, at_launch: u8) -> Self {
        self.edit(move |platform| {
            platform.put(at::TEE_TCB_SVN, &[at_launch]);
            platform.put(at::TEE_TCB_SVN_2, &[now]);
        })
    }

    /// Sets the version of the quoting enclave: 6 is up to date, 4 out of date.
    #[must_use]
    pub fn quoting_enclave_svn(self, svn: u8) -> Self {
        self.edit(move |platform| platform.put_qe(at::QE_SVN, &[svn]))
    }

    /// Has Intel say this of an up-to-date platform; a status that levels do not have is up to date.
    #[must_use]
    pub fn tcb_status(self, status: TcbStatus, advisories: &[&str]) -> Self {
        let word = match status {
            TcbStatus::SwHardeningNeeded => "SWHardeningNeeded",
            TcbStatus::ConfigurationNeeded => "ConfigurationNeeded",
            TcbStatus::ConfigurationAndSwHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            TcbStatus::OutOfDate => "OutOfDate",
            TcbStatus::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            TcbStatus::Revoked => "Revoked",
            _ => "UpToDate",
        };
        let advisories: Vec<String> = advisories.iter().map(|&it| it.to_owned()).collect();
        self.edit(move |platform| {
            let level = &mut platform.tcb_info["tcbLevels"][1];
            level["tcbStatus"] = json!(word);
            level["advisoryIDs"] = json!(advisories);
        })
    }

    /// Sets `tcbEvaluationDataNumber` of the collateral; 18 otherwise.
    #[must_use]
    pub fn tcb_evaluation(self, number: u32) -> Self {
        self.edit(move |platform| {
            for document in [&mut platform.tcb_info, &mut platform.qe_identity] {
                document["tcbEvaluationDataNumber"] = json!(number);
            }
        })
    }

    /// Sets when collateral is issued and when its next update comes.
    #[must_use]
    pub fn collateral_validity(self, issued: UnixTime, next_update: UnixTime) -> Self {
        self.edit(move |platform| {
            for document in [&mut platform.tcb_info, &mut platform.qe_identity] {
                document["issueDate"] = json!(issued.to_string());
                document["nextUpdate"] = json!(next_update.to_string());
            }
        })
    }

    /// Sends no collateral along.
    #[must_use]
    pub fn without_collateral(self) -> Self {
        self.edit(|platform| platform.with_collateral = false)
    }
}

/// How it endorses its keys, and how it misbehaves.
impl SimulatedTdxBuilder {
    /// Sends no revocation lists along.
    #[must_use]
    pub fn without_crls(self) -> Self {
        self.edit(|platform| platform.crls.clear())
    }

    /// Sends revocation lists along that are current between these times, and that name the platform's
    /// key if `revoke` says so.
    #[must_use]
    pub fn crls(self, this_update: UnixTime, next_update: UnixTime, revoke: bool) -> Self {
        self.try_edit(move |platform| {
            let end = Some(next_update);
            let serial = platform.certificates[2].serial;
            let revoked = if revoke { vec![serial] } else { Vec::new() };
            platform.crls = vec![
                platform.root.crl(ROOT, this_update, end, &[])?,
                platform
                    .authority
                    .crl(PLATFORM_CA, this_update, end, &revoked)?,
            ];
            Ok(())
        })
    }

    /// Sets when the platform's certificate is valid, both ends included.
    #[must_use]
    pub fn pck_validity(self, not_before: UnixTime, not_after: UnixTime) -> Self {
        self.edit(move |platform| {
            platform.certificates[2].not_before = not_before;
            platform.certificates[2].not_after = not_after;
        })
    }

    /// Endorses everything under a root that looks the same but is not the simulated one.
    #[must_use]
    pub fn other_root(mut self) -> Self {
        self.other_root = true;
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

    /// Changes the TD report before it is signed: claims that are false but authentic.
    #[must_use]
    pub fn edit_report(self, edit: impl FnOnce(&mut [u8]) + Send + 'static) -> Self {
        self.edit(|platform| edit(&mut platform.body))
    }

    /// Changes the quoting enclave's report before it is signed.
    #[must_use]
    pub fn edit_enclave_report(self, edit: impl FnOnce(&mut [u8]) + Send + 'static) -> Self {
        self.edit(|platform| edit(&mut platform.qe_report))
    }

    /// Changes each quote after it was signed: what an attacker in between can do.
    #[must_use]
    pub fn tamper_quote(mut self, edit: impl FnMut(&mut Vec<u8>) + Send + 'static) -> Self {
        self.tamper = Some(Box::new(edit));
        self
    }

    /// Makes the keys and their certificates.
    ///
    /// # Errors
    ///
    /// [`AttestError::Simulated`] if the operating system gives no random numbers.
    pub fn build(self) -> Result<SimulatedTdx, AttestError> {
        let root = if self.other_root {
            Key::generate()?
        } else {
            Key::from_pkcs8(ROOT_KEY)?
        };
        let mut platform = Platform::new(root, self.now)?;
        for edit in self.edits {
            edit(&mut platform)?;
        }
        Ok(SimulatedTdx {
            platform,
            answers: self.answers,
            attestations_left: self.fail_after,
            tamper: self.tamper,
        })
    }
}

#[cfg(test)]
mod tests;
