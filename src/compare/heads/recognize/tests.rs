//! Heads by names and shapes alone, for a picture of 320 × 320: 1600, 400 and 100 cells.

use super::*;

fn floats(name: &str, shape: &[usize]) -> OutputShape {
    let shape = shape.iter().copied().map(Some).collect();
    OutputShape { name: name.to_owned(), element_type: Some(ElementType::F32), shape }
}

fn integers(name: &str, shape: &[usize]) -> OutputShape {
    OutputShape { element_type: Some(ElementType::I32), ..floats(name, shape) }
}

/// Kind, classes and outputs of a head.
type Found = (HeadKind, usize, Vec<String>);

fn found(outputs: &[OutputShape], head: Option<HeadKind>) -> Result<Option<Found>, String> {
    let around = Surroundings { input: Some([320, 320]), ..Surroundings::default() };
    let options = DetectionOptions {
        head,
        boxes: Some("boxes".to_owned()),
        scores: Some("scores".to_owned()),
        ..DetectionOptions::default()
    };
    let head = recognize(outputs, &around, &options).map_err(|error| error.to_string())?;
    Ok(head.map(|head| (head.kind, head.classes, head.outputs().into_iter().map(str::to_owned).collect())))
}

fn is(kind: HeadKind, classes: usize, outputs: &[&str]) -> Found {
    (kind, classes, outputs.iter().map(|&name| name.to_owned()).collect())
}

#[test]
fn only_prototypes_of_masks_take_columns() {
    let maps = [40, 20, 10].map(|side| floats(&format!("raw{side}"), &[1, 144, side, side]));
    let with_maps = [&[floats("output0", &[1, 84, 2100])], &maps[..]].concat();
    assert_eq!(found(&with_maps, None).unwrap(), Some(is(HeadKind::Yolov8, 80, &["output0"])));
    let feature = [floats("output0", &[1, 84, 2100]), floats("p3", &[1, 64, 40, 40])];
    assert_eq!(found(&feature, None).unwrap(), Some(is(HeadKind::Yolov8, 80, &["output0"])));
    let prototypes = [floats("output0", &[1, 116, 2100]), floats("output1", &[1, 32, 80, 80])];
    assert_eq!(found(&prototypes, None).unwrap(), Some(is(HeadKind::Yolov8, 80, &["output0"])));
}

#[test]
fn levels_beyond_the_usual_ones() {
    let of = |name: &str, shape: &[usize]| found(&[floats(name, shape)], None).unwrap();
    assert_eq!(of("output0", &[1, 84, 8500]), Some(is(HeadKind::Yolov8, 80, &["output0"])), "from stride 4");
    assert_eq!(of("output", &[1, 1500, 85]), Some(is(HeadKind::Yolov5, 80, &["output"])), "two levels");
}

#[test]
fn several_outputs_that_fit_are_listed() {
    let both = [floats("one2many", &[1, 84, 2100]), floats("one2one", &[1, 300, 6])];
    let error = found(&both, None).unwrap_err();
    assert!(error.contains("yolov8 with 80 classes in `one2many`, yolo-end2end in `one2one`; set --head"), "{error}");
    assert_eq!(found(&both, Some(HeadKind::YoloEnd2end)).unwrap(), Some(is(HeadKind::YoloEnd2end, 0, &["one2one"])));
    let pair = |a: &str, b: &str| [floats(a, &[1, 300, 80]), floats(b, &[1, 300, 4])];
    let helped = [pair("enc_logits", "enc_boxes"), pair("logits", "pred_boxes")].concat();
    assert_eq!(found(&helped, None).unwrap(), Some(is(HeadKind::Detr, 80, &["pred_boxes", "logits"])));
    let beside = [&pair("logits", "pred_boxes")[..], &[floats("embedding", &[1, 300, 4])]].concat();
    assert_eq!(found(&beside, None).unwrap(), Some(is(HeadKind::Detr, 80, &["pred_boxes", "logits"])));
    let twins = [pair("logits_a", "pred_boxes_a"), pair("logits_b", "pred_boxes_b")].concat();
    for head in [None, Some(HeadKind::Detr)] {
        let error = found(&twins, head).unwrap_err();
        assert!(error.contains("in `pred_boxes_b`; name the outputs in [detection] with head = \"boxes\""), "{error}");
    }
}

#[test]
fn scores_beside_boxes_are_no_head_of_their_own() {
    for boxes in [floats("boxes", &[1, 6300, 1, 4]), floats("boxes", &[1, 6300, 4])] {
        assert_eq!(found(&[boxes, floats("confs", &[1, 6300, 80])], None).unwrap(), None);
    }
    let of_rank_4 = [floats("boxes", &[1, 6300, 1, 4]), floats("scores", &[1, 6300, 80])];
    assert_eq!(found(&of_rank_4, Some(HeadKind::Boxes)).unwrap(), Some(is(HeadKind::Boxes, 80, &["boxes", "scores"])));
    let turned = [floats("anything", &[1, 2100, 4]), floats("others", &[1, 80, 2100])];
    assert_eq!(found(&turned, None).unwrap(), None);
    let turned = [floats("boxes", &[1, 2100, 4]), floats("scores", &[1, 80, 2100])];
    let error = found(&turned, Some(HeadKind::Boxes)).unwrap_err();
    assert!(
        error.contains("`boxes` has 2100 boxes and `scores`, which should be [B, N, classes], scores of 80"),
        "{error}"
    );
}

#[test]
fn shapes_tell_the_number_of_boxes_from_their_classes() {
    let outputs =
        [integers("o1", &[1, 1]), floats("o2", &[1, 100, 4]), floats("o3", &[1, 100]), integers("o4", &[1, 100])];
    for head in [None, Some(HeadKind::Efficientnms)] {
        assert_eq!(found(&outputs, head).unwrap(), Some(is(HeadKind::Efficientnms, 0, &["o2", "o3", "o4", "o1"])));
    }
}
