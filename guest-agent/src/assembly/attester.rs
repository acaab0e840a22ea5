//! Who gives evidence on this machine.

use attestation::{AttestError, Attester, Evidence, SimulatedTee, Tee, UnixTime};
use policy::TeeName;

use super::AssemblyError;

/// Chooses the TEE of this machine; without one the simulated TEE, if both the user and the policy
/// want it; and none at all only if the policy asks for no evidence.
pub(super) fn choose(
    accept: &[TeeName],
    accept_simulated: bool,
    now: UnixTime,
) -> Result<Box<dyn Attester>, AssemblyError> {
    let missing = match attestation::detect() {
        Ok(attester) => return Ok(attester),
        Err(error) => error,
    };
    without_hardware(missing, accept, accept_simulated, now)
}

fn without_hardware(
    missing: AttestError,
    accept: &[TeeName],
    accept_simulated: bool,
    now: UnixTime,
) -> Result<Box<dyn Attester>, AssemblyError> {
    if accept.is_empty() {
        return Ok(Box::new(NoTee(Some(missing))));
    }
    match (accept_simulated, accept.contains(&TeeName::Simulated)) {
        (true, true) => Ok(Box::new(
            SimulatedTee::new(now).map_err(AssemblyError::Simulated)?,
        )),
        (true, false) => Err(AssemblyError::SimulatedUnwelcome(missing)),
        (false, _) => Err(AssemblyError::NoEvidence(missing)),
    }
}

/// A machine without a TEE, under a policy that asks for no evidence.
struct NoTee(Option<AttestError>);

impl Attester for NoTee {
    fn tee(&self) -> Tee {
        Tee::SevSnp
    }

    fn attest(&mut self, _: &[u8; 64]) -> Result<Evidence, AttestError> {
        Err(self
            .0
            .take()
            .map_or_else(|| attestation::detect().err(), Some)
            .unwrap_or(AttestError::NoTee))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_767_225_600);

    fn chosen(accept: &[TeeName], simulated: bool) -> Result<Box<dyn Attester>, AssemblyError> {
        without_hardware(AttestError::NoTee, accept, simulated, NOW)
    }

    #[test]
    fn simulated_evidence_takes_both_the_user_and_the_policy() {
        let both = [TeeName::SevSnp, TeeName::Simulated];
        assert!(chosen(&both, true).unwrap().attest(&[0; 64]).is_ok());
        assert!(matches!(
            chosen(&both, false).err().unwrap(),
            AssemblyError::NoEvidence(_)
        ));
        let hardware = [TeeName::SevSnp];
        assert!(matches!(
            chosen(&hardware, true).err().unwrap(),
            AssemblyError::SimulatedUnwelcome(_)
        ));
    }

    #[test]
    fn without_a_tee_there_is_no_evidence_even_if_none_is_asked_for() {
        for simulated in [false, true] {
            let mut none = chosen(&[], simulated).unwrap();
            assert!(none.attest(&[0; 64]).is_err());
            assert!(none.attest(&[0; 64]).is_err(), "nor the second time");
        }
    }
}
