//! Values under small numbers that are used again once they are free.
//!
//! In pieces of a fixed size, so that a hundred thousand values are never moved, and none of their room is wasted.

/// How many values a piece has.
const PIECE: usize = 256;

/// The values. A number is that of a place: whoever removes a value forgets its number.
#[derive(Debug)]
pub(super) struct Slab<T> {
    pieces: Vec<Vec<Option<T>>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), free: Vec::new(), len: 0 }
    }
}

fn place(number: u32) -> (usize, usize) {
    (number as usize / PIECE, number as usize % PIECE)
}

impl<T> Slab<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Keeps a value. There must be fewer than `u32::MAX` of them.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if let Some(number) = self.free.pop() {
            let (piece, at) = place(number);
            self.pieces[piece][at] = Some(value);
            return number;
        }
        if self.pieces.last().is_none_or(|piece| piece.len() == PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let last = self.pieces.len() - 1;
        self.pieces[last].push(Some(value));
        u32::try_from(last * PIECE + self.pieces[last].len() - 1).expect("the caller bounds their number")
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        let (piece, at) = place(number);
        self.pieces.get(piece)?.get(at)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let (piece, at) = place(number);
        self.pieces.get_mut(piece)?.get_mut(at)?.as_mut()
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<T> {
        let (piece, at) = place(number);
        let value = self.pieces.get_mut(piece)?.get_mut(at)?.take()?;
        self.len -= 1;
        self.free.push(number);
        if self.len == 0 {
            *self = Self::default();
        }
        Some(value)
    }

    /// All values, by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(self.pieces.iter().flatten()).filter_map(|(number, value)| Some((number, value.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_and_values_stay_under_theirs() {
        let mut slab = Slab::default();
        let numbers: Vec<u32> = (0..1000).map(|value| slab.insert(value)).collect();
        assert_eq!((numbers[999], slab.len(), slab.get(700)), (999, 1000, Some(&700)));
        for number in (0..1000).filter(|number| number % 3 == 0) {
            assert_eq!(slab.remove(number), Some(number));
            assert_eq!((slab.remove(number), slab.get(number)), (None, None));
        }
        assert_eq!(slab.iter().count(), slab.len());
        let again = slab.insert(7);
        assert!(again < 1000 && again % 3 == 0 && slab.get(again) == Some(&7));
        *slab.get_mut(again).unwrap() = 8;
        assert_eq!(slab.remove(again), Some(8));
        for number in 0..1000 {
            slab.remove(number);
        }
        assert_eq!((slab.len(), slab.insert(1), slab.get(5000)), (0, 0, None));
    }
}
