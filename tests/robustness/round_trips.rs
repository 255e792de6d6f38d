//! What was written comes back: for every format, over generated contents. (`histograms.calib` and `calibration.cache`
//! have theirs beside their code.)

use std::{collections::BTreeMap, fs, time::Duration};

use proptest::prelude::*;
use serde_json::Value;
use trtcalib::{
    artifact::{ContentHash, Tool},
    backend::tensorrt::EngineSidecar,
    bisect::trials::{Phase, Trial, TrialLog, Verdict, plan_hash},
    calibrate::{CalibrationTable, Method, TABLE_FORMAT_VERSION, TensorRange},
    compare::Gate,
    config::RunConfig,
    dataset::{DataOptions, Preprocess, load_classes, open},
    npz::{read_npz, write_npz},
    onnx::Model,
    quantize::{Assignment, PLAN_FORMAT_VERSION, Precision, PrecisionPlan, Selector},
    report::Report,
    session::checkpoint::Checkpoints,
    stats::SplitMix64,
    tensor::{Tensor, TensorMap, Values},
};

use super::{formats, models, mutate::damage_protobuf, root};

fn finite() -> impl Strategy<Value = f32> {
    use proptest::num::f32::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO
}

fn gate() -> impl Strategy<Value = Gate> {
    let texts = ["top1=0.98", "int8:top1=0.9@95%", "sqnr_db[boxes]=20.5", "latency_ratio=1.5", "map50=0.3"];
    prop::sample::select(texts.map(|text| text.parse().unwrap()).to_vec())
}

fn precision() -> impl Strategy<Value = Precision> {
    use Precision::{Bf16, Fp8, Fp16, Fp32, Int8};
    prop::sample::select(vec![Fp32, Fp16, Bf16, Int8, Fp8])
}

prop_compose! {
    fn range()(
        min in finite(), max in finite(), amax in finite(), count in any::<u64>(), clipped in 0.0..1.0,
    ) -> TensorRange {
        let amax = amax.abs();
        let candidates = BTreeMap::from([(Method::Mse, amax), (Method::MinMax, max)]);
        TensorRange { min, max, count, amax, method: Method::Mse, candidates, clipped }
    }
}

prop_compose! {
    fn table()(
        tensors in prop::collection::btree_map(".{0,12}", range(), 0..5),
        bias_corrections in prop::collection::btree_map(".{0,12}", prop::collection::vec(finite(), 0..9), 0..3),
        magnitudes in prop::option::of(prop::collection::btree_map(".{0,12}", finite(), 0..3)),
        percentile in 0.0..100.0, samples in any::<u32>(), random_data in any::<bool>(), method in ".{0,12}",
    ) -> CalibrationTable {
        CalibrationTable {
            format_version: TABLE_FORMAT_VERSION,
            tool: Tool::current(),
            model_hash: ContentHash::of_bytes(b"m"),
            data_hash: ContentHash::of_bytes(b"d"),
            method, percentile, samples: samples as usize, random_data, tensors, bias_corrections, magnitudes, recovered: None, fp8: None,
            calibrated_on: BTreeMap::new(),
        }
    }
}

/// Values of every type, `count` each.
fn values(bits: &[u64]) -> Vec<Values> {
    use half::f16;
    vec![
        Values::F32(bits.iter().map(|&x| f32::from_bits(x as u32)).filter(|x| !x.is_nan()).collect()),
        Values::F64(bits.iter().map(|&x| f64::from_bits(x)).filter(|x| !x.is_nan()).collect()),
        Values::F16(bits.iter().map(|&x| f16::from_bits(x as u16)).filter(|x| !x.is_nan()).collect()),
        Values::I8(bits.iter().map(|&x| x as i8).collect()),
        Values::U8(bits.iter().map(|&x| x as u8).collect()),
        Values::I32(bits.iter().map(|&x| x as i32).collect()),
        Values::I64(bits.iter().map(|&x| x as i64).collect()),
        Values::Bool(bits.iter().map(|&x| x & 1 == 1).collect()),
    ]
}

/// Numbers and texts of a report replaced here and there.
fn vary(value: &mut Value, random: &mut SplitMix64) {
    match value {
        Value::Number(number) if number.is_f64() && random.below(3) == 0 => {
            let float = f64::from_bits(random.next_u64());
            if let Some(float) = serde_json::Number::from_f64(float) {
                *number = float;
            }
        }
        Value::String(text) if random.below(20) == 0 => text.push_str("\u{0}\"<\u{202e}é\n"),
        Value::Array(items) => items.iter_mut().for_each(|item| vary(item, random)),
        Value::Object(entries) => entries.values_mut().for_each(|entry| vary(entry, random)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tables(table in table()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.json");
        table.save(&path).unwrap();
        prop_assert_eq!(CalibrationTable::load(&path).unwrap(), table);
    }

    #[test]
    fn plans(default in prop::option::of(precision()), nodes in prop::collection::vec((any::<bool>(), "[a-z/.]{1,9}", precision()), 0..6)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.json");
        let assignments = nodes
            .into_iter()
            .map(|(named, text, precision)| Assignment {
                nodes: if named { Selector::Node(text) } else { Selector::Pattern(text) },
                precision,
            })
            .collect();
        let plan = PrecisionPlan { format_version: PLAN_FORMAT_VERSION, default, assignments, random_data: true };
        plan.write(&path).unwrap();
        prop_assert_eq!(PrecisionPlan::read(&path).unwrap(), plan);
    }

    #[test]
    fn arrays(bits in prop::collection::vec(any::<u64>(), 0..40), name in "[a-z/:. é]{1,9}") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npz");
        for values in values(&bits) {
            let shape = vec![values.view().len(), 1];
            let tensors = TensorMap::from([(name.clone(), Tensor::new(shape, values).unwrap())]);
            write_npz(&path, &tensors).unwrap();
            prop_assert_eq!(read_npz(&path).unwrap(), tensors);
        }
    }

    #[test]
    fn configurations(
        samples in 1usize..1_000_000, percentile in 0.001..100.0, seed in any::<u32>(), gates in prop::collection::vec(gate(), 0..3),
        shape in prop::collection::btree_map("[^\u{0}]{1,9}", prop::collection::vec(0usize..9, 0..4), 0..3), max_bad in 0.0..1.0,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        let config = RunConfig {
            calib_samples: samples, percentile, seed: seed.into(), gate: gates, shape, max_bad,
            model: Some(folder.path().join("m.onnx")), preprocess: Preprocess::preset("imagenet", 224, 224),
            ..RunConfig::default()
        };
        fs::write(&path, config.to_toml().unwrap()).unwrap();
        prop_assert_eq!(RunConfig::load(&path).unwrap(), config);
    }

    #[test]
    fn reports(seed in any::<u64>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        let mut value: Value =
            serde_json::from_slice(&fs::read(root().join("reports/example/report.json")).unwrap()).unwrap();
        vary(&mut value, &mut SplitMix64::new(seed));
        // Single-precision fields may not hold what double precision does.
        if let Ok(report) = serde_json::from_value::<Report>(value) {
            // What became infinite is refused, not written as something else.
            if report.write(&path).is_ok() {
                prop_assert_eq!(Report::read(&path).unwrap(), report);
            }
        }
    }

    #[test]
    fn sidecars(seconds in 0.0..1e6, version in ".{0,9}", warnings in prop::collection::vec(".{0,20}", 0..3)) {
        let folder = tempfile::tempdir().unwrap();
        let (valid, engine) = (formats::sidecar(folder.path()), folder.path().join("e.plan"));
        let mut sidecar: EngineSidecar = serde_json::from_slice(&valid).unwrap();
        (sidecar.build_seconds, sidecar.tensorrt_version, sidecar.warnings) = (seconds, version, warnings);
        sidecar.save(&engine).unwrap();
        prop_assert_eq!(EngineSidecar::load(&engine).unwrap(), sidecar);
    }

    #[test]
    fn trial_logs(trials in prop::collection::vec((prop::collection::btree_set(".{0,9}", 0..4), any::<bool>(), -1e9..1e9), 0..5)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trials.json");
        let context = ContentHash::of_bytes(b"c");
        let mut log = TrialLog::new(context.clone());
        log.trials.extend(trials.into_iter().map(|(lifted, passed, score)| Trial {
            plan: plan_hash(&lifted),
            phase: Phase::Shrink,
            cost: lifted.len() as f64,
            lifted,
            verdict: Verdict { passed, score: Some(score), metrics: BTreeMap::from([("top1".to_owned(), score)]), intervals: BTreeMap::new(), notes: Vec::new() },
        }));
        log.save(&path).unwrap();
        prop_assert_eq!(TrialLog::resume(&path, context).unwrap(), log);
    }

    #[test]
    fn checkpoints(state in prop::collection::vec((".{0,9}", any::<u64>()), 0..9), own in prop::collection::vec(any::<u8>(), 0..99)) {
        let folder = tempfile::tempdir().unwrap();
        let (checkpoints, _) = Checkpoints::open(folder.path(), ContentHash::of_bytes(b"c"), Duration::ZERO).unwrap();
        checkpoints.save("stage", &state, &own).unwrap();
        prop_assert_eq!(checkpoints.load("stage").unwrap(), Some((state, own)));
    }

    /// Models with whatever a damaged file makes of them, as long as it can be read.
    #[test]
    fn onnx_models(seed in any::<u64>()) {
        let mut random = SplitMix64::new(seed);
        let bytes = damage_protobuf(&models::small(), &mut random).unwrap();
        if let Ok(model) = Model::from_bytes(bytes) {
            let again = Model::from_bytes(model.to_bytes().unwrap()).unwrap();
            prop_assert_eq!(again.proto, model.proto);
        }
    }

    #[test]
    fn label_lists(labels in prop::collection::vec(0u32..1000, 8)) {
        let folder = tempfile::tempdir().unwrap();
        let (images, list) = (root().join("calib_data/images"), folder.path().join("list.txt"));
        let rows = labels.iter().enumerate().map(|(i, label)| format!("{}/{i:04}.png,{label}\n", images.display()));
        fs::write(&list, rows.collect::<String>()).unwrap();
        let (classes, inputs, preprocess) = (BTreeMap::new(), formats::specs(), formats::exact());
        let options =
            DataOptions { path: &list, labels: None, classes: &classes, category_ids: &[], key_points: None, inputs: &inputs, preprocess: Some(&preprocess) };
        let data = open(&options).unwrap().dataset;
        let found: Vec<u32> = (0..data.len()).map(|index| data.label(index).unwrap()).collect();
        prop_assert_eq!(found, labels);
    }

    #[test]
    fn class_names(names in prop::collection::vec("[a-zA-Z][a-z ]{0,8}[a-z]", 1..9)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("classes.txt");
        fs::write(&path, names.join("\n") + "\n").unwrap();
        prop_assert_eq!(load_classes(&path).unwrap().into_values().collect::<Vec<_>>(), names);
    }
}
