//! What comes with a processor's evidence, appraised together with it.
//!
//! ```text
//! asked for ▶ committed to (GPUs) ▶ bound to (runtime data of a virtual TPM)
//!   ▶ the processor's evidence ▶ TPM quote ▶ GPUs ▶ event logs ▶ one appraisal
//! ```
//!
//! The processor comes first: what it does not vouch for is not looked at.

use ring::digest::{Context, SHA256};

use crate::appraisal::{Appraisal, Claims};
use crate::encoding::Hex;
use crate::evidence::Evidence;
use crate::tee::checklist::List;
use crate::tee::gpu::{self, GpuError, committed_report_data};
use crate::tee::tdx;
use crate::tee::vtpm::{self, VtpmError};
use crate::time::UnixTime;
use crate::verifier::{AppraiseError, Verifier};

/// Appraises evidence that has to answer `asked`: 64 bytes, unless a TPM quotes them.
pub(crate) fn appraise(
    verifier: &Verifier,
    evidence: &Evidence,
    asked: &[u8],
    now: UnixTime,
) -> Result<Appraisal, AppraiseError> {
    let committed = committed(evidence, asked)?;
    let runtime_data = evidence.vtpm().and_then(|vtpm| vtpm.runtime_data());
    let report_data = match runtime_data {
        Some(json) => vtpm::runtime_data_binding(json),
        None => committed
            .as_slice()
            .try_into()
            .map_err(|_| AppraiseError::Binding)?,
    };
    let mut appraisal =
        verifier
            .processor(evidence, &report_data, now)
            .map_err(|error| match error {
                AppraiseError::Binding if runtime_data.is_some() => {
                    VtpmError::RuntimeDataBinding.into()
                }
                AppraiseError::Binding if evidence.gpus().len() > 0 => GpuError::Uncommitted.into(),
                error => error,
            })?;
    let mut list = List::default();
    let crls: Vec<&[u8]> = verifier
        .crls()
        .iter()
        .map(Vec::as_slice)
        .chain(evidence.crls())
        .collect();
    tpm(
        &mut appraisal,
        &mut list,
        verifier,
        evidence,
        &committed,
        &crls,
    )?;
    gpus(&mut appraisal, &mut list, verifier, evidence, asked, &crls)?;
    event_log(&appraisal, &mut list, verifier, evidence)?;
    appraisal.tier = appraisal.tier.or_worse(list.tier());
    appraisal.checks.extend(list.0);
    Ok(appraisal)
}

/// What the processor or its TPM must be bound to, given what was asked for.
fn committed(evidence: &Evidence, asked: &[u8]) -> Result<Vec<u8>, AppraiseError> {
    match <&[u8; 64]>::try_from(asked) {
        Ok(report_data) => Ok(committed_report_data(report_data, evidence.gpus()).to_vec()),
        Err(_) if evidence.gpus().len() == 0 => Ok(asked.to_vec()),
        Err(_) => Err(GpuError::Uncommitted.into()),
    }
}

fn tpm(
    appraisal: &mut Appraisal,
    list: &mut List,
    verifier: &Verifier,
    evidence: &Evidence,
    extra_data: &[u8],
    crls: &[&[u8]],
) -> Result<(), AppraiseError> {
    let Some(evidence) = evidence.vtpm() else {
        return Ok(());
    };
    let verified = vtpm::verify(&vtpm::Inputs {
        evidence,
        extra_data,
        crls,
        now: appraisal.appraised_at,
    })?;
    vtpm::check(list, &verified, evidence, &verifier.reference().vtpm)?;
    appraisal.not_after = appraisal.not_after.min(verified.not_after);
    // The processor's report may be as old as the machine: only both together are new.
    let mut digest = Context::new(&SHA256);
    digest.update(&appraisal.evidence_digest.0);
    digest.update(&verified.quote_digest);
    let mut both = [0; 32];
    both.copy_from_slice(digest.finish().as_ref());
    appraisal.evidence_digest = Hex(both);
    appraisal.vtpm = Some(verified.claims);
    Ok(())
}

fn gpus(
    appraisal: &mut Appraisal,
    list: &mut List,
    verifier: &Verifier,
    evidence: &Evidence,
    asked: &[u8],
    crls: &[&[u8]],
) -> Result<(), AppraiseError> {
    if evidence.gpus().len() == 0 {
        return Ok(());
    }
    let report_data = asked.try_into().map_err(|_| GpuError::Uncommitted)?;
    let inputs = gpu::Inputs {
        report_data,
        roots: verifier.gpu_roots(),
        crls,
        now: appraisal.appraised_at,
    };
    let verified = gpu::verify(&inputs, evidence.gpus())?;
    gpu::check(list, &verified, &verifier.reference().gpu);
    for gpu in verified {
        appraisal.not_after = appraisal.not_after.min(gpu.not_after);
        appraisal.gpus.push(gpu.claims);
    }
    Ok(())
}

fn event_log(
    appraisal: &Appraisal,
    list: &mut List,
    verifier: &Verifier,
    evidence: &Evidence,
) -> Result<(), AppraiseError> {
    let has_log = evidence.event_log().is_some() || evidence.application_log().next().is_some();
    match &appraisal.claims {
        Claims::Tdx(claims) => {
            tdx::check_events(list, claims, evidence, &verifier.reference().tdx)?;
            Ok(())
        }
        Claims::SevSnp(_) if has_log => Err(AppraiseError::EventLogMisplaced),
        Claims::SevSnp(_) => Ok(()),
    }
}
