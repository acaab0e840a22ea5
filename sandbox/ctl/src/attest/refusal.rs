//! Why evidence is not believed, and what can be done about it.

use attestation::AppraiseError;

use crate::failure::Failure;

/// The refusal in words, with its code and the next step where there is one.
pub(super) fn explained(error: &AppraiseError) -> Failure {
    let failure = Failure::caused(format!("not to be believed ({})", error.code()), error);
    match next_step(error.code()) {
        Some(step) => failure.hint(step),
        None => failure,
    }
}

fn next_step(code: &str) -> Option<&'static str> {
    Some(match code {
        "vek-missing"
        | "intermediate-missing"
        | "root-missing"
        | "collateral-missing"
        | "tcb-signing-missing" => {
            "`sandboxctl attest bundle REPORT --fetch --cache DIR` asks the vendor's service for it; \
             `--endorsements DIR` takes it from there"
        }
        "crl-expired" | "collateral-expired" | "collateral-evaluation" => {
            "`sandboxctl attest bundle REPORT --fetch --cache DIR` fetches the current one; `--at \
             SECONDS` appraises as of an earlier time"
        }
        "certificate-expired" => {
            "`--at SECONDS` appraises as of an earlier time; for today, ask the guest anew"
        }
        "unknown-root" => {
            "only AMD's and Intel's roots are believed; for evidence of `attest collect --simulated` \
             there is `--dangerously-accept-simulated`"
        }
        "binding" | "vtpm-nonce" => {
            "the guest answered something else: ask it again with this challenge, or give the one that \
             it was asked with"
        }
        "vtpm-runtime-data-binding" => "the runtime data and the report are of two machines",
        "gpu-uncommitted" => {
            "the processor has to be asked with the report data that commit to the GPUs: \
             `attestation::gpu::committed_report_data`"
        }
        _ => return None,
    })
}
