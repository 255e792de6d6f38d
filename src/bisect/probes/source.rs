//! What an engine does not add: how far the model that it was built from is off by itself.

use serde::{Deserialize, Serialize};

use super::Judged;
use crate::analyse::graphwise::TensorDivergence;

/// The model that an engine was built from, in ONNX Runtime, against the same reference as the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SourceModel {
    /// How far its tensors are off.
    pub tensors: Vec<TensorDivergence>,
    /// Whether it is the reference itself: then its tensors are off by what single codes that are rounded otherwise do to
    /// those behind them, and elsewhere in the engine.
    pub is_reference: bool,
    /// From which SQNR in decibels down a tensor diverges.
    pub threshold_db: f64,
}

/// How much worse an engine's tensor must be than the model's, in decibels, before the engine is to blame: its own error is as
/// large as the model's, then.
const WORSE_DB: f64 = 3.0;

/// An engine whose tensors are this good has no fault worth looking for, in decibels; 8 bits cost more in most tensors.
const GOOD_DB: f64 = 30.0;

/// Below this SQNR, in decibels, a node of an engine is off by itself: it and the model's were given the same, so that only the
/// order of sums and codes that are rounded otherwise lie between them.
pub const BY_ITSELF_DB: f64 = GOOD_DB - WORSE_DB;

impl SourceModel {
    /// Whether a tensor of the engine is beyond the threshold, and not for what the model loses by itself.
    pub fn diverged(&self, tensor: &TensorDivergence) -> bool {
        tensor.diverged(self.threshold_db) && tensor.diverged(self.own_db(tensor) - WORSE_DB)
    }

    /// Whether it is worse than the model is by itself, however far from the threshold.
    pub fn is_left_by(&self, tensor: &TensorDivergence) -> bool {
        tensor.diverged(self.own_db(tensor).min(GOOD_DB) - WORSE_DB)
    }

    /// SQNR in decibels that the model has without the engine.
    fn own_db(&self, tensor: &TensorDivergence) -> f64 {
        let counts = |own: &&TensorDivergence| self.is_reference || own.site.tensor == tensor.site.tensor;
        self.tensors.iter().filter(counts).map(TensorDivergence::off).fold(f64::INFINITY, f64::min)
    }

    /// What the model loses without the engine, and what that means for the engine.
    pub fn sentence(&self, judged: Judged) -> String {
        let db = |tensor: &TensorDivergence| format!("{:.1} dB", tensor.off());
        let found = if self.is_reference {
            let worst =
                self.tensors.iter().min_by(|a, b| a.off().total_cmp(&b.off())).filter(|worst| worst.off().is_finite());
            worst.map_or_else(
                || "gives the same as the reference".to_owned(),
                |worst| {
                    format!(
                        "is the reference itself, and off by {} at `{}` where codes are rounded otherwise",
                        db(worst),
                        worst.site.tensor
                    )
                },
            )
        } else {
            let first = self.tensors.iter().find(|tensor| tensor.diverged(self.threshold_db));
            first.map_or_else(
                || "has no tensor beyond the threshold".to_owned(),
                |first| {
                    format!(
                        "is first beyond the threshold at `{}` of `{}`: {}",
                        first.site.tensor,
                        first.site.node,
                        db(first)
                    )
                },
            )
        };
        let found = format!("the model that the engine was built from {found} (ONNX Runtime)");
        match judged {
            judged if judged.is_by_itself() => found,
            _ => format!(
                "{found}; a tensor of the engine diverges where it is {WORSE_DB} dB worse than that, and Q/DQ in front of a \
                 node count as part of it"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analyse::graphwise::TensorSite,
        compare::{NonFinite, graphwise::TensorDifference},
    };

    fn tensor(name: &str, sqnr_db: f64) -> TensorDivergence {
        let node = format!("makes {name}");
        TensorDivergence {
            site: TensorSite { tensor: name.to_owned(), node, op_type: "Conv".to_owned(), amax: None },
            difference: TensorDifference {
                count: 1,
                unequal: None,
                sqnr_db: Some(sqnr_db),
                cosine: 1.0,
                max_abs: 0.0,
                saturated: None,
                non_finite: NonFinite::default(),
                first_non_finite: None,
                shape_mismatch: None,
            },
        }
    }

    #[test]
    fn what_the_model_loses_by_itself_is_no_fault_of_the_engine() {
        let model = |is_reference| SourceModel {
            tensors: vec![tensor("a", 45.0), tensor("b", 19.0), tensor("c", 25.0)],
            is_reference,
            threshold_db: 20.0,
        };
        let source = model(false);
        let judged = |name, db| (source.diverged(&tensor(name, db)), source.is_left_by(&tensor(name, db)));
        assert_eq!(judged("b", 18.0), (false, false), "beyond the threshold, as the model");
        assert_eq!(judged("b", 15.0), (true, true));
        assert_eq!(judged("c", 21.0), (false, true), "within the threshold, but worse than the model");
        assert_eq!(judged("a", 35.0), (false, false), "good enough");
        assert_eq!(judged("unknown", 10.0), (true, true));
        assert!(
            source.sentence(Judged::AddedUp).contains("beyond the threshold at `b` of `makes b`: 19.0 dB"),
            "{}",
            source.sentence(Judged::AddedUp)
        );
        // Against itself, the worst tensor tells what rounding does.
        let source = model(true);
        assert!(!source.is_left_by(&tensor("a", 17.0)) && source.is_left_by(&tensor("a", 15.0)));
        assert!(
            source.sentence(Judged::AddedUp).contains("off by 19.0 dB at `b`"),
            "{}",
            source.sentence(Judged::AddedUp)
        );
    }
}
