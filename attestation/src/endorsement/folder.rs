//! Endorsements kept on disk: what vendors' services gave, by what it is about.
//!
//! ```text
//! vek-milan-<hwid>-<tcb>.der   VCEK: for one chip and one TCB, valid for years
//! ask-milan.der asvk-milan.der ark-milan.der milan.crl
//! tcb-info-<fmspc>.json qe-identity.json tcb-signing.der
//! pck-platform.crl pck-processor.crl intel-root.crl
//! ```
//!
//! Files are replaced in one step, so that a reader never sees half of one. Nothing in the folder is
//! believed: it is read as evidence is, and appraised the same way.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Certificate, Crl};
use crate::attester::{AttestError, Attester};
use crate::encoding::Hex;
use crate::evidence::{Endorsements, Evidence, EvidenceError, MAX_COLLATERAL, Tee};
use crate::platform::Platform;
use crate::tee::snp::{Product, Report, TcbVersion};
use crate::tee::tdx;
use crate::time::UnixTime;
use crate::verifier::VerifierBuilder;

/// More than any single endorsement has.
const MAX_FILE: usize = MAX_COLLATERAL + 1;
/// More files than that are not a folder of endorsements.
const MAX_FILES: usize = 4096;

/// What an endorsement is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndorsementName {
    /// Certificate of a chip's key for one TCB (VCEK).
    Vek {
        /// Generation of the chip.
        product: Product,
        /// Identity of the chip.
        hwid: Vec<u8>,
        /// Firmware that the key belongs to.
        tcb: TcbVersion,
    },
    /// Certificate of the key that signs those of chips (ASK), or of providers (ASVK).
    Intermediate {
        /// Generation of the chips.
        product: Product,
        /// Whether it signs those of providers.
        of_vleks: bool,
    },
    /// Certificate of AMD's root for a generation (ARK).
    AmdRoot(Product),
    /// AMD's revocation list for a generation.
    AmdCrl(Product),
    /// Intel's TCB info of a family of platforms.
    TcbInfo(Hex<6>),
    /// Intel's identity of its quoting enclave for TDX.
    QeIdentity,
    /// Certificate of the key that signs both.
    TcbSigning,
    /// Revocation list of Intel's Platform CA, or of its Processor CA.
    PckCrl {
        /// Whether it is the Platform CA's.
        of_platform_ca: bool,
    },
    /// Revocation list of Intel's root.
    IntelRootCrl,
}

impl EndorsementName {
    /// The name of its file.
    #[must_use]
    pub fn file(&self) -> String {
        match self {
            Self::Vek { product, hwid, tcb } => {
                let hwid: String = hwid.iter().map(|byte| format!("{byte:02x}")).collect();
                let tcb = Hex(tcb.to_bytes(*product));
                format!("vek-{}-{hwid}-{tcb}.der", product.key())
            }
            Self::Intermediate { product, of_vleks } => {
                let kind = if *of_vleks { "asvk" } else { "ask" };
                format!("{kind}-{}.der", product.key())
            }
            Self::AmdRoot(product) => format!("ark-{}.der", product.key()),
            Self::AmdCrl(product) => format!("{}.crl", product.key()),
            Self::TcbInfo(fmspc) => format!("tcb-info-{fmspc}.json"),
            Self::QeIdentity => "qe-identity.json".to_owned(),
            Self::TcbSigning => "tcb-signing.der".to_owned(),
            Self::PckCrl { of_platform_ca } => {
                let ca = if *of_platform_ca {
                    "platform"
                } else {
                    "processor"
                };
                format!("pck-{ca}.crl")
            }
            Self::IntelRootCrl => "intel-root.crl".to_owned(),
        }
    }

    /// The last second at which bytes of this kind are of use; `None` if they are of another kind.
    #[must_use]
    pub fn end_of(&self, bytes: &[u8]) -> Option<UnixTime> {
        match self {
            Self::Vek { .. } | Self::Intermediate { .. } | Self::AmdRoot(_) | Self::TcbSigning => {
                Certificate::parse(bytes).ok().map(|it| it.not_after)
            }
            Self::AmdCrl(_) | Self::PckCrl { .. } | Self::IntelRootCrl => {
                Crl::parse(bytes).ok()?.next_update
            }
            Self::TcbInfo(_) => tdx::next_update(bytes, "tcbInfo"),
            Self::QeIdentity => tdx::next_update(bytes, "enclaveIdentity"),
        }
    }
}

/// Why a folder of endorsements cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// A file cannot be read or written.
    #[error("cannot use `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("`{}` is not what its name says, or is too large", .0.display())]
    Content(PathBuf),
    /// A file does not fit into evidence.
    #[error("an endorsement does not fit into evidence")]
    Evidence(#[from] EvidenceError),
}

/// How a folder of endorsements is: equal states are those of equal content, as far as inodes, lengths
/// and times tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderState(BTreeMap<String, (u64, u64, [i64; 4])>);

/// A folder of endorsements.
#[derive(Clone, Debug)]
pub struct EndorsementFolder {
    path: PathBuf,
}

impl EndorsementFolder {
    /// The folder at this path, which is made when something is put into it.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads an endorsement; `None` if it is not there, or is past its end.
    ///
    /// # Errors
    ///
    /// [`FolderError::Io`], or [`FolderError::Content`] if it is damaged.
    pub fn get(
        &self,
        name: &EndorsementName,
        now: UnixTime,
    ) -> Result<Option<Vec<u8>>, FolderError> {
        let path = self.path.join(name.file());
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FolderError::Io { path, source }),
        };
        match name.end_of(&bytes) {
            Some(end) => Ok((now <= end).then_some(bytes)),
            None => Err(FolderError::Content(path)),
        }
    }

    /// Puts an endorsement in place of what is there, in one step.
    ///
    /// # Errors
    ///
    /// [`FolderError::Content`] if it is not of the kind that it is named, [`FolderError::Io`].
    pub fn put(&self, name: &EndorsementName, bytes: &[u8]) -> Result<(), FolderError> {
        let path = self.path.join(name.file());
        if name.end_of(bytes).is_none() || bytes.len() >= MAX_FILE {
            return Err(FolderError::Content(path));
        }
        self.replace(&path, bytes)
            .map_err(|source| FolderError::Io { path, source })
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let new = self.path.join(format!(".new-{}", Hex(random)));
        let written = File::create_new(&new).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }

    /// What tells whether something in the folder has changed, without reading it.
    ///
    /// # Errors
    ///
    /// [`FolderError`].
    pub fn state(&self) -> Result<FolderState, FolderError> {
        let mut state = BTreeMap::new();
        for (name, path) in self.files()? {
            // One that has just gone is not there.
            let Ok(about) = fs::metadata(path) else {
                continue;
            };
            let changed = [
                about.mtime(),
                about.mtime_nsec(),
                about.ctime(),
                about.ctime_nsec(),
            ];
            state.insert(name, (about.ino(), about.len(), changed));
        }
        Ok(FolderState(state))
    }

    /// Gives a verifier what the folder holds for any machine: certificates of vendors, revocation
    /// lists, collateral.
    ///
    /// Lists and collateral past their end are given too: the verifier refuses what rests on them,
    /// which says more than if they were missing.
    ///
    /// # Errors
    ///
    /// [`FolderError`].
    pub fn add_to(&self, mut builder: VerifierBuilder) -> Result<VerifierBuilder, FolderError> {
        let mut collateral = Vec::new();
        let mut qe_identity = None;
        for (name, path) in self.files()? {
            let load = || {
                read(&path).map_err(|source| FolderError::Io {
                    path: path.clone(),
                    source,
                })
            };
            let is = |extension| path.extension().is_some_and(|it| it == extension);
            if is("crl") {
                builder = builder.crl(load()?);
            } else if is("der") && !name.starts_with("vek-") {
                builder = builder.endorsement(load()?);
            } else if name == "qe-identity.json" {
                qe_identity = Some(load()?);
            } else if is("json") && name.starts_with("tcb-info-") {
                collateral.push(load()?);
            }
        }
        for tcb_info in collateral {
            let mut endorsements = Endorsements::default().with_tcb_info(tcb_info)?;
            if let Some(identity) = &qe_identity {
                endorsements = endorsements.with_qe_identity(identity.clone())?;
            }
            builder = builder.collateral(endorsements);
        }
        Ok(builder)
    }

    /// Adds the certificate of the chip's key to SEV-SNP evidence that came without, if it is here.
    ///
    /// # Errors
    ///
    /// [`FolderError`].
    pub fn complete(&self, evidence: Evidence, now: UnixTime) -> Result<Evidence, FolderError> {
        if evidence.tee() != Tee::SevSnp || evidence.endorsements().vek().is_some() {
            return Ok(evidence);
        }
        let Ok(report) = Report::parse(evidence.report()) else {
            return Ok(evidence);
        };
        // Version 2 does not tell the generation: then each is tried.
        for product in Product::ALL {
            if report.product().is_some_and(|it| it != product) {
                continue;
            }
            let Some(Platform::Amd {
                hwid: Some(hwid),
                tcb,
                ..
            }) = Platform::of_report(&report, product)
            else {
                continue;
            };
            let name = EndorsementName::Vek { product, hwid, tcb };
            if let Some(vek) = self.get(&name, now)? {
                return Ok(evidence.endorsed_by(Endorsements::default().with_vek(vek)?));
            }
        }
        Ok(evidence)
    }

    /// Puts everything that the folder holds about the evidence's machine into it, so that it can be
    /// appraised by whoever has nothing.
    ///
    /// # Errors
    ///
    /// [`FolderError`].
    pub fn bundle(&self, mut evidence: Evidence, now: UnixTime) -> Result<Evidence, FolderError> {
        let names = Platform::of(&evidence).map_or_else(Vec::new, |it| it.endorsements());
        for name in names {
            let Some(bytes) = self.get(&name, now)? else {
                continue;
            };
            let empty = Endorsements::default();
            evidence = match name {
                EndorsementName::AmdCrl(_)
                | EndorsementName::PckCrl { .. }
                | EndorsementName::IntelRootCrl => evidence.with_crl(bytes)?,
                EndorsementName::Vek { .. } => evidence.endorsed_by(empty.with_vek(bytes)?),
                EndorsementName::Intermediate { .. } => {
                    evidence.endorsed_by(empty.with_intermediate(bytes)?)
                }
                EndorsementName::AmdRoot(_) => evidence.endorsed_by(empty.with_root(bytes)?),
                EndorsementName::TcbInfo(_) => evidence.endorsed_by(empty.with_tcb_info(bytes)?),
                EndorsementName::QeIdentity => evidence.endorsed_by(empty.with_qe_identity(bytes)?),
                EndorsementName::TcbSigning => evidence.endorsed_by(empty.with_tcb_signing(bytes)?),
            };
        }
        Ok(evidence)
    }

    /// Names and paths of the files, in order.
    fn files(&self) -> Result<Vec<(String, PathBuf)>, FolderError> {
        let failed = |source| FolderError::Io {
            path: self.path.clone(),
            source,
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
                continue;
            };
            if files.len() >= MAX_FILES {
                return Err(FolderError::Content(self.path.clone()));
            }
            files.push((name.to_owned(), entry.path()));
        }
        files.sort();
        Ok(files)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_FILE).unwrap_or(u64::MAX);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() >= MAX_FILE {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "too large"));
    }
    Ok(bytes)
}

/// An attester whose evidence is completed from a folder, on hosts that hand out no certificates.
pub struct EndorsedAttester {
    attester: Box<dyn Attester>,
    folder: EndorsementFolder,
    clock: Box<dyn Fn() -> UnixTime + Send>,
}

impl EndorsedAttester {
    /// Completes what `attester` gives; `clock` tells the time.
    #[must_use]
    pub fn new(
        attester: Box<dyn Attester>,
        folder: EndorsementFolder,
        clock: Box<dyn Fn() -> UnixTime + Send>,
    ) -> Self {
        Self {
            attester,
            folder,
            clock,
        }
    }
}

impl Attester for EndorsedAttester {
    fn tee(&self) -> Tee {
        self.attester.tee()
    }

    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        let evidence = self.attester.attest(report_data)?;
        self.folder
            .complete(evidence, (self.clock)())
            .map_err(AttestError::Endorsements)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{SimulatedTee, simulated_crl};

    const NOW: UnixTime = UnixTime(1_790_000_000);

    fn folder() -> (tempfile::TempDir, EndorsementFolder) {
        let place = tempfile::tempdir().unwrap();
        let folder = EndorsementFolder::at(place.path().join("endorsements"));
        (place, folder)
    }

    #[test]
    fn what_was_put_is_found_until_its_end() {
        let (_place, folder) = folder();
        let name = EndorsementName::AmdCrl(Product::Genoa);
        assert_eq!(folder.get(&name, NOW).unwrap(), None);
        let crl = |end| simulated_crl(NOW, Some(end), false).unwrap();
        let first = crl(NOW.plus_seconds(5));
        folder.put(&name, &first).unwrap();
        assert_eq!(folder.get(&name, NOW).unwrap(), Some(first.clone()));
        assert_eq!(folder.get(&name, NOW.plus_seconds(5)).unwrap(), Some(first));
        assert_eq!(folder.get(&name, NOW.plus_seconds(6)).unwrap(), None);
        let second = crl(NOW.plus_seconds(50));
        folder.put(&name, &second).unwrap();
        assert_eq!(
            folder.get(&name, NOW.plus_seconds(6)).unwrap(),
            Some(second)
        );
        // Nothing but the list is left behind.
        assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_what_its_name_says_is_neither_put_nor_given() {
        let (_place, folder) = folder();
        let name = EndorsementName::AmdRoot(Product::Milan);
        for wrong in [&b"<html>429</html>"[..], b"", &[0; MAX_FILE]] {
            let refused = folder.put(&name, wrong);
            assert!(matches!(refused, Err(FolderError::Content(_))));
        }
        assert!(!folder.path.exists());
        fs::create_dir(&folder.path).unwrap();
        fs::write(folder.path.join(name.file()), b"damaged").unwrap();
        assert!(matches!(
            folder.get(&name, NOW),
            Err(FolderError::Content(_))
        ));
        let builder = folder.add_to(crate::Verifier::builder()).unwrap();
        assert!(builder.build().is_err());
    }

    #[test]
    fn a_key_is_found_by_its_chip_and_its_firmware() {
        let (_place, folder) = folder();
        let mut tee = SimulatedTee::new(NOW).unwrap();
        let whole = tee.attest(&[0; 64]).unwrap();
        let bare = Evidence::new(
            Tee::SevSnp,
            whole.report().to_vec(),
            Endorsements::default(),
        );
        let bare = bare.unwrap();
        let Some(Platform::Amd {
            product,
            hwid: Some(hwid),
            tcb,
        }) = Platform::of(&bare)
        else {
            panic!("a chip of AMD");
        };
        let name = |tcb| EndorsementName::Vek {
            product,
            hwid: hwid.clone(),
            tcb,
        };
        let vek = whole.endorsements().vek().unwrap();
        let other = TcbVersion {
            snp: tcb.snp + 1,
            ..tcb
        };
        folder.put(&name(other), vek).unwrap();
        assert_eq!(folder.complete(bare.clone(), NOW).unwrap(), bare);
        folder.put(&name(tcb), vek).unwrap();
        let complete = folder.complete(bare.clone(), NOW).unwrap();
        assert_eq!(complete.endorsements().vek(), Some(vek));
        let crl = simulated_crl(NOW, Some(NOW.plus_seconds(5)), false).unwrap();
        folder.put(&EndorsementName::AmdCrl(product), &crl).unwrap();
        let bundled = folder.bundle(bare.clone(), NOW).unwrap();
        assert_eq!(bundled.endorsements().vek(), Some(vek));
        assert_eq!(bundled.crls().collect::<Vec<_>>(), [crl]);
        // What came along is never replaced.
        let own = Endorsements::default().with_vek(vec![1]).unwrap();
        let own = bare.endorsed_by(own);
        assert_eq!(folder.complete(own.clone(), NOW).unwrap(), own);
    }
}
