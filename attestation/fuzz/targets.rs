//! One function for each kind of bytes that come from outside: none may panic, whatever the bytes.
//!
//! Driven by libFuzzer (`fuzz_targets/`) for as long as one likes, and by `tests/fuzz.rs` of the
//! verifier for a moment in every test run.

use attestation::snp::{Report, certificate_table};
use attestation::tdx::{CollateralSummary, EventLog, Quote};
use attestation::{Endorsements, Evidence, Tee, UnixTime, Verifier};

/// A target, by the name that cargo-fuzz knows it by.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 7] = [
    ("report", report),
    ("quote", quote),
    ("certificate_table", table),
    ("certificate", certificate),
    ("ccel", ccel),
    ("tcb_info", tcb_info),
    ("bundle", bundle),
];

/// 2026-09-01.
const NOW: UnixTime = UnixTime(1_788_220_800);

/// An SEV-SNP report.
pub fn report(bytes: &[u8]) {
    if let Ok(report) = Report::parse(bytes) {
        let _ = (report.cpuid(), report.product(), report.reserved_in_use());
        let _ = (report.signing_key(), report.current_mitigations());
    }
    appraise(Tee::SevSnp, bytes);
}

/// A TDX quote, with the certificates in it.
pub fn quote(bytes: &[u8]) {
    if let Ok(quote) = Quote::parse(bytes) {
        let report = quote.report();
        let _ = (report.rtmrs(), report.service_td(), report.tee_tcb_svn_2());
        let _ = (quote.padding(), format!("{quote:?} {report:?}"));
    }
    appraise(Tee::Tdx, bytes);
}

/// The table of certificates that the kernel hands out beside a report.
pub fn table(bytes: &[u8]) {
    let _ = certificate_table(bytes);
}

/// A certificate or a revocation list.
pub fn certificate(bytes: &[u8]) {
    let _ = Verifier::builder().endorsement(bytes.to_vec()).build();
    let _ = Verifier::builder().crl(bytes.to_vec()).build();
}

/// An event log of the CCEL table.
pub fn ccel(bytes: &[u8]) {
    if let Ok(log) = EventLog::parse(bytes) {
        let _ = log.replay();
        for event in log.events() {
            let _ = event.is_of_its_data();
        }
    }
}

/// Intel's TCB info or QE identity.
pub fn tcb_info(bytes: &[u8]) {
    let _ = CollateralSummary::of_tcb_info(bytes);
    let _ = CollateralSummary::of_qe_identity(bytes);
}

/// A bundle of evidence, JSON or CBOR; what is read is written again as it was.
pub fn bundle(bytes: &[u8]) {
    let read = [
        Evidence::from_json(bytes).ok(),
        Evidence::from_cbor(bytes).ok(),
    ];
    for evidence in read.into_iter().flatten() {
        let again = Evidence::from_cbor(&evidence.to_cbor());
        assert!(again.is_ok_and(|again| again == evidence));
        judge(&evidence);
    }
}

fn appraise(tee: Tee, bytes: &[u8]) {
    let evidence = Evidence::new(tee, bytes.to_vec(), Endorsements::default());
    if let Ok(evidence) = evidence {
        judge(&evidence);
    }
}

/// As far as the bytes let the verifier come.
fn judge(evidence: &Evidence) {
    if let Ok(verifier) = Verifier::builder().build() {
        let data = evidence.claimed_report_data().unwrap_or([0; 64]);
        let _ = verifier.appraise_bound_to(evidence, &data, NOW);
    }
}
