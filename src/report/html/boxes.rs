//! Detectors: the pictures whose boxes changed most, with the boxes drawn, and precision and recall over the confidence.

use super::super::{Precision, Report, metrics::title};
use crate::compare::{ChangedPicture, boxes::Detection};

/// Characters of all pictures together on a page.
const MAX_PICTURES: usize = 2 << 20;

/// What stands in the section about boxes.
pub(super) struct Boxes<'a> {
    /// The precision whose pictures are shown: the one that agrees least with the reference.
    pub precision: String,
    pub pictures: Vec<Picture<'a>>,
    pub curves: Vec<Curve>,
}

/// A picture with its boxes.
pub(super) struct Picture<'a> {
    pub sample: &'a str,
    pub data: &'a str,
    pub width: usize,
    pub height: usize,
    pub boxes: Vec<Drawn>,
    pub lost: usize,
    pub gained: usize,
    pub common: usize,
}

/// One box.
pub(super) struct Drawn {
    pub kind: &'static str,
    pub x: f32,
    pub y: f32,
    pub width: f32,
    pub height: f32,
    /// What it is said to be.
    pub words: String,
}

/// Precision over recall of one precision: points of a line in a square of 100 × 100, recall to the right.
pub(super) struct Curve {
    pub name: String,
    pub series: usize,
    pub points: String,
    /// The best F1, in words.
    pub best: String,
}

impl<'a> Boxes<'a> {
    pub fn new(report: &'a Report) -> Self {
        let changed = |p: &&Precision| !p.reference && p.detection.as_ref().is_some_and(|d| !d.changed.is_empty());
        let f1 = |p: &Precision| p.detection.as_ref().map_or(1.0, |d| d.agreement.f1());
        let least = report.precisions.iter().filter(changed).min_by(|a, b| f1(a).total_cmp(&f1(b)));
        let names = report.dataset.labels.as_ref().map(|labels| &labels.names);
        let name = |class: u32| names.and_then(|names| names.get(&class)).cloned();
        let mut characters = 0;
        let mut pictures = Vec::new();
        for changed in least.iter().filter_map(|p| p.detection.as_ref()).flat_map(|d| &d.changed) {
            let Some(data) = report.thumbnails.get(&changed.sample).filter(|data| super::samples::is_picture(data))
            else {
                continue;
            };
            characters += data.len();
            if characters <= MAX_PICTURES {
                pictures.extend(picture(changed, data, &name));
            }
        }
        let curves = report.precisions.iter().enumerate().filter_map(|(series, p)| curve(series, p)).collect();
        Self { precision: least.map(title).unwrap_or_default(), pictures, curves }
    }
}

fn picture<'a>(
    changed: &'a ChangedPicture,
    data: &'a str,
    name: &dyn Fn(u32) -> Option<String>,
) -> Option<Picture<'a>> {
    let [width, height] = changed.size?;
    let drawn = |kind, [x1, y1, x2, y2]: [f32; 4], words| Drawn {
        kind,
        x: x1,
        y: y1,
        width: (x2 - x1).max(0.0),
        height: (y2 - y1).max(0.0),
        words,
    };
    let found = |kind: &'static str, found: &Detection| {
        let class = name(found.class).unwrap_or_else(|| format!("class {}", found.class));
        drawn(kind, found.corners, format!("{kind}: {class} {:.2}", found.score))
    };
    let mut boxes: Vec<Drawn> =
        changed.labels.iter().map(|&corners| drawn("label", corners, "label".to_owned())).collect();
    boxes.extend(changed.common.iter().map(|detection| found("common", detection)));
    boxes.extend(changed.lost.iter().map(|detection| found("lost", detection)));
    boxes.extend(changed.gained.iter().map(|detection| found("gained", detection)));
    let [lost, gained, common] = [&changed.lost, &changed.gained, &changed.common].map(Vec::len);
    Some(Picture { sample: &changed.sample, data, width, height, boxes, lost, gained, common })
}

fn curve(series: usize, precision: &Precision) -> Option<Curve> {
    let curve = &precision.detection.as_ref()?.accuracy.as_ref()?.confidence;
    let [confidence, p, r, f1] = curve.best()?;
    let pairs = curve.recall.iter().zip(&curve.precision);
    let points = pairs.map(|(recall, precision)| format!("{:.1},{:.1}", 100.0 * recall, 100.0 - 100.0 * precision));
    let percent = |value: f64| format!("{:.1}\u{a0}%", 100.0 * value);
    let best =
        format!("F1 {} at confidence {confidence:.2} (precision {}, recall {})", percent(f1), percent(p), percent(r));
    Some(Curve { name: title(precision), series, points: points.collect::<Vec<_>>().join(" "), best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example::{Size, report};

    #[test]
    fn the_precision_that_agrees_least_shows_its_boxes() {
        let mut report = report(&Size { layers: 1, flips: 0 });
        let detection = |score| Detection { corners: [1.0, 2.0, 11.0, 7.0], score, class: 3 };
        let agreement = |recall| crate::compare::DetectionAgreement {
            confidence: 0.25,
            precision: recall,
            precision_interval: None,
            recall,
            recall_interval: None,
            precision_75: recall,
            recall_75: recall,
            mean_iou: None,
            mean_iou_interval: None,
            score_shift: None,
            lost: 1,
            gained: 1,
            common: 0,
            pictures: 1,
        };
        let result = |recall, sample: &str| crate::compare::DetectionResult {
            head: "yolox".into(),
            accuracy: None,
            reference_map50_95: None,
            map50_95_drop_interval: None,
            agreement: agreement(recall),
            changed: vec![ChangedPicture {
                sample: sample.into(),
                size: Some([64, 48]),
                lost: vec![detection(0.9)],
                gained: vec![detection(0.5)],
                common: Vec::new(),
                labels: vec![[0.0, 0.0, 5.0, 5.0]],
            }],
        };
        report.precisions[1].detection = Some(result(0.9, "good.jpg"));
        report.precisions[2].detection = Some(result(0.4, "<bad>.jpg"));
        report.thumbnails.insert("<bad>.jpg".into(), "data:image/jpeg;base64,AAAA".into());
        let boxes = Boxes::new(&report);
        assert_eq!(boxes.precision, title(&report.precisions[2]));
        let drawn: Vec<_> = boxes.pictures[0].boxes.iter().map(|b| (b.kind, b.words.as_str(), b.width)).collect();
        assert_eq!(
            drawn,
            [("label", "label", 5.0), ("lost", "lost: daisy 0.90", 10.0), ("gained", "gained: daisy 0.50", 10.0)]
        );
        let page = crate::report::html(&report).unwrap();
        assert!(page.contains("viewBox=\"0 0 64 48\"") && page.contains("lost: daisy 0.90"));
        assert!(page.contains("&#60;bad&#62;.jpg") && !page.contains("<bad>"));
    }
}
