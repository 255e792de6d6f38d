//! Files as bytes: read, or memory-mapped when they are large and given back to the system piece by piece.
//!
//! What has been read of a map stays in the process's memory until the map goes: going once through all weights of
//! a large model would hold all of them. [`release`] lets go of one that has been used.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use memmap2::{Mmap, UncheckedAdvice};

use crate::artifact::open_regular;

/// Files of this size and more are mapped, smaller ones read: a mapped file that someone else overwrites in place
/// ends the process.
const MAP_FROM_BYTES: u64 = 64 << 20;
/// Smaller pieces are not worth a system call.
const RELEASE_FROM_BYTES: usize = 64 << 10;

/// Live maps by their address: what may be released.
static MAPS: Mutex<BTreeMap<usize, Weak<Mmap>>> = Mutex::new(BTreeMap::new());

/// Keeps a map alive as long as bytes of it are in use.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The content of a regular file, mapped when it is large.
pub(super) fn read(path: &Path) -> io::Result<Bytes> {
    let mut file = open_regular(path)?;
    let length = file.metadata()?.len();
    if length >= MAP_FROM_BYTES {
        return map(&file);
    }
    let mut content = Vec::with_capacity(length as usize);
    file.read_to_end(&mut content)?;
    Ok(content.into())
}

fn map(file: &File) -> io::Result<Bytes> {
    // SAFETY: the map is read-only and private to this process. Another process can still change or cut the file in
    // place: decoded strings are copies and checked, weights are plain numbers of any bit pattern, and a cut file
    // ends the process with SIGBUS, never in undefined reads of other memory.
    let map = Arc::new(unsafe { Mmap::map(file) }?);
    let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    maps.retain(|_, map| map.strong_count() > 0);
    maps.insert(map.as_ptr() as usize, Arc::downgrade(&map));
    Ok(Bytes::from_owner(Owner(map)))
}

/// Gives the memory of mapped bytes back to the system, which reads them from the file again when they are used
/// again. Does nothing for bytes in memory of their own.
pub fn release(bytes: &[u8]) {
    if bytes.len() < RELEASE_FROM_BYTES {
        return;
    }
    let address = bytes.as_ptr() as usize;
    let maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((start, map)) = maps.range(..=address).next_back() else { return };
    let Some(map) = map.upgrade().filter(|map| address + bytes.len() <= start + map.len()) else { return };
    // SAFETY: the range lies in a private, read-only map of a file: dropped pages come back from that file, with the
    // same content, at the next access.
    // A refusal only means that the memory is kept.
    let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, address - start, bytes.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_bytes_read_the_same_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..300_000u32).map(|index| (index % 251) as u8).collect();
        std::fs::write(file.path(), &content).unwrap();
        let bytes = map(&File::open(file.path()).unwrap()).unwrap();
        let piece = bytes.slice(1000..201_000);
        drop(bytes);
        assert_eq!(piece, content[1000..201_000]);
        release(&piece);
        assert_eq!(piece, content[1000..201_000]);
        let own = content.clone();
        release(&own);
        assert_eq!(own, content);
    }
}
