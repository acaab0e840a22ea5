//! SEV-SNP evidence as attesters of Confidential Containers write it.
//!
//! The shape is that of `SnpEvidence` (confidential-containers/guest-components,
//! attestation-agent/attester/src/snp/mod.rs), with `AttestationReport` and `CertTableEntry` of virtee/sev 8.0
//! (src/firmware/guest/types/snp.rs, src/firmware/host/types/snp.rs) as serde writes them.

#![allow(clippy::unwrap_used)]

use attestation::Evidence;
use serde_json::{Value, json};

/// What a guest sends that has this report and these certificates.
pub fn of(evidence: &Evidence) -> Value {
    let endorsements = evidence.endorsements();
    let certificates = [
        ("VCEK", endorsements.vek()),
        ("ASK", endorsements.intermediate()),
        ("ARK", endorsements.root()),
    ];
    let entries = certificates
        .into_iter()
        .filter_map(|(kind, der)| Some(json!({ "cert_type": kind, "data": der? })));
    json!({
        "attestation_report": report(evidence.report()),
        "cert_chain": entries.collect::<Vec<_>>(),
    })
}

fn report(report: &[u8]) -> Value {
    let bytes = |at: usize, length: usize| report[at..at + length].to_vec();
    let u32 = |at| u32::from_le_bytes(report[at..at + 4].try_into().unwrap());
    let u64 = |at| u64::from_le_bytes(report[at..at + 8].try_into().unwrap());
    let version = u32(0);
    let (family, model) = (report[0x188], report[0x189]);
    // Turin is family 1Ah; a report of version 2 does not say, but has chip ids of eight bytes.
    let turin = match version {
        2 => {
            report[0x1a8..0x1e0].iter().all(|byte| *byte == 0)
                && report[0x1a0..0x1a8].iter().any(|byte| *byte != 0)
        }
        _ => family == 0x1a,
    };
    let tcb = |at: usize| match turin {
        true => json!({ "fmc": report[at], "bootloader": report[at + 1], "tee": report[at + 2],
                        "snp": report[at + 3], "microcode": report[at + 7] }),
        false => json!({ "fmc": null, "bootloader": report[at], "tee": report[at + 1],
                         "snp": report[at + 6], "microcode": report[at + 7] }),
    };
    let firmware = |at: usize| json!({ "major": report[at + 2], "minor": report[at + 1], "build": report[at] });
    let since = |least: u32, value: Value| if version >= least { value } else { Value::Null };
    json!({
        "version": version,
        "guest_svn": u32(4),
        "policy": u64(8),
        "family_id": bytes(0x10, 16),
        "image_id": bytes(0x20, 16),
        "vmpl": u32(0x30),
        "sig_algo": u32(0x34),
        "current_tcb": tcb(0x38),
        "plat_info": u64(0x40),
        "key_info": u32(0x48),
        "report_data": bytes(0x50, 64),
        "measurement": bytes(0x90, 48),
        "host_data": bytes(0xc0, 32),
        "id_key_digest": bytes(0xe0, 48),
        "author_key_digest": bytes(0x110, 48),
        "report_id": bytes(0x140, 32),
        "report_id_ma": bytes(0x160, 32),
        "reported_tcb": tcb(0x180),
        "cpuid_fam_id": since(3, family.into()),
        "cpuid_mod_id": since(3, model.into()),
        "cpuid_step": since(3, report[0x18a].into()),
        "chip_id": bytes(0x1a0, 64),
        "committed_tcb": tcb(0x1e0),
        "current": firmware(0x1e8),
        "committed": firmware(0x1ec),
        "launch_tcb": tcb(0x1f0),
        "launch_mit_vector": since(5, u64(0x1f8).into()),
        "current_mit_vector": since(5, u64(0x200).into()),
        "signature": { "r": bytes(0x2a0, 72), "s": bytes(0x2e8, 72) },
    })
}
