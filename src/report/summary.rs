//! The report in a screenful of Markdown, for a pull request.

use super::{
    Layer, Report,
    csv::text_field,
    format,
    metrics::{boxes, decibels, precisions, title},
    table::{Cell, Column, Table, markdown_text},
};

/// Layers named in a summary.
const LAYERS: usize = 5;

/// The verdict, the gates, the precisions, the worst layers and the advice.
pub fn summary(report: &Report) -> String {
    let mark = |passed| if passed { "✅" } else { "❌" };
    let mut lines = vec![format!(
        "### {}calib: {}\n",
        report.verdict.passed.map_or_else(String::new, |passed| format!("{} ", mark(passed))),
        markdown_text(format::file_name(&report.model.path))
    )];
    if report.rests_on_random_data() {
        lines.push(
            "> **Random data**: random numbers were among the inputs or made the ranges, so the figures say nothing about this model.\n".into(),
        );
    }
    lines.push(format!("{}\n", markdown_text(&report.verdict.sentence)));
    lines.extend(report.verdict.gates.iter().map(|gate| {
        format!(
            "- {} {}: {}",
            mark(gate.result.passed),
            markdown_text(&gate.condition()),
            markdown_text(&gate.result.shown())
        )
    }));
    lines.push(format!("\n{}", precisions(report).markdown()));
    let boxes = boxes(report);
    if !boxes.rows.is_empty() {
        lines.push(format!("<details><summary>Boxes</summary>\n\n{}\n</details>\n", boxes.markdown()));
    }
    let errors =
        report.precisions.iter().filter_map(|p| Some(format!("{} did not run: {}", title(p), p.error.as_ref()?)));
    let texts =
        errors.chain(report.notes.iter().cloned()).chain(report.advice.iter().map(|advice| advice.text.clone()));
    lines.extend(texts.map(|text| format!("- {}", markdown_text(&text))));
    lines.extend(worst_table(&report.layers));
    lines.join("\n") + "\n"
}

/// The same for a job, a run or a report, that ended without one.
pub fn failed_summary(of: &str, job: &str, reason: &str) -> String {
    format!("### ❌ calib: {}\n\nThe {job} failed: {}\n", markdown_text(of), markdown_text(reason))
}

/// The same as a table.
///
/// # Errors
/// It cannot be put together.
pub fn failed_table(job: &str, reason: &str) -> csv::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record([format!("the {job} failed")])?;
    writer.write_record([text_field(reason)])?;
    let bytes = writer.into_inner().map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A page for a job that ended without a report.
pub fn failed_page(of: &str, job: &str, reason: &str) -> String {
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}: the {job} failed</title></head>\n\
         <body><h1>{0}: the {job} failed</h1>\n<p>{1}</p>\n</body></html>\n",
        escaped(of),
        escaped(reason)
    )
}

/// The layers with the largest error, by the SQNR that is known of them in decibels; none where no error was measured.
pub fn worst_layers(layers: &[Layer]) -> Vec<(f64, &Layer)> {
    let by_layerwise = layers.iter().any(|layer| layer.layerwise_sqnr_db.is_some());
    let measure = |layer: &Layer| if by_layerwise { layer.layerwise_sqnr_db } else { layer.graphwise_sqnr_db };
    let mut worst: Vec<_> = layers.iter().filter_map(|layer| Some((measure(layer)?, layer))).collect();
    worst.sort_by(|a, b| a.0.total_cmp(&b.0));
    worst.truncate(LAYERS);
    worst
}

/// A folded table of them.
fn worst_table(layers: &[Layer]) -> Option<String> {
    let worst = worst_layers(layers);
    let row = |(db, layer): &(f64, &Layer)| vec![Cell::text(&layer.node), Cell::text(&layer.op_type), decibels(*db)];
    let table = Table {
        columns: vec![
            Column::text("Node", "node"),
            Column::text("Operator", "op_type"),
            Column::number("SQNR", "sqnr_db", ""),
        ],
        rows: worst.iter().map(row).collect(),
    };
    let folded = format!("\n<details><summary>Worst layers</summary>\n\n{}\n</details>", table.markdown());
    (!worst.is_empty()).then_some(folded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example::{Size, report};

    #[test]
    fn a_summary_says_what_failed_and_where() {
        let mut report = report(&Size { layers: 60, flips: 0 });
        report.layers[0].node = "<b>|worst".into();
        report.layers[0].layerwise_sqnr_db = Some(-3.25);
        let text = summary(&report);
        assert!(text.starts_with("### ❌ calib: example net.onnx\n"));
        assert!(text.contains("- ❌ int8 tensorrt top1 ≥ 0.98: 97.6\u{a0}% (96.2…98.7)\n"));
        assert!(text.contains("| &lt;b&gt;\\|worst | Conv | -3.2\u{a0}dB |"), "{text}");
        assert!(text.contains("emulated") && !text.contains("14.0"));
        assert!(!text.contains("Random data"));
        // What made a gate fail beside a good figure is named everywhere.
        let note = "output y differs in 7 NaN or infinite values besides";
        let gate = report.verdict.gates.iter_mut().find(|gate| !gate.result.passed).unwrap();
        gate.result.note = Some(note.to_owned());
        report.verdict = crate::report::Verdict::new(report.verdict.gates.clone(), &report.precisions);
        let shown = format!("97.6\u{a0}% (96.2…98.7), but {note}");
        assert!(report.verdict.sentence.contains(&shown), "{}", report.verdict.sentence);
        assert_eq!(summary(&report).matches(&shown).count(), 2, "{}", summary(&report));
        let mut xml = Vec::new();
        crate::report::junit(&report, &mut xml).unwrap();
        assert!(String::from_utf8(xml).unwrap().contains(&shown));
        report.dataset.random_data = true;
        assert!(summary(&report).contains("Random data"));
    }
}
