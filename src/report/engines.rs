//! What TensorRT made of each model: in which types its layers multiply, and which ONNX nodes each holds.

use super::{
    EngineInside, Report,
    elsewhere::called,
    format,
    metrics::title,
    table::{Cell, Column, Table, Tone},
};
use crate::backend::tensorrt::{EngineLayer, EngineTensor, LayerKind, NumberType};

/// Layers of an engine on a page; `report.json` has all.
pub(super) const MAX_LAYERS: usize = 200;

/// Types that layers multiply in, the narrow ones first.
const TYPES: [NumberType; 7] = [
    NumberType::Int8,
    NumberType::Fp8,
    NumberType::Fp16,
    NumberType::Bf16,
    NumberType::Tf32,
    NumberType::Fp32,
    NumberType::Unknown,
];

/// A row for every engine whose layers are known; without any, a table without rows.
pub(super) fn summaries(report: &Report) -> Table {
    let mut columns = vec![
        Column::text("Engine", "engine"),
        Column::number("Layers", "layers", "Layers that run on the GPU"),
        Column::number("Multiply", "compute_layers", "Convolutions and matrix products, with what is fused into them"),
    ];
    let heading = |number_type: NumberType| {
        let hint = format!("Layers that multiply in {}, and their share", number_type.name());
        Column::number(number_type.name(), &format!("compute_{}", number_type.name().to_lowercase()), &hint)
    };
    columns.extend(TYPES.map(heading));
    columns.extend([
        Column::number("Write wider", "wide_outputs", "Layers that multiply in 8 bits and write a wider type"),
        Column::number("Only move", "reformat_layers", "Layers that only move values into another layout or type"),
        Column::number("Q/DQ alone", "unfused_qdq", "Layers that only quantize or dequantize"),
    ]);
    let rows = engines(report).map(|(name, inside)| row(name, inside)).collect();
    let mut table = Table { columns, rows };
    table.drop_empty_columns();
    table
}

fn row(name: String, inside: &EngineInside) -> Vec<Cell> {
    let summary = &inside.summary;
    let count = |count: usize| Cell::number(count as f64, count.to_string());
    let of_type = |number_type| match summary.compute_by_type.get(&number_type) {
        Some(&layers) => count(layers).note(format::percent(summary.share(number_type), 0)),
        None => Cell::missing(),
    };
    let some = |number: usize| if number == 0 { Cell::missing() } else { count(number) };
    let mut row = vec![Cell::text(name), count(summary.layers), count(summary.compute_layers)];
    row.extend(TYPES.map(of_type));
    row.extend([some(summary.wide_outputs), some(summary.reformat_layers), some(summary.unfused_qdq.len())]);
    row
}

fn engines(report: &Report) -> impl Iterator<Item = (String, &EngineInside)> {
    let own = report.precisions.iter().filter_map(|precision| Some((title(precision), precision.engine.as_ref()?)));
    let elsewhere = report.precisions.iter().flat_map(|precision| {
        let there = precision.measured_elsewhere.iter();
        there.filter_map(|there| Some((called(precision, there), there.engine.as_ref()?)))
    });
    own.chain(elsewhere)
}

/// The layers of one engine.
pub(super) struct Layers {
    pub title: String,
    pub table: Table,
    /// Layers in the report.
    pub total: usize,
}

/// The layers of every engine.
pub(super) fn layers(report: &Report) -> Vec<Layers> {
    let columns = || {
        vec![
            Column::text("Layer", "layer"),
            Column::text("Type", "type"),
            Column::text("Does", "does"),
            Column::text("Reads", "reads"),
            Column::text("Writes", "writes"),
            Column::text("ONNX nodes", "nodes"),
        ]
    };
    engines(report)
        .map(|(title, inside)| {
            let rows = inside.layers.iter().take(MAX_LAYERS).map(layer).collect();
            Layers { title, table: Table { columns: columns(), rows }, total: inside.layers.len() }
        })
        .collect()
}

fn layer(layer: &EngineLayer) -> Vec<Cell> {
    let does = match layer.kind {
        LayerKind::Compute if layer.precision.is_8_bit() => {
            Cell::text(format!("multiplies in {}", layer.precision.name())).tone(Tone::Good)
        }
        LayerKind::Compute => Cell::text(format!("multiplies in {}", layer.precision.name())),
        LayerKind::Reformat => Cell::text("moves").tone(Tone::Dim),
        LayerKind::QuantizeDequantize => Cell::text("Q/DQ alone").tone(Tone::Bad),
        LayerKind::Other => Cell::text("other").tone(Tone::Dim),
    };
    let types = |tensors: &[EngineTensor]| {
        let names: Vec<&str> = tensors.iter().map(|tensor| tensor.number_type.name()).collect();
        Cell::text(names.join(", "))
    };
    vec![
        Cell::text(&layer.name),
        Cell::text(&layer.layer_type),
        does,
        types(&layer.inputs),
        types(&layer.outputs),
        Cell::text(layer.nodes.join(", ")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example::{Size, report};

    #[test]
    fn engines_are_told_by_the_types_that_they_multiply_in() {
        let report = report(&Size { layers: 8, flips: 0 });
        let csv = summaries(&report).csv().unwrap();
        let expected = "engine,layers,compute_layers,compute_int8,compute_fp16,wide_outputs,reformat_layers,unfused_qdq\n\
            fp16 · tensorrt,9,8,,8,,1,\n\
            int8 · tensorrt,10,8,6,2,6,1,1\n";
        assert_eq!(csv, expected);
        let layers = layers(&report);
        assert_eq!((layers.len(), layers[1].total, layers[1].table.rows.len()), (2, 10, 10));
        assert_eq!(layers[1].table.rows[0][2].text, "Q/DQ alone");
        assert_eq!(layers[1].table.rows[2][2].text, "multiplies in INT8");
    }
}
