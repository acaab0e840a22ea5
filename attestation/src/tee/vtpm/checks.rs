//! One check per claim of a virtual TPM that is already believed.

use crate::appraisal::TrustTier;
use crate::eventlog::{BOOT_APPLICATION, EventLog};
use crate::reference::VtpmReferenceValues;
use crate::tee::checklist::{List, REFERENCE};

use super::evidence::VtpmEvidence;
use super::verifier::{Verified, VtpmError};

const TPM: &str = "Trusted Platform Module Library, Part 2";
const HCL: &str = "Azure confidential VMs guest attestation design";
const TCG: &str = "TCG PC Client Platform Firmware Profile";

/// Adds the checks; an event log that cannot be read is not to be believed.
pub(crate) fn check(
    list: &mut List,
    verified: &Verified,
    evidence: &VtpmEvidence,
    reference: &VtpmReferenceValues,
) -> Result<(), VtpmError> {
    let claims = &verified.claims;
    list.passed("vtpm.signature", format!("by key {}", claims.key), TPM);
    list.passed("vtpm.nonce", "the challenge is in extraData", TPM);
    list.passed(
        "vtpm.pcr-digest",
        format!("{} PCRs, SHA-256", claims.pcrs.len()),
        TPM,
    );
    if claims.key_bound_to_processor {
        list.passed("vtpm.key", "the processor vouches for it", HCL);
    } else {
        let seen = "only a certificate vouches for it, nothing ties it to this processor";
        list.judged(
            "vtpm.key",
            reference.accept_certified_key,
            seen.to_owned(),
            "a key that the processor vouches for",
            REFERENCE,
            TrustTier::Warning,
        );
    }
    match claims.key_root {
        Some(root) => {
            list.passed("vtpm.key-certificate", root, "trust anchors");
            if verified.revocation_checked {
                list.passed("vtpm.revocation", "not revoked by current CRLs", REFERENCE);
            } else {
                list.skipped(
                    "vtpm.revocation",
                    "no current CRL of its issuers",
                    REFERENCE,
                );
            }
        }
        None => list.skipped("vtpm.key-certificate", "none came along", REFERENCE),
    }
    secure_boot(list, claims.secure_boot, reference);
    pcrs(list, verified, reference);
    event_log(list, verified, evidence, reference)
}

fn secure_boot(list: &mut List, seen: Option<bool>, reference: &VtpmReferenceValues) {
    let observed = match seen {
        Some(true) => "on",
        Some(false) => "off",
        None => "not stated",
    };
    if !reference.require_secure_boot {
        return list.skipped("vtpm.secure-boot", observed, REFERENCE);
    }
    match seen {
        None => list.unknown("vtpm.secure-boot", observed, "on", REFERENCE),
        Some(on) => {
            list.contraindicated("vtpm.secure-boot", on, observed.to_owned(), "on", REFERENCE);
        }
    }
}

fn pcrs(list: &mut List, verified: &Verified, reference: &VtpmReferenceValues) {
    const ID: &str = "vtpm.pcrs";
    if reference.pcrs.is_empty() {
        return list.unknown(ID, "not compared", "reference values of PCRs", REFERENCE);
    }
    let quoted = &verified.claims.pcrs;
    let wrong: Vec<String> = reference
        .pcrs
        .iter()
        .filter(|(number, allowed)| {
            quoted
                .get(number)
                .is_none_or(|value| !allowed.contains(value))
        })
        .map(|(number, _)| match quoted.get(number) {
            Some(value) => format!("PCR {number} is {value}"),
            None => format!("PCR {number} was not quoted"),
        })
        .collect();
    let required = format!("{} PCRs as in the reference values", reference.pcrs.len());
    let observed = if wrong.is_empty() {
        "equal".to_owned()
    } else {
        wrong.join(", ")
    };
    list.contraindicated(ID, wrong.is_empty(), observed, &required, REFERENCE);
}

fn event_log(
    list: &mut List,
    verified: &Verified,
    evidence: &VtpmEvidence,
    reference: &VtpmReferenceValues,
) -> Result<(), VtpmError> {
    const ID: &str = "vtpm.event-log";
    const BOOT: &str = "vtpm.boot-applications";
    let Some(log) = evidence.event_log() else {
        list.skipped(ID, "none came along", TCG);
        match &reference.boot_applications {
            Some(_) => list.unknown(BOOT, "no event log", "an event log", REFERENCE),
            None => list.skipped(BOOT, "not compared", REFERENCE),
        }
        return Ok(());
    };
    let log = EventLog::parse_pcrs(log)?;
    let replayed = log.replay_pcrs();
    let differing: Vec<String> = verified
        .claims
        .pcrs
        .iter()
        .filter(|(number, value)| {
            let number = usize::from(**number);
            // The firmware extends the first eight in any case; the others may have no log.
            let is_logged = number < 8 || log.events().iter().any(|event| event.register == number);
            is_logged && replayed.values().get(number) != Some(value)
        })
        .map(|(number, _)| format!("PCR {number}"))
        .collect();
    let explains = differing.is_empty();
    let observed = if explains {
        format!("{} events replay to the quoted PCRs", log.events().len())
    } else {
        format!("does not replay to {}", differing.join(", "))
    };
    list.contraindicated(ID, explains, observed, "a log that replays", TCG);

    let Some(allowed) = &reference.boot_applications else {
        list.skipped(BOOT, "not compared", REFERENCE);
        return Ok(());
    };
    let mut unwelcome = log
        .events()
        .iter()
        .filter(|event| event.kind == BOOT_APPLICATION)
        .map(|event| event.digest)
        .filter(|digest| !allowed.contains(digest));
    let first = unwelcome.next();
    // PCR 4 is where the firmware measures them: without it the log may leave one out.
    let quoted = verified.claims.pcrs.contains_key(&4);
    let observed = match first {
        Some(digest) => format!("{digest} was started"),
        None if !explains => "the log does not replay".to_owned(),
        None if !quoted => "PCR 4 was not quoted".to_owned(),
        None => "all of them welcome".to_owned(),
    };
    let met = first.is_none() && explains && quoted;
    let required = format!("only {} programs", allowed.len());
    list.contraindicated(BOOT, met, observed, &required, REFERENCE);
    Ok(())
}
