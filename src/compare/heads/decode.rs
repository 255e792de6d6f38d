//! The boxes in a sample of a head's outputs, in pixels of the model's input.

use serde::{Deserialize, Serialize};

use super::{BoxFormat, Head, HeadKind, Layout};
use crate::{
    compare::boxes::{Detection, sort_by_score, suppress},
    tensor::TensorView,
};

/// Distances by side of NanoDet's distributions: 0 to 7.
const NANODET_DISTANCES: usize = 8;

/// What only values tell of a head; read off the first sample with boxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traits {
    /// Scores are logits: some lie outside 0 to 1.
    logits: bool,
    /// What the numbers of its boxes are.
    coordinates: Coordinates,
    /// The last class means that there is nothing: most queries choose it, with a positive logit.
    background: bool,
}

/// What coordinates count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Coordinates {
    /// Pixels of the model's input.
    #[default]
    Pixels,
    /// Offsets in the cells of a grid, and logarithms of sizes in cells: YOLOX before it is decoded.
    Cells,
    /// Shares of the model's input: all lie between 0 and 1, about.
    Shares,
}

/// Distances of a distribution for one side.
pub(super) fn distances(_head: &Head) -> usize {
    NANODET_DISTANCES
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Values of one output, an anchor by row whatever its layout.
struct Rows<'a> {
    values: std::borrow::Cow<'a, [f32]>,
    count: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Rows<'a> {
    fn of(view: TensorView<'a>, transposed: bool) -> Result<Self, String> {
        let shape: Vec<usize> = view.shape.to_vec();
        let &[first, second] = shape.as_slice() else {
            return Err(format!("a sample of shape {shape:?} is not a list of boxes"));
        };
        let (count, columns) = if transposed { (second, first) } else { (first, second) };
        Ok(Self { values: view.to_f32(), count, columns, transposed })
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        let index = if self.transposed { column * self.count + row } else { row * self.columns + column };
        self.values[index]
    }

    fn four(&self, row: usize) -> [f32; 4] {
        std::array::from_fn(|column| self.at(row, column))
    }

    fn has(&self, columns: usize) -> Result<(), String> {
        if self.columns >= columns {
            return Ok(());
        }
        Err(format!("it has {} numbers an anchor, and the head needs {columns}", self.columns))
    }

    /// Every value of the columns from `first` to before `end`.
    fn all(&self, first: usize, end: usize) -> impl Iterator<Item = f32> + '_ {
        (0..self.count).flat_map(move |row| (first..end).map(move |column| self.at(row, column)))
    }
}

fn beyond_shares(mut values: impl Iterator<Item = f32>) -> bool {
    values.any(|x| !(-1e-3..=1.0 + 1e-3).contains(&x) && !x.is_nan())
}

impl Head {
    /// What values tell of the head; nothing where it chose no box and left zeros in the place of some. `sample` gives an
    /// output's values of one sample, without the batch.
    pub fn traits<'a>(&self, sample: &dyn Fn(&str) -> Option<TensorView<'a>>) -> Result<Option<Traits>, String> {
        let mut traits = Traits::default();
        let mut has_boxes = !self.is_chosen();
        match &self.outputs {
            Layout::Joined { name, transposed } => {
                let rows = Rows::of(view(sample, name)?, *transposed)?;
                rows.has(5)?;
                let scores = match self.kind {
                    HeadKind::YoloEnd2end => 4..5,
                    HeadKind::Nanodet => 0..self.classes,
                    HeadKind::Yolov8 => 4..4 + self.classes,
                    _ => 4..5 + self.classes,
                };
                rows.has(scores.end)?;
                has_boxes |= rows.all(0, 4).any(|x| x > 0.0);
                traits.logits = beyond_shares(rows.all(scores.start, scores.end));
                // Offsets in a grid are small and sizes in it logarithms; decoded centres are spread over the input.
                let mean = rows.all(0, 2).map(f64::from).sum::<f64>() / (2 * rows.count.max(1)) as f64;
                let decoded = rows.all(2, 4).all(|x| x >= 0.0) && mean > 0.1 * self.input[0].min(self.input[1]) as f64;
                traits.coordinates = match self.kind {
                    HeadKind::Yolox if !decoded => Coordinates::Cells,
                    HeadKind::Yolox | HeadKind::Nanodet => Coordinates::Pixels,
                    _ if beyond_shares(rows.all(0, 4)) => Coordinates::Pixels,
                    _ => Coordinates::Shares,
                };
            }
            Layout::Levels(levels) => {
                let found: Result<Vec<bool>, String> = levels
                    .iter()
                    .map(|(scores, ..)| Ok(beyond_shares(view(sample, scores)?.to_f32().iter().copied())))
                    .collect();
                traits.logits = found?.contains(&true);
            }
            Layout::Separate { boxes, scores, shares, .. } => {
                let scores = view(sample, scores)?;
                let boxes = view(sample, boxes)?.to_f32();
                has_boxes |= boxes.iter().any(|&x| x > 0.0);
                traits.logits = beyond_shares(scores.to_f32().iter().copied());
                // Torchvision's boxes are pixels; others say what they are, or their values do.
                let shares = match self.kind {
                    HeadKind::Boxes | HeadKind::Detr => *shares,
                    _ => !boxes.is_empty() && !boxes.iter().any(|&x| x > 2.0),
                };
                traits.coordinates = if shares { Coordinates::Shares } else { Coordinates::Pixels };
                if let (HeadKind::Detr, &[_, columns]) = (self.kind, scores.shape) {
                    let values = scores.to_f32();
                    // Under a sigmoid empty queries have no positive logit at all.
                    let last = |row: &&[f32]| row[columns - 1] > row[..columns - 1].iter().copied().fold(0.0, f32::max);
                    let rows = values.chunks_exact(columns.max(1));
                    let count = rows.len();
                    traits.background = columns > 1 && 2 * rows.filter(last).count() > count;
                }
            }
        }
        Ok(has_boxes.then_some(traits))
    }

    /// The boxes of one sample, the best first, in pixels of the model's input.
    pub fn decode<'a>(
        &self,
        traits: Traits,
        sample: &dyn Fn(&str) -> Option<TensorView<'a>>,
    ) -> Result<Vec<Detection>, String> {
        let mut found = match &self.outputs {
            Layout::Joined { name, transposed } => self.joined(traits, &Rows::of(view(sample, name)?, *transposed)?)?,
            Layout::Levels(levels) => {
                let mut found = Vec::new();
                for (scores, sides, stride) in levels {
                    let (scores, sides) =
                        (Rows::of(view(sample, scores)?, false)?, Rows::of(view(sample, sides)?, false)?);
                    if scores.count != sides.count {
                        return Err("a level has other numbers of classes and of distances".to_owned());
                    }
                    let columns = self.input[0].div_ceil(*stride);
                    // Centres of the cells, in this form of the model.
                    self.distributed(
                        traits,
                        &scores,
                        (&sides, 0),
                        (*stride, columns, 0.5),
                        0..scores.count,
                        &mut found,
                    );
                }
                found
            }
            Layout::Separate { boxes, scores, classes, count, format, .. } => {
                let optional = |name: &Option<String>| name.as_ref().map(|name| view(sample, name)).transpose();
                let (classes, count) = (optional(classes)?, optional(count)?);
                self.separate(traits, *format, [view(sample, boxes)?, view(sample, scores)?], [classes, count])?
            }
        };
        let [width, height] = self.input.map(|side| side as f32);
        if traits.coordinates == Coordinates::Shares {
            for detection in &mut found {
                let [x1, y1, x2, y2] = detection.corners;
                detection.corners = [x1 * width, y1 * height, x2 * width, y2 * height];
            }
        }
        if self.is_chosen() || self.suppression.iou >= 1.0 {
            found.retain(|detection| {
                detection.score > self.suppression.score && detection.corners.iter().all(|x| x.is_finite())
            });
            sort_by_score(&mut found);
            found.truncate(self.suppression.most);
            return Ok(found);
        }
        Ok(suppress(found, self.suppression))
    }

    fn joined(&self, traits: Traits, rows: &Rows<'_>) -> Result<Vec<Detection>, String> {
        let score = |x: f32| if traits.logits { sigmoid(x) } else { x };
        let least = self.suppression.score;
        let mut found = Vec::new();
        match self.kind {
            HeadKind::YoloEnd2end => {
                rows.has(6)?;
                for row in 0..rows.count {
                    let class = rows.at(row, 5).max(0.0) as u32;
                    found.push(Detection { corners: rows.four(row), score: score(rows.at(row, 4)), class });
                }
            }
            HeadKind::Nanodet => {
                rows.has(self.classes + 4 * NANODET_DISTANCES)?;
                let mut first = 0;
                for stride in [8, 16, 32, 64] {
                    let [columns, lines] = self.input.map(|side| side.div_ceil(stride));
                    let cells = first..(first + columns * lines).min(rows.count);
                    first = cells.end;
                    self.distributed(traits, rows, (rows, self.classes), (stride, columns, 0.0), cells, &mut found);
                }
            }
            _ => {
                let objectness = usize::from(self.kind != HeadKind::Yolov8);
                rows.has(4 + objectness + self.classes)?;
                let cells = traits.coordinates == Coordinates::Cells;
                let grid = cells.then(|| self.grid(rows.count)).transpose()?;
                for row in 0..rows.count {
                    let object = if objectness == 1 { score(rows.at(row, 4)) } else { 1.0 };
                    if object <= least {
                        continue;
                    }
                    let mut corners = None;
                    for class in 0..self.classes {
                        let score = object * score(rows.at(row, 4 + objectness + class));
                        if score > least {
                            let corners = *corners.get_or_insert_with(|| {
                                let [x, y, w, h] = rows.four(row);
                                BoxFormat::Cxcywh.corners(match &grid {
                                    None => [x, y, w, h],
                                    Some(grid) => {
                                        let [column, line, stride] = grid[row];
                                        [(x + column) * stride, (y + line) * stride, w.exp() * stride, h.exp() * stride]
                                    }
                                })
                            });
                            found.push(Detection { corners, score, class: class as u32 });
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    /// Column, line and stride of every cell of YOLOX's levels.
    fn grid(&self, count: usize) -> Result<Vec<[f32; 3]>, String> {
        let mut grid = Vec::with_capacity(count);
        for stride in [8, 16, 32, 64] {
            if grid.len() == count {
                break;
            }
            let [columns, lines] = self.input.map(|side| side.div_ceil(stride));
            let cells =
                (0..lines).flat_map(|line| (0..columns).map(move |column| [column as f32, line as f32, stride as f32]));
            grid.extend(cells);
        }
        if grid.len() != count {
            return Err(format!("{count} cells are not a grid of strides 8, 16 and 32 over {:?} pixels", self.input));
        }
        Ok(grid)
    }

    /// NanoDet: the distance to a side is the mean of a distribution over 0 to 7 strides.
    fn distributed(
        &self,
        traits: Traits,
        scores: &Rows<'_>,
        (sides, first): (&Rows<'_>, usize),
        (stride, columns, centre): (usize, usize, f32),
        cells: std::ops::Range<usize>,
        found: &mut Vec<Detection>,
    ) {
        let n = (sides.columns - first) / 4;
        let (begin, stride) = (cells.start, stride as f32);
        for row in cells {
            let mut corners = None;
            for class in 0..self.classes {
                let score = scores.at(row, class);
                let score = if traits.logits { sigmoid(score) } else { score };
                if score <= self.suppression.score {
                    continue;
                }
                let corners = *corners.get_or_insert_with(|| {
                    let side = |side: usize| {
                        let values = (0..n).map(|i| sides.at(row, first + side * n + i));
                        let most = values.clone().fold(f32::NEG_INFINITY, f32::max);
                        let (sum, weighted) = values.enumerate().fold((0.0, 0.0), |(sum, weighted), (i, x)| {
                            let e = (x - most).exp();
                            (sum + e, weighted + e * i as f32)
                        });
                        weighted / sum * stride
                    };
                    let cell = row - begin;
                    let x = ((cell % columns.max(1)) as f32 + centre) * stride;
                    let y = ((cell / columns.max(1)) as f32 + centre) * stride;
                    [x - side(0), y - side(1), x + side(2), y + side(3)]
                });
                found.push(Detection { corners, score, class: class as u32 });
            }
        }
    }

    fn separate(
        &self,
        traits: Traits,
        format: BoxFormat,
        [boxes, scores]: [TensorView<'_>; 2],
        [classes, count]: [Option<TensorView<'_>>; 2],
    ) -> Result<Vec<Detection>, String> {
        let (boxes, scores) = (boxes.to_f32(), scores.to_f32());
        let (boxes, _) = boxes.as_chunks::<4>();
        let count = count.and_then(|count| count.to_f32().first().copied());
        let boxes = &boxes[..count.map_or(boxes.len(), |count| (count.max(0.0) as usize).min(boxes.len()))];
        let least = self.suppression.score;
        let mut found = Vec::new();
        if let Some(classes) = classes {
            let classes = classes.values.to_f64();
            if scores.len() < boxes.len() || classes.len() < boxes.len() {
                return Err(format!(
                    "{} boxes have {} scores and {} classes",
                    boxes.len(),
                    scores.len(),
                    classes.len()
                ));
            }
            for ((&corners, &score), &class) in boxes.iter().zip(scores.iter()).zip(classes.iter()) {
                let score = if traits.logits { sigmoid(score) } else { score };
                found.push(Detection { corners: format.corners(corners), score, class: class.max(0.0) as u32 });
            }
            return Ok(found);
        }
        let columns = scores.len().checked_div(boxes.len()).unwrap_or(0);
        if columns * boxes.len() != scores.len() {
            return Err(format!("{} scores cannot belong to {} boxes", scores.len(), boxes.len()));
        }
        for (&corners, scores) in boxes.iter().zip(scores.chunks_exact(columns.max(1))) {
            let softmax = (traits.logits && traits.background).then(|| {
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                (most, scores.iter().map(|x| (x - most).exp()).sum::<f32>())
            });
            let last = scores.len() - usize::from(traits.background);
            for (class, &score) in scores[..last].iter().enumerate() {
                let score = match softmax {
                    Some((most, sum)) => (score - most).exp() / sum,
                    None if traits.logits => sigmoid(score),
                    None => score,
                };
                if score > least {
                    found.push(Detection { corners: format.corners(corners), score, class: class as u32 });
                }
            }
        }
        Ok(found)
    }
}

fn view<'a>(sample: &dyn Fn(&str) -> Option<TensorView<'a>>, name: &str) -> Result<TensorView<'a>, String> {
    sample(name).ok_or_else(|| format!("there is no output `{name}`"))
}

#[cfg(test)]
mod tests;
