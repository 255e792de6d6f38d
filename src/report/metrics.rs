//! The figures of a precision as columns of a table: the same in the page of one run, of many, and in summaries.

use super::{
    Elsewhere, Precision, Report, Speedup, Timing,
    assemble::figures,
    format,
    table::{Cell, Column, Table, Tone},
};
use crate::{
    bench::SpeedUp,
    compare::{DetectionAccuracy, DetectionAgreement, Metric, OutputMetrics, Segmentation},
};

/// A precision within its report.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub report: &'a Report,
    pub precision: &'a Precision,
}

impl<'a> Subject<'a> {
    /// Every precision of a report.
    pub fn all(report: &'a Report) -> impl Iterator<Item = Self> {
        report.precisions.iter().map(move |precision| Self { report, precision })
    }

    /// Median latency in milliseconds, where it says something about the precision's speed.
    pub fn speed(self) -> Option<f64> {
        let latency = self.precision.latency_ms.as_ref()?;
        (latency.timing == Timing::Measured).then_some(latency.figures.median)
    }

    /// What the machine that was measured last found of it.
    pub fn there(self) -> Option<&'a Elsewhere> {
        self.precision.measured_elsewhere.last()
    }

    /// Speed-up, where both sides of it were measured.
    pub fn speedup(self) -> Option<&'a Speedup> {
        self.speed().and(self.precision.speedup.as_ref())
    }

    /// Bytes of what the precision is deployed as.
    pub fn bytes(self) -> Option<u64> {
        let own = self.precision.artifact.as_ref().map(|artifact| artifact.bytes);
        own.or(self.precision.reference.then_some(self.report.model.bytes))
    }

    /// The least SQNR over the outputs, in decibels: infinite where nothing differs.
    pub fn sqnr_db(self) -> Option<f64> {
        OutputMetrics::worst_sqnr_db(&self.precision.outputs)
    }

    /// Agreement of maps with the reference; the reference itself has none.
    fn map_against_reference(self) -> Option<&'a Segmentation> {
        self.precision.segmentation.as_ref().filter(|_| !self.precision.reference)
    }

    /// Boxes against labels.
    fn accuracy_of_boxes(self) -> Option<&'a DetectionAccuracy> {
        self.precision.detection.as_ref()?.accuracy.as_ref()
    }

    /// Boxes against those of the reference; the reference itself has none.
    fn agreement_of_boxes(self) -> Option<&'a DetectionAgreement> {
        self.precision.detection.as_ref().filter(|_| !self.precision.reference).map(|d| &d.agreement)
    }

    /// What the precision is worth, by one measure.
    pub fn quality(self, measure: Quality) -> Option<f64> {
        let own = match measure {
            Quality::Accuracy => self.precision.accuracy.as_ref().map(|a| a.top1),
            Quality::Map => self.accuracy_of_boxes().and_then(|a| a.figures.map50_95),
            Quality::Boxes => self.precision.detection.as_ref().map(|d| d.agreement.f1()),
            Quality::LabelMeanIou => self.precision.segmentation.as_ref().and_then(|s| s.label_mean_iou),
            Quality::PixelAccuracy => self.precision.segmentation.as_ref().and_then(|s| s.pixel_accuracy),
            Quality::Agreement => self.precision.agreement.as_ref().map(|a| a.top1),
            Quality::MeanIou => self.precision.segmentation.as_ref().map(|s| s.mean_iou),
            Quality::Sqnr => self.sqnr_db().filter(|db| db.is_finite()),
        };
        let share = measure.is_against_reference() && measure != Quality::Sqnr;
        own.or((share && self.precision.reference).then_some(1.0))
    }

    /// The 95 % confidence interval of [`Self::quality`], where there is one.
    pub fn quality_interval(self, measure: Quality) -> Option<[f64; 2]> {
        match measure {
            Quality::Accuracy => self.precision.accuracy.as_ref().map(|a| a.top1_interval),
            Quality::Agreement => self.precision.agreement.as_ref().map(|a| a.top1_interval),
            Quality::Map => self.accuracy_of_boxes().and_then(|a| a.map50_95_interval),
            Quality::Sqnr => self.precision.sqnr_db_interval,
            _ => None,
        }
    }

    /// Half of the 95 % interval of [`Self::quality`], where there is one: that of a drop from the reference on the same
    /// pictures rather than that over pictures, and the wider of precision's and recall's for boxes.
    pub fn quality_noise(self, measure: Quality) -> Option<f64> {
        let half = |[low, high]: [f64; 2]| (high - low) / 2.0;
        let drop = || self.precision.detection.as_ref()?.map50_95_drop_interval.filter(|_| !self.precision.reference);
        match measure {
            Quality::Map => drop().or_else(|| self.quality_interval(measure)).map(half),
            Quality::Boxes => {
                let agreement = self.agreement_of_boxes()?;
                let intervals = [agreement.precision_interval, agreement.recall_interval].into_iter().flatten();
                intervals.map(half).max_by(f64::total_cmp)
            }
            _ => self.quality_interval(measure).map(half),
        }
    }
}

/// Measures of quality, the most telling first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quality {
    Accuracy,
    Map,
    LabelMeanIou,
    PixelAccuracy,
    Agreement,
    Boxes,
    MeanIou,
    Sqnr,
}

impl Quality {
    /// Every measure, the most telling first.
    pub const ALL: [Self; 8] = [
        Self::Accuracy,
        Self::Map,
        Self::LabelMeanIou,
        Self::PixelAccuracy,
        Self::Agreement,
        Self::Boxes,
        Self::MeanIou,
        Self::Sqnr,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "Top-1 accuracy",
            Self::Map => "mAP 50-95",
            Self::Boxes => "Agreement of boxes with the reference (F1)",
            Self::LabelMeanIou => "Mean IoU with the labels",
            Self::PixelAccuracy => "Pixel accuracy",
            Self::Agreement => "Top-1 agreement with the reference",
            Self::MeanIou => "Mean IoU with the reference",
            Self::Sqnr => "SQNR of the output (dB)",
        }
    }

    /// True for what compares with the reference, and says nothing of the reference itself.
    pub fn is_against_reference(self) -> bool {
        matches!(self, Self::Agreement | Self::Boxes | Self::MeanIou | Self::Sqnr)
    }

    /// The most telling measure that any of the subjects has.
    pub fn of(subjects: &[Subject<'_>]) -> Option<Self> {
        let known = |measure: &Self| subjects.iter().any(|s| !s.precision.reference && s.quality(*measure).is_some());
        Self::ALL.into_iter().find(known)
    }
}

/// How a figure of a subject becomes a cell.
type Figure = fn(Subject<'_>) -> Option<Cell>;

/// Name, key, meaning and making of every column.
const FIGURES: [(&str, &str, &str, Figure); 23] = [
    (
        "Top-1 acc.",
        "accuracy_top1",
        "Share of labelled samples whose label is the first answer, with its 95 % interval",
        |s| {
            let a = s.precision.accuracy.as_ref()?;
            Some(share(a.top1, a.samples).note(format::percent_interval(a.top1_interval, a.samples)))
        },
    ),
    ("Top-5 acc.", "accuracy_top5", "Share of labelled samples whose label is among the first five", |s| {
        let a = s.precision.accuracy.as_ref()?;
        Some(share(a.top5, a.samples))
    }),
    (
        "McNemar p",
        "mcnemar_p",
        "Probability of a difference in accuracy this large if the precision were as good as the reference",
        |s| {
            let p = s.precision.accuracy.as_ref()?.mcnemar_p?;
            Some(Cell::number(p, if p < 0.001 { "<\u{a0}0.001".to_owned() } else { format!("{p:.3}") }))
        },
    ),
    (
        "Top-1 agr.",
        "agreement_top1",
        "Share of samples with the same first answer as the reference, with its 95 % interval",
        |s| {
            let a = s.precision.agreement.as_ref()?;
            Some(share(a.top1, a.samples).note(format::percent_interval(a.top1_interval, a.samples)))
        },
    ),
    (
        "Top-5 overlap",
        "agreement_top5_overlap",
        "Mean share of the first five answers that the reference has as well",
        |s| {
            let a = s.precision.agreement.as_ref()?;
            Some(share(a.top5_overlap, a.samples))
        },
    ),
    (
        "mAP 50-95",
        "detection_map50_95",
        "COCO's mean average precision over IoU 0.5 to 0.95 on labelled boxes, with its 95 % interval",
        |s| {
            let accuracy = s.accuracy_of_boxes()?;
            let cell = share(accuracy.figures.map50_95?, 0);
            let interval = accuracy.map50_95_interval;
            Some(interval.map_or(cell.clone(), |interval| cell.note(format::percent_interval(interval, 0))))
        },
    ),
    ("mAP 50", "detection_map50", "The same at IoU 0.5", |s| Some(share(s.accuracy_of_boxes()?.figures.map50?, 0))),
    (
        "Boxes found",
        "detection_recall",
        "Share of the reference's boxes that this precision has too, at IoU 0.5, with its 95 % interval",
        |s| {
            let a = s.agreement_of_boxes()?;
            let cell = share(a.recall, 0);
            Some(a.recall_interval.map_or(cell.clone(), |interval| cell.note(format::percent_interval(interval, 0))))
        },
    ),
    (
        "Boxes right",
        "detection_precision",
        "Share of this precision's boxes that the reference has too, at IoU 0.5, with its 95 % interval",
        |s| {
            let a = s.agreement_of_boxes()?;
            let cell = share(a.precision, 0);
            Some(a.precision_interval.map_or(cell.clone(), |interval| cell.note(format::percent_interval(interval, 0))))
        },
    ),
    ("Box IoU", "detection_mean_iou", "Mean overlap of the boxes that the reference has too", |s| {
        Some(share(s.agreement_of_boxes()?.mean_iou?, 0))
    }),
    ("Pixel acc.", "segmentation_pixel_accuracy", "Share of pixels that match the label masks", |s| {
        Some(share(s.precision.segmentation.as_ref()?.pixel_accuracy?, 0))
    }),
    (
        "Label IoU",
        "segmentation_label_mean_iou",
        "Mean over classes of intersection over union with the label masks",
        |s| Some(share(s.precision.segmentation.as_ref()?.label_mean_iou?, 0)),
    ),
    ("Pixel agr.", "segmentation_pixel_agreement", "Share of pixels with the same class as the reference", |s| {
        Some(share(s.map_against_reference()?.pixel_agreement, 0))
    }),
    ("Mean IoU", "segmentation_mean_iou", "Mean over classes of intersection over union with the reference", |s| {
        Some(share(s.map_against_reference()?.mean_iou, 0))
    }),
    ("SQNR", "sqnr_db", "Least signal-to-quantization-noise ratio over the outputs and their parts", |s| {
        let interval = s.quality_interval(Quality::Sqnr).map(|interval| figures(Metric::SqnrDb, interval));
        let notes = OutputMetrics::worst_part(&s.precision.outputs).into_iter().chain(interval);
        Some(decibels(s.sqnr_db()?).note(notes.collect::<Vec<_>>().join(" · ")))
    }),
    ("Latency", "latency_median_ms", "Median time of one call; emulated precisions have none", |s| {
        let latency = s.precision.latency_ms.as_ref()?;
        let figures = &latency.figures;
        if latency.timing == Timing::Emulated {
            return Some(Cell::text("emulated").note("no speed figure").tone(Tone::Dim));
        }
        let cell = Cell::number(figures.median, format::milliseconds(figures.median));
        Some(cell.note(format!("p99 {}", format::milliseconds(figures.p99))))
    }),
    ("Samples/s", "throughput_median_fps", "Median samples a second", |s| {
        s.speed()?;
        let fps = s.precision.throughput_fps.as_ref()?.median;
        Some(Cell::number(fps, format::significant(fps, 3)))
    }),
    (
        "Speed-up",
        "speedup",
        "How many times faster than the reference on the same device, with its 95 % interval",
        |s| Some(speedup_cell(&s.speedup()?.figures)),
    ),
    ("Latency there", "measured_latency_ms", "Median time of one call on another machine, which the note names", |s| {
        let there = s.there()?;
        let median = there.latency_ms.as_ref()?.figures.median;
        Some(Cell::number(median, format::milliseconds(median)).note(&there.machine.name))
    }),
    (
        "Speed-up there",
        "measured_speedup",
        "How many times faster than the reference on that machine, with an interval from those of both medians",
        |s| Some(speedup_cell(&s.there()?.speedup.as_ref()?.figures)),
    ),
    ("Size", "artifact_bytes", "Size of the file to deploy", |s| {
        let bytes = s.bytes()?;
        Some(Cell::number(bytes as f64, format::bytes(bytes)))
    }),
    (
        "Nodes",
        "quantized_nodes",
        "Nodes that run in this precision, and of how many where the others stay in FP32",
        |s| {
            let halved = s.precision.halved.as_ref().filter(|halved| halved.precision.name() == s.precision.precision);
            if let (None, Some(halved)) = (s.precision.quantized_nodes, halved) {
                let tone = if halved.nodes == 0 { Tone::Bad } else { Tone::Plain };
                let cell = Cell::number(halved.nodes as f64, halved.nodes.to_string()).tone(tone);
                return Some(cell.note(format!("of {}", halved.all())));
            }
            let nodes = s.precision.quantized_nodes?;
            Some(Cell::number(nodes as f64, nodes.to_string()))
        },
    ),
    ("Changed", "flips", "Samples whose first answer changed", |s| {
        s.precision.agreement.as_ref()?;
        let flips = s.precision.flips_total;
        Some(Cell::number(flips as f64, format::count(flips as u64)))
    }),
];

/// Name, key and value of what a detector's boxes have besides: in CSV, and in a table of their own in Markdown.
type OfBoxes = (&'static str, &'static str, fn(Subject<'_>) -> Option<f64>);

const OF_BOXES: [OfBoxes; 13] = [
    ("mAP 75", "detection_map75", |s| s.accuracy_of_boxes()?.figures.map75),
    ("mAP small", "detection_map_small", |s| s.accuracy_of_boxes()?.figures.map_small),
    ("mAP medium", "detection_map_medium", |s| s.accuracy_of_boxes()?.figures.map_medium),
    ("mAP large", "detection_map_large", |s| s.accuracy_of_boxes()?.figures.map_large),
    ("mAR 1", "detection_mar_1", |s| s.accuracy_of_boxes()?.figures.mar_1),
    ("mAR 10", "detection_mar_10", |s| s.accuracy_of_boxes()?.figures.mar_10),
    ("mAR 100", "detection_mar_100", |s| s.accuracy_of_boxes()?.figures.mar_100),
    ("mAR small", "detection_mar_small", |s| s.accuracy_of_boxes()?.figures.mar_small),
    ("mAR medium", "detection_mar_medium", |s| s.accuracy_of_boxes()?.figures.mar_medium),
    ("mAR large", "detection_mar_large", |s| s.accuracy_of_boxes()?.figures.mar_large),
    ("Score shift", "detection_score_shift", |s| s.agreement_of_boxes()?.score_shift),
    ("Lost", "detection_lost", |s| Some(s.agreement_of_boxes()?.lost as f64)),
    ("Gained", "detection_gained", |s| Some(s.agreement_of_boxes()?.gained as f64)),
];

/// What else a detector's boxes have, by precision; without rows for other models.
pub(super) fn boxes(report: &Report) -> Table {
    let mut columns = vec![Column::text("Precision", "precision")];
    columns.extend(OF_BOXES.iter().map(|(name, key, _)| Column::number(name, key, "")));
    let row = |subject: Subject<'_>| {
        let values = OF_BOXES.map(|(.., value)| value(subject));
        let cell = |value: Option<f64>| {
            value.map_or_else(Cell::missing, |value| Cell::number(value, format::significant(value, 4)))
        };
        let name = Cell::text(&subject.precision.precision).note(&subject.precision.backend);
        let known = values.iter().any(Option::is_some);
        known.then(|| std::iter::once(name).chain(values.map(cell)).collect())
    };
    let mut table = Table { columns, rows: Subject::all(report).filter_map(row).collect() };
    table.drop_empty_columns();
    table
}

/// A speed-up with its interval; good or bad where the interval leaves 1 out.
pub(super) fn speedup_cell(&SpeedUp { ratio, interval: [low, high] }: &SpeedUp) -> Cell {
    let tone = if low > 1.0 {
        Tone::Good
    } else if high < 1.0 {
        Tone::Bad
    } else {
        Tone::Plain
    };
    Cell::number(ratio, format!("{ratio:.2}×")).note(format!("{low:.2}…{high:.2}")).tone(tone)
}

/// A share as a percentage.
pub(super) fn share(value: f64, samples: usize) -> Cell {
    Cell::number(value, format::percent(value, samples))
}

/// Decibels, infinite where nothing differs.
pub(super) fn decibels(db: f64) -> Cell {
    if db == f64::INFINITY { Cell::number(db, "∞").note("identical") } else { Cell::number(db, format::decibels(db)) }
}

/// A table of subjects: `first` columns, whose cells come with each subject, then every figure that any of them has.
pub(super) fn table<'a>(first: Vec<Column>, subjects: impl IntoIterator<Item = (Vec<Cell>, Subject<'a>)>) -> Table {
    let mut columns = first;
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    let mut of_boxes = Vec::new();
    for (cells, subject) in subjects {
        rows.push(cells);
        of_boxes.push(OF_BOXES.map(|(.., value)| value(subject)));
        figures.push(FIGURES.map(|(_, _, _, figure)| figure(subject)));
    }
    for (i, (name, key, hint, _)) in FIGURES.into_iter().enumerate() {
        if figures.iter().any(|row| row[i].is_some()) {
            columns.push(Column::number(name, key, hint));
            for (row, figures) in rows.iter_mut().zip(&mut figures) {
                row.push(figures[i].take().unwrap_or_else(Cell::missing));
            }
        }
    }
    for (i, (name, key, _)) in OF_BOXES.into_iter().enumerate() {
        if of_boxes.iter().any(|row| row[i].is_some()) {
            columns.push(Column::hidden(name, key));
            for (row, values) in rows.iter_mut().zip(&of_boxes) {
                row.push(values[i].map_or_else(Cell::missing, |value| Cell::number(value, value.to_string())));
            }
        }
    }
    Table { columns, rows }
}

/// `int8 · tensorrt`.
pub(super) fn title(precision: &Precision) -> String {
    format!("{} · {}", precision.precision, precision.backend)
}

/// The table of a report's precisions.
pub(super) fn precisions(report: &Report) -> Table {
    let first = vec![
        Column::text("Precision", "precision"),
        Column::hidden("Backend", "backend"),
        Column::text("Result", "result"),
    ];
    let rows = Subject::all(report).map(|subject| {
        let p = subject.precision;
        (vec![Cell::text(&p.precision).note(&p.backend), Cell::text(&p.backend), outcome(subject)], subject)
    });
    table(first, rows)
}

/// Passed, failed, did not run, or the reference itself.
pub(super) fn outcome(subject: Subject<'_>) -> Cell {
    let Subject { report, precision } = subject;
    if precision.error.is_some() {
        return Cell::text("did not run").tone(Tone::Bad);
    }
    if precision.reference {
        return Cell::text("reference").tone(Tone::Dim);
    }
    let mut gates = report
        .verdict
        .gates
        .iter()
        .filter(|gate| gate.precision == precision.precision && gate.backend == precision.backend)
        .peekable();
    if gates.peek().is_none() {
        Cell::text("no gate").tone(Tone::Dim)
    } else if gates.all(|gate| gate.result.passed) {
        Cell::text("passed").tone(Tone::Good)
    } else {
        Cell::text("failed").tone(Tone::Bad)
    }
}
