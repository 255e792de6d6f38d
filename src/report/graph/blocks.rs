//! Blocks: a graph of thousands of nodes as a tree, of which one level is looked at.
//!
//! Names that were made by modules tell the tree (`/features/features.3/conv/Conv`). Where they tell nothing, structure
//! does: what lies between two places that a single value crosses is a block (a residual block, a branch), and long chains
//! are cut into pieces.

use std::collections::BTreeMap;

use crate::quantize::ModelGraph;

/// Parts of one block, at most: more are cut into pieces.
const MOST_PARTS: usize = 24;
/// Share of nodes that names must put into blocks for names to be followed.
const TELLING: f64 = 0.5;

/// Something in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Node(usize),
    Block(usize),
}

/// Nodes that are drawn as one until they are asked for.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub name: String,
    /// The block that it is in; the whole graph is in itself.
    pub parent: usize,
    /// In topological order, as far as the graph of the parts has one.
    pub parts: Vec<Part>,
}

/// The tree of a graph: the whole first, every block before those in it; and the block of every node.
pub(super) struct Tree {
    pub blocks: Vec<Block>,
    pub block_of: Vec<usize>,
}

/// A tree that is being made.
enum Piece {
    Node(usize),
    Group(String, Vec<Piece>),
}

impl Piece {
    /// Place in the topological order of its first node.
    fn first(&self, rank: &[usize]) -> usize {
        match self {
            Self::Node(node) => rank[*node],
            Self::Group(_, pieces) => pieces.iter().map(|piece| piece.first(rank)).min().unwrap_or(0),
        }
    }
}

/// Makes the tree.
pub(super) fn tree(graph: &ModelGraph) -> Tree {
    let order = topological(graph);
    let mut rank = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, &node)| rank[node] = place);
    let pieces = by_names(graph, &order, &rank).unwrap_or_else(|| by_structure(graph, &order, &rank));
    let mut tree = Tree { blocks: Vec::new(), block_of: vec![0; graph.nodes.len()] };
    let whole = Block { name: String::new(), parent: 0, parts: Vec::new() };
    tree.blocks.push(whole);
    place(graph, &mut tree, 0, shortened(graph, pieces));
    tree
}

fn place(graph: &ModelGraph, tree: &mut Tree, block: usize, pieces: Vec<Piece>) {
    for piece in pieces {
        let part = match piece {
            Piece::Node(node) => {
                tree.block_of[node] = block;
                Part::Node(node)
            }
            Piece::Group(name, inner) => {
                let index = tree.blocks.len();
                tree.blocks.push(Block { name, parent: block, parts: Vec::new() });
                place(graph, tree, index, shortened(graph, inner));
                Part::Block(index)
            }
        };
        tree.blocks[block].parts.push(part);
    }
}

/// Nodes, each behind those that it reads, and constants right before their first reader; otherwise in the order of the file.
fn topological(graph: &ModelGraph) -> Vec<usize> {
    let count = graph.nodes.len();
    let mut is_read = vec![false; count];
    let known = |from: &&usize| **from < count;
    graph.nodes.iter().flat_map(|node| node.from.iter().filter(known)).for_each(|&from| is_read[from] = true);
    // Constants and the like wait for who reads them; in a cycle everyone does.
    let waits = |&node: &usize| graph.nodes[node].from.is_empty() && is_read[node];
    let (waiting, first): (Vec<usize>, Vec<usize>) = (0..count).partition(waits);
    let mut order = Vec::with_capacity(count);
    let mut seen = vec![false; count];
    for root in first.into_iter().chain(waiting) {
        // What has been entered, and how many of its inputs were followed.
        let mut entered = Vec::new();
        if !std::mem::replace(&mut seen[root], true) {
            entered.push((root, 0));
        }
        while let Some((node, followed)) = entered.pop() {
            match graph.nodes[node].from.iter().filter(known).nth(followed) {
                None => order.push(node),
                Some(&from) => {
                    entered.push((node, followed + 1));
                    if !std::mem::replace(&mut seen[from], true) {
                        entered.push((from, 0));
                    }
                }
            }
        }
    }
    order
}

/// Parts of a name that modules gave, without the node's own.
fn path(name: &str) -> Vec<&str> {
    let separator = if name.contains('/') { '/' } else { '.' };
    let mut parts: Vec<&str> = name.split(separator).filter(|part| !part.is_empty()).collect();
    parts.pop();
    parts
}

/// For every node the one whose name tells its place: quantizers and constants stand where they are read.
fn named_by(graph: &ModelGraph, order: &[usize]) -> Vec<usize> {
    let mut reader = vec![None; graph.nodes.len()];
    for &node in order.iter().rev() {
        for &from in &graph.nodes[node].from {
            if let Some(first) = reader.get_mut(from) {
                *first = Some(node);
            }
        }
    }
    let serves =
        |node: usize| matches!(graph.nodes[node].op_type.as_str(), "QuantizeLinear" | "DequantizeLinear" | "Constant");
    let mut named: Vec<usize> = (0..graph.nodes.len()).collect();
    for &node in order.iter().rev() {
        if let (true, Some(reader)) = (serves(node), reader[node]) {
            named[node] = named[reader];
        }
    }
    named
}

fn by_names(graph: &ModelGraph, order: &[usize], rank: &[usize]) -> Option<Vec<Piece>> {
    let by = named_by(graph, order);
    let named: Vec<(usize, Vec<&str>)> = order.iter().map(|&node| (node, path(&graph.nodes[by[node]].name))).collect();
    let mut pieces = grouped(&named, 0, rank);
    // A module around nearly everything, beside a few nodes of the head, says no more than one around all.
    loop {
        let groups = pieces.iter().filter(|piece| matches!(piece, Piece::Group(..))).count();
        let around = |piece: &Piece| matches!(piece, Piece::Group(_, inner) if is_most(size(inner), order));
        let Some(index) = pieces.iter().position(around).filter(|_| groups == 1) else { break };
        if let Piece::Group(_, inner) = pieces.swap_remove(index) {
            pieces.extend(inner);
        }
        pieces.sort_by_key(|piece| piece.first(rank));
    }
    let inside: usize =
        pieces.iter().filter_map(|p| if let Piece::Group(_, inner) = p { Some(size(inner)) } else { None }).sum();
    let groups = pieces.iter().filter(|piece| matches!(piece, Piece::Group(..))).count();
    (groups > 1 && is_most(inside, order)).then_some(pieces)
}

/// Whether so many of the nodes are enough to go by.
fn is_most(nodes: usize, order: &[usize]) -> bool {
    nodes as f64 >= TELLING * order.len() as f64
}

fn size(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| if let Piece::Group(_, inner) = piece { size(inner) } else { 1 }).sum()
}

/// Groups nodes by the part of their names at `depth`; what all share is passed over.
fn grouped(nodes: &[(usize, Vec<&str>)], depth: usize, rank: &[usize]) -> Vec<Piece> {
    let mut groups: BTreeMap<&str, Vec<(usize, Vec<&str>)>> = BTreeMap::new();
    let mut pieces = Vec::new();
    for (node, path) in nodes {
        match path.get(depth) {
            Some(part) => groups.entry(part).or_default().push((*node, path.clone())),
            None => pieces.push(Piece::Node(*node)),
        }
    }
    if let (true, 1, Some(only)) = (pieces.is_empty(), groups.len(), groups.values().next()) {
        return grouped(only, depth + 1, rank);
    }
    for (name, nodes) in groups {
        match &nodes[..] {
            [(node, _)] => pieces.push(Piece::Node(*node)),
            _ => pieces.push(Piece::Group(name.to_owned(), grouped(&nodes, depth + 1, rank))),
        }
    }
    pieces.sort_by_key(|piece| piece.first(rank));
    pieces
}

/// Blocks between the places of the order that one value crosses.
fn by_structure(graph: &ModelGraph, order: &[usize], rank: &[usize]) -> Vec<Piece> {
    // A value is alive from its node to its last reader.
    let mut last_reader: Vec<usize> = (0..order.len()).map(|node| rank[node]).collect();
    for (index, node) in graph.nodes.iter().enumerate() {
        for &from in &node.from {
            if let Some(last) = last_reader.get_mut(from) {
                *last = (*last).max(rank[index]);
            }
        }
    }
    let mut ends = vec![0; order.len() + 1];
    for &last in &last_reader {
        ends[last] += 1;
    }
    let (mut alive, mut pieces, mut region) = (0, Vec::new(), Vec::new());
    for (place, &node) in order.iter().enumerate() {
        alive += 1;
        alive -= ends[place];
        region.push(node);
        if alive <= 1 {
            let inner: Vec<Piece> = std::mem::take(&mut region).into_iter().map(Piece::Node).collect();
            match inner.len() {
                0..3 => pieces.extend(inner),
                _ => pieces.push(Piece::Group(ends_of(graph, &inner), inner)),
            }
        }
    }
    pieces.extend(region.into_iter().map(Piece::Node));
    pieces
}

/// Between the ends of a block that has no name of its own.
const TO: &str = " … ";

/// `layer1 … layer3`: the first named block and the last; without any, the first operator and the last: `Conv … Add`.
fn ends_of(graph: &ModelGraph, pieces: &[Piece]) -> String {
    fn named(piece: &Piece) -> Option<&str> {
        if let Piece::Group(name, _) = piece {
            Some(name).filter(|name| !name.contains(TO)).map(String::as_str)
        } else {
            None
        }
    }
    fn edge(pieces: &[Piece], last: bool) -> Option<&Piece> {
        if last { pieces.last() } else { pieces.first() }
    }
    let operator = |last: bool| {
        let mut piece = edge(pieces, last);
        loop {
            match piece? {
                Piece::Node(node) => return Some(graph.nodes[*node].op_type.as_str()),
                Piece::Group(_, inner) => piece = edge(inner, last),
            }
        }
    };
    let names = || Some((pieces.iter().find_map(named)?, pieces.iter().rev().find_map(named)?));
    let (first, last) = names().unwrap_or_else(|| {
        let [first, last] = [false, true].map(|last| operator(last).unwrap_or_default());
        (first, last)
    });
    [first, last].join(TO)
}

/// Long lists are cut into pieces of equal length, and those again.
fn shortened(graph: &ModelGraph, pieces: Vec<Piece>) -> Vec<Piece> {
    if pieces.len() <= MOST_PARTS {
        return pieces;
    }
    let count = pieces.len().div_ceil(MOST_PARTS).clamp(4, MOST_PARTS);
    let length = pieces.len().div_ceil(count);
    let mut pieces = pieces.into_iter();
    let mut cut = Vec::new();
    loop {
        let inner: Vec<Piece> = pieces.by_ref().take(length).collect();
        match inner.len() {
            0 => return cut,
            1 => cut.extend(inner),
            _ => cut.push(Piece::Group(ends_of(graph, &inner), inner)),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::quantize::GraphNode;

    pub fn graph(nodes: &[(&str, &str, &[usize])]) -> ModelGraph {
        let node = |&(name, op_type, from): &(&str, &str, &[usize])| GraphNode {
            name: name.to_owned(),
            op_type: op_type.to_owned(),
            from: from.to_vec(),
            precision: None,
            rule: None,
            contents: None,
        };
        ModelGraph { nodes: nodes.iter().map(node).collect() }
    }

    fn shown(tree: &Tree, block: usize) -> String {
        let part = |part: &Part| match *part {
            Part::Node(node) => node.to_string(),
            Part::Block(inner) => format!("{}[{}]", tree.blocks[inner].name, shown(tree, inner)),
        };
        tree.blocks[block].parts.iter().map(part).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn names_of_modules_make_blocks_and_shared_beginnings_none() {
        let graph = graph(&[
            ("/net/stem/Conv", "Conv", &[]),
            ("/net/stem/Relu", "Relu", &[0]),
            ("/net/layer1/layer1.0/Conv", "Conv", &[1]),
            ("/net/layer1/layer1.0/Relu", "Relu", &[2]),
            ("/net/layer1/layer1.1/Conv", "Conv", &[3]),
            ("/net/fc/Gemm", "Gemm", &[4]),
        ]);
        let tree = tree(&graph);
        assert_eq!(shown(&tree, 0), "stem[0 1] layer1[layer1.0[2 3] 4] 5");
        assert_eq!(tree.block_of, [1, 1, 3, 3, 2, 0]);
    }

    #[test]
    fn one_module_around_nearly_everything_is_passed_over() {
        let graph = graph(&[
            ("/features/features.0/features.0.0/Conv", "Conv", &[]),
            ("/features/features.0/features.0.2/Relu", "Relu", &[0]),
            ("/features/features.1/conv/Conv", "Conv", &[1]),
            ("/features/features.1/conv/Relu", "Relu", &[2]),
            ("/features/features.2/conv/Conv", "Conv", &[3]),
            ("/features/features.2/Add", "Add", &[4, 3]),
            ("/GlobalAveragePool", "GlobalAveragePool", &[5]),
            ("/classifier/classifier.1/Gemm", "Gemm", &[6]),
        ]);
        assert_eq!(shown(&tree(&graph), 0), "features.0[0 1] features.1[2 3] features.2[4 5] 6 7");
    }

    #[test]
    fn quantizers_and_constants_stand_in_the_block_that_reads_them() {
        let graph = graph(&[
            ("w.0_DequantizeLinear", "DequantizeLinear", &[]),
            ("/a/Conv", "Conv", &[0]),
            ("/a/Relu", "Relu", &[1]),
            ("/a/Relu_Q", "QuantizeLinear", &[2]),
            ("/a/Relu_DQ", "DequantizeLinear", &[3]),
            ("k", "Constant", &[]),
            ("/b/Clip", "Clip", &[4, 5]),
            ("/b/Conv", "Conv", &[6]),
        ]);
        assert_eq!(shown(&tree(&graph), 0), "a[0 1 2] b[3 4 5 6 7]");
    }

    #[test]
    fn structure_tells_where_names_do_not() {
        // Conv, a residual block (Conv, Relu, Conv, Add), Gemm; names of an old exporter.
        let graph = graph(&[
            ("Conv_0", "Conv", &[]),
            ("Conv_1", "Conv", &[0]),
            ("Relu_2", "Relu", &[1]),
            ("Conv_3", "Conv", &[2]),
            ("Add_4", "Add", &[3, 0]),
            ("Gemm_5", "Gemm", &[4]),
        ]);
        assert_eq!(shown(&tree(&graph), 0), "0 Conv … Add[1 2 3 4] 5");
    }

    #[test]
    fn no_block_is_long_however_long_the_chain() {
        let nodes: Vec<_> =
            (0..4000).map(|i| (format!("n{i}"), "Relu", if i == 0 { vec![] } else { vec![i - 1] })).collect();
        let nodes: Vec<_> = nodes.iter().map(|(name, op, from)| (name.as_str(), *op, &from[..])).collect();
        let tree = tree(&graph(&nodes));
        assert!(tree.blocks.iter().all(|block| block.parts.len() <= MOST_PARTS && block.parts.len() > 1));
        let mut seen: Vec<usize> = tree
            .blocks
            .iter()
            .flat_map(|b| &b.parts)
            .filter_map(|p| if let Part::Node(n) = p { Some(*n) } else { None })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..4000).collect::<Vec<_>>(), "every node once");
    }

    #[test]
    fn pieces_of_a_long_list_of_modules_are_called_by_the_modules() {
        let nodes: Vec<_> = (0..100)
            .map(|i| (format!("/m{}/n{i}", i / 2), "Relu", if i == 0 { vec![] } else { vec![i - 1] }))
            .collect();
        let nodes: Vec<_> = nodes.iter().map(|(name, op, from)| (name.as_str(), *op, &from[..])).collect();
        let tree = tree(&graph(&nodes));
        let names: Vec<&str> = tree.blocks.iter().filter(|b| b.parent == 0).map(|b| b.name.as_str()).collect();
        assert_eq!(names[1..], ["m0 … m12", "m13 … m25", "m26 … m38", "m39 … m49"]);
    }

    #[test]
    fn a_cycle_keeps_every_node() {
        let graph = graph(&[("a", "A", &[1]), ("b", "B", &[0]), ("c", "C", &[1])]);
        assert_eq!(topological(&graph), [1, 0, 2]);
    }

    #[test]
    fn constants_stand_before_their_first_reader() {
        let graph = graph(&[
            ("k", "Constant", &[]),
            ("late", "Constant", &[]),
            ("a", "Relu", &[0]),
            ("b", "Relu", &[2]),
            ("c", "Add", &[1, 3]),
        ]);
        assert_eq!(topological(&graph), [0, 2, 3, 1, 4]);
    }
}
