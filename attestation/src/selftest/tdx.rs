//! What can be changed about a TDX quote and its collateral.

use super::SelftestError;
use super::mutation::{Bench, Field, Subject, certificate_fields, crl_fields, turned, values};
use super::vectors::Vectors;
use crate::appraisal::{Claims, TdxClaims};
use crate::encoding::Hex;
use crate::evidence::Endorsements;
use crate::reference::{ReferenceValues, TdxReferenceValues};
use crate::time::UnixTime;

pub(super) fn mutate(vectors: &Vectors, bench: &mut Bench) -> Result<(), SelftestError> {
    let cases = vectors.tdx()?;
    // A quote of version 4 and one of version 5, both on platforms that are up to date.
    for name in ["d0ee491c/e708dafb", "cf77a6e9/c5e1117e"] {
        let case = cases.iter().find(|case| case.name.starts_with(name));
        let case = case.ok_or_else(|| vectors.wrong("tdx/cases.json", "a quote is missing"))?;
        let mut subject = Subject::of(case);
        let Ok(appraisal) = subject.appraise() else {
            continue;
        };
        subject.reference = ReferenceValues::naming(&appraisal);
        let Claims::Tdx(claims) = appraisal.claims else {
            continue;
        };
        if !bench.starts_affirmed(&case.name, &subject) {
            continue;
        }
        quote(&case.name, &subject, bench);
        collateral(&case.name, &subject, bench);
        asked(&case.name, &subject, &claims, bench);
        times(&case.name, &subject, bench);
    }
    Ok(())
}

const HEADER: [(&str, usize, usize, &str); 6] = [
    ("version", 0, 2, "quote-version"),
    ("attestation key type", 2, 2, "quote-key-type"),
    ("TEE type", 4, 4, "quote-tee-type"),
    ("SVNs of QE and PCE", 8, 4, "signature"),
    ("QE vendor", 12, 16, "quote-vendor"),
    ("user data", 28, 20, "signature"),
];

/// Of a TD report of TDX 1.0; what 1.5 adds follows.
const BODY: [(&str, usize, usize); 16] = [
    ("TEE_TCB_SVN", 0, 16),
    ("MRSEAM", 16, 48),
    ("MRSIGNERSEAM", 64, 48),
    ("SEAMATTRIBUTES", 112, 8),
    ("TDATTRIBUTES", 120, 8),
    ("XFAM", 128, 8),
    ("MRTD", 136, 48),
    ("MRCONFIGID", 184, 48),
    ("MROWNER", 232, 48),
    ("MROWNERCONFIG", 280, 48),
    ("RTMR0", 328, 48),
    ("RTMR1", 376, 48),
    ("RTMR2", 424, 48),
    ("RTMR3", 472, 48),
    ("REPORTDATA", 520, 64),
    ("TEE_TCB_SVN2, MRSERVICETD", 584, 64),
];

/// Of the report that the quoting enclave gives about itself.
const QE_REPORT: [(&str, usize, usize); 8] = [
    ("CPUSVN", 0, 16),
    ("MISCSELECT", 16, 4),
    ("ATTRIBUTES", 48, 16),
    ("MRENCLAVE", 64, 32),
    ("MRSIGNER", 128, 32),
    ("ISVPRODID", 256, 2),
    ("ISVSVN", 258, 2),
    ("REPORTDATA", 320, 64),
];

/// The quote as an attacker can change it, who cannot sign.
fn quote(case: &str, subject: &Subject, bench: &mut Bench) {
    let bytes = &subject.report;
    let is_v5 = bytes.first() == Some(&5);
    let (body, body_length) = if is_v5 { (54, 648) } else { (48, 584) };
    let data = body + body_length + 4;
    let qe = data + 128 + 6;
    let mut fields: Vec<Field> = Vec::new();
    let mut add = |name: String, offset, length, reason| {
        fields.push(Field {
            name,
            offset,
            length,
            reason,
        });
    };
    for (name, offset, length, reason) in HEADER {
        add(format!("header, {name}"), offset, length, reason);
    }
    if is_v5 {
        add("body type".to_owned(), 48, 2, "quote-body");
        add("body size".to_owned(), 50, 4, "quote-body");
    }
    for (name, offset, length) in BODY {
        if offset + length <= body_length {
            add(format!("body, {name}"), body + offset, length, "signature");
        }
    }
    add("signature".to_owned(), data, 64, "signature");
    add("attestation key".to_owned(), data + 64, 64, "qe-binding");
    add(
        "certification type".to_owned(),
        data + 128,
        2,
        "quote-certification",
    );
    for (name, offset, length) in QE_REPORT {
        add(
            format!("QE report, {name}"),
            qe + offset,
            length,
            "qe-signature",
        );
    }
    add(
        "QE report signature".to_owned(),
        qe + 384,
        64,
        "qe-signature",
    );
    add(
        "QE authentication data".to_owned(),
        qe + 450,
        32,
        "qe-binding",
    );
    add(
        "inner certification type".to_owned(),
        qe + 482,
        2,
        "quote-certification",
    );
    for field in &fields {
        for (value, changed) in values(bytes, field) {
            let mut other = subject.clone();
            other.report = changed;
            bench.try_one(
                case,
                format!("{}: {value}", field.name),
                field.reason,
                &other,
            );
        }
    }
    let mut try_bytes = |change: &str, reason: &str, edit: &dyn Fn(&mut Vec<u8>)| {
        let mut other = subject.clone();
        edit(&mut other.report);
        bench.try_one(case, format!("quote {change}"), reason, &other);
    };
    try_bytes("cut", "quote-truncated", &|quote| {
        while quote.last() == Some(&0) {
            quote.pop();
        }
        quote.truncate(quote.len() / 2);
    });
    try_bytes("prolonged", "quote-trailing", &|quote| quote.push(1));
    // One letter of the certificates' base64: still base64, another certificate.
    let pem = qe + 488;
    try_bytes(
        "with another letter in its PCK",
        "certificate-signature",
        &|quote| {
            // Well within the public key, after the line with the names.
            if let Some(letter) = quote.get_mut(pem + 28 + 700) {
                *letter = if *letter == b'A' { b'B' } else { b'A' };
            }
        },
    );
}

type Take = fn(&Endorsements) -> Option<&[u8]>;
type Put = fn(Endorsements, Vec<u8>) -> Result<Endorsements, crate::EvidenceError>;

fn collateral(case: &str, subject: &Subject, bench: &mut Bench) {
    let documents: [(&str, Take, Put); 2] = [
        (
            "TCB info",
            Endorsements::tcb_info,
            Endorsements::with_tcb_info,
        ),
        (
            "QE identity",
            Endorsements::qe_identity,
            Endorsements::with_qe_identity,
        ),
    ];
    for (document, take, put) in documents {
        let Some(json) = take(&subject.certificates) else {
            continue;
        };
        let mut try_json = |change: String, reason: &str, changed: Vec<u8>| {
            if let Ok(certificates) = put(subject.certificates.clone(), changed) {
                let mut other = subject.clone();
                other.certificates = certificates;
                bench.try_one(case, format!("{document}, {change}"), reason, &other);
            }
        };
        for (name, changed) in digits_turned(json) {
            try_json(name, "collateral-signature", changed);
        }
        let half = json.get(..json.len() / 2).unwrap_or_default().to_vec();
        try_json("cut".to_owned(), "collateral-malformed", half);
        // The same said in other bytes.
        if let Ok(value) = serde_json::from_slice::<serde_json::Value>(json) {
            let spaced = serde_json::to_vec_pretty(&value).unwrap_or_default();
            try_json("written anew".to_owned(), "collateral-signature", spaced);
        }
    }
    if let Some(der) = subject.certificates.tcb_signing() {
        let [issuer, name] = ["certificate-issuer", "tcb-signing-name"];
        for mut field in certificate_fields(der, issuer, name, "certificate-signature") {
            // Which uses a certificate allows is looked at before who signed it.
            if field.name.starts_with("extension") {
                field.reason = "certificate-signature";
            }
            let changed = turned(der, &field);
            if let Ok(certificates) = subject.certificates.clone().with_tcb_signing(changed) {
                let mut other = subject.clone();
                other.certificates = certificates;
                let change = format!("TCB signing, {}: one bit turned", field.name);
                bench.try_one(case, change, field.reason, &other);
            }
        }
    }
    for (index, der) in subject.crls.iter().enumerate() {
        for field in crl_fields(der) {
            let mut other = subject.clone();
            if let Some(crl) = other.crls.get_mut(index) {
                *crl = turned(der, &field);
            }
            let change = format!("CRL {index}, {}: one bit turned", field.name);
            bench.try_one(case, change, field.reason, &other);
        }
        let mut other = subject.clone();
        other.crls.remove(index);
        bench.try_one(
            case,
            format!("CRL {index} left out"),
            "tdx.revocation",
            &other,
        );
    }
    let mut other = subject.clone();
    other.certificates = Endorsements::default();
    bench.try_one(case, "collateral left out".to_owned(), "tdx.tcb", &other);
}

/// The document with the last digit of one value turned, for every value of its first levels and
/// for its signature.
fn digits_turned(json: &[u8]) -> Vec<(String, Vec<u8>)> {
    const KEYS: [&str; 18] = [
        "version",
        "issueDate",
        "nextUpdate",
        "fmspc",
        "pceId",
        "tcbType",
        "tcbEvaluationDataNumber",
        "mrsigner",
        "attributes",
        "attributesMask",
        "miscselect",
        "miscselectMask",
        "isvprodid",
        "isvsvn",
        "pcesvn",
        "svn",
        "tcbDate",
        "signature",
    ];
    let digit = |byte: &u8| byte.is_ascii_digit();
    let mut all = Vec::new();
    for key in KEYS {
        let quoted = format!("\"{key}\"");
        let found = json
            .windows(quoted.len())
            .position(|it| it == quoted.as_bytes());
        let Some(start) = found.map(|at| at.saturating_add(quoted.len())) else {
            continue;
        };
        let rest = json.get(start..).unwrap_or_default();
        let Some(first) = rest.iter().position(digit) else {
            continue;
        };
        // The last digit of a number: turning the first could leave a zero in front.
        let number = rest.get(first..).unwrap_or_default();
        let digits = number.iter().take_while(|byte| digit(byte)).count();
        let at = start
            .saturating_add(first)
            .saturating_add(digits.saturating_sub(1));
        let mut changed = json.to_vec();
        if let Some(byte) = changed.get_mut(at) {
            // 0 and 1, 2 and 3, ... 8 and 9.
            *byte ^= 1;
        }
        all.push((format!("{key}: one digit turned"), changed));
    }
    all
}

/// What is asked for, changed so that this quote does not meet it.
fn asked(case: &str, subject: &Subject, claims: &TdxClaims, bench: &mut Bench) {
    let mut ask = |change: &str, reason: &str, edit: &dyn Fn(&mut TdxReferenceValues)| {
        let mut other = subject.clone();
        edit(&mut other.reference.tdx);
        bench.try_one(case, format!("asked: {change}"), reason, &other);
    };
    let digest = Some(vec![Hex([0x77; 48])]);
    ask("another MRTD", "tdx.mr-td", &|it| {
        it.measurements = digest.clone()
    });
    ask("no MRTD", "tdx.mr-td", &|it| it.measurements = Some(vec![]));
    ask("nothing of MRTD", "tdx.mr-td", &|it| it.measurements = None);
    ask("another RTMR0", "tdx.rtmr0", &|it| {
        it.rtmr0 = digest.clone()
    });
    ask("another RTMR1", "tdx.rtmr1", &|it| {
        it.rtmr1 = digest.clone()
    });
    ask("another RTMR2", "tdx.rtmr2", &|it| {
        it.rtmr2 = digest.clone()
    });
    ask("another RTMR3", "tdx.rtmr3", &|it| {
        it.rtmr3 = digest.clone()
    });
    ask("nothing of RTMR1", "tdx.rtmr1", &|it| it.rtmr1 = None);
    ask("nothing of RTMR2", "tdx.rtmr2", &|it| it.rtmr2 = None);
    ask("another MRCONFIGID", "tdx.mr-config-id", &|it| {
        it.mr_config_ids = digest.clone()
    });
    ask("another MROWNER", "tdx.mr-owner", &|it| {
        it.mr_owners = digest.clone()
    });
    ask("another MROWNERCONFIG", "tdx.mr-owner-config", &|it| {
        it.mr_owner_configs = digest.clone();
    });
    ask("another MRSEAM", "tdx.mr-seam", &|it| {
        it.mr_seams = digest.clone()
    });
    ask("another MRSIGNERSEAM", "tdx.mr-signer-seam", &|it| {
        it.mr_signer_seams = digest.clone()
    });
    ask("another processor", "tdx.ppid", &|it| {
        it.ppids = Some(vec![Hex([0x77; 16])])
    });
    ask("another family", "tdx.fmspc", &|it| {
        it.fmspcs = Some(vec![Hex([0x77; 6])])
    });
    ask("less state", "tdx.xfam", &|it| it.allowed_xfam = Some(3));
    ask("newer collateral", "collateral-evaluation", &|it| {
        it.minimum_tcb_evaluation = claims.tcb_evaluation.map(|number| number.saturating_add(1));
    });
    if claims.smt != Some(false) {
        ask("no SMT", "tdx.smt", &|it| it.forbid_smt = true);
    }
    for byte in [0, 31, 32, 63] {
        let mut other = subject.clone();
        if let Some(byte) = other.report_data.get_mut(byte) {
            *byte ^= 1;
        }
        bench.try_one(
            case,
            format!("asked: other report data, byte {byte}"),
            "binding",
            &other,
        );
    }
}

fn times(case: &str, subject: &Subject, bench: &mut Bench) {
    let Ok(appraisal) = subject.appraise() else {
        return;
    };
    let end = appraisal.not_after().plus_seconds(1);
    // Whichever of collateral and lists ends first.
    let mut late = subject.clone();
    late.now = end;
    let reason = match late.appraise() {
        Err(refusal) if ["collateral-expired", "crl-expired"].contains(&refusal.0) => refusal.0,
        _ => "collateral-expired",
    };
    for (change, now, reason) in [
        ("after the end", end, reason),
        (
            "before any certificate",
            UnixTime(0),
            "certificate-not-yet-valid",
        ),
    ] {
        let mut other = subject.clone();
        other.now = now;
        bench.try_one(case, format!("time: {change}"), reason, &other);
    }
}
