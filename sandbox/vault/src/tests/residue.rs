//! Keys leave nothing behind in memory that can be read.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::{Bench, content, read, terms};

/// A key as it must not be found: changed, so that the copy to look for is none itself.
fn masked(key: &[u8; 32]) -> [u8; 32] {
    std::array::from_fn(|i| key[i] ^ 0xA5)
}

/// How often one of the keys occurs in the writable memory of this process.
fn occurrences(keys: &[[u8; 32]]) -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    let mut found = 0;
    let mut buffer = vec![0; 1 << 20];
    for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        let (from, to) = range.split_once('-').unwrap();
        let parse = |field| u64::from_str_radix(field, 16).unwrap();
        let (mut at, to) = (parse(from), parse(to));
        while rights.starts_with("rw") && at < to {
            let len = (to - at).min(buffer.len() as u64) as usize;
            // Secret memory cannot be read, and thread stacks of other tests may just have gone.
            if memory.read_exact_at(&mut buffer[..len], at).is_ok() {
                found += count(&buffer[..len], keys);
            }
            // Overlapping, so that a key across two stretches is seen.
            at += if at + (len as u64) < to {
                len as u64 - 32
            } else {
                len as u64
            };
        }
    }
    found
}

fn count(bytes: &[u8], keys: &[[u8; 32]]) -> usize {
    let is = |window: &[u8], key: &[u8; 32]| window.iter().zip(key).all(|(b, k)| b ^ 0xA5 == *k);
    let firsts: Vec<u8> = keys.iter().map(|key| key[0] ^ 0xA5).collect();
    bytes
        .windows(32)
        .filter(|window| firsts.contains(&window[0]) && keys.iter().any(|key| is(window, key)))
        .count()
}

#[test]
fn the_search_finds_a_key_that_is_there() {
    let key: Vec<u8> = (0..32).map(|i| (i * 37 + 11) as u8).collect();
    assert!(occurrences(&[masked(key.as_slice().try_into().unwrap())]) > 0);
    assert_eq!(key[1], 48);
}

#[test]
fn no_key_is_in_readable_memory_while_a_vault_is_open_or_after() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, 50_000)[..]).unwrap();
    if vault.protection() != crate::MemoryProtection::Secret {
        eprintln!("skipped: this kernel has no memfd_secret, so keys are readable while in use");
        return;
    }
    assert_eq!(read(&vault, "a").unwrap(), content(1, 50_000));
    let object = vault.object("a").unwrap();
    let dek = vault
        .shared()
        .keys
        .dek(
            &vault.index()["a"].object_id,
            &vault.index()["a"].extents[0],
        )
        .unwrap()
        .unwrap();
    let keys = [
        masked(dek.expose()),
        masked(object.extents()[0].key.expose()),
        masked(vault.shared().keys.at(1).unwrap().index.expose()),
    ];
    drop(dek);
    let lease = vault.lease(terms()).unwrap();
    let leased = lease.open("a").unwrap();
    lease.read_at(&leased, &mut [0; 5000], 10_000).unwrap();
    lease.revoke();
    assert_eq!(occurrences(&keys), 0, "while open");
    drop((object, leased, lease, vault));
    assert_eq!(occurrences(&keys), 0, "after");
}
