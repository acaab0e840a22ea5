//! What is allowed in a bundle and probably not meant.

use crate::bundle::Bundle;
use crate::diagnostic::Diagnostic;

/// Finds what is probably not meant, in the order of the file.
pub(crate) fn lint(bundle: &Bundle) -> Vec<Diagnostic> {
    let mut findings = bundle.validator_warnings().to_vec();
    let _ = bundle.rules();
    findings.sort_by_key(|finding| finding.span.start);
    findings
}
