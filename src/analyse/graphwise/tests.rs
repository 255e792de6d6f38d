//! The whole graph on the fixture, with planted faults.

use super::*;
use crate::{
    analyse::fixture::{self, Data},
    backend::onnxruntime::OnnxRuntime,
    onnx::proto::TensorProto,
    tensor::Tensor,
};

const INDICES: [usize; 4] = [0, 1, 2, 3];

fn side<'a>(runtime: &'a OnnxRuntime, model: &'a Model) -> Side<'a> {
    Side { backend: runtime, provider: ExecutionProvider::Cpu, model }
}

fn compare(target: &Model, options: GraphwiseOptions) -> Option<Graphwise> {
    let runtime = fixture::runtime()?;
    let float = fixture::float();
    let sites = shared_tensors(&float, target).unwrap();
    let samples = Samples { dataset: &Data(4), indices: &INDICES, reading: fixture::READING };
    Some(graphwise(side(&runtime, &float), side(&runtime, target), &sites, samples, options).unwrap().0)
}

#[test]
fn every_tensor_is_compared_in_the_order_of_execution() {
    let Some(result) = compare(&fixture::quantized(), GraphwiseOptions::default()) else { return };
    let names: Vec<&str> = result.tensors.iter().map(|t| t.site.tensor.as_str()).collect();
    assert_eq!(
        names,
        ["first_out", "first_relu", "second_out", "second_sigmoid", "second_silu", "join_out", "pool_out", "flat", "y"]
    );
    assert!(
        result.tensors.iter().all(|t| t.difference.sqnr_db.unwrap() > 30.0 && t.difference.cosine > 0.999),
        "{result:?}"
    );
    assert_eq!((result.samples, &result.first_non_finite), (4, &None));
    let relu = &result.tensors[1];
    assert_eq!(
        (relu.site.node.as_str(), relu.site.amax, relu.difference.saturated),
        ("first/relu", Some(3.25), Some(0.0))
    );
    // The first operator reads exact inputs: its error is the local one.
    assert!((relu.difference.sqnr_db.unwrap() - 45.4964).abs() < 0.02);
    assert_eq!(result.tensors[0].difference.saturated, None);
    let halves = compare(&fixture::quantized(), GraphwiseOptions { tensors_per_pass: 4, threads: 1 });
    let figures = |g: &Graphwise| g.tensors.iter().map(|t| t.difference.sqnr_db.unwrap()).collect::<Vec<_>>();
    assert!(figures(&halves.unwrap()).iter().zip(figures(&result)).all(|(a, b)| (a - b).abs() < 0.01));
}

#[test]
fn an_overflow_is_traced_to_the_node_that_made_it() {
    let mut target = fixture::float();
    let weight = target.graph_mut().initializer.iter_mut().find(|tensor| tensor.name() == "second.w").unwrap();
    let huge = Tensor::from_f32(vec![8, 8, 1, 1], vec![f32::MAX; 64]).unwrap();
    *weight = TensorProto::from_tensor("second.w", huge);
    let Some(result) = compare(&target, GraphwiseOptions::default()) else { return };
    assert_eq!(result.first_non_finite.as_deref(), Some("second"));
    let tensor = result.tensors.iter().find(|t| t.site.tensor == "second_out").unwrap();
    assert!(tensor.difference.non_finite.target_infinite > 0 && tensor.diverged(-1e9));
}
