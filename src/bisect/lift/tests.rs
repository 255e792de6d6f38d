//! Plans on the fixture, with a planted pair of faults.

use super::*;
use crate::{
    analyse::{
        cost::macs,
        fixture::{self, Data},
        graphwise::Side,
        layerwise::{LayerwiseOptions, OutputNoiseOptions, layerwise, output_noise},
        operators::Pair,
    },
    artifact::{ContentHash, Tool},
    backend::ExecutionProvider,
    bisect::search::Outcome,
    calibrate::{Method, TABLE_FORMAT_VERSION, TensorRange},
    quantize::SchemeOptions,
};

const INDICES: [usize; 4] = [0, 1, 2, 3];

/// The fixture's ranges; those of `faults` are thirty times too large.
fn table(faults: &[&str]) -> CalibrationTable {
    let range = |(tensor, amax): (&str, f32)| {
        let amax = if faults.contains(&tensor) { 30.0 * amax } else { amax };
        let range = TensorRange {
            min: -amax,
            max: amax,
            count: 1,
            amax,
            method: Method::MinMax,
            candidates: BTreeMap::new(),
            clipped: 0.0,
        };
        (tensor.to_owned(), range)
    };
    CalibrationTable {
        format_version: TABLE_FORMAT_VERSION,
        tool: Tool::current(),
        model_hash: ContentHash::of_bytes(b"fixture"),
        data_hash: ContentHash::of_bytes(b"data"),
        method: "minmax".to_owned(),
        percentile: 99.99,
        samples: 1,
        random_data: false,
        tensors: [("x", 1.0), ("first_relu", 3.25), ("second_silu", 2.0), ("flat", 0.65)].map(range).into(),
        bias_corrections: BTreeMap::new(),
        magnitudes: None,
        calibrated_on: BTreeMap::new(),
        recovered: None,
        fp8: None,
    }
}

/// All operators with weights in INT8, though they are small.
fn options() -> QuantizeOptions {
    let mut plan = PrecisionPlan::default();
    for node in ["first", "second", "head"] {
        plan.assign(node, Precision::Int8);
    }
    plan.assign("pool", Precision::Fp32);
    QuantizeOptions { scheme: SchemeOptions { plan, ..SchemeOptions::default() }, ..QuantizeOptions::default() }
}

fn gates(gate: &str) -> JudgeOptions {
    JudgeOptions { gates: vec![gate.parse().unwrap()], threads: 1, ..JudgeOptions::default() }
}

/// Ranks, searches and returns the outcome with the number of trials.
fn run(faults: &[&str], gate: &str, memory_bytes: usize) -> Option<SearchResult> {
    let runtime = fixture::runtime()?;
    let (float, shapes, table, quantize) = (fixture::float(), BTreeMap::new(), table(faults), options());
    let start =
        Start { model: &float, shapes: &shapes, table: Some(&table), quantize: &quantize, precision: Precision::Fp32 };
    let quantized = start.model(&NodeSet::new()).unwrap();
    let pair = Pair::new(&float, &quantized).unwrap();
    let (data, indices) = (Data(4), INDICES);
    let samples = Samples { dataset: &data, indices: &indices, reading: fixture::READING };
    let layers = layerwise(&runtime, &pair, samples, LayerwiseOptions::default()).unwrap().0;
    let nodes: Vec<String> = pair.operators.iter().map(|operator| operator.node.clone()).collect();
    assert_eq!(nodes, ["first", "second", "head"]);
    let outputs = output_noise(
        &runtime,
        &pair,
        &nodes,
        samples,
        &OutputNoiseOptions { threads: 1, ..OutputNoiseOptions::default() },
    )
    .unwrap();
    let candidates: Vec<Candidate> =
        candidates(&layers, &outputs, &BTreeMap::new()).into_iter().map(|(candidate, _)| candidate).collect();
    let options = JudgeOptions { memory_bytes, ..gates(gate) };
    let side = Side { backend: &runtime, provider: ExecutionProvider::Cpu, model: &float };
    let mut judge = Judge::new(side, samples, options).unwrap();
    let search = SearchOptions { max_trials: 20, ..SearchOptions::default() };
    Some(smallest_plan(&mut judge, start, &candidates, search, &[], &mut |_| {}).unwrap())
}

#[test]
fn the_smallest_plan_for_a_pair_of_faults_is_that_pair() {
    let Some(result) = run(&["x", "flat"], "sqnr_db=30", 1 << 30) else { return };
    let Outcome::Found { trial, minimal: true } = &result.outcome else { panic!("{:?}", result.outcome) };
    assert_eq!(trial.lifted, NodeSet::from(["first", "head"].map(str::to_owned)));
    assert!(trial.verdict.metrics["sqnr_db"] >= 30.0);
    // Memory for one sample, or for none, changes nothing.
    assert_eq!(run(&["x", "flat"], "sqnr_db=30", 1000).unwrap(), result);
    assert_eq!(run(&["x", "flat"], "sqnr_db=30", 0).unwrap(), result);
}

#[test]
fn a_gate_that_float_cannot_pass_is_at_fault() {
    let Some(result) = run(&[], "accuracy=0.5", 1 << 30) else { return };
    assert!(matches!(&result.outcome, Outcome::GateAtFault { trial } if trial.lifted.len() == 3));
    assert!(matches!(run(&[], "sqnr_db=20", 0).unwrap().outcome, Outcome::AlreadyPasses { .. }));
    // Where less is better the score is negated; equality takes everything.
    let result = run(&[], "max_abs=0", 0).unwrap();
    assert!(matches!(&result.outcome, Outcome::Found { trial, minimal: true } if trial.lifted.len() == 3));
    assert!(result.trials[0].verdict.score.unwrap() < 0.0);
}

#[test]
fn multiply_accumulates_are_counted_by_hand() {
    let Some(runtime) = fixture::runtime() else { return };
    let (float, quantized) = (fixture::float(), fixture::quantized());
    let pair = Pair::new(&float, &quantized).unwrap();
    let samples = Samples { dataset: &Data(1), indices: &[0], reading: fixture::READING };
    let macs = macs(&runtime, &pair, samples).unwrap();
    let expected = [
        ("first", 8.0 * 64.0 * 27.0), // channels, pixels, 3·3·3 weights each
        ("second", 8.0 * 64.0 * 8.0),
        ("join", 8.0 * 64.0),
        ("head", 5.0 * 8.0),
    ];
    assert_eq!(macs, expected.map(|(node, macs)| (node.to_owned(), macs)).into());
}

#[test]
fn what_was_not_measured_ranks_behind_what_was() {
    let layer = |node: &str, relative_noise| LayerError {
        node: node.to_owned(),
        op_type: "Conv".to_owned(),
        tensor: String::new(),
        layerwise_sqnr_db: None,
        weight_sqnr_db: None,
        activation_sqnr_db: None,
        relative_noise,
        worst_channel: None,
        dead_channels: Vec::new(),
        activations: Vec::new(),
    };
    let output = |node: &str, relative_noise| OutputNoise { node: node.to_owned(), relative_noise, sqnr_db: None };
    let layers = [layer("a", Some(1e3)), layer("b", Some(0.1)), layer("c", Some(0.2)), layer("d", Some(0.3))];
    let outputs = [output("b", Some(1e-3)), output("c", None), output("d", Some(1e-4))];
    let costs = BTreeMap::from([("d".to_owned(), 7.0)]);
    let mut ranked: Vec<Candidate> = candidates(&layers, &outputs, &costs).into_iter().map(|(c, _)| c).collect();
    assert_eq!(ranked.iter().map(|c| c.cost).collect::<Vec<_>>(), [1.0, 1.0, 1.0, 7.0]);
    ranked.sort_by(|a, b| b.sensitivity.total_cmp(&a.sensitivity));
    assert_eq!(ranked.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["c", "b", "d", "a"]);
}
