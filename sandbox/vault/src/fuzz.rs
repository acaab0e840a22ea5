//! What a fuzzer feeds: bytes that anybody may have written. Each entry must return, whatever they are,
//! and what it accepts must be the one spelling of what it read.

use crate::audit::fuzz as audit;
use crate::format::header::Header;
use crate::format::index;
use crate::format::manifest::{self, Manifest};
use crate::format::object::Layout;
use crate::kek::{Recovery, parse_tpm};
use crate::sealed;
use crate::secret::SecretKey;

/// Takes any bytes, and returns.
pub type Target = fn(&[u8]);

/// Every entry, by its name.
pub const TARGETS: [(&str, Target); 13] = [
    ("header", header),
    ("manifest", manifest_file),
    ("manifest_body", manifest_body),
    ("index", index_body),
    ("sealed", sealed_box),
    ("slot", slot),
    ("record", audit::record),
    ("bundle", audit::bundle),
    ("checkpoint", audit::checkpoint),
    ("proof", audit::proof),
    ("segment", audit::segment),
    ("disclosure", audit::disclosure),
    ("device", device),
];

/// Feeds one target.
///
/// # Panics
///
/// If there is no target of this name, or it was broken.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(target, _)| *target == name);
    assert!(target.is_some(), "there is no target `{name}`");
    target.into_iter().for_each(|(_, target)| target(bytes));
}

/// The file `vault`.
pub fn header(bytes: &[u8]) {
    if let Ok((header, covered, mac)) = Header::parse(bytes) {
        assert_eq!(header.encode(), covered);
        assert_eq!([covered, mac].concat(), bytes);
    }
}

/// A manifest's front, of the vault that its bytes name.
pub fn manifest_file(bytes: &[u8]) {
    let Some(vault) = bytes.get(16..).and_then(|rest| rest.first_chunk::<16>()) else {
        assert!(manifest::parse_front(bytes, &[0; 16]).is_err());
        return;
    };
    if let Ok(generation) = manifest::parse_front(bytes, vault) {
        assert_eq!(manifest::front(vault, generation), bytes[..40]);
    }
}

/// What is in a manifest's box.
pub fn manifest_body(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(7, bytes) {
        let again = manifest.encode();
        let shared = again.len().min(bytes.len());
        assert_eq!(again[..shared], bytes[..shared]);
        assert!(
            again[shared..]
                .iter()
                .chain(&bytes[shared..])
                .all(|b| *b == 0)
        );
    }
}

/// What is in an index segment's box, and the layouts of the objects it names.
pub fn index_body(bytes: &[u8]) {
    for format in 1..=index::FORMAT {
        let Ok(index) = index::parse(format, bytes) else {
            continue;
        };
        for extent in index.values().flat_map(|record| &record.extents) {
            let layout = Layout {
                chunk: extent.chunk,
                stored: extent.stored,
            };
            assert!(layout.file_len() > extent.stored && layout.chunks() > 0);
            let last = layout.chunks() - 1;
            assert!(layout.chunk_at(last) + layout.chunk_len(last) as u64 <= layout.file_len());
        }
        if let Ok(again) = index::encode(&index) {
            let format = index::format(&index);
            assert_eq!(index::parse(format, &again).ok(), Some(index));
        }
    }
}

/// A box, which no key of ours sealed.
pub fn sealed_box(bytes: &[u8]) {
    let key = SecretKey::take(&mut [7; 32]);
    if let Ok(key) = key {
        assert!(sealed::open(&key, "fuzz", b"", bytes).is_err());
    }
}

/// Parameters of key slots, shares of recovery keys, and what an anchor keeps.
pub fn slot(bytes: &[u8]) {
    let _ = parse_tpm(bytes);
    let _ = crate::anchor::parse(bytes, &[1; 16]);
    let text = String::from_utf8_lossy(bytes);
    let _ = Recovery::combine(text.lines());
}

/// What a TPM answers, and what the kernel asks of a FUSE server.
pub fn device(bytes: &[u8]) {
    crate::tpm::fuzz(bytes);
    #[cfg(feature = "fuse")]
    crate::fuse::fuzz(bytes);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::audit::{Head, Log, LogKey, Record, prove};
    use crate::format::manifest::Segment;
    use crate::tests::{Bench, content};

    /// Well-formed bytes for each target: what is changed a little goes deep.
    fn seeds() -> BTreeMap<&'static str, Vec<Vec<u8>>> {
        let bench = Bench::new();
        let mut vault = bench.create();
        for (name, len) in [("a", 0), ("b/c", 10), ("d", 9000)] {
            vault.put(name, &content(1, len)[..]).unwrap();
        }
        let index_body = index::encode(vault.index()).unwrap();
        let segments = vec![
            Segment {
                id: [1; 16],
                len: 500,
                digest: [2; 32],
            };
            2
        ];
        let manifest = Manifest {
            segments,
            ..vault.commit.manifest.clone()
        };
        let of = |name: &str| fs::read(bench.path().join(name)).unwrap();
        let index_file = fs::read(bench.only_file("index")).unwrap();
        let (_, shares) = Recovery::split(2, 3).unwrap();
        let mut slots: Vec<_> = shares.iter().map(|s| s.as_bytes().to_vec()).collect();
        slots.push([&[0x80, 0, 1, 0, 2, 0][..], b"pr", &[3, 0], b"pub"].concat());

        let dir = bench.dir.path().join("log");
        let key = LogKey::from_seed(&[9; 32]).unwrap();
        let verifier = key.verifier(audit::ORIGIN).unwrap();
        let log = Log::create(&dir, audit::ORIGIN, key).unwrap();
        let records: Vec<_> = (0..20)
            .map(|n| {
                let payload = json!({ "n": n, "x": [1.5, -7, null, true, "ü"], "big": 1u64 << 40 });
                Record::new("test", Duration::from_nanos(n), n, payload)
            })
            .collect();
        log.append_all(&records).unwrap();
        let segment = fs::read(dir.join("wal").join(format!("{:020}", 0))).unwrap();
        let checkpoint = log.checkpoint().unwrap();
        let bundle = fs::read(dir.join("tile/entries/000.p/20")).unwrap();
        let proof = serde_json::to_vec(&prove(&dir, &verifier, 7).unwrap()).unwrap();
        let entry = bundle[2..2 + usize::from(bundle[1])].to_vec();
        let head = Head {
            extensions: vec!["att 00".into()],
            ..checkpoint.head().clone()
        };
        BTreeMap::from([
            ("header", vec![of("vault")]),
            ("manifest", vec![of("manifest.a"), of("manifest.b")]),
            ("manifest_body", vec![manifest.encode()]),
            ("index", vec![index_body]),
            ("sealed", vec![index_file[64..].to_vec()]),
            ("slot", slots),
            ("record", vec![entry]),
            ("bundle", vec![bundle]),
            (
                "checkpoint",
                vec![
                    checkpoint.note().as_bytes().to_vec(),
                    head.encode().unwrap().into_bytes(),
                    verifier.to_string().into_bytes(),
                ],
            ),
            ("proof", vec![proof]),
            ("segment", vec![segment[..3 * 4096].to_vec()]),
            (
                "disclosure",
                vec![
                    br#"{"name":"subject","salt":"00112233445566778899aabbccddeeff","value":["a",1]}"#
                        .to_vec(),
                ],
            ),
            (
                "device",
                vec![
                    vec![0x80, 1, 0, 0, 0, 14, 0, 0, 0, 0, 0x80, 0, 0, 1],
                    [&[56, 0, 0, 0, 15, 0, 0, 0][..], &[1; 72]].concat(),
                ],
            ),
        ])
    }

    /// Numbers that look random, the same in every run (xorshift64).
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as usize % end.max(1)
        }
    }

    /// Changes bytes the way damage and attackers do.
    fn mutate(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
        for _ in 0..=dice.below(4) {
            let at = dice
                .below(bytes.len() + 1)
                .min(bytes.len().saturating_sub(1));
            match dice.below(8) {
                _ if bytes.is_empty() => bytes.extend_from_slice(other),
                0 => bytes[at] ^= 1 << dice.below(8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'\n', b' ', b'-'][dice.below(8)],
                2 => bytes.truncate(at),
                3 => bytes.insert(at, dice.below(256) as u8),
                4 => drop(bytes.drain(at..(at + 1 + dice.below(40)).min(bytes.len()))),
                5 => {
                    // A stretch of a well-formed one, in another place.
                    let from = dice.below(other.len());
                    let piece = &other[from..(from + dice.below(64)).min(other.len())];
                    bytes.splice(at..at, piece.iter().copied());
                }
                6 => {
                    let number =
                        [0u64, 1, 255, 1 << 16, u64::MAX, 1 << 63, u64::MAX >> 1][dice.below(7)];
                    let width = [1, 2, 4, 8][dice.below(4)].min(bytes.len() - at);
                    bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
                }
                _ => {
                    let to = dice.below(bytes.len());
                    bytes.swap(at, to);
                }
            }
        }
    }

    #[test]
    fn no_changed_bytes_break_a_parser() {
        let seeds = seeds();
        assert_eq!(seeds.len(), TARGETS.len());
        for (name, target) in TARGETS {
            let seeds = &seeds[name];
            seeds.iter().for_each(|seed| target(seed));
            target(&[]);
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
            for round in 0..1500 {
                let mut bytes = seeds[round % seeds.len()].clone();
                let other = &seeds[dice.below(seeds.len())];
                mutate(&mut bytes, other, &mut dice);
                // A checksum in the clear keeps nobody out: mended, so that what is behind it is met.
                if name == "header" && bytes.len() > 64 && round % 2 == 0 {
                    let body = bytes.len() - 64;
                    let sum = crate::sealed::sha256(&[&bytes[..body]]);
                    bytes[body..body + 32].copy_from_slice(&sum);
                }
                target(&bytes);
            }
        }
    }
}
