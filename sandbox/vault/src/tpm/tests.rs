//! Against swtpm, a TPM in software. Without it these tests say so and pass, except under `CI`.

#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};

use super::*;

/// A TPM of its own for one test.
pub(crate) struct Emulator {
    dir: tempfile::TempDir,
    process: Child,
}

impl Emulator {
    /// Starts one; `None` after saying that there is no swtpm.
    pub(crate) fn start() -> Option<Self> {
        let found = Process::new("swtpm")
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        if found.is_err() {
            let missing =
                "SKIPPED: no swtpm, so nothing was sealed by a TPM; apt-get install swtpm";
            assert!(std::env::var_os("CI").is_none(), "{missing}");
            eprintln!("{missing}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        Some(Self {
            process: Self::run(&dir),
            dir,
        })
    }

    /// The listening socket is made here and handed over, so nobody has to wait for it.
    fn run(dir: &tempfile::TempDir) -> Child {
        let socket = dir.path().join("tpm");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        Process::new("swtpm")
            .args(["socket", "--tpm2", "--server", "type=unixio,fd=0"])
            .args(["--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", dir.path().display()))
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("tpm")
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn what_was_sealed_is_unsealed_while_the_pcrs_are_the_same() {
    let Some(emulator) = Emulator::start() else {
        return;
    };
    let pcrs = Pcrs::new([0, 7, 16]).unwrap();
    let mut tpm = Tpm::open(&emulator.socket()).unwrap();
    let sealed = tpm.seal(&[7; 32], pcrs).unwrap();
    assert_eq!(**tpm.unseal(&sealed, pcrs).unwrap(), [7; 32]);
}

impl Tpm {
    /// TPM2_PCR_Extend.
    pub(crate) fn extend(&mut self, pcr: u32, digest: &[u8; 32]) {
        let command = Command::new(0x182)
            .handle(pcr)
            .password()
            .u32(1)
            .u16(wire::SHA256);
        let command = digest.iter().fold(command, |c, byte| c.u8(*byte));
        self.call(command).unwrap();
    }
}

#[test]
fn a_changed_pcr_keeps_the_secret_sealed_and_another_pcr_does_not() {
    let Some(emulator) = Emulator::start() else {
        return;
    };
    let pcrs = Pcrs::new([7, 16]).unwrap();
    let mut tpm = Tpm::open(&emulator.socket()).unwrap();
    let sealed = tpm.seal(&[7; 32], pcrs).unwrap();
    tpm.extend(8, &[1; 32]);
    tpm.unseal(&sealed, pcrs).unwrap();
    tpm.extend(16, &[1; 32]);
    assert!(matches!(tpm.unseal(&sealed, pcrs), Err(TpmError::Pcrs)));
    // Naming other PCRs is another policy.
    let others = Pcrs::new([7]).unwrap();
    assert!(matches!(tpm.unseal(&sealed, others), Err(TpmError::Pcrs)));
    // Nothing is left loaded: a TPM has room for three objects and three sessions.
    for _ in 0..10 {
        let again = tpm.seal(&[8; 32], pcrs).unwrap();
        assert_eq!(**tpm.unseal(&again, pcrs).unwrap(), [8; 32]);
    }
}

#[test]
fn another_tpm_and_a_changed_blob_are_refused() {
    let (Some(one), Some(other)) = (Emulator::start(), Emulator::start()) else {
        return;
    };
    let pcrs = Pcrs::default();
    let mut tpm = Tpm::open(&one.socket()).unwrap();
    let sealed = tpm.seal(&[7; 32], pcrs).unwrap();
    let mut other = Tpm::open(&other.socket()).unwrap();
    assert!(matches!(
        other.unseal(&sealed, pcrs),
        Err(TpmError::OtherTpm)
    ));
    for at in 0..sealed.private.len() {
        let mut forged = sealed.clone();
        forged.private[at] ^= 1;
        assert!(tpm.unseal(&forged, pcrs).is_err(), "private byte {at}");
    }
    for at in 0..sealed.public.len() {
        let mut forged = sealed.clone();
        forged.public[at] ^= 1;
        assert!(tpm.unseal(&forged, pcrs).is_err(), "public byte {at}");
    }
    tpm.unseal(&sealed, pcrs).unwrap();
}

#[test]
fn answers_that_lie_about_their_length_are_refused() {
    let answer = |bytes: &[u8]| Answer::parse(bytes, true).map(drop);
    let whole = [0x80, 1, 0, 0, 0, 14, 0, 0, 0, 0, 0x80, 0, 0, 1];
    answer(&whole).unwrap();
    (0..whole.len()).for_each(|len| assert!(answer(&whole[..len]).is_err()));
    for len in [0u32, 9, 4097, u32::MAX] {
        let mut bytes = whole;
        bytes[2..6].copy_from_slice(&len.to_be_bytes());
        assert!(wire::answer_len(&bytes).is_err() && answer(&bytes).is_err());
    }
    // A parameter area beyond the end.
    let mut sessions = [&whole[..], &[0, 0, 0, 9]].concat();
    (sessions[1], sessions[5]) = (2, 18);
    assert!(answer(&sessions).is_err());
}

#[test]
fn only_pcrs_that_exist_are_named() {
    assert_eq!(Pcrs::new([0, 23]).unwrap().mask(), 1 | 1 << 23);
    for number in [24, 31, 32, 255] {
        assert_eq!(Pcrs::new([number]), None);
    }
    assert_eq!(Pcrs::of_mask(1 << 24), None);
}
