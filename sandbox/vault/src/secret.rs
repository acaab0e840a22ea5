//! Keys as values: in protected memory, zeroed on drop, without a way to print or copy them.

use std::fmt;
use std::io;

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::sys::{Arena, CELL_LEN, Cell, MemoryProtection};

/// A key of 32 bytes in protected memory (see [`MemoryProtection`]).
///
/// Zeroed on drop, compared in constant time, printed as `SecretKey(..)`, and not `Clone`.
pub struct SecretKey(Cell);

impl SecretKey {
    /// Bytes in a key.
    pub const LEN: usize = CELL_LEN;

    /// Moves 32 bytes into a page of their own, and zeroes where they came from.
    ///
    /// # Errors
    ///
    /// If the kernel gives no memory; the source is zeroed all the same.
    pub fn take(bytes: &mut [u8; Self::LEN]) -> io::Result<Self> {
        Self::take_into(&Arena::default(), bytes)
    }

    /// Moves 32 bytes into a cell of this arena, and zeroes where they came from.
    pub(crate) fn take_into(arena: &Arena, bytes: &mut [u8; Self::LEN]) -> io::Result<Self> {
        let cell = arena.cell().map(|mut cell| {
            cell.bytes_mut().copy_from_slice(bytes);
            cell
        });
        bytes.zeroize();
        cell.map(Self)
    }

    /// Draws a new key from the system's random source.
    pub(crate) fn random(arena: &Arena) -> io::Result<Self> {
        let key = Self::filled(arena, |key| getrandom::fill(key).ok())?;
        key.ok_or_else(|| io::Error::other("no random bytes"))
    }

    /// Has `fill` write the key where it stays: no copy is left on the way.
    ///
    /// `None` if `fill` fails.
    pub(crate) fn filled(
        arena: &Arena,
        fill: impl FnOnce(&mut [u8; Self::LEN]) -> Option<()>,
    ) -> io::Result<Option<Self>> {
        let mut cell = arena.cell()?;
        Ok(fill(cell.bytes_mut()).map(|()| Self(cell)))
    }

    /// How well the memory of this key is protected.
    pub fn protection(&self) -> MemoryProtection {
        self.0.protection()
    }

    pub(crate) fn expose(&self) -> &[u8; Self::LEN] {
        self.0.bytes()
    }
}

impl PartialEq for SecretKey {
    fn eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Eq for SecretKey {}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// A key-encryption key: it opens one slot of a vault, and nothing else.
///
/// Comes from a [`KekProvider`](crate::kek::KekProvider).
#[derive(PartialEq, Eq)]
pub struct Kek(SecretKey);

impl Kek {
    /// Moves 32 bytes into protected memory, and zeroes where they came from.
    ///
    /// # Errors
    ///
    /// If the kernel gives no memory; the source is zeroed all the same.
    pub fn take(bytes: &mut [u8; SecretKey::LEN]) -> io::Result<Self> {
        SecretKey::take(bytes).map(Self)
    }

    /// How well the memory of this key is protected.
    pub fn protection(&self) -> MemoryProtection {
        self.0.protection()
    }

    /// Makes a KEK of a key that stays where it is.
    pub(crate) fn copy_of(key: &SecretKey) -> io::Result<Self> {
        let mut cell = Arena::default().cell()?;
        cell.bytes_mut().copy_from_slice(key.expose());
        Ok(Self(SecretKey(cell)))
    }

    pub(crate) fn key(&self) -> &SecretKey {
        &self.0
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek(..)")
    }
}

/// Content of a vault in memory, zeroed when dropped.
///
/// For bulk: `Zeroizing<Vec<u8>>` is zeroed byte by byte, which takes longer than the cipher does.
#[derive(Default)]
pub(crate) struct Plaintext(Vec<u8>);

impl Plaintext {
    pub(crate) fn zeros(len: usize) -> Self {
        Self(vec![0; len])
    }

    pub(crate) fn wipe(&mut self) {
        self.0[..].zeroize();
    }
}

impl From<&[u8]> for Plaintext {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl std::ops::Deref for Plaintext {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for Plaintext {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Plaintext {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn taking_a_key_wipes_the_source_and_printing_it_tells_nothing() {
        let mut bytes = [0x5a; 32];
        let kek = Kek::take(&mut bytes).unwrap();
        assert_eq!(bytes, [0; 32]);
        assert_eq!(kek.key().expose(), &[0x5a; 32]);
        assert_eq!(format!("{kek:?} {:?}", kek.key()), "Kek(..) SecretKey(..)");
    }
}
