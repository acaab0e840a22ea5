//! The kernel inside a bzImage, so that the guest need not unpack it.
//!
//! Follows "The Linux/x86 Boot Protocol" of the kernel's documentation, setup header.

use std::io::Read;

use super::image::elf::boots_as_it_is;

/// Most bytes of an unpacked kernel.
const MAX: u64 = 512 << 20;

/// Unpacks a kernel that is packed with zstd and boots as it is. `None` for every other one: that one
/// unpacks itself in the guest.
#[must_use]
pub fn unpacked(image: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    let version = u16::from_le_bytes(image.get(0x206..0x208)?.try_into().ok()?);
    if image.get(0x202..0x206)? != b"HdrS" || version < 0x208 {
        return None;
    }
    let sectors = match image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let from = (sectors + 1) * 512 + usize::try_from(word(0x248)?).ok()?;
    let packed = image.get(from..)?;
    let packed = packed.get(..usize::try_from(word(0x24c)?).ok()?)?;
    let decoder = zstd::stream::Decoder::with_buffer(packed).ok()?;
    let mut kernel = Vec::new();
    let mut limited = decoder.single_frame().take(MAX);
    limited.read_to_end(&mut kernel).ok()?;
    boots_as_it_is(&kernel).then_some(kernel)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A bzImage with this payload.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image
    }

    /// An ELF file with one note: of this kind, by this name.
    fn kernel(name: &[u8; 4], kind: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x20] = 64;
        elf[0x36] = 56;
        elf[0x38] = 1;
        elf[64] = 4;
        elf[64 + 8] = 120;
        elf[64 + 32] = 24;
        for word in [4, 8, kind] {
            elf.extend(word.to_le_bytes());
        }
        elf.extend(name);
        elf.extend([0; 8]);
        elf
    }

    #[test]
    fn a_kernel_is_unpacked_if_it_says_where_it_begins() {
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let good = kernel(b"Xen\0", 18);
        let mut packed = zstd(&good);
        // As the kernel's build appends it.
        packed.extend((good.len() as u32).to_le_bytes());
        assert_eq!(unpacked(&image(&packed)).unwrap(), good);
        for other in [kernel(b"Xen\0", 17), kernel(b"GNU\0", 18), vec![0; 200]] {
            assert!(unpacked(&image(&zstd(&other))).is_none());
        }
        assert!(unpacked(&image(&good)).is_none(), "it is not packed");
        assert!(unpacked(&good).is_none(), "it is no bzImage");
    }

    proptest! {
        #[test]
        fn any_bytes_are_unpacked_or_refused(
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            flips in proptest::collection::vec((0_usize..1200, any::<u8>()), 0..8),
        ) {
            let packed = zstd::encode_all(&kernel(b"Xen\0", 18)[..], 1).unwrap();
            for mut image in [image(&payload), image(&packed)] {
                for (at, byte) in &flips {
                    if let Some(place) = image.get_mut(*at) {
                        *place = *byte;
                    }
                }
                let _ = unpacked(&image);
            }
        }
    }
}
