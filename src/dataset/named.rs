//! Files that are named by others: samples by a list or a `data.yaml`, masks by a list of labels.

use std::path::Path;

use super::{data_yaml, ending, files, labels};

/// Tells each file that the data set or its labels name. Folders and arrays name none, and what cannot be read is told by
/// whoever opens it.
pub fn each_named(data: Option<&Path>, labels: Option<&Path>, tell: &mut dyn FnMut(&Path)) {
    let is_list = |path: &&Path| path.is_file() && !matches!(ending(path).as_str(), "npy" | "npz" | "json");
    if let Some(data) = data.filter(is_list) {
        if data_yaml::is_yaml(data) {
            let yaml = data_yaml::DataYaml::open(data).ok();
            let named = yaml.iter().flat_map(|yaml| yaml.files.iter().chain(&yaml.labels));
            named.for_each(|(_, file)| tell(file));
        } else if let Ok((listed, _)) = files::read_list(data) {
            (0..listed.len()).for_each(|index| tell(&listed.path(index)));
        }
    }
    if let Some(labels) = labels.filter(is_list) {
        let folder = labels.parent().unwrap_or(Path::new(""));
        let text = labels::read_text(labels).unwrap_or_default();
        for row in labels::rows(&text, labels).map_while(Result::ok) {
            if let Some(mask) = row.1.get(1).filter(|mask| ending(Path::new(mask)) == "png") {
                tell(&folder.join(mask));
            }
        }
    }
}
