//! Which entities a page cannot have, without reading it: a blocked Bloom filter (Putze, Sanders, Singler,
//! "Cache-, Hash- and Space-Efficient Bloom Filters", 2007): all bits of an entity are in one line of the cache.
//! Each page has blocks of its own, so that they are written one after the other.

use hutong_proto::EntityId;

const WORDS: usize = 8;
const BLOCK_BITS: usize = WORDS * 64;
const BLOCK_BYTES: usize = WORDS * 8;
/// Of a page; ten bits for each of 256 rows. One look-up in about a hundred reads a page for nothing.
const BLOCKS: usize = 5;
const PROBES: u32 = 6;
/// Bits of a hash that choose one of a block.
const PROBE_BITS: u32 = BLOCK_BITS.trailing_zeros();

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pages: Vec<[[u64; WORDS]; BLOCKS]>,
}

/// Which block, and the bits in it. Entities are hashes as a rule, but nobody promises that. Never changed: it
/// decides what is on disk.
fn place(entity: EntityId) -> (usize, u64) {
    let (a, b) = entity.0.split_at(8);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 of 16 bytes"));
    let mut n = number(a)
        ^ number(b)
            .rotate_left(32)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The last steps of MurmurHash3 (Appleby, public domain).
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        n = (n ^ n >> 33).wrapping_mul(factor);
    }
    n ^= n >> 33;
    (
        (n % BLOCKS as u64) as usize,
        n.wrapping_mul(0xbf58_476d_1ce4_e5b9),
    )
}

fn probes(bits: u64) -> impl Iterator<Item = usize> {
    (0..PROBES).map(move |i| (bits >> (64 - PROBE_BITS * (i + 1))) as usize & (BLOCK_BITS - 1))
}

impl Filter {
    /// The next page has these.
    pub fn add_page(&mut self, entities: impl Iterator<Item = EntityId>) {
        let mut blocks = [[0; WORDS]; BLOCKS];
        for entity in entities {
            let (block, bits) = place(entity);
            for bit in probes(bits) {
                blocks[block][bit / 64] |= 1 << (bit % 64);
            }
        }
        self.pages.push(blocks);
    }

    /// Never false of a page that has it.
    pub fn may_have(&self, page: usize, entity: EntityId) -> bool {
        let (block, bits) = place(entity);
        let page = self.pages.get(page);
        page.is_none_or(|blocks| {
            probes(bits).all(|bit| blocks[block][bit / 64] >> (bit % 64) & 1 == 1)
        })
    }

    pub fn bytes(&self) -> usize {
        self.pages.len() * BLOCKS * BLOCK_BYTES
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        for word in self.pages.as_flattened().as_flattened() {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    /// `None` of a part of a page.
    pub fn decode(bytes: &[u8]) -> Option<Filter> {
        let (words, odd_bytes) = bytes.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|w| u64::from_le_bytes(*w)).collect();
        let (blocks, odd_words) = words.as_chunks::<WORDS>();
        let (pages, odd_blocks) = blocks.as_chunks::<BLOCKS>();
        let whole = odd_bytes.is_empty() && odd_words.is_empty() && odd_blocks.is_empty();
        whole.then(|| Filter {
            pages: pages.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entity(n: u64) -> EntityId {
        let mut id = [0; 16];
        // The worst there is: numbers in turn.
        id[8..].copy_from_slice(&n.to_be_bytes());
        EntityId(id)
    }

    #[test]
    fn what_a_page_has_is_found_there_and_little_else() {
        const ROWS: u64 = 256;
        const PAGES: u64 = 64;
        let mut filter = Filter::default();
        for page in 0..PAGES {
            filter.add_page((page * ROWS..(page + 1) * ROWS).map(entity));
        }
        let mut bytes = Vec::new();
        filter.encode(&mut bytes);
        assert_eq!(bytes.len(), filter.bytes());
        assert_eq!(Filter::decode(&bytes).as_ref(), Some(&filter));
        assert_eq!(Filter::decode(&bytes[1..]), None);
        let has = |n: u64, page: u64| filter.may_have(page as usize, entity(n));
        assert!((0..PAGES * ROWS).all(|n| has(n, n / ROWS)));
        let wrong = (0..PAGES * ROWS).filter(|n| has(*n, (n / ROWS + 1) % PAGES));
        let wrong = wrong.count();
        assert!(
            wrong < (PAGES * ROWS / 40) as usize,
            "{wrong} of {}",
            PAGES * ROWS
        );
        assert!(
            filter.may_have(PAGES as usize, entity(1)),
            "nobody knows that page"
        );
    }
}
