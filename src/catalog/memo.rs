//! A place beside something that never changes, for what a face works out of it.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Keeps what was worked out of its owner for as long as the owner lives. A copy starts without.
#[derive(Default)]
pub struct Memo(OnceLock<Arc<dyn Any + Send + Sync>>);

impl Memo {
    /// Returns what is kept here. Whoever comes first says what that is; all have to mean the same type.
    ///
    /// # Panics
    /// Something of another type is kept.
    pub fn get_or_default<T: Any + Default + Send + Sync>(&self) -> Arc<T> {
        let kept = self.0.get_or_init(|| Arc::new(T::default()));
        let kept = Arc::clone(kept).downcast::<T>();
        kept.unwrap_or_else(|_| unreachable!("one memo is used for one type"))
    }
}

impl Clone for Memo {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What is kept follows from the owner: owners are equal without it.
impl PartialEq for Memo {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Memo {}

impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memo")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memo_keeps_one_thing_and_gives_none_to_a_copy() {
        let memo = Memo::default();
        let slot: Arc<OnceLock<u32>> = memo.get_or_default();
        slot.set(7).unwrap();
        assert_eq!(memo.get_or_default::<OnceLock<u32>>().get(), Some(&7));
        assert_eq!(memo.clone().get_or_default::<OnceLock<u32>>().get(), None);
    }
}
