//! What a VEK certificate says of chip and TCB.
//!
//! Follows "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification",
//! table of X.509 extensions under 1.3.6.1.4.1.3704.1.

use super::chain::VekKind;
use super::platform::Product;
use crate::endorsement::{Certificate, integer};

/// Content of the OIDs below 1.3.6.1.4.1.3704.1.
const PRODUCT_NAME: &[u8] = b"\x2b\x06\x01\x04\x01\x9c\x78\x01\x02";
const TCB: &[u8] = b"\x2b\x06\x01\x04\x01\x9c\x78\x01\x03";
const HWID: &[u8] = b"\x2b\x06\x01\x04\x01\x9c\x78\x01\x04";
const CSP_ID: &[u8] = b"\x2b\x06\x01\x04\x01\x9c\x78\x01\x05";

/// The last arc of each TCB extension, in the order of the TCB_VERSION's bytes.
const LEGACY_TCB: [u8; 8] = [1, 2, 4, 5, 6, 7, 3, 8];
const TURIN_TCB: [u8; 8] = [9, 1, 2, 3, 5, 6, 7, 8];

/// The extensions of a VEK certificate, complete for its kind and product.
pub(super) struct VekExtensions<'a> {
    /// TCB_VERSION that the key belongs to, in the layout of the product.
    pub(super) tcb: [u8; 8],
    pub(super) identity: Identity<'a>,
}

/// Whose key it is.
pub(super) enum Identity<'a> {
    /// A VCEK: the chip.
    Chip(&'a [u8]),
    /// A VLEK: the cloud service provider.
    Provider(&'a str),
}

/// The name of the extension that is missing, malformed, or does not belong there.
pub(super) fn read<'a>(
    vek: &Certificate<'a>,
    kind: VekKind,
    product: Product,
) -> Result<VekExtensions<'a>, &'static str> {
    const IA5_STRING: u8 = 0x16;
    let name = match vek.extension(PRODUCT_NAME) {
        Some([IA5_STRING, length, name @ ..]) if usize::from(*length) == name.len() => name,
        _ => return Err("productName"),
    };
    // A stepping may follow, as in "Milan-B0".
    if name.split(|byte| *byte == b'-').next() != Some(product.name().as_bytes()) {
        return Err("productName");
    }
    let identity = match (kind, vek.extension(HWID), vek.extension(CSP_ID)) {
        (VekKind::Vcek, Some(hwid), None) if hwid.len() == product.hwid_length() => {
            Identity::Chip(hwid)
        }
        (VekKind::Vcek, _, None) => return Err("hwID"),
        (VekKind::Vcek, _, Some(_)) => return Err("cspID"),
        (VekKind::Vlek, Some(_), _) => return Err("hwID"),
        (VekKind::Vlek, None, Some([IA5_STRING, length, id @ ..]))
            if usize::from(*length) == id.len() =>
        {
            Identity::Provider(std::str::from_utf8(id).map_err(|_| "cspID")?)
        }
        (VekKind::Vlek, None, _) => return Err("cspID"),
    };
    Ok(VekExtensions {
        tcb: tcb(vek, product)?,
        identity,
    })
}

fn tcb(vek: &Certificate<'_>, product: Product) -> Result<[u8; 8], &'static str> {
    let arcs = match product {
        Product::Milan | Product::Genoa => LEGACY_TCB,
        Product::Turin | Product::Venice => TURIN_TCB,
    };
    let mut bytes = [0; 8];
    for (byte, arc) in bytes.iter_mut().zip(arcs) {
        let der = vek
            .extensions
            .iter()
            .find(|extension| extension.oid.strip_prefix(TCB) == Some(&[arc]))
            .ok_or(component(arc))?;
        *byte = integer(der.value).ok_or(component(arc))?;
    }
    let of_another_layout = vek
        .extensions
        .iter()
        .filter_map(|extension| extension.oid.strip_prefix(TCB))
        .find(|arc| !arcs.iter().any(|known| *arc == [*known]));
    match of_another_layout {
        Some([arc]) => Err(component(*arc)),
        Some(_) => Err("spl"),
        None => Ok(bytes),
    }
}

/// The component that byte `index` of a TCB_VERSION is about.
pub(super) fn component_at(index: usize, product: Product) -> &'static str {
    let arcs = match product {
        Product::Milan | Product::Genoa => LEGACY_TCB,
        Product::Turin | Product::Venice => TURIN_TCB,
    };
    arcs.get(index).map_or("spl", |arc| component(*arc))
}

fn component(arc: u8) -> &'static str {
    match arc {
        1 => "blSPL",
        2 => "teeSPL",
        3 => "snpSPL",
        4 => "spl4",
        5 => "spl5",
        6 => "spl6",
        7 => "spl7",
        8 => "ucodeSPL",
        9 => "fmcSPL",
        _ => "spl",
    }
}
