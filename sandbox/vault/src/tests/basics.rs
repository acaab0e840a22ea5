use std::io::{self, Read};

use proptest::prelude::*;

use super::{Bench, content, read};
use crate::{
    Access, ChunkSize, CreateOptions, MemoryProtection, NameError, OpenOptions, Padding, Vault,
    VaultError,
};

#[test]
fn what_was_put_comes_back_also_after_reopening() {
    let bench = Bench::new();
    let mut vault = bench.create();
    for (name, len) in [
        ("empty", 0),
        ("a/one", 1),
        ("a/chunk", 4096),
        ("a/b/more", 12_300),
    ] {
        let info = vault.put(name, &content(7, len)[..]).unwrap();
        assert_eq!(
            (info.name.as_str(), info.len, info.version),
            (name, len as u64, 1)
        );
    }
    let (root, generation) = (vault.root(), vault.generation());
    drop(vault);
    let vault = bench.open().unwrap();
    assert_eq!((vault.root(), vault.generation()), (root, generation));
    let names: Vec<_> = vault.list().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["a/b/more", "a/chunk", "a/one", "empty"]);
    assert_eq!(read(&vault, "a/b/more").unwrap(), content(7, 12_300));
    // An empty object is there; a missing one is not.
    assert_eq!(read(&vault, "empty").unwrap(), b"");
    assert!(matches!(read(&vault, "emptier"), Err(VaultError::NotFound)));
}

#[test]
fn replacing_and_removing_leave_no_file_behind() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"one"[..]).unwrap();
    let info = vault.put("a", &b"two"[..]).unwrap();
    assert_eq!(info.version, 2);
    assert_eq!(read(&vault, "a").unwrap(), b"two");
    bench.only_file("objects");
    vault.remove("a").unwrap();
    assert!(vault.list().is_empty());
    assert!(matches!(vault.remove("a"), Err(VaultError::NotFound)));
    assert_eq!(
        std::fs::read_dir(bench.path().join("objects"))
            .unwrap()
            .count(),
        0
    );
    bench.only_file("index");
}

#[test]
fn many_objects_are_put_in_one_commit_or_not_at_all() {
    let bench = Bench::new();
    let mut vault = bench.create();
    let before = vault.generation();
    vault
        .put_all((0..50).map(|i| (format!("n/{i}"), io::repeat(i as u8).take(5000))))
        .unwrap();
    assert_eq!((vault.generation(), vault.list().len()), (before + 1, 50));
    let refused = vault.put_all([("good", &b"x"[..]), ("n/3/below-a-file", &b"x"[..])]);
    assert!(matches!(
        refused,
        Err(VaultError::Name(NameError::Conflict))
    ));
    assert_eq!((vault.generation(), vault.list().len()), (before + 1, 50));
    assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0);
}

#[test]
fn a_reader_that_fails_changes_nothing() {
    struct Failing(usize);
    impl Read for Failing {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(buf.len())
        }
    }
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"old"[..]).unwrap();
    assert!(matches!(
        vault.put("a", Failing(3)),
        Err(VaultError::Transfer(_))
    ));
    assert_eq!(read(&vault, "a").unwrap(), b"old");
    bench.only_file("objects");
}

#[test]
fn names_with_tricks_are_refused() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a/b", &b""[..]).unwrap();
    for name in ["", "/a", "../a", "a/../b", "a\0", "a", "a/b/c"] {
        assert!(
            matches!(vault.put(name, &b""[..]), Err(VaultError::Name(_))),
            "{name:?}"
        );
    }
    vault.put("a-b", &b""[..]).unwrap();
}

#[test]
fn a_second_writer_is_refused_and_readers_are_not() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"x"[..]).unwrap();
    assert!(matches!(bench.write(), Err(VaultError::Locked)));
    let mut reader = bench.open().unwrap();
    bench.open().unwrap();
    assert!(matches!(
        reader.put("b", &b""[..]),
        Err(VaultError::ReadOnly)
    ));
    assert!(matches!(reader.remove("a"), Err(VaultError::ReadOnly)));
    // What a reader may still need stays until it is gone.
    vault.remove("a").unwrap();
    assert_eq!(read(&reader, "a").unwrap(), b"x");
    drop((vault, reader));
    let vault = bench.write().unwrap();
    assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0);
}

#[test]
fn a_vault_appears_whole_or_not_at_all() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path()).unwrap();
    let refused = Vault::create(&bench.path(), &bench.kek(), CreateOptions::default());
    assert!(matches!(refused, Err(VaultError::Exists)));
    let missing = bench.dir.path().join("none/v");
    assert!(Vault::create(&missing, &bench.kek(), CreateOptions::default()).is_err());
    assert_eq!(std::fs::read_dir(bench.dir.path()).unwrap().count(), 1);
}

#[test]
fn what_is_no_vault_is_called_so() {
    let bench = Bench::new();
    assert!(matches!(bench.open(), Err(VaultError::NotAVault)));
    std::fs::create_dir_all(bench.path().join("objects")).unwrap();
    assert!(matches!(bench.open(), Err(VaultError::NotAVault)));
    std::fs::remove_dir_all(bench.path()).unwrap();
    std::fs::write(bench.path(), b"a file").unwrap();
    assert!(matches!(bench.open(), Err(VaultError::NotAVault)));
}

#[test]
fn neither_names_nor_content_are_visible_in_the_store() {
    let bench = Bench::new();
    let options = CreateOptions::default();
    let mut vault = Vault::create(&bench.path(), &bench.kek(), options).unwrap();
    let secret = b"patient Jane Roe, born 1970-01-01";
    let name = "wards/oncology/jane-roe.txt";
    vault.put(name, &secret[..]).unwrap();
    vault.put("wards/other", &secret.repeat(1000)[..]).unwrap();
    let holds = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|w| w == what);
    for (path, bytes) in bench.files() {
        for what in ["oncology", "jane-roe", "patient", "Jane Roe"] {
            assert!(
                !holds(&bytes, what.as_bytes()),
                "{what} is in {}",
                path.display()
            );
            assert!(!path.to_string_lossy().contains(what));
        }
    }
    std::fs::remove_file(
        &bench
            .files()
            .iter()
            .find(|f| f.0.starts_with(bench.path().join("objects")))
            .unwrap()
            .0,
    )
    .unwrap();
    let names = [name, "wards/other"];
    let damaged = names.map(|n| read(&vault, n).err().map(|e| format!("{e:?} {e}")));
    // An error names the object that the holder of the open vault asked for, and no other.
    let (asked, other, told) = match &damaged {
        [Some(told), None] => (names[0], names[1], told),
        [None, Some(told)] => (names[1], names[0], told),
        _ => panic!("one file was removed: {damaged:?}"),
    };
    assert!(told.contains(asked) && !told.contains(other) && !told.contains("Jane Roe"));
}

#[test]
fn lengths_of_about_a_size_look_alike() {
    let bench = Bench::new();
    let options = CreateOptions {
        chunk: ChunkSize::KiB4,
        padding: Padding::Padme,
    };
    let mut vault = Vault::create(&bench.path(), &bench.kek(), options).unwrap();
    vault.put("a", &content(1, 100_400)[..]).unwrap();
    vault.put("b", &content(2, 102_399)[..]).unwrap();
    let objects = bench.path().join("objects");
    let mut lengths = std::fs::read_dir(objects)
        .unwrap()
        .map(|f| f.unwrap().metadata().unwrap().len());
    assert_eq!(lengths.next(), lengths.next());
    assert_eq!(read(&vault, "a").unwrap(), content(1, 100_400));
    assert_eq!(read(&vault, "b").unwrap(), content(2, 102_399));
}

#[test]
fn keys_live_in_protected_memory() {
    let bench = Bench::new();
    let vault = bench.create();
    assert!(vault.protection() >= MemoryProtection::Locked);
}

#[test]
fn the_caller_s_clock_dates_objects() {
    let bench = Bench::new();
    bench.create();
    let clock = std::sync::Arc::new(|| 1_234_567_890u64);
    let options = OpenOptions {
        access: Access::ReadWrite,
        clock,
        ..OpenOptions::default()
    };
    let mut vault = Vault::open_with(&bench.path(), &bench.kek(), options).unwrap();
    assert_eq!(vault.put("a", &b""[..]).unwrap().modified, 1_234_567_890);
}

#[test]
fn verification_reads_everything_and_says_how_far_it_is() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, 10_000)[..]).unwrap();
    vault.put("b", &content(2, 5)[..]).unwrap();
    let mut last = None;
    let verified = vault.verify(|progress| last = Some(progress)).unwrap();
    assert_eq!(
        (verified.objects, verified.bytes, verified.orphans),
        (2, 10_005, 0)
    );
    let last = last.unwrap();
    assert_eq!((last.objects, last.bytes), (last.of_objects, last.of_bytes));
}

#[test]
fn equal_content_put_twice_shares_no_ciphertext() {
    let bench = Bench::new();
    let mut vault = bench.create();
    let mut seen = std::collections::HashSet::new();
    for name in ["a", "b", "a", "a"] {
        vault.put(name, &vec![7; 8192][..]).unwrap();
        for (path, bytes) in bench.files() {
            if path.starts_with(bench.path().join("objects")) {
                seen.extend(bytes[96..96 + 8192].chunks_exact(16).map(<[u8]>::to_vec));
            }
        }
    }
    // Four keys, 512 blocks each: had a key and nonce come twice, so had the blocks.
    assert_eq!(seen.len(), 4 * 512);
}

#[test]
fn a_reader_that_opens_while_a_writer_works_sees_one_state_or_the_next() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(0, 6000)[..]).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for seed in 1..60 {
                vault.put("a", &content(seed, 6000)[..]).unwrap();
            }
        });
        while !writer.is_finished() {
            let found = bench.open().unwrap();
            let version = found.info("a").unwrap().version;
            assert_eq!(read(&found, "a").unwrap(), content(version as u8 - 1, 6000));
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_stretch_reads_as_the_same_stretch_of_the_content(
        len in 0usize..40_000,
        padded: bool,
        reads in proptest::collection::vec((0u64..45_000, 0usize..20_000), 1..12),
    ) {
        let bench = Bench::new();
        let padding = if padded { Padding::Padme } else { Padding::None };
        let options = CreateOptions { chunk: ChunkSize::KiB4, padding };
        let mut vault = Vault::create(&bench.path(), &bench.kek(), options).unwrap();
        let content = content(9, len);
        vault.put("a", &content[..]).unwrap();
        let object = vault.object("a").unwrap();
        for (offset, count) in reads {
            let mut buf = vec![0xAA; count];
            let read = object.read_at(&mut buf, offset).unwrap();
            let start = (offset as usize).min(len);
            prop_assert_eq!(&buf[..read], &content[start..(start + count).min(len)]);
        }
    }
}

#[test]
fn an_object_of_many_chunk_groups_comes_back() {
    let bench = Bench::new();
    let mut vault = bench.create();
    // 600 chunks: three groups, and more than one batch of the writer.
    let long = content(3, 600 * 4096 + 17);
    vault.put("long", &long[..]).unwrap();
    assert_eq!(read(&vault, "long").unwrap(), long);
    for len in [
        512 * 1024 - 1,
        512 * 1024,
        512 * 1024 + 1,
        508 * 1024,
        508 * 1024 + 1,
    ] {
        vault.put("edge", &long[..len]).unwrap();
        assert_eq!(read(&vault, "edge").unwrap(), &long[..len], "{len}");
    }
}
