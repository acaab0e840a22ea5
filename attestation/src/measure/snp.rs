//! The launch digest of an SEV-SNP guest, and what differs if it is another.

use crate::encoding::Hex;

use super::firmware::{Firmware, FirmwareError, Purpose};
use super::hashes::{KernelHashes, sha256};
use super::page::LaunchDigest;
use super::vmsa::{Start, Vcpu, Vmm};

/// The most vCPUs a guest may have here.
const MAX_VCPUS: u32 = 1024;
/// How many vCPUs are tried when a digest is to be explained.
const TRIED_VCPUS: u32 = 256;

/// What a guest is launched with.
#[derive(Clone, Copy, Debug)]
pub struct SnpLaunch<'a> {
    /// OVMF, the whole file.
    pub firmware: &'a [u8],
    /// What the host loads beside it, if it does.
    pub kernel: Option<KernelHashes>,
    /// How many vCPUs the guest has.
    pub vcpus: u32,
    /// What they look like.
    pub vcpu: Vcpu,
    /// Who launches it.
    pub vmm: Vmm,
    /// SEV_FEATURES: 0x1 for SEV-SNP alone; KVM of Linux 6.9 and later adds 0x20 (debug swap).
    pub features: u64,
}

/// Why a launch digest cannot be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The firmware cannot be used.
    #[error("the firmware cannot be measured")]
    Firmware(#[from] FirmwareError),
    /// A guest has at least one vCPU, and here at most 1024.
    #[error("a guest has 1 to 1024 vCPUs, not {0}")]
    Vcpus(u32),
}

impl SnpLaunch<'_> {
    /// Computes the launch digest: MEASUREMENT of the guest's report.
    ///
    /// # Errors
    ///
    /// [`MeasureError`].
    pub fn measure(&self) -> Result<Hex<48>, MeasureError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(MeasureError::Vcpus(self.vcpus));
        }
        let firmware = Firmware::parse(self.firmware)?;
        let launch = self.memory(&firmware, loaded(&firmware))?;
        let further = match self.vcpus {
            1 => None,
            _ => Some(firmware.reset()?),
        };
        let mut digests = self.with_vcpus(launch, further);
        let index = usize::try_from(self.vcpus.saturating_sub(1)).unwrap_or(usize::MAX);
        digests.nth(index).ok_or(MeasureError::Vcpus(self.vcpus))
    }

    /// Tries what else may give `found`, and says what differs from this launch: one component, and
    /// perhaps the number of vCPUs. Nothing is said if there is no such component.
    ///
    /// # Errors
    ///
    /// [`MeasureError`].
    pub fn explain(&self, found: &Hex<48>) -> Result<Option<String>, MeasureError> {
        let firmware = Firmware::parse(self.firmware)?;
        let loaded = loaded(&firmware);
        let reset = firmware.reset().ok();
        for (what, launch) in self.variants() {
            // What this firmware cannot do is no explanation.
            let Ok(memory) = launch.memory(&firmware, loaded) else {
                continue;
            };
            let most = if reset.is_some() { TRIED_VCPUS } else { 1 };
            let mut counted = (1..=most).zip(launch.with_vcpus(memory, reset));
            let Some((vcpus, _)) = counted.find(|(_, digest)| digest == found) else {
                continue;
            };
            let count =
                (vcpus != self.vcpus).then(|| format!("{vcpus} vCPUs instead of {}", self.vcpus));
            let differences: Vec<String> = what.into_iter().chain(count).collect();
            return Ok(Some(match differences.as_slice() {
                [] => "nothing differs".to_owned(),
                differences => differences.join(", "),
            }));
        }
        Ok(None)
    }

    /// This launch, and those that differ from it in one component.
    fn variants(&self) -> Vec<(Option<String>, Self)> {
        let mut variants = vec![(None, *self)];
        let mut add = |what: String, launch| variants.push((Some(what), launch));
        for vmm in Vmm::ALL.into_iter().filter(|vmm| *vmm != self.vmm) {
            add(format!("launched by {}", vmm.name()), Self { vmm, ..*self });
        }
        for (name, vcpu) in Vcpu::MODELS {
            if vcpu != self.vcpu {
                add(format!("vCPUs are {name}"), Self { vcpu, ..*self });
            }
        }
        for features in (0..16).map(|bit| self.features ^ (1 << bit)) {
            let what = format!("SEV_FEATURES are {features:#x}");
            add(what, Self { features, ..*self });
        }
        if let Some(hashes) = self.kernel {
            let empty = KernelHashes::of(&[], None, None);
            let without = [
                (
                    "the kernel is empty",
                    KernelHashes {
                        kernel: empty.kernel,
                        ..hashes
                    },
                ),
                (
                    "there is no initial RAM disk",
                    KernelHashes {
                        initrd: empty.initrd,
                        ..hashes
                    },
                ),
                (
                    "there is no command line",
                    KernelHashes {
                        command_line: empty.command_line,
                        ..hashes
                    },
                ),
                // A command line that was hashed without its NUL at the end.
                (
                    "the command line was digested without its NUL",
                    KernelHashes {
                        command_line: sha256(&[]),
                        ..hashes
                    },
                ),
            ];
            for (what, hashes) in without {
                add(
                    what.to_owned(),
                    Self {
                        kernel: Some(hashes),
                        ..*self
                    },
                );
            }
            add(
                "no kernel was measured".to_owned(),
                Self {
                    kernel: None,
                    ..*self
                },
            );
        } else {
            let kernel = Some(KernelHashes::of(&[], None, None));
            add(
                "an empty kernel was measured".to_owned(),
                Self { kernel, ..*self },
            );
        }
        variants
    }

    /// Adds the sections of memory to the firmware.
    fn memory(
        &self,
        firmware: &Firmware<'_>,
        mut launch: LaunchDigest,
    ) -> Result<LaunchDigest, FirmwareError> {
        let mut has_hashes = false;
        for section in &firmware.sections {
            match section.purpose {
                Purpose::Zeroes => launch.zeroes(section.address, section.length),
                Purpose::Secrets => launch.secrets(section.address),
                // EC2 puts it last.
                Purpose::Cpuid if self.vmm == Vmm::Ec2 => {}
                Purpose::Cpuid => launch.cpuid(section.address),
                Purpose::KernelHashes => {
                    has_hashes = true;
                    match &self.kernel {
                        None => launch.zeroes(section.address, section.length),
                        Some(hashes) => {
                            let table = firmware.hash_table;
                            let table = table.ok_or(FirmwareError::NoKernelHashes)?;
                            let offset = usize::try_from(table & 0xfff).unwrap_or_default();
                            let page = hashes.page(offset).ok_or(FirmwareError::Metadata)?;
                            launch.load(section.address, &page);
                        }
                    }
                }
            }
        }
        if self.kernel.is_some() && !has_hashes {
            return Err(FirmwareError::NoKernelHashes);
        }
        if self.vmm == Vmm::Ec2 {
            for section in &firmware.sections {
                if section.purpose == Purpose::Cpuid {
                    launch.cpuid(section.address);
                }
            }
        }
        Ok(launch)
    }

    /// The digests with one, two, … vCPUs.
    fn with_vcpus(
        &self,
        mut launch: LaunchDigest,
        reset: Option<u32>,
    ) -> impl Iterator<Item = Hex<48>> + use<> {
        let start = Start {
            vmm: self.vmm,
            vcpu: self.vcpu,
            features: self.features,
        };
        launch.vmsa(&start.first());
        let further = reset.map(|reset| start.further(reset));
        std::iter::successors(Some(launch), move |launch| {
            let mut next = *launch;
            next.vmsa(further.as_ref()?);
            Some(next)
        })
        .map(|launch| launch.0)
    }
}

/// The digest of the firmware alone.
fn loaded(firmware: &Firmware<'_>) -> LaunchDigest {
    let mut launch = LaunchDigest::new();
    launch.load(firmware.address(), firmware.bytes);
    launch
}
