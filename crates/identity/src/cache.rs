//! What is remembered of validated tokens: bounded, and forgetting the unused first.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// The young and the old.
type Generations<K, V> = (HashMap<K, Arc<V>>, HashMap<K, Arc<V>>);

/// A map of two generations: when the young one is full it becomes the old one, and what was in the old one and not
/// asked for since is forgotten. Lookups and insertions are constant in time; there are at most `most` entries.
#[derive(Debug)]
pub struct Cache<K, V> {
    maps: Mutex<Generations<K, V>>,
    most: usize,
}

impl<K: Hash + Eq, V> Cache<K, V> {
    /// A cache of at most `most` entries; 0 remembers nothing.
    pub fn new(most: usize) -> Self {
        Cache { maps: Mutex::default(), most }
    }

    /// What is remembered under `key`.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut maps = self.maps.lock();
        let (young, old) = &mut *maps;
        if let Some(value) = young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = old.remove_entry(key)?;
        let found = value.clone();
        Self::insert(&mut maps, self.most, key, value);
        Some(found)
    }

    /// Remembers `value`.
    pub fn put(&self, key: K, value: Arc<V>) {
        Self::insert(&mut self.maps.lock(), self.most, key, value);
    }

    fn insert(maps: &mut Generations<K, V>, most: usize, key: K, value: Arc<V>) {
        if most == 0 {
            return;
        }
        if maps.0.len() >= most.div_ceil(2) {
            maps.1 = std::mem::take(&mut maps.0);
        }
        maps.0.insert(key, value);
    }

    /// Forgets `key`.
    pub fn remove(&self, key: &K) {
        let mut maps = self.maps.lock();
        maps.0.remove(key);
        maps.1.remove(key);
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        let maps = self.maps.lock();
        maps.0.len() + maps.1.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let cache = Cache::new(10);
        cache.put(0, Arc::new(0));
        for i in 1..1000 {
            cache.put(i, Arc::new(i));
            assert_eq!(cache.get(&0).as_deref(), Some(&0), "asked for every time");
            assert!(cache.len() <= 10, "{}", cache.len());
        }
        assert!(cache.get(&500).is_none());
        assert_eq!(cache.get(&999).as_deref(), Some(&999));
        cache.remove(&999);
        assert!(cache.get(&999).is_none());
        let nothing = Cache::new(0);
        nothing.put(1, Arc::new(1));
        assert_eq!(nothing.len(), 0);
    }
}
