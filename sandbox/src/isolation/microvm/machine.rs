//! What is launched: a machine, and the command line that stands for it. Pure: nothing is started here.
//!
//! Follows QEMU's "System Emulation" manual, "Confidential Guest Support" for SEV-SNP and TDX.

use serde::{Deserialize, Serialize};

mod confidential;

pub use confidential::{Confidential, Snp, Tdx};

/// Descriptors under which the machine finds what it is made of; see [`warden`](super::warden).
pub mod descriptor {
    /// Socket of the agent's channel.
    pub const CHANNEL: i32 = 10;
    /// Socket of QEMU's own control, QMP.
    pub const CONTROL: i32 = 11;
    /// The kernel.
    pub const KERNEL: i32 = 12;
    /// The initial RAM disk.
    pub const INITRD: i32 = 13;
    /// Socket that the guest's console is written to.
    pub const CONSOLE: i32 = 14;
    /// The firmware, if it is not QEMU's own.
    pub const FIRMWARE: i32 = 15;
    /// Socket of a TPM's emulator.
    pub const TPM: i32 = 16;
    /// The memory that is kept of a template, or that a clone begins with.
    pub const MEMORY: i32 = 17;
    /// What is kept of a template's processors and devices.
    pub const DEVICES: i32 = 18;
}

/// Name of the port of virtio-serial on which the agent speaks.
pub const PORT: &str = "casemate.agent";

/// What every guest is booted with: quiet, and never to go on after a panic. Security features of the
/// kernel stay as they are by default.
pub const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t tsc=reliable \
    no_timer_check random.trust_cpu=on 8250.nr_uarts=1 i8042.noaux i8042.nokbd cryptomgr.notests";

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU, in software: some ten times slower, and no second wall of hardware.
    Tcg,
}

impl Accelerator {
    /// KVM if it is the processor's own and this user may use it. KVM without VMX or SVM behind it (as
    /// inside some clouds' machines) does not run ordinary kernels.
    #[must_use]
    pub fn of_this_host() -> Self {
        let hardware = ["kvm_intel", "kvm_amd"]
            .iter()
            .any(|module| std::path::Path::new("/sys/module").join(module).exists());
        let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
        match hardware && rustix::fs::access("/dev/kvm", access).is_ok() {
            true => Self::Kvm,
            false => Self::Tcg,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// How a machine comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// It boots.
    Boot,
    /// It boots, and what it has become is kept: others go on from there.
    Template,
    /// It goes on from a template. What that one kept is read only.
    Clone,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// How it comes to be.
    pub origin: Origin,
    /// What executes it.
    pub accelerator: Accelerator,
    /// Memory in MiB.
    pub memory: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// The kernel's command line.
    pub command_line: String,
    /// The hardware that hides its memory from the host, if it has some.
    pub confidential: Option<Confidential>,
    /// Whether a TPM is attached.
    pub tpm: bool,
}

impl Machine {
    /// A machine on this host for a policy with these limits and an image of this size.
    #[must_use]
    pub fn sized(memory: u64, cpu: f64, image: u64) -> Self {
        const MIB: u64 = 1 << 20;
        // The image is there twice while it is unpacked; kernel and agent need the rest.
        let memory = memory.div_ceil(MIB) + 2 * image.div_ceil(MIB) + 192;
        Self {
            origin: Origin::Boot,
            accelerator: Accelerator::of_this_host(),
            memory,
            vcpus: (cpu.ceil() as u32).clamp(1, 64),
            command_line: COMMAND_LINE.to_owned(),
            confidential: None,
            tpm: false,
        }
    }

    /// The arguments for QEMU, which finds everything under the numbers of [`descriptor`].
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        use descriptor::{CHANNEL, CONSOLE, CONTROL, FIRMWARE, INITRD, KERNEL, MEMORY, TPM};
        let mut arguments = Arguments::default();
        let mut machine = "q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off".to_owned();
        let mut accelerator = self.accelerator.as_str().to_owned();
        let kept = match self.origin {
            Origin::Boot => None,
            Origin::Template => Some("share=on"),
            // Mapped copy on write, so that clones share what none of them has changed.
            Origin::Clone => Some("share=off,readonly=on,rom=off"),
        };
        if kept.is_some() {
            machine.push_str(",memory-backend=memory");
        }
        if let Some(confidential) = &self.confidential {
            confidential.machine(&mut machine, &mut accelerator);
        }
        arguments.add("-nodefaults", None);
        arguments.add("-no-user-config", None);
        arguments.add("-display", Some("none".into()));
        arguments.add("-no-reboot", None);
        let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
        arguments.add("-sandbox", Some(sandbox.into()));
        arguments.add("-machine", Some(machine));
        arguments.add("-accel", Some(accelerator));
        let processor = match &self.confidential {
            Some(confidential) => confidential.processor(),
            None if self.accelerator == Accelerator::Kvm => "host",
            // In software a string instruction is as slow as its smallest step: without these two the
            // guest copies in larger ones.
            None => "max,erms=off,fsrm=off",
        };
        arguments.add("-cpu", Some(processor.into()));
        arguments.add("-smp", Some(self.vcpus.to_string()));
        arguments.add("-m", Some(self.memory.to_string()));
        if let Some(confidential) = &self.confidential {
            for object in confidential.objects(self.memory) {
                arguments.add("-object", Some(object));
            }
            arguments.add("-bios", Some(path(FIRMWARE)));
        }
        if let Some(kept) = kept {
            let (size, path) = (self.memory, path(MEMORY));
            let file = format!("memory-backend-file,id=memory,size={size}M,mem-path={path},{kept}");
            arguments.add("-object", Some(file));
            // Tells the guest's kernel that it is another machine now.
            arguments.add("-device", Some("vmgenid,guid=auto".into()));
        }
        if self.origin == Origin::Clone {
            arguments.add("-incoming", Some("defer".into()));
        } else {
            arguments.add("-kernel", Some(path(KERNEL)));
            arguments.add("-initrd", Some(path(INITRD)));
            arguments.add("-append", Some(self.command_line.clone()));
        }
        arguments.add("-chardev", Some(format!("socket,id=control,fd={CONTROL}")));
        arguments.add("-mon", Some("chardev=control,mode=control".into()));
        arguments.add("-chardev", Some(format!("socket,id=console,fd={CONSOLE}")));
        arguments.add("-serial", Some("chardev:console".into()));
        arguments.add("-chardev", Some(format!("socket,id=agent,fd={CHANNEL}")));
        arguments.add("-device", Some("virtio-serial-pci".into()));
        let port = format!("virtserialport,chardev=agent,name={PORT}");
        arguments.add("-device", Some(port));
        if self.tpm {
            arguments.add("-chardev", Some(format!("socket,id=tpm,fd={TPM}")));
            arguments.add("-tpmdev", Some("emulator,id=tpm0,chardev=tpm".into()));
            arguments.add("-device", Some("tpm-crb,tpmdev=tpm0".into()));
        }
        arguments.0
    }
}

/// Where a process finds one of its own descriptors.
pub(super) fn path(descriptor: i32) -> String {
    format!("/proc/self/fd/{descriptor}")
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn add(&mut self, name: &str, value: Option<String>) {
        self.0.push(name.to_owned());
        self.0.extend(value);
    }
}
