//! The extension module `trtcalib._trtcalib`: the library's session for Python, and the programs.
//!
//! Settings come as JSON with the keys of the configuration file, results go back as JSON; the Python modules beside it
//! make objects of them.

#![expect(clippy::needless_pass_by_value, reason = "arguments of Python functions come by value")]

use std::{ffi::OsString, path::PathBuf};

use pyo3::{prelude::*, types::PyModule};
use serde::Serialize;
use serde_json::Value;
use trtcalib::{
    calibrate::{CalibrationTable, Histograms, cache::CalibrationCache},
    compare::OwnMetric,
    config::RunConfig,
    onnx::Model,
    quantize::Precision,
    recover::Peers,
    report::{Report, html},
    session::{
        BisectOptions, CalibrateOptions, CompareRequest, Compared, Host, PipelineError, QuantizeRequest, Session,
        Shard, describe, quantize_file,
    },
};

mod data;
mod errors;
mod host;
mod metric;
mod trials;

use errors::{CalibError, Raised};

/// Settings with the keys of the configuration file, over those of `file`.
fn settings(json: &str, file: Option<PathBuf>) -> PyResult<RunConfig> {
    let invalid = |error: &dyn std::fmt::Display| CalibError::new_err(format!("the settings cannot be used: {error}"));
    let base = file
        .map_or_else(|| Ok(RunConfig::default()), |file| RunConfig::load(&file))
        .map_err(|error| invalid(&error))?;
    let base = serde_json::to_value(base).map_err(|error| invalid(&error))?;
    let given: serde_json::Map<String, Value> = serde_json::from_str(json).map_err(|error| invalid(&error))?;
    let mut keys = base.clone();
    for (name, value) in &given {
        keys[name] = match value {
            // One word for a list of words.
            Value::String(_) if base[name].is_array() => Value::Array(vec![value.clone()]),
            _ => value.clone(),
        };
    }
    serde_json::from_value(keys.clone()).map_err(|error| {
        // What is wrong with a value is said without its key: it is the one that cannot be used alone, either.
        let alone = |name: &str| {
            let mut one = base.clone();
            one[name] = keys[name].clone();
            serde_json::from_value::<RunConfig>(one).err()
        };
        match given.keys().find_map(|name| Some((name, alone(name)?))) {
            Some((name, error)) => invalid(&format!("`{name}`: {error}")),
            None => invalid(&error),
        }
    })
}

fn json<T: Serialize>(value: &T) -> Result<String, PipelineError> {
    serde_json::to_string(value).map_err(|error| PipelineError::Input(error.to_string()))
}

/// Opens a session on the settings' data, or on samples that Python holds.
fn open(config: RunConfig, samples: Option<Py<data::Samples>>, host: &Host) -> Result<Session, PipelineError> {
    match samples {
        Some(samples) => Session::with_dataset(config, Box::new(data::Held(samples)), None, host),
        None => Session::open(config, None, host),
    }
}

/// Runs `work` with a metric that Python has, if any; see [`host::run`]. What the metric raises is raised as it is.
fn judged<T: Send>(
    py: Python<'_>,
    metric: Option<Py<PyAny>>,
    listener: Option<Py<PyAny>>,
    work: impl FnOnce(&Host, Option<OwnMetric>) -> Result<T, PipelineError> + Send,
) -> PyResult<T> {
    let raised = Raised::default();
    let metric = metric.map(|function| metric::own(function, raised.clone()));
    raised.again(host::run(py, listener, move |host| work(host, metric)))
}

/// Observes a model and writes the table, and the histograms where asked; returns the table as JSON.
#[pyfunction]
#[pyo3(signature = (settings_json, file, samples, table, histograms, metric, listener))]
#[expect(clippy::too_many_arguments, reason = "called by the Python module only")]
fn calibrate(
    py: Python<'_>,
    settings_json: &str,
    file: Option<PathBuf>,
    samples: Option<Py<data::Samples>>,
    table: PathBuf,
    histograms: Option<PathBuf>,
    metric: Option<Py<PyAny>>,
    listener: Option<Py<PyAny>>,
) -> PyResult<()> {
    let config = settings(settings_json, file)?;
    judged(py, metric, listener, move |host, metric| {
        let mut session = open(config, samples, host)?;
        if let Some(metric) = metric {
            session.judge_by(metric);
        }
        session.require_operators(Precision::Int8)?;
        let options = CalibrateOptions { histograms: histograms.as_deref(), ..CalibrateOptions::default() };
        let calibrated = session.calibrate(Precision::Int8, options)?;
        Ok(calibrated.chosen.table.save(&table)?)
    })
}

/// Observes part `shard` (`i/n`) of the calibration samples and writes its histograms.
#[pyfunction]
#[pyo3(signature = (settings_json, file, samples, shard, histograms, listener))]
fn observe(
    py: Python<'_>,
    settings_json: &str,
    file: Option<PathBuf>,
    samples: Option<Py<data::Samples>>,
    shard: String,
    histograms: PathBuf,
    listener: Option<Py<PyAny>>,
) -> PyResult<()> {
    let config = settings(settings_json, file)?;
    let shard: Shard = parsed(shard)?;
    host::run(py, listener, move |host| {
        let session = open(config, samples, host)?;
        let observed = session.observe(Precision::Int8, &session.calibration_samples(), Some(&shard), None)?;
        Ok(observed.histograms.save(&histograms)?)
    })
}

/// Joins the histograms of all shards and writes the table of a single run. `peers` are its number, that of all who do the
/// same at the same time, and a callable that gives what this one has found to all and returns what each has found.
#[pyfunction]
#[pyo3(signature = (settings_json, file, samples, histograms, table, metric, peers, listener))]
#[expect(clippy::too_many_arguments, reason = "called by the Python module only")]
fn merge(
    py: Python<'_>,
    settings_json: &str,
    file: Option<PathBuf>,
    samples: Option<Py<data::Samples>>,
    histograms: Vec<PathBuf>,
    table: PathBuf,
    metric: Option<Py<PyAny>>,
    peers: Option<(usize, usize, Py<PyAny>)>,
    listener: Option<Py<PyAny>>,
) -> PyResult<()> {
    let config = settings(settings_json, file)?;
    judged(py, metric, listener, move |host, metric| {
        let mut parts = histograms.iter();
        let first = parts.next().ok_or_else(|| PipelineError::Input("no histograms were given".to_owned()))?;
        let mut merged = Histograms::load(first)?;
        for part in parts {
            merged.merge(Histograms::load(part)?)?;
        }
        let mut session = open(config, samples, host)?;
        if let Some(metric) = metric {
            session.judge_by(metric);
        }
        if let Some((index, count, exchange)) = peers {
            session.share_with(Peers::new(index, count, move |found| {
                Python::attach(|py| {
                    let given = exchange.bind(py).call1((found,)).and_then(|given| given.extract());
                    given.map_err(|error| error.value(py).to_string())
                })
            }));
        }
        Ok(session.choose_from_shards(&merged)?.save(&table)?)
    })
}

/// Refuses what is no calibration table.
#[pyfunction]
fn check_table(table: PathBuf) -> PyResult<()> {
    CalibrationTable::load(&table).map(drop).map_err(|error| errors::DataError::new_err(describe(&error)))
}

/// Writes the calibration cache of TensorRT 10 and older from a table.
#[pyfunction]
fn write_cache(table: PathBuf, cache: PathBuf) -> PyResult<()> {
    let failed = |error| errors::DataError::new_err(describe(&error));
    let table = CalibrationTable::load(&table).map_err(failed)?;
    CalibrationCache::from_table(&table).save(&cache).map_err(failed)
}

/// Writes a quantized or converted model; returns what was done as JSON.
#[pyfunction]
#[pyo3(signature = (settings_json, file, precision, table, output, listener))]
fn quantize(
    py: Python<'_>,
    settings_json: &str,
    file: Option<PathBuf>,
    precision: String,
    table: Option<PathBuf>,
    output: PathBuf,
    listener: Option<Py<PyAny>>,
) -> PyResult<String> {
    let config = settings(settings_json, file)?;
    let precision = parsed(precision)?;
    host::run(py, listener, move |host| {
        let request = QuantizeRequest { precision, table, output, convert_io: false };
        json(&quantize_file(&config, &request, None, host)?)
    })
}

/// Runs the same samples through a reference and targets; returns the figures as JSON, or writes what a part of the
/// samples (`i/n`) counted.
#[pyfunction]
#[pyo3(signature = (settings_json, file, samples, reference, targets, save_reference, save_target, calibration_samples, part, listener))]
#[expect(clippy::too_many_arguments, reason = "called by the Python module only")]
fn compare(
    py: Python<'_>,
    settings_json: &str,
    file: Option<PathBuf>,
    samples: Option<Py<data::Samples>>,
    reference: String,
    targets: Vec<String>,
    save_reference: Option<PathBuf>,
    save_target: Option<PathBuf>,
    calibration_samples: bool,
    part: Option<(String, PathBuf)>,
    listener: Option<Py<PyAny>>,
) -> PyResult<Option<String>> {
    let mut config = settings(settings_json, file)?;
    let shard = part.map(|(shard, file)| Ok::<_, PyErr>((parsed::<Shard>(shard)?, file))).transpose()?;
    host::run(py, listener, move |host| {
        let gates = config.gate.clone();
        let request = CompareRequest {
            reference,
            targets,
            samples: config.eval_samples,
            gates,
            save_reference,
            save_target,
            calibration_samples,
            ..CompareRequest::default()
        };
        request.complete(&mut config)?;
        let session = open(config, samples, host)?;
        if let Some((shard, file)) = shard {
            session.compared(&request, Some(&shard))?.save(&file)?;
            return Ok(None);
        }
        json(&session.compare(&request)?).map(Some)
    })
}

/// Joins the parts of a comparison; returns the figures of a single run as JSON.
#[pyfunction]
fn join(py: Python<'_>, parts: Vec<PathBuf>, listener: Option<Py<PyAny>>) -> PyResult<String> {
    host::run(py, listener, move |_| {
        let parts = parts.iter().map(|part| Compared::load(part)).collect::<Result<Vec<_>, _>>()?;
        json(&Compared::join(parts)?.finish().0)
    })
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(text: String) -> PyResult<T> {
    text.parse().map_err(|error: T::Err| CalibError::new_err(error.to_string()))
}

/// Looks for layers or a plan; returns the findings as JSON, the folder, and whether a plan passes. `count` is a callable that
/// has other processes count trials ([`trials::counted_by`]).
#[pyfunction]
#[pyo3(signature = (settings_json, file, samples, options, count, listener))]
fn bisect(
    py: Python<'_>,
    settings_json: &str,
    file: Option<PathBuf>,
    samples: Option<Py<data::Samples>>,
    options: &Bound<'_, pyo3::types::PyDict>,
    count: Option<Py<PyAny>>,
    listener: Option<Py<PyAny>>,
) -> PyResult<(String, PathBuf, bool)> {
    let config = settings(settings_json, file)?;
    let mut asked = BisectOptions::default();
    for (name, value) in options {
        match name.extract::<String>()?.as_str() {
            "precision" => asked.precision = parsed(value.extract()?)?,
            "lift" => asked.lift = parsed(value.extract()?)?,
            "group_by" => asked.group_by = value.extract()?,
            "max_trials" => asked.max_trials = value.extract()?,
            "samples" => asked.samples = value.extract()?,
            other => return Err(CalibError::new_err(format!("bisect knows no option `{other}`"))),
        }
    }
    let raised = Raised::default();
    let count = count.map(|count| trials::counted_by(count, raised.clone()));
    raised.again(host::run(py, listener, move |host| {
        let mut session = open(config, samples, host)?;
        if let Some(count) = count {
            session.count_trials_by(count);
        }
        let outcome = session.bisect(&asked)?;
        Ok((json(&outcome.findings)?, outcome.out, outcome.passed))
    }))
}

/// The whole job; returns the report as JSON, and the folder.
#[pyfunction]
#[pyo3(signature = (settings_json, file, samples, metric, listener))]
fn run(
    py: Python<'_>,
    settings_json: &str,
    file: Option<PathBuf>,
    samples: Option<Py<data::Samples>>,
    metric: Option<Py<PyAny>>,
    listener: Option<Py<PyAny>>,
) -> PyResult<(String, PathBuf)> {
    let config = settings(settings_json, file)?;
    judged(py, metric, listener, move |host, metric| {
        let mut session = open(config, samples, host)?;
        if let Some(metric) = metric {
            session.judge_by(metric);
        }
        let outcome = session.run(vec!["trtcalib.run".to_owned()])?;
        Ok((json(&outcome.report)?, outcome.out))
    })
}

/// Names of a model's inputs.
#[pyfunction]
fn input_names(model: PathBuf) -> PyResult<Vec<String>> {
    let model = Model::load(&model).map_err(|error| errors::ModelError::new_err(describe(&error)))?;
    let graph = model.graph();
    let is_weight = |name: &str| graph.initializer.iter().any(|weight| weight.name() == name);
    let inputs = graph.input.iter().map(|input| input.name().to_owned());
    Ok(inputs.filter(|name| !is_weight(name)).collect())
}

/// Renders `report.json` as one self-contained page.
#[pyfunction]
fn report_html(path: PathBuf) -> PyResult<String> {
    let failed = |error: &dyn std::fmt::Display| CalibError::new_err(error.to_string());
    html(&Report::read(&path).map_err(|error| failed(&error))?).map_err(|error| failed(&error))
}

/// Runs the program `calib` with the words of a command line, the program's name first; returns its exit status.
#[pyfunction]
fn calib_program(py: Python<'_>, words: Vec<OsString>) -> u8 {
    py.detach(|| calib_cli::calib(words))
}

/// Runs the program `compare`, which is the same as `calib compare`.
#[pyfunction]
fn compare_program(py: Python<'_>, words: Vec<OsString>) -> u8 {
    py.detach(|| calib_cli::compare(words))
}

#[pymodule]
fn _trtcalib(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    errors::register(module)?;
    module.add_class::<data::Samples>()?;
    module.add_class::<trials::Trials>()?;
    for function in [
        wrap_pyfunction!(calibrate, module)?,
        wrap_pyfunction!(observe, module)?,
        wrap_pyfunction!(merge, module)?,
        wrap_pyfunction!(check_table, module)?,
        wrap_pyfunction!(write_cache, module)?,
        wrap_pyfunction!(quantize, module)?,
        wrap_pyfunction!(compare, module)?,
        wrap_pyfunction!(join, module)?,
        wrap_pyfunction!(bisect, module)?,
        wrap_pyfunction!(run, module)?,
        wrap_pyfunction!(input_names, module)?,
        wrap_pyfunction!(report_html, module)?,
        wrap_pyfunction!(calib_program, module)?,
        wrap_pyfunction!(compare_program, module)?,
    ] {
        module.add_function(function)?;
    }
    Ok(())
}
