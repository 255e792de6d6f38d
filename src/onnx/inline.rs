//! The model's own functions, put in the place of their calls.
//!
//! Runtimes do this, too, and then replace operators inside of the bodies by bodies of theirs. Done here, what is in a body is
//! a node like another: it has a name, rules find it, and folding leaves it alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    rc::Rc,
};

use super::{
    Folded, Model,
    load::visit_graphs,
    node::is_default_domain,
    proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto},
};

/// Names of nodes in bodies begin with the names of the calls around them, as long as that can be read.
const LONGEST_NAME: usize = 200;
/// Graphs within graphs, as deep as a file can be read again.
const MAX_DEPTH: usize = 33;

/// Operators that mean something else from these versions on although they look the same. ONNX wants those of a function to be
/// the model's, whatever the versions that both import.
const REINTERPRETED: [(&str, i64); 5] =
    [("GroupNormalization", 21), ("Hardmax", 13), ("LogSoftmax", 13), ("RoiAlign", 16), ("Softmax", 13)];

/// Domain, name and overload of a function.
type Key<'m> = (&'m str, &'m str, &'m str);

impl Model {
    /// The model with the bodies of its functions in place of their calls, and by the name of each call in the main graph the
    /// nodes that came for it.
    ///
    /// Functions with operators that mean something else in the model's operator set stay, and those in domains of ONNX and its
    /// runtime, which may have kernels. No function may call itself, which the [diagnosis](super::diagnose) refuses.
    pub fn inlined(&self) -> (Self, BTreeMap<String, Folded>) {
        let mut calls = BTreeMap::<String, Folded>::new();
        let versions = versions_of_missing_domains(&self.proto);
        let fits = |function: &&FunctionProto| {
            let is_own = |domain: &str| !is_default_domain(domain) && !domain.starts_with("ai.onnx.");
            let mut imports = function.opset_import.iter();
            is_own(function.domain())
                && !function.domain().starts_with("com.microsoft")
                && imports.all(|import| match self.opset(import.domain()) {
                    Some(version) if is_default_domain(import.domain()) => {
                        !function.node.iter().any(|node| differs(node, version, import.version()))
                    }
                    Some(version) => version == import.version(),
                    None => versions.get(import.domain()).is_some_and(|versions| versions.len() == 1),
                })
        };
        let functions: HashMap<Key<'_>, &FunctionProto> = self.proto.functions.iter().filter(fits).map(keyed).collect();
        if functions.is_empty() {
            return (self.clone(), calls);
        }
        let mut proto = self.proto.clone();
        for import in functions.values().flat_map(|function| &function.opset_import) {
            if self.opset(import.domain()).is_none() {
                proto.set_opset(import.domain(), import.version());
            }
        }
        let graph = proto.graph.get_or_insert_default();
        let mut taken = HashSet::new();
        visit_graphs(graph, &mut |graph| each_name(graph, &mut |name| _ = taken.insert(name.clone())));
        let mut inliner = Inliner { functions, taken, number: 0, is_complete: true };
        inliner.graph(graph, 1, &mut |call, node| {
            let folded = calls.entry(call.name().to_owned()).or_default();
            call.op_type().clone_into(&mut folded.op_type);
            folded.into.insert(node.to_owned());
        });
        if inliner.is_complete && inliner.functions.len() == self.proto.functions.len() {
            proto.functions.clear();
        }
        (self.with_proto(proto), calls)
    }
}

fn keyed(function: &FunctionProto) -> (Key<'_>, &FunctionProto) {
    ((function.domain(), function.name(), function.overload()), function)
}

/// The versions that functions import of domains that the model itself does not.
fn versions_of_missing_domains(model: &ModelProto) -> BTreeMap<&str, BTreeSet<i64>> {
    let mut versions: BTreeMap<&str, BTreeSet<i64>> = BTreeMap::new();
    for import in model.functions.iter().flat_map(|function| &function.opset_import) {
        versions.entry(import.domain()).or_default().insert(import.version());
    }
    versions
}

/// Whether an operator in a node means something else in one of two versions of the operator set.
fn differs(node: &NodeProto, one: i64, other: i64) -> bool {
    let crossed = |&(op_type, version): &(&str, i64)| {
        node.is_standard() && node.op_type() == op_type && (one < version) != (other < version)
    };
    REINTERPRETED.iter().any(crossed)
        || node.subgraphs().flat_map(|graph| &graph.node).any(|node| differs(node, one, other))
}

struct Inliner<'m> {
    functions: HashMap<Key<'m>, &'m FunctionProto>,
    /// Names of nodes and tensors.
    taken: HashSet<String>,
    /// Calls so far whose names are too long to begin others.
    number: usize,
    /// Whether no call had to stay.
    is_complete: bool,
}

impl Inliner<'_> {
    /// Replaces the calls in `graph`, telling the outermost call and the name of each node that came for one. Without
    /// recursion over calls: chains of them may be long.
    fn graph(&mut self, graph: &mut GraphProto, depth: usize, came_for: &mut dyn FnMut(&NodeProto, &str)) {
        let mut rest: Vec<(NodeProto, Option<Rc<NodeProto>>)> =
            std::mem::take(&mut graph.node).into_iter().rev().map(|node| (node, None)).collect();
        while let Some((mut node, call)) = rest.pop() {
            let function = self.functions.get(&(node.domain(), node.op_type(), node.overload())).copied();
            if let Some(function) = function.filter(|_| depth <= MAX_DEPTH) {
                let body = self.body(function, &node);
                let call = call.unwrap_or_else(|| Rc::new(node));
                rest.extend(body.into_iter().rev().map(|node| (node, Some(Rc::clone(&call)))));
                continue;
            }
            self.is_complete &= function.is_none();
            node.subgraphs_mut().for_each(|graph| self.graph(graph, depth + 1, &mut |_, _| {}));
            if let Some(call) = call {
                came_for(&call, node.name());
            }
            graph.node.push(node);
        }
    }

    /// The nodes of a function's body for one call.
    fn body(&mut self, function: &FunctionProto, call: &NodeProto) -> Vec<NodeProto> {
        let mut prefix = format!("{}/", call.name());
        if prefix.len() > LONGEST_NAME {
            self.number += 1;
            prefix = format!("{}_{}/", function.name(), self.number);
        }
        let given = |index: usize| call.input.get(index).cloned().unwrap_or_default();
        let mut names: HashMap<String, String> =
            function.input.iter().enumerate().map(|(index, input)| (input.clone(), given(index))).collect();
        let mut nodes = Vec::new();
        for (output, wanted) in function.output.iter().zip(&call.output).filter(|(_, wanted)| !wanted.is_empty()) {
            match names.get(output) {
                // An input that is handed through.
                Some(source) => {
                    let name = self.fresh(format!("{prefix}{output}"));
                    nodes.push(NodeProto::new("Identity", &name, &[source], &[wanted]));
                }
                None => drop(names.insert(output.clone(), wanted.clone())),
            }
        }
        for (index, node) in function.node.iter().enumerate() {
            let name = self.fresh(format!("{prefix}{}", node.label(index)));
            let mut node = NodeProto { name: Some(name), ..node.clone() };
            bind(&mut node, function, call);
            let mut rename = |name: &mut String| {
                let new = || self.fresh(format!("{prefix}{name}"));
                *name = names.entry(name.clone()).or_insert_with(new).clone();
            };
            node.input.iter_mut().chain(&mut node.output).filter(|name| !name.is_empty()).for_each(&mut rename);
            for graph in node.subgraphs_mut() {
                visit_graphs(graph, &mut |graph| each_name(graph, &mut rename));
            }
            nodes.push(node);
        }
        nodes
    }

    fn fresh(&mut self, mut name: String) -> String {
        while !self.taken.insert(name.clone()) {
            name.push('_');
        }
        name
    }
}

/// Names of nodes and tensors in a graph, those of graphs within it aside.
fn each_name(graph: &mut GraphProto, visit: &mut dyn FnMut(&mut String)) {
    let declared = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
    let constants = graph.initializer.iter_mut().map(|constant| &mut constant.name);
    let sparse = graph.sparse_initializer.iter_mut().filter_map(|sparse| Some(&mut sparse.values.as_mut()?.name));
    let named = declared.map(|info| &mut info.name).chain(constants).chain(sparse);
    named
        .flatten()
        .chain(
            graph.node.iter_mut().flat_map(|node| node.name.iter_mut().chain(&mut node.input).chain(&mut node.output)),
        )
        .filter(|name| !name.is_empty())
        .for_each(visit);
}

/// Puts the attributes of `call`, or the function's defaults, where a node of its body refers to them.
fn bind(node: &mut NodeProto, function: &FunctionProto, call: &NodeProto) {
    let default = |name: &str| function.attribute_proto.iter().find(|attribute| attribute.name() == name);
    node.attribute = std::mem::take(&mut node.attribute)
        .into_iter()
        .filter_map(|attribute| match attribute.ref_attr_name() {
            "" => Some(attribute),
            name => Some(AttributeProto {
                name: attribute.name.clone(),
                ..call.attr(name).or_else(|| default(name))?.clone()
            }),
        })
        .collect();
    node.subgraphs_mut().flat_map(|graph| &mut graph.node).for_each(|node| bind(node, function, call));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{proto::OperatorSetIdProto, tests::float_info};

    fn function(name: &str, output: &str, nodes: Vec<NodeProto>) -> FunctionProto {
        let import =
            |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
        FunctionProto {
            name: Some(name.to_owned()),
            domain: Some("own".to_owned()),
            input: vec!["a".to_owned()],
            output: vec![output.to_owned()],
            node: nodes,
            opset_import: vec![import("", 17), import("own", 1)],
            ..FunctionProto::default()
        }
    }

    fn call(op_type: &str, name: &str, input: &str, output: &str) -> NodeProto {
        NodeProto { domain: Some("own".to_owned()), ..NodeProto::new(op_type, name, &[input], &[output]) }
    }

    fn model(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> Model {
        let mut model = crate::onnx::tests::small_model();
        model.proto.graph = Some(GraphProto {
            node: nodes,
            input: vec![float_info("x", &[1, 4])],
            output: vec![float_info("y", &[1, 4])],
            ..GraphProto::default()
        });
        model.proto.functions = functions;
        model.proto.opset_import.clear();
        model.set_opset("", 17);
        model
    }

    fn read(graph: &GraphProto) -> Vec<String> {
        let of_node = |node: &NodeProto| {
            format!("{}: {} <- {} {}", node.name(), node.output.join(" "), node.op_type(), node.input.join(" "))
        };
        graph.node.iter().map(of_node).collect()
    }

    #[test]
    fn calls_within_calls_are_replaced_and_know_their_nodes() {
        let inner = function(
            "Inner",
            "b",
            vec![NodeProto::new("Exp", "e", &["a"], &["t"]), NodeProto::new("Log", "", &["t"], &["b"])],
        );
        let outer =
            function("Outer", "b", vec![call("Inner", "in", "a", "t"), NodeProto::new("Abs", "abs", &["t"], &["b"])]);
        let nodes = vec![
            call("Outer", "one", "x", "m"),
            NodeProto::new("Neg", "neg", &["m"], &["n"]),
            call("Inner", "two", "n", "y"),
        ];
        let (inlined, calls) = model(nodes, vec![inner, outer]).inlined();
        let expected = [
            "one/in/e: one/in/t <- Exp x",
            "one/in/Log_1: one/t <- Log one/in/t",
            "one/abs: m <- Abs one/t",
            "neg: n <- Neg m",
            "two/e: two/t <- Exp n",
            "two/Log_1: y <- Log two/t",
        ];
        assert_eq!(read(inlined.graph()), expected);
        assert!(inlined.proto.functions.is_empty());
        assert_eq!(inlined.opset("own"), Some(1));
        let of = |call: &str| calls[call].into.iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(of("one"), ["one/abs", "one/in/Log_1", "one/in/e"]);
        assert_eq!(of("two"), ["two/Log_1", "two/e"]);
        assert_eq!(calls["one"].op_type, "Outer");
    }

    #[test]
    fn attributes_branches_and_what_is_handed_through() {
        let reference = |name: &str| AttributeProto {
            name: Some("alpha".to_owned()),
            ref_attr_name: Some(name.to_owned()),
            ..AttributeProto::default()
        };
        let branch = GraphProto {
            node: vec![NodeProto::new("Elu", "inner", &["a"], &["t"]).with(reference("slope"))],
            output: vec![float_info("t", &[])],
            ..GraphProto::default()
        };
        let body = vec![
            NodeProto::new("If", "if", &["c"], &["b"]).with(AttributeProto::graph("then_branch", branch)),
            NodeProto::new("Elu", "given", &["a"], &["u"]).with(reference("slope")),
            NodeProto::new("Elu", "default", &["a"], &["v"]).with(reference("other")),
            NodeProto::new("Elu", "absent", &["a"], &["w"]).with(reference("nowhere")),
        ];
        let mut function = function("F", "b", body);
        function.input.push("c".to_owned());
        function.output.push("a".to_owned());
        function.attribute_proto = vec![AttributeProto::float("other", 2.0), AttributeProto::float("slope", 9.0)];
        let mut node = call("F", "call", "x", "y").with(AttributeProto::float("slope", 3.0));
        node.output.push("same".to_owned());
        // `call/t` is taken, and the condition is not given.
        let (inlined, _) =
            model(vec![NodeProto::new("Abs", "call/if", &["x"], &["call/t"]), node], vec![function]).inlined();
        let expected = [
            "call/if: call/t <- Abs x",
            "call/a: same <- Identity x",
            "call/if_: y <- If ",
            "call/given: call/u <- Elu x",
            "call/default: call/v <- Elu x",
            "call/absent: call/w <- Elu x",
        ];
        assert_eq!(read(inlined.graph()), expected);
        let slopes: Vec<_> = inlined.graph().node[3..].iter().map(|node| node.attr_f("alpha")).collect();
        assert_eq!(slopes, [Some(3.0), Some(2.0), None]);
        let branch = inlined.graph().node[2].subgraphs().next().unwrap();
        assert_eq!(read(branch), ["call/inner: call/t_ <- Elu x"]);
        assert_eq!((branch.output[0].name(), branch.node[0].attr_f("alpha")), ("call/t_", Some(3.0)));
    }

    #[test]
    fn functions_of_another_operator_set_and_of_the_runtime_stay() {
        let body = || vec![NodeProto::new("Exp", "e", &["a"], &["b"])];
        let mut older = function("Older", "b", vec![NodeProto::new("Softmax", "s", &["a"], &["b"])]);
        older.opset_import[0].version = Some(12);
        let mut same = function("F", "b", body());
        same.opset_import[0].version = Some(12);
        let known = FunctionProto { domain: Some("com.microsoft".to_owned()), ..function("Gelu", "b", body()) };
        let nodes = vec![call("Older", "o", "x", "m"), call("F", "f", "m", "y")];
        let (inlined, calls) = model(nodes, vec![older, known, same]).inlined();
        assert_eq!(read(inlined.graph()), ["o: m <- Older x", "f/e: y <- Exp m"]);
        assert_eq!((inlined.proto.functions.len(), inlined.opset("")), (3, Some(17)));
        assert_eq!(calls.keys().collect::<Vec<_>>(), ["f"]);
    }

    #[test]
    fn long_chains_of_calls_end() {
        let level = |index: usize| match index {
            0 => function("F0", "b", vec![NodeProto::new("Exp", "e", &["a"], &["b"])]),
            _ => function(&format!("F{index}"), "b", vec![call(&format!("F{}", index - 1), "call", "a", "b")]),
        };
        let (inlined, _) = model(vec![call("F5000", "c", "x", "y")], (0..=5000).map(level).collect()).inlined();
        assert_eq!(inlined.graph().node[0].op_type(), "Exp");
        assert!(inlined.graph().node[0].name().len() < 2 * LONGEST_NAME);
    }
}
