//! What lies in a folder and is not used, in sentences.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{ARRAY_ENDINGS, DatasetError, FOREIGN_ENDINGS, IMAGE_ENDINGS, SampleError, ending, images, labels};

/// Files that were passed over from the `data` or the `labels`, counted by reason and ending.
pub(super) fn counted(from: &str, passed_over: &[SampleError]) -> Option<String> {
    let mut groups: BTreeMap<(&str, String), Vec<&str>> = BTreeMap::new();
    for SampleError { sample, reason } in passed_over {
        groups.entry((reason, ending(Path::new(sample)))).or_default().push(sample);
    }
    let group = |((reason, ending), samples): (&(&str, String), &Vec<&str>)| {
        let ending = if ending.is_empty() { "no ending".to_owned() } else { format!(".{ending}") };
        format!("{} with {ending}, as {}: {reason}", samples.len(), labels::shown(samples[0]))
    };
    let groups: Vec<String> = groups.iter().map(group).collect();
    (!groups.is_empty()).then(|| format!("files left out of the {from}: {}", groups.join("; ")))
}

/// Says what lies in folders that are not read. More samples than in those that are read is an error: which ones are meant?
pub(super) fn unread(
    folder: &Path,
    listing: &images::Listing,
    labels: Option<&Path>,
) -> Result<Vec<String>, DatasetError> {
    let is_foreign = |(_, file): &(String, PathBuf)| FOREIGN_ENDINGS.contains(&ending(file).as_str());
    let endings = [&IMAGE_ENDINGS[..], &ARRAY_ENDINGS, &FOREIGN_ENDINGS].concat();
    let hidden = images::Listing::below(&listing.hidden, &endings, labels);
    let (foreign, unread): (Vec<_>, Vec<_>) =
        images::Listing::below(&listing.unread, &endings, labels).into_iter().partition(is_foreign);
    let taken = listing.files.len();
    let are_arrays = |file: &Path| ARRAY_ENDINGS.contains(&ending(file).as_str());
    let own = listing.files.first().map(|(_, file)| are_arrays(file));
    let more = unread.iter().filter(|(_, file)| own == Some(are_arrays(file))).count();
    if let Some((first, _)) = unread.first().filter(|_| more > taken) {
        let reason = format!(
            "{taken} samples lie in it or right in its folders, and {more} deeper, as {first}; give the folder that holds the \
             samples, or a list of files"
        );
        return Err(DatasetError::Format { path: folder.to_owned(), reason });
    }
    let why = if !listing.files.is_empty() && listing.classes.is_empty() {
        "the folder itself holds as many samples or more"
    } else {
        "only the folder and those right in it are looked at"
    };
    let told = [(unread, why), (foreign, images::NOT_READ), (hidden, images::HIDDEN)];
    Ok(told.into_iter().filter_map(|(files, why)| in_folders("data", &files, why)).collect())
}

/// Says how many files lie in folders that are not read.
pub(super) fn in_folders(from: &str, files: &[(String, PathBuf)], why: &str) -> Option<String> {
    let (first, _) = files.first()?;
    Some(format!("files left out of the {from}: {} in folders that are not read, as {first}: {why}", files.len()))
}
