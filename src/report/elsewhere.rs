//! What was measured on other machines: a row for each precision and machine, with where every figure comes from.

use std::collections::BTreeMap;

use super::{
    Elsewhere, EngineOutputs, Precision, Report, Speedup, TiedBy, format,
    metrics::{decibels, speedup_cell},
    table::{Cell, Column, Table, Tone},
};
use crate::{backend::tensorrt::NumberType, compare::OutputMetrics};

/// SQNR of an engine against its own model below which its outputs are more likely those of other inputs than of an engine that
/// is so wrong.
pub(crate) const UNLIKELY_DB: f64 = 10.0;

/// Layers of a profile on a page; `report.json` has all.
const MAX_LAYERS: usize = 200;

/// Every precision with every machine that measured it.
fn all(report: &Report) -> impl Iterator<Item = (&Precision, &Elsewhere)> {
    report.precisions.iter().flat_map(|row| row.measured_elsewhere.iter().map(move |there| (row, there)))
}

/// The precision, called by the machine that measured it.
pub(super) fn called(row: &Precision, there: &Elsewhere) -> String {
    format!("{} · {}", row.precision, there.machine.name)
}

/// A row for each precision and machine; without any, a table without rows.
pub(super) fn table(report: &Report) -> Table {
    let columns = vec![
        Column::text("Precision", "precision"),
        Column::text("Measured on", "machine"),
        Column::number("Latency", "measured_latency_ms", "Median time of one call there, transfers included"),
        Column::number("Samples/s", "measured_throughput_fps", "Median samples a second there"),
        Column::number(
            "Speed-up",
            "measured_speedup",
            "How many times faster than the reference there, with its interval",
        ),
        Column::number(
            "Multiplies in 8 bits",
            "measured_8_bit",
            "Share of the multiplying layers that do so in INT8 or FP8",
        ),
        Column::number(
            "Model",
            "model_sqnr_db",
            "SQNR of this model against the float model, both in ONNX Runtime: what quantization costs",
        ),
        Column::number(
            "Engine",
            "engine_sqnr_db",
            "SQNR of the engine against this model in ONNX Runtime: what the engine adds",
        ),
        Column::number("Both", "together_sqnr_db", "SQNR of the engine against the float model"),
        Column::text("Files", "files"),
    ];
    let rows = all(report).map(|(row, there)| cells(row, there)).collect();
    let mut table = Table { columns, rows };
    table.drop_empty_columns();
    table
}

fn cells(row: &Precision, there: &Elsewhere) -> Vec<Cell> {
    let machine = &there.machine;
    let about = [machine.tensorrt.as_ref().map(|version| tensorrt(version)), machine.date.clone()];
    let about: Vec<String> = about.into_iter().flatten().collect();
    let latency = there.latency_ms.as_ref().map(|latency| {
        let figures = &latency.figures;
        let note = format!("p99 {} · batch {}", format::milliseconds(figures.p99), figures.batch);
        Cell::number(figures.median, format::milliseconds(figures.median)).note(note)
    });
    let narrow = there.engine.as_ref().filter(|engine| engine.summary.compute_layers > 0).map(|engine| {
        let share = engine.summary.share(NumberType::Int8) + engine.summary.share(NumberType::Fp8);
        let asked = matches!(row.precision.as_str(), "int8" | "fp8");
        let tone = if !asked {
            Tone::Plain
        } else if share < 0.5 {
            Tone::Bad
        } else {
            Tone::Good
        };
        Cell::number(share, format::percent(share, 0)).tone(tone)
    });
    let error = |of: fn(&EngineOutputs) -> &Vec<OutputMetrics>| {
        let outputs = there.outputs.as_ref()?;
        OutputMetrics::worst_sqnr_db(of(outputs)).map(decibels)
    };
    // No difference shows NaN.
    let of_engine = |of: fn(&EngineOutputs) -> &Vec<OutputMetrics>| {
        let differing = there.outputs.as_ref().map_or(0, |outputs| outputs.non_finite);
        let told = || Cell::text("not finite").note(format!("NaN or infinite in {differing} values")).tone(Tone::Bad);
        if differing > 0 { Some(told()) } else { error(of) }
    };
    let speed = there.throughput_fps.as_ref().map(|fps| Cell::number(fps.median, format::significant(fps.median, 3)));
    let figures = [
        latency,
        speed,
        there.speedup.as_ref().map(|speedup| speedup_cell(&speedup.figures)),
        narrow,
        error(|outputs| &outputs.model).filter(|_| !row.reference),
        of_engine(|outputs| &outputs.engine),
        of_engine(|outputs| &outputs.together),
    ];
    let mut cells = vec![Cell::text(&row.precision), Cell::text(&machine.name).note(about.join(" · "))];
    cells.extend(figures.map(|cell| cell.unwrap_or_else(Cell::missing)));
    let tied = match there.tied_by {
        TiedBy::Hash => "model checked by its SHA-256",
        TiedBy::Shapes => "model and precision checked by names, types and shapes",
        TiedBy::Word => "",
    };
    let word = (!there.on_word.is_empty()).then(|| {
        format!("on the word of who gave it, for it names no model or precision: {}", there.on_word.join(", "))
    });
    let notes: Vec<String> =
        [tied.to_owned(), word.unwrap_or_default()].into_iter().filter(|note| !note.is_empty()).collect();
    cells.push(Cell::text(there.files.join(", ")).note(notes.join("; ")));
    cells
}

/// The library by its name.
fn tensorrt(version: &str) -> String {
    if version.starts_with("TensorRT") { version.to_owned() } else { format!("TensorRT {version}") }
}

/// What a figure's reader must know of where it comes from: no TensorRT at all, and no gain.
fn warnings(report: &Report) -> Vec<String> {
    let stands_in = |(row, there): (&Precision, &Elsewhere)| {
        let version = there.machine.tensorrt.as_deref().filter(|version| version.ends_with("(stand-in)"))?;
        let ran = tensorrt(version);
        Some((ran, called(row, there)))
    };
    let mut stood_in: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (ran, what) in all(report).filter_map(stands_in) {
        stood_in.entry(ran).or_default().push(what);
    }
    let stood_in = stood_in.into_iter().map(|(ran, what)| {
        format!("{ran} ran {}; it only stands in for TensorRT: no time of it says anything of a GPU.", what.join(", "))
    });
    let slower = |(row, there): (&Precision, &Elsewhere)| {
        let Speedup { against, figures } = there.speedup.as_ref()?;
        (figures.interval[1] < 1.0).then(|| {
            let [low, high] = figures.interval.map(|ratio| format::significant(ratio, 3));
            let ratio = format::significant(figures.ratio, 3);
            format!("{} is slower than {against}: {ratio} times as fast ({low}…{high}).", row.precision)
        })
    };
    stood_in.chain(all(report).filter_map(slower)).collect()
}

/// What dominates where both errors are known: quantization, or the engine.
pub(super) fn sentences(report: &Report) -> Vec<String> {
    let worst = |outputs: &[OutputMetrics]| OutputMetrics::worst_sqnr_db(outputs);
    let sentence = |(row, there): (&Precision, &Elsewhere)| {
        let outputs = there.outputs.as_ref().filter(|outputs| !row.reference || outputs.non_finite > 0)?;
        let (model, engine) = (worst(&outputs.model)?, worst(&outputs.engine)?);
        let shown = |db: f64| if db.is_finite() { format::decibels(db) } else { "no error".to_owned() };
        if outputs.non_finite > 0 {
            return Some(format!(
                "{}: on {} given samples the engine gives NaN or infinities in {} places where the same model in ONNX Runtime \
                 gives others: what is lost is lost in the engine, not by quantization.",
                called(row, there),
                outputs.samples,
                outputs.non_finite
            ));
        }
        let verdict = if engine < UNLIKELY_DB {
            "the engine computes something else, or its outputs are of other inputs"
        } else if engine > model + 6.0 {
            "what is lost is lost by quantization, not by the engine"
        } else if model > engine + 6.0 {
            "what is lost is lost in the engine, not by quantization"
        } else {
            "both lose about as much"
        };
        Some(format!(
            "{}: the model itself has {} against float, the engine {} against the model, on {} given samples: {verdict}.",
            called(row, there),
            shown(model),
            shown(engine),
            outputs.samples
        ))
    };
    warnings(report).into_iter().chain(all(report).filter_map(sentence)).collect()
}

/// The slowest layers of an engine.
pub(super) struct Profile {
    pub title: String,
    pub table: Table,
    /// Layers in the report.
    pub total: usize,
}

/// The layers of every profile, the slowest first.
pub(super) fn profiles(report: &Report) -> Vec<Profile> {
    let profiled = all(report).filter(|(_, there)| !there.layer_times.is_empty());
    profiled
        .map(|(row, there)| {
            let mut order: Vec<_> = there.layer_times.iter().collect();
            order.sort_by(|a, b| b.mean_ms.total_cmp(&a.mean_ms));
            let line = |time: &&super::EngineLayerTime| {
                let layer =
                    there.engine.as_ref().and_then(|engine| engine.layers.iter().find(|l| l.name == time.layer));
                let number_type = layer.map(|layer| layer.precision).filter(|kind| *kind != NumberType::Unknown);
                vec![
                    Cell::text(&time.layer),
                    Cell::number(time.mean_ms, format::milliseconds(time.mean_ms)),
                    Cell::number(time.share, format::percent(time.share, 0)),
                    number_type.map_or_else(Cell::missing, |kind| Cell::text(kind.name())),
                    Cell::text(layer.map(|layer| layer.nodes.join(", ")).unwrap_or_default()),
                ]
            };
            let mut table = Table {
                columns: vec![
                    Column::text("Layer", "layer"),
                    Column::number("Mean", "mean_ms", "Mean time of a call"),
                    Column::number("Share", "share", "Share of the time of all layers"),
                    Column::text("Multiplies in", "precision"),
                    Column::text("ONNX nodes", "nodes"),
                ],
                rows: order.iter().take(MAX_LAYERS).map(line).collect(),
            };
            table.drop_empty_columns();
            Profile { title: called(row, there), table, total: there.layer_times.len() }
        })
        .collect()
}
