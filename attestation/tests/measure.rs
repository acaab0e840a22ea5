//! Launch digests are those that an independent implementation computes.
//!
//! The vectors are not part of this repository: they are read from `$CASEMATE_VECTORS`, or else
//! from `../shared/vectors` beside the workspace. Where they are missing these tests say so and
//! pass, except under `CI`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use attestation::Hex;
use attestation::measure::{
    FirmwareError, IdAuthentication, IdBlock, IdBlockError, KernelHashes, MeasureError, SnpLaunch,
    Vcpu, Vmm,
};
use serde_json::Value;

fn vectors() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let root = std::env::var_os("CASEMATE_VECTORS").map_or(beside, PathBuf::from);
    if root.join("launch-measurement").exists() {
        return Some(root.join("launch-measurement"));
    }
    let missing = format!("no vectors in {}", root.display());
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    println!("skipped: {missing}; set CASEMATE_VECTORS");
    None
}

/// Amazon's and QEMU's guests of these vectors; `None` for what is not measured here.
fn launch<'a>(arguments: &Value, firmware: &'a [u8]) -> Option<SnpLaunch<'a>> {
    let vmm = match arguments["vmm_type"].as_str()? {
        "VMMType.QEMU" => Vmm::Qemu,
        "VMMType.ec2" => Vmm::Ec2,
        _ => return None,
    };
    // Every file of the vectors is empty.
    let kernel = arguments["kernel"].as_str().map(|_| {
        let initrd = arguments["initrd"].as_str().map(|_| &[][..]);
        KernelHashes::of(&[], initrd, arguments["append"].as_str())
    });
    let vcpu = Vcpu::named("EPYC-v4").unwrap();
    assert_eq!(
        Some(u64::from(vcpu.signature())),
        arguments["vcpu_sig"].as_u64()
    );
    Some(SnpLaunch {
        firmware,
        kernel,
        vcpus: u32::try_from(arguments["vcpus"].as_u64()?).unwrap(),
        vcpu,
        vmm,
        features: arguments["guest_features"].as_u64()?,
    })
}

#[test]
fn every_recorded_launch_digest_is_computed() {
    let Some(root) = vectors() else { return };
    let json = std::fs::read(root.join("sev-snp-measure-vectors.json")).unwrap();
    let recorded: Vec<Value> = serde_json::from_slice(&json).unwrap();
    let mut computed = 0;
    for case in &recorded {
        let arguments = &case["args"];
        let file = arguments["ovmf_file"].as_str().unwrap_or_default();
        let name = file.rsplit('/').next().unwrap();
        let is_snp = arguments["mode"] == "SevMode.SEV_SNP";
        // Another firmware, of which only the digest is known, stands behind the generated ones.
        let given = arguments["snp_ovmf_hash_str"].as_str().unwrap_or_default();
        if !is_snp || !given.is_empty() {
            continue;
        }
        let firmware = std::fs::read(root.join(name)).unwrap();
        let Some(launch) = launch(arguments, &firmware) else {
            continue;
        };
        match (launch.measure(), case["result"].as_str()) {
            (Ok(digest), Some(expected)) => {
                assert_eq!(digest.to_string(), expected, "{}", case["test"]);
                assert_eq!(launch.explain(&digest).unwrap().unwrap(), "nothing differs");
            }
            (Err(error), None) => {
                assert_eq!(error, MeasureError::Firmware(FirmwareError::NoKernelHashes));
            }
            other => panic!("{}: {other:?}", case["test"]),
        }
        computed += 1;
    }
    assert!(computed >= 11, "{computed}");
}

#[test]
fn a_digest_that_differs_names_the_component() {
    let Some(root) = vectors() else { return };
    let firmware = std::fs::read(root.join("ovmf_AmdSev_suffix.bin")).unwrap();
    let launch = SnpLaunch {
        firmware: &firmware,
        kernel: Some(KernelHashes::of(b"kernel", Some(b"initrd"), Some("quiet"))),
        vcpus: 2,
        vcpu: Vcpu::named("epyc-milan").unwrap(),
        vmm: Vmm::Qemu,
        features: 1,
    };
    let difference = |other: SnpLaunch<'_>| launch.explain(&other.measure().unwrap()).unwrap();
    let says = |other, text: &str| assert_eq!(difference(other).as_deref(), Some(text));
    let kernel = |kernel| SnpLaunch { kernel, ..launch };
    says(SnpLaunch { vcpus: 7, ..launch }, "7 vCPUs instead of 2");
    says(
        SnpLaunch {
            vmm: Vmm::Ec2,
            ..launch
        },
        "launched by ec2",
    );
    says(
        SnpLaunch {
            features: 0x21,
            ..launch
        },
        "SEV_FEATURES are 0x21",
    );
    let genoa = Vcpu::named("epyc-genoa").unwrap();
    says(
        SnpLaunch {
            vcpu: genoa,
            ..launch
        },
        "vCPUs are epyc-genoa",
    );
    says(
        SnpLaunch {
            vcpu: genoa,
            vcpus: 3,
            ..launch
        },
        "vCPUs are epyc-genoa, 3 vCPUs instead of 2",
    );
    says(kernel(None), "no kernel was measured");
    says(
        kernel(Some(KernelHashes::of(b"kernel", None, Some("quiet")))),
        "there is no initial RAM disk",
    );
    says(
        kernel(Some(KernelHashes::of(b"kernel", Some(b"initrd"), None))),
        "there is no command line",
    );
    let other = KernelHashes::of(b"another", Some(b"initrd"), Some("quiet"));
    assert_eq!(difference(kernel(Some(other))), None);
}

#[test]
fn firmware_that_is_not_understood_is_not_measured() {
    let Some(root) = vectors() else { return };
    let firmware = std::fs::read(root.join("ovmf_AmdSev_suffix.bin")).unwrap();
    let measure = |firmware: &[u8], vcpus| {
        let vcpu = Vcpu::named("epyc").unwrap();
        let launch = SnpLaunch {
            firmware,
            kernel: None,
            vcpus,
            vcpu,
            vmm: Vmm::Qemu,
            features: 1,
        };
        launch.measure()
    };
    let wrong = |firmware: &[u8]| match measure(firmware, 2).unwrap_err() {
        MeasureError::Firmware(error) => error,
        other => panic!("{other}"),
    };
    assert!(measure(&firmware, 1024).is_ok());
    assert_eq!(measure(&firmware, 0), Err(MeasureError::Vcpus(0)));
    assert_eq!(measure(&firmware, 1025), Err(MeasureError::Vcpus(1025)));
    assert_eq!(wrong(&[]), FirmwareError::Length(0));
    assert_eq!(wrong(&firmware[1..]), FirmwareError::Length(4095));
    assert_eq!(wrong(&[0; 4096]), FirmwareError::Footer);
    let place = firmware.windows(4).position(|it| it == b"ASEV").unwrap();
    let damaged = |at: usize, byte: u8| {
        let mut firmware = firmware.clone();
        firmware[place + at] = byte;
        wrong(&firmware)
    };
    assert_eq!(damaged(0, b'x'), FirmwareError::Metadata);
    assert_eq!(damaged(4, 0), FirmwareError::Metadata);
    assert_eq!(damaged(8, 2), FirmwareError::Metadata);
    assert_eq!(damaged(12, 0xff), FirmwareError::Metadata);
    assert_eq!(damaged(16 + 7, 0xff), FirmwareError::Metadata);
    assert_eq!(damaged(16 + 8, 0x7f), FirmwareError::Section(0x7f));
    // Whatever else is damaged: an answer or an error, no panic and no long wait.
    for at in (0..4096).rev().take(700) {
        let mut firmware = firmware.clone();
        firmware[at] ^= 0x41;
        let _ = measure(&firmware, 2);
    }
}

#[test]
fn an_id_key_is_believed_only_under_its_author_and_a_block_under_its_key() {
    let Some(root) = vectors() else { return };
    let bytes = std::fs::read(root.join("virtee-test_auth_block.bin")).unwrap();
    let authentication = IdAuthentication::parse(&bytes).unwrap();
    assert_eq!(authentication.verify_author(), Ok(()));
    assert_ne!(
        authentication.id_key_digest(),
        authentication.author_key_digest().unwrap()
    );
    let damaged = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] ^= byte;
        let parsed = IdAuthentication::parse(&bytes)?;
        parsed.verify_author()
    };
    assert_eq!(damaged(0, 2), Err(IdBlockError::Algorithm("ID key")));
    assert_eq!(damaged(4, 2), Err(IdBlockError::Algorithm("author key")));
    assert_eq!(damaged(0x250, 1), Err(IdBlockError::Signature("ID key")));
    assert_eq!(damaged(0x680, 1), Err(IdBlockError::Signature("ID key")));
    assert_eq!(
        damaged(0x880, 1),
        Err(IdBlockError::Algorithm("author key"))
    );
    assert_eq!(
        damaged(0x880 + 60, 1),
        Err(IdBlockError::Reserved("author key"))
    );
    assert_eq!(
        damaged(0x880 + 0x403, 1),
        Err(IdBlockError::Reserved("author key"))
    );
    assert_eq!(damaged(0x87f, 1), Err(IdBlockError::Reserved("signature")));
    // Without an author there is nothing to be checked.
    assert_eq!(damaged(4, 1), Ok(()));
    let block = IdBlock {
        measurement: Hex([1; 48]),
        family_id: Hex([2; 16]),
        image_id: Hex([3; 16]),
        guest_svn: 4,
        policy: 0x30000,
    };
    assert_eq!(IdBlock::parse(&block.to_bytes()), Ok(block));
    assert_eq!(
        authentication.verify(&block),
        Err(IdBlockError::Signature("ID block"))
    );
    assert!(IdBlock::parse(&[0; 96]).is_err());
    assert!(matches!(
        IdBlock::parse(&[0; 95]),
        Err(IdBlockError::Length { .. })
    ));
    assert!(IdAuthentication::parse(&bytes[1..]).is_err());
}
