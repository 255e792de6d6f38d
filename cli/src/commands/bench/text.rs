//! What `calib bench` prints: what must be known first, the conditions, latencies, throughputs, warnings.

use comfy_table::{
    CellAlignment,
    presets::{NOTHING, UTF8_HORIZONTAL_ONLY},
};

use crate::table::table;

use trtcalib::{
    bench::{Measurement, Timing},
    session::{BenchOutcome, counted},
};

pub(super) fn describe(outcome: &BenchOutcome) -> String {
    let mut text = String::new();
    for line in &outcome.urgent {
        text += &format!("{line}\n\n");
    }
    text += &conditions(outcome);
    text += &format!("\nlatency of a call in milliseconds\n{}\n", latencies(&outcome.measurements));
    text += &format!("\nthroughput in samples a second\n{}", throughputs(&outcome.measurements));
    for (target, operators) in &outcome.in_float32 {
        text += &format!("\n{target}: no kernel in its precision, so in FP32: {}", counted(operators));
    }
    for (target, reason) in &outcome.emulated {
        text += &format!("\n{target} is emulated: {reason}; its times are not estimates of TensorRT's");
    }
    for measured in &outcome.measurements {
        if let Some(phases) = measured.times.phases() {
            text += &format!(
                "\n{} (batch {}): host to device {:.3} ms, compute {:.3} ms, device to host {:.3} ms, enqueue {:.3} ms (medians)",
                measured.times.name,
                measured.times.batch,
                phases.h2d_ms,
                phases.compute_ms,
                phases.d2h_ms,
                phases.enqueue_ms
            );
        }
    }
    for (target, layers) in &outcome.layers {
        text += &format!("\nlayers of {target}");
        let mut table = table(NOTHING);
        for layer in layers {
            table.add_row([format!("{:>9.4} ms", layer.median_ms), layer.layer.clone()]);
        }
        text += &format!("\n{table}");
    }
    for measured in &outcome.measurements {
        for warning in &measured.warnings {
            let times = &measured.times;
            text += &format!(
                "\nwarning: {} (batch {}, {} threads): {warning}",
                times.name, times.batch, times.mode.threads
            );
        }
    }
    text
}

/// Machine, libraries, inputs, and the mode of every provider in use.
fn conditions(outcome: &BenchOutcome) -> String {
    let machine = &outcome.environment;
    let or_unknown =
        |value: Option<u32>, unit: &str| value.map_or_else(|| "unknown".to_owned(), |v| format!("{v} {unit}"));
    let (clock, heat) = (or_unknown(machine.cpu_mhz, "MHz"), or_unknown(machine.cpu_temperature_c, "°C"));
    let mut text = format!("{}, {} cores, clock {clock}, temperature {heat}\n", machine.cpu_model, machine.cores);
    if let Some(gpu) = &machine.gpu {
        let (clock, heat) = (or_unknown(gpu.clock_mhz, "MHz"), or_unknown(gpu.temperature_c, "°C"));
        text += &format!("{}, driver {}, clock {clock}, temperature {heat}\n", gpu.name, gpu.driver);
    }
    let libraries: Vec<String> = machine.libraries.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let inputs = if outcome.random_inputs { "random" } else { "real" };
    text += &format!("{}, {} inputs, rounds interleaved over all targets\n", libraries.join(", "), inputs);
    let mut modes: Vec<String> = outcome
        .measurements
        .iter()
        .map(|measured| {
            let mode = &measured.times.mode;
            let transfers = if mode.transfers { "included" } else { "none" };
            let graph = if mode.cuda_graph { "CUDA graph" } else { "no CUDA graph" };
            format!("{}: transfers between host and device {transfers}, {graph}\n", mode.provider)
        })
        .collect();
    modes.sort();
    modes.dedup();
    text + &modes.concat()
}

/// Columns of figures behind the targets, of which a cell has as few characters as figures need.
fn figures(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = table(UTF8_HORIZONTAL_ONLY);
    table.set_header(std::iter::once(&"target").chain(header));
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 0));
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// A figure with four digits, or all before the point.
fn digits(value: f64) -> String {
    let before = if value.abs() >= 1.0 { value.abs().log10().floor() as usize + 1 } else { 1 };
    format!("{value:.*}", 4_usize.saturating_sub(before))
}

/// Target, batch and threads.
fn head(measured: &Measurement) -> String {
    let times = &measured.times;
    let mark = if times.timing == Timing::Emulated { " (emulated)" } else { "" };
    let threads = if times.mode.threads == 1 { "thread" } else { "threads" };
    format!("{}{mark}\nbatch {}, {} {threads}", times.name, times.batch, times.mode.threads)
}

fn latencies(measurements: &[Measurement]) -> String {
    let row = |measured: &Measurement| {
        let l = measured.latency.as_ref()?;
        let times = [l.median, l.mean, l.std, l.jitter, l.p90, l.p95, l.p99, l.p99_uncertainty].map(digits);
        Some(std::iter::once(head(measured)).chain(times).chain([l.count.to_string()]).collect())
    };
    let header = ["median", "mean", "std", "jitter", "p90", "p95", "p99", "± p99", "calls"];
    figures(&header, measurements.iter().filter_map(row).collect())
}

fn throughputs(measurements: &[Measurement]) -> String {
    let row = |measured: &Measurement| {
        let t = measured.throughput.as_ref()?;
        let rates = [t.median, t.mean, t.uncertainty, t.jitter].map(digits);
        let speed_up = measured.speed_up.map_or_else(String::new, |speed_up| {
            format!("{:.2} [{:.2}, {:.2}]", speed_up.ratio, speed_up.interval[0], speed_up.interval[1])
        });
        Some(std::iter::once(head(measured)).chain(rates).chain([speed_up]).collect())
    };
    let header = ["median", "mean", "± mean", "jitter", "speed-up"];
    figures(&header, measurements.iter().filter_map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_four_digits_and_a_table_of_long_names_fits() {
        assert_eq!(
            [0.0, 0.02345, 9.8765, 123.46, 172_599.8].map(digits),
            ["0.000", "0.023", "9.877", "123.5", "172600"]
        );
        let row = [
            vec!["a/long/path/to/a/model/of/many/words.int8.onnx\nbatch 16, 4 threads".to_owned()],
            vec!["123.5".to_owned(); 9],
        ];
        let text =
            figures(&["median", "mean", "std", "jitter", "p90", "p95", "p99", "± p99", "calls"], vec![row.concat()]);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}
