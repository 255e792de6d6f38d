//! The search for the first divergence on synthetic graphs.

use std::convert::Infallible;

use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

use super::*;

/// Node `i` makes tensor `i` from the tensors in `edges[i]`; the last is the graph's output.
fn flow(edges: &[Vec<usize>]) -> Flow {
    let nodes = (edges.iter().enumerate())
        .map(|(i, from)| FlowNode {
            name: format!("node{i}"),
            inputs: from.iter().map(|j| format!("{j:03}")).chain((from.is_empty()).then(|| "x".to_owned())).collect(),
            outputs: vec![format!("{i:03}")],
        })
        .collect();
    Flow { nodes, outputs: vec![format!("{:03}", edges.len() - 1)] }
}

fn chain(count: usize) -> Vec<Vec<usize>> {
    (0..count).map(|i| i.checked_sub(1).into_iter().collect()).collect()
}

fn find(flow: &Flow, scan: Scan, bad: &dyn Fn(usize) -> bool) -> FirstDivergence<bool> {
    let options = FirstOptions { scan, ..FirstOptions::default() };
    let mut probe = |tensors: &[String]| {
        assert!(tensors.len() <= options.tensors_per_probe);
        Ok::<_, Infallible>(tensors.iter().map(|t| (t.clone(), bad(t.parse().unwrap()))).collect())
    };
    first_divergence(flow, options, &|&d| d, &mut probe).unwrap()
}

/// Every tensor that depends on one of `faults` diverges.
fn spread(edges: &[Vec<usize>], faults: &[usize]) -> Vec<bool> {
    let mut bad = vec![false; edges.len()];
    for i in 0..edges.len() {
        bad[i] = faults.contains(&i) || edges[i].iter().any(|&j| bad[j]);
    }
    bad
}

#[test]
fn in_a_chain_it_takes_the_logarithm_of_its_length() {
    let edges = chain(200);
    let flow = flow(&edges);
    for fault in 0..200 {
        let bad = spread(&edges, &[fault]);
        let result = find(&flow, Scan::Binary, &|i| bad[i]);
        let culprit = result.culprit.unwrap();
        assert_eq!(culprit.node, format!("node{fault}"));
        assert_eq!(culprit.inputs.values().collect::<Vec<_>>(), vec![&Some(false); usize::from(fault > 0)]);
        assert!(result.probes <= 9, "{} probes", result.probes); // the output and log₂ 200
        assert!(result.tensors.len() <= 9);
    }
}

#[test]
fn nothing_is_found_where_the_outputs_agree() {
    let result = find(&flow(&chain(50)), Scan::Binary, &|i| i == 20);
    assert_eq!((result.culprit, result.probes), (None, 1));
    // Looking at everything does see it.
    let result = find(&flow(&chain(50)), Scan::Exhaustive, &|i| i == 20);
    assert_eq!(result.culprit.unwrap().node, "node20");
    assert_eq!(result.probes, 2); // of 16 tensors each
}

#[test]
fn both_branches_of_a_diamond_are_told_apart() {
    // 0 → 1..=4 → 9, 0 → 5..=8 → 9, → 10
    let edges =
        vec![vec![], vec![0], vec![1], vec![2], vec![3], vec![0], vec![5], vec![6], vec![7], vec![4, 8], vec![9]];
    let flow = flow(&edges);
    for fault in 0..edges.len() {
        let bad = spread(&edges, &[fault]);
        let culprit = find(&flow, Scan::Binary, &|i| bad[i]).culprit.unwrap();
        assert_eq!(culprit.tensor, format!("{fault:03}"));
    }
}

#[test]
fn after_recovery_the_node_found_has_inputs_that_agree() {
    // Tensors 10 to 19 diverge, 20 to 79 recover, 80 on diverge again.
    let bad = |i: usize| (10..20).contains(&i) || i >= 80;
    let culprit = find(&flow(&chain(100)), Scan::Binary, &bad).culprit.unwrap();
    assert_eq!(culprit.node, "node80");
    assert_eq!(find(&flow(&chain(100)), Scan::Exhaustive, &bad).culprit.unwrap().node, "node10");
}

#[test]
fn tensors_that_the_target_does_not_show_are_named() {
    let flow = flow(&chain(40));
    // Every second tensor is fused away; the fault is in one of them.
    let mut probe = |tensors: &[String]| {
        let shown = tensors.iter().filter(|t| t.parse::<usize>().unwrap() % 2 == 1);
        Ok::<_, Infallible>(shown.map(|t| (t.clone(), t.parse::<usize>().unwrap() >= 22)).collect())
    };
    let culprit = first_divergence(&flow, FirstOptions::default(), &|&d| d, &mut probe).unwrap().culprit.unwrap();
    assert_eq!(culprit.node, "node23");
    assert_eq!(culprit.inputs, BTreeMap::from([("022".to_owned(), None)]));
}

#[test]
fn wide_cuts_are_probed_in_parts() {
    // 100 branches between one source and one sink.
    let mut edges = vec![vec![]];
    edges.extend((0..100).map(|_| vec![0]));
    edges.push((1..=100).collect());
    let bad = spread(&edges, &[77]);
    let result = find(&flow(&edges), Scan::Binary, &|i| bad[i]);
    assert_eq!(result.culprit.unwrap().node, "node77");
}

#[test]
fn an_error_of_the_probe_is_passed_on() {
    let error =
        first_divergence::<bool, _>(&flow(&chain(3)), FirstOptions::default(), &|&d| d, &mut |_| Err("no engine"));
    assert_eq!(error.unwrap_err(), "no engine");
}

proptest! {
    /// In any graph and for any faults, with or without recovery: the node found diverges, its inputs do not.
    #[test]
    fn the_node_found_has_clean_inputs(
        picks in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<bool>()), 1..80),
        faults in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
    ) {
        let edges: Vec<Vec<usize>> = (picks.iter().enumerate())
            .map(|(i, (a, b, _))| if i == 0 { vec![] } else { vec![a.index(i), b.index(i)] })
            .collect();
        let faults: Vec<usize> = faults.iter().map(|f| f.index(edges.len())).collect();
        let spread = spread(&edges, &faults);
        for heals in [false, true] {
            let bad: Vec<bool> = (0..edges.len())
                .map(|i| spread[i] && !(heals && picks[i].2 && !faults.contains(&i)))
                .collect();
            let result = find(&flow(&edges), Scan::Binary, &|i| bad[i]);
            prop_assert_eq!(result.culprit.is_some(), *bad.last().unwrap());
            if let Some(culprit) = result.culprit {
                let at: usize = culprit.tensor.parse().unwrap();
                prop_assert!(bad[at]);
                prop_assert!(edges[at].iter().all(|&j| !bad[j]));
                prop_assert!(culprit.inputs.values().all(|input| *input == Some(false)));
            }
        }
    }
}
