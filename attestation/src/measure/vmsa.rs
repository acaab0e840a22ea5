//! The state that a vCPU starts in.
//!
//! Follows "AMD64 Architecture Programmer's Manual, Volume 2", state save area of SEV-ES, for the
//! layout; what is in it is the virtual machine monitor's choice.

use super::page::{PAGE, contents};

/// Where the first vCPU starts.
const RESET_VECTOR: u32 = 0xffff_fff0;

/// The virtual machine monitor that launches the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Vmm {
    /// QEMU.
    Qemu,
    /// Amazon EC2.
    Ec2,
}

impl Vmm {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Qemu, Self::Ec2];

    /// The name on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Ec2 => "ec2",
        }
    }
}

/// The processor that vCPUs are made to look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vcpu {
    family: u32,
    model: u32,
    stepping: u32,
}

impl Vcpu {
    /// QEMU's models, by the names it gives them; versions (`-v1`, …) have the same signature.
    pub const MODELS: [(&'static str, Self); 5] = [
        ("epyc", Self::new(23, 1, 2)),
        ("epyc-rome", Self::new(23, 49, 0)),
        ("epyc-milan", Self::new(25, 1, 1)),
        ("epyc-genoa", Self::new(25, 17, 0)),
        ("epyc-turin", Self::new(26, 0, 0)),
    ];

    /// A processor of this family, model and stepping.
    #[must_use]
    pub const fn new(family: u32, model: u32, stepping: u32) -> Self {
        Self {
            family,
            model,
            stepping,
        }
    }

    /// One of [`Vcpu::MODELS`], by name in any case, with or without a version.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let name = match name.rsplit_once("-v") {
            Some((model, version)) if version.parse::<u8>().is_ok() => model,
            _ => name.as_str(),
        };
        let mut models = Self::MODELS.into_iter();
        models.find(|(other, _)| *other == name).map(|(_, it)| it)
    }

    /// EAX of CPUID leaf 1.
    #[must_use]
    pub fn signature(self) -> u32 {
        let (base, extended) = match self.family.checked_sub(15) {
            Some(extended) => (15, extended & 0xff),
            None => (self.family, 0),
        };
        let model = self.model & 0xff;
        extended << 20 | (model >> 4) << 16 | base << 8 | (model & 15) << 4 | self.stepping & 15
    }
}

/// What decides about the initial state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) vmm: Vmm,
    pub(super) vcpu: Vcpu,
    /// SEV_FEATURES.
    pub(super) features: u64,
}

impl Start {
    /// The digest of the first vCPU's state.
    pub(super) fn first(&self) -> [u8; 48] {
        contents(&self.save_area(RESET_VECTOR))
    }

    /// The digest of the state of a further vCPU, which starts at `reset`.
    pub(super) fn further(&self, reset: u32) -> [u8; 48] {
        contents(&self.save_area(reset))
    }

    fn save_area(&self, start: u32) -> [u8; PAGE] {
        let (code, stack, task, rdx, mxcsr, fcw) = match self.vmm {
            Vmm::Qemu => {
                let signature = u64::from(self.vcpu.signature());
                (0x9b, 0x93, 0x8b, signature, 0x1f80, 0x37f)
            }
            Vmm::Ec2 if start == RESET_VECTOR => (0x9a, 0x92, 0x83, 0x600, 0, 0),
            Vmm::Ec2 => (0x9b, 0x92, 0x83, 0x600, 0, 0),
        };
        let mut page = [0; PAGE];
        let mut put = |offset: usize, bytes: &[u8]| {
            if let Some(place) = page
                .get_mut(offset..)
                .and_then(|it| it.get_mut(..bytes.len()))
            {
                place.copy_from_slice(bytes);
            }
        };
        // ES, CS, SS, DS, FS, GS, GDTR, LDTR, IDTR, TR: selector, attributes, limit, base.
        let attributes: [u16; 10] = [0x93, code, stack, 0x93, 0x93, 0x93, 0, 0x82, 0, task];
        for (index, attributes) in attributes.into_iter().enumerate() {
            let (selector, base) = match index {
                1 => (0xf000_u16, u64::from(start & 0xffff_0000)),
                _ => (0, 0),
            };
            let at = index.saturating_mul(16);
            put(at, &selector.to_le_bytes());
            put(at.saturating_add(2), &attributes.to_le_bytes());
            put(at.saturating_add(4), &0xffff_u32.to_le_bytes());
            put(at.saturating_add(8), &base.to_le_bytes());
        }
        for (offset, value) in [
            (0x0d0, 0x1000),                    // EFER: SVME, as KVM sets it
            (0x148, 0x40),                      // CR4: MCE, as KVM sets it
            (0x158, 0x10),                      // CR0: ET
            (0x160, 0x400),                     // DR7
            (0x168, 0xffff_0ff0),               // DR6
            (0x170, 0x2),                       // RFLAGS
            (0x178, u64::from(start & 0xffff)), // RIP
            (0x268, 0x0007_0406_0007_0406),     // G_PAT
            (0x310, rdx),                       // RDX
            (0x3b0, self.features),             // SEV_FEATURES
            (0x3e8, 0x1),                       // XCR0
        ] {
            put(offset, &value.to_le_bytes());
        }
        put(0x408, &u32::to_le_bytes(mxcsr));
        put(0x410, &u16::to_le_bytes(fcw));
        page
    }
}
