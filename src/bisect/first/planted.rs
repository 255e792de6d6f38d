//! The search for the first divergence on a real graph with planted faults.

use super::*;
use crate::{
    analyse::{
        fixture::{self, Data},
        graphwise::{GraphwiseOptions, Side, TensorDivergence, TensorSite, graphwise, shared_tensors},
        layerwise::{AnalysisError, Samples},
    },
    backend::{ExecutionProvider, onnxruntime::OnnxRuntime},
};

fn side<'a>(runtime: &'a OnnxRuntime, model: &'a Model) -> Side<'a> {
    Side { backend: runtime, provider: ExecutionProvider::Cpu, model }
}

fn samples() -> Samples<'static> {
    Samples { dataset: &Data(2), indices: &[0, 1], reading: fixture::READING }
}

fn options() -> GraphwiseOptions {
    GraphwiseOptions::default()
}

#[test]
fn planted_faults_are_where_the_graph_leaves_the_reference() {
    let scaled = |fault: &'static str| {
        let mut scale = move |tensor: &str, scale: &mut f32| *scale *= if tensor == fault { 30.0 } else { 1.0 };
        fixture::quantized_with(&mut scale, &mut |_, _, _| {})
    };
    let zeroed = fixture::quantized_with(&mut |_, _| {}, &mut |name, shape, codes| {
        if name == "second.w" {
            let length = codes.len() / shape[0];
            codes[..length].fill(0);
        }
    });
    let Some(runtime) = fixture::runtime() else { return };
    let float = fixture::float();
    for (target, node) in [(scaled("x"), "first"), (scaled("flat"), "head"), (zeroed, "second")] {
        let sites = shared_tensors(&float, &target).unwrap();
        let whole = graphwise(side(&runtime, &float), side(&runtime, &target), &sites, samples(), options()).unwrap().0;
        assert_eq!(whole.tensors.iter().find(|t| t.diverged(30.0)).unwrap().site.node, node);
        let mut probe = |tensors: &[String]| {
            let some: Vec<TensorSite> = sites.iter().filter(|s| tensors.contains(&s.tensor)).cloned().collect();
            let found = graphwise(side(&runtime, &float), side(&runtime, &target), &some, samples(), options())?.0;
            Ok::<_, AnalysisError>(found.tensors.into_iter().map(|t| (t.site.tensor.clone(), t)).collect())
        };
        for scan in [Scan::Binary, Scan::Exhaustive] {
            let options = FirstOptions { scan, tensors_per_probe: 4 };
            let flow = flow(&float).unwrap();
            let found = first_divergence(&flow, options, &|t: &TensorDivergence| t.diverged(30.0), &mut probe).unwrap();
            assert_eq!(found.culprit.unwrap().node, node, "{scan:?}");
            assert!(found.probes <= 5, "{} probes", found.probes);
        }
    }
}
