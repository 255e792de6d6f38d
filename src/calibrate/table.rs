//! From histograms to the calibration table, and the table as a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use rayon::prelude::*;

use super::{
    CalibrateError, CalibrationTable, Choice, Histograms, Method, TABLE_FORMAT_VERSION, TensorRange,
    histogram::Histogram, mse::ErrorModel,
};
use crate::{
    artifact::{self, ArtifactError, ContentHash, Tool},
    qparams::QuantType,
};

/// One table for each of `choices`, from all samples, fitting and held out.
///
/// `auto` first fits every method on the fitting samples only, measures the thresholds on the held-out ones, and so
/// picks a method for each tensor; its final threshold comes from all samples like any other.
pub fn tables(
    histograms: &Histograms,
    percentile: f64,
    choices: &[Choice],
) -> Result<Vec<CalibrationTable>, CalibrateError> {
    if !(percentile > 0.0 && percentile <= 100.0) {
        return Err(CalibrateError::Percentile(percentile));
    }
    let shards = &histograms.provenance.shards;
    if let Some(missing) = shards.missing() {
        return Err(CalibrateError::Incomplete { missing: missing + 1, count: shards.count() });
    }
    let empty = Histogram::default();
    let names: BTreeSet<&String> = histograms.fit.keys().chain(histograms.held_out.keys()).collect();
    let ranges: BTreeMap<String, Vec<TensorRange>> = names
        .into_par_iter()
        .map(|name| {
            let fit = histograms.fit.get(name).unwrap_or(&empty);
            let held_out = histograms.held_out.get(name).unwrap_or(&empty);
            let mut all = fit.clone();
            all.merge(held_out);
            if all.count() == 0 {
                return Err(CalibrateError::NeverObserved { tensor: name.clone() });
            }
            let candidates = thresholds(&all, percentile);
            let ranges = choices.iter().map(|choice| match choice {
                Choice::Auto if fit.count() == 0 || held_out.count() == 0 => Err(CalibrateError::NoHeldOut),
                Choice::Auto => Ok(range(&all, &candidates, best_method(fit, held_out, percentile))),
                Choice::Method(method) => Ok(range(&all, &candidates, *method)),
            });
            Ok((name.clone(), ranges.collect::<Result<_, _>>()?))
        })
        .collect::<Result<_, CalibrateError>>()?;
    let table = |(i, choice): (usize, &Choice)| CalibrationTable {
        format_version: TABLE_FORMAT_VERSION,
        tool: Tool::current(),
        model_hash: histograms.provenance.model_hash.clone(),
        data_hash: histograms.provenance.data_hash.clone(),
        method: choice.to_string(),
        percentile,
        samples: histograms.samples(),
        random_data: histograms.provenance.random_data,
        tensors: ranges.iter().map(|(name, ranges)| (name.clone(), ranges[i].clone())).collect(),
        bias_corrections: BTreeMap::new(),
        magnitudes: None,
        calibrated_on: histograms.calibrated_on.clone(),
        recovered: None,
        fp8: None,
    };
    Ok(choices.iter().enumerate().map(table).collect())
}

/// Every method's threshold.
fn thresholds(histogram: &Histogram, percentile: f64) -> BTreeMap<Method, f32> {
    Method::ALL.map(|method| (method, method.threshold(histogram, percentile))).into()
}

/// The method whose threshold, fitted on one histogram, costs least on the other; the widest among equals.
fn best_method(fit: &Histogram, held_out: &Histogram, percentile: f64) -> Method {
    let model = ErrorModel::new(held_out);
    let mut best = (Method::MinMax, fit.amax(), model.error(fit.amax()).total());
    for (method, amax) in thresholds(fit, percentile) {
        let error = model.error(amax).total();
        if error < best.2 || (error == best.2 && amax > best.1) {
            best = (method, amax, error);
        }
    }
    best.0
}

fn range(histogram: &Histogram, candidates: &BTreeMap<Method, f32>, method: Method) -> TensorRange {
    let amax = candidates[&method];
    TensorRange {
        min: histogram.min(),
        max: histogram.max(),
        count: histogram.count(),
        amax,
        method,
        candidates: candidates.clone(),
        clipped: histogram.beyond(amax) as f64 / histogram.count() as f64,
    }
}

impl CalibrationTable {
    /// Writes `calibration.json`.
    pub fn save(&self, path: &Path) -> Result<(), ArtifactError> {
        artifact::write_json(path, self)
    }

    /// Reads `calibration.json`; every threshold in it is finite and not negative.
    pub fn load(path: &Path) -> Result<Self, ArtifactError> {
        let kind = "calibration table";
        let table: Self = artifact::read_json(path, kind, TABLE_FORMAT_VERSION)?;
        let bad = |range: &TensorRange| !(range.amax.is_finite() && range.amax >= 0.0);
        match table.tensors.iter().find(|(_, range)| bad(range)) {
            None => Ok(table),
            Some((name, range)) => Err(ArtifactError::Format {
                path: path.to_owned(),
                kind,
                reason: format!("`amax` of tensor `{name}` is {}; calibrate again", range.amax),
            }),
        }
    }

    /// Fails unless the table was made for the model with this hash.
    pub fn check_model(&self, model: &ContentHash) -> Result<(), CalibrateError> {
        if self.model_hash == *model {
            return Ok(());
        }
        Err(CalibrateError::OtherModel { made_for: self.model_hash.clone(), model: model.clone() })
    }

    /// What it says for FP8: what recovery found for that, or else the ranges alone.
    #[must_use]
    pub fn for_fp8(&self) -> Self {
        let mut table = self.ranges_alone();
        let Some(own) = &self.fp8 else { return table };
        for (name, amax) in &own.amax {
            if let Some(range) = table.tensors.get_mut(name) {
                range.amax = *amax;
            }
        }
        (table.bias_corrections, table.recovered) = (own.bias_corrections.clone(), Some(own.recovered.clone()));
        table
    }

    /// Without what is for one precision only.
    #[must_use]
    pub fn ranges_alone(&self) -> Self {
        Self { bias_corrections: BTreeMap::new(), recovered: None, fp8: None, ..self.clone() }
    }

    /// The threshold of a tensor: what E4M3 and FP16 decisions start from.
    pub fn amax(&self, tensor: &str) -> Result<f32, CalibrateError> {
        let range = self.tensors.get(tensor);
        range.map(|range| range.amax).ok_or_else(|| CalibrateError::NoRange { tensor: tensor.to_owned() })
    }

    /// The INT8 scale of a tensor, `amax / 127`; above zero even for a tensor of zeros.
    pub fn scale(&self, tensor: &str) -> Result<f32, CalibrateError> {
        Ok(QuantType::Int8.scale(self.amax(tensor)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::{Provenance, Shards, samples};

    fn histograms(parts: &[(&str, &[f32], &[f32])]) -> Histograms {
        let provenance = Provenance {
            model_hash: ContentHash::of_bytes(b"model"),
            data_hash: ContentHash::of_bytes(b"data"),
            random_data: false,
            shards: Shards::whole(),
        };
        let mut histograms = Histograms::new(provenance);
        for (name, fit, held_out) in parts {
            histograms.fit.insert((*name).to_owned(), samples::histogram(fit));
            histograms.held_out.insert((*name).to_owned(), samples::histogram(held_out));
        }
        (histograms.fit_samples, histograms.held_out_samples) = (3, 1);
        histograms
    }

    #[test]
    fn auto_takes_what_held_out_samples_prefer() {
        let (normal, outliers) = (samples::normal(), samples::with_outliers());
        let zeros = [0.0f32; 8];
        let histograms = histograms(&[
            // The outliers of the fitting samples do not occur again: cutting them is right.
            ("spiky", &outliers, &normal),
            ("levels", &[0.0, 6.0, 6.0], &[6.0, 6.0]),
            ("zeros", &zeros, &zeros),
        ]);
        let [auto, minmax]: [_; 2] =
            tables(&histograms, 99.99, &[Choice::Auto, Choice::Method(Method::MinMax)]).unwrap().try_into().unwrap();
        assert_eq!((auto.method.as_str(), minmax.method.as_str(), auto.samples), ("auto", "minmax", 4));
        let spiky = &auto.tensors["spiky"];
        assert!([Method::Percentile, Method::Entropy].contains(&spiky.method), "{spiky:?}");
        assert!(spiky.amax < 5.0 && spiky.clipped > 0.0 && spiky.clipped < 1e-3, "{spiky:?}");
        assert_eq!(auto.tensors["levels"].method, Method::MinMax);
        let range = &minmax.tensors["spiky"];
        assert_eq!((range.amax, range.max, range.clipped, range.count), (60.0, 60.0, 0.0, 2_000_000));
        assert_eq!(minmax.scale("spiky").unwrap(), 60.0 / 127.0);
        assert!(auto.scale("zeros").unwrap() > 0.0);
        assert!(auto.scale("other").unwrap_err().to_string().contains("`other`"));
    }

    #[test]
    fn refuses_what_has_no_answer() {
        let mut histograms = histograms(&[("x", &[1.0], &[2.0])]);
        assert!(matches!(tables(&histograms, 0.0, &[]), Err(CalibrateError::Percentile(_))));
        histograms.held_out.clear();
        assert!(matches!(tables(&histograms, 99.9, &[Choice::Auto]), Err(CalibrateError::NoHeldOut)));
        assert!(tables(&histograms, 99.9, &[Choice::Method(Method::Mse)]).is_ok());
        histograms.fit.insert("y".to_owned(), Histogram::default());
        let error = tables(&histograms, 99.9, &[Choice::Method(Method::Mse)]).unwrap_err();
        assert!(error.to_string().contains("`y` had no value"), "{error}");
    }

    #[test]
    fn the_file_keeps_every_bit_and_knows_its_model() {
        let table =
            tables(&histograms(&[("a:0", &samples::normal(), &[0.1])]), 99.99, &[Choice::Auto]).unwrap().remove(0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calibration.json");
        table.save(&path).unwrap();
        assert_eq!(CalibrationTable::load(&path).unwrap(), table);
        table.check_model(&ContentHash::of_bytes(b"model")).unwrap();
        let other = ContentHash::of_bytes(b"other");
        let message = table.check_model(&other).unwrap_err().to_string();
        assert!(message.contains(table.model_hash.as_str()) && message.contains(other.as_str()), "{message}");
        let text = std::fs::read_to_string(&path).unwrap();
        let amax = format!("\"amax\": {:?}", table.tensors["a:0"].amax);
        assert!(text.contains(&amax));
        std::fs::write(&path, text.replace(&amax, "\"amax\": -1.0")).unwrap();
        assert!(CalibrationTable::load(&path).unwrap_err().to_string().contains("`amax` of tensor `a:0`"));
    }
}
