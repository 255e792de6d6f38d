//! What `trtexec --exportTimes` and `--exportProfile` write, and `calib bench` after them.
//!
//! Times are an array with an object for each call. TensorRT 8.6 to 11 name the transfers `h2dMs` and `d2hMs` and their
//! begin `startH2dMs`; releases before 8 said `inMs`, `outMs` and `startInMs`. `latencyMs` is in all of them. A profile is
//! an array that begins with the number of calls; `medianMs` came with TensorRT 8.4.

use serde::{Deserialize, de::IgnoredAny};

use crate::{
    artifact::too_many_values,
    bench::{Call, Mode, Phases, Times, Timing},
    report::EngineLayerTime,
};

/// A call as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(alias = "startInMs")]
    start_h2d_ms: f64,
    #[serde(default)]
    start_enq_ms: f64,
    #[serde(default)]
    end_enq_ms: f64,
    #[serde(alias = "inMs")]
    h2d_ms: f64,
    compute_ms: f64,
    #[serde(alias = "outMs")]
    d2h_ms: f64,
    latency_ms: f64,
    /// What ran it, as `calib bench` adds.
    provider: Option<String>,
}

/// The calls of a file; otherwise why it is none.
pub(super) fn times(bytes: &[u8], name: &str, batch: usize) -> Result<Times, String> {
    let written: Vec<Written> = serde_json::from_slice(bytes).map_err(|error| {
        several(bytes).unwrap_or_else(|| format!("no times as trtexec --exportTimes writes them: {error}"))
    })?;
    if written.is_empty() {
        return Err("it holds no calls: trtexec was stopped before it measured any".to_owned());
    }
    if let Some(bad) = written.iter().position(|call| !(call.latency_ms > 0.0 && call.latency_ms < 1e9)) {
        return Err(format!("call {bad} took {} ms, which is not a time", written[bad].latency_ms));
    }
    let provider = written[0].provider.clone().unwrap_or_else(|| "tensorrt".to_owned());
    let call = |call: Written| Call {
        start_ms: call.start_h2d_ms,
        end_ms: call.start_h2d_ms + call.latency_ms,
        phases: Some(Phases {
            enqueue_ms: call.end_enq_ms - call.start_enq_ms,
            h2d_ms: call.h2d_ms,
            compute_ms: call.compute_ms,
            d2h_ms: call.d2h_ms,
        }),
    };
    Ok(Times {
        name: name.to_owned(),
        batch,
        mode: Mode { provider, threads: 1, transfers: true, cuda_graph: false },
        timing: Timing::Measured,
        warm_up_calls: 0,
        settled: true,
        calls: written.into_iter().map(call).collect(),
    })
}

/// One of several measurements as `calib bench` writes them, each with its name.
#[derive(Deserialize)]
struct OneOfSeveral {
    times: Option<IgnoredAny>,
    profile: Option<IgnoredAny>,
}

/// Whether a file holds several measurements, and what to do then.
fn several(bytes: &[u8]) -> Option<String> {
    let written: Vec<OneOfSeveral> = serde_json::from_slice(bytes).ok()?;
    written.first().filter(|first| first.times.is_some() || first.profile.is_some())?;
    let count = written.len();
    Some(format!("it holds {count} measurements; let `calib bench` measure one engine with one batch for each file"))
}

/// A layer as it is written; the first element has only the number of calls.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    name: Option<String>,
    time_ms: Option<f64>,
    average_ms: Option<f64>,
    median_ms: Option<f64>,
    /// What ran it, as `calib bench` adds to the first element.
    provider: Option<String>,
}

/// Values in a profile, at most: more than ten for each of as many layers as an engine may have.
const MOST_PROFILE_VALUES: usize = 1 << 21;

/// The layers of a profile and what ran them, where it is told; otherwise why it is none.
pub(super) fn profile(bytes: &[u8]) -> Result<(Vec<EngineLayerTime>, Option<String>), String> {
    if let Some(reason) = too_many_values(bytes, MOST_PROFILE_VALUES) {
        return Err(reason);
    }
    let written: Vec<Layer> = serde_json::from_slice(bytes)
        .map_err(|error| format!("no profile as trtexec --exportProfile writes it: {error}"))?;
    if let Some(reason) = several(bytes) {
        return Err(reason);
    }
    let provider = written.first().and_then(|first| first.provider.clone());
    let named: Vec<_> = written
        .into_iter()
        .filter_map(|layer| Some((layer.name?, layer.time_ms?, layer.average_ms?, layer.median_ms)))
        .collect();
    let total: f64 = named.iter().map(|(_, total, ..)| total).sum();
    if !(total > 0.0 && total.is_finite()) {
        return Err("it holds no layer that took any time".to_owned());
    }
    let layer = |(layer, time, mean_ms, median_ms)| EngineLayerTime { layer, mean_ms, median_ms, share: time / total };
    Ok((named.into_iter().map(layer).collect(), provider))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_old_and_new_releases() {
        let new = r#"[
  { "startEnqMs" : 0.5, "endEnqMs" : 0.75, "startH2dMs" : 1, "endH2dMs" : 1.25, "startComputeMs" : 1.25, "endComputeMs" : 2.25, "startD2hMs" : 2.25, "endD2hMs" : 2.5, "h2dMs" : 0.25, "computeMs" : 1, "d2hMs" : 0.25, "latencyMs" : 1.5 }
, { "startEnqMs" : 2.5, "endEnqMs" : 2.75, "startH2dMs" : 3, "endH2dMs" : 3.25, "startComputeMs" : 3.25, "endComputeMs" : 5.25, "startD2hMs" : 5.25, "endD2hMs" : 5.5, "h2dMs" : 0.25, "computeMs" : 2, "d2hMs" : 0.25, "latencyMs" : 2.5 }
]
"#;
        let found = times(new.as_bytes(), "int8", 4).unwrap();
        assert_eq!(found.latencies(), [1.5, 2.5]);
        assert_eq!(found.throughput().unwrap().mean, 2000.0, "8 samples in 4 ms");
        let phases = found.calls[1].phases.unwrap();
        assert_eq!((phases.enqueue_ms, phases.compute_ms), (0.25, 2.0));
        let old =
            new.replace("H2dMs", "InMs").replace("h2dMs", "inMs").replace("D2hMs", "OutMs").replace("d2hMs", "outMs");
        assert_eq!(times(old.as_bytes(), "int8", 4).unwrap(), found);
    }

    #[test]
    fn what_is_no_list_of_calls_says_so() {
        for (text, why) in [("[]", "no calls"), ("{}", "--exportTimes"), ("[{\"name\": 1}]", "--exportTimes")] {
            assert!(times(text.as_bytes(), "int8", 1).unwrap_err().contains(why), "{text}");
        }
        let several = r#"[{"target": "a", "batch": 1, "times": []}, {"target": "b", "batch": 1, "times": []}]"#;
        assert!(times(several.as_bytes(), "int8", 1).unwrap_err().contains("holds 2 measurements"));
        let several = several.replace("times", "profile");
        assert!(profile(several.as_bytes()).unwrap_err().contains("holds 2 measurements"));
        let never = r#"[{"startH2dMs": 0, "h2dMs": 0, "computeMs": 0, "d2hMs": 0, "latencyMs": -1}]"#;
        assert!(times(never.as_bytes(), "int8", 1).unwrap_err().contains("call 0 took -1 ms"));
    }

    #[test]
    fn layers_of_a_profile_and_their_shares() {
        let text = r#"[ { "count" : 10, "provider" : "x" }, { "name" : "conv1", "timeMs" : 30, "averageMs" : 3, "percentage" : 75 },
            { "name" : "conv2", "timeMs" : 10, "averageMs" : 1, "medianMs" : 0.9, "percentage" : 25 } ]"#;
        let (found, provider) = profile(text.as_bytes()).unwrap();
        assert_eq!(provider.as_deref(), Some("x"));
        assert_eq!(
            (&*found[0].layer, found[0].mean_ms, found[0].median_ms, found[0].share),
            ("conv1", 3.0, None, 0.75)
        );
        assert_eq!((found[1].median_ms, found[1].share), (Some(0.9), 0.25));
        assert!(profile(b"[{\"count\": 0}]").unwrap_err().contains("no layer"));
    }
}
