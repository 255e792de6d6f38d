//! Probes of a stand-in for an engine: ONNX Runtime, which is given a model anew for every probe.

use std::convert::Infallible;

use super::*;
use crate::{
    analyse::{
        fixture::{self, Data},
        graphwise::{Side, Source, run, shared_tensors, sites_of},
        layerwise::{AnalysisError, Samples},
    },
    backend::{Backend, BuildOptions, ExecutionProvider, OptimizationLevel, onnxruntime::OnnxRuntime},
    bisect::first::{FirstOptions, Scan, first_divergence, flow},
    compare::{NonFinite, graphwise::TensorDifference},
};

/// One sample through the float fixture and a stand-in engine of `target` with `marked` tensors.
fn compare(
    runtime: OnnxRuntime,
    target: &Model,
    marked: &[String],
    sites: &[TensorSite],
) -> Result<Graphwise, AnalysisError> {
    let (float, engine) = (fixture::float(), with_outputs(target, marked, &BTreeMap::new()));
    let options = BuildOptions { optimization: OptimizationLevel::Disabled, ..BuildOptions::default() };
    let mut engine = runtime.build(&engine, &options)?;
    assert_eq!(engine.outputs().len(), 1 + marked.len());
    let reference = Side { backend: &runtime, provider: ExecutionProvider::Cpu, model: &float };
    let mut reference = reference.build(sites.iter().map(|site| site.tensor.clone()).collect(), 1)?;
    let samples = Samples { dataset: &Data(1), indices: &[0], reading: fixture::READING };
    run(&mut *reference, Source::Runner(&mut *engine), sites, samples)
}

#[test]
fn the_first_divergence_is_found_with_few_marks_at_a_time() {
    let Some(runtime) = fixture::runtime() else { return };
    let float = fixture::float();
    for (fault, node) in [("x", "first"), ("first_relu", "second"), ("flat", "head")] {
        let mut scale = |tensor: &str, scale: &mut f32| *scale *= if tensor == fault { 30.0 } else { 1.0 };
        let target = fixture::quantized_with(&mut scale, &mut |_, _, _| {});
        let sites = shared_tensors(&float, &target).unwrap();
        let mut probes = Probes::new(sites_of(&float, &["y".to_owned()].into()).unwrap(), 2);
        let mut probe = |tensors: &[String]| {
            let some: Vec<_> = sites.iter().filter(|site| tensors.contains(&site.tensor)).cloned().collect();
            let found = probes.look(&some, &mut |marked, sites| {
                assert!(marked.len() <= 2);
                compare(runtime, &target, marked, sites)
            })?;
            Ok::<_, AnalysisError>(found.tensors.into_iter().map(|t| (t.site.tensor.clone(), t)).collect())
        };
        let options = FirstOptions { scan: Scan::Binary, tensors_per_probe: 2 };
        let diverged = |tensor: &TensorDivergence| tensor.diverged(30.0);
        let found = first_divergence(&flow(&float).unwrap(), options, &diverged, &mut probe).unwrap();
        assert_eq!(found.culprit.unwrap().node, node);
        // The first probe looks at the output, which needs no build.
        assert_eq!(probes.report().builds, found.probes - 1);
        assert_eq!(probes.report().disturbances, []);
    }
}

#[test]
fn every_tensor_is_looked_at_in_as_many_builds_as_it_takes() {
    let Some(runtime) = fixture::runtime() else { return };
    let (float, target) = (fixture::float(), fixture::quantized());
    let sites = shared_tensors(&float, &target).unwrap();
    let mut probes = Probes::new(sites_of(&float, &["y".to_owned()].into()).unwrap(), 3);
    let found = probes.look(&sites, &mut |marked, sites| compare(runtime, &target, marked, sites)).unwrap();
    let names: Vec<&str> = found.tensors.iter().map(|tensor| tensor.site.tensor.as_str()).collect();
    assert_eq!(names, sites.iter().map(|site| site.tensor.as_str()).collect::<Vec<_>>());
    assert_eq!((found.samples, probes.report().builds), (1, 3), "eight tensors besides the output");
}

#[test]
fn marks_that_change_the_outputs_are_told() {
    let site =
        |tensor: &str| TensorSite { tensor: tensor.into(), node: tensor.into(), op_type: "Conv".into(), amax: None };
    let divergence = |site: &TensorSite, sqnr_db| TensorDivergence {
        site: site.clone(),
        difference: TensorDifference {
            count: 1,
            unequal: None,
            sqnr_db,
            cosine: 1.0,
            max_abs: 0.0,
            saturated: None,
            non_finite: NonFinite::default(),
            first_non_finite: None,
            shape_mismatch: None,
        },
    };
    // The fault is in the fusion of `a` and `b`: it is gone when `a` is marked.
    let mut engine = |marked: &[String], sites: &[TensorSite]| {
        let sqnr_db = if marked.contains(&"a".to_owned()) { Some(40.0) } else { Some(3.0) };
        Ok::<_, Infallible>(Graphwise::new(sites.iter().map(|site| divergence(site, sqnr_db)).collect(), 1))
    };
    let mut probes = Probes::new(vec![site("y")], 1);
    let found = probes.look(&[site("a"), site("b"), site("y")], &mut engine).unwrap();
    let sqnr: Vec<_> = found.tensors.iter().map(|tensor| tensor.difference.sqnr_db).collect();
    assert_eq!(sqnr, [Some(40.0), Some(3.0), Some(3.0)], "outputs are told as they are without marks");
    let expected =
        Disturbance { marked: vec!["a".into()], output: "y".into(), sqnr_db: Some(3.0), marked_sqnr_db: Some(40.0) };
    assert_eq!(probes.report(), &ProbeReport { builds: 2, disturbances: vec![expected], ..ProbeReport::default() });
}

#[test]
fn marked_tensors_become_outputs_once() {
    let model = with_outputs(&fixture::float(), &["flat".to_owned(), "y".to_owned()], &BTreeMap::new());
    let names: Vec<&str> = model.graph().output.iter().map(ValueInfoProto::name).collect();
    assert_eq!(names, ["y", "flat"]);
}
