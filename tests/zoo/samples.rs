//! The models of the zoo and seeded inputs for them.

use std::{collections::BTreeMap, io::Read, ops::Range, path::PathBuf};

use calib_test_support::root;
use flate2::read::GzDecoder;
use serde::Deserialize;
use trtcalib::{
    onnx::Model,
    tensor::{Tensor, TensorMap, Values},
};

use crate::filler::{drawn, fill, words};

/// Samples that ranges come from, and those that errors are measured on; as in `scripts/zoo_peer.py`.
pub const CALIBRATION: Range<usize> = 0..8;
pub const EVALUATION: Range<usize> = 8..32;

/// A line of `zoo.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    pub file: String,
    pub dynamic: bool,
    pub nodes: usize,
    pub inputs: BTreeMap<String, Input>,
}

/// What to feed.
#[derive(Clone, Debug, Deserialize)]
pub struct Input {
    pub dtype: String,
    pub shape: Vec<usize>,
}

fn folder() -> PathBuf {
    root().join("tests/fixtures/zoo")
}

/// Every model, in the order of the list.
pub fn zoo() -> Vec<Entry> {
    serde_json::from_slice(&std::fs::read(folder().join("zoo.json")).unwrap()).unwrap()
}

impl Entry {
    /// The name of the file without its ending.
    pub fn key(&self) -> &str {
        self.file.trim_end_matches(".onnx.gz")
    }

    /// The model with seeded weights.
    pub fn model(&self) -> Model {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(folder().join(&self.file)).unwrap();
        GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        let mut model = Model::from_bytes(bytes).unwrap();
        fill(model.graph_mut());
        model
    }

    /// Sample `number`: every input drawn like a weight named `INPUT#NUMBER`.
    pub fn sample(&self, number: usize) -> TensorMap {
        let draw = |(name, input): (&String, &Input)| {
            let count = input.shape.iter().product();
            let seed = format!("{name}#{number}");
            let values = match input.dtype.as_str() {
                _ if name == "attention_mask" => Values::I64(vec![1; count]),
                "int64" => Values::I64(words(&seed).take(count).map(|word| (word % 500) as i64).collect()),
                "float32" => Values::F32(drawn("seeded normal 0 1", &seed).take(count).map(|x| x as f32).collect()),
                other => panic!("input `{name}` of {other}"),
            };
            (name.clone(), Tensor::new(input.shape.clone(), values).unwrap())
        };
        self.inputs.iter().map(draw).collect()
    }
}
