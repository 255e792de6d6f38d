//! Which head a model has, by the names and shapes of its outputs.

use std::collections::BTreeMap;

use super::{BoxFormat, DetectionOptions, Head, HeadKind, Layout, Suppression};
use crate::tensor::ElementType;

/// Class counts of the data sets that detectors are mostly trained on.
const USUAL_CLASSES: [usize; 9] = [20, 80, 90, 91, 365, 500, 601, 1203, 1204];
/// Most boxes of heads that give the best only.
const FEW: usize = 1500;

/// Name, type and extents of an output; `None` for a dynamic extent.
#[derive(Clone, Debug)]
pub struct OutputShape {
    /// Its name.
    pub name: String,
    /// Type of its elements, where known.
    pub element_type: Option<ElementType>,
    /// Extents, with the batch.
    pub shape: Vec<Option<usize>>,
}

impl OutputShape {
    fn is_integer(&self) -> bool {
        self.element_type.is_some_and(|element_type| !element_type.is_float())
    }

    fn has(&self, words: &[&str]) -> bool {
        let name = self.name.to_lowercase();
        words.iter().any(|word| name.contains(word))
    }
}

/// What else is known of the model.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Width and height of its input.
    pub input: Option<[usize; 2]>,
    /// Number of classes, from metadata, names or labels.
    pub classes: Option<usize>,
    /// The metadata say that it is a detector.
    pub detector: bool,
    /// The metadata say whether its boxes were chosen in the model.
    pub chosen: Option<bool>,
}

/// Why a head cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// More than one head fits.
    #[error(
        "the outputs ({outputs}) fit more than one detection head: {}; {}",
        candidates.join(", "),
        if *same { "name the outputs in [detection] with head = \"boxes\", or set --head none" }
        else { "set --head (or [detection] head) to one of them, or to none" }
    )]
    Ambiguous {
        /// The outputs in words.
        outputs: String,
        /// The heads.
        candidates: Vec<String>,
        /// They are of one kind.
        same: bool,
    },
    /// The head that was asked for does not fit.
    #[error("[detection] head = \"{head}\" does not fit the outputs ({outputs}): {reason}")]
    Misfit {
        /// The head.
        head: &'static str,
        /// The outputs in words.
        outputs: String,
        /// What it needs.
        reason: String,
    },
}

fn in_words(outputs: &[OutputShape]) -> String {
    let extent = |extent: &Option<usize>| extent.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let one = |output: &OutputShape| {
        format!("`{}` {}", output.name, output.shape.iter().map(extent).collect::<Vec<_>>().join("×"))
    };
    outputs.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Values of each box behind those that a head of this kind and so many classes reads.
fn unjudged(outputs: &[OutputShape], kind: HeadKind, classes: usize, layout: &Layout) -> usize {
    let read = match kind {
        HeadKind::Yolov8 => 4 + classes,
        HeadKind::Yolov5 | HeadKind::Yolox => 5 + classes,
        _ => return 0,
    };
    let Layout::Joined { name, transposed } = layout else { return 0 };
    let output = outputs.iter().find(|output| output.name == *name);
    let values = output.and_then(|output| output.shape.get(if *transposed { 1 } else { 2 }).copied().flatten());
    values.map_or(0, |values| values.saturating_sub(read))
}

/// The head of a model with these outputs: the one that `options` name, or the one that fits. `None` for a model that
/// looks like no detector.
pub fn recognize(
    outputs: &[OutputShape],
    around: &Surroundings,
    options: &DetectionOptions,
) -> Result<Option<Head>, HeadError> {
    let input = around.input.unwrap_or([0, 0]);
    let head = |(kind, classes, layout): (HeadKind, usize, Layout)| {
        let iou = if kind == HeadKind::Detr { 1.0 } else { options.iou };
        let suppression = Suppression { score: options.score, iou, most: options.most };
        let unjudged = unjudged(outputs, kind, classes, &layout);
        Head { kind, classes, unjudged, input, suppression, confidence: options.confidence, outputs: layout }
    };
    let misfit =
        |kind: HeadKind, reason: String| HeadError::Misfit { head: kind.name(), outputs: in_words(outputs), reason };
    match options.head {
        Some(HeadKind::None) => Ok(None),
        Some(HeadKind::Boxes) => {
            named(outputs, options).map(head).map(Some).map_err(|why| misfit(HeadKind::Boxes, why))
        }
        Some(kind) => {
            let (mut fitting, others): (Vec<_>, Vec<_>) =
                candidates(outputs, around, true).into_iter().partition(|candidate| candidate.0 == kind);
            fitting.dedup_by(|a, b| a.2.outputs() == b.2.outputs());
            if fitting.len() > 1 {
                return Err(ambiguous(outputs, &fitting));
            }
            let others = others.first().map(|other| format!("; they fit `{}`", other.0.name())).unwrap_or_default();
            let why = || format!("expected is {}{others}", expected(kind));
            fitting.into_iter().next().map(head).map(Some).ok_or_else(|| misfit(kind, why()))
        }
        None => {
            let fitting = candidates(outputs, around, false);
            if fitting.len() > 1 {
                return Err(ambiguous(outputs, &fitting));
            }
            Ok(fitting.into_iter().next().map(head))
        }
    }
}

fn ambiguous(outputs: &[OutputShape], fitting: &[Candidate]) -> HeadError {
    let in_words_of = |(kind, classes, layout): &Candidate| {
        let of = if outputs.len() > 1 { format!(" in `{}`", layout.outputs()[0]) } else { String::new() };
        let classes = if *classes > 0 { format!(" with {classes} classes") } else { String::new() };
        format!("{}{classes}{of}", kind.name())
    };
    HeadError::Ambiguous {
        outputs: in_words(outputs),
        candidates: fitting.iter().map(in_words_of).collect(),
        same: fitting.iter().all(|candidate| candidate.0 == fitting[0].0),
    }
}

fn expected(kind: HeadKind) -> &'static str {
    match kind {
        HeadKind::Yolov5 | HeadKind::Yolox => "one output of floats, [B, N, 5 + classes]",
        HeadKind::Yolov8 => "one output of floats, [B, 4 + classes, N] or [B, N, 4 + classes]",
        HeadKind::YoloEnd2end => "one output of floats, [B, N, 6]",
        HeadKind::Nanodet => {
            "[B, N, classes + 4·(distances)], or an output of classes and one of distances for every level"
        }
        HeadKind::Detr => "two outputs of floats, [B, Q, classes] and [B, Q, 4]",
        HeadKind::Ssd => "boxes [B, N, 4], scores [B, N] and integer labels [B, N]",
        HeadKind::Torchvision => "boxes [N, 4], scores [N] and integer labels [N], without a batch",
        HeadKind::Efficientnms => "number [B, 1], boxes [B, N, 4], scores [B, N] and classes [B, N]",
        HeadKind::Boxes | HeadKind::None => "the names of outputs in `boxes`, `scores` and `classes`",
    }
}

type Candidate = (HeadKind, usize, Layout);

fn named(outputs: &[OutputShape], options: &DetectionOptions) -> Result<Candidate, String> {
    let find = |key: &str, name: &Option<String>| {
        let name = name.clone().ok_or_else(|| format!("`{key}` must name an output"))?;
        let known = outputs.iter().find(|output| output.name == name);
        known.ok_or_else(|| format!("`{key}` names `{name}`, which is not an output"))
    };
    let (boxes, scores) = (find("boxes", &options.boxes)?, find("scores", &options.scores)?);
    let classes = options.classes.as_ref().map(|_| find("classes", &options.classes)).transpose()?;
    if boxes.shape.last().is_some_and(|extent| extent.is_some_and(|n| n != 4)) {
        return Err(format!("`{}` does not end in four coordinates", boxes.name));
    }
    // Without the batch, the values of a row, and axes of one.
    let rows_of = |output: &OutputShape, behind: usize| {
        let extents = output.shape.get(1..output.shape.len().checked_sub(behind)?)?.iter().copied();
        extents.collect::<Option<Vec<usize>>>().map(|extents| extents.iter().product::<usize>())
    };
    let (of_boxes, of_scores) = (rows_of(boxes, 1), rows_of(scores, usize::from(classes.is_none())));
    if let (Some(boxes_there), Some(scores_there)) = (of_boxes, of_scores)
        && boxes_there != scores_there
    {
        let expected = if classes.is_some() { "[B, N]" } else { "[B, N, classes]" };
        return Err(format!(
            "`{}` has {boxes_there} boxes and `{}`, which should be {expected}, scores of {scores_there}; append a \
             Transpose to the model where its axes are the other way round",
            boxes.name, scores.name
        ));
    }
    let by_class = if classes.is_some() { 0 } else { scores.shape.last().copied().flatten().unwrap_or(0) };
    let layout = Layout::Separate {
        boxes: boxes.name.clone(),
        scores: scores.name.clone(),
        classes: classes.map(|output| output.name.clone()),
        count: None,
        format: options.format,
        shares: options.shares,
    };
    Ok((HeadKind::Boxes, by_class, layout))
}

/// Heads that fit; with `asked`, also those that nothing but the user's word speaks for.
fn candidates(outputs: &[OutputShape], around: &Surroundings, asked: bool) -> Vec<Candidate> {
    let floats: Vec<&OutputShape> = outputs.iter().filter(|output| !output.is_integer()).collect();
    let mut found = Vec::new();
    found.extend(chosen(outputs));
    if found.is_empty() {
        found.extend(levels(outputs));
        // Those of the last layer count, not what helped in training.
        let last: Vec<&OutputShape> = floats.iter().copied().filter(|output| !output.has(&["enc_", "aux"])).collect();
        let of_last = queries(&last, asked);
        found.extend(if of_last.is_empty() { queries(&floats, asked) } else { of_last });
    }
    if found.is_empty() || asked {
        let has_boxes = |output: &OutputShape| {
            let others =
                outputs.iter().filter(|other| other.name != output.name && other.shape.last() == Some(&Some(4)));
            others.filter_map(|other| other.shape.get(1)).any(|rows| rows.is_some() && output.shape[1..].contains(rows))
        };
        let joined = floats.iter().filter(|output| output.shape.len() == 3 && !has_boxes(output));
        let masks = prototypes(&floats, around);
        found.extend(joined.flat_map(|output| joined_in(output, masks, around, asked)));
    }
    found
}

/// The channels of the prototypes of masks, at a quarter of the input's size, that stand beside the one output of a YOLO.
fn prototypes(floats: &[&OutputShape], around: &Surroundings) -> Option<usize> {
    let mut maps = floats.iter().filter(|output| output.shape.len() == 4);
    let &[_, channels, height, width] = maps.next().filter(|_| maps.next().is_none())?.shape.as_slice() else {
        return None;
    };
    let is_quarter = |side: Option<usize>, of: usize| side.is_none_or(|side| side == of / 4);
    let fits = around.input.is_none_or(|[w, h]| is_quarter(width, w) && is_quarter(height, h));
    channels.filter(|_| fits)
}

/// Strides of the levels of a YOLO: the usual ones, with P6, with P2, and two levels of small ones.
const STRIDES: [&[usize]; 4] = [&[8, 16, 32], WITH_P6, &[4, 8, 16, 32], &[16, 32]];
const WITH_P6: &[usize] = &[8, 16, 32, 64];

/// Cells of the levels with these strides.
fn cells(input: [usize; 2], strides: &[usize]) -> usize {
    strides.iter().map(|stride| input[0].div_ceil(*stride) * input[1].div_ceil(*stride)).sum()
}

/// Heads with everything in one output.
fn joined_in(output: &OutputShape, masks: Option<usize>, around: &Surroundings, asked: bool) -> Vec<Candidate> {
    let &[_, a, b] = output.shape.as_slice() else { return Vec::new() };
    let joined = |transposed| Layout::Joined { name: output.name.clone(), transposed };
    // Behind the class of every box there may be coefficients of its mask or its key points.
    if around.chosen == Some(true) && b.is_some_and(|columns| columns >= 6) {
        return vec![(HeadKind::YoloEnd2end, 0, joined(false))];
    }
    let (Some(a), Some(b)) = (a, b) else {
        // Without extents the metadata must say that it is a detector, and of how many classes.
        let columns = [a, b].into_iter().flatten().next();
        return match (around.classes, columns) {
            (Some(classes), Some(n)) if (around.detector || asked) && n >= 4 + classes => {
                vec![(HeadKind::Yolov8, classes, joined(a.is_some()))]
            }
            _ => Vec::new(),
        };
    };
    let Some(input) = around.input else { return Vec::new() };
    let four = cells(input, WITH_P6);
    let is_cells = |n: usize| STRIDES.iter().any(|strides| n == cells(input, strides));
    let mut found = Vec::new();
    // Anchors in columns.
    let told = around.detector && around.classes.is_some_and(|classes| 4 + classes <= a);
    if (is_cells(b) || (asked || told) && b > a) && a >= 5 {
        let classes =
            around.classes.filter(|classes| 4 + classes <= a).unwrap_or(a - 4 - masks.unwrap_or(0).min(a - 5));
        found.push((HeadKind::Yolov8, classes, joined(true)));
    }
    if b == 6 && a <= FEW && !is_cells(a) && around.chosen.is_none() {
        found.push((HeadKind::YoloEnd2end, 0, joined(false)));
    }
    // Queries with boxes and classes in one output, as RT-DETR is exported where metadata say so.
    if around.detector && a <= FEW && !is_cells(a) && around.classes.is_some_and(|classes| 4 + classes == b) {
        found.push((HeadKind::Yolov8, b - 4, joined(false)));
    }
    // Three anchors a cell.
    if (a % 3 == 0 && is_cells(a / 3) || asked && a > b) && b >= 6 {
        let extra = masks.unwrap_or(0).min(b - 6);
        found.push((
            HeadKind::Yolov5,
            around.classes.filter(|classes| 5 + classes <= b).unwrap_or(b - 5 - extra),
            joined(false),
        ));
    }
    if is_cells(a) || asked && a > b {
        let mut rows = Vec::new();
        if b >= 6 {
            rows.push((HeadKind::Yolox, b - 5));
        }
        if b >= 5 {
            rows.push((HeadKind::Yolov8, b - 4));
        }
        // Distances of 8 values a side are NanoDet's, where its classes do not say otherwise; its four levels are hardly
        // anyone else's.
        let fitting = around.classes.filter(|classes| classes + 8 <= b && (b - classes) % 4 == 0);
        if let (Some(classes), true) = (fitting.or(b.checked_sub(32).filter(|&rest| rest > 0)), a == four || asked) {
            rows.push((HeadKind::Nanodet, classes));
        }
        let sure = |classes: usize| around.classes == Some(classes);
        let usual = |classes: usize| USUAL_CLASSES.contains(&classes);
        for fits in [&sure as &dyn Fn(usize) -> bool, &usual] {
            if !asked && rows.iter().any(|row| fits(row.1)) {
                rows.retain(|row| fits(row.1));
                break;
            }
        }
        found.extend(rows.into_iter().map(|(kind, classes)| (kind, classes, joined(false))));
    }
    found
}

/// Heads whose boxes were chosen in the model.
fn chosen(outputs: &[OutputShape]) -> Option<Candidate> {
    let boxes =
        outputs.iter().find(|o| !o.is_integer() && o.shape.last() == Some(&Some(4)) && o.has(&["box", "det", "loc"]));
    let boxes = boxes.or_else(|| outputs.iter().find(|o| !o.is_integer() && o.shape.last() == Some(&Some(4))))?;
    let rank = boxes.shape.len();
    if !(2..=3).contains(&rank) {
        return None;
    }
    let rows = boxes.shape[rank - 2];
    let is_a_row_each = |o: &&OutputShape| {
        o.shape.len() == rank - 1 && (rows.is_none() || o.shape[rank - 2].is_none_or(|n| Some(n) == rows))
    };
    let flat: Vec<&OutputShape> = outputs.iter().filter(is_a_row_each).collect();
    let scores = flat
        .iter()
        .find(|o| o.has(&["score", "conf"]))
        .or_else(|| flat.iter().find(|o| !o.is_integer() && !o.has(&["class", "label", "num", "count"])))?;
    let classes = flat
        .iter()
        .find(|o| o.name != scores.name && o.has(&["class", "label", "cls"]))
        .or_else(|| flat.iter().find(|o| o.name != scores.name && o.is_integer() && !o.has(&["num", "count"])))?;
    let others = || outputs.iter().filter(|o| ![&boxes.name, &scores.name, &classes.name].contains(&&o.name));
    let by_name = others().find(|o| o.has(&["num", "count"]));
    // Nothing else is a single integer for each picture.
    let count =
        by_name.or_else(|| others().find(|o| rank == 3 && o.is_integer() && matches!(o.shape[..], [_] | [_, Some(1)])));
    let tensorflow = boxes.has(&["detection_boxes"]);
    let kind = match (count, rank) {
        _ if tensorflow => HeadKind::Ssd,
        (Some(_), 3) => HeadKind::Efficientnms,
        (_, 3) => HeadKind::Ssd,
        _ => HeadKind::Torchvision,
    };
    let format = if tensorflow { BoxFormat::Yxyx } else { BoxFormat::Xyxy };
    let (boxes, scores, classes) = (boxes.name.clone(), scores.name.clone(), Some(classes.name.clone()));
    let (count, shares) = (count.map(|output| output.name.clone()), kind == HeadKind::Ssd);
    Some((kind, 0, Layout::Separate { boxes, scores, classes, count, format, shares }))
}

/// Boxes and class scores of queries.
fn queries(floats: &[&OutputShape], asked: bool) -> Vec<Candidate> {
    let pair = |boxes: &&OutputShape| {
        let &[_, queries, Some(4)] = boxes.shape.as_slice() else { return None };
        let scores = floats.iter().find(|o| {
            o.name != boxes.name
                && o.shape.len() == 3
                && o.shape[1] == queries
                && (o.shape[2] != Some(4) || o.has(&["logit"]))
        })?;
        let few = queries.is_none_or(|queries| queries <= FEW);
        // Boxes and scores alone could be anyone's, and would have to be suppressed.
        let told = boxes.has(&["pred_box", "dets"]) || scores.has(&["logit"]);
        let classes = scores.shape[2].unwrap_or(0);
        (asked || few && told).then(|| {
            let (boxes, scores) = (boxes.name.clone(), scores.name.clone());
            let (classes_output, count) = (None, None);
            let format = BoxFormat::Cxcywh;
            (
                HeadKind::Detr,
                classes,
                Layout::Separate { boxes, scores, classes: classes_output, count, format, shares: true },
            )
        })
    };
    let named = |output: &&&OutputShape| output.has(&["box", "dets"]);
    let of_names: Vec<Candidate> = floats.iter().filter(named).filter_map(pair).collect();
    if of_names.is_empty() { floats.iter().filter_map(pair).collect() } else { of_names }
}

/// NanoDet with an output of classes and one of distances for every level, which name their stride.
fn levels(outputs: &[OutputShape]) -> Option<Candidate> {
    let mut by_stride: BTreeMap<usize, [Option<&OutputShape>; 2]> = BTreeMap::new();
    for output in outputs {
        let which = usize::from(output.has(&["dis", "reg", "box"]));
        if which == 0 && !output.has(&["cls", "class"]) {
            return None;
        }
        let digits = output.name.rsplit(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
        let stride: usize = digits?.parse().ok().filter(|stride| [8, 16, 32, 64].contains(stride))?;
        by_stride.entry(stride).or_default()[which] = Some(output);
    }
    let mut classes = 0;
    let levels = by_stride.into_iter().map(|(stride, pair)| {
        let [Some(scores), Some(sides)] = pair else { return None };
        let (&[_, _, Some(count)], &[_, _, Some(n)]) = (scores.shape.as_slice(), sides.shape.as_slice()) else {
            return None;
        };
        classes = count;
        (n % 4 == 0).then(|| (scores.name.clone(), sides.name.clone(), stride))
    });
    let levels: Vec<_> = levels.collect::<Option<_>>()?;
    (levels.len() > 1).then_some((HeadKind::Nanodet, classes, Layout::Levels(levels)))
}

#[cfg(test)]
mod tests;
