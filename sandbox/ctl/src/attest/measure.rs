//! `sandboxctl attest measure`: what a guest's launch digest has to be.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use attestation::measure::{IdAuthentication, IdBlock, KernelHashes, SnpLaunch, Vcpu, Vmm};
use attestation::{Hex, ReferenceValues};
use clap::Args;

use super::read_up_to;
use crate::failure::Failure;

/// Exit code when the digest is not the one that was found.
const DIFFERS: u8 = 5;
/// More than any firmware, kernel or initial RAM disk has.
const MOST: u64 = 2 << 30;

#[derive(Args)]
pub(crate) struct Measure {
    /// Firmware: OVMF built for SEV-SNP.
    #[arg(long, value_name = "FILE")]
    firmware: PathBuf,
    /// Kernel that the host loads (`-kernel` with `kernel-hashes=on`).
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk that goes with it.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Command line of the kernel.
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    command_line: Option<String>,
    /// How many vCPUs the guest has.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// What they look like: a model of QEMU (`epyc-milan`, …), or family, model and stepping
    /// (`25:1:1`).
    #[arg(long, value_name = "MODEL", default_value = "epyc-milan", value_parser = vcpu)]
    vcpu_type: Vcpu,
    /// Who launches it: `qemu` or `ec2`.
    #[arg(long, default_value = "qemu", value_parser = vmm)]
    vmm: Vmm,
    /// SEV_FEATURES of the guest; KVM of Linux 6.9 and later sets 0x21.
    #[arg(long, value_name = "BITS", default_value = "0x1", value_parser = features)]
    features: u64,
    /// A digest that was found instead (96 hexadecimal digits): say which component differs.
    ///
    /// Exit code 5 if it is not the computed one.
    #[arg(long, value_name = "HEX", value_parser = Hex::<48>::from_str)]
    found: Option<Hex<48>>,
    /// ID block of the launch (96 bytes): check that it is about this digest.
    #[arg(long, value_name = "FILE", requires = "id_authentication")]
    id_block: Option<PathBuf>,
    /// ID authentication information that goes with it (4096 bytes).
    #[arg(long, value_name = "FILE", requires = "id_block")]
    id_authentication: Option<PathBuf>,
    /// Print reference values for `attest verify`.
    #[arg(long)]
    json: bool,
}

impl Measure {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let firmware = read_up_to(&self.firmware, MOST)?;
        let kernel = match &self.kernel {
            None => None,
            Some(kernel) => {
                let kernel = read_up_to(kernel, MOST)?;
                let initrd = self.initrd.as_deref().map(|path| read_up_to(path, MOST));
                let initrd = initrd.transpose()?;
                let command_line = self.command_line.as_deref();
                Some(KernelHashes::of(&kernel, initrd.as_deref(), command_line))
            }
        };
        let launch = SnpLaunch {
            firmware: &firmware,
            kernel,
            vcpus: self.vcpus,
            vcpu: self.vcpu_type,
            vmm: self.vmm,
            features: self.features,
        };
        let digest = launch.measure()?;
        let id = self.id(&digest)?;
        if self.json {
            let mut reference = ReferenceValues::default();
            reference.sev_snp.measurements = Some(vec![digest]);
            if let Some(id) = &id {
                reference.sev_snp.id_key_digests = Some(vec![id.id_key_digest()]);
                let author = id.author_key_digest().map(|author| vec![author]);
                reference.sev_snp.author_key_digests = author;
            }
            println!("{}", reference.to_json());
        } else {
            println!("{digest}");
            if let Some(id) = &id {
                println!("  id key      {}", id.id_key_digest());
                if let Some(author) = id.author_key_digest() {
                    println!("  author key  {author}");
                }
            }
        }
        match &self.found {
            Some(found) if *found != digest => Ok(differs(&launch, found)?),
            _ => Ok(ExitCode::SUCCESS),
        }
    }

    /// The keys of an ID block that is about this digest.
    fn id(&self, digest: &Hex<48>) -> Result<Option<IdAuthentication>, Failure> {
        let (Some(block), Some(authentication)) = (&self.id_block, &self.id_authentication) else {
            return Ok(None);
        };
        let block = IdBlock::parse(&read_up_to(block, 1 << 16)?)?;
        let authentication = IdAuthentication::parse(&read_up_to(authentication, 1 << 16)?)?;
        authentication.verify(&block)?;
        if block.measurement != *digest {
            let other = block.measurement;
            return Err(
                Failure::new(format!("the ID block is about the digest {other}"))
                    .hint("`--found` with that digest says what differs"),
            );
        }
        Ok(Some(authentication))
    }
}

fn differs(launch: &SnpLaunch<'_>, found: &Hex<48>) -> Result<ExitCode, Failure> {
    println!("found {found} instead");
    match launch.explain(found)? {
        Some(difference) => println!("  differs     {difference}"),
        None => println!(
            "  differs     the firmware, or the bytes of kernel, initial RAM disk or command line, \
             or more than one component"
        ),
    }
    Ok(ExitCode::from(DIFFERS))
}

fn vcpu(text: &str) -> Result<Vcpu, String> {
    let numbers: Vec<u32> = text.split(':').filter_map(|it| it.parse().ok()).collect();
    if let [family, model, stepping] = numbers[..] {
        return Ok(Vcpu::new(family, model, stepping));
    }
    let names: Vec<&str> = Vcpu::MODELS.iter().map(|(name, _)| *name).collect();
    Vcpu::named(text).ok_or_else(|| format!("known are {}", names.join(", ")))
}

fn vmm(text: &str) -> Result<Vmm, String> {
    let mut all = Vmm::ALL.into_iter();
    all.find(|vmm| vmm.name() == text)
        .ok_or_else(|| "known are qemu, ec2".to_owned())
}

fn features(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|error| error.to_string())
}
