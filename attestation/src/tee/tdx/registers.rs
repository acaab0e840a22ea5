//! The registers of this guest, as the kernel shows them.
//!
//! Follows "sysfs-devices-virtual-misc-tdx_guest" in the Linux kernel's ABI documentation (Linux 6.16
//! and later): a file of 48 bytes for each register.

use std::io::{self, Read as _};
use std::path::Path;

use crate::encoding::Hex;

/// Where the kernel shows the registers of a TDX guest.
pub const TDX_MEASUREMENTS: &str = "/sys/devices/virtual/misc/tdx_guest/measurements";

/// Reads RTMR0 to RTMR3 of this guest, to compare a log with before evidence is asked for.
///
/// What they hold is believed only as part of a quote.
///
/// # Errors
///
/// What the kernel answers; [`io::ErrorKind::InvalidData`] if a register is not 48 bytes.
pub fn rtmrs_at(measurements: &Path) -> io::Result<[Hex<48>; 4]> {
    let mut rtmrs = [Hex([0; 48]); 4];
    for (index, rtmr) in rtmrs.iter_mut().enumerate() {
        let file = std::fs::File::open(measurements.join(format!("rtmr{index}:sha384")))?;
        let mut bytes = Vec::new();
        // One byte more than there should be, to see that there is none.
        file.take(49).read_to_end(&mut bytes)?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "a register is not 48 bytes");
        rtmr.0 = bytes.as_slice().try_into().map_err(|_| wrong())?;
    }
    Ok(rtmrs)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_read_whole_or_not_at_all() {
        let tree = tempfile::tempdir().unwrap();
        let write = |index: u8, length: usize| {
            let path = tree.path().join(format!("rtmr{index}:sha384"));
            std::fs::write(path, vec![index; length]).unwrap();
        };
        assert_eq!(
            rtmrs_at(tree.path()).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        (0..4).for_each(|index| write(index, 48));
        assert_eq!(
            rtmrs_at(tree.path()).unwrap(),
            [0, 1, 2, 3].map(|it| Hex([it; 48]))
        );
        for length in [0, 47, 49] {
            write(2, length);
            assert_eq!(
                rtmrs_at(tree.path()).unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
    }
}
