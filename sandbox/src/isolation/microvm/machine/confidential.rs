//! Machines whose memory the host cannot read: SEV-SNP and TDX.
//!
//! What the guest is launched for is in its evidence: the policy's digest is HOST_DATA of an SEV-SNP
//! guest, and MRCONFIGID of a TDX guest.

use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Which of them, with what it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidential {
    /// AMD SEV-SNP.
    Snp(Snp),
    /// Intel TDX.
    Tdx(Tdx),
}

/// What an SEV-SNP guest is launched with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snp {
    /// SHA-256 of the policy bundle: HOST_DATA.
    pub policy_digest: [u8; 32],
    /// The guest policy of the SEV-SNP ABI: no debugging, no migration.
    pub guest_policy: u64,
    /// Position of the C-bit, from CPUID 0x8000001f.
    pub cbitpos: u32,
    /// Bits of physical addresses lost to encryption, from the same place.
    pub reduced_phys_bits: u32,
    /// ID block (96 bytes) and ID authentication information (4096 bytes), if the launch is to be refused
    /// by the firmware unless its digest is the expected one.
    pub id: Option<(Vec<u8>, Vec<u8>)>,
}

impl Snp {
    /// SMT allowed, nothing else: bit 17 is always 1.
    pub const GUEST_POLICY: u64 = 0x3_0000;
    /// The processor as QEMU and the launch measurement name it.
    pub const PROCESSOR: &'static str = "EPYC-v4";

    /// A guest for this policy on any processor that has SEV-SNP so far: they all have the C-bit at 51.
    #[must_use]
    pub fn for_policy(policy_digest: [u8; 32]) -> Self {
        Self {
            policy_digest,
            guest_policy: Self::GUEST_POLICY,
            cbitpos: 51,
            reduced_phys_bits: 1,
            id: None,
        }
    }
}

/// What a TDX guest is launched with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tdx {
    /// SHA-256 of the policy bundle, filled up with zeros: MRCONFIGID.
    pub policy_digest: [u8; 32],
    /// Socket of the host's quote generation service.
    pub quotes: Option<String>,
}

impl Confidential {
    /// Its name in policies.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Snp(_) => "sev-snp",
            Self::Tdx(_) => "tdx",
        }
    }

    /// Says why this host cannot launch it, with what is missing.
    ///
    /// # Errors
    ///
    /// The reason in words; see `docs/microvm.md` for how to get the rest.
    pub fn possible_here(&self) -> Result<(), String> {
        let (module, switch) = match self {
            Self::Snp(_) => ("kvm_amd", "sev_snp"),
            Self::Tdx(_) => ("kvm_intel", "tdx"),
        };
        let name = self.name();
        let switch = Path::new("/sys/module")
            .join(module)
            .join("parameters")
            .join(switch);
        let refused = |why: String| Err(format!("this host launches no {name} guests: {why}"));
        match std::fs::read_to_string(&switch) {
            Ok(on) if ["Y", "1"].contains(&on.trim()) => {}
            Ok(_) => return refused(format!("`{}` is off", switch.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return refused(format!("the module `{module}` is not there, or too old"));
            }
            Err(error) => return refused(format!("`{}`: {error}", switch.display())),
        }
        let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
        let devices: &[&str] = match self {
            Self::Snp(_) => &["/dev/kvm", "/dev/sev"],
            Self::Tdx(_) => &["/dev/kvm"],
        };
        for device in devices {
            if let Err(error) = rustix::fs::access(*device, access) {
                return refused(format!("`{device}` cannot be used: {error}"));
            }
        }
        Ok(())
    }

    pub(super) fn machine(&self, machine: &mut String, accelerator: &mut String) {
        machine.push_str(",confidential-guest-support=guest,memory-backend=memory");
        *accelerator = "kvm".to_owned();
        if matches!(self, Self::Tdx(_)) {
            machine.push_str(",smm=off,pic=off");
            accelerator.push_str(",kernel-irqchip=split");
        }
    }

    pub(super) fn processor(&self) -> &'static str {
        match self {
            // The model is in the measured state of each vCPU, so it is a name and not "host".
            Self::Snp(_) => Snp::PROCESSOR,
            Self::Tdx(_) => "host",
        }
    }

    pub(super) fn objects(&self, memory: u64) -> Vec<String> {
        let memory = format!(
            "memory-backend-memfd,id=memory,size={memory}M,share=true,prealloc=false,reserve=false"
        );
        let guest = match self {
            Self::Snp(snp) => {
                let id = snp
                    .id
                    .as_ref()
                    .map_or_else(String::new, |(block, authentication)| {
                        format!(
                            ",id-block={},id-auth={},author-key-enabled=off",
                            STANDARD.encode(block),
                            STANDARD.encode(authentication)
                        )
                    });
                format!(
                    "sev-snp-guest,id=guest,cbitpos={},reduced-phys-bits={},policy={:#x},\
                     kernel-hashes=on,host-data={}{id}",
                    snp.cbitpos,
                    snp.reduced_phys_bits,
                    snp.guest_policy,
                    STANDARD.encode(snp.policy_digest)
                )
            }
            Self::Tdx(tdx) => {
                let mut mrconfigid = [0; 48];
                for (to, from) in mrconfigid.iter_mut().zip(tdx.policy_digest) {
                    *to = from;
                }
                let quotes = tdx.quotes.as_ref().map_or_else(String::new, |path| {
                    let path = serde_json::Value::from(path.as_str());
                    format!(",\"quote-generation-socket\":{{\"type\":\"unix\",\"path\":{path}}}")
                });
                format!(
                    "{{\"qom-type\":\"tdx-guest\",\"id\":\"guest\",\"mrconfigid\":\"{}\"{quotes}}}",
                    STANDARD.encode(mrconfigid)
                )
            }
        };
        vec![memory, guest]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Accelerator, COMMAND_LINE, Machine, Origin};
    use super::*;

    fn machine(confidential: Option<Confidential>) -> Machine {
        Machine {
            origin: Origin::Boot,
            accelerator: Accelerator::Tcg,
            memory: 768,
            vcpus: 2,
            command_line: "console=ttyS0".into(),
            confidential,
            tpm: false,
        }
    }

    /// One option on each line, as the golden texts below have it.
    fn shown(machine: &Machine) -> String {
        let mut text = String::new();
        for argument in machine.arguments() {
            match argument.starts_with('-') {
                true => text = format!("{text}\n{argument}"),
                false => text = format!("{text} {argument}"),
            }
        }
        text.trim().to_owned()
    }

    const COMMON: &str = "\
-chardev socket,id=control,fd=11
-mon chardev=control,mode=control
-chardev socket,id=console,fd=14
-serial chardev:console
-chardev socket,id=agent,fd=10
-device virtio-serial-pci
-device virtserialport,chardev=agent,name=casemate.agent";

    const FIRST: &str = "\
-nodefaults
-no-user-config
-display none
-no-reboot
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

    #[test]
    fn the_command_line_of_a_plain_machine_is_this_one() {
        let plain = format!(
            "{FIRST}
-machine q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off
-accel tcg
-cpu max,erms=off,fsrm=off
-smp 2
-m 768
-kernel /proc/self/fd/12
-initrd /proc/self/fd/13
-append console=ttyS0
{COMMON}"
        );
        assert_eq!(shown(&machine(None)), plain);
        let tpm = Machine {
            tpm: true,
            ..machine(None)
        };
        let with_tpm = format!(
            "{plain}
-chardev socket,id=tpm,fd=16
-tpmdev emulator,id=tpm0,chardev=tpm
-device tpm-crb,tpmdev=tpm0"
        );
        assert_eq!(shown(&tpm), with_tpm);
    }

    #[test]
    fn a_clone_goes_on_from_the_memory_that_its_template_kept_and_does_not_change_it() {
        let of = |origin| {
            shown(&Machine {
                origin,
                ..machine(None)
            })
        };
        let first = format!(
            "{FIRST}
-machine q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off,memory-backend=memory
-accel tcg
-cpu max,erms=off,fsrm=off
-smp 2
-m 768
-object memory-backend-file,id=memory,size=768M,mem-path=/proc/self/fd/17"
        );
        let template = format!(
            "{first},share=on
-device vmgenid,guid=auto
-kernel /proc/self/fd/12
-initrd /proc/self/fd/13
-append console=ttyS0
{COMMON}"
        );
        let clone = format!(
            "{first},share=off,readonly=on,rom=off
-device vmgenid,guid=auto
-incoming defer
{COMMON}"
        );
        assert_eq!(of(Origin::Template), template);
        assert_eq!(of(Origin::Clone), clone);
    }

    #[test]
    fn the_command_line_of_an_snp_guest_is_this_one() {
        let snp = Snp {
            id: Some((vec![1; 3], vec![2; 3])),
            ..Snp::for_policy([0xaa; 32])
        };
        let golden = format!(
            "{FIRST}
-machine q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off,confidential-guest-support=guest,memory-backend=memory
-accel kvm
-cpu EPYC-v4
-smp 2
-m 768
-object memory-backend-memfd,id=memory,size=768M,share=true,prealloc=false,reserve=false
-object sev-snp-guest,id=guest,cbitpos=51,reduced-phys-bits=1,policy=0x30000,kernel-hashes=on,host-data=qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo=,id-block=AQEB,id-auth=AgIC,author-key-enabled=off
-bios /proc/self/fd/15
-kernel /proc/self/fd/12
-initrd /proc/self/fd/13
-append console=ttyS0
{COMMON}"
        );
        assert_eq!(shown(&machine(Some(Confidential::Snp(snp)))), golden);
    }

    #[test]
    fn the_command_line_of_a_tdx_guest_is_this_one() {
        let tdx = Tdx {
            policy_digest: [0xaa; 32],
            quotes: Some("/run/qgs.socket".into()),
        };
        let golden = format!(
            "{FIRST}
-machine q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off,confidential-guest-support=guest,memory-backend=memory,smm=off,pic=off
-accel kvm,kernel-irqchip=split
-cpu host
-smp 2
-m 768
-object memory-backend-memfd,id=memory,size=768M,share=true,prealloc=false,reserve=false
-object {{\"qom-type\":\"tdx-guest\",\"id\":\"guest\",\"mrconfigid\":\"qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqoAAAAAAAAAAAAAAAAAAAAA\",\"quote-generation-socket\":{{\"type\":\"unix\",\"path\":\"/run/qgs.socket\"}}}}
-bios /proc/self/fd/15
-kernel /proc/self/fd/12
-initrd /proc/self/fd/13
-append console=ttyS0
{COMMON}"
        );
        assert_eq!(shown(&machine(Some(Confidential::Tdx(tdx)))), golden);
    }

    #[test]
    fn a_host_without_the_hardware_says_what_is_missing() {
        if Path::new("/dev/sev").exists() {
            println!("skipped: this host may launch SEV-SNP guests");
            return;
        }
        let snp = Confidential::Snp(Snp::for_policy([0; 32]));
        let why = snp.possible_here().unwrap_err();
        assert!(
            why.starts_with("this host launches no sev-snp guests: "),
            "{why}"
        );
    }

    #[test]
    fn the_guests_kernel_keeps_its_protections() {
        for weakens in ["mitigations=off", "nokaslr", "nosmep", "nopti", "init="] {
            assert!(!COMMAND_LINE.contains(weakens));
        }
    }
}
