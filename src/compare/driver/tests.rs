//! The comparison on made-up outputs.

use super::*;
use crate::tensor::{TensorMap, Values};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Outputs of samples `range`: 12 scores, a map of 3 classes on 2×3 pixels, and 4 plain integers. The target
/// differs by a small disturbance.
fn outputs(range: std::ops::Range<usize>, disturbance: f32) -> TensorMap {
    let count = range.len();
    let series = |length: usize, seed: usize, disturbance: f32| -> Vec<f32> {
        let value = |i: usize, j: usize| {
            let noise = ((i * 31 + j * 17 + seed) % 23) as f32 - 11.0;
            ((i * 7919 + j * 104_729 + seed) % 97) as f32 / 10.0 + disturbance * noise
        };
        range.clone().flat_map(|i| (0..length).map(move |j| value(i, j))).collect()
    };
    let integers = Values::I64(range.clone().flat_map(|i| [i as i64; 4]).collect());
    TensorMap::from([
        ("logits".to_owned(), Tensor::from_f32(vec![count, 12], series(12, 1, disturbance)).unwrap()),
        ("map".to_owned(), Tensor::from_f32(vec![count, 3, 2, 3], series(18, 2, 6.0 * disturbance)).unwrap()),
        ("boxes".to_owned(), Tensor::new(vec![count, 4], integers).unwrap()),
    ])
}

fn compare(total: usize, batch: usize, written: bool) -> ComparisonResult {
    compared(0..total, batch, written).finish()
}

fn compared(all: std::ops::Range<usize>, batch: usize, written: bool) -> Comparison {
    let order = names(&["logits", "map", "boxes"]);
    let options = CompareOptions { top_k: vec![3], max_flips: 2, ..CompareOptions::default() };
    let mut comparison = Comparison::new(&order, &order, options).unwrap();
    let ids: Vec<String> = (0..all.end).map(|i| format!("{i}.jpg")).collect();
    for start in all.clone().step_by(batch) {
        let range = start..(start + batch).min(all.end);
        let sample = |i: usize| Sample {
            id: &ids[i],
            label: (!i.is_multiple_of(3)).then_some(i as u32 % 12),
            mask: None,
            scene: None,
        };
        let samples: Vec<Sample<'_>> = range.clone().map(sample).collect();
        comparison.push(&samples, &outputs(range.clone(), 0.0), &outputs(range, 0.05)).unwrap();
        if written {
            let text = serde_json::to_string(&comparison).unwrap();
            comparison = serde_json::from_str(&text).unwrap();
        }
    }
    comparison
}

#[test]
fn parts_that_were_compared_apart_add_up_to_the_bits_of_the_whole() {
    let whole = compare(37, 5, false);
    for cuts in [vec![0, 37], vec![0, 0, 11, 12, 30, 37, 37], vec![0, 36, 37]] {
        let mut parts = cuts.windows(2).map(|cut| compared(cut[0]..cut[1], 3, true));
        let mut joined = parts.next().unwrap();
        parts.for_each(|part| joined.append(part).unwrap());
        assert_eq!(joined.finish(), whole, "{cuts:?}");
    }
    let order = names(&["logits", "map"]);
    let other = Comparison::new(&order, &order, CompareOptions::default()).unwrap();
    let error = compared(0..5, 5, false).append(other).unwrap_err().to_string();
    assert!(error.contains("`boxes` is not in both"), "{error}");
}

#[test]
fn neither_the_batch_size_nor_an_interruption_changes_a_bit() {
    let result = compare(37, 1, false);
    assert_eq!(result, compare(37, 37, false));
    assert_eq!(result, compare(37, 5, true));
    assert_eq!(result, compare(37, 5, false));
    assert_eq!((result.samples, result.outputs.len(), result.tasks.len()), (37, 3, 2));
}

#[test]
fn figures_match_an_independent_computation() {
    let result = compare(37, 4, false);
    let task = result.classification().unwrap();
    let agreement = task.agreement.as_ref().unwrap();
    assert_eq!((agreement.samples, task.flipped.len(), task.flips.len()), (37, 5, 2));
    assert_eq!(task.flipped, [1, 4, 19, 22, 29]);
    assert_eq!(task.flips[1].sample, "4.jpg");
    let shares = [agreement.top1, agreement.top5_overlap, agreement.top5_set, agreement.ref_top1_in_top5];
    let counted = shares.map(|share| (share * 37.0 * 5.0).round());
    assert_eq!(counted, [160.0, 176.0, 140.0, 185.0]);
    assert_eq!((task.top_k[0].k, (task.top_k[0].overlap * 111.0).round()), (3, 103.0));
    let (r, t) = (task.reference_accuracy.as_ref().unwrap(), task.accuracy.as_ref().unwrap());
    assert_eq!(r.samples, 24);
    assert_eq!([r.top1, r.top5, t.top1, t.top5].map(|share| (share * 24.0).round()), [4.0, 11.0, 5.0, 10.0]);
    let segmentation = result.map().unwrap().segmentation.as_ref().unwrap();
    assert_eq!((segmentation.pixel_agreement * 222.0).round(), 133.0);
    assert!((segmentation.mean_iou - 0.463_046_594_982_078_84).abs() < 1e-12, "{}", segmentation.mean_iou);
    assert!((result.outputs[0].sqnr_db.unwrap() - 24.449_409_468_902_395).abs() < 1e-4);
    assert_eq!((result.outputs[2].sqnr_db, result.outputs[2].max_abs), (None, 0.0));
    let integers: Vec<bool> = result.outputs.iter().map(|output| output.integers).collect();
    assert_eq!(integers, [false, false, true]);
}

#[test]
fn outputs_are_paired_by_name_or_else_by_position() {
    let new = |r: &[&str], t: &[&str]| Comparison::new(&names(r), &names(t), CompareOptions::default());
    let pairs = |r: &[&str], t: &[&str]| new(r, t).unwrap().finish().pairs;
    assert_eq!(
        pairs(&["a", "b"], &["b", "a"])[0],
        OutputPair { reference: "a".into(), target: "a".into(), by_position: false }
    );
    assert_eq!(
        pairs(&["a", "b"], &["y", "x"])[1],
        OutputPair { reference: "b".into(), target: "x".into(), by_position: true }
    );
    assert_eq!(new(&["a"], &["a", "b"]).unwrap().finish().ignored_outputs, ["b"]);
    for (r, t) in [(&["a", "b"][..], &["a", "c"][..]), (&["a", "b"], &["c"]), (&["a", "b"], &["b"])] {
        let error = new(r, t).unwrap_err().to_string();
        assert!(error.contains("the target has no output `"), "{error}");
    }
    let options =
        CompareOptions { kinds: BTreeMap::from([("x".to_owned(), OutputKind::Map)]), ..CompareOptions::default() };
    let error = Comparison::new(&names(&["a"]), &names(&["a"]), options).unwrap_err().to_string();
    assert_eq!(error, "a kind is set for output `x`, which the reference does not have (it has: a)");
    let ignoring = |r: &[&str]| {
        let kinds = BTreeMap::from([("a".to_owned(), OutputKind::Ignored)]);
        Comparison::new(&names(r), &names(r), CompareOptions { kinds, ..CompareOptions::default() })
    };
    let rest = ignoring(&["a", "b"]).unwrap().finish();
    assert_eq!((rest.pairs.len(), rest.pairs[0].reference.as_str(), &*rest.ignored_outputs[0]), (1, "b", "a"));
    assert!(ignoring(&["a"]).unwrap_err().to_string().contains("nothing is left to compare"));
}

#[test]
fn outputs_that_do_not_fit_are_named() {
    let sample = Sample { id: "7.jpg", label: None, mask: None, scene: None };
    let push = |samples: usize, r: &[usize], t: &[usize], kind| {
        let tensor = |shape: &[usize]| Tensor::from_f32(shape.to_vec(), vec![0.5; shape.iter().product()]).unwrap();
        let options = CompareOptions { kinds: BTreeMap::from([("a".to_owned(), kind)]), ..CompareOptions::default() };
        let mut comparison = Comparison::new(&names(&["a"]), &names(&["a"]), options).unwrap();
        let map = |shape| TensorMap::from([("a".to_owned(), tensor(shape))]);
        comparison.push(&vec![sample; samples], &map(r), &map(t)).map_err(|error| error.to_string())
    };
    let generic = OutputKind::Generic;
    assert_eq!(push(1, &[5], &[5], generic), Ok(()), "a batch of one needs no batch extent");
    let error = push(1, &[1, 5], &[1, 5, 1], generic).unwrap_err();
    assert!(error.contains("[1, 5] in the reference and [1, 5, 1] in") && error.ends_with(" a=ignored"), "{error}");
    assert!(push(2, &[6, 5], &[6, 5], generic).unwrap_err().contains("batch of 2 samples; use --batch 1"));
    assert!(push(1, &[1, 5], &[1, 5], OutputKind::Map).unwrap_err().contains("sample 7.jpg: a sample of shape [5]"));
    let error = push(1, &[1, 1, 2, 2], &[1, 1, 2, 2], OutputKind::Map).unwrap_err();
    assert!(error.contains("0.5 is not a class index") && error.contains("`generic`"), "{error}");
}
