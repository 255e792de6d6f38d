//! Which operators stay in the high precision: those that take most noise away for what they cost.

use super::rank::Ranked;

/// An operator's share of the noise below which lifting it is not worth a layer of another precision.
const LEAST_NOISE: f64 = 0.015;

/// Picks operators by noise for what they cost, until they would hold more than the share `budget` of all
/// multiply-accumulates or of all weights, and of those the `most` with most noise; returns their indices, in that order. Attention
/// that no range can hold comes first, and beside the budget: it has no weights, and kernels of attention compute it in 16 bits as
/// well.
pub(super) fn pick(operators: &[Ranked], budget: f64, most: usize) -> Vec<usize> {
    let sum = |of: fn(&Ranked) -> f64| operators.iter().map(of).sum::<f64>().max(f64::MIN_POSITIVE);
    if budget <= 0.0 {
        return Vec::new();
    }
    let (noise, macs, weights) = (sum(|one| one.noise), sum(|one| one.macs), sum(|one| one.weights));
    let costs = |index: usize| [operators[index].macs / macs, operators[index].weights / weights];
    let worth = |index: usize| operators[index].noise / costs(index).into_iter().fold(f64::MIN_POSITIVE, f64::max);
    let mut order: Vec<usize> =
        (0..operators.len()).filter(|&index| operators[index].noise > LEAST_NOISE * noise).collect();
    order.sort_by(|&a, &b| worth(b).total_cmp(&worth(a)).then(a.cmp(&b)));
    let mut spent = [0.0; 2];
    order.retain(|&index| {
        if operators[index].drowned {
            return true;
        }
        let next = [spent[0] + costs(index)[0], spent[1] + costs(index)[1]];
        let fits = next.iter().all(|&share| share <= budget);
        spent = if fits { next } else { spent };
        fits
    });
    order.sort_by(|&a, &b| operators[b].noise.total_cmp(&operators[a].noise).then(a.cmp(&b)));
    order.truncate(most);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_buys_the_most_noise() {
        let operator = |(noise, macs, weights)| Ranked { node: String::new(), noise, macs, weights, drowned: false };
        let operators = [(40.0, 3.0, 1.0), (30.0, 80.0, 10.0), (24.0, 2.0, 2.0), (4.5, 14.0, 7.0), (1.5, 1.0, 80.0)];
        let mut operators = operators.map(operator);
        assert_eq!(pick(&operators, 0.05, 9), [0, 2]);
        assert_eq!(pick(&operators, 0.03, 9), [0], "the better bargain first, and what no longer fits is left out");
        assert_eq!(pick(&operators, 0.5, 9), [0, 2, 3], "what holds most weights is large, few as its products are");
        assert_eq!(pick(&operators, 1.0, 9), [0, 1, 2, 3], "too little noise is worth nothing");
        assert_eq!(pick(&operators, 1.0, 2), [0, 1], "the two with most noise");
        assert!(pick(&operators, 0.0, 9).is_empty() && pick(&[], 1.0, 9).is_empty());
        operators[1].drowned = true;
        assert_eq!(pick(&operators, 0.05, 9), [0, 1, 2], "attention that no range can hold");
        assert!(pick(&operators, 0.0, 9).is_empty());
    }
}
