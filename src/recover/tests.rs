//! Small models whose best recovery is known, from recovery to the model that is written.

mod judges;
mod products;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use calib_test_support::Need;

use super::*;
use crate::{
    artifact::{ContentHash, Tool},
    backend::{BuildOptions, onnxruntime::OnnxRuntime},
    calibrate::{Method, RecoveryStep, TensorRange},
    compare::Objective,
    onnx::proto::{
        AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, TensorProto,
        TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto,
    },
    quantize::{QuantizeOptions, SchemeOptions, place, quantize},
    tensor::{ElementType, Tensor},
};

static NEVER: AtomicBool = AtomicBool::new(false);

/// Channels of every map, and its height and width.
const CHANNELS: usize = 16;
const SIDE: usize = 8;

/// Numbers in [-1, 1) that are the same everywhere.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; 4 * count];
    reader.fill(&mut bytes);
    bytes.as_chunks().0.iter().map(|&b| (u32::from_le_bytes(b) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn tensor(shape: &[usize], values: Vec<f32>) -> Tensor {
    Tensor::from_f32(shape.to_vec(), values).unwrap()
}

fn map(name: &str) -> TensorInfo {
    let shape = [1, CHANNELS, SIDE, SIDE].map(Some).to_vec();
    TensorInfo { name: name.to_owned(), element_type: Some(ElementType::F32), shape }
}

fn declared(name: &str) -> ValueInfoProto {
    let dim = |extent: Option<usize>| {
        let value = extent.map(|extent| DimensionValue::DimValue(extent as i64));
        DimensionProto { value, ..Default::default() }
    };
    let shape = TensorShapeProto { dim: map(name).shape.into_iter().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: Some(1), shape: Some(shape) };
    let r#type = Some(TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..Default::default() }
}

/// `x ─ Conv a (3 by 3, padded) ─ Clip(0, 6) ─ Conv b (3 by 3, padded) ─ Relu ─ Conv c (1 by 1) ─ y`; the input of `c` is
/// multiplied by `stretch` in its first channel, and its weights there by the inverse.
fn model(stretch: f32) -> Model {
    with_weights(1, |name, values| match name {
        "b.w" => values[..CHANNELS * 9].iter_mut().for_each(|value| *value *= stretch),
        "c.w" => values.iter_mut().step_by(CHANNELS).for_each(|value| *value /= stretch),
        _ => {}
    })
}

/// The same with a depthwise `b`, and an input of it that is small by `stretch` in all channels but the first.
fn depthwise_model(stretch: f32) -> Model {
    with_weights(CHANNELS, |name, values| match name {
        "a.w" | "a.b" => {
            let first = values.len() / CHANNELS;
            values[first..].iter_mut().for_each(|value| *value /= stretch);
        }
        "b.w" => values[9..].iter_mut().for_each(|value| *value *= stretch),
        _ => {}
    })
}

/// The model with `group` groups in `b`, and weights that `change` gets by name.
fn with_weights(group: usize, change: impl Fn(&str, &mut [f32])) -> Model {
    let conv = |name: &str, from: &str, pad: i64| {
        let names = [from.to_owned(), format!("{name}.w"), format!("{name}.b")];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let conv = NodeProto::new("Conv", name, &names, &[name]).with(AttributeProto::ints("pads", &[pad; 4]));
        if name == "b" { conv.with(AttributeProto::int("group", group as i64)) } else { conv }
    };
    let node = vec![
        conv("a", "x", 1),
        NodeProto::new("Clip", "clip", &["a", "low", "high"], &["clip"]),
        conv("b", "clip", 1),
        NodeProto::new("Relu", "relu", &["b"], &["relu"]),
        conv("c", "relu", 0),
    ];
    let parameter = |name: &str, shape: &[usize], mut values: Vec<f32>| {
        change(name, &mut values);
        TensorProto::from_tensor(name, tensor(shape, values))
    };
    let weight = |name: &str, side: usize, gain: f32| {
        let depth = if name == "b.w" { CHANNELS / group } else { CHANNELS };
        let values = numbers(name.len() as u64 + u64::from(name.as_bytes()[0]), CHANNELS * depth * side * side);
        parameter(name, &[CHANNELS, depth, side, side], values.into_iter().map(|value| gain * value).collect())
    };
    let vector = |name: &str, value: f32| parameter(name, &[CHANNELS], vec![value; CHANNELS]);
    let bound = |name: &str, value: f32| TensorProto::from_tensor(name, tensor(&[], vec![value]));
    let initializer = vec![
        weight("a.w", 3, 0.6),
        vector("a.b", 2.5),
        weight("b.w", 3, 0.1),
        vector("b.b", 0.3),
        weight("c.w", 1, 0.4),
        vector("c.b", 0.0),
        bound("low", 0.0),
        bound("high", 6.0),
    ];
    let graph = GraphProto {
        node,
        name: Some("model".to_owned()),
        initializer,
        input: vec![declared("x")],
        output: vec![declared("c")],
        ..Default::default()
    };
    let mut proto = ModelProto { ir_version: Some(8), graph: Some(graph), ..Default::default() };
    proto.set_opset("", 17);
    Model {
        proto,
        path: None,
        hash: ContentHash::of_bytes(b"model"),
        external_data: false,
        stands_for: BTreeMap::new(),
    }
}

fn samples(from: u64, count: u64) -> Vec<TensorMap> {
    let sample = |seed| tensor(&[1, CHANNELS, SIDE, SIDE], numbers(1000 + seed, CHANNELS * SIDE * SIDE));
    (from..from + count).map(|seed| TensorMap::from([("x".to_owned(), sample(seed))])).collect()
}

struct Case {
    runtime: OnnxRuntime,
    model: Model,
    shapes: BTreeMap<String, TensorInfo>,
    placement: Placement,
    /// Thresholds that hold all values.
    table: CalibrationTable,
}

impl Case {
    fn new(stretch: f32) -> Option<Self> {
        Self::of(model(stretch))
    }

    fn of(model: Model) -> Option<Self> {
        let runtime = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None))?;
        let shapes: BTreeMap<String, TensorInfo> =
            ["x", "a", "clip", "b", "relu", "c"].map(|name| (name.to_owned(), map(name))).into();
        let placement = place(&model, &shapes, &SchemeOptions::default()).unwrap();
        let options = BuildOptions { extra_outputs: vec!["clip".into(), "relu".into()], ..Default::default() };
        let mut runner = runtime.build(&model, &options).unwrap();
        let mut tensors: BTreeMap<String, TensorRange> = BTreeMap::new();
        for sample in samples(0, 8) {
            for (name, tensor) in runner.infer(&sample).unwrap().into_iter().chain(sample) {
                let values = tensor.to_f32();
                let (low, high) = values.iter().fold((0f32, 0f32), |(low, high), &v| (low.min(v), high.max(v)));
                let range = tensors.entry(name).or_insert(TensorRange {
                    min: 0.0,
                    max: 0.0,
                    count: 0,
                    amax: 0.0,
                    method: Method::MinMax,
                    candidates: BTreeMap::new(),
                    clipped: 0.0,
                });
                (range.min, range.max) = (range.min.min(low), range.max.max(high));
                range.count += values.len() as u64;
                range.amax = range.max.max(-range.min);
                range.candidates = [(Method::MinMax, range.amax)].into();
            }
        }
        tensors.retain(|name, _| placement.tensors_to_observe().contains(name));
        let table = CalibrationTable {
            format_version: crate::calibrate::TABLE_FORMAT_VERSION,
            tool: Tool::current(),
            model_hash: model.hash.clone(),
            data_hash: ContentHash::of_bytes(b"data"),
            method: "minmax".into(),
            percentile: 99.99,
            samples: 8,
            random_data: false,
            tensors,
            bias_corrections: BTreeMap::new(),
            magnitudes: None,
            calibrated_on: BTreeMap::new(),
            recovered: None,
            fp8: None,
        };
        Some(Self { runtime, model, shapes, placement, table })
    }

    fn recover(&self, options: &RecoverOptions) -> CalibrationTable {
        self.judged(options, None).unwrap()
    }

    fn judged(&self, options: &RecoverOptions, judge: Option<Judge>) -> Result<CalibrationTable, RecoverError> {
        self.with(options, |material| Material { judge, ..material })
    }

    fn with<'a>(
        &'a self,
        options: &RecoverOptions,
        more: impl FnOnce(Material<'a>) -> Material<'a>,
    ) -> Result<CalibrationTable, RecoverError> {
        let material = Material {
            backend: &self.runtime,
            model: &self.model,
            shapes: &self.shapes,
            placement: &self.placement,
            parts: Parts::new(),
            ignored: BTreeSet::new(),
            stop: &NEVER,
            fit: samples(0, 8),
            held_out: samples(8, 4),
            judge: None,
            reached: None,
            rival: None,
        };
        recover(more(material), &self.table, options)
    }

    /// Signal to noise of the model that is written with `table`, on the held-out samples.
    fn written(&self, table: &CalibrationTable) -> f64 {
        self.written_in(table, &QuantizeOptions::default())
    }

    fn written_in(&self, table: &CalibrationTable, options: &QuantizeOptions) -> f64 {
        let quantized = quantize(&self.model, &self.shapes, Some(table), options).unwrap();
        let [mut float, mut quantized] =
            [&self.model, &quantized.model].map(|model| self.runtime.build(model, &BuildOptions::default()).unwrap());
        let mut objective = Objective::new(Parts::new());
        for sample in samples(8, 4) {
            let [float, quantized] = [&mut float, &mut quantized].map(|runner| runner.infer(&sample).unwrap());
            objective.add("c", float["c"].view(), quantized["c"].view()).unwrap();
        }
        objective.decibels().unwrap()
    }
}

fn options() -> RecoverOptions {
    RecoverOptions {
        fp8: false,
        effort: Effort::Default,
        deploy_to: DeployTo::Rtx,
        shift: ShiftPolicy::All,
        lift_budget: 0.0,
        lift_nodes: usize::MAX,
        steps: StepKind::ALL.into_iter().collect(),
        threads: 2,
        peers: Peers::default(),
    }
}

#[test]
fn a_tensor_that_is_never_negative_regains_a_bit_and_the_written_model_is_the_one_that_was_measured() {
    let Some(case) = Case::new(1.0) else { return };
    let table = case.recover(&options());
    let recovered = table.recovered.as_ref().unwrap();
    // From 0 to 6 in 255 steps around 128 of them.
    let shift = recovered.shifts["clip"];
    assert!((shift.amax - 127.0 * 6.0 / 255.0).abs() < 1e-3, "{shift:?}");
    assert!((shift.offset - 128.0 * 6.0 / 255.0).abs() < 1e-3, "{shift:?}");
    let step = |name: &str| recovered.steps.iter().find(|step| step.name == name).unwrap();
    assert!(step("shift").kept && step("shift").after_db > step("shift").before_db.map(|db| db + 1.0));
    // What every call gains lies around what all gain, and above nothing.
    let gain = step("shift").after_db.zip(step("shift").before_db).map(|(after, before)| after - before).unwrap();
    let [low, high] = step("shift").gain_interval_db.unwrap();
    assert!(0.0 < low && low < gain && gain < high && high < 2.0 * gain, "{low} {gain} {high}");
    let measured = recovered.steps.iter().rfind(|step| step.kept).unwrap().after_db.unwrap();
    let [plain, written] = [&case.table, &table].map(|table| case.written(table));
    assert!((written - measured).abs() < 0.3, "{written} dB written, {measured} dB measured");
    assert!(written > plain + 3.0, "{written} {plain}");
}

#[test]
fn channels_in_front_of_a_depthwise_convolution_are_brought_to_like_sizes() {
    // All channels of `clip` but the first are 32 times smaller, which leaves them 4 of 127 steps.
    let Some(case) = Case::of(depthwise_model(32.0)) else { return };
    for effort in [Effort::Default, Effort::Fast] {
        let table = case.recover(&RecoverOptions { effort, ..options() });
        let recovered = table.recovered.as_ref().unwrap();
        let names: Vec<&str> = recovered.equalized.keys().map(String::as_str).collect();
        assert_eq!(names, ["clip"], "{:?}", recovered.steps);
        let exponents = &recovered.equalized["clip"].0;
        assert!(exponents[0] == 0 && exponents[1..].iter().all(|&e| (3..=5).contains(&e)), "{exponents:?}");
        let of = |step: &&RecoveryStep| step.name.contains("equalization");
        let step = recovered.steps.iter().find(of).unwrap();
        assert!(step.kept && step.after_db > step.before_db.map(|db| db + 10.0), "{step}");
        let measured = recovered.steps.iter().rfind(|step| step.kept).unwrap().after_db.unwrap();
        let written = case.written(&table);
        assert!((written - measured).abs() < 0.3, "{written} dB written, {measured} dB measured");
    }
    // The clip is not a kernel of its own: there the multiplication might become one.
    let elsewhere = case.recover(&RecoverOptions { deploy_to: DeployTo::Tensorrt, ..options() }).recovered.unwrap();
    assert!(elsewhere.equalized.is_empty());
}

#[test]
fn the_magnitude_of_tensors_is_of_no_account() {
    let gained = |exponent: i32| {
        let scaled = with_weights(1, |name, values| {
            if name.starts_with("b.") {
                for value in values {
                    *value *= 2f32.powi(exponent);
                }
            }
        });
        let case = Case::of(scaled)?;
        Some([case.written(&case.table), case.written(&case.recover(&options()))])
    };
    let Some([before, after]) = gained(0) else { return };
    assert!(after > before + 3.0, "{before} {after}");
    for exponent in [-90, 70] {
        let other = gained(exponent).unwrap();
        assert!((other[0] - before).abs() < 0.2 && (other[1] - after).abs() < 0.2, "{other:?} {before} {after}");
    }
}

#[test]
fn what_is_switched_off_is_not_done() {
    let Some(case) = Case::new(1.0) else { return };
    let off = RecoverOptions { steps: BTreeSet::from([StepKind::Lifting]), effort: Effort::Fast, ..options() };
    let table = case.recover(&off);
    let recovered = table.recovered.unwrap();
    assert!(recovered.shifts.is_empty() && recovered.steps.is_empty() && table.bias_corrections.is_empty());
    // Each step is tried where it alone may be.
    for step in [StepKind::Biases, StepKind::Ranges, StepKind::Shift, StepKind::Rounding] {
        let alone = case.recover(&RecoverOptions { steps: BTreeSet::from([step]), ..options() }).recovered.unwrap();
        let tried: Vec<&str> = alone.steps.iter().map(|row| &row.name[..]).collect();
        assert_eq!(tried, [step.to_string()]);
        assert!(step == StepKind::Shift || alone.shifts.is_empty());
        assert!(step == StepKind::Rounding || alone.rounding.is_empty());
    }
    // Padded convolutions read both the clipped tensor and the input.
    let unpadded = case.recover(&RecoverOptions { shift: ShiftPolicy::Unpadded, ..options() }).recovered.unwrap();
    assert_eq!(unpadded.shifts.keys().map(String::as_str).collect::<Vec<_>>(), ["relu"]);
}

#[test]
fn an_outlier_channel_is_lifted_where_the_budget_allows() {
    // The first channel of `relu` is 500 times the others: no scale serves both, and `c` has a tenth of the work.
    let Some(case) = Case::new(500.0) else { return };
    let lifted = |lift_budget| {
        let table = case.recover(&RecoverOptions { lift_budget, ..options() });
        let nodes: Vec<String> = table.recovered.iter().flat_map(|r| &r.lifted).map(|one| one.node.clone()).collect();
        (nodes, case.written(&table))
    };
    let (none, before) = lifted(0.02);
    assert!(none.is_empty(), "{none:?}");
    let (nodes, after) = lifted(0.06);
    assert_eq!(nodes, ["c"]);
    assert!(after > before + 6.0, "{before} {after}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let Some(case) = Case::new(3.0) else { return };
    let table = |threads| {
        let table = case.recover(&RecoverOptions { threads, lift_budget: 0.5, ..options() });
        serde_json::to_string(&table).unwrap()
    };
    assert_eq!(table(1), table(3));
}

/// What `count` processes make of the same; with `leaves`, none hears of the others at the third exchange.
fn shared(case: &Case, count: usize, leaves: bool) -> Vec<Result<String, RecoverError>> {
    let found = Arc::new((Mutex::new(vec![Vec::new(); count]), Barrier::new(count)));
    let peers = (0..count).map(|index| {
        let (found, rounds) = (Arc::clone(&found), AtomicUsize::new(0));
        Peers::new(index, count, move |own| {
            if rounds.fetch_add(1, Ordering::Relaxed) == 2 && leaves {
                return Err("worker 1 has left".to_owned());
            }
            let (all, barrier) = &*found;
            all.lock().unwrap()[index] = own;
            barrier.wait();
            let given = all.lock().unwrap().clone();
            barrier.wait();
            Ok(given)
        })
    });
    let recover = |peers: Peers| {
        let options = RecoverOptions { lift_budget: 0.5, threads: 1, peers, ..options() };
        case.judged(&options, None).map(|table| serde_json::to_string(&table).unwrap())
    };
    std::thread::scope(|scope| {
        let started: Vec<_> = peers.map(|peers| scope.spawn(|| recover(peers))).collect();
        started.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

#[test]
fn processes_that_share_candidates_all_find_what_one_finds() {
    let Some(case) = Case::new(3.0) else { return };
    let alone = shared(&case, 1, false).pop().unwrap().unwrap();
    for count in [2, 3] {
        assert!(shared(&case, count, false).into_iter().all(|table| table.unwrap() == alone));
    }
    let refused = shared(&case, 2, true).into_iter().map(|table| table.unwrap_err().to_string());
    assert!(refused.into_iter().all(|error| error == "recovery shared between processes: worker 1 has left"));
}

#[test]
fn who_has_other_candidates_is_told_so() {
    for other in [vec![4.0, 0.5], vec![3.0], vec![]] {
        let peers = Peers::new(0, 2, move |own| Ok(vec![own, other.clone()]));
        let error = peers.share(3, |part| Ok(vec![1.0; part.len()])).unwrap_err();
        assert!(error.to_string().contains("do not compute alike"), "{error}");
    }
    let peers = Peers::new(1, 2, |own| Ok(vec![vec![3.0, 0.5, 2.5], own]));
    let found = peers.share(3, |part| Ok(part.into_iter().map(|place| place as f64).collect()));
    assert_eq!(found.unwrap(), [0.5, 1.0, 2.5]);
}

#[test]
fn ranks_that_the_model_does_not_tell_are_learned_from_a_sample() {
    let Some(mut case) = Case::new(1.0) else { return };
    let told = case.recover(&options());
    case.shapes.retain(|name, _| ["x", "c", "relu"].contains(&name.as_str()));
    case.shapes.get_mut("relu").unwrap().shape.clear();
    assert_eq!(case.recover(&options()).recovered.unwrap().rounding, told.recovered.unwrap().rounding);
}
