//! What a program needs to be loaded, and what of its file is.
//!
//! Follows the "Tool Interface Standard (TIS) Executable and Linking Format", 64 bit, little endian.

/// What the kernel and the dynamic linker look for before a program runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// The dynamic linker; none for a static program.
    pub(super) interpreter: Option<String>,
    /// Names of libraries.
    pub(super) libraries: Vec<String>,
}

const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
const INTERPRETER: u32 = 3;
const NOTES: u32 = 4;
const ENTRY: u32 = 18;
const NEEDED: u64 = 1;
const STRINGS: u64 = 5;
/// Most program headers, and entries of the dynamic section.
const MOST: usize = 1024;
/// Offsets in the file header, of the section headers' place and their numbers.
const SECTIONS: [std::ops::Range<usize>; 2] = [0x28..0x30, 0x3a..0x40];

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// What the program in these bytes needs; `None` if they are none.
pub(super) fn needs(bytes: &[u8]) -> Option<Needs> {
    let segments = segments(bytes)?;
    let mut needs = Needs::default();
    for segment in &segments {
        let content = || slice(bytes, segment.offset, segment.size);
        match segment.kind {
            INTERPRETER => needs.interpreter = Some(string(content()?, 0)?),
            DYNAMIC => {
                let entries = content()?.chunks_exact(16).take(MOST);
                let entries =
                    entries.map_while(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?)));
                let entries: Vec<_> = entries.take_while(|(tag, _)| *tag != 0).collect();
                let Some((_, address)) = entries.iter().find(|(tag, _)| *tag == STRINGS) else {
                    continue;
                };
                let holder = segments.iter().find(|s| {
                    s.kind == LOAD && s.address <= *address && address - s.address < s.size
                })?;
                let strings = address - holder.address + holder.offset;
                let strings = bytes.get(usize::try_from(strings).ok()?..)?;
                for (_, name) in entries.iter().filter(|(tag, _)| *tag == NEEDED) {
                    needs.libraries.push(string(strings, *name)?);
                }
            }
            _ => {}
        }
    }
    Some(needs)
}

/// Where the last loaded byte of the program ends that begins with these bytes. What is behind are symbols
/// and debug information, which can be ten times what runs.
pub(super) fn loaded(head: &[u8]) -> Option<u64> {
    let ends = segments(head)?.into_iter();
    let ends = ends.map(|segment| segment.offset.saturating_add(segment.size));
    // A kernel module or object has no segments, and is nothing without its sections.
    ends.max().filter(|end| *end > 0)
}

/// Forgets the sections of a program that ends with its last loaded byte.
pub(super) fn without_sections(bytes: &mut [u8]) {
    for range in SECTIONS {
        if let Some(field) = bytes.get_mut(range) {
            field.fill(0);
        }
    }
    // The size of an entry stays what readers of the format expect.
    if let Some(size) = bytes.get_mut(0x3a..0x3c) {
        size.copy_from_slice(&64_u16.to_le_bytes());
    }
}

/// Whether a kernel says where it begins when nothing has prepared it: `XEN_ELFNOTE_PHYS32_ENTRY`, by which
/// QEMU boots it as it is.
pub(in super::super) fn boots_as_it_is(kernel: &[u8]) -> bool {
    let Some(segments) = segments(kernel) else {
        return false;
    };
    let mut notes = segments.iter().filter(|segment| segment.kind == NOTES);
    notes.any(|segment| {
        let mut rest = slice(kernel, segment.offset, segment.size).unwrap_or_default();
        loop {
            let word = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
            let (Some(name), Some(content), Some(kind)) = (word(0), word(4), word(8)) else {
                return false;
            };
            if kind == ENTRY && rest.get(12..16) == Some(b"Xen\0") {
                return true;
            }
            let padded = |size: u32| size as usize + (4 - size as usize % 4) % 4;
            rest = rest
                .get(12 + padded(name) + padded(content)..)
                .unwrap_or_default();
        }
    })
}

/// The interpreter of a script, if these bytes are one.
pub(super) fn script_interpreter(bytes: &[u8]) -> Option<String> {
    let line = bytes
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let line = std::str::from_utf8(line.get(..line.len().min(255))?).ok()?;
    let path = line.split_whitespace().next()?;
    path.starts_with('/').then(|| path.to_owned())
}

fn segments(bytes: &[u8]) -> Option<Vec<Segment>> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(u64_at(bytes, 0x20)?).ok()?;
    let size = usize::from(u16_at(bytes, 0x36)?);
    let count = usize::from(u16_at(bytes, 0x38)?);
    if size < 56 || count > MOST {
        return None;
    }
    let headers = bytes.get(table..)?.chunks_exact(size).take(count);
    headers
        .map(|header| {
            Some(Segment {
                kind: u32::from_le_bytes(header.get(..4)?.try_into().ok()?),
                offset: u64_at(header, 8)?,
                address: u64_at(header, 16)?,
                size: u64_at(header, 32)?,
            })
        })
        .collect()
}

fn slice(bytes: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let offset = usize::try_from(offset).ok()?;
    bytes.get(offset..)?.get(..usize::try_from(size).ok()?)
}

fn string(bytes: &[u8], at: u64) -> Option<String> {
    let text = bytes.get(usize::try_from(at).ok()?..)?;
    let text = text.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.get(..text.len().min(4096))?.to_vec()).ok()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_program_of_this_host_needs_its_linker_and_the_c_library() {
        let needs = needs(&std::fs::read("/bin/cat").unwrap()).unwrap();
        assert!(needs.interpreter.unwrap().contains("ld-linux"));
        assert!(
            needs
                .libraries
                .iter()
                .any(|name| name.starts_with("libc.so"))
        );
    }

    #[test]
    fn a_program_cut_down_to_what_is_loaded_still_runs() {
        let program = std::env::current_exe().unwrap();
        let mut bytes = std::fs::read(&program).unwrap();
        let end = loaded(&bytes[..64 << 10]).unwrap() as usize;
        assert!(end < bytes.len());
        bytes.truncate(end);
        without_sections(&mut bytes);
        let folder = tempfile::tempdir().unwrap();
        let cut = folder.path().join("cut");
        std::fs::copy(&program, &cut).unwrap();
        std::fs::write(&cut, &bytes).unwrap();
        let output = std::process::Command::new(&cut).arg("--list").output();
        assert!(output.unwrap().status.success());
    }

    #[test]
    fn scripts_name_their_interpreter() {
        assert_eq!(
            script_interpreter(b"#!/bin/sh -e\nls").as_deref(),
            Some("/bin/sh")
        );
        assert_eq!(script_interpreter(b"#!sh\n"), None);
        assert_eq!(script_interpreter(b"\x7fELF"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            head in proptest::collection::vec(any::<u8>(), 0..200),
            flips in proptest::collection::vec((0_usize..0x400, any::<u8>()), 0..6),
        ) {
            let mut elf = b"\x7fELF\x02\x01".to_vec();
            elf.extend(head);
            let _ = (needs(&elf), loaded(&elf), boots_as_it_is(&elf));
            without_sections(&mut elf);
            let mut cat = std::fs::read("/bin/cat").unwrap();
            for (at, byte) in flips {
                cat[at] = byte;
            }
            let _ = (needs(&cat), loaded(&cat), boots_as_it_is(&cat));
            without_sections(&mut cat);
        }
    }
}
