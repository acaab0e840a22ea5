//! What each vendor's service is asked for, and how it answers.

use attestation::snp::{Product, TcbVersion};
use attestation::{EndorsementName, Hex, Platform, certificates_from_pem};

use crate::client::Response;

/// Where the services are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Services {
    /// AMD's key distribution service.
    pub amd: String,
    /// Intel's provisioning certification service.
    pub intel: String,
    /// Where Intel's root publishes its revocation list.
    pub intel_root: String,
}

impl Default for Services {
    /// The vendors' own.
    fn default() -> Self {
        Self {
            amd: "https://kdsintf.amd.com".into(),
            intel: "https://api.trustedservices.intel.com".into(),
            intel_root: "https://certificates.trustedservices.intel.com".into(),
        }
    }
}

/// How an answer holds what was asked for.
#[derive(Clone, Copy)]
enum Form {
    /// The body is it.
    Body,
    /// The body is PEM of two certificates: an intermediate and a root.
    Chain,
    /// The body is the first; a header has PEM, of which the first certificate is the second.
    WithIssuers(&'static str),
}

/// One request.
pub(crate) struct Item {
    pub(crate) url: String,
    /// What an answer gives, in order.
    pub(crate) gives: Vec<EndorsementName>,
    form: Form,
}

impl Services {
    /// What a platform's evidence takes.
    pub(crate) fn items(&self, platform: &Platform) -> Vec<Item> {
        match platform {
            Platform::Amd { product, hwid, tcb } => self.amd(*product, hwid.as_deref(), *tcb),
            Platform::Intel {
                fmspc,
                by_platform_ca,
            } => self.intel(*fmspc, *by_platform_ca),
            _ => Vec::new(),
        }
    }

    fn amd(&self, product: Product, hwid: Option<&[u8]>, tcb: TcbVersion) -> Vec<Item> {
        let of_vleks = hwid.is_none();
        let kind = if of_vleks { "vlek" } else { "vcek" };
        let base = format!("{}/{kind}/v1/{product}", self.amd);
        let mut items = Vec::new();
        if let Some(hwid) = hwid {
            let chip: String = hwid.iter().map(|byte| format!("{byte:02x}")).collect();
            let TcbVersion {
                fmc,
                bootloader,
                tee,
                snp,
                microcode,
            } = tcb;
            let fmc = fmc.map_or_else(String::new, |fmc| format!("fmcSPL={fmc}&"));
            items.push(Item {
                url: format!(
                    "{base}/{chip}?{fmc}blSPL={bootloader}&teeSPL={tee}&snpSPL={snp}&ucodeSPL={microcode}"
                ),
                gives: vec![EndorsementName::Vek {
                    product,
                    hwid: hwid.to_vec(),
                    tcb,
                }],
                form: Form::Body,
            });
        }
        items.push(Item {
            url: format!("{base}/cert_chain"),
            gives: vec![
                EndorsementName::Intermediate { product, of_vleks },
                EndorsementName::AmdRoot(product),
            ],
            form: Form::Chain,
        });
        items.push(Item {
            url: format!("{base}/crl"),
            gives: vec![EndorsementName::AmdCrl(product)],
            form: Form::Body,
        });
        items
    }

    fn intel(&self, fmspc: Hex<6>, of_platform_ca: bool) -> Vec<Item> {
        let ca = if of_platform_ca {
            "platform"
        } else {
            "processor"
        };
        let item = |url, gives, form| Item { url, gives, form };
        vec![
            item(
                format!("{}/tdx/certification/v4/tcb?fmspc={fmspc}", self.intel),
                vec![EndorsementName::TcbInfo(fmspc), EndorsementName::TcbSigning],
                Form::WithIssuers("tcb-info-issuer-chain"),
            ),
            item(
                format!("{}/tdx/certification/v4/qe/identity", self.intel),
                vec![EndorsementName::QeIdentity],
                Form::Body,
            ),
            item(
                format!(
                    "{}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der",
                    self.intel
                ),
                vec![EndorsementName::PckCrl { of_platform_ca }],
                Form::Body,
            ),
            item(
                format!("{}/IntelSGXRootCA.der", self.intel_root),
                vec![EndorsementName::IntelRootCrl],
                Form::Body,
            ),
        ]
    }
}

impl Item {
    /// What an answer gives; `None` if it is not of the expected form.
    pub(crate) fn parts(&self, response: &Response) -> Option<Vec<Vec<u8>>> {
        let body = response.body.clone();
        match self.form {
            Form::Body => Some(vec![body]),
            Form::Chain => certificates_from_pem(&body).filter(|chain| chain.len() == 2),
            Form::WithIssuers(header) => {
                let chain = unescaped(response.header(header)?)?;
                let signing = certificates_from_pem(&chain)?.into_iter().next()?;
                Some(vec![body, signing])
            }
        }
    }
}

/// The bytes of a URL-encoded text.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        bytes.push(match byte {
            b'%' => {
                let (digits, after) = rest.split_first_chunk::<2>()?;
                rest = after;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            b'+' if text.contains('%') && !text.contains("%2B") => b' ',
            byte => *byte,
        });
    }
    Some(bytes)
}
