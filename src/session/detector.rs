//! Whether a model is a detector, by what Ultralytics' exporter wrote into it and by its outputs.

use std::collections::BTreeMap;

use super::model::Subject;
use crate::{
    compare::heads::{DetectionOptions, Head, HeadError, HeadKind, OutputShape, Surroundings, recognize},
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
        let size = value("imgsz").and_then(|text| serde_saphyr::from_str::<Vec<usize>>(text).ok());
        Self {
            task: value("task").map(str::to_owned),
            names: names.unwrap_or_default(),
            size: size.and_then(|size| <[usize; 2]>::try_from(size).ok()),
        }
    }

    /// True for a model with axis-parallel boxes.
    pub fn is_detector(&self) -> bool {
        matches!(self.task.as_deref(), Some("detect" | "segment" | "pose"))
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
        input: size.or(exported.size).map(|[height, width]| [width, height]),
        classes: classes.or_else(|| (!exported.names.is_empty()).then_some(exported.names.len())),
        detector: exported.is_detector(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto, StringStringEntryProto};

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
        ]);
        assert_eq!((read.names[&1].as_str(), read.names[&2].as_str()), ("traffic light", "it's"));
        assert_eq!((read.size, read.is_detector()), (Some([384, 640]), true));
        assert!(read.not_judged().unwrap().contains("its masks are not"));
        let bad = model(&[("names", "{0: [person"), ("imgsz", "large")]);
        assert_eq!(bad, Exported::default());
    }
}
