//! Processor generations and their TCB versions.
//!
//! Follows "SEV Secure Nested Paging Firmware ABI Specification", TCB_VERSION structure, and
//! "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification".

use std::fmt;

use serde::{Deserialize, Serialize};

/// A processor generation with its own root key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004, and the Zen 4c parts (Bergamo, Siena) that share its keys.
    Genoa,
    /// EPYC 9005.
    Turin,
    /// The generation after Turin. Its root is not published, so no evidence of it is believed yet.
    Venice,
}

impl Product {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// The name in AMD's certificates.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
            Self::Venice => "Venice",
        }
    }

    /// The name in reference values.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Milan => "milan",
            Self::Genoa => "genoa",
            Self::Turin => "turin",
            Self::Venice => "venice",
        }
    }

    /// The generation of a CPUID family and model, both with their extended parts added.
    #[must_use]
    pub fn from_cpuid(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Self::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Self::Genoa),
            (0x1a, 0x00..=0x11) => Some(Self::Turin),
            (0x1a, 0x50..=0x57 | 0x90..=0x9f | 0xa0..=0xaf | 0xc0..=0xc7) => Some(Self::Venice),
            _ => None,
        }
    }

    /// How many bytes identify a chip in its VCEK.
    pub(crate) fn hwid_length(self) -> usize {
        match self {
            Self::Milan | Self::Genoa => 64,
            Self::Turin | Self::Venice => 8,
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The security versions of a platform's firmware, by component.
///
/// Components are compared one by one: no high number of one makes up for a low one of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TcbVersion {
    /// Firmware Microcontroller; only Turin and later have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fmc: Option<u8>,
    /// Boot loader of the AMD Secure Processor.
    pub bootloader: u8,
    /// Operating system of the AMD Secure Processor.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Lowest microcode patch level of all cores.
    pub microcode: u8,
}

impl TcbVersion {
    /// Reads the eight bytes of a TCB_VERSION in the layout of `product`.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8], product: Product) -> Self {
        match (product, bytes) {
            (Product::Milan | Product::Genoa, [bootloader, tee, _, _, _, _, snp, microcode]) => {
                Self {
                    fmc: None,
                    bootloader,
                    tee,
                    snp,
                    microcode,
                }
            }
            (Product::Turin, [fmc, bootloader, tee, snp, _, _, _, microcode]) => Self {
                fmc: Some(fmc),
                bootloader,
                tee,
                snp,
                microcode,
            },
            // Boot loader and microcode are no part of it: the bytes of Turin's are reserved.
            (Product::Venice, [fmc, _, tee, snp, ..]) => Self {
                fmc: Some(fmc),
                bootloader: 0,
                tee,
                snp,
                microcode: 0,
            },
        }
    }

    /// Writes the eight bytes of a TCB_VERSION in the layout of `product`.
    #[must_use]
    pub fn to_bytes(self, product: Product) -> [u8; 8] {
        let Self {
            fmc,
            bootloader,
            tee,
            snp,
            microcode,
        } = self;
        match product {
            Product::Milan | Product::Genoa => [bootloader, tee, 0, 0, 0, 0, snp, microcode],
            Product::Turin => [fmc.unwrap_or(0), bootloader, tee, snp, 0, 0, 0, microcode],
            Product::Venice => [fmc.unwrap_or(0), 0, tee, snp, 0, 0, 0, 0],
        }
    }

    /// Whether every component is at least that of `floor`.
    #[must_use]
    pub fn reaches(&self, floor: &Self) -> bool {
        self.fmc.unwrap_or(0) >= floor.fmc.unwrap_or(0)
            && self.bootloader >= floor.bootloader
            && self.tee >= floor.tee
            && self.snp >= floor.snp
            && self.microcode >= floor.microcode
    }
}

impl fmt::Display for TcbVersion {
    /// Writes `bootloader 4, tee 0, snp 24, microcode 219`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "fmc {fmc}, ")?;
        }
        let Self {
            bootloader,
            tee,
            snp,
            microcode,
            ..
        } = self;
        write!(
            f,
            "bootloader {bootloader}, tee {tee}, snp {snp}, microcode {microcode}"
        )
    }
}

/// The bytes of a TCB_VERSION that no component uses in the layout of `product`; the others are 0.
pub(crate) fn reserved_tcb_bytes(bytes: [u8; 8], product: Product) -> [u8; 8] {
    let used = TcbVersion::from_bytes(bytes, product).to_bytes(product);
    std::array::from_fn(|at| bytes[at] ^ used[at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zen4c_uses_the_keys_of_genoa() {
        assert_eq!(Product::from_cpuid(0x19, 0xa0), Some(Product::Genoa));
        assert_eq!(Product::from_cpuid(0x19, 0x01), Some(Product::Milan));
        assert_eq!(Product::from_cpuid(0x1a, 0x02), Some(Product::Turin));
        assert_eq!(Product::from_cpuid(0x1a, 0x51), Some(Product::Venice));
        assert_eq!(Product::from_cpuid(0x1a, 0x12), None);
        assert_eq!(Product::from_cpuid(0, 0), None);
    }

    #[test]
    fn a_floor_is_reached_component_by_component() {
        let floor = TcbVersion {
            fmc: None,
            bootloader: 4,
            tee: 0,
            snp: 24,
            microcode: 219,
        };
        assert!(floor.reaches(&floor));
        // As one integer this is far larger than the floor.
        let uneven = TcbVersion {
            snp: 23,
            microcode: 255,
            ..floor
        };
        assert!(
            u64::from_le_bytes(uneven.to_bytes(Product::Milan))
                > u64::from_le_bytes(floor.to_bytes(Product::Milan))
        );
        assert!(!uneven.reaches(&floor));
    }

    proptest! {
        #[test]
        fn tcb_bytes_survive_in_both_layouts(bytes: [u8; 8]) {
            for product in [Product::Milan, Product::Genoa, Product::Turin, Product::Venice] {
                let tcb = TcbVersion::from_bytes(bytes, product);
                let kept = tcb.to_bytes(product);
                let reserved = reserved_tcb_bytes(bytes, product);
                let both: [u8; 8] = std::array::from_fn(|at| kept[at] ^ reserved[at]);
                prop_assert_eq!(both, bytes);
            }
        }
    }
}
