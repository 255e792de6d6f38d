use super::*;
use crate::compare::heads::{DetectionOptions, HeadKind, OutputShape, Surroundings, recognize};
use crate::tensor::{ElementType, Tensor};

fn at(x: f32) -> [f32; 4] {
    [x, 0.0, x + 10.0, 10.0]
}

/// Left sides and scores of the reference's boxes and of the target's, and left sides of the labels.
type Boxes<'a> = (&'a [(f32, f32)], &'a [(f32, f32)], Option<&'a [f32]>);

fn detections(pictures: &[Boxes<'_>]) -> Detections {
    let boxes = |list: &[(f32, f32)]| -> Vec<Detection> {
        list.iter().map(|&(x, score)| Detection { corners: at(x), score, class: 0 }).collect()
    };
    let truth = |&x: &f32| Truth { corners: at(x), class: 0, area: 100.0, crowd: false };
    let options = DetectionOptions {
        head: Some(HeadKind::Boxes),
        boxes: Some("b".to_owned()),
        scores: Some("s".to_owned()),
        ..DetectionOptions::default()
    };
    let shape = |name: &str, last| OutputShape {
        name: name.to_owned(),
        element_type: None,
        shape: vec![Some(1), None, Some(last)],
    };
    let head = recognize(&[shape("b", 4), shape("s", 1)], &Surroundings::default(), &options).unwrap().unwrap();
    let mut detections = Detections::new(head);
    for (index, (reference, target, truths)) in pictures.iter().enumerate() {
        let truths = truths.map(|truths| truths.iter().map(truth).collect());
        let (reference, target) = (boxes(reference), boxes(target));
        let rank = None;
        detections.pictures.push(Picture { id: index.to_string(), size: None, reference, target, truths, rank });
    }
    detections
}

#[test]
fn agreement_counts_by_hand() {
    let counted = detections(&[
        // One moved by 2 (IoU 8/12), one below the confidence on one side, one gained.
        (&[(0.0, 0.9), (50.0, 0.3)], &[(2.0, 0.8), (50.0, 0.2), (90.0, 0.5)], None),
        (&[(0.0, 0.7)], &[(0.0, 0.8)], None),
        (&[], &[], None),
    ]);
    let DetectionResult { agreement: a, accuracy, changed, .. } = counted.finish(&[], 0);
    assert!(accuracy.is_none());
    assert_eq!((a.common, a.lost, a.gained, a.pictures), (2, 1, 1, 3));
    assert_eq!((a.precision, a.recall, a.f1()), (2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0));
    assert_eq!((a.precision_75, a.recall_75), (1.0 / 3.0, 1.0 / 3.0));
    assert!((a.mean_iou.unwrap() - 10.0 / 12.0).abs() < 1e-6);
    assert!(a.score_shift.unwrap().abs() < 1e-6 && (a.confidence - 0.25).abs() < 1e-12);
    assert_eq!(changed.len(), 1);
    assert_eq!((changed[0].lost[0].corners, changed[0].gained[0].corners), (at(50.0), at(90.0)));
    let nothing = detections(&[(&[(0.0, 0.9)], &[], None)]).finish(&[], 0).agreement;
    assert_eq!((nothing.precision, nothing.recall, nothing.mean_iou), (0.0, 0.0, None));
    let same = detections(&[(&[], &[], None)]).finish(&[], 0).agreement;
    assert_eq!((same.precision, same.recall), (1.0, 1.0));
}

#[test]
fn accuracy_and_paired_intervals() {
    let right: &[(f32, f32)] = &[(0.0, 0.9)];
    let wrong: &[(f32, f32)] = &[(60.0, 0.9)];
    let truth: Option<&[f32]> = Some(&[0.0]);
    let pictures: Vec<_> = (0..40).map(|i| (right, if i % 4 == 0 { wrong } else { right }, truth)).collect();
    let result = detections(&pictures).finish(&["cat".to_owned()], 500);
    assert_eq!(result.reference_map50_95, Some(1.0));
    let accuracy = result.accuracy.clone().unwrap();
    let map = accuracy.figures.map50_95.unwrap();
    assert_eq!((accuracy.per_class[0].name.as_deref(), accuracy.labelled_pictures), (Some("cat"), 40));
    let [low, high] = result.map50_95_drop_interval.unwrap();
    assert!(low < 1.0 - map && 1.0 - map < high && low > 0.0, "{low} {map} {high}");
    let [low, high] = result.agreement.recall_interval.unwrap();
    assert!(low < 0.75 && 0.75 < high && high - low < 0.4, "{low} {high}");
    // What JSON holds is what was found, with labels and without.
    let read = |result: &DetectionResult| -> DetectionResult {
        serde_json::from_str(&serde_json::to_string(result).unwrap()).unwrap()
    };
    assert_eq!(read(&result), result);
    assert!(serde_json::to_value(&result).unwrap()["map50_95"].is_number());
    let unlabelled = detections(&[(right, right, None)]).finish(&[], 0);
    assert_eq!(read(&unlabelled), unlabelled);
}

/// Of two boxes with equal scores, the one in the picture with the lower id comes first: right or wrong.
#[test]
fn pictures_rank_by_their_ids() {
    let mut detections = detections(&[(&[], &[(0.0, 0.5)], Some(&[0.0])), (&[], &[(60.0, 0.5)], Some(&[0.0]))]);
    let mut map = |ranks: [u64; 2]| {
        detections.pictures.iter_mut().zip(ranks).for_each(|(picture, rank)| picture.rank = Some(rank));
        detections.finish(&[], 0).accuracy.unwrap().figures.map50.unwrap()
    };
    let share_of_points = 51.0 / 101.0;
    assert!((map([1, 2]) - share_of_points).abs() < 1e-9);
    assert!((map([2, 1]) - 0.5 * share_of_points).abs() < 1e-9);
}

#[test]
fn boxes_are_put_into_the_picture_and_kept_in_checkpoints() {
    let mut detections = detections(&[]);
    let boxes = Tensor::from_f32(vec![1, 4], vec![20.0, 30.0, 40.0, 50.0]).unwrap();
    let scores = Tensor::from_f32(vec![1, 1], vec![0.5]).unwrap();
    let outputs = |name: &str| Some(if name == "b" { boxes.view() } else { scores.view() });
    let placement =
        crate::dataset::Placement { picture: [100, 100], input: [50, 70], scale: [0.5, 0.5], offset: [0.0, 10.0] };
    let scene = Scene { placement, truths: Some(Vec::new()), id: None };
    detections.push("a", Some(&scene), &outputs, &outputs).unwrap();
    assert_eq!(detections.pictures[0].target[0].corners, [40.0, 40.0, 80.0, 80.0]);
    let kept: Detections = serde_json::from_str(&serde_json::to_string(&detections).unwrap()).unwrap();
    assert_eq!(kept.pictures[0].target, detections.pictures[0].target);
    assert_eq!(kept.finish(&[], 0), detections.finish(&[], 0));
}

#[test]
fn a_first_picture_without_boxes_does_not_say_what_coordinates_count() {
    let options = DetectionOptions { head: Some(HeadKind::YoloEnd2end), ..DetectionOptions::default() };
    let shape =
        OutputShape { name: "y".to_owned(), element_type: Some(ElementType::F32), shape: [1, 2, 6].map(Some).to_vec() };
    let around = Surroundings { input: Some([64, 64]), ..Surroundings::default() };
    let head = recognize(&[shape], &around, &options).unwrap().unwrap();
    let mut counted = Detections::new(head);
    let sample = |row: [f32; 6]| Tensor::from_f32(vec![2, 6], [row, [0.0; 6]].concat()).unwrap();
    for (id, row) in [("a", [0.0; 6]), ("b", [8.0, 8.0, 24.0, 24.0, 0.9, 0.0])] {
        let sample = sample(row);
        let outputs = |_: &str| Some(sample.view());
        counted.push(id, None, &outputs, &outputs).unwrap();
    }
    assert_eq!(counted.pictures[1].reference[0].corners, [8.0, 8.0, 24.0, 24.0]);
    assert_eq!(counted.finish(&[], 0).agreement.common, 1);
}
