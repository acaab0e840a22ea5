//! The ID block, with which a guest's owner binds a launch digest to a key before the launch.
//!
//! Follows "SEV Secure Nested Paging Firmware ABI Specification", SNP_LAUNCH_FINISH, ID_BLOCK and
//! ID_AUTH structures:
//!
//! ```text
//! block  launch digest 48 | family 16 | image 16 | version 4 | guest SVN 4 | policy 8
//! auth   ID key algorithm 4 | author key algorithm 4 | 0 … | at 0x040 signature of block 512
//!        | at 0x240 ID key 1028 | at 0x680 signature of ID key 512 | at 0x880 author key 1028
//! ```
//!
//! Numbers are little endian. A key is curve 4 (2: P-384), x 72, y 72, zeroes.

use ring::digest::{SHA384, digest};
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};

use crate::encoding::Hex;

const KEY: usize = 0x404;
const SIGNATURE: usize = 0x200;

/// Why an ID block or its authentication cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdBlockError {
    /// The bytes have another length.
    #[error("`{what}` has {found} bytes, not {expected}")]
    Length {
        /// Which one.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there have to be.
        expected: usize,
    },
    /// The structure has a version that is not known.
    #[error("version {0} of the ID block is not supported")]
    Version(u32),
    /// Key or signature are of another algorithm than ECDSA on P-384 with SHA-384.
    #[error("the {0} is not of ECDSA on P-384 with SHA-384")]
    Algorithm(&'static str),
    /// Bytes that must be zero are not.
    #[error("unused bytes of the {0} are in use")]
    Reserved(&'static str),
    /// A signature does not verify.
    #[error("the signature on the {0} does not verify")]
    Signature(&'static str),
}

/// What a guest's owner says about a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdBlock {
    /// The launch digest that the firmware lets start.
    pub measurement: Hex<48>,
    /// Family of the guest's image.
    pub family_id: Hex<16>,
    /// Identity of the guest's image.
    pub image_id: Hex<16>,
    /// Security version of the guest.
    pub guest_svn: u32,
    /// The policy that the guest is launched with.
    pub policy: u64,
}

impl IdBlock {
    /// Bytes of an ID block.
    pub const LENGTH: usize = 96;

    /// Reads an ID block.
    ///
    /// # Errors
    ///
    /// [`IdBlockError::Length`] or [`IdBlockError::Version`].
    pub fn parse(bytes: &[u8]) -> Result<Self, IdBlockError> {
        let bytes: &[u8; Self::LENGTH] = exactly("ID block", bytes)?;
        let version = u32::from_le_bytes(part(bytes, 80));
        if version != 1 {
            return Err(IdBlockError::Version(version));
        }
        Ok(Self {
            measurement: Hex(part(bytes, 0)),
            family_id: Hex(part(bytes, 48)),
            image_id: Hex(part(bytes, 64)),
            guest_svn: u32::from_le_bytes(part(bytes, 84)),
            policy: u64::from_le_bytes(part(bytes, 88)),
        })
    }

    /// Writes an ID block, which its owner then signs.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [
            &self.measurement.0[..],
            &self.family_id.0,
            &self.image_id.0,
            &1_u32.to_le_bytes(),
            &self.guest_svn.to_le_bytes(),
            &self.policy.to_le_bytes(),
        ]
        .concat()
    }
}

/// The keys and signatures that go with an ID block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdAuthentication(Box<[u8; IdAuthentication::LENGTH]>);

impl IdAuthentication {
    /// Bytes of ID authentication information.
    pub const LENGTH: usize = 4096;

    /// Reads ID authentication information.
    ///
    /// # Errors
    ///
    /// [`IdBlockError::Length`] or [`IdBlockError::Algorithm`].
    pub fn parse(bytes: &[u8]) -> Result<Self, IdBlockError> {
        let bytes: &[u8; Self::LENGTH] = exactly("ID authentication", bytes)?;
        let parsed = Self(Box::new(*bytes));
        if parsed.number(0) != 1 {
            return Err(IdBlockError::Algorithm("ID key"));
        }
        if parsed.number(4) > 1 {
            return Err(IdBlockError::Algorithm("author key"));
        }
        Ok(parsed)
    }

    /// Verifies that the ID key signed the block, and the author key the ID key if there is one.
    ///
    /// # Errors
    ///
    /// [`IdBlockError`].
    pub fn verify(&self, block: &IdBlock) -> Result<(), IdBlockError> {
        let id_key = point("ID key", self.range::<KEY>(0x240))?;
        verify("ID block", &id_key, &block.to_bytes(), &self.range(0x40))?;
        self.verify_author()
    }

    /// Verifies that the author key signed the ID key, if there is an author key.
    ///
    /// # Errors
    ///
    /// [`IdBlockError`].
    pub fn verify_author(&self) -> Result<(), IdBlockError> {
        if self.number(4) == 0 {
            return Ok(());
        }
        let author = point("author key", self.range::<KEY>(0x880))?;
        verify(
            "ID key",
            &author,
            &self.range::<KEY>(0x240),
            &self.range(0x680),
        )
    }

    /// ID_KEY_DIGEST as reports state it.
    #[must_use]
    pub fn id_key_digest(&self) -> Hex<48> {
        sha384(&self.range::<KEY>(0x240))
    }

    /// AUTHOR_KEY_DIGEST as reports state it, if there is an author key.
    #[must_use]
    pub fn author_key_digest(&self) -> Option<Hex<48>> {
        (self.number(4) == 1).then(|| sha384(&self.range::<KEY>(0x880)))
    }

    fn number(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.range(at))
    }

    fn range<const N: usize>(&self, at: usize) -> [u8; N] {
        part(&self.0[..], at)
    }
}

fn exactly<'a, const N: usize>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<&'a [u8; N], IdBlockError> {
    bytes.try_into().map_err(|_| IdBlockError::Length {
        what,
        found: bytes.len(),
        expected: N,
    })
}

/// `N` bytes from `at` on, which every caller knows to be there.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    found.copied().unwrap_or([0; N])
}

/// A key as an uncompressed point.
fn point(what: &'static str, key: [u8; KEY]) -> Result<[u8; 97], IdBlockError> {
    if u32::from_le_bytes(part(&key, 0)) != 2 {
        return Err(IdBlockError::Algorithm(what));
    }
    let mut point = [4; 97];
    let (x, y) = point[1..].split_at_mut(48);
    for (number, at) in [(x, 4), (y, 76)] {
        big_endian(what, part(&key, at), number)?;
    }
    if key[148..].iter().any(|byte| *byte != 0) {
        return Err(IdBlockError::Reserved(what));
    }
    Ok(point)
}

fn big_endian(
    what: &'static str,
    little_endian: [u8; 72],
    number: &mut [u8],
) -> Result<(), IdBlockError> {
    let (value, padding) = little_endian.split_at(48);
    if padding.iter().any(|byte| *byte != 0) {
        return Err(IdBlockError::Reserved(what));
    }
    for (to, from) in number.iter_mut().zip(value.iter().rev()) {
        *to = *from;
    }
    Ok(())
}

fn verify(
    what: &'static str,
    key: &[u8; 97],
    message: &[u8],
    signature: &[u8; SIGNATURE],
) -> Result<(), IdBlockError> {
    let mut fixed = [0; 96];
    let (r, s) = fixed.split_at_mut(48);
    for (number, at) in [(r, 0), (s, 72)] {
        big_endian("signature", part(signature, at), number)?;
    }
    if signature[144..].iter().any(|byte| *byte != 0) {
        return Err(IdBlockError::Reserved("signature"));
    }
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key)
        .verify(message, &fixed)
        .map_err(|_| IdBlockError::Signature(what))
}

fn sha384(bytes: &[u8]) -> Hex<48> {
    let mut hash = [0; 48];
    hash.copy_from_slice(digest(&SHA384, bytes).as_ref());
    Hex(hash)
}
