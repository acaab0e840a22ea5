//! The real client against a service on loopback that answers in the vendors' shapes.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attestation::snp::{Product, TcbVersion};
use attestation::{EndorsementFolder, EndorsementName, Hex, Platform, UnixTime};

use crate::{Client, FetchError, Fetcher, Services};

/// 2026-03-01: certificates and lists of the vectors are valid then.
const NOW: UnixTime = UnixTime(1_772_323_200);

fn vectors() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors");
    let root = std::env::var_os("CASEMATE_VECTORS").map_or_else(|| beside.into(), PathBuf::from);
    if root.join("snp").is_dir() {
        return Some(root);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "no vectors in {}",
        root.display()
    );
    println!(
        "skipped: no vectors in {}; set CASEMATE_VECTORS",
        root.display()
    );
    None
}

/// An answer: everything that is sent, head and body.
type Answer = Vec<u8>;

fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    [head.as_bytes(), b"Connection: close\r\n\r\n", body].concat()
}

/// A service that gives these answers, one to each request, and remembers what it was asked for.
struct Mock {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Mock {
    fn answering(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        std::thread::spawn(move || {
            let mut answers = VecDeque::from(answers);
            while let (Some(answer), Ok((mut stream, _))) = (answers.pop_front(), listener.accept())
            {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let request = lines.next().unwrap().unwrap();
                // The headers, up to the empty line.
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                seen.lock().unwrap().push(request);
                let _ = stream.write_all(&answer);
            }
        });
        Self { address, asked }
    }

    fn services(&self) -> Services {
        Services {
            amd: self.address.clone(),
            intel: self.address.clone(),
            intel_root: self.address.clone(),
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

struct Fetched {
    result: Result<Vec<EndorsementName>, FetchError>,
    asked: Vec<String>,
    waits: Vec<Duration>,
    folder: EndorsementFolder,
    _place: tempfile::TempDir,
}

fn fetch(platform: &Platform, answers: Vec<Answer>) -> Fetched {
    let place = tempfile::tempdir().unwrap();
    let folder = EndorsementFolder::at(place.path().join("cache"));
    let mock = Mock::answering(answers);
    let waits = Rc::new(RefCell::new(Vec::new()));
    let waited = waits.clone();
    let wait = Box::new(move |time| waited.borrow_mut().push(time));
    let mut fetcher = Fetcher::new(Client::new(), mock.services(), folder.clone(), NOW, wait);
    let result = fetcher.fetch(platform);
    Fetched {
        result,
        asked: mock.asked(),
        waits: waits.take(),
        folder,
        _place: place,
    }
}

/// A platform whose keys are a provider's: only chain and list are asked for.
fn milan() -> Platform {
    Platform::Amd {
        product: Product::Milan,
        hwid: None,
        tcb: TcbVersion::default(),
    }
}

fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for chunk in der.chunks(3) {
        let mut bytes = [0; 3];
        bytes[..chunk.len()].copy_from_slice(chunk);
        let number = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        for digit in 0..4 {
            let place = (number >> (18 - 6 * digit)) & 63;
            text.push(if digit as usize > chunk.len() {
                '='
            } else {
                char::from(DIGITS[place as usize])
            });
        }
    }
    text + "\n-----END CERTIFICATE-----\n"
}

/// Chain and list as AMD's service gives them.
fn amd_answers(root: &std::path::Path) -> [Answer; 2] {
    let read = |path: &str| std::fs::read(root.join("snp").join(path)).unwrap();
    let chain =
        pem(&read("ca/sev-vlek-milan-c5e081f5.der")) + &pem(&read("ca/ark-milan-69d063b4.der"));
    let list = read("crl/crl-ark-milan-2025-05-06.der");
    [
        answer("200 OK", &[], chain.as_bytes()),
        answer("200 OK", &[], &list),
    ]
}

#[test]
fn what_is_missing_is_fetched_once_and_kept() {
    let Some(root) = vectors() else { return };
    let [chain, list] = amd_answers(&root);
    let fetched = fetch(&milan(), vec![chain, list.clone()]);
    let names = fetched.result.unwrap();
    assert_eq!(names.len(), 3);
    assert_eq!(fetched.asked[0], "GET /vlek/v1/Milan/cert_chain HTTP/1.1");
    assert_eq!(fetched.asked[1], "GET /vlek/v1/Milan/crl HTTP/1.1");
    for name in &names {
        assert!(fetched.folder.get(name, NOW).unwrap().is_some(), "{name:?}");
    }
    // Again: nothing is asked for. When the list has ended: only the list.
    let again = |now, answers| {
        let mock = Mock::answering(answers);
        let wait = Box::new(|_| {});
        let folder = fetched.folder.clone();
        let mut fetcher = Fetcher::new(Client::new(), mock.services(), folder, now, wait);
        (
            fetcher.fetch(&milan()).map(|names| names.len()),
            mock.asked().len(),
        )
    };
    assert!(matches!(again(NOW, vec![]), (Ok(0), 0)));
    let later = NOW.plus_seconds(400 * 86_400);
    // What the service has is past its end, too: an old list is not put in place of an old list.
    let (result, asked) = again(later, vec![list]);
    assert_eq!((result.unwrap_err().code(), asked), ("content", 1));
}

#[test]
fn a_busy_service_is_waited_for_as_long_as_it_asks() {
    let Some(root) = vectors() else { return };
    let [chain, list] = amd_answers(&root);
    let busy = |headers: &[(&str, &str)]| answer("429 Too Many Requests", headers, b"slow down");
    let answers = vec![
        busy(&[("Retry-After", "11")]),
        busy(&[]),
        answer("503 Service Unavailable", &[("Retry-After", "soon")], b""),
        chain,
        list,
    ];
    let fetched = fetch(&milan(), answers);
    assert_eq!(fetched.result.unwrap().len(), 3);
    assert_eq!(fetched.waits, [11, 4, 8].map(Duration::from_secs));
    // An hour is too long, and five times is often enough.
    let fetched = fetch(&milan(), vec![busy(&[("Retry-After", "3600")])]);
    assert_eq!(fetched.result.unwrap_err().code(), "too-busy");
    assert!(fetched.waits.is_empty());
    let fetched = fetch(&milan(), vec![busy(&[]); 6]);
    assert_eq!(fetched.result.unwrap_err().code(), "unavailable");
    assert_eq!(fetched.asked.len(), 5);
    assert_eq!(fetched.waits, [2, 4, 8, 16].map(Duration::from_secs));
}

#[test]
fn an_answer_that_is_not_what_was_asked_for_is_not_kept() {
    let Some(root) = vectors() else { return };
    let [chain, list] = amd_answers(&root);
    let code = |answers| {
        let fetched = fetch(&milan(), answers);
        let root = EndorsementName::AmdRoot(Product::Milan);
        let error = fetched.result.unwrap_err();
        (
            error.code(),
            fetched.folder.get(&root, NOW).unwrap().is_some(),
            fetched.asked.len(),
        )
    };
    let page = answer("200 OK", &[], b"<html>maintenance</html>");
    assert_eq!(code(vec![page.clone()]), ("content", false, 1));
    assert_eq!(code(vec![list]), ("content", false, 1));
    // What came before stays.
    assert_eq!(code(vec![chain.clone(), page]), ("content", true, 2));
    let gone = answer("404 Not Found", &[], b"");
    assert_eq!(code(vec![gone]), ("not-found", false, 1));
    let refused = answer("403 Forbidden", &[], b"");
    assert_eq!(code(vec![refused]), ("refused", false, 1));
    let elsewhere = answer("302 Found", &[("Location", "http://127.0.0.1:1/")], b"");
    assert_eq!(code(vec![elsewhere]).0, "refused");
    // The connection ends within the body, again and again.
    let truncated = chain[..chain.len() - 10].to_vec();
    assert_eq!(code(vec![truncated; 5]), ("unavailable", false, 5));
}

#[test]
fn a_chip_is_asked_for_by_what_amd_knows_it_by() {
    let turin = Platform::Amd {
        product: Product::Turin,
        hwid: Some(vec![0xab; 8]),
        tcb: TcbVersion {
            fmc: Some(1),
            bootloader: 2,
            tee: 3,
            snp: 4,
            microcode: 200,
        },
    };
    let fetched = fetch(&turin, vec![answer("404 Not Found", &[], b"")]);
    assert!(fetched.result.is_err());
    assert_eq!(
        fetched.asked[0],
        "GET /vcek/v1/Turin/abababababababab?fmcSPL=1&blSPL=2&teeSPL=3&snpSPL=4&ucodeSPL=200 HTTP/1.1"
    );
}

#[test]
fn collateral_comes_with_the_certificate_of_its_signer() {
    let Some(root) = vectors() else { return };
    let first = |folder: &str, prefix: &str| {
        let mut files: Vec<PathBuf> = std::fs::read_dir(root.join("tdx").join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_str().unwrap().contains(prefix))
            .collect();
        files.sort();
        files.pop().map(|path| std::fs::read(path).unwrap())
    };
    let Some(signing) = first("ca", "tcb-signing") else {
        panic!("no certificate of the signer among the vectors");
    };
    let escaped: String = pem(&signing)
        .bytes()
        .map(|byte| format!("%{byte:02X}"))
        .collect();
    let info = br#"{"tcbInfo":{"nextUpdate":"2026-04-01T00:00:00Z"},"signature":"00"}"#;
    let with_chain = answer("200 OK", &[("TCB-Info-Issuer-Chain", &escaped)], info);
    let platform = Platform::Intel {
        fmspc: Hex([0x90, 0xc0, 0x6f, 0, 0, 0]),
        by_platform_ca: true,
    };
    let gone = answer("404 Not Found", &[], b"");
    let fetched = fetch(&platform, vec![with_chain, gone.clone()]);
    assert_eq!(fetched.result.unwrap_err().code(), "not-found");
    assert_eq!(
        fetched.asked,
        [
            "GET /tdx/certification/v4/tcb?fmspc=90c06f000000 HTTP/1.1",
            "GET /tdx/certification/v4/qe/identity HTTP/1.1"
        ]
    );
    let kept = |name: &EndorsementName| fetched.folder.get(name, NOW).unwrap();
    assert_eq!(kept(&EndorsementName::TcbSigning), Some(signing));
    let name = EndorsementName::TcbInfo(Hex([0x90, 0xc0, 0x6f, 0, 0, 0]));
    assert_eq!(kept(&name).as_deref(), Some(&info[..]));
    // Without the chain nothing of the answer is kept.
    let fetched = fetch(&platform, vec![answer("200 OK", &[], info), gone]);
    assert_eq!(fetched.result.unwrap_err().code(), "content");
}
