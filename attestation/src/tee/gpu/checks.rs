//! One check per claim of GPUs that are already believed.

use crate::reference::GpuReferenceValues;
use crate::tee::checklist::{List, REFERENCE};

use super::verifier::Verified;

const SPDM: &str = "SPDM Specification, MEASUREMENTS";
const NVIDIA: &str = "NVIDIA device certificates";

/// Adds the checks of all GPUs.
pub(crate) fn check(list: &mut List, gpus: &[Verified], reference: &GpuReferenceValues) {
    for gpu in gpus {
        let claims = &gpu.claims;
        let device = format!("{} {}", claims.model, claims.device);
        list.passed("gpu.signature", format!("by {device}"), SPDM);
        list.passed("gpu.nonce", "derived from the challenge", SPDM);
        list.passed(
            "gpu.commitment",
            "the processor's evidence commits to the report",
            "challenge",
        );
        list.passed("gpu.firmware-id", "as in the certificate", NVIDIA);
        if gpu.revocation_checked {
            list.passed("gpu.revocation", "not revoked by current CRLs", NVIDIA);
        } else {
            list.unknown(
                "gpu.revocation",
                "no current CRL of its issuers",
                "current CRLs",
                NVIDIA,
            );
        }
        version(
            list,
            "gpu.driver-version",
            claims.driver_version.as_deref(),
            reference.driver_versions.as_deref(),
        );
        version(
            list,
            "gpu.vbios-version",
            claims.vbios_version.as_deref(),
            reference.vbios_versions.as_deref(),
        );
        measurements(list, gpu, reference);
    }
}

fn version(list: &mut List, id: &'static str, seen: Option<&str>, allowed: Option<&[String]>) {
    let observed = seen.unwrap_or("not stated").to_owned();
    let Some(allowed) = allowed else {
        return list.skipped(id, observed, REFERENCE);
    };
    let met = seen.is_some_and(|seen| allowed.iter().any(|it| it == seen));
    let required = format!("one of {}", allowed.join(", "));
    list.contraindicated(id, met, observed, &required, REFERENCE);
}

fn measurements(list: &mut List, gpu: &Verified, reference: &GpuReferenceValues) {
    const ID: &str = "gpu.measurements";
    if reference.measurements.is_empty() {
        return list.unknown(
            ID,
            format!(
                "{} measurements, not compared",
                gpu.claims.measurements.len()
            ),
            "measurements of NVIDIA's RIM among the reference values",
            REFERENCE,
        );
    }
    let wrong: Vec<String> = reference
        .measurements
        .iter()
        .filter(|(index, allowed)| {
            let seen = gpu.claims.measurements.get(index);
            seen.is_none_or(|seen| !allowed.contains(seen))
        })
        .map(|(index, _)| index.to_string())
        .collect();
    let observed = if wrong.is_empty() {
        "equal".to_owned()
    } else {
        format!("measurements {} differ", wrong.join(", "))
    };
    let required = format!(
        "{} as in the reference values",
        reference.measurements.len()
    );
    list.contraindicated(ID, wrong.is_empty(), observed, &required, REFERENCE);
}
