//! What changed: the samples whose first answer is another one, with both lists of five side by side.

use std::collections::BTreeMap;

use super::super::{Report, metrics::title};
use crate::compare::{Flip, Scored};

/// Samples on a page; the rest is in `report.json`.
const MAX_SAMPLES: usize = 50;

/// Characters of all pictures together on a page.
const MAX_PICTURES: usize = 1 << 20;

/// The samples to show.
pub(super) struct Samples<'a> {
    pub cards: Vec<Card<'a>>,
    /// Samples that changed but are not on the page, counted by precision.
    pub elsewhere: usize,
    /// Precisions that changed something, by their index in `Judged::token`.
    pub precisions: Vec<(usize, String)>,
    /// Whether any label is known.
    pub labelled: bool,
}

/// One sample.
pub(super) struct Card<'a> {
    pub sample: &'a str,
    pub picture: Option<&'a str>,
    pub label: Option<String>,
    pub reference: Vec<Answer<'a>>,
    pub targets: Vec<Judged<'a>>,
}

/// What one precision made of a sample.
pub(super) struct Judged<'a> {
    pub token: usize,
    pub title: String,
    pub change: Change,
    pub answers: Vec<Answer<'a>>,
}

/// What a changed first answer means for the accuracy; worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    Lost,
    BothWrong,
    Unknown,
    Gained,
}

/// One of five answers.
pub(super) struct Answer<'a> {
    pub class: u32,
    pub name: Option<&'a str>,
    pub score: String,
    /// The label says so.
    pub right: bool,
    /// Not among the reference's five.
    pub new: bool,
}

impl Change {
    fn of(flip: &Flip) -> Self {
        let first = |answers: &[Scored]| answers.first().map(|answer| answer.class);
        match flip.label {
            None => Self::Unknown,
            label if label == first(&flip.reference) => Self::Lost,
            label if label == first(&flip.target) => Self::Gained,
            Some(_) => Self::BothWrong,
        }
    }

    /// The word in filters and class names.
    pub fn token(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::BothWrong => "wrong",
            Self::Unknown => "unknown",
            Self::Gained => "gained",
        }
    }

    /// What people read.
    pub fn words(self) -> &'static str {
        match self {
            Self::Lost => "right → wrong",
            Self::BothWrong => "wrong → wrong",
            Self::Unknown => "changed",
            Self::Gained => "wrong → right",
        }
    }
}

impl Card<'_> {
    /// Precisions and changes, to filter by.
    pub fn tokens(&self) -> (String, String) {
        let join = |words: Vec<String>| words.join(" ");
        (
            join(self.targets.iter().map(|target| target.token.to_string()).collect()),
            join(self.targets.iter().map(|target| target.change.token().to_owned()).collect()),
        )
    }
}

impl<'a> Samples<'a> {
    /// The samples of all precisions, each once, the losses first.
    pub fn new(report: &'a Report) -> Self {
        let names = report.dataset.labels.as_ref().map(|labels| &labels.names);
        let mut by_sample: BTreeMap<&str, Card<'a>> = BTreeMap::new();
        let mut precisions = Vec::new();
        for (token, precision) in report.precisions.iter().enumerate().filter(|(_, p)| !p.flips.is_empty()) {
            precisions.push((token, title(precision)));
            for flip in &precision.flips {
                let card = by_sample.entry(&flip.sample).or_insert_with(|| Card {
                    sample: &flip.sample,
                    picture: report.thumbnails.get(&flip.sample).map(String::as_str).filter(|uri| is_picture(uri)),
                    label: flip.label.map(|label| match names.and_then(|names| names.get(&label)) {
                        Some(name) => name.clone(),
                        None => format!("class {label}"),
                    }),
                    reference: answers(&flip.reference, flip, false),
                    targets: Vec::new(),
                });
                let answers = answers(&flip.target, flip, true);
                card.targets.push(Judged { token, title: title(precision), change: Change::of(flip), answers });
            }
        }
        let mut cards: Vec<_> = by_sample.into_values().collect();
        cards.sort_by_key(|card| card.targets.iter().map(|target| target.change).min());
        cards.truncate(MAX_SAMPLES);
        let mut room = MAX_PICTURES;
        for card in &mut cards {
            card.picture = card.picture.filter(|uri| uri.len() <= room);
            room -= card.picture.map_or(0, str::len);
        }
        let shown: usize = cards.iter().map(|card| card.targets.len()).sum();
        let total: usize = report.precisions.iter().map(|p| p.flips_total.max(p.flips.len())).sum();
        let labelled = cards.iter().any(|card| card.label.is_some());
        Self { cards, elsewhere: total - shown, precisions, labelled }
    }
}

fn answers<'a>(scored: &'a [Scored], flip: &Flip, against_reference: bool) -> Vec<Answer<'a>> {
    let answer = |s: &'a Scored| Answer {
        class: s.class,
        name: s.name.as_deref(),
        score: format!("{:.2}", s.score),
        right: flip.label == Some(s.class),
        new: against_reference && !flip.reference.iter().any(|r| r.class == s.class),
    };
    scored.iter().take(5).map(answer).collect()
}

/// True for an inline picture and nothing else: a report from elsewhere may hold any text here.
pub(super) fn is_picture(uri: &str) -> bool {
    let data = ["jpeg", "png", "webp"].iter().find_map(|kind| uri.strip_prefix(&format!("data:image/{kind};base64,")));
    data.is_some_and(|data| data.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example::{Size, report};

    #[test]
    fn each_sample_stands_once_with_every_precision_and_losses_come_first() {
        let mut report = report(&Size { layers: 0, flips: 60 });
        report.dataset.labels.as_mut().unwrap().names.clear();
        let samples = Samples::new(&report);
        assert_eq!(samples.cards.len(), 50);
        let total: usize = report.precisions.iter().map(|p| p.flips_total).sum();
        let shown: usize = samples.cards.iter().map(|card| card.targets.len()).sum();
        assert_eq!(samples.elsewhere, total - shown);
        let changes: Vec<_> = samples.cards.iter().map(|c| c.targets.iter().map(|t| t.change).min()).collect();
        assert!(changes.is_sorted() && changes.first() < changes.last(), "{changes:?}");
        assert!(samples.cards[0].label.as_ref().unwrap().starts_with("class "));
    }

    #[test]
    fn only_inline_pictures_are_pictures() {
        assert!(is_picture("data:image/png;base64,iVBORw0KGgo="));
        for uri in
            ["https://x/y.png", "data:image/svg+xml;base64,AA==", "data:image/png;base64,A\"onload=", "javascript:1"]
        {
            assert!(!is_picture(uri), "{uri}");
        }
    }
}
