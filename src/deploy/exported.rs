//! Single files of trtexec for pictures: layers of an engine, their times, and the nodes that these are of.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Deserialize;

use super::{DeployError, identity::parts, times};
use crate::{
    artifact::{Reading, read_regular},
    backend::tensorrt::{EngineLayer, EngineLayers, Flavour},
    report::{EngineLayerTime, NodeTimes},
};

/// What `calib build` and `calib inspect --json` write of an engine.
#[derive(Deserialize)]
struct Told {
    layers: Vec<EngineLayer>,
    inspector: Option<String>,
    flavour: Option<Flavour>,
    library_version: Option<String>,
}

impl Told {
    /// Whose inspector told the layers, or what built the engine.
    fn made_by(&self) -> Option<String> {
        let Self { inspector, flavour, library_version, .. } = self;
        inspector.clone().or_else(|| Some(format!("{} {}", (*flavour)?, library_version.as_ref()?)))
    }
}

/// The layers of an engine as `trtexec --exportLayerInfo` writes them, or `calib build` and `calib inspect --json`; `op_types`
/// are the operators of the model's nodes, as far as they are known. With the library that built or read the engine, which
/// calib's files name.
///
/// # Errors
/// The file cannot be read, or holds no layers.
pub fn engine_layers(
    path: &Path,
    op_types: &BTreeMap<String, String>,
) -> Result<(Vec<EngineLayer>, Option<String>), DeployError> {
    let _reading = Reading::of(path);
    let bytes = read_regular(path).map_err(DeployError::io("read", path))?;
    let (layers, library) = if let Ok(told) = serde_json::from_slice::<Told>(&bytes) {
        let library = told.made_by();
        (told.layers, library)
    } else {
        let parsed = EngineLayers::parse(&String::from_utf8_lossy(&bytes), op_types);
        (parsed.map_err(|error| DeployError::content(path, error.to_string()))?.layers, None)
    };
    if layers.is_empty() {
        return Err(DeployError::content(path, "it lists no layers; give what trtexec --exportLayerInfo writes"));
    }
    Ok((layers, library))
}

/// The times of an engine's layers as `trtexec --exportProfile` writes them, and what ran it, which `calib bench` adds.
///
/// # Errors
/// The file cannot be read, or is not a profile.
pub fn engine_profile(path: &Path) -> Result<(Vec<EngineLayerTime>, Option<String>), DeployError> {
    let _reading = Reading::of(path);
    let bytes = read_regular(path).map_err(DeployError::io("read", path))?;
    times::profile(&bytes).map_err(|reason| DeployError::content(path, reason))
}

/// The time of the layer that holds each of `nodes`: by the engine's layers where they are given, else by the layers' names,
/// which TensorRT joins from those of nodes. A layer that only reformats what a node reads is not the node's.
pub fn times_of(profile: &[EngineLayerTime], layers: &[EngineLayer], nodes: &BTreeSet<&str>) -> NodeTimes {
    let listed: BTreeMap<&str, &EngineLayer> = layers.iter().map(|layer| (&*layer.name, layer)).collect();
    let mut found = NodeTimes::new();
    for time in profile {
        let name = time.layer.as_str();
        let held: Vec<&str> = match listed.get(name) {
            _ if nodes.contains(name) => vec![name],
            Some(layer) => layer.nodes.iter().map(String::as_str).collect(),
            None if name.starts_with("Reformatting") => Vec::new(),
            None => parts(name).collect(),
        };
        for node in held.into_iter().filter(|node| nodes.contains(node)) {
            found.insert(node.to_owned(), (time.mean_ms, time.layer.clone()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_the_time_of_the_layer_that_holds_them() {
        let time = |(layer, mean_ms): (&str, f64)| EngineLayerTime {
            layer: layer.into(),
            mean_ms,
            median_ms: None,
            share: 0.1,
        };
        let named = ["conv + PWN(relu)", "Reformatting CopyNode for Input Tensor 0 to conv", "__myl_0"];
        let profile: Vec<_> = named.into_iter().zip([3.0, 1.0, 2.0]).map(time).collect();
        let nodes = BTreeSet::from(["conv", "relu", "fc"]);
        let joined = |ms: f64, layer: &str| (ms, layer.to_owned());
        let by_names = times_of(&profile, &[], &nodes);
        let fused = joined(3.0, named[0]);
        assert_eq!(by_names, [("conv".to_owned(), fused.clone()), ("relu".to_owned(), fused.clone())].into());
        let layer = serde_json::json!({ "Layers": [{ "Name": "__myl_0", "LayerType": "kgen", "Inputs": [], "Outputs": [],
            "Metadata": "[ONNX Layer: fc]" }] });
        let layers = EngineLayers::parse(&layer.to_string(), &BTreeMap::new()).unwrap().layers;
        assert_eq!(times_of(&profile, &layers, &nodes)["fc"], joined(2.0, "__myl_0"));
        // Where layers are what is drawn, each has its own.
        let drawn = times_of(&profile, &layers, &BTreeSet::from(named));
        assert_eq!((drawn.len(), &drawn[named[1]]), (3, &joined(1.0, named[1])));
    }
}
