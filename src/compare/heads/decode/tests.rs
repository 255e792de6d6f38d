//! Every head on a small case by hand: the same two boxes whatever they are written as.

use std::collections::BTreeMap;

use super::*;
use crate::{
    compare::{
        Part,
        heads::{DetectionOptions, OutputShape, Surroundings, recognize},
    },
    tensor::{ElementType, Tensor, Values},
};

/// A picture of 64 × 32 pixels: 32, 8 and 2 cells with strides 8, 16 and 32.
const INPUT: [usize; 2] = [64, 32];
const CELLS: usize = 42;

struct Model {
    options: DetectionOptions,
    classes: Option<usize>,
    outputs: BTreeMap<String, Tensor>,
    order: Vec<String>,
}

impl Model {
    fn new(outputs: Vec<(&str, Tensor)>) -> Self {
        let order = outputs.iter().map(|(name, _)| (*name).to_owned()).collect();
        let outputs = outputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        Self { options: DetectionOptions::default(), classes: None, outputs, order }
    }

    fn head(&self) -> Result<Option<Head>, crate::compare::heads::HeadError> {
        let shape = |name: &String| {
            let tensor = &self.outputs[name];
            let batch = usize::from(tensor.element_type().is_float());
            let shape = std::iter::repeat_n(1, batch.max(1)).chain(tensor.shape().iter().copied());
            OutputShape {
                name: name.clone(),
                element_type: Some(tensor.element_type()),
                shape: shape.map(Some).collect(),
            }
        };
        let shapes: Vec<OutputShape> = self.order.iter().map(shape).collect();
        let around = Surroundings { input: Some(INPUT), classes: self.classes, ..Surroundings::default() };
        recognize(&shapes, &around, &self.options)
    }

    fn found(&self) -> (HeadKind, Vec<([i32; 4], i32, u32)>) {
        let head = self.head().unwrap().expect("a head");
        let sample = |name: &str| self.outputs.get(name).map(Tensor::view);
        let traits = head.traits(&sample).unwrap().expect("boxes");
        let found = head.decode(traits, &sample).unwrap();
        let rounded = |d: &Detection| (d.corners.map(|x| x.round() as i32), (d.score * 100.0).round() as i32, d.class);
        (head.kind, found.iter().map(rounded).collect())
    }
}

/// What all of the models below say: a box of class 1 with 0.72, and one of class 0 with 0.4.
const EXPECTED: [([i32; 4], i32, u32); 2] = [([4, 6, 20, 18], 72, 1), ([40, 8, 56, 24], 40, 0)];

fn tensor(shape: &[usize], values: Vec<f32>) -> Tensor {
    Tensor::from_f32(shape.to_vec(), values).unwrap()
}

/// Rows of `[count, columns]`, all `empty` but those given.
fn table(count: usize, empty: &[f32], rows: &[(usize, Vec<f32>)]) -> Tensor {
    let mut values = empty.repeat(count);
    for (row, numbers) in rows {
        values[row * empty.len()..][..numbers.len()].copy_from_slice(numbers);
    }
    tensor(&[count, empty.len()], values)
}

fn transposed(table: &Tensor) -> Tensor {
    let [rows, columns] = [table.shape()[0], table.shape()[1]];
    let values = table.to_f32();
    tensor(
        &[columns, rows],
        (0..columns).flat_map(|c| (0..rows).map(|r| values[r * columns + c]).collect::<Vec<_>>()).collect(),
    )
}

fn logit(p: f32) -> f32 {
    (p / (1.0 - p)).ln()
}

#[test]
fn yolov8_in_both_layouts_with_and_without_a_sigmoid() {
    let rows = |score: &dyn Fn(f32) -> f32| {
        let low = score(1e-5);
        let row = |b: [f32; 4], s: [f32; 2]| [b.to_vec(), s.iter().map(|&s| score(s)).collect()].concat();
        // The third is a double of the first.
        let rows = [
            (3, row([12.0, 12.0, 16.0, 12.0], [1e-5, 0.72])),
            (4, row([12.0, 12.5, 16.0, 12.0], [1e-5, 0.6])),
            (30, row([48.0, 16.0, 16.0, 16.0], [0.4, 1e-5])),
        ];
        table(CELLS, &[30.0, 16.0, 5.0, 5.0, low, low], &rows)
    };
    for table in [rows(&|p| p), rows(&logit)] {
        let mut model = Model::new(vec![("output0", transposed(&table))]);
        assert_eq!(model.found(), (HeadKind::Yolov8, EXPECTED.to_vec()));
        let parts = model.head().unwrap().unwrap().parts();
        let expected = [Part::new("boxes", 0, 0..4), Part::new("scores", 0, 4..6)];
        assert_eq!(parts[0].1, expected);
        // Rows could be YOLOX's with one class: the number of classes tells.
        model = Model { classes: Some(2), ..Model::new(vec![("output0", table)]) };
        assert_eq!(model.found(), (HeadKind::Yolov8, EXPECTED.to_vec()));
        model.classes = None;
        let error = model.head().unwrap_err().to_string();
        assert!(error.contains("`output0` 1×42×6") && error.contains("yolox with 1 classes, yolov8 with 2"), "{error}");
    }
}

#[test]
fn yolov5_multiplies_by_the_objectness() {
    let rows = [(100, vec![12.0, 12.0, 16.0, 12.0, 0.9, 1e-5, 0.8]), (7, vec![48.0, 16.0, 16.0, 16.0, 0.5, 0.8, 0.0])];
    let model = Model::new(vec![("output", table(3 * CELLS, &[30.0, 16.0, 5.0, 5.0, 0.0, 1.0, 1.0], &rows))]);
    assert_eq!(model.found(), (HeadKind::Yolov5, EXPECTED.to_vec()));
}

#[test]
fn yolox_raw_and_decoded() {
    // Cell (1, 1) of stride 8 and cell (3, 1) of stride 16: the 10th, and the 32 + 4 + 3rd.
    let raw =
        [(9, vec![0.5, 0.5, 2f32.ln(), 1.5f32.ln(), 0.9, 0.0, 0.8]), (39, vec![0.0, 0.0, 0.0, 0.0, 0.5, 0.8, 0.0])];
    let mut model = Model::new(vec![("output", table(CELLS, &[0.1, 0.2, -1.0, -1.0, 0.0, 0.0, 0.0], &raw))]);
    model.classes = Some(2);
    assert_eq!(model.found(), (HeadKind::Yolox, EXPECTED.to_vec()));
    let decoded = [(9, vec![12.0, 12.0, 16.0, 12.0, 0.9, 0.0, 0.8]), (39, vec![48.0, 16.0, 16.0, 16.0, 0.5, 0.8, 0.0])];
    model.outputs.insert("output".to_owned(), table(CELLS, &[30.0, 16.0, 5.0, 5.0, 0.0, 0.0, 0.0], &decoded));
    assert_eq!(model.found(), (HeadKind::Yolox, EXPECTED.to_vec()));
}

#[test]
fn heads_that_chose_their_boxes() {
    let rows = [(0, vec![4.0, 6.0, 20.0, 18.0, 0.72, 1.0]), (1, vec![40.0, 8.0, 56.0, 24.0, 0.4, 0.0])];
    let end2end = Model::new(vec![("output0", table(300, &[0.0; 6], &rows))]);
    assert_eq!(end2end.found(), (HeadKind::YoloEnd2end, EXPECTED.to_vec()));

    let boxes = [4.0, 6.0, 20.0, 18.0, 40.0, 8.0, 56.0, 24.0];
    let integers = |values: &[i64], shape: &[usize]| Tensor::new(shape.to_vec(), Values::I64(values.to_vec())).unwrap();
    // The third place is beyond the number of boxes.
    let efficient = Model::new(vec![
        ("num", integers(&[2], &[1])),
        ("boxes", tensor(&[3, 4], [&boxes[..], &[0.0, 0.0, 9.0, 9.0]].concat())),
        ("scores", tensor(&[3], vec![0.72, 0.4, 0.9])),
        ("classes", integers(&[1, 0, 1], &[3])),
    ]);
    assert_eq!(efficient.found(), (HeadKind::Efficientnms, EXPECTED.to_vec()));
    let shares: Vec<f32> = boxes.iter().enumerate().map(|(i, x)| x / if i % 2 == 0 { 64.0 } else { 32.0 }).collect();
    let ssd = Model::new(vec![
        ("bboxes", tensor(&[2, 4], shares.clone())),
        ("labels", integers(&[1, 0], &[2])),
        ("scores", tensor(&[2], vec![0.72, 0.4])),
    ]);
    assert_eq!(ssd.found(), (HeadKind::Ssd, EXPECTED.to_vec()));
    let tensorflow = Model::new(vec![
        ("detection_boxes", tensor(&[2, 4], shares.chunks(2).flat_map(|xy| [xy[1], xy[0]]).collect())),
        ("detection_classes", tensor(&[2], vec![1.0, 0.0])),
        ("detection_scores", tensor(&[2], vec![0.72, 0.4])),
        ("num_detections", tensor(&[1], vec![2.0])),
    ]);
    assert_eq!(tensorflow.found(), (HeadKind::Ssd, EXPECTED.to_vec()));
    assert!(ssd.head().unwrap().unwrap().is_chosen());
}

#[test]
fn detr_by_sigmoid_and_by_softmax() {
    let shares = vec![12.0 / 64.0, 12.0 / 32.0, 0.25, 12.0 / 32.0, 0.75, 0.5, 0.25, 0.5, 0.5, 0.5, 0.1, 0.1];
    let low = logit(1e-5);
    let sigmoid = [low, logit(0.72), logit(0.4), low, low, low].to_vec();
    let model = |logits: Tensor| Model::new(vec![("logits", logits), ("pred_boxes", tensor(&[3, 4], shares.clone()))]);
    assert_eq!(model(tensor(&[3, 2], sigmoid)).found(), (HeadKind::Detr, EXPECTED.to_vec()));
    // With a class for nothing, which the other queries choose.
    let mut rows = vec![0.0, 0.72f32.ln(), 0.28f32.ln(), 0.4f32.ln(), -30.0, 0.6f32.ln(), -30.0, -30.0, 0.0];
    rows[0] = -30.0;
    for x in &mut rows {
        *x += 3.0;
    }
    let found = model(tensor(&[3, 3], rows)).found();
    assert_eq!(found, (HeadKind::Detr, EXPECTED.to_vec()));
}

#[test]
fn nanodet_by_level_and_joined() {
    // Distances as distributions that are nearly certain.
    let sides = |distances: [f32; 4]| -> Vec<f32> {
        distances.iter().flat_map(|&d| (0..8).map(move |i| if i as f32 == d { 40.0 } else { 0.0 })).collect()
    };
    // Levels with centres at half cells: (20, 12) of stride 8, sides 2, 1, 1, 1 ... (4, 4) to (28, 20).
    let level = |count: usize| (table(count, &[0.0, 0.0], &[]), table(count, &[0.0; 32], &[]));
    let (_, sides16) = level(8);
    let scores8 = table(32, &[0.0, 0.0], &[(10, vec![0.0, 0.72])]);
    let sides8 = table(32, &[0.0; 32], &[(10, sides([2.0, 1.0, 1.0, 1.0]))]);
    let model = Model::new(vec![
        ("cls_pred_stride_8", scores8),
        ("dis_pred_stride_8", sides8),
        ("cls_pred_stride_16", level(8).0),
        ("dis_pred_stride_16", sides16),
    ]);
    assert_eq!(model.found(), (HeadKind::Nanodet, vec![([4, 4, 28, 20], 72, 1)]));
    // Joined, four levels, centres at the corners of cells: (16, 8) of stride 8.
    let row = [vec![0.0, 0.72], sides([1.0, 0.0, 2.0, 3.0])].concat();
    let mut model = Model::new(vec![("output", table(CELLS + 1, &[0.0; 34], &[(10, row)]))]);
    model.options.head = Some(HeadKind::Nanodet);
    assert_eq!(model.found(), (HeadKind::Nanodet, vec![([8, 8, 32, 32], 72, 1)]));
}

#[test]
fn boxes_by_name() {
    let boxes = tensor(&[2, 4], vec![4.0, 6.0, 16.0, 12.0, 40.0, 8.0, 16.0, 16.0]);
    let mut model = Model::new(vec![("b", boxes), ("s", tensor(&[2, 2], vec![0.0, 0.72, 0.4, 0.0]))]);
    model.options = DetectionOptions {
        head: Some(HeadKind::Boxes),
        boxes: Some("b".to_owned()),
        scores: Some("s".to_owned()),
        format: BoxFormat::Xywh,
        ..DetectionOptions::default()
    };
    assert_eq!(model.found(), (HeadKind::Boxes, EXPECTED.to_vec()));
    model.options.scores = Some("t".to_owned());
    let error = model.head().unwrap_err().to_string();
    assert!(error.contains("`scores` names `t`, which is not an output"), "{error}");
    model.options.head = Some(HeadKind::Yolox);
    assert!(model.head().unwrap_err().to_string().contains("expected is one output of floats, [B, N, 5 + classes]"));
    let chosen = [("boxes", vec![20, 4]), ("scores", vec![20]), ("labels", vec![20])];
    let mut model =
        Model::new(chosen.map(|(name, shape)| (name, tensor(&shape, vec![0.5; shape.iter().product()]))).into());
    model.options.head = Some(HeadKind::Torchvision);
    let error = model.head().unwrap_err().to_string();
    assert!(error.ends_with("labels [N], without a batch; they fit `ssd`"), "{error}");
}

#[test]
fn other_models_have_no_head() {
    for shape in [&[1000][..], &[21, 32, 64], &[12, 768], &[4], &[CELLS]] {
        let count = shape.iter().product();
        assert_eq!(Model::new(vec![("y", tensor(shape, vec![0.5; count]))]).head().unwrap(), None, "{shape:?}");
    }
    let mut model = Model::new(vec![("output0", table(CELLS, &[0.0; 85], &[]))]);
    assert_eq!(model.head().unwrap().unwrap().kind, HeadKind::Yolox, "80 classes are usual, 81 are not");
    model.options.head = Some(HeadKind::None);
    assert_eq!(model.head().unwrap(), None);
    // Boxes and scores by names that anyone uses.
    let [a, b] = [4, 3].map(|columns| tensor(&[20, columns], vec![0.5; 20 * columns]));
    assert_eq!(Model::new(vec![("boxes", a), ("scores", b)]).head().unwrap(), None);
    let (a, b) = (tensor(&[5], vec![0.0; 5]), Tensor::new(vec![5], Values::I64(vec![0; 5])).unwrap());
    assert_eq!(b.element_type(), ElementType::I64);
    assert_eq!(Model::new(vec![("scores", a), ("labels", b)]).head().unwrap(), None);
}

#[test]
fn metadata_tell_whether_boxes_were_chosen() {
    let shape = |columns: usize| OutputShape {
        name: "output0".to_owned(),
        element_type: Some(ElementType::F32),
        shape: vec![Some(1), Some(300), Some(columns)],
    };
    let kind = |columns: usize, chosen: Option<bool>| {
        let around = Surroundings { input: Some([640, 640]), classes: Some(80), detector: true, chosen };
        let masks = OutputShape { name: "output1".to_owned(), shape: [1, 32, 160, 160].map(Some).into(), ..shape(0) };
        recognize(&[shape(columns), masks], &around, &DetectionOptions::default()).unwrap().map(|head| head.kind)
    };
    // Six columns say it themselves; masks' coefficients stand behind them, and that takes the exporter's word.
    assert_eq!([None, Some(true)].map(|chosen| kind(6, chosen)), [Some(HeadKind::YoloEnd2end); 2]);
    assert_eq!([None, Some(true)].map(|chosen| kind(38, chosen)), [None, Some(HeadKind::YoloEnd2end)]);
    assert_eq!(kind(6, Some(false)), None);
    // Queries of RT-DETR.
    assert_eq!(kind(84, None), Some(HeadKind::Yolov8));
}

#[test]
fn values_behind_the_classes_are_counted_and_prototypes_known() {
    let shape = |name: &str, shape: &[usize]| OutputShape {
        name: name.to_owned(),
        element_type: Some(ElementType::F32),
        shape: shape.iter().copied().map(Some).collect(),
    };
    let head = |outputs: &[OutputShape], classes| {
        let around = Surroundings { input: Some([128, 128]), classes: Some(classes), detector: true, chosen: None };
        recognize(outputs, &around, &DetectionOptions::default()).unwrap().unwrap()
    };
    let boxes = || shape("output0", &[1, 39, 336]);
    let segments = head(&[boxes(), shape("output1", &[1, 32, 32, 32])], 3);
    assert_eq!((segments.classes, segments.unjudged), (3, 32));
    assert!(segments.is_prototypes(&[32, 32, 32]) && !segments.is_prototypes(&[3, 32, 32]));
    assert_eq!((head(&[boxes()], 35).unjudged, head(&[boxes()], 33).unjudged), (0, 2));
}
