//! Matrix products: biases in a sum behind them, and channels that share the scales of weights.

use super::*;

/// Columns of the first product.
const WIDE: usize = 32;

/// `x ─ Transpose ─ Mul ─ Add (clip) ─ MatMul ab ─ Add ─ Relu ─ MatMul cd ─ Add (c)`, as exporters write a normalization and two
/// layers of a transformer. The first channel of `clip` is larger by `stretch`; its weights are smaller by the square root of it.
fn transformer(stretch: f32) -> Model {
    let constant =
        |name: &str, shape: &[usize], values: Vec<f32>| TensorProto::from_tensor(name, tensor(shape, values));
    let mut gamma = vec![1.0; CHANNELS];
    gamma[0] = stretch;
    let mut first: Vec<f32> = numbers(1, CHANNELS * WIDE).into_iter().map(|value| 0.3 * value).collect();
    first[..WIDE].iter_mut().for_each(|value| *value /= stretch.sqrt());
    let transpose = NodeProto::new("Transpose", "t", &["x"], &["t"]).with(AttributeProto::ints("perm", &[0, 2, 3, 1]));
    let op = |op: &str, name: &str, inputs: &[&str]| NodeProto::new(op, name, inputs, &[name]);
    let graph = GraphProto {
        node: vec![
            transpose,
            op("Mul", "scaled", &["t", "gamma"]),
            op("Add", "clip", &["scaled", "beta"]),
            op("MatMul", "ab", &["clip", "ab.w"]),
            op("Add", "b", &["ab.b", "ab"]),
            op("Relu", "relu", &["b"]),
            op("MatMul", "cd", &["relu", "cd.w"]),
            op("Add", "c", &["cd", "cd.b"]),
        ],
        name: Some("transformer".to_owned()),
        initializer: vec![
            constant("gamma", &[CHANNELS], gamma),
            constant("beta", &[CHANNELS], numbers(2, CHANNELS)),
            constant("ab.w", &[CHANNELS, WIDE], first),
            constant("ab.b", &[WIDE], numbers(3, WIDE)),
            constant("cd.w", &[WIDE, CHANNELS], numbers(4, WIDE * CHANNELS)),
            constant("cd.b", &[1, 1, CHANNELS], numbers(5, CHANNELS)),
        ],
        input: vec![declared("x")],
        output: vec![ValueInfoProto { name: Some("c".to_owned()), ..declared("c") }],
        ..Default::default()
    };
    let mut proto = ModelProto { ir_version: Some(8), graph: Some(graph), ..Default::default() };
    proto.set_opset("", 17);
    let hash = ContentHash::of_bytes(b"transformer");
    Model { proto, path: None, hash, external_data: false, stands_for: BTreeMap::new() }
}

#[test]
fn a_large_channel_in_front_of_a_product_gives_way_and_sums_take_mean_errors_back() {
    let Some(case) = Case::of(transformer(64.0)) else { return };
    let table = case.recover(&options());
    let recovered = table.recovered.as_ref().unwrap();
    let exponents = &recovered.equalized["clip"].0;
    assert!(exponents[0] == 0 && exponents[1..].iter().all(|&e| e >= 2), "{exponents:?}");
    let step = recovered.steps.iter().find(|step| step.name == "equalization").unwrap();
    assert!(step.kept && step.after_db > step.before_db.map(|db| db + 6.0), "{step}");
    assert!(table.bias_corrections.keys().any(|node| node == "ab" || node == "cd"), "{:?}", recovered.steps);
    let measured = recovered.steps.iter().rfind(|step| step.kept).unwrap().after_db.unwrap();
    let [plain, written] = [&case.table, &table].map(|table| case.written(table));
    assert!((written - measured).abs() < 0.3, "{written} dB written, {measured} dB measured");
    assert!(written > plain + 6.0, "{written} {plain}");
}

#[test]
fn the_outputs_choose_the_ranges_that_matter() {
    // A threshold of a tenth cuts nearly all of `relu`: among it and the whole range the outputs choose the latter.
    let Some(case) = Case::of(transformer(1.0)) else { return };
    let mut table = case.table.clone();
    let whole = table.tensors["relu"].amax;
    let range = table.tensors.get_mut("relu").unwrap();
    range.amax = whole / 10.0;
    range.candidates.insert(Method::Percentile, whole / 10.0);
    let case = Case { table, ..case };
    let steps = BTreeSet::from([StepKind::Descent]);
    let thorough = RecoverOptions { effort: Effort::Thorough, steps: steps.clone(), ..options() };
    let table = case.recover(&thorough);
    let step = &table.recovered.as_ref().unwrap().steps[0];
    assert!(step.kept && step.name == "descent" && step.after_db > step.before_db.map(|db| db + 20.0), "{step}");
    let written = case.written(&table);
    assert!((written - step.after_db.unwrap()).abs() < 0.3, "{written} {step}");
    // No range is chosen by outputs where the effort leaves no time for it.
    for effort in [Effort::Fast, Effort::Default] {
        let other = case.recover(&RecoverOptions { effort, steps: steps.clone(), ..options() });
        assert!(other.recovered.unwrap().steps.is_empty());
    }
}

#[test]
fn weights_take_back_errors_that_reach_them() {
    // A threshold of half the range cuts what goes into the second product: what is left tells part of what is missing.
    let Some(case) = Case::of(transformer(1.0)) else { return };
    let mut table = case.table.clone();
    table.tensors.get_mut("relu").unwrap().amax /= 2.0;
    let case = Case { table, ..case };
    let of = |step| {
        let recovered = RecoverOptions { effort: Effort::Thorough, steps: [step].into(), ..options() };
        let table = case.recover(&recovered);
        let step = table.recovered.as_ref().unwrap().steps[0].clone();
        (table, step)
    };
    let ((table, step), (_, rounding)) = (of(StepKind::Compensation), of(StepKind::Rounding));
    assert!(step.kept && step.after_db > step.before_db.map(|db| db + 0.5), "{step}");
    assert!(
        rounding.after_db < step.after_db,
        "rounding alone knows nothing of errors that come in: {rounding}, {step}"
    );
    let written = case.written(&table);
    assert!((written - step.after_db.unwrap()).abs() < 0.3, "{written} dB written, {step}");
    assert_eq!(of(StepKind::Compensation).0.recovered.unwrap().rounding, table.recovered.unwrap().rounding);
}
