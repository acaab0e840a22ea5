//! What a PCK certificate says of the platform.
//!
//! Follows "Intel SGX PCK Certificate and Certificate Revocation List Profile Specification",
//! section on the SGX extensions, OID 1.2.840.113741.1.13.1.

use der::Tag;

use crate::endorsement::{Certificate, Elements, X509Error, integer};

/// Content of the OID 1.2.840.113741.1.13.1.
pub(crate) const SGX_EXTENSIONS: &[u8] = b"\x2a\x86\x48\x86\xf8\x4d\x01\x0d\x01";

/// The SGX extensions of a PCK certificate, complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PckExtensions {
    /// Encrypted-in-hardware identity of the processor package.
    pub(crate) ppid: [u8; 16],
    /// SVNs of the sixteen SGX TCB components.
    pub(crate) components: [u8; 16],
    pub(crate) pce_svn: u16,
    pub(crate) cpu_svn: [u8; 16],
    pub(crate) pce_id: [u8; 2],
    pub(crate) fmspc: [u8; 6],
    /// Whether memory is protected as on multi-socket platforms, and whether its integrity is.
    pub(crate) sgx_type: u8,
    /// The platform; only under the Platform CA.
    pub(crate) platform_instance: Option<[u8; 16]>,
    /// Whether simultaneous multithreading is on; only under the Platform CA.
    pub(crate) smt: Option<bool>,
}

/// The name of the extension that is missing or malformed.
pub(super) fn read(pck: &Certificate<'_>) -> Result<PckExtensions, &'static str> {
    let value = pck.extension(SGX_EXTENSIONS).ok_or("SGX Extensions")?;
    let list = Fields::read(value, SGX_EXTENSIONS).map_err(|_| "SGX Extensions")?;
    let tcb = list.get(2).filter(|field| field.tag == Tag::Sequence);
    let tcb_oid = [SGX_EXTENSIONS, &[2]].concat();
    let tcb = tcb.ok_or("TCB")?;
    let tcb = Fields::read(tcb.raw, &tcb_oid).map_err(|_| "TCB")?;
    let mut components = [0; 16];
    for (component, arc) in components.iter_mut().zip(1_u8..) {
        *component = tcb.integer(arc).ok_or("SGX TCB Comp SVN")?;
    }
    let smt = match list.get(7) {
        None => None,
        Some(field) => {
            let oid = [SGX_EXTENSIONS, &[7]].concat();
            let configuration = Fields::read(field.raw, &oid).map_err(|_| "Configuration")?;
            match configuration.get(3) {
                None => None,
                Some(Field {
                    tag: Tag::Boolean,
                    content: [byte],
                    ..
                }) => Some(*byte != 0),
                Some(_) => return Err("SMT Enabled"),
            }
        }
    };
    let sgx_type = match list.get(5) {
        Some(Field {
            tag: Tag::Enumerated,
            content: [kind],
            ..
        }) => *kind,
        _ => return Err("SGX Type"),
    };
    let platform_instance = match list.get(6) {
        None => None,
        Some(_) => Some(list.octets(6).ok_or("Platform Instance ID")?),
    };
    Ok(PckExtensions {
        ppid: list.octets(1).ok_or("PPID")?,
        components,
        pce_svn: tcb.short(17).ok_or("PCESVN")?,
        cpu_svn: tcb.octets(18).ok_or("CPUSVN")?,
        pce_id: list.octets(3).ok_or("PCE-ID")?,
        fmspc: list.octets(4).ok_or("FMSPC")?,
        sgx_type,
        platform_instance,
        smt,
    })
}

/// One value, by the last arc of its OID.
struct Field<'a> {
    arc: u8,
    tag: Tag,
    raw: &'a [u8],
    content: &'a [u8],
}

/// A list of pairs of OID and value, in which no OID occurs twice.
struct Fields<'a>(Vec<Field<'a>>);

impl<'a> Fields<'a> {
    /// Reads a DER SEQUENCE of pairs whose OIDs are one arc longer than `parent`.
    fn read(der: &'a [u8], parent: &[u8]) -> Result<Self, X509Error> {
        const WRONG: X509Error = X509Error::Structure("SGX extensions");
        let mut list = Elements::of_whole(der, "SGX extensions")?;
        let mut fields: Vec<Field<'a>> = Vec::new();
        while !list.is_at_end() {
            let mut pair = Elements::of(list.next(Tag::Sequence)?.content, "SGX extensions")?;
            let oid = pair.next(Tag::ObjectIdentifier)?;
            let value = pair.any()?;
            pair.end()?;
            let [arc] = *oid.content.strip_prefix(parent).ok_or(WRONG)? else {
                return Err(WRONG);
            };
            if fields.iter().any(|field| field.arc == arc) {
                return Err(WRONG);
            }
            fields.push(Field {
                arc,
                tag: value.tag,
                raw: value.raw,
                content: value.content,
            });
        }
        Ok(Self(fields))
    }

    fn get(&self, arc: u8) -> Option<&Field<'a>> {
        self.0.iter().find(|field| field.arc == arc)
    }

    fn integer(&self, arc: u8) -> Option<u8> {
        self.get(arc).and_then(|field| integer(field.raw))
    }

    fn short(&self, arc: u8) -> Option<u16> {
        use der::Decode as _;
        self.get(arc)
            .and_then(|field| u16::from_der(field.raw).ok())
    }

    fn octets<const N: usize>(&self, arc: u8) -> Option<[u8; N]> {
        self.get(arc)
            .filter(|field| field.tag == Tag::OctetString)
            .and_then(|field| field.content.try_into().ok())
    }
}
