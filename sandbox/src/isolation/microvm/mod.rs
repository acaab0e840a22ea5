//! A sandbox in a virtual machine of its own, seen from outside.
//!
//! ```text
//!  host, not trusted with secrets                     guest
//!  Image ─▶ Machine ─▶ warden ─▶ QEMU ═══════════▶ /init: the guest-agent
//!              │                   ║                   │
//!              └─▶ expected        ╚═ virtio-serial ═══╧═ Link: session, stdio, log, keys
//! ```
//!
//! Inside, the guest-agent runs the same session under the same policy with the
//! [`container`](super::container) backend: levers, sensors, log and vaults are where the workload is.
//! Here is what the host does for it: an [`image`] that is the same whenever its inputs are, the
//! [`machine`] that is launched with it, the processes around that ([`warden`], [`qmp`]), and the
//! [`channel`], which both ends use. What is said over it is `guest_agent::vm`'s.

pub mod channel;
pub mod guest;
pub mod image;
pub mod kernel;
pub mod machine;
pub mod qmp;
pub mod warden;

pub use channel::{ChannelError, Incoming, Link, StreamId};
pub use image::{Image, ImageError};
pub use machine::{Accelerator, Machine, Origin};
