//! Samples that are read several times, kept in memory as they were read, up to a share of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use super::{Dataset, SampleError, Scene, forward::forward};
use crate::tensor::{Tensor, TensorMap};

/// Share of the free memory that may be taken.
const SHARE: u64 = 8;

static SAMPLES_READ: AtomicU64 = AtomicU64::new(0);

/// Samples that [`Kept`] data sets of this process had to read, and pictures that they had to decode, so far.
pub fn samples_read() -> u64 {
    SAMPLES_READ.load(Ordering::Relaxed)
}

/// A data set that keeps in memory what [`Dataset::keep`] names, from its first reading on, until there is no room left.
/// What came first stays: a pass that goes round and round would push out of a full store just what it needs next.
pub struct Kept {
    inner: Box<dyn Dataset>,
    store: Mutex<Store>,
}

#[derive(Default)]
struct Store {
    wanted: BTreeSet<usize>,
    samples: BTreeMap<usize, (TensorMap, Option<Scene>)>,
    masks: BTreeMap<usize, Option<Tensor>>,
    /// Bytes that may still be taken.
    room: usize,
}

impl Store {
    /// Whether something of `bytes` belonging to a sample is to be kept; takes the room for it.
    fn takes(&mut self, index: usize, bytes: usize) -> bool {
        let rest = self.room.checked_sub(bytes).filter(|_| self.wanted.contains(&index));
        self.room = rest.unwrap_or(self.room);
        rest.is_some()
    }
}

impl Kept {
    /// Keeps samples of `inner` in an eighth of the memory that is free now.
    pub fn new(inner: Box<dyn Dataset>) -> Self {
        Self::within(inner, usize::try_from(free_bytes() / SHARE).unwrap_or(usize::MAX))
    }

    /// The same in `bytes` of memory.
    pub fn within(inner: Box<dyn Dataset>, bytes: usize) -> Self {
        Self { inner, store: Mutex::new(Store { room: bytes, ..Store::default() }) }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dataset for Kept {
    forward!(len id label mask_file has_boxes truth_hash file);

    fn mask(&self, index: usize) -> Result<Option<Tensor>, SampleError> {
        let kept = self.store().masks.get(&index).cloned();
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let mask = self.inner.mask(index)?;
        let mut store = self.store();
        if store.takes(index, mask.as_ref().map_or(0, Tensor::bytes)) {
            store.masks.insert(index, mask.clone());
        }
        Ok(mask)
    }

    fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
        Ok(self.read(index)?.0)
    }

    fn read(&self, index: usize) -> Result<(TensorMap, Option<Scene>), SampleError> {
        let kept = self.store().samples.get(&index).cloned();
        if let Some(kept) = kept {
            return Ok(kept);
        }
        SAMPLES_READ.fetch_add(1, Ordering::Relaxed);
        let read = self.inner.read(index)?;
        let mut store = self.store();
        if store.takes(index, read.0.values().map(Tensor::bytes).sum()) {
            store.samples.insert(index, read.clone());
        }
        Ok(read)
    }

    fn keep(&self, indices: &[usize]) {
        self.store().wanted.extend(indices);
    }

    fn picture(&self, index: usize, side: usize) -> Option<Vec<u8>> {
        SAMPLES_READ.fetch_add(1, Ordering::Relaxed);
        self.inner.picture(index, side)
    }

    fn thumbnail(&self, index: usize) -> Option<Vec<u8>> {
        SAMPLES_READ.fetch_add(1, Ordering::Relaxed);
        self.inner.thumbnail(index)
    }
}

/// Memory that this process may still take: of the machine, of its container, of its own limit; 0 where nothing tells.
pub fn free_bytes() -> u64 {
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()));
    let Ok(system) = system else { return 0 };
    let container = system.cgroup_limits().map(|limits| limits.free_memory);
    let free = container.into_iter().chain(own_limit()).fold(system.available_memory(), u64::min);
    // Inside a container the machine's free memory may be unknown.
    if system.available_memory() == 0 { container.unwrap_or(0) } else { free }
}

/// The limit of the data of this process in bytes, if it has one.
fn own_limit() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max data size"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives another value at every reading, so that a second reading shows.
    struct Counting(AtomicU64);

    impl Dataset for Counting {
        fn len(&self) -> usize {
            4
        }

        fn id(&self, index: usize) -> &str {
            ["a", "b", "c", "d"][index]
        }

        fn label(&self, _: usize) -> Option<u32> {
            None
        }

        fn mask(&self, index: usize) -> Result<Option<Tensor>, SampleError> {
            Ok(Some(self.sample(index)?["x"].clone()))
        }

        fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
            let reading = self.0.fetch_add(1, Ordering::Relaxed) as f32;
            if index == 3 {
                return Err(SampleError { sample: "d".to_owned(), reason: format!("reading {reading}") });
            }
            let tensor = Tensor::from_f32(vec![1, 2], vec![index as f32, reading]);
            Ok(TensorMap::from([("x".to_owned(), tensor.unwrap())]))
        }
    }

    fn readings(kept: &Kept, indices: &[usize]) -> Vec<f32> {
        indices.iter().map(|&index| kept.sample(index).unwrap()["x"].to_f32()[1]).collect()
    }

    #[test]
    fn what_is_named_is_read_once_while_there_is_room() {
        // Room for two samples of two numbers.
        let kept = Kept::within(Box::new(Counting(AtomicU64::new(0))), 20);
        assert_eq!(readings(&kept, &[0, 1, 0]), [0.0, 1.0, 2.0], "nothing was named");
        kept.keep(&[0, 1, 2, 3]);
        assert_eq!(readings(&kept, &[1, 2, 0, 1, 2, 0]), [3.0, 4.0, 5.0, 3.0, 4.0, 6.0], "the first two stay");
        let bad = || kept.sample(3).unwrap_err().reason;
        assert_eq!([bad(), bad()], ["reading 7", "reading 8"], "what cannot be read is told every time");
    }

    #[test]
    fn label_masks_are_kept_beside_their_samples() {
        let kept = Kept::within(Box::new(Counting(AtomicU64::new(0))), 16);
        kept.keep(&[0]);
        let mask = || kept.mask(0).unwrap().unwrap().to_f32()[1];
        assert_eq!([mask(), readings(&kept, &[0])[0], mask(), readings(&kept, &[0])[0]], [0.0, 1.0, 0.0, 1.0]);
    }

    #[test]
    fn the_share_is_part_of_the_machine() {
        let free = free_bytes();
        assert!(free > 1 << 20, "{free}");
    }
}
