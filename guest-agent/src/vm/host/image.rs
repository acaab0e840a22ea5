//! The image of a policy: the agent, the policy, what it grants to be read, and programs of this host.

use std::fs;
use std::path::{Path, PathBuf};

use casemate::isolation::microvm::Image;
use policy::Rootfs;

use super::super::{POLICY_FILE, POLICY_FOLDER, places};
use super::{Options, VmError};
use crate::Assembly;

/// What an image is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'i> {
    /// The policy, read.
    pub assembly: &'i Assembly,
    /// How the machine is made.
    pub options: &'i Options,
}

/// What a shell script may expect to find: the shell and utilities of POSIX, as far as this host has them.
const PROGRAMS: [&str; 48] = [
    "awk", "basename", "bash", "cat", "chmod", "cmp", "cp", "cut", "date", "dd", "diff", "dirname",
    "echo", "env", "expr", "false", "find", "fold", "getent", "grep", "head", "id", "join", "ln",
    "ls", "mkdir", "mktemp", "mv", "od", "paste", "printf", "pwd", "rm", "rmdir", "sed", "seq",
    "sh", "sleep", "sort", "tail", "tee", "test", "touch", "tr", "true", "uname", "uniq", "wc",
];
const PATH: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"];

/// Puts the image of a policy together.
///
/// # Errors
///
/// [`VmError::Image`] and [`VmError::Place`].
pub fn image_of(inputs: &Inputs<'_>) -> Result<Image, VmError> {
    let Inputs { assembly, options } = inputs;
    let (bundle, base) = (assembly.bundle(), assembly.base());
    let mut image = Image::new(&options.agent)?;
    image.bytes(POLICY_FILE, bundle.source())?;
    for (name, text) in bundle.included() {
        image.bytes(&format!("{POLICY_FOLDER}/{name}"), text.as_str())?;
    }
    for place in places::measured(bundle)? {
        image.tree(&base.join(&place.written), &place.inside)?;
    }
    if bundle.tables().workload.rootfs == Rootfs::Host {
        for program in PROGRAMS {
            if let Some(path) = found(program) {
                image.program(&path)?;
            }
        }
        let program = &bundle.tables().workload.command[0];
        match Path::new(program) {
            path if path.is_absolute() && path.exists() => image.program(path)?,
            _ => {
                if let Some(path) = found(program) {
                    image.program(&path)?;
                }
            }
        }
    }
    for path in &options.with {
        match path.is_dir() {
            true => image.tree(path, &path.to_string_lossy())?,
            false => image.program(path)?,
        }
    }
    Ok(image)
}

fn found(program: &str) -> Option<PathBuf> {
    let places = PATH.iter().map(|folder| Path::new(folder).join(program));
    places.into_iter().find(|path| path.is_file())
}

/// The newest kernel in `/boot` that a distribution made for machines, or else the newest one.
///
/// # Errors
///
/// [`VmError::Missing`].
pub fn newest_kernel() -> Result<PathBuf, VmError> {
    let kernels = fs::read_dir("/boot").into_iter().flatten().flatten();
    let mut kernels: Vec<_> = kernels
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("vmlinuz-")
        })
        .collect();
    let order = |path: &PathBuf| {
        let name = path.to_string_lossy().into_owned();
        let numbers = name.split(|c: char| !c.is_ascii_digit());
        let numbers: Vec<u64> = numbers.filter_map(|number| number.parse().ok()).collect();
        (name.contains("-cloud-"), numbers)
    };
    kernels.sort_by_key(order);
    kernels.pop().ok_or(VmError::Missing {
        what: "kernel for the guest in /boot",
        how: "install linux-image-cloud-amd64, or name one with --kernel",
    })
}
