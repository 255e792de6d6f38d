//! Scales, zero points and weights that operators compute of constants.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    onnx::{
        Fact, GraphView, Model, NodeId,
        proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto},
    },
    tensor::TensorMap,
};

/// Gives the outputs of a model without inputs, or the reason why not.
pub type Compute<'c> = &'c dyn Fn(&Model) -> Result<TensorMap, String>;

/// Operators that TensorRT computes of constants before it builds: tried, for scales of activations and of weights, with
/// TensorRT-RTX 1.7.1.
const BEFOREHAND: &str = "Abs Add Atan Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Cos Div Dropout Equal Exp Expand \
    Flatten Floor HardSigmoid HardSwish Identity LeakyRelu Less Log Max Mean Min Mul Neg Not PRelu Pad Reciprocal \
    Reshape Selu Sign Sin Sinh Slice Softsign Split Sqrt Squeeze Sub Sum Tile Transpose Unsqueeze Where";

/// Operators that it does not, tried likewise: its builder fails, or ends the program.
const NOT_BEFOREHAND: &str = "ArgMax CumSum DequantizeLinear Einsum Elu Erf EyeLike GatherElements GatherND Gelu Gemm IsNaN LpNormalization \
    MatMul Mish Mod OneHot Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceMax ReduceMean ReduceMin ReduceProd \
    ReduceSum ReduceSumSquare Relu Round ScatterElements ScatterND Sigmoid Softmax Softplus Tanh ThresholdedRelu \
    TopK Trilu";

fn is_among(operators: &str, op_type: &str) -> bool {
    operators.split_whitespace().any(|each| each == op_type)
}

/// What a tensor is computed from.
#[derive(Default)]
pub(super) struct Origin<'a> {
    /// On what the model is given, or on random numbers.
    pub runs: bool,
    /// On something that cannot be computed here: shapes, operators with subgraphs or of other domains.
    unseen: bool,
    operators: BTreeSet<&'a str>,
    nodes: BTreeSet<NodeId>,
    leaves: BTreeSet<&'a str>,
}

impl<'a> Origin<'a> {
    pub fn of(view: &GraphView<'a>, constants: &BTreeMap<&'a str, &'a TensorProto>, tensor: &'a str) -> Self {
        let mut origin = Self::default();
        let mut front = vec![tensor];
        while let Some(tensor) = front.pop() {
            if constants.contains_key(tensor) {
                origin.leaves.insert(tensor);
                continue;
            }
            let Some(id) = view.producer(tensor) else {
                // What lies outside a subgraph is judged there.
                let given = view.is_graph_input(tensor);
                (origin.runs, origin.unseen) = (origin.runs || given, origin.unseen || !given);
                continue;
            };
            let node = view.node(id);
            if !origin.nodes.insert(id) {
                continue;
            }
            // One number of a list is cut out of it; of several TensorRT does not take the trouble.
            let is_slice = node.op_type() == "Gather"
                && node.input.get(1).and_then(|at| constants.get(at.as_str())).is_some_and(|at| at.dims.is_empty());
            origin.operators.insert(if is_slice { "Slice" } else { node.op_type() });
            if node.is(Fact::Random) {
                origin.runs = true;
            } else if node.is(Fact::ReadsShape) || !node.is_standard() || node.subgraphs().next().is_some() {
                origin.unseen = true;
            } else {
                front.extend(node.input.iter().map(String::as_str).filter(|input| !input.is_empty()));
            }
        }
        origin
    }

    pub fn is_constant(&self) -> bool {
        !self.runs && !self.unseen
    }

    /// An operator in it that TensorRT does not compute before it builds.
    pub fn late(&self) -> Option<&'a str> {
        self.operators.iter().copied().find(|op_type| is_among(NOT_BEFOREHAND, op_type))
    }

    /// An operator in it of which that is not known.
    pub fn untried(&self) -> Option<&'a str> {
        self.operators.iter().copied().find(|op_type| !is_among(BEFOREHAND, op_type))
    }

    /// Whether it is a constant in another type.
    pub fn only_casts(&self) -> bool {
        self.is_constant() && self.operators.iter().all(|op_type| ["Cast", "Identity"].contains(op_type))
    }
}

/// The constants of a graph that Q/DQ in it and in its subgraphs take and operators compute.
pub(super) fn computed<'a>(
    model: &Model,
    view: &GraphView<'a>,
    constants: &BTreeMap<&'a str, &'a TensorProto>,
    compute: Compute<'_>,
) -> Result<Vec<TensorProto>, String> {
    let mut wanted = BTreeSet::new();
    collect_wanted(view.graph(), &mut wanted);
    let wanted = wanted.into_iter().filter(|tensor| !constants.contains_key(tensor) && view.producer(tensor).is_some());
    let wanted = wanted.map(|tensor| (tensor, Origin::of(view, constants, tensor)));
    let quantized = |tensor: &&str| is_code(constants[tensor].data_type());
    let wanted: BTreeMap<&str, Origin<'_>> = wanted
        .filter(|(_, origin)| origin.is_constant() && (origin.only_casts() || !origin.leaves.iter().any(&quantized)))
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let nodes: BTreeSet<NodeId> = wanted.values().flat_map(|origin| origin.nodes.iter().copied()).collect();
    let leaves: BTreeSet<&str> = wanted.values().flat_map(|origin| origin.leaves.iter().copied()).collect();
    let named = |name: &str| ValueInfoProto { name: Some(name.to_owned()), ..ValueInfoProto::default() };
    let graph = GraphProto {
        name: Some("constants".to_owned()),
        node: view
            .topological_order()
            .iter()
            .filter(|id| nodes.contains(id))
            .map(|&id| view.node(id).clone())
            .collect(),
        initializer: (leaves.iter())
            .map(|&name| TensorProto { name: Some(name.to_owned()), ..constants[name].clone() })
            .collect(),
        output: wanted.keys().map(|name| named(name)).collect(),
        ..GraphProto::default()
    };
    let opset_import = model.proto.opset_import.clone();
    let (ir_version, graph) = (model.proto.ir_version, Some(graph));
    let values = compute(&model.with_proto(ModelProto { ir_version, graph, opset_import, ..ModelProto::default() }))?;
    Ok(values.into_iter().map(|(name, tensor)| TensorProto::from_tensor(&name, tensor)).collect())
}

/// What Q/DQ take besides the results of each other.
fn collect_wanted<'a>(graph: &'a GraphProto, wanted: &mut BTreeSet<&'a str>) {
    for node in &graph.node {
        if node.is(Fact::Quantizer) {
            wanted.extend(node.input.iter().map(String::as_str).filter(|tensor| !tensor.is_empty()));
        }
        node.subgraphs().for_each(|inner| collect_wanted(inner, wanted));
    }
    let is_quantizer = |node: &&NodeProto| node.op_type() == "QuantizeLinear";
    for codes in graph.node.iter().filter(is_quantizer).flat_map(|node| &node.output) {
        wanted.remove(codes.as_str());
    }
}

/// Types of `TensorProto.DataType` that TensorRT multiplies as codes: `int8`, E4M3, `int4` and E2M1.
pub(super) fn is_code(data_type: i32) -> bool {
    [3, 17, 22, 23].contains(&data_type)
}

/// The name of a type of codes.
pub(super) fn code_name(data_type: i32) -> &'static str {
    match data_type {
        3 => "int8",
        17 => "float8e4m3fn",
        18 => "float8e4m3fnuz",
        19 => "float8e5m2",
        20 => "float8e5m2fnuz",
        21 => "uint4",
        22 => "int4",
        23 => "float4e2m1",
        _ => "another type",
    }
}
