//! Tests that need whole models: reading, writing, external data.

use std::{fs, path::Path};

use bytes::Bytes;
use calib_test_support::shared;
use prost::Message;

use super::{
    proto::{
        AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, SparseTensorProto,
        StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto,
    },
    *,
};
use crate::tensor::{ElementType, Tensor, Values};

/// A float tensor's declaration; negative extents stand for the dynamic axis `batch`.
pub(crate) fn float_info(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |&extent: &i64| DimensionProto {
        value: Some(if extent < 0 {
            DimensionValue::DimParam("batch".to_owned())
        } else {
            DimensionValue::DimValue(extent)
        }),
        ..Default::default()
    };
    let tensor = TensorTypeProto {
        elem_type: Some(ElementType::F32.onnx()),
        shape: Some(TensorShapeProto { dim: dims.iter().map(dim).collect() }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() }),
        ..Default::default()
    }
}

/// `x [batch,4] -> MatMul(w [4,300]) -> Relu -> If(flag) { Add(bias) | Identity } -> y`; the `Relu` has no name.
pub(crate) fn small_model() -> Model {
    let weight: Vec<f32> = (0..1200u16).map(|i| f32::from(i) * 0.01 - 6.0).collect();
    let weight = TensorProto::from_tensor("w", Tensor::from_f32(vec![4, 300], weight).unwrap());
    let bias = TensorProto {
        name: Some("bias".to_owned()),
        dims: vec![300],
        data_type: Some(1),
        float_data: vec![0.5; 300],
        ..Default::default()
    };
    let flag = TensorProto::from_tensor("flag", Tensor::new(vec![], Values::Bool(vec![true])).unwrap());
    let branch = |name: &str, node: NodeProto, initializer: Vec<TensorProto>| GraphProto {
        name: Some(name.to_owned()),
        output: vec![float_info(&node.output[0], &[-1, 300])],
        node: vec![node],
        initializer,
        ..Default::default()
    };
    let then = branch("then", NodeProto::new("Add", "", &["h", "bias"], &["sum"]), vec![bias]);
    let other = branch("else", NodeProto::new("Identity", "keep", &["h"], &["same"]), vec![]);
    let graph = GraphProto {
        name: Some("small".to_owned()),
        node: vec![
            NodeProto::new("MatMul", "fc", &["x", "w"], &["p"]),
            NodeProto::new("Relu", "", &["p"], &["h"]),
            NodeProto::new("If", "choose", &["flag"], &["y"])
                .with(AttributeProto::graph("then_branch", then))
                .with(AttributeProto::graph("else_branch", other)),
        ],
        initializer: vec![weight, flag],
        input: vec![float_info("x", &[-1, 4])],
        output: vec![float_info("y", &[-1, 300])],
        doc_string: Some("made by hand".to_owned()),
        ..Default::default()
    };
    let mut proto = ModelProto {
        ir_version: Some(8),
        producer_name: Some("calib".to_owned()),
        graph: Some(graph),
        metadata_props: vec![StringStringEntryProto { key: Some("k".to_owned()), value: Some("v".to_owned()) }],
        ..Default::default()
    };
    proto.set_opset("", 13);
    Model::from_bytes(proto.encode_to_vec()).unwrap()
}

fn tensor(model: &Model, name: &str) -> Tensor {
    model.graph().initializer.iter().find(|tensor| tensor.name() == name).unwrap().to_tensor().unwrap()
}

#[test]
fn nodes_get_unique_names_and_weights_are_shared() {
    let mut model = small_model();
    assert_eq!(model.graph().node[1].name(), "Relu_1");
    let inner = model.graph().node[2].subgraphs().next().unwrap();
    assert_eq!(inner.node[0].name(), "Add_0");
    assert_eq!(inner.initializer[0].raw_data.as_ref().unwrap().len(), 1200);
    assert_eq!(inner.initializer[0].to_tensor().unwrap().to_f32(), [0.5; 300]);
    let copy = model.clone();
    let pointer = |model: &Model| model.graph().initializer[0].raw_data.as_ref().unwrap().as_ptr();
    assert_eq!(pointer(&model), pointer(&copy));
    model.graph_mut().node[0].name = Some("Relu_1".to_owned());
    model.graph_mut().node[1].name = None;
    let again = Model::from_bytes(model.to_bytes().unwrap()).unwrap();
    assert_eq!(again.graph().node[1].name(), "Relu_1_");
}

#[test]
fn opsets_are_read_and_set_by_domain() {
    let mut model = small_model();
    assert_eq!((model.opset(""), model.opset("ai.onnx"), model.opset("com.microsoft")), (Some(13), Some(13), None));
    model.set_opset("ai.onnx", 19);
    model.set_opset("com.microsoft", 1);
    assert_eq!((model.opset(""), model.opset("com.microsoft"), model.proto.opset_import.len()), (Some(19), Some(1), 2));
}

#[test]
fn a_saved_model_is_the_encoded_model_and_hashes_as_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let model = small_model();
    model.save(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), model.to_bytes().unwrap());
    let loaded = Model::load(&path).unwrap();
    assert_eq!(loaded.proto, model.proto);
    assert_eq!(loaded.hash, ContentHash::of_file(&path).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// The message under the outermost one.
fn cause(error: &ModelError) -> String {
    std::error::Error::source(error).expect("an error with a cause").to_string()
}

#[test]
fn external_data_is_written_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let model = Model { external_data: true, ..small_model() };
    model.save(&path).unwrap();
    // Two pieces, the second on the second page; what is small stays inside.
    assert_eq!(fs::metadata(folder.path().join("m.onnx.data")).unwrap().len(), 2 * 4096 + 1200);
    assert!(fs::metadata(&path).unwrap().len() < 1000);
    let bytes = |name: &str| fs::metadata(folder.path().join(name)).unwrap().len();
    assert_eq!(file_bytes(&path).unwrap(), bytes("m.onnx") + bytes("m.onnx.data"));
    let loaded = Model::load(&path).unwrap();
    assert!(loaded.external_data);
    assert_eq!(loaded.proto, model.proto);
    let hash = loaded.hash.clone();
    loaded.save(&path).unwrap();
    assert_eq!(Model::load(&path).unwrap().hash, hash);
    let data = folder.path().join("m.onnx.data");
    let mut bytes = fs::read(&data).unwrap();
    bytes[0] ^= 1;
    fs::write(&data, &bytes).unwrap();
    assert_ne!(Model::load(&path).unwrap().hash, hash);
    fs::write(&data, &bytes[..5000]).unwrap();
    let error = cause(&Model::load(&path).unwrap_err());
    assert!(error.contains("outside its file, which has only 5000 bytes"), "{error}");
    crate::artifact::will_write([data.clone()]);
    let error = cause(&Model::load(&path).unwrap_err());
    assert!(error.contains("m.onnx.data: it is an input and would be written over; choose"), "{error}");
    assert!(!error.contains("beside the model"), "{error}");
    fs::remove_file(&data).unwrap();
    let error = cause(&Model::load(&path).unwrap_err());
    assert!(error.contains("tensor `w` needs") && error.contains("put it beside the model"), "{error}");
}

/// Loads a model whose weight claims to lie at `location`.
fn load_with_location(folder: &Path, entries: &[(&str, &str)]) -> Result<Model, String> {
    let mut model = small_model();
    let weight = &mut model.graph_mut().initializer[0];
    weight.raw_data = None;
    weight.data_location = Some(1);
    let entry =
        |(key, value): &(&str, &str)| StringStringEntryProto { key: Some((*key).into()), value: Some((*value).into()) };
    weight.external_data = entries.iter().map(entry).collect();
    let path = folder.join("m.onnx");
    model.save(&path).unwrap();
    Model::load(&path).map_err(|error| cause(&error))
}

#[test]
fn external_data_cannot_leave_the_folder() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("model");
    fs::create_dir(&folder).unwrap();
    let secret = outer.path().join("secret");
    fs::write(&secret, [0; 4800]).unwrap();
    fs::write(folder.join("w.bin"), [0; 4800]).unwrap();
    std::os::unix::fs::symlink(&secret, folder.join("link")).unwrap();
    std::os::unix::fs::symlink(folder.join("w.bin"), folder.join("inside")).unwrap();
    let refused = |location: &str| load_with_location(&folder, &[("location", location)]).unwrap_err();
    assert!(refused("../secret").contains("`..`"));
    assert!(refused("a/../../secret").contains("`..`"));
    assert!(refused(secret.to_str().unwrap()).contains("absolute"));
    assert!(refused("link").contains("symbolic link out of"));
    assert!(refused("").contains("empty"));
    assert!(refused(".").contains("not a regular file"));
    for good in ["w.bin", "./w.bin", "inside"] {
        assert_eq!(tensor(&load_with_location(&folder, &[("location", good)]).unwrap(), "w").shape(), [4, 300]);
    }
    let bad = |offset: &str, length: &str| {
        load_with_location(&folder, &[("location", "w.bin"), ("offset", offset), ("length", length)]).unwrap_err()
    };
    assert!(bad("1", "4800").contains("outside its file"));
    assert!(bad("18446744073709551615", "2").contains("outside its file"));
    assert!(bad("-1", "4800").contains("the offset `-1` of its external data is not a number"));
}

#[test]
#[cfg(unix)]
fn data_beside_the_file_behind_a_link_is_read() {
    // As the cache of Hugging Face has it: model and data are links into one folder.
    let cache = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let folder = cache.path().join(name);
        fs::create_dir(&folder).unwrap();
        folder
    };
    let (blobs, snapshot, elsewhere) = (folder("blobs"), folder("snapshot"), folder("elsewhere"));
    fs::write(snapshot.join("w.bin"), [0; 4800]).unwrap();
    load_with_location(&snapshot, &[("location", "w.bin")]).unwrap();
    let move_and_link = |name: &str, to: &Path| {
        fs::rename(snapshot.join(name), to).unwrap();
        std::os::unix::fs::symlink(to, snapshot.join(name)).unwrap();
    };
    move_and_link("m.onnx", &blobs.join("0a"));
    move_and_link("w.bin", &blobs.join("1b"));
    assert_eq!(tensor(&Model::load(&snapshot.join("m.onnx")).unwrap(), "w").shape(), [4, 300]);
    fs::remove_file(snapshot.join("w.bin")).unwrap();
    fs::write(elsewhere.join("w"), [0; 4800]).unwrap();
    std::os::unix::fs::symlink(elsewhere.join("w"), snapshot.join("w.bin")).unwrap();
    let error = cause(&Model::load(&snapshot.join("m.onnx")).unwrap_err());
    assert!(error.contains("link out of the model's folder; copy the file into it"), "{error}");
}

#[test]
fn both_names_of_the_standard_operators_are_read_as_one() {
    let mut proto = small_model().proto;
    proto.opset_import[0].domain = Some("ai.onnx".to_owned());
    proto.graph.as_mut().unwrap().node[0].domain = Some("ai.onnx".to_owned());
    let read = Model::from_bytes(proto.encode_to_vec()).unwrap();
    assert_eq!(read.opset(""), small_model().opset(""));
    assert!(read.proto.opset_import.iter().all(|import| import.domain.is_none()));
    assert!(read.graph().node.iter().all(|node| node.domain.is_none()));
}

#[test]
fn sparse_constants_are_filled_up() {
    let filled = |shape: &[usize], indices: Vec<i64>, index_shape: Vec<usize>, values: &[f32]| {
        let values = TensorProto::from_tensor("s", Tensor::from_f32(vec![values.len()], values.to_vec()).unwrap());
        let indices = TensorProto::from_tensor("", Tensor::new(index_shape, Values::I64(indices)).unwrap());
        let dims = shape.iter().map(|&extent| extent as i64).collect();
        let sparse = SparseTensorProto { values: Some(values), indices: Some(indices), dims };
        let mut proto = small_model().proto;
        let graph = proto.graph.as_mut().unwrap();
        let attribute = AttributeProto {
            name: Some("sparse_value".to_owned()),
            sparse_tensor: Some(Box::new(sparse.clone())),
            ..AttributeProto::default()
        };
        graph.node.push(NodeProto::new("Constant", "constant", &[], &["c"]).with(attribute));
        graph.sparse_initializer = vec![sparse];
        let model = Model::from_bytes(proto.encode_to_vec()).unwrap();
        let left = model.graph().sparse_initializer.len();
        let found = model.graph().initializer.iter().find(|t| t.name() == "s").map(|t| t.to_tensor().unwrap());
        let constant = model.graph().node.last().unwrap().attr_t("value").map(|t| t.to_tensor().unwrap());
        assert_eq!(constant, found, "the same, as a node");
        (found.map(|tensor| (tensor.shape().to_vec(), tensor.to_f32())), left)
    };
    let expected = (Some((vec![2, 3], vec![0.0, 5.0, 0.0, 0.0, 0.0, 7.0])), 0);
    assert_eq!(filled(&[2, 3], vec![1, 5], vec![2], &[5.0, 7.0]), expected);
    assert_eq!(filled(&[2, 3], vec![0, 1, 1, 2], vec![2, 2], &[5.0, 7.0]), expected);
    // Outside, of no fitting number, and larger than any model: they stay what they are.
    assert_eq!(filled(&[2, 3], vec![1, 6], vec![2], &[5.0, 7.0]), (None, 1));
    assert_eq!(filled(&[2, 3], vec![-1, 5], vec![2], &[5.0, 7.0]), (None, 1));
    assert_eq!(filled(&[2, 3], vec![0, 3, 1, 2], vec![2, 2], &[5.0, 7.0]), (None, 1));
    assert_eq!(filled(&[2, 3], vec![1, 5, 2], vec![3], &[5.0, 7.0]), (None, 1));
    assert_eq!(filled(&[1 << 40, 1 << 20], vec![1], vec![1], &[5.0]), (None, 1));
}

#[test]
fn what_is_no_model_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let load = |content: &[u8]| {
        let path = folder.path().join("x.onnx");
        fs::write(&path, content).unwrap();
        Model::load(&path).unwrap_err().to_string()
    };
    assert!(load(b"").contains("the file is empty"));
    assert!(load(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
    assert!(load(b"\x08\x07").contains("it has no graph"));
    assert!(Model::load(folder.path()).unwrap_err().to_string().contains("cannot read"));
    assert!(Model::from_bytes(Bytes::from_static(b"\x89PNG\r\n\x1a\n")).is_err());
}

#[test]
fn a_real_model_survives_byte_for_byte() {
    let Some(path) = shared("models/efficientnet_lite0.onnx") else { return };
    let model = Model::load(&path).unwrap();
    assert_eq!(model.hash, ContentHash::of_file(&path).unwrap());
    let view = GraphView::new(model.graph()).unwrap();
    assert_eq!(view.topological_order().len(), model.graph().node.len());
    for tensor in &model.graph().initializer {
        tensor.to_tensor().unwrap();
    }
    assert_eq!(model.to_bytes().unwrap(), fs::read(&path).unwrap());
}

/// Breaks `bytes` in one of the ways that files break: bits, bytes, lengths, cuts, repetitions.
pub(crate) fn mutate(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below.max(1)
    };
    let mut bytes = bytes.to_vec();
    for _ in 0..=next(2) {
        let at = next(bytes.len());
        match next(12) {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f])),
            2 => drop(bytes.drain(at..(at + next(16)).min(bytes.len()))),
            3 => {
                let piece = bytes[at..(at + next(64)).min(bytes.len())].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            4..7 => bytes[at] = [0, 0x7f, 0x80, 0xff][next(4)],
            _ => bytes[at] ^= 1 << next(8),
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// The small model with few weights, so that mutations hit its structure.
pub(crate) fn thin_model() -> Vec<u8> {
    let mut model = small_model();
    let weight = &mut model.graph_mut().initializer[0];
    (weight.dims, weight.raw_data) = (vec![4, 2], Some(Bytes::from_static(&[0; 32])));
    let bias = &mut model.graph_mut().node[2].subgraphs_mut().next().unwrap().initializer[0];
    (bias.dims, bias.raw_data) = (vec![2], Some(Bytes::from_static(&[0; 8])));
    model.to_bytes().unwrap()
}

#[test]
fn broken_models_are_errors_or_models_never_panics() {
    let bytes = thin_model();
    let mut decoded = 0;
    for seed in 0..3000 {
        let Ok(model) = Model::from_bytes(mutate(&bytes, seed)) else { continue };
        decoded += 1;
        let encoded = model.to_bytes().unwrap();
        // Not compared as values: mutations make NaN, which differ from themselves.
        assert_eq!(Model::from_bytes(encoded.clone()).unwrap().to_bytes().unwrap(), encoded, "seed {seed}");
        drop(diagnose(&model));
        for tensor in &model.graph().initializer {
            if tensor.to_tensor().is_ok() {
                tensor.check().unwrap();
            }
        }
    }
    // Neither all refused nor all harmless.
    assert!((300..2700).contains(&decoded), "{decoded}");
}
