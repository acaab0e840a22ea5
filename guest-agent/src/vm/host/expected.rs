//! What a machine's launch will be measured as, known before it is launched.

use attestation::Hex;
use attestation::measure::{KernelHashes, MeasureError, SnpLaunch, Vcpu, Vmm};
use casemate::isolation::microvm::Machine;
use casemate::isolation::microvm::machine::{Confidential, Snp, Tdx};
use policy::Bundle;

/// SEV_FEATURES of a guest that QEMU launches: SEV-SNP, and nothing else.
const FEATURES: u64 = 1;

/// A kind of hardware that hides a machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// AMD SEV-SNP.
    SevSnp,
    /// Intel TDX.
    Tdx,
}

impl Kind {
    /// A guest of this kind for a policy, whose digest is in its evidence from the launch on.
    pub(super) fn guest_of(self, bundle: &Bundle) -> Confidential {
        let policy_digest = bundle.digest();
        match self {
            Self::SevSnp => Confidential::Snp(Snp::for_policy(policy_digest)),
            Self::Tdx => Confidential::Tdx(Tdx {
                policy_digest,
                quotes: None,
            }),
        }
    }
}

/// The launch digest of this machine as an SEV-SNP guest, booted from these bytes: what a broker is told to
/// expect.
///
/// # Errors
///
/// [`MeasureError`] for a firmware that cannot be measured.
pub fn measurement(
    machine: &Machine,
    firmware: &[u8],
    kernel: &[u8],
    image: &[u8],
) -> Result<Hex<48>, MeasureError> {
    let vcpu = Vcpu::named(Snp::PROCESSOR);
    let launch = SnpLaunch {
        firmware,
        kernel: Some(KernelHashes::of(
            kernel,
            Some(image),
            Some(&machine.command_line),
        )),
        vcpus: machine.vcpus,
        // A test has it that there is one of this name.
        vcpu: vcpu.unwrap_or(Vcpu::new(0, 0, 0)),
        vmm: Vmm::Qemu,
        features: FEATURES,
    };
    launch.measure()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_that_is_launched_is_one_that_can_be_measured() {
        assert!(Vcpu::named(Snp::PROCESSOR).is_some());
    }
}
