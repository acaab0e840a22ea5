//! One thing changed at a time.

use super::vectors::{Case, Vectors};
use super::{Finding, Row, Section, SelftestError, snp, tdx};
use crate::appraisal::{Appraisal, TrustTier};
use crate::endorsement::{Certificate, Crl};
use crate::evidence::{Endorsements, Evidence, Tee};
use crate::reference::ReferenceValues;
use crate::time::UnixTime;
use crate::verifier::{AppraiseError, Verifier};

pub(super) fn rows(vectors: &Vectors) -> Result<Vec<Row>, SelftestError> {
    let mut bench = Bench::default();
    snp::mutate(vectors, &mut bench)?;
    tdx::mutate(vectors, &mut bench)?;
    Ok(bench.rows)
}

/// Everything that an appraisal depends on, in parts that can be changed one by one.
#[derive(Clone)]
pub(super) struct Subject {
    pub(super) tee: Tee,
    pub(super) report: Vec<u8>,
    pub(super) certificates: Endorsements,
    pub(super) crls: Vec<Vec<u8>>,
    pub(super) reference: ReferenceValues,
    pub(super) report_data: [u8; 64],
    pub(super) now: UnixTime,
    pub(super) accepts_simulated: bool,
}

impl Subject {
    /// A genuine case, of which nothing is expected yet.
    pub(super) fn of(case: &Case) -> Self {
        Self {
            tee: case.evidence.tee(),
            report: case.evidence.report().to_vec(),
            certificates: case.evidence.endorsements().clone(),
            crls: case.evidence.crls().map(<[u8]>::to_vec).collect(),
            reference: ReferenceValues::default(),
            report_data: case.report_data,
            now: case.now,
            accepts_simulated: false,
        }
    }

    pub(super) fn appraise(&self) -> Result<Appraisal, Refusal> {
        let evidence = self.evidence().map_err(|_| Refusal("evidence-size"))?;
        let mut builder = Verifier::builder().reference_values(self.reference.clone());
        if self.accepts_simulated {
            builder = builder.dangerous().accept_simulated();
        }
        let verifier = builder.build().map_err(|_| Refusal("verifier"))?;
        let verdict = verifier.appraise_bound_to(&evidence, &self.report_data, self.now);
        verdict.map_err(|error: AppraiseError| Refusal(error.code()))
    }

    fn evidence(&self) -> Result<Evidence, crate::EvidenceError> {
        let endorsements = self.certificates.clone();
        let evidence = Evidence::new(self.tee, self.report.clone(), endorsements)?;
        self.crls
            .iter()
            .try_fold(evidence, |evidence, crl| evidence.with_crl(crl.clone()))
    }
}

/// The code of an error that refused a subject.
pub(super) struct Refusal(pub(super) &'static str);

/// Where mutations are tried.
#[derive(Default)]
pub(super) struct Bench {
    rows: Vec<Row>,
}

impl Bench {
    /// Appraises a changed subject, which `reason` (an error code or a check) should stand against.
    pub(super) fn try_one(&mut self, case: &str, change: String, reason: &str, subject: &Subject) {
        let (seen, finding) = match subject.appraise() {
            Err(Refusal(code)) => (code.to_owned(), found(code == reason)),
            Ok(appraisal) if appraisal.tier() == TrustTier::Affirming => {
                ("affirmed".to_owned(), Finding::Wrong)
            }
            Ok(appraisal) => {
                let limits = appraisal
                    .checks()
                    .iter()
                    .filter(|check| check.leaves != TrustTier::Affirming);
                let ids: Vec<&str> = limits.map(|check| check.id).collect();
                (ids.join(", "), found(ids.contains(&reason)))
            }
        };
        self.rows.push(Row {
            section: Section::Mutation,
            case: case.to_owned(),
            change,
            expected: reason.to_owned(),
            seen,
            finding,
        });
    }

    /// Says that a subject is affirmed before anything is changed; otherwise nothing is learnt by
    /// changing it.
    pub(super) fn starts_affirmed(&mut self, case: &str, subject: &Subject) -> bool {
        let verdict = subject.appraise();
        let affirmed = matches!(&verdict, Ok(it) if it.tier() == TrustTier::Affirming);
        if !affirmed {
            let seen = match verdict {
                Err(Refusal(code)) => code.to_owned(),
                Ok(appraisal) => appraisal.tier().name().to_owned(),
            };
            self.rows.push(Row {
                section: Section::Genuine,
                case: case.to_owned(),
                change: "with reference values that name it".to_owned(),
                expected: "affirming".to_owned(),
                seen,
                finding: Finding::Wrong,
            });
        }
        affirmed
    }
}

fn found(specific: bool) -> Finding {
    if specific {
        Finding::AsExpected
    } else {
        Finding::OtherReason
    }
}

/// One field: its name, where it lies, and the reason that a change of it calls for.
pub(super) struct Field {
    pub(super) name: String,
    pub(super) offset: usize,
    pub(super) length: usize,
    pub(super) reason: &'static str,
}

/// The three values that every field is given: one bit turned, all zero, all ones. What changes
/// nothing is left out.
pub(super) fn values(bytes: &[u8], field: &Field) -> Vec<(&'static str, Vec<u8>)> {
    let end = field.offset.saturating_add(field.length);
    let with = |edit: fn(&mut [u8])| {
        let mut changed = bytes.to_vec();
        if let Some(part) = changed.get_mut(field.offset..end) {
            edit(part);
        }
        changed
    };
    let turn: fn(&mut [u8]) = |part| {
        if let Some(last) = part.last_mut() {
            *last ^= 1;
        }
    };
    [
        ("one bit turned", with(turn)),
        ("all zero", with(|part| part.fill(0))),
        ("all ones", with(|part| part.fill(0xff))),
    ]
    .into_iter()
    .filter(|(_, changed)| changed != bytes)
    .collect()
}

/// The fields of a certificate, by what a verifier meets first when one bit of it is turned.
///
/// `issuer` is the reason for another issuer, `subject` for another name.
pub(super) fn certificate_fields(
    der: &[u8],
    issuer: &'static str,
    subject: &'static str,
    key: &'static str,
) -> Vec<Field> {
    let Ok(certificate) = Certificate::parse(der) else {
        return Vec::new();
    };
    const SIGNATURE: &str = "certificate-signature";
    let parts = [
        ("serial number", certificate.serial, SIGNATURE),
        ("issuer", certificate.issuer, issuer),
        ("subject", certificate.common_name.as_bytes(), subject),
        ("public key", certificate.public_key, key),
        ("signature", certificate.signature(), SIGNATURE),
    ];
    let mut fields: Vec<Field> = parts
        .into_iter()
        .map(|(name, part, reason)| field(name.to_owned(), der, part, reason))
        .collect();
    for (at, extension) in certificate.extensions.iter().enumerate() {
        let name = format!("extension {at}");
        fields.push(field(name, der, extension.value, SIGNATURE));
    }
    fields
}

/// The fields of a list.
pub(super) fn crl_fields(der: &[u8]) -> Vec<Field> {
    let Ok(crl) = Crl::parse(der) else {
        return Vec::new();
    };
    vec![field(
        "signature".to_owned(),
        der,
        crl.signature(),
        "crl-signature",
    )]
}

/// Where `part`, a slice of `whole`, lies in it.
pub(super) fn field(name: String, whole: &[u8], part: &[u8], reason: &'static str) -> Field {
    let offset = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    Field {
        name,
        offset,
        length: part.len(),
        reason,
    }
}

/// One bit of the last byte of a field turned.
pub(super) fn turned(bytes: &[u8], field: &Field) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    let last = field.offset.saturating_add(field.length).saturating_sub(1);
    if let Some(byte) = changed.get_mut(last) {
        *byte ^= 1;
    }
    changed
}
