//! A forger with a root of its own: evidence that is right in every byte, until a test edits it.
//!
//! The simulated platform makes it; here are only a root that is nobody's, times that end within the
//! minute, and a verifier that trusts that root.

use std::ops::{Deref, DerefMut};

use ring::digest::{SHA256, digest};
use serde_json::json;

use super::{DATA, NOW};
use crate::appraisal::Appraisal;
use crate::encoding::Hex;
use crate::endorsement::Certificate;
use crate::evidence::{Endorsements, Evidence};
use crate::reference::TdxReferenceValues;
pub(super) use crate::tee::simulated::tdx::platform::{Key, at};
use crate::tee::simulated::tdx::platform::{PLATFORM_CA, Platform, ROOT};
use crate::tee::tdx::Anchor;
use crate::tee::tdx::verifier::{Inputs, appraise};
use crate::time::UnixTime;
use crate::verifier::AppraiseError;

impl Key {
    pub(super) fn new() -> Self {
        Self::generate().unwrap()
    }
}

pub(super) struct Forge {
    platform: Platform,
    /// Collateral of the verifier.
    pub(super) stored: Vec<Endorsements>,
    pub(super) reference: TdxReferenceValues,
    pub(super) now: UnixTime,
}

impl Deref for Forge {
    type Target = Platform;

    fn deref(&self) -> &Platform {
        &self.platform
    }
}

impl DerefMut for Forge {
    fn deref_mut(&mut self) -> &mut Platform {
        &mut self.platform
    }
}

impl Forge {
    /// An affirmed TD of TDX 1.5 on an up-to-date platform.
    pub(super) fn new() -> Self {
        let mut forge = Self {
            platform: Platform::new(Key::new(), NOW).unwrap(),
            stored: Vec::new(),
            reference: TdxReferenceValues {
                measurements: Some(vec![Hex([0x11; 48])]),
                rtmr1: Some(vec![Hex([0x21; 48])]),
                rtmr2: Some(vec![Hex([0x22; 48])]),
                ..TdxReferenceValues::default()
            },
            now: NOW,
        };
        forge.put(at::REPORT_DATA, &DATA);
        let dates = [date(NOW.minus_seconds(60)), date(NOW.plus_seconds(60))].map(|it| json!(it));
        let Platform {
            tcb_info,
            qe_identity,
            ..
        } = &mut forge.platform;
        for document in [tcb_info, qe_identity] {
            [document["issueDate"], document["nextUpdate"]] = dates.clone();
        }
        let end = Some(NOW.plus_seconds(30));
        forge.crls = vec![forge.root_crl(NOW, end, &[]), forge.pck_crl(NOW, end, &[])];
        forge
    }

    pub(super) fn root_crl(
        &self,
        this_update: UnixTime,
        next_update: Option<UnixTime>,
        revoked: &[u32],
    ) -> Vec<u8> {
        let list = self.root.crl(ROOT, this_update, next_update, revoked);
        list.unwrap()
    }

    pub(super) fn pck_crl(
        &self,
        this_update: UnixTime,
        next_update: Option<UnixTime>,
        revoked: &[u32],
    ) -> Vec<u8> {
        let list = self
            .authority
            .crl(PLATFORM_CA, this_update, next_update, revoked);
        list.unwrap()
    }

    /// A list that names the PCK CA, signed by the root.
    pub(super) fn forged_crl(&self) -> Vec<u8> {
        let end = Some(NOW.plus_seconds(30));
        self.root.crl(PLATFORM_CA, NOW, end, &[]).unwrap()
    }

    /// A list of the other PCK CA.
    pub(super) fn foreign_crl(&self) -> Vec<u8> {
        let end = Some(NOW.plus_seconds(30));
        let list = self
            .authority
            .crl("Intel SGX PCK Processor CA", NOW, end, &[]);
        list.unwrap()
    }

    pub(super) fn quote(&self) -> Vec<u8> {
        self.platform.quote().unwrap()
    }

    pub(super) fn evidence(&self) -> Evidence {
        self.platform.evidence().unwrap()
    }

    pub(super) fn collateral(&self) -> Endorsements {
        self.platform.collateral().unwrap()
    }

    /// The forger's root.
    fn anchor(&self) -> Anchor {
        let der = self.root.signed(&self.certificates[0].tbs()).unwrap();
        let root = Certificate::parse(&der).unwrap();
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, root.spki).as_ref());
        Anchor {
            spki: Hex(hash),
            simulated: false,
        }
    }

    pub(super) fn appraise(&self) -> Result<Appraisal, AppraiseError> {
        self.appraise_as(&self.evidence())
    }

    pub(super) fn appraise_as(&self, evidence: &Evidence) -> Result<Appraisal, AppraiseError> {
        appraise(&Inputs {
            evidence,
            report_data: &DATA,
            anchors: &[self.anchor()],
            store: &[],
            collateral: &self.stored,
            crls: &[],
            known: None,
            reference: &self.reference,
            now: self.now,
        })
    }
}

/// A time as the service writes it.
pub(super) fn date(time: UnixTime) -> String {
    time.to_string()
}
