//! A vault whose key an HSM keeps: SoftHSM, an HSM in software.
//!
//! Needs `softhsm2-util` and its module (`apt-get install softhsm2`; `CASEMATE_SOFTHSM` names the
//! module if it is not in one of the usual places). Without them this says so and passes, except
//! under `CI`.

#![cfg(feature = "pkcs11")]
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vault::kek::{KekError, KekProvider, Pkcs11, Released};
use vault::{Access, SlotKind, Vault, VaultError};

const CHILD: &str = "CASEMATE_TEST_PKCS11_DIR";
const PLACES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
];

fn module() -> Option<PathBuf> {
    let named = std::env::var_os("CASEMATE_SOFTHSM").map(PathBuf::from);
    let mut places = named.into_iter().chain(PLACES.map(PathBuf::from));
    let found = places.find(|path| path.exists());
    let util = Command::new("softhsm2-util").arg("--version").output();
    if found.is_some() && util.is_ok() {
        return found;
    }
    let missing = "SKIPPED: no SoftHSM, so no HSM kept a key; apt-get install softhsm2";
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    eprintln!("{missing}");
    None
}

/// Makes two tokens, and runs the story in a process whose environment names them.
#[test]
fn a_vault_opens_with_the_hsm_that_made_its_key_and_no_other() {
    if module().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tokens, config) = (dir.path().join("tokens"), dir.path().join("softhsm2.conf"));
    std::fs::create_dir(&tokens).unwrap();
    std::fs::write(
        &config,
        format!("directories.tokendir = {}\n", tokens.display()),
    )
    .unwrap();
    for token in ["mine", "other"] {
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", token])
            .args(["--so-pin", "12345678", "--pin", "1234"])
            .env("SOFTHSM2_CONF", &config)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
    }
    let story = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_story_with_two_tokens", "--ignored"])
        .args(["--nocapture", "--test-threads=1"])
        .env("SOFTHSM2_CONF", &config)
        .env(CHILD, dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (&story.stdout, &story.stderr);
    assert!(
        story.status.success(),
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    );
}

fn hsm(token: &str, pin: &str, key: &str) -> Result<Pkcs11, KekError> {
    Pkcs11::open(&module().unwrap(), token, pin.to_owned().into(), key)
}

fn opened(dir: &Path, kek: &dyn KekProvider) -> Result<Vault, VaultError> {
    Vault::open(dir, kek, Access::ReadOnly)
}

#[test]
#[ignore = "the child of `a_vault_opens_with_the_hsm_that_made_its_key_and_no_other`"]
fn the_story_with_two_tokens() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let dir = Path::new(&dir).join("v");
    let mine = hsm("mine", "1234", "vaults").unwrap();
    // No key yet: nothing is made up.
    assert!(matches!(
        Vault::create(&dir, &mine, Default::default()),
        Err(VaultError::Kek(KekError::Refused(_)))
    ));
    assert!(mine.make_key().unwrap());
    assert!(!mine.make_key().unwrap());
    let mut vault = Vault::create(&dir, &mine, Default::default()).unwrap();
    vault.put("a", &b"x"[..]).unwrap();
    assert_eq!(vault.slots()[0].kind, SlotKind::Pkcs11);
    assert!(matches!(vault.add_slot(&mine), Err(VaultError::KeyInUse)));
    let released = Released::take(&mut [1; 32]).unwrap();
    vault.add_slot(&released).unwrap();
    drop((vault, mine));

    let mine = hsm("mine", "1234", "vaults").unwrap();
    let mut found = Vec::new();
    opened(&dir, &mine).unwrap().get("a", &mut found).unwrap();
    assert_eq!(found, b"x");
    assert!(opened(&dir, &released).is_ok());
    // A key of the same name in another token is another key; another name is not tried at all.
    let other = hsm("other", "1234", "vaults").unwrap();
    other.make_key().unwrap();
    assert!(matches!(opened(&dir, &other), Err(VaultError::WrongKek)));
    let unnamed = hsm("mine", "1234", "else").unwrap();
    assert!(matches!(
        opened(&dir, &unnamed),
        Err(VaultError::Kek(KekError::Refused(_)))
    ));
    assert!(hsm("none", "1234", "vaults").is_err());
    assert!(format!("{mine:?}").len() < 60);
}

#[test]
fn a_module_that_is_none_is_refused() {
    let none = Path::new("/nonexistent.so");
    let refused = Pkcs11::open(none, "t", String::new().into(), "k");
    assert!(matches!(refused, Err(KekError::Unavailable(_))));
}
