//! Keys and values: what the table `kv` holds, in the order of its keys.

use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;

/// The least index there is; see [`super::View::index`].
const INDEX_MIN: u64 = 1;

/// What stands under one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyEntry {
    pub value: Vec<u8>,
    /// A number that clients attach; nobody here reads it.
    pub flags: u64,
    pub create_index: u64,
    pub modify_index: u64,
}

/// All keys at one moment. Keys are compared byte by byte, with case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keys {
    held: OrdMap<Arc<str>, Arc<KeyEntry>>,
    /// When a key last went.
    gone_at: u64,
}

impl Default for Keys {
    fn default() -> Self {
        Self { held: OrdMap::new(), gone_at: INDEX_MIN }
    }
}

impl Keys {
    /// Returns what stands under a key.
    pub fn get(&self, key: &str) -> Option<&Arc<KeyEntry>> {
        self.held.get(key)
    }

    /// Lists the keys that begin with a prefix, in their order; all of them for an empty one.
    pub fn under<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<KeyEntry>)> + 'a {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        self.held.range::<_, str>(from).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Returns when a key last changed. One that is not there has the index of the last time any
    /// key went, so no key's index ever falls.
    pub fn index(&self, key: &str) -> u64 {
        self.get(key).map_or(self.gone_at, |entry| entry.modify_index)
    }

    /// Returns when anything under a prefix last changed, or any key at all last went.
    pub fn index_under(&self, prefix: &str) -> u64 {
        let changed = self.under(prefix).map(|(_, entry)| entry.modify_index).max();
        changed.unwrap_or(INDEX_MIN).max(self.gone_at)
    }

    /// Takes over a row of the table, or that it went, and tells whether anything changed.
    pub(super) fn take_in(&mut self, at: u64, key: &Arc<str>, row: Option<(Vec<u8>, u64)>) -> bool {
        let held = self.held.get(key);
        let Some((value, flags)) = row else {
            let was_here = held.is_some();
            if was_here {
                self.held.remove(key);
                self.gone_at = at;
            }
            return was_here;
        };
        let create_index = match held {
            Some(held) if held.value == value && held.flags == flags => return false,
            Some(held) => held.create_index,
            None => at,
        };
        let entry = KeyEntry { value, flags, create_index, modify_index: at };
        self.held.insert(Arc::clone(key), Arc::new(entry));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(named: &[&str]) -> Keys {
        let mut keys = Keys::default();
        for (at, key) in (10..).zip(named) {
            assert!(keys.take_in(at, &(*key).into(), Some((b"v".to_vec(), 0))));
        }
        keys
    }

    #[test]
    fn keys_under_a_prefix_come_in_their_order() {
        let keys = keys(&["b", "a/2", "a", "a/1", "ab", "ä"]);
        let under = |prefix| keys.under(prefix).map(|(key, _)| &**key).collect::<Vec<_>>();
        assert_eq!(under("a/"), ["a/1", "a/2"]);
        assert_eq!(under("a"), ["a", "a/1", "a/2", "ab"]);
        assert_eq!(under(""), ["a", "a/1", "a/2", "ab", "b", "ä"]);
        assert!(under("c").is_empty());
    }

    #[test]
    fn an_index_moves_with_its_key_and_never_falls() {
        let mut keys = keys(&["a/1", "a/2", "b"]);
        assert_eq!((keys.index("a/1"), keys.index_under("a/"), keys.index_under("")), (10, 11, 12));
        assert_eq!((keys.index("new"), keys.index_under("new")), (1, 1));
        // The same again is no change, as in newer Consuls.
        assert!(!keys.take_in(20, &"a/1".into(), Some((b"v".to_vec(), 0))));
        assert!(keys.take_in(20, &"a/1".into(), Some((b"v".to_vec(), 7))));
        let entry = keys.get("a/1").unwrap();
        assert_eq!((entry.create_index, entry.modify_index, entry.flags), (10, 20, 7));
        assert!(keys.take_in(30, &"a/1".into(), None));
        assert!(!keys.take_in(40, &"a/1".into(), None));
        assert_eq!((keys.index("a/1"), keys.index_under("a/"), keys.index("b")), (30, 30, 12));
    }
}
