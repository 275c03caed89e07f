//! Noise: bodies of random bytes for the places of a round that stay empty (SPEC 9.10.3).
//!
//! They are drawn between releases. A release that had to draw them would take longer the more is missing, which an
//! observer could see.

use rand::Rng;
use rand_chacha::ChaCha20Rng;

use crate::buffer::{Cell, FreeList, Opened};

/// A stock of cells with random bodies.
pub struct Noise {
    body_len: usize,
    stock: Vec<Cell<Opened>>,
    rng: ChaCha20Rng,
}

impl Noise {
    /// An empty stock of bodies of `body_len` bytes.
    pub fn new(body_len: usize, rng: ChaCha20Rng) -> Noise {
        Noise { body_len, stock: Vec::new(), rng }
    }

    /// Fills the stock up to `count` cells, as far as there are free buffers.
    pub fn draw(&mut self, count: usize, free: &mut FreeList) {
        if self.stock.len() >= count {
            return;
        }
        while self.stock.len() < count
            && let Some(buffer) = free.take()
        {
            let mut cell = Cell::own(buffer);
            self.rng.fill_bytes(cell.body_mut(self.body_len));
            self.stock.push(cell);
        }
        // Bodies that have left cannot be drawn again from a seized generator.
        crate::rekey(&mut self.rng);
    }

    /// A cell of the stock, if there is one.
    pub(crate) fn take(&mut self) -> Option<Cell<Opened>> {
        self.stock.pop()
    }

    /// Cells in the stock.
    pub fn len(&self) -> usize {
        self.stock.len()
    }

    /// True if the stock is empty.
    pub fn is_empty(&self) -> bool {
        self.stock.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn noise_differs_from_cell_to_cell() {
        let mut free = FreeList::new(3);
        let mut noise = Noise::new(224, ChaCha20Rng::seed_from_u64(3));
        let mut seen = std::collections::HashSet::new();
        for _ in 0..100 {
            noise.draw(5, &mut free);
            assert_eq!((noise.len(), free.free()), (3, 0), "as many as there are buffers");
            for _ in 0..3 {
                let cell = noise.take().unwrap();
                assert!(seen.insert(cell.bytes(16 + 224)[16..].to_vec()));
                free.give(cell.into_buffer());
            }
        }
        // Ones among the bits: 300 bodies of 1,792 bits, standard deviation 367.
        let ones: i64 = seen.iter().flatten().map(|byte| i64::from(byte.count_ones())).sum();
        assert!((ones - 300 * 896).abs() < 5 * 367, "{ones} ones");
    }
}
