//! Small models for the tests of this module.

use std::collections::BTreeMap;

use crate::{
    artifact::{ContentHash, Tool},
    backend::TensorInfo,
    calibrate::{CalibrationTable, Method, TensorRange},
    onnx::{
        Model,
        proto::{
            DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
            TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto,
        },
    },
    tensor::{ElementType, Tensor},
};

/// A graph under construction.
pub struct TestModel {
    graph: GraphProto,
    opset: i64,
}

impl TestModel {
    pub fn new(opset: i64) -> Self {
        Self { graph: GraphProto { name: Some("test".to_owned()), ..GraphProto::default() }, opset }
    }

    pub fn input(mut self, name: &str, shape: &[i64]) -> Self {
        self.graph.input.push(info(name, shape));
        self
    }

    pub fn output(mut self, name: &str, shape: &[i64]) -> Self {
        self.graph.output.push(info(name, shape));
        self
    }

    /// A constant with values between -1 and 1 that differ from each other.
    pub fn weight(mut self, name: &str, shape: &[usize]) -> Self {
        let count = shape.iter().product();
        let values = (0..count).map(|index: usize| ((index * 7919 + 13) % 1999) as f32 / 999.5 - 1.0).collect();
        let tensor = Tensor::from_f32(shape.to_vec(), values).unwrap();
        self.graph.initializer.push(TensorProto::from_tensor(name, tensor));
        self
    }

    pub fn node(mut self, node: NodeProto) -> Self {
        self.graph.node.push(node);
        self
    }

    /// A node named after its output.
    pub fn op(self, op_type: &str, inputs: &[&str], output: &str) -> Self {
        self.node(NodeProto::new(op_type, output, inputs, &[output]))
    }

    pub fn graph_mut(&mut self) -> &mut GraphProto {
        &mut self.graph
    }

    pub fn build(self) -> Model {
        let proto = ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(self.opset) }],
            graph: Some(self.graph),
            ..ModelProto::default()
        };
        Model {
            proto,
            path: None,
            hash: ContentHash::of_bytes(b"test"),
            external_data: false,
            stands_for: BTreeMap::new(),
        }
    }
}

/// A `float32` tensor; negative extents are dynamic.
pub fn info(name: &str, shape: &[i64]) -> ValueInfoProto {
    let extent = |&extent: &i64| DimensionProto {
        value: (extent >= 0).then_some(DimensionValue::DimValue(extent)),
        ..DimensionProto::default()
    };
    let shape = TensorShapeProto { dim: shape.iter().map(extent).collect() };
    let tensor = TensorTypeProto { elem_type: Some(ElementType::F32.onnx()), shape: Some(shape) };
    let value = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(value), ..ValueInfoProto::default() }
}

/// No shapes beyond those that the file declares.
pub fn no_shapes() -> BTreeMap<String, TensorInfo> {
    BTreeMap::new()
}

/// A table with the range [-amax, amax] for each tensor.
pub fn table(ranges: &[(&str, f32)]) -> CalibrationTable {
    let range = |amax: f32| TensorRange {
        min: -amax,
        max: amax,
        count: 1,
        amax,
        method: Method::MinMax,
        candidates: BTreeMap::new(),
        clipped: 0.0,
    };
    CalibrationTable {
        format_version: crate::calibrate::TABLE_FORMAT_VERSION,
        tool: Tool::current(),
        model_hash: ContentHash::of_bytes(b"test"),
        data_hash: ContentHash::of_bytes(b"data"),
        method: "minmax".to_owned(),
        percentile: 99.99,
        samples: 1,
        random_data: false,
        tensors: ranges.iter().map(|&(name, amax)| (name.to_owned(), range(amax))).collect(),
        bias_corrections: BTreeMap::new(),
        magnitudes: None,
        calibrated_on: BTreeMap::new(),
        recovered: None,
        fp8: None,
    }
}
