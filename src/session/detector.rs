//! Whether a model is a detector, by what Ultralytics' exporter wrote into it and by its outputs.

use std::collections::BTreeMap;

use super::model::Subject;
use crate::{
    compare::heads::{DetectionOptions, Head, HeadError, HeadKind, OutputShape, Surroundings, recognize},
    dataset::{LabelledClasses, Preprocess},
    onnx::Model,
};

/// Longest text of metadata that is read.
const MAX_TEXT: usize = 1 << 20;

/// What Ultralytics' exporter leaves in a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// `detect`, `segment`, `pose`, `obb` or `classify`.
    pub task: Option<String>,
    /// Class names.
    pub names: BTreeMap<u32, String>,
    /// Height and width of the input.
    pub size: Option<[usize; 2]>,
    /// Both are multiples of it.
    pub stride: Option<usize>,
    /// Key points of a pose, and the numbers of each.
    pub key_points: Option<[usize; 2]>,
    /// Whether the model chooses its boxes itself: end to end, or by an NMS that was exported with it.
    pub chooses: Option<bool>,
}

/// Of the arguments of an export, those that matter.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Arguments {
    nms: Option<bool>,
}

impl Exported {
    /// Reads the model's metadata; what is not there, or cannot be read, is absent.
    pub fn of(model: &Model) -> Self {
        let value = |key: &str| {
            let entry = model.proto.metadata_props.iter().find(|entry| entry.key.as_deref() == Some(key))?;
            entry.value.as_deref().filter(|value| value.len() <= MAX_TEXT)
        };
        // Python's text of dictionaries and lists of plain values is YAML as well.
        let names = value("names").and_then(|text| serde_saphyr::from_str(text).ok());
        let size = value("imgsz").and_then(|text| {
            let square = || serde_saphyr::from_str(text).ok().map(|side| vec![side; 2]);
            serde_saphyr::from_str::<Vec<usize>>(text).ok().or_else(square)
        });
        let end2end: Option<bool> = value("end2end").and_then(|text| serde_saphyr::from_str(text).ok());
        let arguments: Option<Arguments> = value("args").and_then(|text| serde_saphyr::from_str(text).ok());
        let told = [end2end, arguments.unwrap_or_default().nms];
        Self {
            task: value("task").map(str::to_owned),
            names: names.unwrap_or_default(),
            size: size.and_then(|size| <[usize; 2]>::try_from(size).ok()),
            stride: value("stride").and_then(|text| text.parse().ok()).filter(|&stride| stride > 0),
            key_points: value("kpt_shape").and_then(|text| serde_saphyr::from_str(text).ok()),
            chooses: told.into_iter().flatten().reduce(|one, other| one || other),
        }
    }

    /// True for a model with axis-parallel boxes.
    pub fn is_detector(&self) -> bool {
        matches!(self.task.as_deref(), Some("detect" | "segment" | "pose"))
    }

    /// What is wrong with pictures of `size` (height and width) in a model whose input takes any size.
    pub fn unfit(&self, size: [usize; 2]) -> Option<String> {
        let stride = self.stride?;
        let fitting = size.map(|side| side.next_multiple_of(stride));
        (fitting != size).then(|| {
            let ([height, width], [fit_height, fit_width]) = (size, fitting);
            format!(
                "pictures of {width}×{height} do not fit this model, whose grid has a stride of {stride} pixels by its \
                 metadata; letterbox them to {fit_width}×{fit_height}"
            )
        })
    }

    /// What of the model's results is not judged, if anything.
    pub fn not_judged(&self) -> Option<&'static str> {
        match self.task.as_deref() {
            Some("segment") => Some("the boxes of this model are judged, its masks are not"),
            Some("pose") => Some("the boxes of this model are judged, its key points are not"),
            Some("obb") => Some("turned boxes are not judged: only the numeric differences of the outputs are"),
            _ => None,
        }
    }
}

/// The head of a model whose input has `size` (height and width). `classes` is their number, where it is known.
pub fn head(
    subject: &Subject,
    exported: &Exported,
    size: Option<[usize; 2]>,
    classes: Option<usize>,
    options: &DetectionOptions,
) -> Result<Option<Head>, HeadError> {
    if options.head.is_none() && exported.task.is_some() && !exported.is_detector() {
        return Ok(None);
    }
    let shape = |info: &crate::backend::TensorInfo| OutputShape {
        name: info.name.clone(),
        element_type: info.element_type,
        shape: info.shape.clone(),
    };
    let outputs: Vec<OutputShape> = subject.outputs.iter().map(shape).collect();
    let around = Surroundings {
        input: size.map(|[height, width]| [width, height]),
        classes: classes.or_else(|| (!exported.names.is_empty()).then_some(exported.names.len())),
        detector: exported.is_detector(),
        chosen: exported.chooses,
    };
    recognize(&outputs, &around, options)
}

/// The preset that models with such a head are mostly trained with.
pub fn usual_preset(head: &Head) -> &'static str {
    match head.kind {
        HeadKind::Yolox => "yolox",
        HeadKind::Nanodet => "nanodet",
        HeadKind::Detr => "detr",
        HeadKind::Torchvision | HeadKind::Ssd => "unit",
        _ => "yolo",
    }
}

/// What is odd about the classes of labels for a model with such a head.
pub fn odd_classes(head: &Head, labelled: LabelledClasses) -> Option<String> {
    let classes = head.classes;
    if let Some(last) = labelled.last.filter(|&last| (1..=last as usize).contains(&classes)) {
        return Some(format!(
            "labels have classes up to {last}, and the model has {classes} (0 to {}): boxes of the others are never found",
            classes - 1
        ));
    }
    let (categories, last) = labelled.places?;
    (categories < classes).then(|| {
        format!(
            "the labels have {categories} categories with ids up to {last}, and the model has {classes} classes: the first is \
             taken for the category with the lowest id, and so on; where that is not so, name the classes with --classes or \
             give [detection] category_ids = [ID, ...] ([0, 1, 2, ...] where the classes are the ids)"
        )
    })
}

/// In what way pictures are prepared as for a classifier, if they are.
pub fn as_for_a_classifier(head: &Head, preprocess: &Preprocess) -> Option<&'static str> {
    use HeadKind::{YoloEnd2end, Yolov5, Yolov8, Yolox};
    if preprocess.crop.is_some() {
        return Some("cropped as a classifier's are: boxes at their borders are lost");
    }
    let plain = matches!(head.kind, Yolov5 | Yolov8 | YoloEnd2end | Yolox);
    (plain && preprocess.mean != [0.0; 3]).then_some("scaled as a classifier's are: a mean is taken off their values")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::proto::{GraphProto, ModelProto, StringStringEntryProto},
        tensor::ElementType,
    };

    #[test]
    fn the_metadata_of_an_export_are_read_and_damaged_ones_are_not() {
        let model = |entries: &[(&str, &str)]| {
            let entry = |&(key, value): &(&str, &str)| StringStringEntryProto {
                key: Some(key.to_owned()),
                value: Some(value.to_owned()),
            };
            let proto = ModelProto {
                graph: Some(GraphProto::default()),
                metadata_props: entries.iter().map(entry).collect(),
                ..ModelProto::default()
            };
            Exported::of(&Model::from_bytes(prost::Message::encode_to_vec(&proto)).unwrap())
        };
        let read = model(&[
            ("task", "segment"),
            ("names", "{0: 'person', 1: 'traffic light', 2: \"it's\"}"),
            ("imgsz", "[384, 640]"),
            ("stride", "32"),
            ("end2end", "False"),
            ("kpt_shape", "[17, 3]"),
            ("args", "{'batch': 1, 'half': False, 'dynamic': True, 'simplify': True, 'opset': 17, 'nms': True}"),
        ]);
        assert_eq!((read.names[&1].as_str(), read.names[&2].as_str()), ("traffic light", "it's"));
        assert_eq!((read.size, read.is_detector()), (Some([384, 640]), true));
        assert!(read.not_judged().unwrap().contains("its masks are not"));
        assert_eq!((read.chooses, read.key_points, read.unfit([384, 640])), (Some(true), Some([17, 3]), None));
        assert!(read.unfit([300, 640]).unwrap().ends_with("letterbox them to 640×320"));
        assert_eq!(model(&[("end2end", "False")]).chooses, Some(false));
        assert_eq!(model(&[("imgsz", "128")]).size, Some([128, 128]));
        let bad =
            [("names", "{0: [person"), ("imgsz", "large"), ("stride", "0"), ("end2end", "perhaps"), ("args", "{")];
        assert_eq!(model(&bad), Exported::default());
    }

    fn output(name: &str, shape: &[usize]) -> OutputShape {
        let shape = shape.iter().copied().map(Some).collect();
        OutputShape { name: name.to_owned(), element_type: Some(ElementType::F32), shape }
    }

    fn recognized(outputs: &[OutputShape]) -> Head {
        let around = Surroundings { input: Some([640, 640]), detector: true, ..Surroundings::default() };
        recognize(outputs, &around, &DetectionOptions::default()).unwrap().unwrap()
    }

    #[test]
    fn classes_that_fit_no_labels_are_told() {
        let head = recognized(&[output("logits", &[1, 100, 92]), output("pred_boxes", &[1, 100, 4])]);
        let classes = head.classes as u32;
        let odd = |last, places| odd_classes(&head, LabelledClasses { last, places });
        assert_eq!(odd(Some(classes - 1), Some((head.classes, 90))), None);
        assert!(
            odd(Some(classes), None)
                .unwrap()
                .starts_with(&format!("labels have classes up to {classes}, and the model"))
        );
        assert!(
            odd(Some(79), Some((80, 90))).unwrap().starts_with("the labels have 80 categories with ids up to 90, and")
        );
    }

    #[test]
    fn pictures_of_detectors_are_neither_cropped_nor_lessened_by_a_mean() {
        let yolov8 = recognized(&[output("output0", &[1, 84, 8400])]);
        let detr = recognized(&[output("logits", &[1, 100, 92]), output("pred_boxes", &[1, 100, 4])]);
        let how = |head, preset| as_for_a_classifier(head, &Preprocess::preset(preset, 640, 640).unwrap());
        assert!(how(&yolov8, "imagenet").unwrap().starts_with("cropped"));
        let stretched = how(&yolov8, "detr").unwrap();
        assert!(stretched.starts_with("scaled"), "{stretched}");
        for preset in ["yolo", "yolox", "unit"] {
            assert_eq!(how(&yolov8, preset), None);
        }
        assert_eq!((how(&detr, "detr"), how(&detr, "imagenet").is_some()), (None, true));
    }
}
