//! TCB info and QE identity of the form that Intel's service gives.

use serde_json::{Value, json};

use super::platform::Key;
use crate::attester::AttestError;
use crate::encoding::Hex;
use crate::time::UnixTime;

/// Intel's signer of quoting enclaves.
pub(crate) const QE_SIGNER: Hex<32> = Hex(
    *b"\xdc\x9e\x2a\x7c\x6f\x94\x8f\x17\x47\x4e\x34\xa7\xfc\x43\xed\x03\x0f\x7c\x15\x63\xf1\xba\xbd\xdf\x63\x40\xc8\x2e\x0e\x54\xa8\xc5",
);

/// A document with the signature over its exact bytes.
pub(crate) fn signed(name: &str, value: &Value, by: &Key) -> Result<Vec<u8>, AttestError> {
    let inner = value.to_string();
    let mut signature = [0; 64];
    signature.copy_from_slice(&by.sign(inner.as_bytes())?);
    let signature = Hex(signature);
    Ok(format!(r#"{{"{name}": {inner} ,"signature":"{signature}"}}"#).into_bytes())
}

/// Two levels of the platform, two of the module: out of date, and up to date.
pub(crate) fn tcb_info(issued: UnixTime, next_update: UnixTime) -> Value {
    let components = |svns: [u8; 8]| {
        let mut all = [0; 16];
        all[..8].copy_from_slice(&svns);
        Value::from(all.map(|svn| json!({ "svn": svn })).to_vec())
    };
    let module = json!({
        "mrsigner": "00".repeat(48), "attributes": "00".repeat(8), "attributesMask": "FF".repeat(8),
    });
    let mut identity = module.clone();
    identity["id"] = json!("TDX_01");
    identity["tcbLevels"] = json!([
        // The order must not matter, so the higher level comes last.
        {"tcb": {"isvsvn": 4}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "OutOfDate",
            "advisoryIDs": ["INTEL-SA-01036"]},
        {"tcb": {"isvsvn": 6}, "tcbDate": "2024-11-13T00:00:00Z", "tcbStatus": "UpToDate"},
    ]);
    json!({
        "id": "TDX", "version": 3, "tcbType": 0, "tcbEvaluationDataNumber": 18,
        "issueDate": issued.to_string(), "nextUpdate": next_update.to_string(),
        "fmspc": "90C06F000000", "pceId": "0000",
        "tdxModule": module, "tdxModuleIdentities": [identity],
        "tcbLevels": [
            {
                "tcb": {"sgxtcbcomponents": components([2, 2, 2, 2, 3, 1, 0, 5]), "pcesvn": 5,
                    "tdxtcbcomponents": components([5, 0, 2, 0, 0, 0, 0, 0])},
                "tcbDate": "2018-01-04T00:00:00Z", "tcbStatus": "OutOfDate",
                "advisoryIDs": ["INTEL-SA-01079", "INTEL-SA-01036"],
            },
            {
                "tcb": {"sgxtcbcomponents": components([3, 3, 2, 2, 4, 1, 0, 5]), "pcesvn": 13,
                    "tdxtcbcomponents": components([5, 0, 3, 0, 0, 0, 0, 0])},
                "tcbDate": "2024-11-13T00:00:00Z", "tcbStatus": "UpToDate",
            },
        ],
    })
}

/// Two levels of the quoting enclave, likewise.
pub(crate) fn qe_identity(issued: UnixTime, next_update: UnixTime) -> Value {
    json!({
        "id": "TD_QE", "version": 2, "tcbEvaluationDataNumber": 18,
        "issueDate": issued.to_string(), "nextUpdate": next_update.to_string(),
        "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_SIGNER.to_string().to_uppercase(), "isvprodid": 2,
        "tcbLevels": [
            {"tcb": {"isvsvn": 4}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "OutOfDate",
                "advisoryIDs": ["INTEL-SA-00999"]},
            {"tcb": {"isvsvn": 6}, "tcbDate": "2024-11-13T00:00:00Z", "tcbStatus": "UpToDate"},
        ],
    })
}
