//! Whose a file is: names of nodes, shapes and number types tell its model and precision where no hash does.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{DeployError, figures::Known};
use crate::{
    backend::{TensorInfo, tensorrt::NumberType},
    report::{EngineInside, EngineLayerTime},
};

/// Nodes by which models of the same network are told apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    /// Operators of the precision's own model by node; empty where nothing is known of it.
    pub own: BTreeMap<String, String>,
    /// Nodes that only models of other precisions have, with one of these.
    pub foreign: BTreeMap<String, String>,
    /// Quantizers of its own that the float model has not.
    pub quantizers: BTreeSet<String>,
    /// Nodes of its own that no other model of the run has, where the float model is known.
    pub only_here: BTreeSet<String>,
}

impl Nodes {
    /// Of the model of `precision`, among all models of the run by precision; `reference` is the float model's.
    pub fn new(all: &BTreeMap<&str, BTreeMap<String, String>>, precision: &str, reference: &str) -> Self {
        let own = all.get(precision).cloned().unwrap_or_default();
        let others = all.iter().filter(|(other, _)| **other != precision && !own.is_empty());
        let foreign = others.flat_map(|(other, nodes)| nodes.keys().map(move |node| (node, *other)));
        let foreign = foreign.filter(|(node, _)| !own.contains_key(*node));
        let foreign = foreign.map(|(node, other)| (node.clone(), other.to_owned())).collect();
        let float = all.get(reference).filter(|_| precision != reference);
        let quantizes = |op_type: &str| matches!(op_type, "QuantizeLinear" | "DequantizeLinear");
        let new = |node: &String| float.is_some_and(|float| !float.contains_key(node));
        let quantizers = own.iter().filter(|(node, op_type)| quantizes(op_type) && new(node));
        let quantizers = quantizers.map(|(node, _)| node.clone()).collect();
        let elsewhere =
            |node: &String| all.iter().any(|(other, nodes)| **other != *precision && nodes.contains_key(node));
        let only_here = own.keys().filter(|node| new(node) && !elsewhere(node)).cloned().collect();
        Self { own, foreign, quantizers, only_here }
    }

    fn refuse_foreign<'a>(
        &self,
        path: &Path,
        precision: &str,
        mut names: impl Iterator<Item = &'a str>,
    ) -> Result<(), DeployError> {
        let found = names.find_map(|name| Some((name, self.foreign.get(name)?)));
        let Some((node, other)) = found else { return Ok(()) };
        let reason = format!(
            "it names the node `{node}`, which the run's {other} has and its {precision} has not; give it to the precision that it is of"
        );
        Err(DeployError::content(path, reason))
    }
}

/// Refuses layers of another model or precision. Says whether they tell both. `tied`: a hash told them already, and what
/// the builder made of the model is its own business.
pub(super) fn check_layers(
    path: &Path,
    engine: &EngineInside,
    known: &Known<'_>,
    tied: bool,
) -> Result<bool, DeployError> {
    let precision = known.precision;
    let refused = |reason: String| Err(DeployError::content(path, reason));
    let named: Vec<&str> = engine.layers.iter().flat_map(|layer| &layer.nodes).map(String::as_str).collect();
    let in_model = named.iter().filter(|node| known.nodes.own.contains_key(**node)).count();
    if !known.nodes.own.is_empty() && 2 * in_model < named.len() {
        return Err(of_another_model(path, precision));
    }
    known.nodes.refuse_foreign(path, precision, named.iter().copied())?;
    let tensors = || engine.layers.iter().flat_map(|layer| layer.inputs.iter().chain(&layer.outputs));
    for tensor in tensors() {
        let declared = known.tensors.iter().find(|declared| declared.name == tensor.name);
        if declared.is_some_and(|declared| !fits(&tensor.shape, declared)) {
            return refused(format!(
                "its tensor `{}` has the shape {:?}, which is not that of the run's {precision}: it is of another model",
                tensor.name, tensor.shape
            ));
        }
    }
    let computes: Vec<NumberType> =
        engine.summary.compute_by_type.keys().copied().filter(|kind| *kind != NumberType::Unknown).collect();
    let types = || computes.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" and ");
    let narrow: Vec<NumberType> = computes.iter().copied().filter(|kind| kind.is_8_bit()).collect();
    let asked: &[NumberType] = match precision {
        "int8" => &[NumberType::Int8],
        "fp8" => &[NumberType::Fp8],
        "fp16" => &[NumberType::Fp16],
        "bf16" => &[NumberType::Bf16],
        "fp32" => &[NumberType::Fp32, NumberType::Tf32],
        _ => return Ok(in_model > 0),
    };
    if let Some(kind) = narrow.iter().find(|kind| !asked.contains(kind)) {
        let reason = format!(
            "its layers multiply in {}, so it is not of {precision}; give it to another precision",
            kind.name()
        );
        return refused(reason);
    }
    let is_asked = |kind: &NumberType| asked.contains(kind);
    let is_narrow = asked.iter().all(|kind| kind.is_8_bit());
    let told = if is_narrow {
        let quantizes = tensors().any(|tensor| is_asked(&tensor.number_type))
            || named.iter().any(|node| known.nodes.quantizers.contains(*node));
        if !(quantizes || tied) {
            return refused(format!(
                "nothing in it is of 8 bits and it names no quantizer, so it is not of {precision}; give it to another precision"
            ));
        }
        quantizes
    } else {
        let other = precision == "fp32" && computes.iter().any(|kind| !is_asked(kind));
        if !tied && !computes.is_empty() && (other || !computes.iter().any(is_asked)) {
            return refused(format!(
                "its layers multiply in {}, so it is not of {precision}; give it to another precision",
                types()
            ));
        }
        !computes.is_empty()
    };
    Ok(told && in_model > 0)
}

/// Refuses a profile of another model or precision. Says whether its names tell both; `engine` are the layers of the same engine.
pub(super) fn check_profile(
    path: &Path,
    profile: &[EngineLayerTime],
    known: &Known<'_>,
    engine: Option<&EngineInside>,
) -> Result<bool, DeployError> {
    let (precision, nodes) = (known.precision, &known.nodes);
    let names = || profile.iter().flat_map(|time| parts(&time.layer));
    nodes.refuse_foreign(path, precision, names())?;
    if let Some(engine) = engine {
        let listed: BTreeSet<&str> = engine.layers.iter().map(|layer| layer.name.as_str()).collect();
        let own = profile.iter().filter(|time| listed.contains(time.layer.as_str())).count();
        if 2 * own < profile.len() {
            let reason = format!(
                "{own} of its {} layers are in the engine's list of layers; it is of another engine",
                profile.len()
            );
            return Err(DeployError::content(path, reason));
        }
        return Ok(true);
    }
    // Layers of TensorRT's own making are called by no node.
    let telling = profile.iter().filter(|time| !["Reformatting", "__my"].iter().any(|own| time.layer.starts_with(own)));
    let telling: Vec<_> = telling.collect();
    let own = telling.iter().filter(|time| parts(&time.layer).any(|part| nodes.own.contains_key(part))).count();
    if !nodes.own.is_empty() && !telling.is_empty() && 2 * own < telling.len().max(1) {
        return Err(of_another_model(path, precision));
    }
    if nodes.quantizers.is_empty() || own == 0 {
        return Ok(false);
    }
    if names().any(|name| nodes.quantizers.contains(name) || nodes.only_here.contains(name)) {
        return Ok(true);
    }
    let reason = format!(
        "none of its layers is called by a quantizer of the run's {precision}: it is of another precision; where it is not, give the \
         engine's --layers beside it"
    );
    Err(DeployError::content(path, reason))
}

/// Whether extents that are known in both agree.
fn fits(shape: &[i64], declared: &TensorInfo) -> bool {
    let agree = |(own, there): (&i64, &Option<usize>)| {
        *own < 0 || there.is_none_or(|there| usize::try_from(*own).is_ok_and(|own| own == there))
    };
    shape.len() == declared.shape.len() && shape.iter().zip(&declared.shape).all(agree)
}

/// What a layer's name may hold of nodes: `a + PWN(b)`, `Reformatting CopyNode for Input Tensor 0 to c`,
/// `{ForeignNode[d...e]}`.
pub(super) fn parts(layer: &str) -> impl Iterator<Item = &str> {
    layer.split(" + ").flat_map(|piece| {
        let fine = piece.split(['(', ')', '{', '}', '[', ']', ',']).flat_map(|part| part.split("..."));
        [piece, piece.rsplit(" to ").next().unwrap_or(piece)].into_iter().chain(fine).filter(|part| !part.is_empty())
    })
}

fn of_another_model(path: &Path, precision: &str) -> DeployError {
    let reason =
        format!("it is of another model than the run's {precision}: most of what it names is not in the model");
    DeployError::content(path, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{artifact::ContentHash, backend::tensorrt::EngineLayers};

    /// Convolution and Relu: as float, with a batch normalization that folding takes away; quantized; in 16 bits.
    fn known<'a>(precision: &'a str, hash: &'a ContentHash) -> Known<'a> {
        let nodes = |nodes: &[(&str, &str)]| nodes.iter().map(|(n, op)| ((*n).to_owned(), (*op).to_owned())).collect();
        let all = BTreeMap::from([
            ("fp32", nodes(&[("conv", "Conv"), ("bn", "BatchNormalization"), ("relu", "Relu")])),
            (
                "int8",
                nodes(&[("x_Q", "QuantizeLinear"), ("x_DQ", "DequantizeLinear"), ("conv", "Conv"), ("relu", "Relu")]),
            ),
            ("fp16", nodes(&[("conv", "Conv"), ("relu", "Relu")])),
        ]);
        let nodes = Nodes::new(&all, precision, "fp32");
        let tensors = vec![TensorInfo { name: "y".into(), element_type: None, shape: vec![None, Some(8)] }];
        Known {
            precision,
            hashes: [Some(hash), None],
            batch: Some(1),
            nodes,
            tensors,
            expected: None,
            others: Vec::new(),
        }
    }

    /// One layer of `nodes` that reads and writes `kind`, its output called `y`.
    fn engine(nodes: &[&str], kind: &str, shape: &[i64]) -> EngineInside {
        let tensor = |name: &str| serde_json::json!({ "Name": name, "Dimensions": shape, "Format/Datatype": kind });
        let tags: String = nodes.iter().map(|node| format!("[ONNX Layer: {node}]\u{1e}")).collect();
        let layer = serde_json::json!({ "Name": nodes.join(" + "), "LayerType": "CaskConvolution", "Inputs": [tensor("t")],
            "Outputs": [tensor("y")], "TacticName": "", "Metadata": tags });
        let text = serde_json::json!({ "Layers": [layer] }).to_string();
        EngineInside::new(EngineLayers::parse(&text, &BTreeMap::new()).unwrap().layers)
    }

    #[test]
    fn layers_are_of_one_precision() {
        let hash = ContentHash::of_bytes(b"model");
        let told = |precision: &str, nodes: &[&str], kind: &str, shape: &[i64]| {
            let found = check_layers(Path::new("l.json"), &engine(nodes, kind, shape), &known(precision, &hash), false);
            found.map_err(|error| error.to_string())
        };
        let both = ["conv", "relu"];
        for (precision, nodes, kind) in [
            ("fp32", &both[..], "Float"),
            ("int8", &both, "Int8"),
            ("int8", &["x_Q", "conv"], "Float"),
            ("fp16", &both, "Half"),
        ] {
            assert_eq!(told(precision, nodes, kind, &[1, 8]), Ok(true), "{precision} {nodes:?} {kind}");
        }
        for (precision, nodes, kind, shape, why) in [
            ("int8", &both[..], "Float", [1, 8], "nothing in it is of 8 bits"),
            ("int8", &both, "FP8", [1, 8], "multiply in FP8"),
            ("fp32", &both, "Int8", [1, 8], "multiply in INT8"),
            ("fp32", &both, "Half", [1, 8], "multiply in FP16"),
            ("fp16", &both, "Float", [1, 8], "multiply in FP32"),
            ("fp32", &["conv", "x_DQ"], "Float", [1, 8], "names the node `x_DQ`, which the run's int8 has"),
            ("int8", &["conv", "bn", "relu"], "Int8", [1, 8], "names the node `bn`, which the run's fp32 has"),
            ("int8", &["conv", "else", "other"], "Int8", [1, 8], "another model"),
            ("int8", &both, "Int8", [1, 9], "`y` has the shape [1, 9]"),
        ] {
            let error = told(precision, nodes, kind, &shape).unwrap_err();
            assert!(error.contains(why), "{precision} {nodes:?} {kind}: {error}");
        }
        // Types that are not told leave the precision to the word of who gave the file.
        assert_eq!(told("fp16", &both, "", &[-1, 8]), Ok(false));
        // What was built of the right model may be what it likes.
        let float = check_layers(Path::new("l.json"), &engine(&both, "Float", &[1, 8]), &known("int8", &hash), true);
        assert!(float.is_ok(), "the report says that the engine is not really INT8");
    }

    #[test]
    fn profiles_are_of_one_precision_as_far_as_names_tell() {
        let hash = ContentHash::of_bytes(b"model");
        let told = |precision: &str, names: &[&str], engine: Option<&EngineInside>| {
            let time =
                |name: &&str| EngineLayerTime { layer: (*name).to_owned(), mean_ms: 1.0, median_ms: None, share: 0.5 };
            let profile: Vec<_> = names.iter().map(time).collect();
            check_profile(Path::new("p.json"), &profile, &known(precision, &hash), engine)
                .map_err(|error| error.to_string())
        };
        let quantized = ["x_Q", "w + conv + PWN(relu)"];
        assert_eq!(told("int8", &quantized, None), Ok(true));
        // FP16 and FP32 have the same nodes: who gave it vouches for it.
        assert_eq!(told("fp16", &["conv + relu"], None), Ok(false));
        assert_eq!(told("int8", &["__mye_conv"], None), Ok(false), "TensorRT's own names tell nothing");
        assert_eq!(told("int8", &["conv + relu"], Some(&engine(&["conv", "relu"], "Int8", &[1, 8]))), Ok(true));
        for (precision, names, why) in [
            ("int8", &["conv + relu"][..], "none of its layers is called by a quantizer"),
            ("fp32", &["Reformatting CopyNode for Input Tensor 0 to x_Q", "conv"], "`x_Q`, which the run's int8 has"),
            ("int8", &["{ForeignNode[conv...bn]}", "x_Q"], "`bn`, which the run's fp32 has"),
            ("fp16", &["conv + relu", "stem", "head"], "another model"),
        ] {
            let error = told(precision, names, None).unwrap_err();
            assert!(error.contains(why), "{precision} {names:?}: {error}");
        }
        let other = told("int8", &["x_Q", "conv"], Some(&engine(&["conv", "relu"], "Int8", &[1, 8]))).unwrap_err();
        assert!(other.contains("0 of its 2 layers"), "{other}");
    }
}
