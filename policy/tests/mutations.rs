//! What a fuzzer would do, as far as stable and a few seconds go: the same inputs each time.

#![allow(missing_docs)]

use policy::fuzz;

const SEEDS: [&str; 4] = [
    include_str!("../examples/clean-room.toml"),
    "version = 1\nname = \"p\"\ninclude = [\"self.toml\"]\n[workload]\ncommand = [\"true\"]\n[files]\nwrite = [{ from = \"./out\", at = \"/out\" }]\n[rules]\ncedar = '''permit (principal, action, resource) unless { context.gaps.containsAny([\"a\"]) };'''\n",
    "version = 1\nname = \"p\"\n[attestation]\naccept = [\"tdx\"]\nendorsements = \"revoked\"\n[workload]\ncommand = [\"true\"]\n[network]\nconnect = [\"a.example:443\", \"[::1]:80\"]\n[data]\nd = { vault = \"d.vault\", at = \"/d\", anchor = \"tpm:0x1800001\" }\n[risk]\nfalls-after = \"2s\"\nlease-use = { adds = 5, volume = \"1GiB\", rate = \"1MiB\", objects = 3 }\ntime-window = { adds = 5, outside = \"mon-fri 08:00-18:00\" }\nexternal = { adds = 5, socket = \"s\", uids = [1], token = \"t\" }\nnew-exec = { adds = 1, known = [\"/bin/sh\"] }\nresource-pressure = { adds = 1, stall = 30, half-life = \"1m\", cap = 9, floor = 3 }\n[rules]\ncedar = \"permit (principal, action, resource) when { context.gaps.contains('x') };\"\n",
    "casemate/policy\np\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n\u{2014} ops.example.com AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
];
/// Pieces that parsers stumble over.
const PIECES: [&str; 24] = [
    "\"\"\"",
    "'''",
    "[[",
    "]]",
    "{",
    "}",
    "\\u",
    "\\",
    "\0",
    "\r\n",
    "\u{202e}",
    "\u{feff}",
    "99999999999999999999",
    "-1",
    "1e309",
    "nan",
    "when {",
    "unless {",
    "&& context.risk >= 1",
    "||",
    "!",
    "if true then",
    "(((((((((",
    "::",
];

/// A small generator with a fixed seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % most.max(1)
    }
}

fn mutated(seed: &str, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.as_bytes().to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        let end = at + dice.below((bytes.len() - at).min(64));
        match dice.below(6) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.truncate(at),
            3 => {
                let piece = PIECES[dice.below(PIECES.len())].bytes();
                drop(bytes.splice(at..at, piece));
            }
            4 => {
                let copy = bytes[at..end].to_vec();
                let to = dice.below(bytes.len());
                drop(bytes.splice(to..to, copy));
            }
            _ => {
                let line = bytes[at..]
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .unwrap_or(0);
                drop(bytes.drain(at..at + line));
            }
        }
        if bytes.is_empty() {
            bytes.push(b'\n');
        }
    }
    bytes
}

#[test]
fn no_bytes_make_the_readers_panic() {
    let mut dice = Dice(0x5eed);
    for round in 0..1500 {
        let seed = SEEDS[round % SEEDS.len()];
        let bytes = mutated(seed, &mut dice);
        fuzz::bundle(&bytes);
        fuzz::others(&bytes);
    }
    fuzz::bundle(b"");
    fuzz::others(b"");
}
