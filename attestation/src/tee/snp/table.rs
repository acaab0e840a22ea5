//! The certificate table that a host may hand out with a report.
//!
//! Follows "Guest Hypervisor Communication Block Standardization", SNP Extended Guest Request: an
//! array of {GUID, u32 offset, u32 length}, little endian, ended by a zero GUID; the certificates
//! follow. The kernel passes it on as `auxblob`. It comes from the host and is not signed.

use crate::evidence::{Endorsements, EvidenceError};

const ENTRY: usize = 24;
/// Entries of a genuine table: ARK, ASK, ASVK, VCEK, VLEK, CRL and the terminator.
const MAX_ENTRIES: usize = 16;

const ARK: [u8; 16] = *b"\xc0\xb4\x06\xa4\xa8\x03\x49\x52\x97\x43\x3f\xb6\x01\x4c\xd0\xae";
const ASK: [u8; 16] = *b"\x4a\xb7\xb3\x79\xbb\xac\x4f\xe4\xa0\x2f\x05\xae\xf3\x27\xc7\x82";
const VCEK: [u8; 16] = *b"\x63\xda\x75\x8d\xe6\x64\x45\x64\xad\xc5\xf4\xb9\x3b\xe8\xac\xcd";
const VLEK: [u8; 16] = *b"\xa8\x07\x4b\xc2\xa2\x5a\x48\x3e\xaa\xe6\x39\xc0\x45\xa0\xb8\xa1";

/// The certificates of a table, each a slice of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateTable<'a> {
    /// The root.
    pub ark: Option<&'a [u8]>,
    /// The intermediate of VCEKs.
    pub ask: Option<&'a [u8]>,
    /// The key of a chip.
    pub vcek: Option<&'a [u8]>,
    /// The key of a provider.
    pub vlek: Option<&'a [u8]>,
}

/// Reads a certificate table; empty input is an empty table.
///
/// Entries of unknown GUIDs are passed over.
///
/// # Errors
///
/// [`EvidenceError::CertificateTable`] if it has no terminator, more than 16 entries, an entry that
/// reaches outside of it, into its header or into another entry, or a GUID twice.
pub fn certificate_table(table: &[u8]) -> Result<CertificateTable<'_>, EvidenceError> {
    use EvidenceError::CertificateTable as Wrong;
    let mut certificates = CertificateTable::default();
    if table.is_empty() {
        return Ok(certificates);
    }
    let entries = entries(table)?;
    let header = entries.len().saturating_add(1).saturating_mul(ENTRY);
    let mut taken: Vec<(usize, usize)> = Vec::with_capacity(entries.len());
    let mut seen: Vec<[u8; 16]> = Vec::with_capacity(entries.len());
    for (guid, offset, length) in entries {
        let end = offset
            .checked_add(length)
            .ok_or(Wrong("an entry ends beyond the table"))?;
        let certificate = table
            .get(offset..end)
            .ok_or(Wrong("an entry ends beyond the table"))?;
        if offset < header {
            return Err(Wrong("an entry begins inside the header"));
        }
        if taken.iter().any(|(from, to)| offset < *to && *from < end) {
            return Err(Wrong("two entries overlap"));
        }
        if seen.contains(&guid) {
            return Err(Wrong("a GUID occurs twice"));
        }
        taken.push((offset, end));
        seen.push(guid);
        match guid {
            ARK => certificates.ark = Some(certificate),
            ASK => certificates.ask = Some(certificate),
            VCEK => certificates.vcek = Some(certificate),
            VLEK => certificates.vlek = Some(certificate),
            _ => {}
        }
    }
    Ok(certificates)
}

impl CertificateTable<'_> {
    /// The certificates as endorsements of a report signed by a VCEK, or else by a VLEK.
    ///
    /// The ASVK has no GUID of its own; it comes from [`crate::VerifierBuilder::endorsement`].
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if one is larger than any genuine certificate.
    pub fn endorsements(&self, by_vlek: bool) -> Result<Endorsements, EvidenceError> {
        let mut endorsements = Endorsements::default();
        let (vek, intermediate) = if by_vlek {
            (self.vlek, None)
        } else {
            (self.vcek, self.ask)
        };
        if let Some(der) = vek {
            endorsements = endorsements.with_vek(der.to_vec())?;
        }
        if let Some(der) = intermediate {
            endorsements = endorsements.with_intermediate(der.to_vec())?;
        }
        if let Some(der) = self.ark {
            endorsements = endorsements.with_root(der.to_vec())?;
        }
        Ok(endorsements)
    }
}

type Entry = ([u8; 16], usize, usize);

fn entries(table: &[u8]) -> Result<Vec<Entry>, EvidenceError> {
    use EvidenceError::CertificateTable as Wrong;
    let mut entries = Vec::new();
    let (rows, _) = table.as_chunks::<ENTRY>();
    for row in rows {
        let [guid @ .., o0, o1, o2, o3, l0, l1, l2, l3] = *row;
        if guid == [0; 16] {
            return Ok(entries);
        }
        if entries.len() >= MAX_ENTRIES {
            return Err(Wrong("more than 16 entries"));
        }
        let offset = u32::from_le_bytes([o0, o1, o2, o3]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let beyond = |_| Wrong("an entry ends beyond the table");
        entries.push((
            guid,
            usize::try_from(offset).map_err(beyond)?,
            usize::try_from(length).map_err(beyond)?,
        ));
    }
    Err(Wrong("no terminator"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(rows: &[([u8; 16], u32, u32)], rest: &[u8]) -> Vec<u8> {
        let mut table = Vec::new();
        for (guid, offset, length) in rows {
            table.extend_from_slice(guid);
            table.extend_from_slice(&offset.to_le_bytes());
            table.extend_from_slice(&length.to_le_bytes());
        }
        table.extend_from_slice(&[0; ENTRY]);
        table.extend_from_slice(rest);
        table
    }

    fn refusal(table: &[u8]) -> &'static str {
        match certificate_table(table) {
            Err(EvidenceError::CertificateTable(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn certificates_are_found_by_their_guids() {
        let bytes = table(&[(VCEK, 72, 3), (ARK, 75, 2)], b"vekrk");
        let certificates = certificate_table(&bytes).unwrap();
        assert_eq!(certificates.vcek, Some(&b"vek"[..]));
        assert_eq!(certificates.ark, Some(&b"rk"[..]));
        assert_eq!(certificates.ask, None);
        assert_eq!(certificate_table(&[]).unwrap(), CertificateTable::default());
    }

    #[test]
    fn a_table_that_lies_about_its_entries_is_refused() {
        assert_eq!(
            refusal(&table(&[(VCEK, 72, 3), (VCEK, 75, 1)], b"vekx")),
            "a GUID occurs twice"
        );
        assert_eq!(
            refusal(&table(&[(VCEK, 72, 3), (ASK, 74, 2)], b"vekx")),
            "two entries overlap"
        );
        assert_eq!(
            refusal(&table(&[(VCEK, 20, 3)], b"vek")),
            "an entry begins inside the header"
        );
        let beyond = "an entry ends beyond the table";
        assert_eq!(refusal(&table(&[(VCEK, 48, 4)], b"vek")), beyond);
        assert_eq!(
            refusal(&table(&[(VCEK, u32::MAX, u32::MAX)], b"vek")),
            beyond
        );
        assert_eq!(refusal(&[1; 240]), "no terminator");
        assert_eq!(refusal(&[1; 24 * 20]), "more than 16 entries");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), rows in 0_u8..8) {
            let _ = certificate_table(&bytes);
            let rows: Vec<_> = (0..rows).map(|row| ([row + 1; 16], u32::from(row) * 40, 40)).collect();
            let _ = certificate_table(&table(&rows, &bytes));
        }
    }
}
