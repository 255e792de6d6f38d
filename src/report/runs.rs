//! Many runs on one page: models × precisions, and what changed against a baseline.

use std::collections::{BTreeMap, BTreeSet};

use askama::Template;

use super::{
    Report, charts,
    elsewhere::called as named,
    format,
    html::{Chart, nonce},
    metrics::{Quality, Subject, outcome, table, title},
    regression::{Regressions, regressions, unlike},
    table::{Cell, Column, Table, Tone},
};

/// A report and the name it goes by (its folder, usually).
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// The name.
    pub name: &'a str,
    /// What the run left.
    pub report: &'a Report,
}

/// One row for each precision of each run, in the given order.
pub fn runs_table(runs: &[Run<'_>]) -> Table {
    let columns = vec![
        Column::text("Model", "model"),
        Column::hidden("Run", "run"),
        Column::hidden("Date", "created"),
        Column::hidden("Version", "version"),
        Column::text("Precision", "precision"),
        Column::hidden("Backend", "backend"),
        Column::text("Result", "result"),
    ];
    let rows = runs.iter().flat_map(|run| {
        Subject::all(run.report).map(move |subject| {
            let p = subject.precision;
            let random = run.report.rests_on_random_data();
            let result =
                if random && p.error.is_none() { Cell::text("random data").tone(Tone::Bad) } else { outcome(subject) };
            let model = format::file_name(&run.report.model.path);
            let precision = Cell::text(&p.precision).note(&p.backend);
            (
                vec![
                    Cell::text(model).note(run.name),
                    Cell::text(run.name),
                    Cell::text(&run.report.created),
                    Cell::text(&run.report.tool.version),
                    precision,
                    Cell::text(&p.backend),
                    result,
                ],
                subject,
            )
        })
    });
    table(columns, rows)
}

/// The page of many runs; with `baseline`, what got better or worse comes first.
pub fn runs_html(runs: &[Run<'_>], baseline: &[Run<'_>]) -> Result<String, askama::Error> {
    page(runs, baseline, None)
}

/// The page of the history of a model: figures over runs in the order of their dates.
pub fn trend_html(runs: &[Run<'_>]) -> Result<String, askama::Error> {
    let mut runs = runs.to_vec();
    runs.sort_by(|a, b| a.report.created.cmp(&b.report.created).then(a.name.cmp(b.name)));
    page(&runs, &[], Some(trends(&runs)))
}

/// A figure over runs, by precision and backend: what is drawn, and the lines' names.
struct Trend {
    name: &'static str,
    chart: Chart,
    legend: Vec<(usize, String)>,
}

fn trends(runs: &[Run<'_>]) -> Vec<Trend> {
    let all: Vec<_> = runs.iter().flat_map(|run| Subject::all(run.report)).collect();
    let called_by = series_names(runs);
    let names: BTreeSet<String> =
        all.iter().map(|subject| called_by(subject.report, title(subject.precision))).collect();
    // `2026-11-27T14:25:57Z`: of two runs of one day the time tells which is which.
    let day = |run: &Run<'_>| run.report.created.split('T').next().unwrap_or_default().to_owned();
    let one_day = runs.iter().map(day).collect::<BTreeSet<_>>().len() < runs.len();
    let date = |run: &Run<'_>| match run.report.created.split_once('T') {
        Some((day, time)) if one_day => format!("{day} {}", time.get(..5).unwrap_or(time)),
        _ => day(run),
    };
    let called: Vec<String> = runs.iter().map(|run| format!("{} · {}", date(run), run.report.tool.version)).collect();
    let quality = Quality::of(&all);
    let sqnr = Some(Quality::Sqnr).filter(|_| quality != Some(Quality::Sqnr));
    let measures = [quality, sqnr].into_iter().flatten();
    let drawn = |name: &'static str, share: bool, of: &dyn Fn(Subject<'_>) -> Option<f64>| {
        let line = |(series, name): (usize, &String)| {
            let is_it = |s: &Subject<'_>| called_by(s.report, title(s.precision)) == *name;
            let value = |run: &Run<'_>| Subject::all(run.report).find(is_it).and_then(of);
            let values: Vec<Option<f64>> = runs.iter().map(value).collect();
            values.iter().any(Option::is_some).then_some((charts::Line { series, values }, name.clone()))
        };
        let (lines, named): (Vec<charts::Line>, Vec<String>) = names.iter().enumerate().filter_map(line).unzip();
        let legend = lines.iter().map(|line| line.series % charts::SERIES).zip(named).collect();
        let chart = Chart::new(300, |size| charts::trend(&lines, &called, name, share, size));
        Trend { name, chart, legend }
    };
    let mut trends: Vec<Trend> = measures
        .map(|measure| drawn(measure.name(), measure != Quality::Sqnr, &|subject| subject.quality(measure)))
        .collect();
    trends.push(drawn("Median latency (ms)", false, &|subject| subject.speed()));
    trends.push(elsewhere(runs, &called, &called_by));
    trends.retain(|trend| !trend.chart.wide.is_empty());
    trends
}

/// What a line is called: models are lines of their own, told by their files' names where there are several.
fn series_names(runs: &[Run<'_>]) -> impl Fn(&Report, String) -> String {
    let several = models(runs).len() > 1;
    move |report, name| {
        if several { format!("{} · {name}", format::file_name(&report.model.path)) } else { name }
    }
}

/// The models of runs, with how many runs each has.
fn models<'a>(runs: &[Run<'a>]) -> BTreeMap<&'a str, usize> {
    let mut models = BTreeMap::new();
    for run in runs {
        *models.entry(format::file_name(&run.report.model.path)).or_default() += 1;
    }
    models
}

/// Says that models are apart, and which have nothing to be compared with.
fn trend_notes(runs: &[Run<'_>]) -> Vec<String> {
    let models = models(runs);
    let alone: Vec<&str> = models.iter().filter(|(_, runs)| **runs == 1).map(|(name, _)| *name).collect();
    let mut notes = Vec::new();
    if models.len() > 1 {
        notes.push(format!("The runs are of {} models, each of which has lines of its own.", models.len()));
    }
    if !alone.is_empty() {
        notes.push(format!("Of {} there is a single run, which shows no trend.", alone.join(", ")));
    }
    notes
}

/// Latencies that other machines measured.
fn elsewhere(runs: &[Run<'_>], called: &[String], called_by: &dyn Fn(&Report, String) -> String) -> Trend {
    let of_run = |run: &Run<'_>| -> BTreeMap<String, f64> {
        let rows = run.report.precisions.iter();
        let all = rows.flat_map(|row| row.measured_elsewhere.iter().map(move |there| (row, there)));
        let named = |row, there| called_by(run.report, named(row, there));
        all.filter_map(|(row, there)| Some((named(row, there), there.latency_ms.as_ref()?.figures.median))).collect()
    };
    let found: Vec<BTreeMap<String, f64>> = runs.iter().map(of_run).collect();
    let names: BTreeSet<&String> = found.iter().flat_map(BTreeMap::keys).collect();
    let line = |(series, name): (usize, &&String)| charts::Line {
        series,
        values: found.iter().map(|run| run.get(*name).copied()).collect(),
    };
    let lines: Vec<charts::Line> = names.iter().enumerate().map(line).collect();
    let legend = names.iter().enumerate().map(|(series, name)| (series % charts::SERIES, (*name).clone())).collect();
    let name = "Median latency elsewhere (ms)";
    Trend { name, chart: Chart::new(300, |size| charts::trend(&lines, called, name, false, size)), legend }
}

fn page(runs: &[Run<'_>], baseline: &[Run<'_>], trends: Option<Vec<Trend>>) -> Result<String, askama::Error> {
    let table = runs_table(runs);
    let (scatter, legend, measure) = scatter(runs);
    let random = runs.iter().chain(baseline).any(|run| run.report.rests_on_random_data());
    let regressions = (!baseline.is_empty()).then(|| regressions(runs, baseline));
    let decided = |as_this| runs.iter().filter(|run| run.report.verdict.passed == Some(as_this)).count();
    let (passed, failed) = (decided(true), decided(false));
    let nonce = nonce(&format!("{table:?}{regressions:?}"));
    let choices = table.rows.iter().map(|row| row[4].text.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
    let count = runs.len();
    let of_trend = trends.as_ref().map(|_| trend_notes(runs)).unwrap_or_default();
    Page {
        nonce,
        count,
        passed,
        failed,
        random,
        notes: of_trend.into_iter().chain(notes(runs)).chain(unlike(runs, baseline)).collect(),
        choices,
        table: &table,
        scatter,
        legend,
        measure,
        regressions,
        trends: trends.unwrap_or_default(),
    }
    .render()
}

#[derive(Template)]
#[template(path = "runs.html")]
struct Page<'a> {
    nonce: String,
    count: usize,
    passed: usize,
    failed: usize,
    random: bool,
    notes: Vec<String>,
    choices: Vec<&'a str>,
    table: &'a Table,
    scatter: Chart,
    legend: Vec<String>,
    measure: &'static str,
    regressions: Option<Regressions>,
    trends: Vec<Trend>,
}

/// What makes rows incomparable.
fn notes(runs: &[Run<'_>]) -> Vec<String> {
    let mut notes = Vec::new();
    let distinct = |of: fn(&Report) -> String| runs.iter().map(|run| of(run.report)).collect::<BTreeSet<_>>().len();
    let machines =
        distinct(|r| format!("{:?} {:?}", r.environment.cpu_model, r.environment.gpu.as_ref().map(|g| &g.name)));
    if machines > 1 {
        notes.push(format!("The times come from {machines} different machines and cannot be compared across them."));
    }
    let data = distinct(|r| format!("{} {:?}", r.dataset.hash, r.dataset.evaluation));
    if data > 1 {
        notes.push(format!("The runs were evaluated on {data} different sets of samples."));
    }
    notes
}

/// Quality over latency of everything whose speed was measured; a colour is a precision.
fn scatter(runs: &[Run<'_>]) -> (Chart, Vec<String>, &'static str) {
    let named: Vec<_> = runs.iter().flat_map(|run| Subject::all(run.report)).collect();
    let Some(measure) = Quality::of(&named) else { return (Chart::default(), Vec::new(), "") };
    let drawn: Vec<_> = named.iter().filter_map(|s| Some((s, s.speed()?, s.quality(measure)?))).collect();
    let legend: Vec<String> =
        drawn.iter().map(|(s, ..)| s.precision.precision.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    let point = |&(s, latency_ms, quality): &(&Subject<'_>, f64, f64)| charts::Point {
        label: format!(
            "{} {}",
            format::file_name(&s.report.model.path).trim_end_matches(".onnx"),
            s.precision.precision
        ),
        latency_ms,
        quality,
        interval: None,
        series: legend.iter().position(|name| *name == s.precision.precision).unwrap_or(0),
    };
    let points: Vec<_> = drawn.iter().map(point).collect();
    if points.len() < 2 {
        return (Chart::default(), Vec::new(), "");
    }
    let share = measure != Quality::Sqnr;
    let chart = Chart::new(420, |size| charts::scatter(&points, measure.name(), share, size));
    (chart, legend, measure.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example::{Size, report};

    fn two() -> [Report; 2] {
        let first = report(&Size { layers: 0, flips: 0 });
        let mut second = first.clone();
        second.model.path = "nets/<b>other.onnx".into();
        second.environment.cpu_model = "Another CPU".into();
        [first, second]
    }

    #[test]
    fn every_precision_of_every_run_is_a_row_and_emulated_ones_have_no_time() {
        let reports = two();
        let runs = [Run { name: "a", report: &reports[0] }, Run { name: "b", report: &reports[1] }];
        let text = runs_table(&runs).csv().unwrap();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let headers = reader.headers().unwrap().clone();
        let column = |name: &str| headers.iter().position(|h| h == name).unwrap();
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), reports.iter().map(|r| r.precisions.len()).sum::<usize>());
        let emulated =
            records.iter().find(|r| &r[column("precision")] == "int8" && &r[column("backend")] == "onnxruntime-cpu");
        assert_eq!(&emulated.unwrap()[column("latency_median_ms")], "");
        assert_eq!(&records[4][column("latency_median_ms")], "0.46");
        assert_eq!(&records[6][column("model")], "<b>other.onnx");
    }

    #[test]
    fn runs_of_one_day_are_told_apart_and_other_machines_have_a_chart() {
        let mut reports = two();
        for (report, (created, ms)) in
            reports.iter_mut().zip([("2026-11-27T09:05:00Z", 2.0), ("2026-11-27T14:25:57Z", 1.5)])
        {
            report.created = created.to_owned();
            report.model.path = "nets/m.onnx".into();
            let mut latency = report.precisions[0].latency_ms.clone().unwrap();
            latency.figures.median = ms;
            let there = serde_json::json!({ "machine": { "name": "Orin" }, "files": [], "tied_by": "hash", "latency_ms": latency });
            report.precisions[0].measured_elsewhere = vec![serde_json::from_value(there).unwrap()];
        }
        let runs = [Run { name: "a", report: &reports[0] }, Run { name: "b", report: &reports[1] }];
        let page = trend_html(&runs).unwrap();
        assert!(page.contains("2026-11-27 09:05 · ") && page.contains("2026-11-27 14:25 · "));
        let trend = trends(&runs).into_iter().find(|trend| trend.name == "Median latency elsewhere (ms)").unwrap();
        assert_eq!((trend.chart.wide.matches("<circle").count(), &*trend.legend[0].1), (2, "fp32 · Orin"));
        assert!(page.contains("<h3>Median latency elsewhere (ms)</h3>") && !page.contains("models, each of which"));
        assert_eq!(page.matches(">Median latency elsewhere (ms)<").count(), 1, "the title once");
    }

    #[test]
    fn models_are_lines_of_their_own() {
        let reports = two();
        let run = |name, report| Run { name, report };
        let runs = [run("a", &reports[0]), run("b", &reports[0]), run("c", &reports[1])];
        let trend = &trends(&runs)[0];
        let names: Vec<&str> = trend.legend.iter().map(|(_, name)| name.as_str()).collect();
        assert!(
            names.contains(&"example net.onnx · int8 · tensorrt") && names.contains(&"<b>other.onnx · int8 · tensorrt"),
            "{names:?}"
        );
        // Of every precision two points that a line joins, and one alone.
        assert_eq!(trend.chart.wide.matches("<circle").count(), 3 * names.len() / 2);
        let page = trend_html(&runs).unwrap();
        assert!(page.contains("The runs are of 2 models, each of which has lines of its own."));
        assert!(page.contains("Of &#60;b&#62;other.onnx there is a single run, which shows no trend."));
        let page = trend_html(&runs[1..]).unwrap();
        assert!(!page.contains("id=\"trend\"") && page.contains("a single run"));
    }

    #[test]
    fn the_page_escapes_names_and_says_what_cannot_be_compared() {
        let reports = two();
        let runs = [Run { name: "<i>a", report: &reports[0] }, Run { name: "b", report: &reports[1] }];
        let page = runs_html(&runs, &[]).unwrap();
        assert!(page.contains("2 different machines"));
        assert!(!page.contains("<b>other") && !page.contains("<i>a"));
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains("Quality over latency"));
    }
}
