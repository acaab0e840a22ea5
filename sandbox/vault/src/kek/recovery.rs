//! A KEK that is kept as shares: any `k` of `n` give it back, and fewer tell nothing.
//!
//! Shamir's secret sharing over GF(2^8), byte by byte. A share as text, on one line:
//!
//! ```text
//! casemate-share-1-<set 16 hex>-<k>-<n>-<x>-<share 64 hex>-<check 8 hex>
//! ```
//!
//! `check` is the beginning of the SHA-256 of all before it: a share that was copied wrongly says so.

use std::collections::BTreeMap;
use std::fmt;

use blahaj::{Share, Sharks};
use getrandom::SysRng;
use getrandom::rand_core::UnwrapErr;
use zeroize::Zeroizing;

use super::{KekError, KekProvider};
use crate::envelope::{SlotInfo, SlotKind};
use crate::sealed::sha256;
use crate::secret::{Kek, SecretKey};

/// A KEK for the day when every other key is lost.
#[derive(Debug)]
pub struct Recovery {
    key: SecretKey,
    set: Set,
}

/// Which shares belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set {
    id: [u8; 8],
    needed: u8,
    shares: u8,
}

/// Why shares do not give a key back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// Not 2 to 255 shares, or fewer than are needed to give the key back.
    #[error("a key is split into 2 to 255 shares, of which at least 2 give it back")]
    Numbers,
    /// A line that is no share, counted from 1.
    #[error("share {0} is not one, or was copied wrongly")]
    Malformed(usize),
    /// Shares of several keys.
    #[error("share {0} belongs to another set than the first one")]
    OtherSet(usize),
    /// The same share, with two contents.
    #[error("share {0} contradicts another one of the same number")]
    Contradiction(usize),
    /// Fewer shares than are needed.
    #[error("{have} shares are here, {needed} are needed")]
    TooFew {
        /// Different shares given.
        have: usize,
        /// Shares needed.
        needed: usize,
    },
}

impl Recovery {
    /// Draws a key and splits it into `shares`, of which any `needed` give it back.
    ///
    /// The shares exist nowhere else: print each once, for another keeper.
    ///
    /// # Errors
    ///
    /// [`KekError::Share`] for other numbers than 2 ≤ `needed` ≤ `shares` ≤ 255, and
    /// [`KekError::Unavailable`] if there is no memory for keys or no random bytes.
    pub fn split(needed: u8, shares: u8) -> Result<(Self, Vec<Zeroizing<String>>), KekError> {
        if needed < 2 || shares < needed {
            return Err(ShareError::Numbers.into());
        }
        let mut id = [0; 8];
        let mut key = Zeroizing::new([0; 32]);
        // If this source yields nothing, it is found out here, and not by the crate.
        getrandom::fill(&mut id)
            .and_then(|()| getrandom::fill(&mut key[..]))
            .map_err(|e| KekError::Unavailable(std::io::Error::other(e)))?;
        let set = Set { id, needed, shares };
        let mut random = UnwrapErr(SysRng);
        let lines: Vec<_> = Sharks(needed)
            .dealer_rng(&key[..], &mut random)
            .take(usize::from(shares))
            .map(|share| set.line(&Zeroizing::new(Vec::from(&share))))
            .collect();
        let key = SecretKey::take(&mut key).map_err(KekError::Unavailable)?;
        let recovery = Self { key, set };
        // What the keepers get is tried before anybody relies on it.
        let tried = Self::combine(lines.iter().rev().map(|line| line.as_str()))?;
        if tried.key != recovery.key {
            return Err(KekError::Unavailable(
                std::io::ErrorKind::InvalidData.into(),
            ));
        }
        Ok((recovery, lines))
    }

    /// Puts shares together; empty lines are skipped.
    ///
    /// # Errors
    ///
    /// [`KekError::Share`] says which share is wrong, or how many are missing.
    pub fn combine<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Self, KekError> {
        let mut first: Option<Set> = None;
        let mut found: BTreeMap<u8, Zeroizing<Vec<u8>>> = BTreeMap::new();
        let lines = lines.into_iter().map(str::trim);
        for (line, number) in lines.filter(|line| !line.is_empty()).zip(1..) {
            let (set, share) = Set::parse(line).ok_or(ShareError::Malformed(number))?;
            if *first.get_or_insert(set) != set {
                return Err(ShareError::OtherSet(number).into());
            }
            let x = share[0];
            if found.get(&x).is_some_and(|other| *other != share) {
                return Err(ShareError::Contradiction(number).into());
            }
            found.insert(x, share);
        }
        let needed = first.map_or(2, |set| usize::from(set.needed));
        let (have, enough) = (found.len(), found.len() >= needed);
        let (Some(set), true) = (first, enough) else {
            return Err(ShareError::TooFew { have, needed }.into());
        };
        let shares = found
            .values()
            .take(needed)
            .map(|share| Share::try_from(&share[..]))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| ShareError::Malformed(1))?;
        let sharks = Sharks(set.needed);
        let key = sharks.recover(&shares).map(Zeroizing::new);
        let mut key = key.map_err(|_| ShareError::TooFew { have, needed })?;
        let key = key
            .first_chunk_mut::<32>()
            .ok_or(ShareError::Malformed(1))?;
        let key = SecretKey::take(key).map_err(KekError::Unavailable)?;
        Ok(Self { key, set })
    }
}

impl KekProvider for Recovery {
    fn kind(&self) -> SlotKind {
        SlotKind::Recovery
    }

    fn new_slot(&self) -> Result<Vec<u8>, KekError> {
        let Set { id, needed, shares } = self.set;
        Ok([&id[..], &[needed, shares]].concat())
    }

    fn kek(&self, slot: &SlotInfo) -> Result<Kek, KekError> {
        if slot.parameters.len() != 10 {
            return Err(KekError::Parameters);
        }
        // Of another set: then it does not open the slot, and the next one is tried.
        Kek::copy_of(&self.key).map_err(KekError::Unavailable)
    }
}

impl Set {
    fn line(&self, share: &[u8]) -> Zeroizing<String> {
        let (x, y) = share.split_first().unwrap_or((&0, &[]));
        let Self { needed, shares, .. } = self;
        let mut line = Zeroizing::new(String::with_capacity(160));
        let _ = fmt::write(
            &mut *line,
            format_args!("{PREFIX}{}-{needed}-{shares}-{x}-{}", Hex(&self.id), Hex(y)),
        );
        let check = sha256(&[line.as_bytes()]);
        let _ = fmt::write(&mut *line, format_args!("-{}", Hex(&check[..4])));
        line
    }

    /// The set, and the share with its number in front.
    fn parse(line: &str) -> Option<(Self, Zeroizing<Vec<u8>>)> {
        let (covered, check) = line.rsplit_once('-')?;
        if unhex(check)?[..] != sha256(&[covered.as_bytes()])[..4] {
            return None;
        }
        let mut fields = covered.strip_prefix(PREFIX)?.split('-');
        let id = unhex(fields.next()?)?[..].try_into().ok()?;
        let mut number = || fields.next()?.parse::<u8>().ok();
        let (needed, shares, x) = (number()?, number()?, number()?);
        let y = unhex(fields.next()?)?;
        let sound = needed >= 2 && (needed..).contains(&shares) && (1..=shares).contains(&x);
        if !sound || y.len() != 32 || fields.next().is_some() {
            return None;
        }
        let mut share = Zeroizing::new(Vec::with_capacity(33));
        share.push(x);
        share.extend_from_slice(&y);
        Some((Self { id, needed, shares }, share))
    }
}

const PREFIX: &str = "casemate-share-1-";

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn unhex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = text.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    bytes.collect::<Option<Vec<u8>>>().map(Zeroizing::new)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn combined(lines: &[&Zeroizing<String>]) -> Result<Recovery, KekError> {
        Recovery::combine(lines.iter().map(|line| line.as_str()))
    }

    fn why(outcome: Result<Recovery, KekError>) -> ShareError {
        match outcome {
            Err(KekError::Share(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn any_three_of_five_shares_give_the_key_back_and_two_do_not() {
        let (recovery, lines) = Recovery::split(3, 5).unwrap();
        for a in 0..5 {
            for b in 0..5 {
                let two = combined(&[&lines[a], &lines[b]]);
                assert!(matches!(why(two), ShareError::TooFew { needed: 3, .. }));
                for c in (0..5).filter(|c| a != b && *c != a && *c != b) {
                    let found = combined(&[&lines[a], &lines[b], &lines[c]]).unwrap();
                    assert!(found.key == recovery.key && found.set == recovery.set);
                }
            }
        }
        let all: Vec<_> = lines.iter().collect();
        assert!(combined(&all).unwrap().key == recovery.key);
    }

    #[test]
    fn a_share_that_was_copied_wrongly_is_named() {
        let (_, lines) = Recovery::split(2, 3).unwrap();
        for at in 0..lines[1].len() {
            let mut line = lines[1].as_bytes().to_vec();
            line[at] = if line[at] == b'0' { b'1' } else { b'0' };
            let line = Zeroizing::new(String::from_utf8(line).unwrap());
            assert_eq!(
                why(combined(&[&lines[0], &line])),
                ShareError::Malformed(2),
                "character {at}"
            );
        }
    }

    #[test]
    fn shares_of_two_keys_do_not_mix_and_a_doubled_one_counts_once() {
        let (_, mine) = Recovery::split(2, 2).unwrap();
        let (_, other) = Recovery::split(2, 2).unwrap();
        assert_eq!(
            why(combined(&[&mine[0], &other[1]])),
            ShareError::OtherSet(2)
        );
        assert_eq!(
            why(combined(&[&mine[0], &mine[0]])),
            ShareError::TooFew { have: 1, needed: 2 }
        );
    }

    #[test]
    fn a_key_is_not_split_so_that_one_share_is_enough() {
        for (needed, shares) in [(0, 0), (0, 3), (1, 1), (1, 3), (4, 3)] {
            assert!(Recovery::split(needed, shares).is_err());
        }
    }
}
