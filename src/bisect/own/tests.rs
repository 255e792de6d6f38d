//! Nodes judged one by one, on the fixture with faults planted into its nodes.

use super::*;
use crate::{
    analyse::{
        fixture::{self, Data},
        graphwise::{Side, shared_tensors},
    },
    backend::{Backend, BuildOptions, ExecutionProvider, OptimizationLevel},
    bisect::{first::flow, probes::with_outputs},
    onnx::proto::{NodeProto, TensorProto},
};

/// The model with what `node` gives doubled.
fn doubled(model: &Model, node: &str) -> Model {
    let mut model = model.clone();
    let graph = model.graph_mut();
    let at = graph.node.iter().position(|known| known.name() == node).unwrap();
    let output = std::mem::replace(&mut graph.node[at].output[0], "half".to_owned());
    let twice = NodeProto::new("Mul", "fault", &["half", "two"], &[&output]);
    graph.node.insert(at + 1, twice);
    graph.initializer.push(TensorProto::from_tensor("two", Tensor::from_f32(vec![], vec![2.0]).unwrap()));
    model
}

#[test]
fn only_the_node_with_the_fault_is_off_by_itself() {
    let Some(runtime) = fixture::runtime() else { return };
    let source = fixture::quantized();
    let sites = shared_tensors(&fixture::float(), &source).unwrap();
    let names: Vec<String> = sites.iter().map(|site| site.tensor.clone()).collect();
    let options = BuildOptions { optimization: OptimizationLevel::Disabled, ..BuildOptions::default() };
    let samples = Samples { dataset: &Data(2), indices: &[0, 1], reading: fixture::READING };
    for site in &sites {
        let engine = with_outputs(&doubled(&source, &site.node), &names, &BTreeMap::new());
        let mut engine = runtime.build(&engine, &options).unwrap();
        let twin = cut(&source, engine.outputs());
        let side = Side { backend: &runtime, provider: ExecutionProvider::Cpu, model: &twin };
        let mut twin = side.build(Vec::new(), 1).unwrap();
        let own = own_errors(&mut *engine, &mut *twin, &sites, samples).unwrap();
        assert_eq!(own.len(), sites.len());
        for tensor in own {
            if tensor.site.tensor == site.tensor {
                // What is twice too much is off by as much as it should be.
                assert!(tensor.off().abs() < 0.01, "{tensor:?}");
            } else {
                assert!(tensor.off() > 90.0, "a fault in {}: {tensor:?}", site.node);
            }
        }
    }
}

#[test]
fn a_node_is_marked_with_all_that_it_is_given() {
    let node = |name: &str, inputs: &[&str], output: &str| FlowNode {
        name: name.to_owned(),
        inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
        outputs: vec![output.to_owned()],
    };
    // `codes` is not shown: what it is made of is marked instead.
    let flow = Flow {
        nodes: vec![
            node("first", &["x"], "a"),
            node("quantize", &["a"], "codes"),
            node("second", &["codes"], "b"),
            node("join", &["a", "b"], "c"),
            node("last", &["c"], "d"),
        ],
        outputs: vec!["d".to_owned()],
    };
    let site =
        |tensor: &str| TensorSite { tensor: tensor.into(), node: tensor.into(), op_type: "Conv".into(), amax: None };
    let sites = ["a", "b", "c", "d"].map(site);
    let known = ["first", "quantize", "last"].map(str::to_owned).into();
    let seen = seen(&flow, &sites, &known);
    // What quantizes is known by its name, and may be at fault in place of `b`.
    let hidden: Vec<&str> = seen.iter().flat_map(|seen| &seen.hidden).map(|node| node.name.as_str()).collect();
    assert_eq!((hidden, seen[1].hidden.len()), (vec!["quantize"], 1));
    let shown = flow_of(&seen).nodes.into_iter().map(|node| (node.name, node.inputs.join(" "))).collect::<Vec<_>>();
    let shown: Vec<_> = shown.iter().map(|(name, inputs)| (name.as_str(), inputs.as_str())).collect();
    assert_eq!(shown, [("a", ""), ("quantize", ""), ("b", "a codes"), ("c", "a b"), ("d", "c")]);
    let made = |most: usize, heaviest: usize| -> Vec<(String, String)> {
        let groups = groups(&seen, most, heaviest, &|_| 10);
        let judged = |group: &Marks| group.judged.iter().map(|site| site.tensor.as_str()).collect();
        groups.iter().map(|group| (judged(group), group.shown.iter().map(String::as_str).collect())).collect()
    };
    let pair = |judged: &str, shown: &str| (judged.to_owned(), shown.to_owned());
    assert_eq!(made(usize::MAX, usize::MAX), [pair("abcd", "abcd")]);
    assert_eq!(made(3, usize::MAX), [pair("abc", "abc"), pair("d", "cd")]);
    assert_eq!(made(usize::MAX, 20), [pair("ab", "ab"), pair("c", "abc"), pair("d", "cd")]);
    // One node takes what it takes.
    assert_eq!(made(1, usize::MAX), [pair("a", "a"), pair("b", "ab"), pair("c", "abc"), pair("d", "cd")]);
}

#[test]
fn the_fixture_is_cut_where_it_is_told_to() {
    let info = |name: &str, shape: &[Option<usize>]| TensorInfo {
        name: name.to_owned(),
        element_type: Some(ElementType::F32),
        shape: shape.to_vec(),
    };
    let twin = cut(&fixture::float(), &[info("flat", &[None, Some(8)]), info("y", &[None, Some(5)])]);
    let names = |infos: &[ValueInfoProto]| infos.iter().map(|info| info.name().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&twin.graph().input), ["x", "flat", "y"]);
    assert_eq!(names(&twin.graph().output), ["calib:own:flat", "calib:own:y"]);
    let head = flow(&twin).unwrap().nodes.pop().unwrap();
    assert_eq!((head.inputs, head.outputs), (vec!["flat".to_owned()], vec!["calib:own:y".to_owned()]));
}
