//! Certificates in text form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::evidence::MAX_CERTIFICATE;

/// The most certificates of one file.
const MAX_CERTIFICATES: usize = 16;

/// The certificates of a PEM file (RFC 7468), DER, in order; `None` if it holds anything else, none,
/// or more than 16.
#[must_use]
pub fn certificates_from_pem(pem: &[u8]) -> Option<Vec<Vec<u8>>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut rest = std::str::from_utf8(pem).ok()?.trim();
    let mut certificates = Vec::new();
    while !rest.is_empty() {
        let (body, after) = rest.strip_prefix(BEGIN)?.split_once(END)?;
        let body: Vec<u8> = body
            .bytes()
            .filter(|byte| !byte.is_ascii_whitespace())
            .collect();
        if certificates.len() >= MAX_CERTIFICATES || body.len() / 4 > MAX_CERTIFICATE / 3 {
            return None;
        }
        certificates.push(STANDARD.decode(body).ok()?);
        rest = after.trim_start();
    }
    (!certificates.is_empty()).then_some(certificates)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_certificates_and_nothing_else() {
        let one = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";
        let read = |text: &str| certificates_from_pem(text.as_bytes());
        assert_eq!(read(one).unwrap(), [[1, 2, 3]]);
        assert_eq!(read(&format!("\n{one}\n{one}")).unwrap().len(), 2);
        let truncated = one.trim_end().strip_suffix('-').unwrap();
        for wrong in [
            "",
            "x",
            truncated,
            &format!("{one}x"),
            &one.replace('A', "="),
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(read(&one.repeat(17)), None);
        let huge = one.replace("AQID", &"AAAA".repeat(MAX_CERTIFICATE));
        assert_eq!(read(&huge), None);
    }
}
