//! The Merkle tree over the chunks of an extent.
//!
//! Follows RFC 6962, section 2.1, with SHA-256. A leaf covers the chunk's place and tag, not its
//! data: the tag already speaks for the data, and hashing sixteen bytes is cheap.
//!
//! Subtrees of [`GROUP`] leaves are aligned nodes of the tree, so a reader that knows their roots
//! (and has checked them against the root of the whole) verifies any chunk by reading the tags of
//! its group only.

use crate::sealed::{TAG_LEN, sha256};

/// A node of the tree.
pub(crate) type Hash = [u8; 32];

/// Leaves under one stored subtree root; a power of two.
pub(crate) const GROUP: usize = 256;

/// The root over these nodes, which are leaves or aligned subtrees of equal size (the last may be
/// smaller).
pub(crate) fn root(nodes: &[Hash]) -> Hash {
    match nodes {
        [] => sha256(&[]),
        [node] => *node,
        _ => {
            let half = nodes.len().div_ceil(2).next_power_of_two();
            let (left, right) = nodes.split_at(half);
            sha256(&[&[1], &root(left), &root(right)])
        }
    }
}

/// The root of one group, from the tags of its chunks; `first` is the index of its first chunk.
pub(crate) fn group_root(first: u64, extent_no: u32, tags: &[u8]) -> Hash {
    let leaves: Vec<Hash> = tags
        .chunks_exact(TAG_LEN)
        .zip(first..)
        .map(|(tag, index)| leaf(index, extent_no, tag))
        .collect();
    root(&leaves)
}

/// The roots of all groups, from the tags of all chunks.
pub(crate) fn group_roots(extent_no: u32, tags: &[u8]) -> Vec<Hash> {
    tags.chunks(GROUP * TAG_LEN)
        .zip((0..).step_by(GROUP))
        .map(|(tags, first)| group_root(first, extent_no, tags))
        .collect()
}

fn leaf(index: u64, extent_no: u32, tag: &[u8]) -> Hash {
    sha256(&[&[0], &index.to_le_bytes(), &extent_no.to_le_bytes(), tag])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of RFC 6962, word for word.
    fn by_definition(leaves: &[Hash]) -> Hash {
        if leaves.len() == 1 {
            return leaves[0];
        }
        let mut k = 1;
        while k * 2 < leaves.len() {
            k *= 2;
        }
        sha256(&[
            &[1],
            &by_definition(&leaves[..k]),
            &by_definition(&leaves[k..]),
        ])
    }

    #[test]
    fn the_root_over_group_roots_is_the_root_over_leaves() {
        for count in [1, 2, 3, 255, 256, 257, 511, 512, 513, 767, 1024, 1500] {
            let tags: Vec<u8> = (0..count * TAG_LEN).map(|i| (i % 251) as u8).collect();
            let leaves: Vec<Hash> = tags
                .chunks_exact(TAG_LEN)
                .zip(0..)
                .map(|(tag, i)| leaf(i, 7, tag))
                .collect();
            assert_eq!(
                root(&group_roots(7, &tags)),
                by_definition(&leaves),
                "{count} leaves"
            );
        }
    }
}
