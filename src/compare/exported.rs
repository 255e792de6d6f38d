//! Outputs that other programs save as JSON: trtexec's `--exportOutput`, and Polygraphy's `--save-outputs`. They are how
//! engines of TensorRT 8.6 and 10 are compared, which `calib` does not load.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny, Visitor},
};

use crate::{
    npz::{Encoded, Listed},
    tensor::{Tensor, TensorMap, Values, stacked},
};

/// An output in trtexec's file.
#[derive(Deserialize)]
struct Exported {
    name: String,
    /// `8x1000`.
    dimensions: String,
    values: Vec<Number>,
}

/// A number, or the word that C++ prints for what is none; nothing for other words.
struct Number(Option<f32>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfNumber)
    }
}

struct OfNumber;

impl Visitor<'_> for OfNumber {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_f64<E>(self, value: f64) -> Result<Number, E> {
        Ok(Number(Some(value as f32)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Number, E> {
        Ok(Number(Some(value as f32)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Number, E> {
        Ok(Number(Some(value as f32)))
    }

    fn visit_str<E>(self, word: &str) -> Result<Number, E> {
        Ok(Number(word.parse().ok()))
    }
}

/// A runner of Polygraphy's, by name, and what it gave.
#[derive(Deserialize)]
struct RunnerResults(IgnoredAny, Vec<Iteration>);

/// One call of a runner.
#[derive(Deserialize)]
struct Iteration {
    outputs: BTreeMap<String, Encoded>,
}

/// The outputs in a file.
#[derive(Debug)]
pub(super) enum Calls {
    /// The first axis runs over the samples, in blocks of rows that follow each other and have one shape.
    Rows(Vec<TensorMap>),
    /// Each call is of one sample, and its outputs have as many rows as were found in it, such as boxes.
    Samples(Vec<TensorMap>),
}

/// What a file holds of outputs of as many `samples`, where that is known; otherwise why it is neither program's.
pub(super) fn read(bytes: &[u8], samples: Option<usize>) -> Result<Calls, String> {
    let calls = if bytes.trim_ascii_start().starts_with(b"{") {
        let Listed(runners) = parse(bytes)?;
        polygraphy(runners.ok_or_else(|| neither(&"it has no `lst`"))?)?
    } else {
        vec![parse::<Vec<Exported>>(bytes)?.into_iter().map(exported).collect::<Result<_, _>>()?]
    };
    let all: Option<usize> = calls.iter().map(rows).sum();
    let has_a_sample_each = samples == Some(calls.len()) && samples != all;
    if all.is_none() || has_a_sample_each { Ok(Calls::Samples(calls)) } else { Ok(Calls::Rows(in_blocks(calls)?)) }
}

/// The rows of a call's outputs; `None` where these differ.
fn rows(call: &TensorMap) -> Option<usize> {
    let mut rows = call.values().map(|output| output.shape().first().copied());
    let first = rows.next().unwrap_or(Some(0))?;
    rows.all(|rows| rows == Some(first)).then_some(first)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let quoted = |error: serde_json::Error| {
        if error.is_syntax() {
            serde_json::from_slice(&with_words_quoted(bytes)).map_err(|_| error)
        } else {
            Err(error)
        }
    };
    serde_json::from_slice(bytes)
        .or_else(quoted)
        .map_err(|error| if error.is_data() { neither(&error) } else { format!("it is not valid JSON: {error}") })
}

fn neither(reason: &dyn fmt::Display) -> String {
    format!(
        "neither trtexec's --exportOutput nor Polygraphy's --save-outputs wrote this ({reason}); the arrays of other \
         programs are read from .npz"
    )
}

/// trtexec writes `nan`, `-nan`, `inf` and `-inf` as C++ prints them, which JSON has no words for.
fn with_words_quoted(bytes: &[u8]) -> Vec<u8> {
    let (mut quoted, mut rest, mut in_text) = (Vec::with_capacity(bytes.len()), bytes, false);
    while let Some(&byte) = rest.first() {
        let word = [&b"-nan"[..], b"nan", b"-inf", b"inf"].into_iter().find(|word| !in_text && rest.starts_with(word));
        let taken = if let Some(word) = word {
            quoted.extend([b"\"", word, b"\""].concat());
            word.len()
        } else {
            in_text ^= byte == b'"';
            quoted.push(byte);
            1
        };
        rest = &rest[taken..];
    }
    quoted
}

fn exported(output: Exported) -> Result<(String, Tensor), String> {
    let Exported { name, dimensions, values } = output;
    let shape =
        dimensions.split('x').filter(|_| !dimensions.is_empty()).map(str::parse).collect::<Result<Vec<usize>, _>>();
    let shape = shape.map_err(|_| format!("`{name}` has the dimensions `{dimensions}`, which are not numbers"))?;
    let values = values.into_iter().map(|Number(value)| value).collect::<Option<Vec<f32>>>();
    let values = values.ok_or_else(|| format!("`{name}` holds values that are not numbers"))?;
    let tensor = Tensor::new(shape, Values::F32(values)).map_err(|error| format!("`{name}`: {error}"))?;
    Ok((name, tensor))
}

/// Results of one runner: its iterations.
fn polygraphy(mut runners: Vec<RunnerResults>) -> Result<Vec<TensorMap>, String> {
    let (Some(RunnerResults(_, iterations)), 0) = (runners.pop(), runners.len()) else {
        return Err(format!("it holds the results of {} runners; save those of one", runners.len() + 1));
    };
    let outputs = |(index, iteration): (usize, Iteration)| {
        let outputs = iteration.outputs.into_iter().filter(|(name, _)| !name.starts_with("polygraphy_"));
        let outputs = outputs.map(|(name, Encoded(array))| {
            let array = array.map_err(|reason| format!("iteration {index}: `{name}` {reason}"))?;
            Ok((name, array))
        });
        outputs.collect()
    };
    iterations.into_iter().enumerate().map(outputs).collect()
}

/// Calls that follow each other, joined where their rows have one shape.
fn in_blocks(calls: Vec<TensorMap>) -> Result<Vec<TensorMap>, String> {
    let mut blocks: Vec<Vec<TensorMap>> = Vec::new();
    for (index, outputs) in calls.into_iter().enumerate() {
        match blocks.last_mut().map(|block| (is_alike(&block[0], &outputs), block)) {
            Some((None, _)) => {
                return Err(format!(
                    "iteration {index}: its outputs are not further rows of those before: they have other names, types or numbers of \
                     axes, or none"
                ));
            }
            Some((Some(true), block)) => block.push(outputs),
            _ => blocks.push(vec![outputs]),
        }
    }
    Ok(blocks.into_iter().map(stacked).collect())
}

/// Whether the rows of both have one shape; `None` where they are not rows of the same outputs.
fn is_alike(before: &TensorMap, next: &TensorMap) -> Option<bool> {
    let mut alike = before.len() == next.len();
    alike.then_some(())?;
    for ((name, before), (other, next)) in before.iter().zip(next) {
        let same = name == other && before.element_type() == next.element_type();
        (same && before.shape().len() == next.shape().len()).then_some(())?;
        alike &= before.shape().get(1..)? == next.shape().get(1..)?;
    }
    Some(alike)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found_in(text: &str) -> Vec<TensorMap> {
        let (Calls::Rows(found) | Calls::Samples(found)) = read(text.as_bytes(), None).unwrap();
        found
    }

    #[test]
    fn what_trtexec_exports() {
        let text = "[\n  { \"name\" : \"logits\"\n  , \"dimensions\" : \"2x3\"\n  , \"values\" : [ 0, 1, -2.5, 3e-05, 4, 5 ]\n  }\n\
                    , { \"name\" : \"boxes\"\n  , \"dimensions\" : \"2\"\n  , \"values\" : [ 7, 8 ]\n  }\n]\n";
        let found = &found_in(text)[0];
        assert_eq!(found["logits"].shape(), [2, 3]);
        assert_eq!(found["logits"].values(), &Values::F32(vec![0.0, 1.0, -2.5, 3e-5, 4.0, 5.0]));
        assert_eq!(found["boxes"].shape(), [2]);
        let is_one = |samples| matches!(read(text.as_bytes(), Some(samples)), Ok(Calls::Samples(_)));
        assert_eq!([1, 2, 3].map(is_one), [true, false, false], "two rows of one sample, or of two");
        let error = read(text.replace("2x3", "2x4").as_bytes(), None).unwrap_err();
        assert!(error.contains("`logits`"), "{error}");
        assert!(read(text.replace("2x3", "?x3").as_bytes(), None).unwrap_err().contains("`?x3`"));
    }

    /// As `exportJSONOutput` of NVIDIA's samples writes it: numbers and what is none as C++ prints them, truth values as
    /// numbers, a single value without extents, names as they are, an output without values.
    #[test]
    fn what_trtexec_exports_of_odd_outputs() {
        let text = "[\n  { \"name\" : \"an inf \"\n  , \"dimensions\" : \"1x4\"\n  , \"values\" : [ -nan, inf, -inf, nan ]\n  }\n\
                    , { \"name\" : \"found\"\n  , \"dimensions\" : \"1x0x4\"\n  , \"values\" : [  ]\n  }\n\
                    , { \"name\" : \"loss\"\n  , \"dimensions\" : \"\"\n  , \"values\" : [ 1.17549e-38 ]\n  }\n]\n";
        // No rows that all of them have.
        assert!(matches!(read(text.as_bytes(), None), Ok(Calls::Samples(_))));
        let found = &found_in(text)[0];
        let Values::F32(odd) = found["an inf "].values() else { panic!("floats") };
        assert!(
            odd[0].is_nan() && odd[3].is_nan() && odd[1] == f32::INFINITY && odd[2] == f32::NEG_INFINITY,
            "{odd:?}"
        );
        assert_eq!((found["found"].shape(), found["loss"].shape()), (&[1, 0, 4][..], &[][..]));
        assert!(read(text.replace("-nan", "none").as_bytes(), None).unwrap_err().contains("not valid JSON"));
        assert!(read(text.replace("-nan", "\"none\"").as_bytes(), None).unwrap_err().contains("not numbers"));
    }

    /// Written by Polygraphy 0.53.6: the numbers 0 to 5, then 10 to 15, as arrays of 2x3.
    #[test]
    fn what_polygraphy_saves() {
        let array = |values: &str| {
            format!(
                "{{\"outputs\": {{\"logits\": {{\"values\": {{\"array\": \"k05VTVBZAQB2AHsnZGVzY3InOiAnPGY0JywgJ2ZvcnRyYW5fb3JkZXInOi\
                 BGYWxzZSwgJ3NoYXBlJzogKDIsIDMpLCB9ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAo{values}\", \
                 \"polygraphy_class\": \"ndarray\"}}, \"polygraphy_class\": \"LazyArray\"}}}}, \"runtime\": 0.1, \
                 \"runner_name\": \"trt-runner\", \"polygraphy_class\": \"IterationResult\"}}"
            )
        };
        let (first, second) = (array("AAAAAAACAPwAAAEAAAEBAAACAQAAAoEA="), array("AACBBAAAwQQAAQEEAAFBBAABgQQAAcEE="));
        let runner = format!("[\"trt-runner-N0\", [{first}, {second}]]");
        let found = &found_in(&format!("{{\"lst\": [{runner}], \"polygraphy_class\": \"RunResults\"}}"))[0];
        assert_eq!(found["logits"].shape(), [4, 3]);
        let expected = [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15].map(|value| value as f32);
        assert_eq!(found["logits"].values(), &Values::F32(expected.to_vec()));
        let error = read(format!("{{\"lst\": [{runner}, {runner}]}}").as_bytes(), None).unwrap_err();
        assert!(error.contains("2 runners"), "{error}");
    }

    #[test]
    fn other_json_is_neither() {
        for text in ["[1, 2]", "{\"tensors\": {}}", "[{\"name\": \"x\"}]"] {
            let error = read(text.as_bytes(), None).unwrap_err();
            assert!(error.contains("--exportOutput") && error.contains("--save-outputs"), "{error}");
        }
        assert!(read(b"[", None).unwrap_err().contains("not valid JSON"));
    }
}
