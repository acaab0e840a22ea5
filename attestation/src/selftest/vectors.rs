//! Genuine evidence from a folder of vectors, ready to be appraised.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::SelftestError;
use crate::appraisal::TcbStatus;
use crate::encoding::Hex;
use crate::endorsement::Certificate;
use crate::evidence::{Endorsements, Evidence, Tee};
use crate::time::UnixTime;

/// A folder of genuine evidence: `snp/expected.json`, `tdx/cases.json`, and the files they name.
#[derive(Clone, Debug)]
pub struct Vectors {
    root: PathBuf,
}

/// One piece of evidence with the time and the verdict that belong to it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The name of its file, or of the pair of quote and collateral.
    pub name: String,
    /// The evidence with all its endorsements.
    pub evidence: Evidence,
    /// What it is bound to, by an independent reading of it.
    pub report_data: [u8; 64],
    /// A moment at which everything in it is valid.
    pub now: UnixTime,
    /// What a right verifier says.
    pub expected: Expected,
}

/// What a right verifier says of evidence of which it was told nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The TCB status, where an independent verifier gave one.
    pub status: Option<TcbStatus>,
    /// The advisories that it gave, likewise.
    pub advisories: Option<Vec<String>>,
    /// Checks that fail, and so contraindicate.
    pub failing: Vec<&'static str>,
}

impl Vectors {
    /// Opens a folder of vectors.
    ///
    /// # Errors
    ///
    /// [`SelftestError::Read`] if it does not have the two lists of cases.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, SelftestError> {
        let vectors = Self { root: root.into() };
        vectors.json("snp/expected.json")?;
        vectors.json("tdx/cases.json")?;
        Ok(vectors)
    }

    /// The bytes of a file, by its path in the folder.
    ///
    /// # Errors
    ///
    /// [`SelftestError::Read`].
    pub fn read(&self, path: &str) -> Result<Vec<u8>, SelftestError> {
        let path = self.root.join(path);
        std::fs::read(&path).map_err(|source| SelftestError::Read { path, source })
    }

    /// The paths of the files in one folder of the folder, sorted.
    ///
    /// # Errors
    ///
    /// [`SelftestError::Read`].
    pub fn files(&self, folder: &str) -> Result<Vec<String>, SelftestError> {
        let path = self.root.join(folder);
        let failed = |source| SelftestError::Read {
            path: path.clone(),
            source,
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.path().is_file() {
                files.push(format!("{folder}/{}", entry.file_name().to_string_lossy()));
            }
        }
        files.sort();
        Ok(files)
    }

    /// Every SEV-SNP report with each certificate that signed it.
    ///
    /// # Errors
    ///
    /// [`SelftestError`] if the list or a file that it names is not as expected.
    pub fn snp(&self) -> Result<Vec<Case>, SelftestError> {
        const LIST: &str = "snp/expected.json";
        let authorities = self.authorities()?;
        let mut cases = Vec::new();
        for entry in list(&self.json(LIST)?) {
            let name = text(entry, "file").ok_or_else(|| self.wrong(LIST, "file"))?;
            for signer in entry.get("signed_by").map(list).unwrap_or_default() {
                let case = self.snp_case(name, entry, signer, &authorities)?;
                cases.push(case);
            }
        }
        Ok(cases)
    }

    fn snp_case(
        &self,
        name: &str,
        entry: &Value,
        signer: &Value,
        authorities: &[Vec<u8>],
    ) -> Result<Case, SelftestError> {
        let wrong = |what| self.wrong(name, what);
        let report = self.read(name)?;
        let vek = self.read(text(signer, "vek").ok_or_else(|| wrong("vek"))?)?;
        let issuer = |der: &[u8]| {
            let issuer = Certificate::parse(der).ok()?.issuer.to_vec();
            let names = |der: &&Vec<u8>| {
                Certificate::parse(der).is_ok_and(|certificate| certificate.subject == issuer)
            };
            authorities.iter().find(names).cloned()
        };
        let intermediate = issuer(&vek).ok_or_else(|| wrong("intermediate"))?;
        let root = issuer(&intermediate).ok_or_else(|| wrong("root"))?;
        let endorsements = Endorsements::default()
            .with_vek(vek)
            .and_then(|it| it.with_intermediate(intermediate))
            .and_then(|it| it.with_root(root))
            .map_err(|_| wrong("certificates"))?;
        let data = text(entry, "report_data").and_then(|hex| hex.parse::<Hex<64>>().ok());
        let end = text(signer, "not_after").and_then(midnight);
        let policy = text(entry, "policy").and_then(hexadecimal);
        let mut failing = Vec::new();
        if policy.ok_or_else(|| wrong("policy"))? & 1 << 19 != 0 {
            failing.push("snp.policy.debug");
        }
        if entry.get("vmpl").and_then(Value::as_u64) != Some(0) {
            failing.push("snp.vmpl");
        }
        Ok(Case {
            name: name.to_owned(),
            evidence: Evidence::new(Tee::SevSnp, report, endorsements)
                .map_err(|_| wrong("report"))?,
            report_data: data.ok_or_else(|| wrong("report_data"))?.0,
            now: end.ok_or_else(|| wrong("not_after"))?,
            expected: Expected {
                status: Some(TcbStatus::Unknown),
                advisories: None,
                failing,
            },
        })
    }

    /// Every TDX quote with each collateral that an independent verifier was run with.
    ///
    /// # Errors
    ///
    /// [`SelftestError`] if the list or a file that it names is not as expected.
    pub fn tdx(&self) -> Result<Vec<Case>, SelftestError> {
        const LIST: &str = "tdx/cases.json";
        let json = self.json(LIST)?;
        list(&json)
            .map(|entry| self.tdx_case(LIST, entry))
            .collect()
    }

    fn tdx_case(&self, path: &str, entry: &Value) -> Result<Case, SelftestError> {
        let wrong = |what| self.wrong(path, what);
        let part = |name| self.read(text(entry, name).ok_or_else(|| self.wrong(path, name))?);
        let endorsements = Endorsements::default()
            .with_tcb_info(part("tcb_info")?)
            .and_then(|it| it.with_qe_identity(part("qe_identity").unwrap_or_default()))
            .and_then(|it| it.with_tcb_signing(part("tcb_signing").unwrap_or_default()))
            .map_err(|_| wrong("collateral"))?;
        let (pck_crl, root_crl) = (part("pck_crl")?, part("root_crl")?);
        let evidence = Evidence::new(Tee::Tdx, part("quote")?, endorsements)
            .and_then(|it| it.with_crl(pck_crl))
            .and_then(|it| it.with_crl(root_crl))
            .map_err(|_| wrong("evidence"))?;
        let verdict = |name| text(entry, name).ok_or_else(|| self.wrong(path, name));
        let now = entry.get("verify_at_unix").and_then(Value::as_u64);
        Ok(Case {
            name: text(entry, "id").ok_or_else(|| wrong("id"))?.to_owned(),
            report_data: evidence
                .claimed_report_data()
                .ok_or_else(|| wrong("quote"))?,
            evidence,
            now: UnixTime(now.ok_or_else(|| wrong("verify_at_unix"))?),
            expected: tdx_expected(
                verdict("dcap_qvl_0_7_1")?,
                verdict("dcap_qvl_0_7_1_allow_debug_servicetd")?,
            ),
        })
    }

    /// A report or quote that comes without anything that vouches for it.
    pub(super) fn bare(&self, tee: Tee, path: &str) -> Result<Evidence, SelftestError> {
        self.endorsed(tee, path, Endorsements::default())
    }

    /// A report or quote with what is said to vouch for it.
    pub(super) fn endorsed(
        &self,
        tee: Tee,
        path: &str,
        endorsements: Endorsements,
    ) -> Result<Evidence, SelftestError> {
        Evidence::new(tee, self.read(path)?, endorsements).map_err(|_| self.wrong(path, "size"))
    }

    /// AMD's intermediates and roots.
    fn authorities(&self) -> Result<Vec<Vec<u8>>, SelftestError> {
        let files = self.files("snp/ca")?;
        files.iter().map(|file| self.read(file)).collect()
    }

    pub(super) fn json(&self, path: &str) -> Result<Value, SelftestError> {
        serde_json::from_slice(&self.read(path)?).map_err(|_| self.wrong(path, "not JSON"))
    }

    pub(super) fn wrong(&self, path: &str, what: &'static str) -> SelftestError {
        let path = Path::join(&self.root, path);
        SelftestError::Vector { path, what }
    }
}

/// The verdict of `dcap-qvl` in our words.
///
/// Debug guests, service TDs and a clear SEPT_VE_DISABLE are errors there. Here the quote is authentic
/// and its status known, and a check contraindicates it. Where that verifier stopped before it came
/// to the status, there is none to compare.
fn tdx_expected(verdict: &str, lenient: &str) -> Expected {
    let failing = match verdict {
        "ERR SEPT_VE_DISABLE is not enabled" => vec!["tdx.attributes.sept-ve-disable"],
        "ERR Invalid MR service TD" => vec!["tdx.mr-service-td"],
        "ERR Debug mode is enabled" => vec!["tdx.attributes.debug"],
        "ERR No matching TCB level found" => vec!["tdx.tcb"],
        _ => Vec::new(),
    };
    let status = match lenient.strip_prefix("OK ") {
        Some("UpToDate") => Some(TcbStatus::UpToDate),
        Some("OutOfDate") => Some(TcbStatus::OutOfDate),
        _ if verdict == "ERR No matching TCB level found" => Some(TcbStatus::Unknown),
        _ => None,
    };
    let advisories = verdict
        .split_once("adv=")
        .and_then(|(_, rest)| rest.split_once(" plat="))
        .and_then(|(list, _)| serde_json::from_str(list).ok());
    Expected {
        status,
        advisories,
        failing,
    }
}

fn list(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().map(|list| list.iter()).unwrap_or_default()
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field).and_then(Value::as_str)
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// The beginning of a day written as `2029-09-24`.
fn midnight(date: &str) -> Option<UnixTime> {
    let date: der::DateTime = format!("{date}T00:00:00Z").parse().ok()?;
    Some(UnixTime(date.unix_duration().as_secs()))
}
