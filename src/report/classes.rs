//! Figures class by class: precision of boxes, right answers, confusions, overlap of maps.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Precision, Report,
    metrics::{share, title},
    table::{Cell, Column, Table, Tone},
};
use crate::compare::{ClassAccuracy, Confusion, average_precision::ClassPrecision};

/// Rows of classes and of confusions on a page; `report.json` has all.
const MAX_CLASSES: usize = 100;

/// Average precision class by class, of detectors with labelled boxes.
pub(super) fn class_precision(report: &Report) -> Table {
    let found = report.precisions.iter();
    let found = found.filter_map(|p| Some((title(p), &p.detection.as_ref()?.accuracy.as_ref()?.per_class)));
    let measures: Vec<(String, BTreeMap<u32, &ClassPrecision>)> =
        found.map(|(name, classes)| (name, classes.iter().map(|class| (class.class, class)).collect())).collect();
    let mut columns = vec![Column::text("Class", "class"), Column::number("Labels", "labels", "Labelled boxes")];
    columns
        .extend(measures.iter().map(|(name, _)| Column::number(name, name, "Average precision over IoU 0.5 to 0.95")));
    let classes: BTreeMap<u32, &ClassPrecision> =
        measures.iter().flat_map(|(_, classes)| classes.iter().map(|(&class, &found)| (class, found))).collect();
    let row = |(class, first): (&u32, &&ClassPrecision)| {
        let name = first.name.clone().unwrap_or_else(|| class.to_string());
        let cell = |(_, classes): &(_, BTreeMap<u32, &ClassPrecision>)| {
            classes.get(class).map_or_else(Cell::missing, |found| share(found.map50_95, 0))
        };
        let labels = Cell::number(first.labels as f64, first.labels.to_string());
        [Cell::text(name), labels].into_iter().chain(measures.iter().map(cell)).collect()
    };
    Table { rows: classes.iter().map(row).collect(), columns }
}

/// Right answers by class, those first that lost most of them in some precision, and of these the least known; and how many
/// classes there are.
pub(super) fn class_accuracy(report: &Report) -> (Table, usize) {
    let found = report.precisions.iter().filter_map(|p| Some((title(p), &p.classes.as_ref()?.accuracy)));
    let measures: Vec<(String, BTreeMap<u32, &ClassAccuracy>)> =
        found.map(|(name, classes)| (name, classes.iter().map(|class| (class.class, class)).collect())).collect();
    let mut columns = vec![
        Column::text("Class", "class"),
        Column::number("Samples", "samples", "Evaluated samples with that label"),
        Column::number("Reference", "reference_right", "Share of them that the reference answers right"),
    ];
    columns.extend(measures.iter().map(|(name, _)| {
        Column::number(
            name,
            name,
            "Share of them that this precision answers right, and how many more or fewer than the reference",
        )
    }));
    let change = |class: &ClassAccuracy| class.right as i64 - class.reference_right as i64;
    let part = |right: u64, class: &ClassAccuracy| right as f64 / class.samples.max(1) as f64;
    let mut classes: BTreeMap<u32, (i64, f64, &ClassAccuracy)> = BTreeMap::new();
    for class in measures.iter().flat_map(|(_, classes)| classes.values()) {
        let (lost, least, _) = classes.entry(class.class).or_insert((0, 1.0, class));
        (*lost, *least) = ((*lost).min(change(class)), least.min(part(class.right, class)));
    }
    let mut order: Vec<_> = classes.into_values().collect();
    order.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.class.cmp(&b.2.class)));
    let all = order.len();
    let row = |(.., any): (i64, f64, &ClassAccuracy)| {
        let own = |(_, classes): &(String, BTreeMap<u32, &ClassAccuracy>)| {
            let Some(class) = classes.get(&any.class) else { return Cell::missing() };
            let (note, tone) = match change(class) {
                0 => (String::new(), Tone::Plain),
                change => (format!("{change:+}"), if change < 0 { Tone::Bad } else { Tone::Good }),
            };
            share(part(class.right, class), 0).note(note).tone(tone)
        };
        let samples = Cell::number(any.samples as f64, any.samples.to_string());
        let name = Cell::text(class_name(report, any.class));
        let reference = share(part(any.reference_right, any), 0);
        [name, samples, reference].into_iter().chain(measures.iter().map(own)).collect()
    };
    (Table { columns, rows: order.into_iter().take(MAX_CLASSES).map(row).collect() }, all)
}

/// Wrong answers that became more frequent.
pub(super) fn confusions(report: &Report) -> Table {
    let columns = vec![
        Column::text("Precision", "precision"),
        Column::text("Label", "label"),
        Column::text("Answered", "answer"),
        Column::number("Reference", "reference", "How often the reference answers so"),
        Column::number("Now", "target", "How often this precision does"),
    ];
    let row = |precision: &Precision, confusion: &Confusion| {
        let count = |count: u64| Cell::number(count as f64, count.to_string());
        vec![
            Cell::text(title(precision)),
            Cell::text(class_name(report, confusion.class)),
            Cell::text(class_name(report, confusion.answer)),
            count(confusion.reference),
            count(confusion.target),
        ]
    };
    let rows = report.precisions.iter().filter_map(|precision| Some((precision, precision.classes.as_ref()?)));
    let rows = rows.flat_map(|(precision, classes)| classes.grown.iter().map(move |c| row(precision, c)));
    Table { columns, rows: rows.take(MAX_CLASSES).collect() }
}

fn class_name(report: &Report, class: u32) -> String {
    let names = report.dataset.labels.as_ref().map(|labels| &labels.names);
    names.and_then(|names| names.get(&class)).cloned().unwrap_or_else(|| format!("class {class}"))
}

/// Intersection over union class by class, of models whose output is a map: with the reference, and with label masks.
pub(super) fn class_iou(report: &Report) -> Table {
    let mut measures: Vec<(String, &BTreeMap<u32, f64>)> = Vec::new();
    for (p, map) in report.precisions.iter().filter_map(|p| Some((p, p.segmentation.as_ref()?))) {
        if !p.reference {
            measures.push((title(p), &map.class_iou));
        }
        if !map.label_class_iou.is_empty() {
            measures.push((format!("{}, labels", title(p)), &map.label_class_iou));
        }
    }
    let mut columns = vec![Column::text("Class", "class")];
    columns.extend(measures.iter().map(|(name, _)| Column::number(name, name, "Intersection over union")));
    let names = report.dataset.labels.as_ref().map(|labels| &labels.names);
    let classes: BTreeSet<u32> = measures.iter().flat_map(|(_, iou)| iou.keys().copied()).collect();
    let row = |class: u32| {
        let name = names.and_then(|names| names.get(&class)).map_or_else(|| class.to_string(), Clone::clone);
        let cell = |(_, iou): &(_, &BTreeMap<u32, f64>)| iou.get(&class).map_or_else(Cell::missing, |&v| share(v, 0));
        [Cell::text(name)].into_iter().chain(measures.iter().map(cell)).collect()
    };
    Table { rows: classes.into_iter().map(row).collect(), columns }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compare::Segmentation,
        report::example::{Size, report},
    };

    #[test]
    fn every_class_has_its_row_and_the_worst_come_first() {
        let mut report = report(&Size { layers: 0, flips: 0 });
        let class = |class, right, reference_right| ClassAccuracy { class, samples: 4, reference_right, right };
        let classes = |accuracy: &[ClassAccuracy]| {
            Some(crate::compare::Classes { accuracy: accuracy.to_vec(), grown: Vec::new() })
        };
        report.dataset.labels = None;
        report.precisions.iter_mut().for_each(|row| row.classes = None);
        report.precisions[3].classes = classes(&[class(0, 4, 4), class(1, 1, 1), class(2, 3, 2), class(3, 1, 3)]);
        report.precisions[4].classes = classes(&[class(0, 3, 4), class(1, 1, 1), class(2, 2, 2), class(3, 3, 3)]);
        let (table, all) = class_accuracy(&report);
        let expected = "class,samples,reference_right,int8 · onnxruntime-cpu,int8 · tensorrt\n\
                        class 3,4,0.75,0.25,0.75\nclass 0,4,1,1,0.75\nclass 1,4,0.25,0.25,0.25\nclass 2,4,0.5,0.75,0.5\n";
        assert_eq!((table.csv().unwrap().as_str(), all), (expected, 4));
        assert_eq!((&*table.rows[0][3].note, table.rows[0][3].tone), ("-2", Tone::Bad));
        assert_eq!((&*table.rows[3][3].note, table.rows[3][3].tone), ("+1", Tone::Good));
    }

    #[test]
    fn maps_have_their_overlap_with_the_reference_and_with_labels() {
        let mut report = report(&Size { layers: 0, flips: 0 });
        let map = Segmentation {
            pixel_agreement: 0.8,
            mean_iou: 0.75,
            class_iou: BTreeMap::from([(0, 0.5), (7, 1.0)]),
            pixel_accuracy: Some(0.7),
            label_mean_iou: Some(0.25),
            label_class_iou: BTreeMap::from([(7, 0.25)]),
            standard_errors: None,
        };
        report.precisions[0].segmentation = Some(map.clone());
        report.precisions[4].segmentation = Some(map);
        report.dataset.labels = None;
        let expected = "class,\"fp32 · onnxruntime-cpu, labels\",int8 · tensorrt,\"int8 · tensorrt, labels\"\n0,,0.5,\n7,0.25,1,0.25\n";
        assert_eq!(class_iou(&report).csv().unwrap(), expected);
    }
}
