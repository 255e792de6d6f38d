//! Who decides what is kept, and when it is enough.

use super::*;
use crate::{calibrate::RecoveredFp8, compare::Answers, quantize::Precision};

#[test]
fn a_metric_of_ones_own_decides_which_steps_are_kept() {
    let Some(case) = Case::new(1.0) else { return };
    let judge = |function: fn(Vec<Answers>, usize) -> f64| {
        let calls = AtomicUsize::new(0);
        let metric = OwnMetric::new(move |answers| {
            assert_eq!(answers.len(), 4);
            assert!(answers.iter().zip(["8", "9", "10", "11"]).all(|(answer, id)| answer.ids == [id]));
            Ok(function(answers, calls.fetch_add(1, Ordering::Relaxed)))
        });
        Some(Judge { metric, ids: ["8", "9", "10", "11"].map(|id| vec![id.to_owned()]).into() })
    };
    let kept = |table: &CalibrationTable| -> Vec<bool> {
        table.recovered.as_ref().unwrap().steps.iter().map(|step| step.kept).collect()
    };
    let by_error = case.recover(&options());
    assert!(kept(&by_error).contains(&true));
    // Whatever a step does to the error: first every one is worse, then every one is better.
    let worse = case.judged(&options(), judge(|_, call| -(call as f64))).unwrap();
    assert!(kept(&worse).iter().all(|kept| !kept));
    let better = case.judged(&options(), judge(|_, call| call as f64)).unwrap();
    assert!(kept(&better).iter().all(|kept| *kept));
    assert!(better.recovered.unwrap().steps[0].what.contains("; metric 0 to 1"));
    // What a metric does not tell apart, the error does.
    let equal = case.judged(&options(), judge(|_, _| 1.0)).unwrap();
    assert_eq!(kept(&equal), kept(&by_error));
    // It sees the outputs of the quantized model.
    let seen = judge(|answers, _| f64::from(answers[0].outputs.values().next().unwrap().to_f32()[0]));
    assert!(case.judged(&options(), seen).is_ok());
    let failing = OwnMetric::new(|_| Err("no such word".to_owned()));
    let failed = case.judged(&options(), Some(Judge { metric: failing, ids: vec![vec![String::new()]; 4] }));
    assert_eq!(failed.unwrap_err().to_string(), "the metric failed: no such word");
}

#[test]
fn nothing_more_is_tried_where_the_outputs_are_near_enough() {
    let Some(case) = Case::new(1.0) else { return };
    let names = |table: &CalibrationTable| -> Vec<String> {
        table.recovered.as_ref().unwrap().steps.iter().map(|step| step.name.clone()).collect()
    };
    let all = names(&case.recover(&options()));
    let tried = |enough: f64| {
        let reached = move |float: &[TensorMap], quantized: &[TensorMap]| {
            assert_eq!((float.len(), quantized.len()), (4, 4));
            let mut objective = Objective::new(Parts::new());
            for (float, quantized) in float.iter().zip(quantized) {
                objective.add("c", float["c"].view(), quantized["c"].view()).unwrap();
            }
            Ok(objective.decibels().unwrap() >= enough)
        };
        case.with(&options(), |material| Material { reached: Some(&reached), ..material }).unwrap()
    };
    let plain = case.written(&case.table);
    assert_eq!(names(&tried(plain - 1.0)), ["gates"], "nothing is tried");
    let some = tried(plain + 2.0);
    let rows = names(&some);
    assert!(rows.len() > 1 && rows.len() < all.len() + 1, "{rows:?} of {all:?}");
    let (last, before) = rows.split_last().unwrap();
    assert!(last == "gates" && before == &all[..before.len()], "{rows:?} of {all:?}");
    assert!(case.written(&some) > plain + 1.9);
    assert_eq!(names(&tried(1e9)), all, "without reaching it all is tried");
}

#[test]
fn the_methods_alone_are_taken_where_the_steps_are_not_clearly_better() {
    let Some(case) = Case::new(1.0) else { return };
    let beside = |rival: &CalibrationTable| {
        let rival = Some(rival.clone());
        case.with(&options(), |material| Material { rival, ..material }).unwrap()
    };
    // What recovery starts from is clearly worse than what it ends with.
    let own = beside(&case.table);
    let recovered = own.recovered.as_ref().unwrap();
    let row = recovered.steps.last().unwrap();
    assert!(row.name == "methods" && !row.kept && row.after_db < row.before_db, "{row}");
    assert_eq!(recovered.shifts, case.recover(&options()).recovered.unwrap().shifts);
    assert!(!recovered.shifts.is_empty() && !recovered.is_by_methods());
    // Steps that may do nothing are not better.
    let nothing = RecoverOptions { steps: BTreeSet::new(), ..options() };
    let rival = CalibrationTable { bias_corrections: [("nowhere".to_owned(), vec![1.0])].into(), ..case.table.clone() };
    let taken = case.with(&nothing, |material| Material { rival: Some(rival.clone()), ..material }).unwrap();
    let recovered = taken.recovered.as_ref().unwrap();
    assert!(recovered.is_by_methods() && recovered.steps.iter().all(|step| step.kept == (step.name == "methods")));
    assert_eq!(CalibrationTable { recovered: None, ..taken }, rival);
}

#[test]
fn fp8_has_ranges_and_biases_of_its_own() {
    let Some(case) = Case::new(1.0) else { return };
    let own = case.recover(&RecoverOptions { fp8: true, ..options() });
    let recovered = own.recovered.clone().unwrap();
    let tried: Vec<&str> = recovered.steps.iter().map(|step| &step.name[..]).collect();
    assert_eq!(tried, ["biases", "ranges"]);
    assert!(!own.bias_corrections.is_empty(), "{:?}", recovered.steps);
    let fp8 = RecoveredFp8 {
        amax: own.tensors.iter().map(|(name, range)| (name.clone(), range.amax)).collect(),
        bias_corrections: own.bias_corrections.clone(),
        recovered,
    };
    let for_int8 = case.recover(&options());
    let both = CalibrationTable { fp8: Some(fp8), ..for_int8.clone() };
    let of = |precision| QuantizeOptions {
        scheme: SchemeOptions { precision, ..SchemeOptions::default() },
        ..QuantizeOptions::default()
    };
    let [int8, fp8] = [Precision::Int8, Precision::Fp8].map(of);
    let model = |table| quantize(&case.model, &case.shapes, Some(table), &int8).unwrap().model;
    assert!(model(&both).graph() == model(&for_int8).graph(), "INT8 does not hear of it");
    let [plain, written] = [&for_int8, &both].map(|table| case.written_in(table, &fp8));
    let measured = both.fp8.unwrap().recovered.steps.iter().rfind(|step| step.kept).unwrap().after_db.unwrap();
    assert!((written - measured).abs() < 0.3, "{written} dB written, {measured} dB measured");
    assert!(written > plain + 0.3, "{written} {plain}");
}
