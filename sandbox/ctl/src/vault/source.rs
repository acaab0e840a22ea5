//! Where the keys of vaults come from, as options of commands.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ::vault::kek::{KekProvider, Passphrase, Pkcs11, Recovery, Released, Tpm};
use ::vault::tpm::{DEVICE, Pcrs};
use clap::Args;
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::key::{new_key, read_key};

/// What opens the vault.
#[derive(Args)]
#[group(id = "opened_with", required = true, multiple = false)]
pub struct Opens {
    /// File with the key that a broker would release (64 hexadecimal digits).
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// File whose first line is the passphrase (`-` for standard input).
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Name of a systemd credential that holds the key, as a key file does.
    #[arg(long, value_name = "NAME")]
    credential: Option<String>,
    /// File with shares of a recovery key, one a line; repeat for more files.
    #[arg(long, value_name = "FILE")]
    share_file: Vec<PathBuf>,
    /// The TPM of this machine.
    #[arg(long)]
    tpm: bool,
    /// A key in an HSM: the label of its token, and its own. Needs --pkcs11-module.
    #[arg(long, value_name = "TOKEN/KEY", requires = "pkcs11_module")]
    pkcs11: Option<String>,
}

/// How to reach devices that keep keys.
#[derive(Args)]
pub struct Devices {
    /// Device or emulator's socket of the TPM.
    #[arg(long, value_name = "PATH", default_value = DEVICE, hide_default_value = true)]
    tpm_device: PathBuf,
    /// The HSM's PKCS #11 module. It is loaded into this process: name only one you trust.
    #[arg(long, value_name = "FILE", requires = "pkcs11_pin_file")]
    pkcs11_module: Option<PathBuf>,
    /// File whose first line is the PIN of the HSM's token.
    #[arg(long, value_name = "FILE")]
    pkcs11_pin_file: Option<PathBuf>,
}

/// A key that shall open the vault from now on.
#[derive(Args)]
#[group(id = "newly_opened_with", multiple = false)]
pub struct News {
    /// File with the new key (64 hexadecimal digits); made if it is not there.
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
    /// File whose first line is the new passphrase (`-` for standard input).
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// A recovery key, printed as N shares of which any K give it back. They are shown once.
    #[arg(long, value_name = "K-of-N", value_parser = k_of_n)]
    new_recovery: Option<(u8, u8)>,
    /// A key sealed by the TPM to these PCRs as they are now, such as `7,11`, or `none`.
    #[arg(long, value_name = "PCRS", value_parser = pcrs)]
    new_tpm: Option<Pcrs>,
    /// A key in an HSM, made there if it has none of that label. Needs --pkcs11-module.
    #[arg(long, value_name = "TOKEN/KEY", requires = "pkcs11_module")]
    new_pkcs11: Option<String>,
}

fn k_of_n(text: &str) -> Result<(u8, u8), String> {
    let numbers = text.split_once("-of-");
    let numbers = numbers.and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    numbers
        .filter(|(k, n)| *k >= 2 && n >= k)
        .ok_or_else(|| "write it as `2-of-3`, with at least 2 that are needed".to_owned())
}

fn pcrs(text: &str) -> Result<Pcrs, String> {
    if text == "none" {
        return Ok(Pcrs::default());
    }
    let numbers: Option<Vec<u8>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
    numbers
        .and_then(Pcrs::new)
        .ok_or_else(|| "write PCRs as `7,11`; they are numbered 0 to 23".to_owned())
}

impl Opens {
    /// The provider of the key; clap saw to it that one option is there.
    pub fn kek(&self, devices: &Devices) -> Result<Box<dyn KekProvider>, Failure> {
        if let Some(path) = &self.passphrase_file {
            return Ok(Box::new(Passphrase::new(first_line(path, "passphrase")?)));
        }
        if let Some(name) = &self.credential {
            return key_in(&credential(name)?);
        }
        if !self.share_file.is_empty() {
            return shares(&self.share_file);
        }
        if self.tpm {
            return devices.tpm(Pcrs::default());
        }
        if let Some(name) = &self.pkcs11 {
            return Ok(Box::new(devices.pkcs11(name)?));
        }
        key_in(self.key_file.as_deref().unwrap_or(Path::new("")))
    }

    /// Whether this is read from standard input.
    pub fn takes_input(&self) -> bool {
        self.passphrase_file.as_deref() == Some(Path::new("-"))
    }
}

/// A provider, and what to say once its key opens the vault.
pub type Told = (Box<dyn KekProvider>, String);

impl News {
    /// The provider of the new key; `None` if none was named.
    pub fn kek(&self, devices: &Devices) -> Result<Option<Told>, Failure> {
        let silent = |kek| Ok(Some((kek, String::new())));
        if let Some(path) = &self.new_key_file {
            if path.exists() {
                return silent(key_in(path)?);
            }
            let said = format!(
                "its key is in `{}`: give it to the broker, and keep a copy\n",
                path.display()
            );
            return Ok(Some((new_released(path)?, said)));
        }
        if let Some(path) = &self.new_passphrase_file {
            return silent(Box::new(Passphrase::new(first_line(path, "passphrase")?)));
        }
        if let Some((needed, of)) = self.new_recovery {
            let (recovery, lines) = Recovery::split(needed, of)?;
            let mut said = format!("give each of these {of} shares to another keeper; ");
            said += &format!("any {needed} open the vault. They are not shown again.\n");
            lines
                .iter()
                .for_each(|line| said += &format!("{}\n", **line));
            return Ok(Some((Box::new(recovery), said)));
        }
        if let Some(pcrs) = self.new_tpm {
            return silent(devices.tpm(pcrs)?);
        }
        if let Some(name) = &self.new_pkcs11 {
            let hsm = devices.pkcs11(name)?;
            let said = if hsm.make_key()? {
                "the HSM made the key\n"
            } else {
                ""
            };
            return Ok(Some((Box::new(hsm), said.to_owned())));
        }
        Ok(None)
    }

    /// Whether this is read from standard input.
    pub fn takes_input(&self) -> bool {
        self.new_passphrase_file.as_deref() == Some(Path::new("-"))
    }
}

impl Devices {
    fn tpm(&self, pcrs: Pcrs) -> Result<Box<dyn KekProvider>, Failure> {
        let tpm = Tpm::open(&self.tpm_device, pcrs).map_err(|error| {
            Failure::caused(format!("TPM `{}`", self.tpm_device.display()), &error)
                .hint("users of the group `tss` may use it; without a TPM, add another kind of key")
        })?;
        Ok(Box::new(tpm))
    }

    fn pkcs11(&self, name: &str) -> Result<Pkcs11, Failure> {
        let Some((token, key)) = name.split_once('/') else {
            return Err(Failure::new("name the key in the HSM as TOKEN/KEY"));
        };
        let (Some(module), Some(pin)) = (&self.pkcs11_module, &self.pkcs11_pin_file) else {
            return Err(Failure::new(
                "an HSM needs --pkcs11-module and --pkcs11-pin-file",
            ));
        };
        let pin = first_line(pin, "PIN")?;
        let pin = std::str::from_utf8(&pin).map(|pin| Zeroizing::new(pin.to_owned()));
        let pin = pin.map_err(|_| Failure::new("the PIN is not UTF-8"))?;
        Pkcs11::open(module, token, pin, key)
            .map_err(|error| Failure::caused(format!("HSM `{}`", module.display()), &error))
    }
}

/// The file of a credential that systemd handed to this service.
fn credential(name: &str) -> Result<PathBuf, Failure> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        Failure::new("there are no systemd credentials here")
            .hint("run this as a service with LoadCredentialEncrypted=, or use --key-file")
    })?;
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(std::path::Component::Normal(name)), None) => Ok(Path::new(&folder).join(name)),
        _ => Err(Failure::new("a credential's name has no `/`")),
    }
}

fn shares(files: &[PathBuf]) -> Result<Box<dyn KekProvider>, Failure> {
    let mut lines = Vec::new();
    for path in files {
        let text = text(path, "shares", 256 * 256)?;
        let text = std::str::from_utf8(&text)
            .map_err(|_| Failure::new(format!("`{}` holds no shares", path.display())))?;
        lines.extend(text.lines().map(|line| Zeroizing::new(line.to_owned())));
    }
    let recovery = Recovery::combine(lines.iter().map(|line| line.as_str()))?;
    Ok(Box::new(recovery))
}

fn released(mut key: Zeroizing<Vec<u8>>) -> Result<Box<dyn KekProvider>, Failure> {
    let bytes: &mut [u8; 32] = key
        .as_mut_slice()
        .try_into()
        .map_err(|_| Failure::new("a key has 32 bytes"))?;
    Ok(Box::new(Released::take(bytes)?))
}

/// The key in this file.
pub fn key_in(path: &Path) -> Result<Box<dyn KekProvider>, Failure> {
    released(read_key(path)?)
}

/// A new key in a file that is not there yet.
pub fn new_released(path: &Path) -> Result<Box<dyn KekProvider>, Failure> {
    released(new_key(path)?)
}

fn first_line(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut text = text(path, what, 4096)?;
    let end = text
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(text.len());
    text.truncate(end);
    if text.is_empty() {
        return Err(Failure::new(format!("the {what} is empty")));
    }
    Ok(text)
}

fn text(path: &Path, what: &str, most: u64) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut text = Zeroizing::new(Vec::with_capacity(most as usize));
    let read = if path.as_os_str() == "-" {
        io::stdin().take(most).read_to_end(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(most).read_to_end(&mut text))
    };
    read.map_err(|error| {
        Failure::caused(
            format!("cannot read the {what} from `{}`", path.display()),
            &error,
        )
    })?;
    Ok(text)
}
