//! Values that exist once for each direction of a channel or a node.

use std::ops::{Index, IndexMut};

use wire::cell::Direction;

/// Both directions, in the order in which a turn serves them.
pub const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Backward];

/// One `T` for cells towards the exit, one for cells towards the entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerDirection<T> {
    pub forward: T,
    pub backward: T,
}

impl<T> PerDirection<T> {
    /// Calls `make` for each direction.
    pub fn from_fn(mut make: impl FnMut(Direction) -> T) -> PerDirection<T> {
        PerDirection { forward: make(Direction::Forward), backward: make(Direction::Backward) }
    }

    /// Both values, forward first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.forward, &self.backward].into_iter()
    }

    /// Both values, forward first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        [&mut self.forward, &mut self.backward].into_iter()
    }
}

impl<T> Index<Direction> for PerDirection<T> {
    type Output = T;

    fn index(&self, direction: Direction) -> &T {
        match direction {
            Direction::Forward => &self.forward,
            Direction::Backward => &self.backward,
        }
    }
}

impl<T> IndexMut<Direction> for PerDirection<T> {
    fn index_mut(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::Forward => &mut self.forward,
            Direction::Backward => &mut self.backward,
        }
    }
}
