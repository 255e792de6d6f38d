//! Which operators stay in the high precision: those that take most noise away for what they cost.

/// An operator's share of the noise below which lifting it is not worth a layer of another precision.
const LEAST_NOISE: f64 = 0.015;

/// Picks operators by noise a multiply-accumulate until their share of the multiply-accumulates would pass `budget`;
/// returns their indices, the one with most noise first. `operators` are pairs of noise and multiply-accumulates.
pub(super) fn pick(operators: &[(f64, f64)], budget: f64) -> Vec<usize> {
    let (noise, macs) = operators.iter().fold((0.0, 0.0), |(noise, macs), one| (noise + one.0, macs + one.1));
    let mut order: Vec<usize> =
        (0..operators.len()).filter(|&index| operators[index].0 > LEAST_NOISE * noise).collect();
    let worth = |index: usize| operators[index].0 / operators[index].1.max(1.0);
    order.sort_by(|&a, &b| worth(b).total_cmp(&worth(a)).then(a.cmp(&b)));
    let mut spent = 0.0;
    order.retain(|&index| {
        let fits = spent + operators[index].1 <= budget * macs;
        spent += if fits { operators[index].1 } else { 0.0 };
        fits
    });
    order.sort_by(|&a, &b| operators[b].0.total_cmp(&operators[a].0).then(a.cmp(&b)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_buys_the_most_noise() {
        let operators = [(40.0, 3.0), (30.0, 80.0), (25.0, 2.0), (4.5, 14.0), (0.5, 1.0)];
        assert_eq!(pick(&operators, 0.05), [0, 2]);
        assert_eq!(pick(&operators, 0.03), [0], "the better bargain first, and what no longer fits is left out");
        assert_eq!(pick(&operators, 1.0), [0, 1, 2, 3], "too little noise is worth nothing");
        assert!(pick(&operators, 0.0).is_empty() && pick(&[], 1.0).is_empty());
    }
}
