//! Times and layer times in the forms of `trtexec --exportTimes` and `--exportProfile`, for the scripts that people have
//! for them.

use serde_json::{Value, json};

use super::{Call, Times};
use crate::backend::LayerTime;

impl Times {
    /// An array with one object for each call, times in milliseconds since the measurement began. Where the backend tells
    /// no parts, the whole call is computation and the transfers take no time of their own. `provider` is not a word of trtexec's:
    /// it tells whose times these are.
    pub fn trtexec_json(&self) -> Value {
        let trace = |call: &Call| {
            let (start, end) = (call.start_ms, call.end_ms);
            let (enqueue, h2d, compute, d2h) = match call.phases {
                Some(p) => (p.enqueue_ms, p.h2d_ms, p.compute_ms, p.d2h_ms),
                None => (end - start, 0.0, end - start, 0.0),
            };
            let (computing, copying) = (start + h2d, start + h2d + compute);
            json!({
                "provider": self.mode.provider,
                "startEnqMs": start, "endEnqMs": start + enqueue,
                "startH2dMs": start, "endH2dMs": computing,
                "startComputeMs": computing, "endComputeMs": copying,
                "startD2hMs": copying, "endD2hMs": copying + d2h,
                "h2dMs": h2d, "computeMs": compute, "d2hMs": d2h, "latencyMs": h2d + compute + d2h,
            })
        };
        self.calls.iter().map(trace).collect()
    }
}

/// An array that begins with the number of calls and what took the times (which trtexec does not tell), then one object for each layer: the time of all calls together, mean and
/// median of a call, and the share of the time of all layers in percent.
pub fn profile_json(layers: &[LayerTime], calls: usize, provider: &str) -> Value {
    let total: f64 = layers.iter().map(|layer| layer.total_ms).sum();
    let layer = |layer: &LayerTime| {
        json!({
            "name": layer.layer, "timeMs": layer.total_ms, "averageMs": layer.mean_ms, "medianMs": layer.median_ms,
            "percentage": 100.0 * layer.total_ms / total,
        })
    };
    std::iter::once(json!({ "count": calls, "provider": provider })).chain(layers.iter().map(layer)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Mode, Phases, Timing};

    #[test]
    fn names_are_those_of_trtexec() {
        let phases = Phases { enqueue_ms: 0.1, h2d_ms: 0.5, compute_ms: 1.0, d2h_ms: 0.25 };
        let mode = Mode { provider: "x".to_owned(), threads: 1, transfers: false, cuda_graph: false };
        let times = |phases| Times {
            name: "x".to_owned(),
            batch: 1,
            mode: mode.clone(),
            timing: Timing::Measured,
            warm_up_calls: 0,
            settled: true,
            calls: vec![Call { start_ms: 1.0, end_ms: 3.5, phases }],
        };
        let expected = r#"[{"computeMs":2.5,"d2hMs":0.0,"endComputeMs":3.5,"endD2hMs":3.5,"endEnqMs":3.5,"endH2dMs":1.0,"h2dMs":0.0,"latencyMs":2.5,"provider":"x","startComputeMs":1.0,"startD2hMs":3.5,"startEnqMs":1.0,"startH2dMs":1.0}]"#;
        assert_eq!(times(None).trtexec_json().to_string(), expected);
        let expected = r#"[{"computeMs":1.0,"d2hMs":0.25,"endComputeMs":2.5,"endD2hMs":2.75,"endEnqMs":1.1,"endH2dMs":1.5,"h2dMs":0.5,"latencyMs":1.75,"provider":"x","startComputeMs":1.5,"startD2hMs":2.5,"startEnqMs":1.0,"startH2dMs":1.0}]"#;
        assert_eq!(times(Some(phases)).trtexec_json().to_string(), expected);
    }

    #[test]
    fn a_profile_has_the_count_first_and_shares_of_the_whole() {
        let layer = |layer: &str, ms: &[f64]| LayerTime::new(layer.to_owned(), ms).unwrap();
        let expected = json!([
            { "count": 3, "provider": "x" },
            { "name": "a", "timeMs": 6.0, "averageMs": 2.0, "medianMs": 1.5, "percentage": 75.0 },
            { "name": "b", "timeMs": 2.0, "averageMs": 2.0, "medianMs": 2.0, "percentage": 25.0 },
        ]);
        assert_eq!(profile_json(&[layer("a", &[1.5, 3.5, 1.0]), layer("b", &[2.0])], 3, "x"), expected);
        assert_eq!(profile_json(&[], 0, "x").to_string(), r#"[{"count":0,"provider":"x"}]"#);
    }
}
