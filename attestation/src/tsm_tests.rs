#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;
use crate::attester::Attester as _;
use crate::evidence::Tee;
use crate::tee::snp::SnpAttester;
use crate::tee::tdx::TdxAttester;

/// A model of the kernel: a directory is a request with a generation, a blob, and a provider that
/// may interfere.
#[derive(Default)]
struct FakeKernel {
    requests: Mutex<BTreeMap<String, FakeRequest>>,
    faults: Mutex<Vec<Trouble>>,
    made: Mutex<usize>,
    outblob: Vec<u8>,
    auxblob: Option<Vec<u8>>,
    provider: &'static str,
}

#[derive(Default)]
struct FakeRequest {
    generation: u64,
    inblob: Option<Vec<u8>>,
}

/// What goes wrong with one request.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    Nothing,
    SecondWriter,
    WouldBlock,
    Busy,
    Broken,
}

impl FakeKernel {
    fn reports(self) -> (TsmReports, Arc<Self>) {
        let kernel = Arc::new(self);
        (
            TsmReports {
                tree: Arc::clone(&kernel) as Arc<dyn Tree>,
            },
            kernel,
        )
    }

    fn fault(&self) -> Trouble {
        let made = *self.made.lock().unwrap();
        self.faults
            .lock()
            .unwrap()
            .get(made - 1)
            .copied()
            .unwrap_or(Trouble::Nothing)
    }
}

impl Tree for FakeKernel {
    fn root(&self) -> PathBuf {
        "/fake".into()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.requests.lock().unwrap().keys().cloned().collect())
    }

    fn make(&self, name: &str) -> io::Result<()> {
        *self.made.lock().unwrap() += 1;
        let previous = self
            .requests
            .lock()
            .unwrap()
            .insert(name.to_owned(), FakeRequest::default());
        assert!(previous.is_none(), "names of requests are not used twice");
        Ok(())
    }

    fn write(&self, name: &str, file: &str, bytes: &[u8]) -> io::Result<()> {
        assert_eq!(file, "inblob");
        if self.fault() == Trouble::Busy {
            return Err(ErrorKind::ResourceBusy.into());
        }
        let mut requests = self.requests.lock().unwrap();
        let request = requests.get_mut(name).ok_or(ErrorKind::NotFound)?;
        request.inblob = Some(bytes.to_vec());
        request.generation += 1;
        Ok(())
    }

    fn read(&self, name: &str, file: &str) -> io::Result<Vec<u8>> {
        let mut requests = self.requests.lock().unwrap();
        let request = requests.get_mut(name).ok_or(ErrorKind::NotFound)?;
        match file {
            "outblob" => {
                match self.fault() {
                    Trouble::WouldBlock => return Err(ErrorKind::WouldBlock.into()),
                    Trouble::Broken => return Err(ErrorKind::InvalidInput.into()),
                    Trouble::SecondWriter => request.generation += 1,
                    Trouble::Busy | Trouble::Nothing => {}
                }
                let inblob = request.inblob.as_ref().ok_or(ErrorKind::InvalidInput)?;
                let mut report = self.outblob.clone();
                if report.len() >= 0x90 {
                    report[0x50..0x90].copy_from_slice(inblob);
                }
                Ok(report)
            }
            "auxblob" => self.auxblob.clone().ok_or(ErrorKind::NotFound.into()),
            "provider" => Ok(format!("{}\n", self.provider).into_bytes()),
            "generation" => Ok(format!("{}\n", request.generation).into_bytes()),
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.requests
            .lock()
            .unwrap()
            .remove(name)
            .map(drop)
            .ok_or(ErrorKind::NotFound.into())
    }
}

fn kernel(faults: &[Trouble]) -> FakeKernel {
    let mut outblob = vec![0; 1184];
    outblob[0] = 3;
    FakeKernel {
        outblob,
        auxblob: Some(Vec::new()),
        provider: "sev_guest",
        faults: Mutex::new(faults.to_vec()),
        ..FakeKernel::default()
    }
}

#[test]
fn a_report_is_bound_to_what_was_written_and_leaves_nothing_behind() {
    let (reports, kernel) = kernel(&[]).reports();
    let report = reports.report(&[7; 64]).unwrap();
    assert_eq!(report.provider, "sev_guest");
    assert_eq!(report.outblob[0x50..0x90], [7; 64]);
    assert!(kernel.list().unwrap().is_empty());
    assert_eq!(*kernel.made.lock().unwrap(), 1);
}

#[test]
fn interference_is_answered_with_a_new_request() {
    for fault in [Trouble::SecondWriter, Trouble::WouldBlock, Trouble::Busy] {
        let (reports, kernel) = kernel(&[fault, fault]).reports();
        assert!(reports.report(&[7; 64]).is_ok());
        assert_eq!(*kernel.made.lock().unwrap(), 3);
        assert!(kernel.list().unwrap().is_empty());
    }
}

#[test]
fn endless_interference_ends_in_an_error_not_in_a_report() {
    for fault in [Trouble::SecondWriter, Trouble::WouldBlock, Trouble::Busy] {
        let (reports, kernel) = kernel(&[fault; 100]).reports();
        assert!(matches!(reports.report(&[7; 64]), Err(TsmError::Contended)));
        assert_eq!(*kernel.made.lock().unwrap(), 5);
        assert!(kernel.list().unwrap().is_empty());
    }
}

#[test]
fn any_other_error_is_final_and_names_the_step() {
    let (reports, kernel) = kernel(&[Trouble::Broken]).reports();
    let error = reports.report(&[7; 64]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read `outblob` in the report tree `/fake`"
    );
    assert_eq!(*kernel.made.lock().unwrap(), 1);
    assert!(kernel.list().unwrap().is_empty());
}

#[test]
fn requests_of_dead_processes_are_removed_and_others_are_not() {
    let (reports, kernel) = kernel(&[]).reports();
    let ours = format!("casemate-{}-00", std::process::id());
    // Process ids end at 2^22.
    for name in [
        "casemate-4294967294-00",
        &ours,
        "casemate-x",
        "other-4294967294-0",
    ] {
        kernel.make(name).unwrap();
    }
    reports.remove_stale();
    let mut left = kernel.list().unwrap();
    left.sort();
    assert_eq!(left, [&ours, "casemate-x", "other-4294967294-0"]);
}

#[test]
fn the_attester_takes_certificates_from_the_host_or_its_own() {
    let own = crate::Endorsements::default().with_vek(vec![1]).unwrap();
    let mut attester = SnpAttester::new(kernel(&[]).reports().0).with_endorsements(own);
    let evidence = attester.attest(&[7; 64]).unwrap();
    assert_eq!(evidence.tee(), Tee::SevSnp);
    assert_eq!(evidence.endorsements().vek(), Some(&[1][..]));

    let mut table = b"\x63\xda\x75\x8d\xe6\x64\x45\x64\xad\xc5\xf4\xb9\x3b\xe8\xac\xcd".to_vec();
    table.extend_from_slice(&[48, 0, 0, 0, 1, 0, 0, 0]);
    table.extend_from_slice(&[0; 24]);
    table.push(9);
    let host = FakeKernel {
        auxblob: Some(table),
        ..kernel(&[])
    };
    let own = crate::Endorsements::default().with_vek(vec![1]).unwrap();
    let mut attester = SnpAttester::new(host.reports().0).with_endorsements(own);
    let evidence = attester.attest(&[7; 64]).unwrap();
    assert_eq!(evidence.endorsements().vek(), Some(&[9][..]));
}

#[test]
fn a_provider_other_than_the_expected_one_is_refused() {
    let other = FakeKernel {
        provider: "tdx_guest",
        ..kernel(&[])
    };
    let mut attester = SnpAttester::new(other.reports().0);
    let error = attester.attest(&[7; 64]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "TEE provider `tdx_guest` is not supported"
    );
    let empty = FakeKernel {
        provider: "",
        ..kernel(&[])
    };
    assert!(matches!(
        empty.reports().0.provider(),
        Err(TsmError::Malformed("provider"))
    ));
}

#[test]
fn the_attester_for_tdx_gives_the_quote_without_the_hosts_padding() {
    let quote = crate::tee::tdx::quote_for_tests();
    let padded = [&quote[..], &[0; 3000]].concat();
    let tdx = |outblob: &[u8]| FakeKernel {
        provider: "tdx_guest",
        outblob: outblob.to_vec(),
        auxblob: None,
        ..kernel(&[])
    };
    let own = crate::Endorsements::default()
        .with_tcb_info(vec![1])
        .unwrap();
    let mut attester = TdxAttester::new(tdx(&padded).reports().0).with_endorsements(own);
    let evidence = attester.attest(&[7; 64]).unwrap();
    assert_eq!(evidence.tee(), Tee::Tdx);
    assert_eq!(evidence.endorsements().tcb_info(), Some(&[1][..]));
    assert_eq!(evidence.report().len(), quote.len());

    let mut attester = TdxAttester::new(tdx(&quote[1..]).reports().0);
    assert!(attester.attest(&[7; 64]).is_err());
    let mut attester = TdxAttester::new(kernel(&[]).reports().0);
    let error = attester.attest(&[7; 64]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "TEE provider `sev_guest` is not supported"
    );
}

#[test]
fn the_real_tree_makes_and_removes_directories_and_limits_what_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Configfs(folder.path().to_owned());
    tree.make("request").unwrap();
    assert!(tree.make("request").is_err(), "a request is never shared");
    assert_eq!(tree.list().unwrap(), ["request"]);
    assert!(
        tree.write("request", "inblob", &[0; 64]).is_err(),
        "the kernel makes the files"
    );
    let file = folder.path().join("request/outblob");
    std::fs::write(&file, vec![0; 64 * 1024]).unwrap();
    assert_eq!(tree.read("request", "outblob").unwrap().len(), 64 * 1024);
    std::fs::write(&file, vec![0; 64 * 1024 + 1]).unwrap();
    assert!(tree.read("request", "outblob").is_err());
    std::fs::remove_file(file).unwrap();
    tree.remove("request").unwrap();
    assert!(tree.list().unwrap().is_empty());
}
