//! Layered layout of the parts of every block, left to right: which column a part stands in, and its place there.
//!
//! The method of Sugiyama: columns by the longest path, places by the mean of the neighbours' places in sweeps to and fro,
//! and edges over several columns led through places of their own. Positions in pixels follow on the page, where blocks
//! are opened: a column is as wide as its widest part.

use std::collections::{BTreeMap, BTreeSet};

use super::blocks::{Part, Tree};
use crate::quantize::ModelGraph;

/// Sweeps to and fro.
const SWEEPS: usize = 4;

/// What stands at a place of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Part(Part),
    /// An edge passes here on its way.
    Passage(usize),
}

/// A block's parts in columns.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    pub columns: Vec<Vec<Place>>,
    /// Between parts; those against the direction of the columns are told by their columns.
    pub edges: Vec<(Part, Part)>,
    /// Parts that read from outside of the block, and parts that are read there.
    pub enter: BTreeSet<Part>,
    pub leave: BTreeSet<Part>,
}

/// The layout of every block.
pub(super) fn layouts(graph: &ModelGraph, tree: &Tree) -> Vec<Layout> {
    let mut layouts = lifted(graph, tree);
    for (layout, block) in layouts.iter_mut().zip(&tree.blocks) {
        layout.columns = columns(&block.parts, &layout.edges);
    }
    layouts
}

/// Every edge where both of its ends are parts of one block, each once.
fn lifted(graph: &ModelGraph, tree: &Tree) -> Vec<Layout> {
    // From a node outwards: (block, part of it that holds the node).
    let way = |node: usize| {
        let mut at = (tree.block_of[node], Part::Node(node));
        let mut way = vec![at];
        while at.0 != 0 {
            at = (tree.blocks[at.0].parent, Part::Block(at.0));
            way.push(at);
        }
        way
    };
    let mut layouts = vec![Layout::default(); tree.blocks.len()];
    let mut edges = vec![BTreeSet::new(); tree.blocks.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        let to = way(index);
        for &from in node.from.iter().filter(|&&from| from < graph.nodes.len()) {
            let from = way(from);
            let common = from.iter().rev().zip(to.iter().rev()).take_while(|(a, b)| a.0 == b.0).count();
            let (leaves, enters) = (from.len() - common, to.len() - common);
            from[..leaves].iter().for_each(|&(block, part)| _ = layouts[block].leave.insert(part));
            to[..enters].iter().for_each(|&(block, part)| _ = layouts[block].enter.insert(part));
            edges[from[leaves].0].insert((from[leaves].1, to[enters].1));
        }
    }
    for (layout, edges) in layouts.iter_mut().zip(edges) {
        layout.edges = edges.into_iter().collect();
    }
    layouts
}

fn columns(parts: &[Part], edges: &[(Part, Part)]) -> Vec<Vec<Place>> {
    let rank: BTreeMap<Part, usize> = parts.iter().enumerate().map(|(rank, &part)| (part, rank)).collect();
    // Blocks by name may feed each other in a circle; edges against the order of the parts do not push.
    let forward = |&&(from, to): &&(Part, Part)| rank[&from] < rank[&to];
    let mut column = vec![0; parts.len()];
    let mut inwards = vec![Vec::new(); parts.len()];
    edges.iter().filter(forward).for_each(|&(from, to)| inwards[rank[&to]].push(rank[&from]));
    for to in 0..parts.len() {
        column[to] = inwards[to].iter().map(|&from| column[from] + 1).max().unwrap_or(0);
    }
    let width = column.iter().max().map_or(0, |last| last + 1);
    let mut columns = vec![Vec::new(); width];
    parts.iter().zip(&column).for_each(|(&part, &at)| columns[at].push(Place::Part(part)));
    for (index, (from, to)) in edges.iter().enumerate().filter(|(_, edge)| forward(edge)) {
        for passed in &mut columns[column[rank[from]] + 1..column[rank[to]]] {
            passed.push(Place::Passage(index));
        }
    }
    let neighbours = neighbours(edges, &rank, &column);
    for sweep in 0..SWEEPS {
        let backward = sweep % 2 == 1;
        for step in 1..width {
            let (at, beside) = if backward { (width - 1 - step, width - step) } else { (step, step - 1) };
            order(&mut columns, at, beside, &neighbours[usize::from(backward)]);
        }
    }
    columns
}

/// A place by itself, for maps.
type Key = (u8, usize);

fn key(place: Place) -> Key {
    match place {
        Place::Part(Part::Node(node)) => (0, node),
        Place::Part(Part::Block(block)) => (1, block),
        Place::Passage(edge) => (2, edge),
    }
}

/// What every place is joined with in the column before it, and in the one behind it.
fn neighbours(edges: &[(Part, Part)], rank: &BTreeMap<Part, usize>, column: &[usize]) -> [BTreeMap<Key, Vec<Key>>; 2] {
    let mut joined = [BTreeMap::new(), BTreeMap::new()];
    for (index, &(from, to)) in edges.iter().enumerate() {
        let (start, end) = (column[rank[&from]], column[rank[&to]]);
        if rank[&from] >= rank[&to] {
            continue;
        }
        let passage = key(Place::Passage(index));
        for at in start..end {
            let left = if at == start { key(Place::Part(from)) } else { passage };
            let right = if at + 1 == end { key(Place::Part(to)) } else { passage };
            joined[0].entry(right).or_insert_with(Vec::new).push(left);
            joined[1].entry(left).or_insert_with(Vec::new).push(right);
        }
    }
    joined
}

/// Orders a column by the mean of the places of what it is joined with in the one beside it.
fn order(columns: &mut [Vec<Place>], at: usize, beside: usize, joined: &BTreeMap<Key, Vec<Key>>) {
    let centre = |length: usize, place: usize| place as f64 - (length as f64 - 1.0) / 2.0;
    let length = columns[beside].len();
    let places: BTreeMap<Key, f64> =
        columns[beside].iter().enumerate().map(|(place, &what)| (key(what), centre(length, place))).collect();
    let own = columns[at].len();
    let mut keyed: Vec<(f64, Place)> = columns[at]
        .iter()
        .enumerate()
        .map(|(place, &what)| {
            let known = joined.get(&key(what)).into_iter().flatten().filter_map(|other| places.get(other));
            let (sum, count) = known.fold((0.0, 0), |(sum, count), place| (sum + place, count + 1));
            (if count == 0 { centre(own, place) } else { sum / f64::from(count) }, what)
        })
        .collect();
    keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
    columns[at] = keyed.into_iter().map(|(_, what)| what).collect();
}

#[cfg(test)]
mod tests {
    use super::super::blocks::{tests::graph, tree};
    use super::*;

    #[test]
    fn a_shortcut_passes_through_the_columns_between() {
        let graph = graph(&[("a", "A", &[]), ("b", "B", &[0]), ("c", "C", &[1]), ("d", "D", &[2, 0])]);
        let parts: Vec<Part> = (0..4).map(Part::Node).collect();
        let edges: Vec<_> = [(0, 1), (0, 3), (1, 2), (2, 3)].map(|(a, b)| (Part::Node(a), Part::Node(b))).into();
        let columns = columns(&parts, &edges);
        let counts: Vec<_> = columns.iter().map(Vec::len).collect();
        assert_eq!(counts, [1, 2, 2, 1]);
        assert!(columns[1].contains(&Place::Passage(1)) && columns[2].contains(&Place::Passage(1)));
        // The passage keeps its side: it crosses nothing.
        let side = |column: &[Place]| column.iter().position(|place| *place == Place::Passage(1));
        assert_eq!(side(&columns[1]), side(&columns[2]));
        assert_eq!(layouts(&graph, &tree(&graph)).len(), tree(&graph).blocks.len());
    }

    #[test]
    fn edges_stand_where_both_ends_are_parts_of_one_block() {
        let graph = graph(&[
            ("/a/x/Conv", "Conv", &[]),
            ("/a/x/Relu", "Relu", &[0]),
            ("/b/Conv", "Conv", &[1]),
            ("/b/Add", "Add", &[2, 0]),
        ]);
        let tree = tree(&graph);
        let layouts = layouts(&graph, &tree);
        assert_eq!(layouts[0].edges, [(Part::Block(1), Part::Block(2))], "two edges between the same blocks are one");
        assert_eq!(layouts[1].edges, [(Part::Node(0), Part::Node(1))]);
        assert_eq!(Vec::from_iter(layouts[1].leave.clone()), [Part::Node(0), Part::Node(1)]);
        assert_eq!(Vec::from_iter(layouts[2].enter.clone()), [Part::Node(2), Part::Node(3)]);
    }

    #[test]
    fn blocks_that_feed_each_other_are_drawn_all_the_same() {
        let graph = graph(&[
            ("/a/Conv", "Conv", &[]),
            ("/b/Conv", "Conv", &[0]),
            ("/a/Relu", "Relu", &[1]),
            ("/b/Add", "Add", &[2]),
        ]);
        let tree = tree(&graph);
        let layout = &layouts(&graph, &tree)[0];
        assert_eq!((layout.edges.len(), layout.columns.len()), (2, 2));
    }
}
