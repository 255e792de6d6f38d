//! `layers.csv`: one line for each layer, in the order of execution, with names as they are in the model.

use std::io::Write;

use super::Report;
use crate::calibrate::Method;

/// Columns of the time of the engine's layer that the node became part of.
const TIMES: [&str; 3] = ["engine_layer_ms", "engine_layer", "measured_on"];

/// A text that a spreadsheet shows and never computes, and a terminal shows and never obeys: a cell that begins a formula
/// gets an apostrophe in front, and control characters other than ends of lines, which quotes hold, are written as escapes.
pub(super) fn text_field(text: &str) -> String {
    let drives = |c: char| c.is_control() && c != '\n';
    let shown = text.chars().flat_map(|c| {
        let escaped = drives(c).then(|| c.escape_default());
        escaped.into_iter().flatten().chain((!drives(c)).then_some(c))
    });
    let begins = text.trim_start().starts_with(['=', '+', '-', '@']);
    begins.then_some('\'').into_iter().chain(shown).collect()
}

/// Writes the layers of a report; what was not measured is an empty field.
pub fn layers_csv(report: &Report, to: impl Write) -> csv::Result<()> {
    let methods = [
        ("minmax", Method::MinMax),
        ("percentile", Method::Percentile),
        ("entropy", Method::Entropy),
        ("mse", Method::Mse),
    ];
    let mut writer = csv::Writer::from_writer(to);
    let fixed = [
        "node",
        "op_type",
        "tensor",
        "precision",
        "graphwise_sqnr_db",
        "layerwise_sqnr_db",
        "cosine",
        "weight_sqnr_db",
        "min",
        "max",
        "amax",
        "offset",
        "scale",
        "clipped",
    ];
    let thresholds = methods.map(|(name, _)| format!("amax_{name}"));
    writer.write_record(
        fixed
            .map(str::to_owned)
            .into_iter()
            .chain(thresholds)
            .chain(TIMES.map(str::to_owned))
            .chain(["operators", "random_data"].map(str::to_owned)),
    )?;
    let double = |value: Option<f64>| value.map_or_else(String::new, |v| v.to_string());
    let single = |value: Option<f32>| value.map_or_else(String::new, |v| v.to_string());
    for layer in &report.layers {
        let names = [&layer.node, &layer.op_type, &layer.tensor, &layer.precision].map(|name| text_field(name));
        let errors = [layer.graphwise_sqnr_db, layer.layerwise_sqnr_db, layer.cosine, layer.weight_sqnr_db].map(double);
        let range = [layer.min, layer.max, layer.amax, layer.offset, layer.scale].map(single);
        let thresholds = methods.map(|(_, method)| single(layer.candidates.get(&method).copied()));
        let fields = names.into_iter().chain(errors).chain(range).chain([double(layer.clipped)]).chain(thresholds);
        // A line for each layer: of several machines the one that was measured last.
        let time = layer.times.last();
        let texts = [time.map(|time| &*time.engine_layer), time.map(|time| &*time.machine)];
        let texts = texts.map(|text| text_field(text.unwrap_or_default()));
        let fields = fields.chain([double(time.map(|time| time.ms))]).chain(texts);
        let fields = fields.chain([text_field(&layer.operators.join(";")), report.rests_on_random_data().to_string()]);
        writer.write_record(fields)?;
    }
    writer.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::report::example::{Size, report};

    #[test]
    fn names_are_neither_formulas_nor_commands() {
        assert_eq!(text_field("=HYPERLINK(\"x\")"), "'=HYPERLINK(\"x\")");
        assert_eq!(text_field(" @SUM(1)"), "' @SUM(1)");
        assert_eq!(text_field("a\u{1b}[2J\tb"), "a\\u{1b}[2J\\tb");
        assert_eq!(text_field("/features/0=1, \"é\""), "/features/0=1, \"é\"");
    }

    #[test]
    fn every_layer_reads_back_with_its_exact_name_and_values() {
        let mut report = report(&Size { layers: 3, flips: 0 });
        report.dataset.random_data = true;
        let layers = &mut report.layers;
        layers[1].node = "a,\"b\"\nc".into();
        layers[2].graphwise_sqnr_db = None;
        let mut text = Vec::new();
        layers_csv(&report, &mut text).unwrap();
        let mut reader = csv::Reader::from_reader(text.as_slice());
        let column = |name: &str, headers: &csv::StringRecord| headers.iter().position(|h| h == name).unwrap();
        let headers = reader.headers().unwrap().clone();
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), 3);
        assert_eq!(&records[1][column("node", &headers)], "a,\"b\"\nc");
        assert_eq!(&records[2][column("graphwise_sqnr_db", &headers)], "");
        assert_eq!(&records[1][column("random_data", &headers)], "true");
        // Ranges from random inputs, on real data.
        report.dataset.random_data = false;
        let calibration = report.calibration.as_mut().unwrap();
        calibration.random_data = true;
        let mut text = Vec::new();
        layers_csv(&report, &mut text).unwrap();
        let mut reader = csv::Reader::from_reader(text.as_slice());
        assert!(reader.records().all(|record| &record.unwrap()[column("random_data", &headers)] == "true"));
        let amax: f32 = records[0][column("amax_entropy", &headers)].parse().unwrap();
        assert_eq!(Some(&amax), report.layers[0].candidates.get(&Method::Entropy));
    }
}
