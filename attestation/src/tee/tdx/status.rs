//! From levels to one status, as Intel defines it.
//!
//! Follows "Provisioning Certification Service (PCS) API, version 4", the algorithm under "Get TDX
//! TCB Info", and the way the Quote Verification Library converges statuses:
//!
//! ```text
//! platform level ◀ SVNs of the PCK certificate, TEE_TCB_SVN
//! module level   ◀ TEE_TCB_SVN[0], of the identity that TEE_TCB_SVN[1] names      ┐ each can only
//! QE level       ◀ ISVSVN of the QE report                                        ┘ make it worse
//! TDX 1.5: the same again with TEE_TCB_SVN_2, what is in force now
//! ```

use super::collateral::{EnclaveLevel, ModuleSigner, PlatformLevel, QeIdentity, Status, TcbInfo};
use super::pck::PckExtensions;
use super::quote::{QeReport, TdReport};
use crate::appraisal::TcbStatus;
use crate::time::UnixTime;

/// What collateral says of the platform that a quote came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) status: TcbStatus,
    /// The status of the platform alone, of the module and of the quoting enclave.
    pub(super) platform: Found,
    pub(super) module: Found,
    pub(super) qe: Found,
    /// Advisories of every level that counted, sorted, without repetition.
    pub(super) advisories: Vec<String>,
    /// The oldest date of the levels that counted.
    pub(super) tcb_date: Option<UnixTime>,
    /// The field in which the TDX module is not Intel's.
    pub(super) foreign_module: Option<&'static str>,
}

/// What was found for one part of the TCB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A level, with this status.
    Level(Status),
    /// It is older than every level there is.
    NoLevel,
    /// There is nothing to compare it with: an unknown module version.
    NoIdentity,
    /// It has no levels of its own.
    Exempt,
}

/// What levels are compared with.
pub(super) struct Subject<'a> {
    pub(super) pck: &'a PckExtensions,
    pub(super) report: TdReport<'a>,
    pub(super) qe: QeReport<'a>,
}

pub(super) fn judge(subject: &Subject<'_>, info: &TcbInfo, identity: &QeIdentity) -> Judgement {
    let mut sum = Sum::default();
    let launch = evaluate(subject, subject.report.tee_tcb_svn(), info, &mut sum);
    let current = subject
        .report
        .tee_tcb_svn_2()
        .map(|svn| evaluate(subject, svn, info, &mut sum));
    let qe = enclave_level(&identity.tcb_levels, subject.qe.isv_svn(), &mut sum);

    let at_launch = launch.status(qe);
    let status = match &current {
        None => at_launch,
        Some(current) => relaunched(at_launch, current.status(qe)),
    };
    let foreign = |it: &Evaluated| it.foreign_module;
    sum.advisories.sort_unstable();
    sum.advisories.dedup();
    Judgement {
        status,
        platform: launch.platform,
        module: launch.module,
        qe,
        advisories: sum.advisories,
        tcb_date: sum.oldest,
        foreign_module: foreign(&launch).or(current.as_ref().and_then(foreign)),
    }
}

/// Collects what levels that count say beside their status.
#[derive(Default)]
struct Sum {
    advisories: Vec<String>,
    oldest: Option<UnixTime>,
}

impl Sum {
    fn add(&mut self, date: UnixTime, advisories: &[String]) {
        self.oldest = Some(self.oldest.map_or(date, |oldest| oldest.min(date)));
        self.advisories.extend_from_slice(advisories);
    }
}

struct Evaluated {
    platform: Found,
    module: Found,
    foreign_module: Option<&'static str>,
}

impl Evaluated {
    fn status(&self, qe: Found) -> TcbStatus {
        let Found::Level(platform) = self.platform else {
            // A revoked part is final even where another has no level.
            return if [self.module, qe].contains(&Found::Level(Status::Revoked)) {
                TcbStatus::Revoked
            } else {
                TcbStatus::Unknown
            };
        };
        [self.module, qe]
            .into_iter()
            .fold(public(platform), converged)
    }
}

fn evaluate(
    subject: &Subject<'_>,
    tee_tcb_svn: [u8; 16],
    info: &TcbInfo,
    sum: &mut Sum,
) -> Evaluated {
    let [svn, version, ..] = tee_tcb_svn;
    let (signer, module) = module(&info.tdx_module, info, svn, version, sum);
    let foreign_module = signer.and_then(|signer| {
        let report = subject.report;
        signer.differs_from(report.mr_signer_seam(), report.seam_attributes())
    });
    Evaluated {
        platform: platform_level(&info.tcb_levels, subject.pck, tee_tcb_svn, sum),
        module,
        foreign_module,
    }
}

/// Who the module of this version must come from, and its level.
fn module<'a>(
    first: &'a ModuleSigner,
    info: &'a TcbInfo,
    svn: u8,
    version: u8,
    sum: &mut Sum,
) -> (Option<&'a ModuleSigner>, Found) {
    // Version 0 is judged by components of the platform alone.
    if version == 0 {
        return (Some(first), Found::Exempt);
    }
    let id = format!("TDX_{version:02X}");
    let identity = info
        .tdx_module_identities
        .iter()
        .find(|identity| identity.id == id);
    match identity {
        None => (None, Found::NoIdentity),
        Some(identity) => {
            let level = enclave_level(&identity.tcb_levels, svn.into(), sum);
            (Some(&identity.signer), level)
        }
    }
}

/// The highest level that `svn` reaches, whatever the order in the file.
fn enclave_level(levels: &[EnclaveLevel], svn: u16, sum: &mut Sum) -> Found {
    let reached = levels.iter().filter(|level| level.tcb.isvsvn <= svn);
    match reached.max_by_key(|level| level.tcb.isvsvn) {
        None => Found::NoLevel,
        Some(level) => {
            sum.add(level.tcb_date.0, &level.advisories);
            Found::Level(level.tcb_status)
        }
    }
}

/// The highest level that the platform reaches in every component, whatever the order in the file.
fn platform_level(
    levels: &[PlatformLevel],
    pck: &PckExtensions,
    tee_tcb_svn: [u8; 16],
    sum: &mut Sum,
) -> Found {
    // From module version 1 on, the first two components belong to the module's own levels.
    let skipped = if tee_tcb_svn[1] > 0 { 2 } else { 0 };
    let reaches = |seen: [u8; 16], level: [u8; 16], skipped: usize| {
        let mut pairs = seen.into_iter().zip(level).skip(skipped);
        pairs.all(|(seen, level)| seen >= level)
    };
    let reached = levels.iter().filter(|level| {
        reaches(pck.components, level.tcb.sgx(), 0)
            && pck.pce_svn >= level.tcb.pcesvn
            && reaches(tee_tcb_svn, level.tcb.tdx(), skipped)
    });
    let key = |level: &&PlatformLevel| (level.tcb.sgx(), level.tcb.pcesvn, level.tcb.tdx());
    match reached.max_by_key(key) {
        None => Found::NoLevel,
        Some(level) => {
            sum.add(level.tcb_date.0, &level.advisories);
            Found::Level(level.tcb_status)
        }
    }
}

fn public(status: Status) -> TcbStatus {
    match status {
        Status::UpToDate => TcbStatus::UpToDate,
        Status::SwHardeningNeeded => TcbStatus::SwHardeningNeeded,
        Status::ConfigurationNeeded => TcbStatus::ConfigurationNeeded,
        Status::ConfigurationAndSwHardeningNeeded => TcbStatus::ConfigurationAndSwHardeningNeeded,
        Status::OutOfDate => TcbStatus::OutOfDate,
        Status::OutOfDateConfigurationNeeded => TcbStatus::OutOfDateConfigurationNeeded,
        Status::Revoked => TcbStatus::Revoked,
    }
}

/// The status of the whole once that of a part is known.
fn converged(whole: TcbStatus, part: Found) -> TcbStatus {
    use TcbStatus::{
        ConfigurationAndSwHardeningNeeded, ConfigurationNeeded, OutOfDate,
        OutOfDateConfigurationNeeded, Revoked, SwHardeningNeeded, Unknown, UpToDate,
    };
    let part = match part {
        Found::Exempt => return whole,
        Found::NoLevel | Found::NoIdentity => Unknown,
        Found::Level(status) => public(status),
    };
    match (whole, part) {
        (Revoked, _) | (_, Revoked) => Revoked,
        (Unknown, _) | (_, Unknown) => Unknown,
        (whole, UpToDate) => whole,
        (UpToDate | SwHardeningNeeded, OutOfDate) => OutOfDate,
        (ConfigurationNeeded | ConfigurationAndSwHardeningNeeded, OutOfDate) => {
            OutOfDateConfigurationNeeded
        }
        (whole, OutOfDate) => whole,
        // Intel gives modules and enclaves no other status. Should one come, the worse counts.
        (whole, part) => whole.or_worse(part),
    }
}

/// The status of a TD that was built under one TCB and runs under another.
fn relaunched(launch: TcbStatus, current: TcbStatus) -> TcbStatus {
    use TcbStatus::{
        ConfigurationAndSwHardeningNeeded, ConfigurationNeeded, OutOfDate,
        OutOfDateConfigurationNeeded, Revoked, TdRelaunchAdvised,
        TdRelaunchAdvisedConfigurationNeeded, Unknown,
    };
    match (launch, current) {
        (Revoked, _) | (_, Revoked) => Revoked,
        (Unknown, _) | (_, Unknown) => Unknown,
        (_, OutOfDate | OutOfDateConfigurationNeeded) => launch.or_worse(current),
        (OutOfDate, ConfigurationNeeded | ConfigurationAndSwHardeningNeeded)
        | (OutOfDateConfigurationNeeded, _) => TdRelaunchAdvisedConfigurationNeeded,
        (OutOfDate, _) => TdRelaunchAdvised,
        (launch, current) => launch.or_worse(current),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TcbStatus as S;

    #[test]
    fn a_revoked_part_is_final_whatever_the_rest() {
        for whole in [
            S::UpToDate,
            S::OutOfDate,
            S::Unknown,
            S::ConfigurationNeeded,
        ] {
            assert_eq!(converged(whole, Found::Level(Status::Revoked)), S::Revoked);
            assert_eq!(relaunched(whole, S::Revoked), S::Revoked);
            assert_eq!(relaunched(S::Revoked, whole), S::Revoked);
        }
    }

    #[test]
    fn an_old_part_makes_the_whole_old_and_keeps_its_configuration() {
        let old = Found::Level(Status::OutOfDate);
        assert_eq!(converged(S::UpToDate, old), S::OutOfDate);
        assert_eq!(converged(S::SwHardeningNeeded, old), S::OutOfDate);
        for whole in [S::ConfigurationNeeded, S::ConfigurationAndSwHardeningNeeded] {
            assert_eq!(converged(whole, old), S::OutOfDateConfigurationNeeded);
        }
        assert_eq!(converged(S::UpToDate, Found::NoLevel), S::Unknown);
        assert_eq!(converged(S::UpToDate, Found::NoIdentity), S::Unknown);
    }

    #[test]
    fn a_td_built_before_an_update_is_advised_to_relaunch() {
        assert_eq!(relaunched(S::OutOfDate, S::UpToDate), S::TdRelaunchAdvised);
        assert_eq!(
            relaunched(S::OutOfDate, S::ConfigurationNeeded),
            S::TdRelaunchAdvisedConfigurationNeeded
        );
        assert_eq!(
            relaunched(S::OutOfDateConfigurationNeeded, S::UpToDate),
            S::TdRelaunchAdvisedConfigurationNeeded
        );
        assert_eq!(relaunched(S::OutOfDate, S::OutOfDate), S::OutOfDate);
        assert_eq!(relaunched(S::UpToDate, S::OutOfDate), S::OutOfDate);
        assert_eq!(relaunched(S::UpToDate, S::UpToDate), S::UpToDate);
        assert_eq!(relaunched(S::Unknown, S::UpToDate), S::Unknown);
    }
}
