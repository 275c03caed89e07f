//! Items by index, in blocks that stay where they are: growing copies nothing, so no turn waits for it, and what a key
//! was is not left behind in memory that somebody else gets.

use crate::sys;

/// Address space of a block, which is more than a huge page, for the system puts blocks anywhere; memory comes as it is
/// touched.
const BLOCK_BYTES: usize = 16 << 20;

/// Items by index; some are not there.
pub(crate) struct Slab<T> {
    blocks: Vec<Vec<Option<T>>>,
    huge: bool,
}

impl<T> Slab<T> {
    /// Items of a block: a power of two.
    const BLOCK: usize = 1 << (BLOCK_BYTES / size_of::<Option<T>>()).ilog2();

    /// An empty slab; on huge pages if `huge` is set and the system has them.
    pub(crate) const fn new(huge: bool) -> Slab<T> {
        Slab { blocks: Vec::new(), huge }
    }

    fn place(&self, index: usize) -> Option<&Option<T>> {
        self.blocks.get(index / Self::BLOCK)?.get(index % Self::BLOCK)
    }

    /// The item at an index.
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.place(index)?.as_ref()
    }

    /// The item at an index.
    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.blocks.get_mut(index / Self::BLOCK)?.get_mut(index % Self::BLOCK)?.as_mut()
    }

    /// The address of an item or of its vacant entry. Does not read it, because that would wait for memory.
    pub(crate) fn address(&self, index: usize) -> Option<*const u8> {
        self.place(index).map(|place| (&raw const *place).cast())
    }

    /// Puts an item in place of what is there.
    pub(crate) fn insert(&mut self, index: usize, item: T) {
        let (block, at) = (index / Self::BLOCK, index % Self::BLOCK);
        while self.blocks.len() <= block {
            let mut fresh = Vec::with_capacity(Self::BLOCK);
            if self.huge {
                sys::on_huge_pages(fresh.spare_capacity_mut());
            }
            self.blocks.push(fresh);
        }
        let items = &mut self.blocks[block];
        if items.len() <= at {
            items.resize_with(at + 1, || None);
        }
        items[at] = Some(item);
    }

    /// Takes an item out.
    pub(crate) fn take(&mut self, index: usize) -> Option<T> {
        self.blocks.get_mut(index / Self::BLOCK)?.get_mut(index % Self::BLOCK)?.take()
    }

    /// All items with their indices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        let blocks = self.blocks.iter().enumerate();
        blocks.flat_map(|(block, items)| {
            let items = items.iter().enumerate();
            items.filter_map(move |(at, item)| Some((block * Self::BLOCK + at, item.as_ref()?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_stay_where_they_are_and_are_found_again() {
        for huge in [false, true] {
            let mut slab = Slab::<[u64; 200]>::new(huge);
            let indices = [0, 7, Slab::<[u64; 200]>::BLOCK - 1, Slab::<[u64; 200]>::BLOCK, 30_000];
            let mut places = Vec::new();
            for index in indices {
                slab.insert(index, [index as u64; 200]);
                places.push(slab.address(index));
            }
            assert!(indices.iter().zip(&places).all(|(index, place)| slab.address(*index) == *place));
            assert!(slab.iter().map(|(index, item)| (index, item[199])).eq(indices.map(|i| (i, i as u64))));
            slab.get_mut(7).unwrap()[0] = 8;
            assert_eq!((slab.take(7).map(|item| item[0]), slab.take(7), slab.get(7)), (Some(8), None, None));
            assert_eq!((slab.get(6), slab.get(1 << 30), slab.address(1 << 30)), (None, None, None));
            assert_eq!(slab.iter().count(), 4);
        }
    }
}
