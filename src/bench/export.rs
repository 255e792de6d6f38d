//! Times in the form of `trtexec --exportTimes`, for the scripts that people have for it.

use serde_json::json;

use super::{Call, Times};

impl Times {
    /// An array with one object for each call, times in milliseconds since the measurement began. Seen from the host
    /// the whole call is computation, and both transfers take no time of their own.
    pub fn trtexec_json(&self) -> serde_json::Value {
        let trace = |call: &Call| {
            let (start, end) = (call.start_ms, call.end_ms);
            json!({
                "startEnqMs": start, "endEnqMs": end,
                "startH2dMs": start, "endH2dMs": start,
                "startComputeMs": start, "endComputeMs": end,
                "startD2hMs": end, "endD2hMs": end,
                "h2dMs": 0.0, "computeMs": end - start, "d2hMs": 0.0, "latencyMs": end - start,
            })
        };
        self.calls.iter().map(trace).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_trtexec() {
        let calls = vec![Call { start_ms: 1.0, end_ms: 3.5 }];
        let times = Times { name: "x".to_owned(), batch: 1, warm_up_calls: 0, settled: true, calls };
        let expected = r#"[{"computeMs":2.5,"d2hMs":0.0,"endComputeMs":3.5,"endD2hMs":3.5,"endEnqMs":3.5,"endH2dMs":1.0,"h2dMs":0.0,"latencyMs":2.5,"startComputeMs":1.0,"startD2hMs":3.5,"startEnqMs":1.0,"startH2dMs":1.0}]"#;
        assert_eq!(times.trtexec_json().to_string(), expected);
    }
}
