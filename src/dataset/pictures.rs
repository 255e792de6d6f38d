//! Samples that are pictures which a program holds, in the place of files.

use super::{
    Dataset, DatasetError, InputSpec, SampleError, Scene, forward::forward, images::ImageInput, preprocess::Preprocess,
    resample::RgbImage,
};
use crate::tensor::{TensorMap, Values};

/// Another data set's pictures, as they become a model's input.
pub struct Pictures {
    inner: Box<dyn Dataset>,
    input: ImageInput,
    preprocess: Preprocess,
}

impl Pictures {
    /// `inner` gives pictures as [`picture`] knows them.
    ///
    /// # Errors
    /// The model takes no pictures, or the preprocessing cannot be used.
    pub fn new(inner: Box<dyn Dataset>, inputs: &[InputSpec], preprocess: Preprocess) -> Result<Self, DatasetError> {
        preprocess.check().map_err(DatasetError::Input)?;
        Ok(Self { inner, input: ImageInput::of(inputs, preprocess.layout)?, preprocess })
    }
}

/// The picture that a sample is, if it is one: a single tensor of `uint8`, `[1, height, width, 3]`.
pub fn picture(sample: TensorMap) -> Option<RgbImage> {
    let (_, tensor) = sample.into_iter().next()?;
    let (shape, values) = tensor.into_parts();
    match (&shape[..], values) {
        (&[1, height, width, 3], Values::U8(data)) if height > 0 && width > 0 => Some(RgbImage { width, height, data }),
        _ => None,
    }
}

impl Dataset for Pictures {
    forward!(len id label);

    fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
        Ok(self.read(index)?.0)
    }

    fn read(&self, index: usize) -> Result<(TensorMap, Option<Scene>), SampleError> {
        let bad = |reason: String| SampleError { sample: self.id(index).to_owned(), reason };
        let sample = self.inner.sample(index)?;
        let picture = picture(sample).ok_or_else(|| {
            bad("it is not a picture like the others: one array of uint8, height × width × 3".to_owned())
        })?;
        let (inputs, placement) = self.input.of_picture(picture, &self.preprocess).map_err(bad)?;
        Ok((inputs, Some(Scene { placement, truths: None, id: None })))
    }
}
