//! What is wrong with a model, before any time is spent on it.
//!
//! [`diagnose`] looks for what exports get wrong and says what to do about it. Errors keep the model from running,
//! warnings do not.

mod operators;
mod size;
mod structure;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Model;

/// Whether a model can be used in spite of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, but the result may not be what is wanted.
    Warning,
}

/// The kinds of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it, the findings' messages explain it")]
pub enum Rule {
    MissingWeights,
    DamagedWeights,
    MissingExternalData,
    UndefinedTensor,
    DuplicateTensor,
    Cycle,
    Unsorted,
    DuplicateNodeName,
    Opset,
    UnknownOperator,
    ForeignOperator,
    NoInputs,
    NoOutputs,
    Extent,
    DynamicAxes,
    InitializerIsInput,
    AlreadyQuantized,
    Random,
    Functions,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Finding {
    /// Whether the model can be used nevertheless.
    pub severity: Severity,
    /// What kind of finding it is.
    pub rule: Rule,
    /// Nodes or tensors that are affected, all of them.
    pub subjects: Vec<String>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.severity == Severity::Error { "error" } else { "warning" };
        write!(f, "{severity}: {}; {}", self.message, self.hint)
    }
}

/// All findings, errors first.
pub fn diagnose(model: &Model) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    structure::inputs_and_outputs(model, &mut findings);
    structure::weights(model, &mut findings);
    structure::connections(model, &mut findings);
    operators::check(model, &mut findings);
    size::functions(model, &mut findings);
    size::filled_tensors(model, &mut findings);
    findings.0.sort_by_key(|finding| finding.severity);
    findings.0
}

struct Findings(Vec<Finding>);

impl Findings {
    /// Adds a finding about some subjects, if there are any. `message` gets their number and a short list of them.
    fn add<S: Into<String>>(
        &mut self,
        severity: Severity,
        rule: Rule,
        subjects: impl IntoIterator<Item = S>,
        message: impl FnOnce(usize, &str) -> String,
        hint: &str,
    ) {
        let subjects: Vec<String> = subjects.into_iter().map(Into::into).collect();
        if !subjects.is_empty() {
            let message = message(subjects.len(), &list(&subjects));
            self.0.push(Finding { severity, rule, subjects, message, hint: hint.to_owned() });
        }
    }
}

/// The first few names.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let rest = names.len().saturating_sub(SHOWN);
    if rest == 0 { shown.join(", ") } else { format!("{} and {rest} more", shown.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{
            proto::{
                AttributeProto, DimensionValue, FunctionProto, NodeProto, OperatorSetIdProto, TensorProto, TypeValue,
            },
            tests::{float_info, small_model},
        },
        tensor::{Tensor, Values},
    };

    fn found(model: &Model) -> Vec<(Severity, Rule)> {
        diagnose(model).iter().map(|finding| (finding.severity, finding.rule)).collect()
    }

    /// What `edit` does to a healthy model must be found, and nothing else.
    #[track_caller]
    fn finds(expected: &[(Severity, Rule)], text: &str, edit: impl FnOnce(&mut Model)) {
        let mut model = small_model();
        edit(&mut model);
        assert_eq!(found(&model), expected);
        let all = diagnose(&model).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(all.contains(text), "{all}");
    }

    const ERROR: Severity = Severity::Error;
    const WARNING: Severity = Severity::Warning;

    #[test]
    fn a_healthy_model_has_no_findings() {
        assert_eq!(diagnose(&small_model()), []);
    }

    #[test]
    fn missing_and_damaged_weights() {
        let text = "exported without its weights: 1 inputs of the graph look like weights (`fc.weight`)";
        finds(&[(ERROR, Rule::MissingWeights)], text, |model| {
            let graph = model.graph_mut();
            graph.initializer.remove(0);
            graph.input.push(float_info("fc.weight", &[4, 300]));
            graph.node[0].input[1] = "fc.weight".to_owned();
        });
        let mut recurrent = small_model();
        let graph = recurrent.graph_mut();
        graph.input.push(float_info("state", &[1, 1, 8]));
        graph.node[0].op_type = Some("LSTM".to_owned());
        graph.node[0].input.resize(5, String::new());
        graph.node[0].input.push("state".to_owned());
        assert!(diagnose(&recurrent).iter().all(|finding| finding.rule != Rule::MissingWeights));
        finds(&[(ERROR, Rule::UndefinedTensor)], "nothing produces them: `w`", |model| {
            model.graph_mut().initializer.remove(0);
        });
        finds(&[(ERROR, Rule::DamagedWeights)], "tensor `w` of shape [4, 301] needs 4816 bytes, but 4800", |model| {
            model.graph_mut().initializer[0].dims[1] = 301;
        });
        finds(&[(ERROR, Rule::MissingExternalData)], "`w`", |model| {
            model.graph_mut().initializer[0].data_location = Some(1);
        });
        finds(&[(WARNING, Rule::InitializerIsInput)], "1 weights are declared as inputs too", |model| {
            model.graph_mut().input.push(float_info("w", &[4, 300]));
        });
    }

    #[test]
    fn broken_structure() {
        finds(&[(ERROR, Rule::UndefinedTensor)], "nothing produces them: `gone`, `nowhere`", |model| {
            model.graph_mut().output.push(float_info("nowhere", &[-1]));
            let branch = model.graph_mut().node[2].subgraphs_mut().next().unwrap();
            branch.node[0].input[0] = "gone".to_owned();
        });
        finds(&[(ERROR, Rule::Cycle)], "cycle through node `Relu_1`", |model| {
            model.graph_mut().node[1].input[0] = "h".to_owned();
        });
        finds(&[(ERROR, Rule::DuplicateTensor)], "`p` is made more than once", |model| {
            model.graph_mut().node[1].output[0] = "p".to_owned();
        });
        finds(&[(WARNING, Rule::Unsorted)], "before what they read", |model| model.graph_mut().node.swap(0, 1));
        finds(&[(WARNING, Rule::DuplicateNodeName)], "share a name: `fc`", |model| {
            model.graph_mut().node[1].name = Some("fc".to_owned());
        });
        finds(&[(ERROR, Rule::NoInputs), (ERROR, Rule::UndefinedTensor)], "no inputs", |model| {
            model.graph_mut().input.clear();
        });
        finds(&[(ERROR, Rule::NoOutputs)], "no outputs", |model| model.graph_mut().output.clear());
    }

    #[test]
    fn operators_and_opsets() {
        finds(&[(ERROR, Rule::UnknownOperator)], "Frobnicate does not exist in ONNX: `Relu_1`", |model| {
            model.graph_mut().node[1].op_type = Some("Frobnicate".to_owned());
        });
        finds(&[(ERROR, Rule::UnknownOperator)], "Gelu needs opset 20, but the model uses 13", |model| {
            model.graph_mut().node[1].op_type = Some("Gelu".to_owned());
        });
        finds(&[(ERROR, Rule::UnknownOperator)], "Upsample does not exist in opset 13: Resize", |model| {
            let branch = model.graph_mut().node[2].subgraphs_mut().next().unwrap();
            branch.node[0].op_type = Some("Upsample".to_owned());
        });
        finds(&[(WARNING, Rule::ForeignOperator)], "domain my.ops is not standard", |model| {
            model.graph_mut().node[1].domain = Some("my.ops".to_owned());
        });
        finds(&[(ERROR, Rule::Opset)], "does not say which version", |model| model.proto.opset_import.clear());
        finds(&[(ERROR, Rule::Opset)], "in several versions: `ai.onnx`", |model| {
            let again = OperatorSetIdProto { domain: Some("ai.onnx".to_owned()), version: Some(12) };
            model.proto.opset_import.push(again);
        });
        finds(&[(WARNING, Rule::Opset)], "opset 99", |model| model.set_opset("", 99));
        finds(&[(WARNING, Rule::AlreadyQuantized)], "already quantized: 1 nodes (`q`)", |model| {
            let node = NodeProto::new("QuantizeLinear", "q", &["h", "w", ""], &["hq"]);
            model.graph_mut().node.push(node.with(AttributeProto::int("axis", 0)));
        });
    }

    #[test]
    fn nodes_that_draw_random_numbers_are_named() {
        finds(&[(WARNING, Rule::Random)], "1 nodes draw random numbers (`noise`)", |model| {
            model.graph_mut().node.push(NodeProto::new("RandomNormalLike", "noise", &["h"], &["n"]));
        });
    }

    /// A function of `domain` local that calls others.
    fn function(name: &str, calls: &[&str]) -> FunctionProto {
        let node = calls.iter().map(|call| {
            let mut node = NodeProto::new(call, call, &["a"], &["b"]);
            node.domain = Some("local".to_owned());
            node
        });
        FunctionProto {
            name: Some(name.to_owned()),
            domain: Some("local".to_owned()),
            node: node.collect(),
            ..Default::default()
        }
    }

    fn with_functions(model: &mut Model, functions: Vec<FunctionProto>) {
        model.graph_mut().node[1].op_type = functions[0].name.clone();
        model.graph_mut().node[1].domain = Some("local".to_owned());
        model.proto.functions = functions;
    }

    #[test]
    fn functions_that_grow_without_end_or_beyond_measure() {
        let levels = |count: usize, fan: usize| -> Vec<FunctionProto> {
            let calls = |level: usize| vec![format!("F{}", level + 1); fan];
            (0..count)
                .map(|level| {
                    let calls = calls(level);
                    function(&format!("F{level}"), &calls.iter().map(String::as_str).collect::<Vec<_>>())
                })
                .collect()
        };
        finds(&[(ERROR, Rule::Functions)], "more than 1048576 nodes", |model| with_functions(model, levels(30, 2)));
        finds(&[(ERROR, Rule::Functions)], "more than 1048576 nodes", |model| with_functions(model, levels(200, 3)));
        finds(&[], "", |model| with_functions(model, levels(10, 2)));
        // As deep as it gets: no recursion of our own.
        finds(&[], "", |model| with_functions(model, levels(50_000, 1)));
        let text = "the function `A` of domain `local` calls itself";
        finds(&[(ERROR, Rule::Cycle)], text, |model| with_functions(model, vec![function("A", &["A"])]));
        let cycle = vec![function("F", &["A"]), function("A", &["B"]), function("B", &["C", "A"])];
        finds(&[(ERROR, Rule::Cycle)], "calls itself", |model| with_functions(model, cycle));
    }

    #[test]
    fn tensors_filled_from_a_constant_shape() {
        let shape = |values: &[i64]| {
            TensorProto::from_tensor("s", Tensor::new(vec![values.len()], Values::I64(values.to_vec())).unwrap())
        };
        let with = |op_type: &'static str, values: &'static [i64]| {
            move |model: &mut Model| {
                let inputs: &[&str] = if op_type == "Expand" { &["x", "s"] } else { &["s"] };
                model.graph_mut().initializer.push(shape(values));
                model.graph_mut().node.push(NodeProto::new(op_type, "fill", inputs, &["filled"]));
            }
        };
        let text = "a constant shape asks for more than 536870912 values: `fill`";
        for op_type in ["ConstantOfShape", "Expand"] {
            finds(&[(ERROR, Rule::Extent)], text, with(op_type, &[40_000, 40_000]));
            finds(&[(ERROR, Rule::Extent)], text, with(op_type, &[i64::MAX, i64::MAX, 2]));
            finds(&[], "", with(op_type, &[1000, 1000]));
        }
        finds(&[(ERROR, Rule::Extent)], text, |model| {
            let constant = AttributeProto::tensor("value", shape(&[1 << 40]));
            let node = NodeProto::new("Constant", "c", &[], &["s"]).with(constant);
            model.graph_mut().node.extend([node, NodeProto::new("ConstantOfShape", "fill", &["s"], &["filled"])]);
        });
    }

    #[test]
    fn extents_and_dynamic_axes() {
        let set_output =
            |dims: &'static [i64]| move |model: &mut Model| model.graph_mut().output[0] = float_info("y", dims);
        finds(
            &[(WARNING, Rule::DynamicAxes)],
            "`x` has a dynamic first axis, but it is fixed at 1 in `y`",
            set_output(&[1, 300]),
        );
        // What a recurrent layer reads begins with time.
        let mut by_time = small_model();
        set_output(&[1, 300])(&mut by_time);
        by_time.graph_mut().node[0].op_type = Some("GRU".to_owned());
        assert_eq!(by_time.graph().node[0].input[0], "x");
        assert!(diagnose(&by_time).iter().all(|finding| finding.rule != Rule::DynamicAxes));
        finds(&[(ERROR, Rule::Extent)], "an extent of 0: `y`", set_output(&[-1, 0]));
        finds(&[(WARNING, Rule::Extent)], "a negative extent: `y`", |model| {
            model.graph_mut().output[0] = float_info("y", &[-1, 300]);
            if let Some(TypeValue::TensorType(tensor)) = &mut model.graph_mut().output[0].r#type.as_mut().unwrap().value
            {
                tensor.shape.as_mut().unwrap().dim[1].value = Some(DimensionValue::DimValue(-1));
            }
        });
    }

    #[test]
    fn long_lists_are_cut_in_the_message_only() {
        let mut model = small_model();
        model.graph_mut().output.extend((0..9).map(|index| float_info(&format!("t{index}"), &[-1])));
        let finding = &diagnose(&model)[0];
        assert!(finding.message.ends_with("`t0`, `t1`, `t2`, `t3`, `t4` and 4 more"), "{finding}");
        assert_eq!(finding.subjects.len(), 9);
    }
}
