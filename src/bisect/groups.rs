//! Nodes that are lifted together: by operator type, by block, or by what a regular expression captures.

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::search::Candidate;

/// How nodes are put into groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Grouping {
    /// Each by itself.
    #[default]
    Node,
    /// All of one operator type.
    OpType,
    /// All of one block by their names: `/layer1/layer1.0/conv1/Conv` is in `/layer1/layer1.0`, `block3/expand` in `block3`.
    Block,
    /// All for which this expression's first capture (or whole match) is the same; a node it does not match stays by
    /// itself.
    Regex(String),
}

/// The key that `grouping` gives to a node.
fn key(grouping: &Grouping, expression: Option<&Regex>, node: &str, op_type: &str) -> String {
    let found = match grouping {
        Grouping::Node => None,
        Grouping::OpType => Some(op_type),
        Grouping::Block => block(node),
        Grouping::Regex(_) => expression
            .and_then(|regex| regex.captures(node))
            .and_then(|captures| captures.get(1).or_else(|| captures.get(0)))
            .map(|capture| capture.as_str()),
    };
    found.unwrap_or(node).to_owned()
}

/// The innermost of the first numbered scopes (`/blocks/blocks.2/blocks.2.1`, as PyTorch exports them), or else the
/// scope two levels above the operator; one level where there is no second, none for a bare name.
fn block(node: &str) -> Option<&str> {
    let module = node.rsplit_once('/')?.0;
    let mut numbered: Option<(usize, &str)> = None;
    let mut end = 0;
    for scope in module.split_inclusive('/') {
        end += scope.len();
        let name = scope.trim_end_matches('/');
        let is_numbered = name.rsplit_once('.').is_some_and(|(_, number)| number.parse::<u32>().is_ok());
        match numbered {
            None if is_numbered => numbered = Some((end, name)),
            Some((_, outer)) if is_numbered && name.starts_with(outer) => numbered = Some((end, name)),
            Some(_) => break,
            None => {}
        }
    }
    if let Some((end, _)) = numbered {
        return Some(module[..end].trim_end_matches('/'));
    }
    match module.rsplit_once('/') {
        Some((block, _)) if !block.is_empty() => Some(block),
        _ => Some(module).filter(|module| !module.is_empty()),
    }
}

/// Merges single-node candidates, each with its operator type, into groups: sensitivities and costs add up. Groups
/// come in the order of their first nodes.
///
/// # Errors
/// The regular expression is malformed.
pub fn group(nodes: &[(Candidate, String)], grouping: &Grouping) -> Result<Vec<Candidate>, regex::Error> {
    let expression = match grouping {
        Grouping::Regex(pattern) => Some(Regex::new(pattern)?),
        _ => None,
    };
    let mut groups: Vec<Candidate> = Vec::new();
    let mut index = std::collections::BTreeMap::new();
    for (candidate, op_type) in nodes {
        let name = key(grouping, expression.as_ref(), &candidate.name, op_type);
        let &mut at = index.entry(name.clone()).or_insert(groups.len());
        match groups.get_mut(at) {
            Some(group) => {
                group.nodes.extend(candidate.nodes.iter().cloned());
                group.sensitivity += candidate.sensitivity;
                group.cost += candidate.cost;
            }
            None => groups.push(Candidate { name, ..candidate.clone() }),
        }
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(grouping: &Grouping) -> Vec<(String, usize, f64)> {
        let nodes: Vec<_> = [
            ("/conv_stem/Conv", "Conv"),
            ("/blocks/blocks.0/conv_dw/Conv", "Conv"),
            ("/blocks/blocks.0/conv_pw/Conv", "Conv"),
            ("/blocks/blocks.1/conv_pw/Conv", "Conv"),
            ("/blocks/blocks.1/Add", "Add"),
            ("Gemm_65", "Gemm"),
        ]
        .into_iter()
        .map(|(node, op_type)| {
            let nodes = [node.to_owned()].into();
            (Candidate { name: node.to_owned(), nodes, sensitivity: 1.0, cost: 2.0 }, op_type.to_owned())
        })
        .collect();
        let groups = group(&nodes, grouping).unwrap();
        assert!(groups.iter().all(|g| g.sensitivity * 2.0 == g.cost));
        groups.into_iter().map(|g| (g.name, g.nodes.len(), g.sensitivity)).collect()
    }

    fn named(list: &[(&str, usize)]) -> Vec<(String, usize, f64)> {
        list.iter().map(|&(name, count)| (name.to_owned(), count, count as f64)).collect()
    }

    #[test]
    fn groups_come_in_graph_order_and_add_up() {
        assert_eq!(groups(&Grouping::Node).len(), 6);
        assert_eq!(groups(&Grouping::OpType), named(&[("Conv", 4), ("Add", 1), ("Gemm", 1)]));
        assert_eq!(
            groups(&Grouping::Regex(r"blocks\.(\d+)".to_owned())),
            named(&[("/conv_stem/Conv", 1), ("0", 2), ("1", 2), ("Gemm_65", 1)])
        );
        assert!(group(&[], &Grouping::Regex("(".to_owned())).is_err());
    }

    #[test]
    fn a_block_is_the_numbered_scope_or_the_one_two_levels_up() {
        assert_eq!(block("/blocks/blocks.0/conv_dw/Conv"), Some("/blocks/blocks.0"));
        assert_eq!(block("/blocks/blocks.0/depthwise/conv/Conv"), Some("/blocks/blocks.0"));
        assert_eq!(block("/blocks/blocks.2/blocks.2.1/conv_pw/Conv"), Some("/blocks/blocks.2/blocks.2.1"));
        assert_eq!(block("/features/features.3/conv/conv.0/conv.0.0/Conv"), Some("/features/features.3"));
        assert_eq!(block("block3/expand/relu6"), Some("block3"));
        assert_eq!(block("/conv_stem/Conv"), Some("/conv_stem"));
        assert_eq!(block("a/b"), Some("a"));
        assert_eq!(block("/Add"), None);
        assert_eq!(block("Gemm_65"), None);
    }
}
