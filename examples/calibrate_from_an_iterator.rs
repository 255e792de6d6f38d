//! Ranges from samples that a program makes itself: from any iterator.
//!
//! `cargo run --example calibrate_from_an_iterator -- calib_data/demo.onnx table.json`

#![expect(clippy::print_stdout, reason = "an example tells what it did")]

use std::{error::Error, path::Path};

use trtcalib::{
    config::RunConfig,
    dataset::{Dataset, SampleError},
    quantize::Precision,
    session::{CalibrateOptions, Host, Session},
    tensor::{Tensor, TensorMap},
};

/// Samples in memory, each under a name of its own.
struct Frames(Vec<(String, TensorMap)>);

impl FromIterator<TensorMap> for Frames {
    fn from_iter<I: IntoIterator<Item = TensorMap>>(frames: I) -> Self {
        Self(frames.into_iter().enumerate().map(|(number, frame)| (format!("frame {number}"), frame)).collect())
    }
}

impl Dataset for Frames {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn id(&self, index: usize) -> &str {
        &self.0[index].0
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
        Ok(self.0[index].1.clone())
    }

    fn is_in_memory(&self) -> bool {
        true
    }
}

/// Stands for a camera: pictures `[1, 3, 64, 64]` as the model's input `input` takes them, a wave that moves.
fn frame(number: usize) -> Result<TensorMap, Box<dyn Error>> {
    let value = |index: usize| ((index % 64 + 8 * number) as f32 / 10.0).sin();
    let picture = Tensor::from_f32(vec![1, 3, 64, 64], (0..3 * 64 * 64).map(value).collect())?;
    Ok(TensorMap::from([("input".to_owned(), picture)]))
}

/// Calibrates `model` and writes its table; returns the number of tensors that have a range.
pub fn run(model: &Path, table: &Path) -> Result<usize, Box<dyn Error>> {
    let frames = (0..32).map(frame).collect::<Result<Frames, _>>()?;
    let config = RunConfig { model: Some(model.to_owned()), ..RunConfig::default() };
    let session = Session::with_dataset(config, Box::new(frames), None, &Host::default())?;
    let calibrated = session.calibrate(Precision::Int8, CalibrateOptions::default())?;
    calibrated.chosen.table.save(table)?;
    Ok(calibrated.chosen.table.tensors.len())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, table] = &arguments[..] else { return Err("usage: calibrate_from_an_iterator MODEL TABLE".into()) };
    println!("{} tensors have a range in {table}", run(model.as_ref(), table.as_ref())?);
    Ok(())
}
