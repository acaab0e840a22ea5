//! What the verifier must refuse or must not affirm, each with its own code, on forged evidence.

#![allow(clippy::unwrap_used)]

mod chain;
mod claims;
mod forge;
mod quote;
mod tcb;

use crate::appraisal::{Appraisal, Outcome, TdxClaims, TrustTier};
use crate::reference::TdxReferenceValues;
use crate::time::UnixTime;
use forge::Forge;

const NOW: UnixTime = UnixTime(1_790_000_000);
const DATA: [u8; 64] = [7; 64];

fn code(forge: &Forge) -> &'static str {
    forge.appraise().unwrap_err().code()
}

/// The code of evidence that `edit` made wrong.
fn refused(edit: impl FnOnce(&mut Forge)) -> &'static str {
    let mut forge = Forge::new();
    edit(&mut forge);
    code(&forge)
}

/// The outcome of a check, and the tier, of evidence that `edit` changed.
fn judged(id: &str, edit: impl FnOnce(&mut Forge)) -> (Outcome, TrustTier) {
    let mut forge = Forge::new();
    edit(&mut forge);
    let appraisal = forge.appraise().unwrap();
    (appraisal.check(id).unwrap().outcome, appraisal.tier())
}

/// The same under reference values changed by `expect`.
fn weighed(
    id: &str,
    edit: impl FnOnce(&mut Forge),
    expect: impl FnOnce(&mut TdxReferenceValues),
) -> (Outcome, TrustTier) {
    judged(id, |forge| {
        edit(forge);
        expect(&mut forge.reference);
    })
}

fn claims(appraisal: &Appraisal) -> &TdxClaims {
    match appraisal.claims() {
        crate::Claims::Tdx(claims) => claims,
        other => panic!("{other:?}"),
    }
}

/// A quote of the right form.
pub(crate) fn quote_for_tests() -> Vec<u8> {
    Forge::new().quote()
}
