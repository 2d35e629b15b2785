//! What a node keeps over a restart.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, PoisonError},
};

use meshwork_mesh::StateStore;

/// A disk. When its node dies, it is pulled out: what the dead node's tasks still write is lost, as
/// it would be.
#[derive(Debug, Default)]
pub(super) struct Disk(Mutex<Content>);

#[derive(Debug, Default, Clone)]
struct Content {
    values: BTreeMap<String, Vec<u8>>,
    pulled: bool,
}

impl Disk {
    /// Takes it from its node; another one with what was on it by now.
    pub(super) fn pull(&self) -> Self {
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = Content {
            pulled: false,
            ..content.clone()
        };
        content.pulled = true;
        Self(Mutex::new(copy))
    }
}

impl StateStore for Disk {
    fn get(&self, key: &str) -> io::Result<Option<Vec<u8>>> {
        let content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(content.values.get(key).cloned())
    }

    fn put(&self, key: &str, value: &[u8]) -> io::Result<()> {
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !content.pulled {
            content.values.insert(key.to_owned(), value.to_vec());
        }
        Ok(())
    }
}
