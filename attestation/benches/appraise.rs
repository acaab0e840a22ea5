//! What an appraisal costs, as a ratio to the signature checks that it cannot do without, and beside
//! peers that verify the same evidence.
//!
//! ```text
//! cargo bench -p casemate-attestation-differential --bench appraise
//! ```
//!
//! Every figure is the time that one in ten rounds stays below, the candidates taking turns: what else
//! runs on the machine only ever makes a round longer. The bare checks use the same keys, messages and signatures.

#![allow(clippy::unwrap_used)]

#[path = "checks.rs"]
mod checks;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use attestation::selftest::{Case, Vectors};
use attestation::{Evidence, UnixTime, Verifier};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use checks::{Check, public_key, verify};
use differential::{snp_verdict, tdx_collateral, tdx_verdict};
use ring::signature::ECDSA_P256_SHA256_FIXED;

/// The most that an appraisal may take, in times of its signature checks.
const BAR: f64 = 1.10;
const ROUNDS: usize = 400;

fn main() {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    let root = std::env::var_os("CASEMATE_VECTORS").map_or(beside, PathBuf::from);
    let Ok(vectors) = Vectors::open(&root) else {
        println!("no vectors in {}; set CASEMATE_VECTORS", root.display());
        return;
    };
    let mut met = true;
    met &= snp(&vectors);
    met &= tdx(&vectors);
    println!(
        "{}",
        if met {
            "all within the bar"
        } else {
            "over the bar"
        }
    );
}

fn snp(vectors: &Vectors) -> bool {
    let cases = vectors.snp().unwrap();
    let case = cases
        .iter()
        .find(|it| it.name.contains("genoa-v3-azure"))
        .unwrap();
    let endorsements = case.evidence.endorsements();
    let [vek, ask, ark] = [
        endorsements.vek(),
        endorsements.intermediate(),
        endorsements.root(),
    ]
    .map(|der| der.unwrap().to_vec());
    let report = case.evidence.report().to_vec();
    let chain = [
        Check::certificate(&ark, &ark),
        Check::certificate(&ask, &ark),
        Check::certificate(&vek, &ask),
    ];
    let signed = Check::report(&report, &vek);

    let plain = Verifier::builder().build().unwrap();
    let remembering = Verifier::builder().remember(64).build().unwrap();
    appraise(&remembering, case);
    let times = tenths([
        &mut || verify(chain.iter().chain([&signed])),
        &mut || appraise(&plain, case),
        &mut || verify([&signed]),
        &mut || appraise(&remembering, case),
        &mut || {
            snp_verdict(&report, &vek, &ask, &ark).unwrap();
        },
    ]);
    let [bare, whole, bare_cached, cached, sev] = times;
    println!("SEV-SNP, Genoa, report and chain");
    line("4 signature checks", bare, bare);
    let mut met = line("appraisal, chain included", whole, bare) <= BAR;
    line("sev 8.0.0, which checks less", sev, bare);
    println!("SEV-SNP, Genoa, chain seen before");
    line("1 signature check", bare_cached, bare_cached);
    met &= line("appraisal, chain remembered", cached, bare_cached) <= BAR;
    met
}

fn tdx(vectors: &Vectors) -> bool {
    let cases = vectors.tdx().unwrap();
    let case = cases
        .iter()
        .find(|it| it.name == "cf77a6e9/c5e1117e")
        .unwrap();
    let quote = case.evidence.report().to_vec();
    let endorsements = case.evidence.endorsements();
    let crls: Vec<&[u8]> = case.evidence.crls().collect();
    let [pck, authority, root] = pem_chain(&quote);
    let tcb_signing = endorsements.tcb_signing().unwrap();
    let chain = [
        Check::certificate(&root, &root),
        Check::certificate(&authority, &root),
        Check::certificate(&pck, &authority),
        Check::certificate(tcb_signing, &root),
    ];
    let rest = [
        Check::certificate(crls[0], &authority),
        Check::certificate(crls[1], &root),
        Check::document(endorsements.tcb_info().unwrap(), "tcbInfo", tcb_signing),
        Check::document(
            endorsements.qe_identity().unwrap(),
            "enclaveIdentity",
            tcb_signing,
        ),
        Check::qe_report(&quote, &pck),
        Check::quote(&quote),
    ];
    let root = vectors.read("tdx/ca/intel-sgx-root-ca.der").unwrap();
    let collateral = tdx_collateral(endorsements, [crls[0], crls[1]], &root).unwrap();

    let plain = Verifier::builder().build().unwrap();
    let remembering = Verifier::builder().remember(64).build().unwrap();
    appraise(&remembering, case);
    let times = tenths([
        &mut || verify(chain.iter().chain(&rest)),
        &mut || appraise(&plain, case),
        &mut || verify(&rest),
        &mut || appraise(&remembering, case),
        &mut || {
            tdx_verdict(&quote, &collateral, case.now, false).unwrap();
        },
    ]);
    let [bare, whole, bare_cached, cached, qvl] = times;
    println!("TDX, version 5, with collateral and two CRLs");
    line("10 signature checks", bare, bare);
    let mut met = line("appraisal, chain included", whole, bare) <= BAR;
    line("dcap-qvl 0.7.1", qvl, bare);
    println!("TDX, version 5, chain seen before");
    line("6 signature checks", bare_cached, bare_cached);
    met &= line("appraisal, chain remembered", cached, bare_cached) <= BAR;
    met
}

fn line(what: &str, time: Duration, bare: Duration) -> f64 {
    let ratio = time.as_secs_f64() / bare.as_secs_f64();
    println!(
        "  {what:<30} {:>8.1} µs  {ratio:>5.2}",
        time.as_secs_f64() * 1e6
    );
    ratio
}

fn appraise(verifier: &Verifier, case: &Case) {
    let (evidence, data, now): (&Evidence, _, UnixTime) =
        (&case.evidence, &case.report_data, case.now);
    black_box(verifier.appraise_bound_to(black_box(evidence), data, now)).unwrap();
}

fn tenths<const N: usize>(mut candidates: [&mut dyn FnMut(); N]) -> [Duration; N] {
    let mut times: [Vec<Duration>; N] = std::array::from_fn(|_| Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        for (candidate, times) in candidates.iter_mut().zip(&mut times) {
            let start = Instant::now();
            candidate();
            times.push(start.elapsed());
        }
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[ROUNDS / 10]
    })
}

impl Check {
    fn document(json: &[u8], name: &str, signer: &[u8]) -> Self {
        type Document = std::collections::BTreeMap<String, Box<serde_json::value::RawValue>>;
        let document: Document = serde_json::from_slice(json).unwrap();
        let signature: String = serde_json::from_str(document["signature"].get()).unwrap();
        Self {
            algorithm: &ECDSA_P256_SHA256_FIXED,
            key: public_key(signer),
            message: document[name].get().as_bytes().to_vec(),
            signature: signature
                .parse::<attestation::Hex<64>>()
                .unwrap()
                .0
                .to_vec(),
        }
    }

    fn qe_report(quote: &[u8], pck: &[u8]) -> Self {
        let at = QUOTE_SIGNATURE + 128 + 6;
        Self {
            algorithm: &ECDSA_P256_SHA256_FIXED,
            key: public_key(pck),
            message: quote[at..at + 384].to_vec(),
            signature: quote[at + 384..at + 448].to_vec(),
        }
    }

    fn quote(quote: &[u8]) -> Self {
        let key = &quote[QUOTE_SIGNATURE + 64..QUOTE_SIGNATURE + 128];
        Self {
            algorithm: &ECDSA_P256_SHA256_FIXED,
            key: [&[4], key].concat(),
            message: quote[..QUOTE_SIGNATURE - 4].to_vec(),
            signature: quote[QUOTE_SIGNATURE..QUOTE_SIGNATURE + 64].to_vec(),
        }
    }
}

/// Where the signature of a quote of version 5 about TDX 1.5 begins.
const QUOTE_SIGNATURE: usize = 48 + 6 + 648 + 4;

/// PCK, PCK CA and root of a quote.
fn pem_chain(quote: &[u8]) -> [Vec<u8>; 3] {
    let text = String::from_utf8_lossy(quote);
    let mut bodies = text.split("-----BEGIN CERTIFICATE-----").skip(1);
    std::array::from_fn(|_| {
        let body = bodies.next().unwrap().split("-----END").next().unwrap();
        STANDARD.decode(body.replace(['\n', '\r'], "")).unwrap()
    })
}
