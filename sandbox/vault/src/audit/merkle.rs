//! The hash tree: leaves in, roots and proofs out.
//!
//! Follows RFC 6962, "Merkle Hash Trees", and the proof verification of RFC 9162, "Merkle Inclusion
//! Proofs" and "Merkle Consistency Proofs". Nodes are kept in tiles of 256 hashes, eight levels of
//! the tree to a tile, as C2SP "tlog-tiles" lays them out.

use aws_lc_rs::digest;

/// SHA-256 output, 32 bytes.
pub type Hash = [u8; 32];

/// How many hashes a full tile holds, and how many entries a full bundle.
pub const TILE_WIDTH: u64 = 256;

/// Hashes a leaf: SHA-256(0x00 ‖ entry).
pub fn leaf_hash(entry: &[u8]) -> Hash {
    sha256(&[&[0x00], entry])
}

/// Hashes an inner node: SHA-256(0x01 ‖ left ‖ right).
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[0x01], left, right])
}

/// The root of the tree without leaves: SHA-256 of nothing.
pub fn empty_root() -> Hash {
    sha256(&[])
}

pub(super) fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// The right edge of a growing tree: enough to add leaves and to tell the root.
///
/// Per tile level it holds the hashes of the tile that is not full yet, at most 255 of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    size: u64,
    levels: Vec<Vec<Hash>>,
}

/// A tile's address: its level (0 = leaf hashes) and its number from the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileId {
    /// Level in tiles: level `l` holds nodes of tree level `8 * l`.
    pub level: u8,
    /// Position from the left.
    pub number: u64,
}

impl Edge {
    /// Starts an empty tree.
    pub fn new() -> Edge {
        Edge::default()
    }

    /// Takes up a tree of `size` leaves from the partial tiles on its right edge, level 0 first.
    ///
    /// Gives `None` unless every level has exactly the hashes that a tree of this size leaves over.
    pub fn resume(size: u64, levels: Vec<Vec<Hash>>) -> Option<Edge> {
        let fits = levels
            .iter()
            .enumerate()
            .all(|(l, hashes)| width(size, l) == hashes.len());
        (fits && levels.len() == depth(size)).then_some(Edge { size, levels })
    }

    /// How many leaves the tree has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hashes of the partial tile at each level, level 0 first.
    pub fn partials(&self) -> &[Vec<Hash>] {
        &self.levels
    }

    /// Adds a leaf, and hands every tile that it completes to `full`.
    pub fn push(&mut self, leaf: Hash, mut full: impl FnMut(TileId, &[Hash])) {
        let mut number = self.size / TILE_WIDTH;
        self.size += 1;
        let mut hash = leaf;
        for level in 0u8.. {
            let at = usize::from(level);
            if self.levels.len() == at {
                self.levels.push(Vec::with_capacity(TILE_WIDTH as usize));
            }
            let tile = &mut self.levels[at];
            tile.push(hash);
            if (tile.len() as u64) < TILE_WIDTH {
                return;
            }
            full(TileId { level, number }, tile);
            hash = subtree(tile);
            tile.clear();
            number /= TILE_WIDTH;
        }
    }

    /// Adds the leaves of a whole tile, whose root is known, and hands every tile that is completed to
    /// `full`. Only between two tiles.
    pub(super) fn push_tile(
        &mut self,
        leaves: &[Hash],
        root: Hash,
        mut full: impl FnMut(TileId, &[Hash]),
    ) {
        debug_assert!(self.size.is_multiple_of(TILE_WIDTH) && leaves.len() as u64 == TILE_WIDTH);
        let mut number = self.size / TILE_WIDTH;
        self.size += TILE_WIDTH;
        full(TileId { level: 0, number }, leaves);
        if self.levels.is_empty() {
            self.levels.push(Vec::with_capacity(TILE_WIDTH as usize));
        }
        let mut hash = root;
        for level in 1u8.. {
            number /= TILE_WIDTH;
            let at = usize::from(level);
            if self.levels.len() == at {
                self.levels.push(Vec::with_capacity(TILE_WIDTH as usize));
            }
            let tile = &mut self.levels[at];
            tile.push(hash);
            if (tile.len() as u64) < TILE_WIDTH {
                return;
            }
            full(TileId { level, number }, tile);
            hash = subtree(tile);
            tile.clear();
        }
    }

    /// The root: the Merkle Tree Hash of all leaves.
    pub fn root(&self) -> Hash {
        // Peaks from left to right: coarse levels stand left of fine ones.
        let peaks: Vec<Hash> = self
            .levels
            .iter()
            .rev()
            .flat_map(|level| peaks(level))
            .collect();
        fold(&peaks)
    }
}

/// How many tile levels the tree of `size` leaves reaches, counting a level once it has a hash.
fn depth(size: u64) -> usize {
    (0..8).take_while(|level| size >> (8 * level) != 0).count()
}

fn width(size: u64, level: usize) -> usize {
    ((size >> (8 * level)) % TILE_WIDTH) as usize
}

/// The roots of the largest perfect subtrees over `hashes`, left to right.
fn peaks(hashes: &[Hash]) -> Vec<Hash> {
    let mut peaks = Vec::new();
    let mut rest = hashes;
    while !rest.is_empty() {
        let (perfect, right) = rest.split_at(1 << rest.len().ilog2());
        peaks.push(subtree(perfect));
        rest = right;
    }
    peaks
}

/// The root of the perfect subtree over `hashes`, a power of two of them.
pub(super) fn subtree(hashes: &[Hash]) -> Hash {
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        // Into the front of what was read already.
        for at in 0..level.len() / 2 {
            level[at] = node_hash(&level[2 * at], &level[2 * at + 1]);
        }
        level.truncate(level.len() / 2);
    }
    level.first().copied().unwrap_or_else(empty_root)
}

fn fold(peaks: &[Hash]) -> Hash {
    let right_to_left = peaks.iter().rev().copied();
    right_to_left
        .reduce(|right, left| node_hash(&left, &right))
        .unwrap_or_else(empty_root)
}

/// Where the hashes of perfect subtrees come from: a tile reader, or leaves in memory.
pub trait Nodes {
    /// Why a hash could not be had.
    type Error;

    /// The root of the perfect subtree over leaves `[index << level, (index + 1) << level)`.
    fn node(&mut self, level: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// Makes the inclusion proof of leaf `index` in the tree of `size` leaves: RFC 6962 `PATH(m, D[n])`.
///
/// The path is empty if `index` is not below `size`.
///
/// # Errors
///
/// Whatever `nodes` answers.
pub fn prove_inclusion<N: Nodes>(
    nodes: &mut N,
    index: u64,
    size: u64,
) -> Result<Vec<Hash>, N::Error> {
    let (mut start, mut end) = (0, size);
    let mut path = Vec::new();
    while index < size && end - start > 1 {
        let split = start + split(end - start);
        if index < split {
            path.push(range(nodes, split, end)?);
            end = split;
        } else {
            path.push(range(nodes, start, split)?);
            start = split;
        }
    }
    path.reverse();
    Ok(path)
}

/// Makes the proof that the tree of `old` leaves is the beginning of the tree of `size` leaves:
/// RFC 6962 `PROOF(m, D[n])`. Empty if there is nothing to prove.
///
/// # Errors
///
/// Whatever `nodes` answers.
pub fn prove_consistency<N: Nodes>(
    nodes: &mut N,
    old: u64,
    size: u64,
) -> Result<Vec<Hash>, N::Error> {
    let mut path = Vec::new();
    if old == 0 || old >= size {
        return Ok(path);
    }
    let (mut start, mut end) = (0, size);
    // `start` moves only to the right of complete subtrees, so old > start throughout.
    while end != old {
        let split = start + split(end - start);
        if old <= split {
            path.push(range(nodes, split, end)?);
            end = split;
        } else {
            path.push(range(nodes, start, split)?);
            start = split;
        }
    }
    if start != 0 {
        path.push(range(nodes, start, end)?);
    }
    path.reverse();
    Ok(path)
}

/// The Merkle Tree Hash of the leaves `[start, end)`, where `start` is aligned as RFC 6962 splits.
fn range<N: Nodes>(nodes: &mut N, start: u64, end: u64) -> Result<Hash, N::Error> {
    let mut peaks = Vec::new();
    let mut at = start;
    while at < end {
        let level = (end - at).ilog2();
        peaks.push(nodes.node(level, at >> level)?);
        at += 1 << level;
    }
    Ok(fold(&peaks))
}

/// The largest power of two below `n`, for `n` of at least 2.
fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// Tells whether `path` proves `leaf` at `index` in the tree of `size` leaves with this root.
///
/// RFC 9162, "Verifying an Inclusion Proof".
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, path: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                (node, last) = (node >> 1, last >> 1);
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    last == 0 && hash == *root
}

/// Tells whether `path` proves that the tree (`old`, `old_root`) is the beginning of
/// (`size`, `root`).
///
/// RFC 9162, "Verifying Consistency between Two Tree Heads". The empty tree begins every tree.
pub fn verify_consistency(
    old: u64,
    old_root: &Hash,
    size: u64,
    root: &Hash,
    path: &[Hash],
) -> bool {
    if old == 0 || old >= size {
        let same = old == size && old_root == root;
        let from_nothing = old == 0 && *old_root == empty_root();
        return path.is_empty() && (same || from_nothing) && (old != size || same);
    }
    let (mut node, mut last) = (old - 1, size - 1);
    while node & 1 == 1 {
        (node, last) = (node >> 1, last >> 1);
    }
    // A perfect old tree is itself the first node of the path.
    let (seed, rest) = if node == 0 {
        (old_root, path)
    } else if let Some((first, rest)) = path.split_first() {
        (first, rest)
    } else {
        return false;
    };
    let (mut was, mut is) = (*seed, *seed);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            was = node_hash(sibling, &was);
            is = node_hash(sibling, &is);
            while node & 1 == 0 && node != 0 {
                (node, last) = (node >> 1, last >> 1);
            }
        } else {
            is = node_hash(&is, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    last == 0 && was == *old_root && is == *root
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The leaves of the Certificate Transparency reference tests (`merkle_tree_test`).
    const LEAVES: [&str; 8] = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    /// The roots of the first 1 to 8 of them, from the same tests.
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    fn hex(s: &str) -> Vec<u8> {
        (0..s.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap())
            .collect()
    }

    struct Leaves(Vec<Hash>);

    impl Leaves {
        fn of(n: u64) -> Leaves {
            Leaves((0..n).map(|i| leaf_hash(&i.to_be_bytes())).collect())
        }
        fn root(&self, n: u64) -> Hash {
            let mut edge = Edge::new();
            self.0[..n as usize]
                .iter()
                .for_each(|leaf| edge.push(*leaf, |_, _| ()));
            edge.root()
        }
    }

    impl Nodes for Leaves {
        type Error = std::convert::Infallible;
        fn node(&mut self, level: u32, index: u64) -> Result<Hash, Self::Error> {
            let at = (index << level) as usize;
            Ok(subtree(&self.0[at..at + (1 << level)]))
        }
    }

    /// RFC 6962 word for word, to hold the incremental tree against.
    fn mth(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty_root(),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
                node_hash(&mth(left), &mth(right))
            }
        }
    }

    #[test]
    fn roots_are_those_of_certificate_transparency() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Edge::new().root()[..], hex(empty)[..]);
        let mut edge = Edge::new();
        for (leaf, root) in LEAVES.iter().zip(ROOTS) {
            edge.push(leaf_hash(&hex(leaf)), |_, _| ());
            assert_eq!(edge.root()[..], hex(root)[..]);
        }
    }

    #[test]
    fn an_inclusion_proof_is_that_of_certificate_transparency() {
        let mut leaves = Leaves(LEAVES.iter().map(|leaf| leaf_hash(&hex(leaf))).collect());
        let path = prove_inclusion(&mut leaves, 5, 8).unwrap();
        let expected = [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ];
        assert_eq!(
            path.iter().map(|h| h.to_vec()).collect::<Vec<_>>(),
            expected.map(hex)
        );
    }

    #[test]
    fn the_incremental_root_is_the_recursive_one_at_every_size() {
        let leaves = Leaves::of(1100);
        let mut edge = Edge::new();
        for n in 0..=1100u64 {
            if n < 20 || n % 61 == 0 || n.abs_diff(256) < 3 || n.abs_diff(1024) < 3 {
                assert_eq!(edge.root(), mth(&leaves.0[..n as usize]), "size {n}");
                let resumed = Edge::resume(n, edge.partials().to_vec());
                assert_eq!(resumed.as_ref(), Some(&edge), "size {n}");
            }
            if let Some(leaf) = leaves.0.get(n as usize) {
                edge.push(*leaf, |_, _| ());
            }
        }
    }

    #[test]
    fn a_tree_of_65_536_leaves_completes_a_tile_of_level_one() {
        let (mut edge, mut tiles) = (Edge::new(), Vec::new());
        (0..65_536u64).for_each(|i| {
            edge.push(leaf_hash(&i.to_be_bytes()), |id, _| tiles.push(id));
        });
        assert_eq!(tiles.len(), 257);
        assert_eq!(
            tiles.last(),
            Some(&TileId {
                level: 1,
                number: 0
            })
        );
        assert_eq!(
            edge.partials().iter().map(Vec::len).collect::<Vec<_>>(),
            [0, 0, 1]
        );
        assert!(Edge::resume(65_536, edge.partials().to_vec()).is_some());
        assert!(Edge::resume(65_537, edge.partials().to_vec()).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_proof_of_inclusion_holds_and_no_other(size in 1u64..600, at in any::<u64>(), flip in any::<u64>()) {
            let mut leaves = Leaves::of(size);
            let (index, root) = (at % size, leaves.root(size));
            let leaf = leaves.0[index as usize];
            let mut path = prove_inclusion(&mut leaves, index, size).unwrap();
            prop_assert!(verify_inclusion(&leaf, index, size, &path, &root));
            prop_assert!(!verify_inclusion(&leaf, index, size + 600, &path, &root));
            prop_assert!(!verify_inclusion(&leaf, index ^ 1, size, &path, &root) || size == 1);
            prop_assert!(!verify_inclusion(&leaf, size, size, &path, &root));
            if !path.is_empty() {
                let n = flip as usize % path.len();
                path[n][0] ^= 1;
                prop_assert!(!verify_inclusion(&leaf, index, size, &path, &root));
                path.pop();
                prop_assert!(!verify_inclusion(&leaf, index, size, &path, &root));
            }
        }

        #[test]
        fn every_proof_of_consistency_holds_and_no_other(size in 1u64..600, at in any::<u64>(), flip in any::<u64>()) {
            let mut leaves = Leaves::of(size);
            let old = at % (size + 1);
            let (was, is) = (leaves.root(old), leaves.root(size));
            let mut path = prove_consistency(&mut leaves, old, size).unwrap();
            prop_assert!(verify_consistency(old, &was, size, &is, &path));
            let other = leaf_hash(b"other");
            prop_assert!(!verify_consistency(old, &other, size, &is, &path));
            prop_assert!(!verify_consistency(old, &was, size, &other, &path) || old == 0);
            if !path.is_empty() {
                let n = flip as usize % path.len();
                path[n][31] ^= 0x80;
                prop_assert!(!verify_consistency(old, &was, size, &is, &path));
            }
            path.push(other);
            prop_assert!(!verify_consistency(old, &was, size, &is, &path));
        }
    }
}
