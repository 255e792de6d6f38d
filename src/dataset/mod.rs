//! Where samples come from, and how a file becomes a model's input.

use crate::tensor::TensorMap;

/// Why one sample cannot be used. The run goes on without it and reports it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sample}: {reason}")]
pub struct SampleError {
    /// The sample (its file, usually).
    pub sample: String,
    /// What is wrong with it.
    pub reason: String,
}

/// An indexed collection of samples; reading one does not touch the others, so any number of threads may read.
pub trait Dataset: Sync {
    /// Number of samples.
    fn len(&self) -> usize;

    /// True without samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A name that is unique in the data set and stable between runs (the path within the folder, usually).
    fn id(&self, index: usize) -> &str;

    /// The right class, where it is known.
    fn label(&self, index: usize) -> Option<u32>;

    /// Reads one sample: every input of the model, each with a leading extent of 1 for the batch.
    fn sample(&self, index: usize) -> Result<TensorMap, SampleError>;

    /// A small picture of the sample for people, as JPEG or PNG bytes; `None` when it is no picture.
    fn thumbnail(&self, index: usize) -> Option<Vec<u8>> {
        let _ = index;
        None
    }
}
