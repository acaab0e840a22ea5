//! Which machine gave evidence, as far as finding its endorsements goes.

use crate::encoding::Hex;
use crate::endorsement::EndorsementName;
use crate::evidence::{Evidence, Tee};
use crate::tee::snp::{Product, Report, SigningKey, TcbVersion};
use crate::tee::tdx;

/// The machine that evidence says it comes from: not authenticated, for finding endorsements only.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Platform {
    /// A processor of AMD.
    Amd {
        /// Its generation.
        product: Product,
        /// What AMD knows it by: 64 bytes, 8 for Turin; none if a provider's key (VLEK) signs.
        hwid: Option<Vec<u8>>,
        /// The firmware that the signing key belongs to.
        tcb: TcbVersion,
    },
    /// A processor of Intel.
    Intel {
        /// Family, model, stepping, platform type, custom SKU.
        fmspc: Hex<6>,
        /// Whether its key is certified by the Platform CA; else by the Processor CA.
        by_platform_ca: bool,
    },
}

impl Platform {
    /// The machine that evidence says it comes from, if it says so: reports of SEV-SNP before version
    /// 3 do not tell the generation.
    #[must_use]
    pub fn of(evidence: &Evidence) -> Option<Self> {
        match evidence.tee() {
            Tee::Tdx => {
                let (fmspc, by_platform_ca) = tdx::platform(evidence.report())?;
                Some(Self::Intel {
                    fmspc,
                    by_platform_ca,
                })
            }
            Tee::SevSnp | Tee::Simulated => {
                let report = Report::parse(evidence.report()).ok()?;
                Self::of_report(&report, report.product()?)
            }
        }
    }

    /// What vouches for evidence of this machine.
    #[must_use]
    pub fn endorsements(&self) -> Vec<EndorsementName> {
        match self {
            Self::Amd { product, hwid, tcb } => {
                let (product, of_vleks) = (*product, hwid.is_none());
                let vek = hwid.clone().map(|hwid| EndorsementName::Vek {
                    product,
                    hwid,
                    tcb: *tcb,
                });
                let others = [
                    EndorsementName::Intermediate { product, of_vleks },
                    EndorsementName::AmdRoot(product),
                    EndorsementName::AmdCrl(product),
                ];
                vek.into_iter().chain(others).collect()
            }
            Self::Intel {
                fmspc,
                by_platform_ca,
            } => vec![
                EndorsementName::TcbInfo(*fmspc),
                EndorsementName::TcbSigning,
                EndorsementName::QeIdentity,
                EndorsementName::PckCrl {
                    of_platform_ca: *by_platform_ca,
                },
                EndorsementName::IntelRootCrl,
            ],
        }
    }

    /// The machine of an SEV-SNP report, if its generation is this one.
    #[must_use]
    pub fn of_report(report: &Report, product: Product) -> Option<Self> {
        let hwid = match (report.signing_key(), product) {
            (SigningKey::Vlek, _) => None,
            (SigningKey::Vcek, Product::Turin) => Some(report.chip_id().get(..8)?.to_vec()),
            (SigningKey::Vcek, _) => Some(report.chip_id().to_vec()),
            _ => return None,
        };
        Some(Self::Amd {
            product,
            hwid,
            tcb: TcbVersion::from_bytes(report.reported_tcb(), product),
        })
    }
}
