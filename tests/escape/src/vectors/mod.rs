//! The vectors, by what they attack. One file for each kind.

mod files;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod machine;
mod memory;
mod namespaces;
mod privileges;
mod processes;
mod programs;
mod sockets;
mod terminal;

use crate::attempt::Attempt;
use crate::setting::Setting;

/// One way out.
pub struct Vector {
    /// What it is called in the output.
    pub name: &'static str,
    /// Tries it.
    pub attempt: fn(&Setting) -> Attempt,
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Vector> {
    let groups: &[&[Vector]] = &[
        #[cfg(target_arch = "x86_64")]
        machine::ALL,
        namespaces::ALL,
        kernel::ALL,
        processes::ALL,
        privileges::ALL,
        memory::ALL,
        programs::ALL,
        files::ALL,
        sockets::ALL,
        terminal::ALL,
    ];
    groups.iter().copied().flatten()
}

/// Names a vector beside the function that tries it.
const fn vector(name: &'static str, attempt: fn(&Setting) -> Attempt) -> Vector {
    Vector { name, attempt }
}
