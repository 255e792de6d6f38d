//! Detection heads: what the outputs of a detector mean, and the boxes in them.
//!
//! [`recognize`] goes by shapes and names. What only values tell (whether a sigmoid was applied, whether a grid was decoded,
//! whether coordinates are shares) is read off the reference's first sample as [`Traits`] and holds for every model that
//! is compared with it.

mod decode;
mod recognize;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use decode::Traits;
pub use recognize::{HeadError, OutputShape, Surroundings, recognize};

use super::{Part, boxes::Suppression};

/// A family of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// `[B, N, 5 + classes]`: centre, size, objectness, classes, at three anchors of every cell.
    Yolov5,
    /// `[B, 4 + classes, N]`, or transposed: centre, size, classes (YOLOv8, YOLO11, YOLO12, YOLO26's one-to-many).
    Yolov8,
    /// `[B, N, 6]`: corners, score, class (YOLOv10, YOLO26, or exported with NMS).
    YoloEnd2end,
    /// `[B, N, 5 + classes]`: centre, size, objectness, classes, one a cell; of the grid or decoded.
    Yolox,
    /// Classes and distributions of distances to the four sides, in one output or one by level.
    Nanodet,
    /// `[B, Q, classes]` and `[B, Q, 4]`, centre and size as shares (DETR, RT-DETR, D-FINE, RF-DETR).
    Detr,
    /// Boxes as shares of the picture, scores, labels, perhaps their number.
    Ssd,
    /// Boxes in pixels, scores, labels; as many as there are.
    Torchvision,
    /// Number, boxes, scores, classes of TensorRT's EfficientNMS.
    Efficientnms,
    /// Outputs that hold boxes, scores and classes, named in `[detection]`.
    Boxes,
    /// No detector.
    None,
}

impl HeadKind {
    /// All that are heads.
    pub const ALL: [Self; 10] = [
        Self::Yolov5,
        Self::Yolov8,
        Self::YoloEnd2end,
        Self::Yolox,
        Self::Nanodet,
        Self::Detr,
        Self::Ssd,
        Self::Torchvision,
        Self::Efficientnms,
        Self::Boxes,
    ];

    /// Its name in `[detection] head`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Yolov5 => "yolov5",
            Self::Yolov8 => "yolov8",
            Self::YoloEnd2end => "yolo-end2end",
            Self::Yolox => "yolox",
            Self::Nanodet => "nanodet",
            Self::Detr => "detr",
            Self::Ssd => "ssd",
            Self::Torchvision => "torchvision",
            Self::Efficientnms => "efficientnms",
            Self::Boxes => "boxes",
            Self::None => "none",
        }
    }
}

impl std::str::FromStr for HeadKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = || Self::ALL.into_iter().chain([Self::None]);
        all().find(|kind| kind.name() == name).ok_or_else(|| {
            format!("`{name}` is not a head; there are {}", all().map(Self::name).collect::<Vec<_>>().join(", "))
        })
    }
}

/// What four numbers of a box are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BoxFormat {
    /// Left, top, right, bottom.
    #[default]
    Xyxy,
    /// Top, left, bottom, right (TensorFlow).
    Yxyx,
    /// Left, top, width, height.
    Xywh,
    /// Centre, width, height.
    Cxcywh,
}

impl BoxFormat {
    /// As left, top, right, bottom.
    pub fn corners(self, [a, b, c, d]: [f32; 4]) -> [f32; 4] {
        match self {
            Self::Xyxy => [a, b, c, d],
            Self::Yxyx => [b, a, d, c],
            Self::Xywh => [a, b, a + c, b + d],
            Self::Cxcywh => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
        }
    }
}

/// `[detection]` of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectionOptions {
    /// The head; absent: recognized. `none` for a model that is not a detector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadKind>,
    /// For `head = "boxes"`: the output with the boxes, `[B, N, 4]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boxes: Option<String>,
    /// For `head = "boxes"`: the output with the scores, `[B, N]` or, of every class, `[B, N, C]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<String>,
    /// For `head = "boxes"`: the output with the class indices, `[B, N]`; absent where scores are by class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<String>,
    /// For `head = "boxes"`: what the four numbers are.
    pub format: BoxFormat,
    /// For `head = "boxes"`: coordinates are shares of the model's input instead of pixels.
    pub shares: bool,
    /// Boxes with a lower score are left out.
    pub score: f32,
    /// Of two boxes of a class that overlap more than this, the better one stays.
    pub iou: f32,
    /// Most boxes in a picture.
    pub most: usize,
    /// Score from which boxes count for the agreement with the reference.
    pub confidence: f32,
    /// Category ids of classes 0, 1, ... in COCO's JSON; empty: the categories in the order of their ids, or by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub category_ids: Vec<u64>,
}

impl Default for DetectionOptions {
    /// Recognized, with the thresholds of Ultralytics' `val`.
    fn default() -> Self {
        let Suppression { score, iou, most } = Suppression::default();
        Self {
            head: None,
            boxes: None,
            scores: None,
            classes: None,
            format: BoxFormat::Xyxy,
            shares: false,
            score,
            iou,
            most,
            confidence: 0.25,
            category_ids: Vec::new(),
        }
    }
}

impl DetectionOptions {
    /// What cannot work, in words.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in [("score", self.score), ("iou", self.iou), ("confidence", self.confidence)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(format!("`{name}` must lie between 0 and 1, and is {value}"));
            }
        }
        if self.most == 0 {
            return Err("`most` must be at least 1".to_owned());
        }
        Ok(())
    }
}

/// What a head does with its boxes and where they stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The family.
    pub kind: HeadKind,
    /// Classes; 0 where the outputs hold class indices.
    pub classes: usize,
    /// Values of each box behind those of its classes: coefficients of a mask, key points, or classes beyond those known.
    pub unjudged: usize,
    /// Width and height of the model's input.
    pub input: [usize; 2],
    /// Boxes in a picture are chosen so.
    pub suppression: Suppression,
    /// Score from which boxes count for agreement.
    pub confidence: f32,
    /// Where its numbers stand.
    pub(super) outputs: Layout,
}

/// Where the numbers of a head stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Layout {
    /// One output, an anchor by row, or by column where `transposed`.
    Joined { name: String, transposed: bool },
    /// NanoDet by level: classes, distances and stride.
    Levels(Vec<(String, String, usize)>),
    /// Boxes, scores, and perhaps classes and number.
    Separate {
        boxes: String,
        scores: String,
        classes: Option<String>,
        count: Option<String>,
        format: BoxFormat,
        shares: bool,
    },
}

impl Layout {
    pub(super) fn outputs(&self) -> Vec<&str> {
        match self {
            Layout::Joined { name, .. } => vec![name],
            Layout::Levels(levels) => levels.iter().flat_map(|(a, b, _)| [a.as_str(), b.as_str()]).collect(),
            Layout::Separate { boxes, scores, classes, count, .. } => {
                [Some(boxes), Some(scores), classes.as_ref(), count.as_ref()]
                    .into_iter()
                    .flatten()
                    .map(String::as_str)
                    .collect()
            }
        }
    }
}

impl Head {
    /// The outputs that it reads.
    pub fn outputs(&self) -> Vec<&str> {
        self.outputs.outputs()
    }

    /// True for a sample of an output with the prototypes of masks, one for each coefficient of a box.
    pub fn is_prototypes(&self, sample: &[usize]) -> bool {
        matches!(*sample, [channels, _, _] if channels == self.unjudged && channels > 0)
    }

    /// True where the boxes were already chosen, so that the same place in two models' outputs holds unlike boxes and
    /// numeric differences mean nothing.
    pub fn is_chosen(&self) -> bool {
        matches!(self.kind, HeadKind::YoloEnd2end | HeadKind::Ssd | HeadKind::Torchvision | HeadKind::Efficientnms)
    }

    /// The parts of its outputs that are unlike, by output.
    pub fn parts(&self) -> Vec<(String, Vec<Part>)> {
        let Layout::Joined { name, transposed } = &self.outputs else { return Vec::new() };
        let axis = usize::from(!transposed);
        let part = |name: &str, range: Range<usize>| Part::new(name, axis, range);
        let parts = match self.kind {
            HeadKind::Yolov5 | HeadKind::Yolox => {
                vec![part("boxes", 0..4), part("objectness", 4..5), part("scores", 5..5 + self.classes)]
            }
            HeadKind::Yolov8 => vec![part("boxes", 0..4), part("scores", 4..4 + self.classes)],
            HeadKind::YoloEnd2end => vec![part("boxes", 0..4), part("scores", 4..5)],
            HeadKind::Nanodet => {
                let sides = 4 * decode::distances(self);
                vec![part("scores", 0..self.classes), part("boxes", self.classes..self.classes + sides)]
            }
            _ => return Vec::new(),
        };
        vec![(name.clone(), parts)]
    }

    /// In words, for people.
    pub fn describe(&self) -> String {
        let outputs = self.outputs().join("`, `");
        let classes = if self.classes == 0 { String::new() } else { format!(", {} classes", self.classes) };
        format!("{} (`{outputs}`{classes})", self.kind.name())
    }
}
