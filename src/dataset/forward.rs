//! What a data set around another hands on to it.

/// Methods of [`Dataset`](super::Dataset) that are those of `self.inner`.
macro_rules! forward {
    ($($method:ident)*) => { $(forward!(@ $method);)* };
    (@ len) => { fn len(&self) -> usize { self.inner.len() } };
    (@ id) => { fn id(&self, index: usize) -> &str { self.inner.id(index) } };
    (@ label) => { fn label(&self, index: usize) -> Option<u32> { self.inner.label(index) } };
    (@ mask_file) => { fn mask_file(&self, index: usize) -> Option<&std::path::Path> { self.inner.mask_file(index) } };
    (@ mask) => {
        fn mask(&self, index: usize) -> Result<Option<crate::tensor::Tensor>, super::SampleError> { self.inner.mask(index) }
    };
    (@ keep) => { fn keep(&self, indices: &[usize]) { self.inner.keep(indices); } };
    (@ has_boxes) => { fn has_boxes(&self, index: usize) -> bool { self.inner.has_boxes(index) } };
    (@ truth_hash) => {
        fn truth_hash(&self, index: usize) -> Option<crate::artifact::ContentHash> { self.inner.truth_hash(index) }
    };
    (@ file) => { fn file(&self, index: usize) -> Option<std::path::PathBuf> { self.inner.file(index) } };
    (@ picture) => { fn picture(&self, index: usize, side: usize) -> Option<Vec<u8>> { self.inner.picture(index, side) } };
}
pub(super) use forward;
