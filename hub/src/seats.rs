//! How many of something each has at once, so that nobody has them all.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Who has how many. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Seats<K>(Arc<Mutex<HashMap<K, usize>>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat<K: Eq + Hash> {
    seats: Seats<K>,
    of: K,
}

impl<K> Default for Seats<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash> Seats<K> {
    /// One more for `of`; `None` when there are `most` already.
    pub(crate) fn seat(&self, of: K, most: usize) -> Option<Seat<K>> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.get(&of).is_some_and(|count| *count >= most) {
            return None;
        }
        *taken.entry(of.clone()).or_default() += 1;
        Some(Seat { seats: self.clone(), of })
    }
}

impl<K: Eq + Hash> Drop for Seat<K> {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_the_most_and_who_is_gone_is_forgotten() {
        let seats = Seats::default();
        let (first, second) = (seats.seat("ann", 2), seats.seat("ann", 2));
        assert!(first.is_some() && second.is_some());
        assert!(seats.seat("ann", 2).is_none());
        let other = seats.seat("bob", 2);
        assert!(other.is_some());
        drop(second);
        let third = seats.seat("ann", 2);
        assert!(third.is_some());
        drop((first, third, other));
        assert!(seats.0.lock().expect("a map").is_empty());
    }
}
