//! Modules use only what `docs/architecture.md` allows them to: the table there is what this test reads.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Module → modules it may use. An entry of the table that names a module below its own line is refused.
type Table = BTreeMap<String, BTreeSet<String>>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn parse_table(page: &str) -> Result<Table, String> {
    let start = page.find("<!-- layering: begin -->").ok_or("the table has no begin mark")?;
    let end = page.find("<!-- layering: end -->").ok_or("the table has no end mark")?;
    let names = |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let mut table = Table::new();
    for line in page[start..end].lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [module, _, allowed] = cells[..] else { return Err(format!("not three cells: {line}")) };
        let module = names(module).concat();
        let above: BTreeSet<String> = table.keys().cloned().collect();
        let allowed = if allowed == "everything above" { above.clone() } else { names(allowed).into_iter().collect() };
        if let Some(below) = allowed.difference(&above).next() {
            return Err(format!("`{module}` may not use `{below}`, which does not stand above it"));
        }
        table.insert(module, allowed);
    }
    Ok(table)
}

/// First segments of all paths below `crate::`, those of grouped imports included. Comments do not count.
fn used_modules(source: &str) -> BTreeSet<String> {
    let code: String =
        source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut entry = String::new();
            for c in group.chars() {
                depth += i32::from(c == '{') - i32::from(c == '}');
                if depth == 0 || (depth == 1 && c == ',') {
                    used.insert(first_segment(&entry));
                    entry.clear();
                } else {
                    entry.push(c);
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            used.insert(first_segment(rest));
        }
    }
    used.remove("");
    used
}

fn first_segment(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// What a file of `module` uses and may not.
fn violations(table: &Table, module: &str, source: &str) -> Vec<String> {
    let Some(allowed) = table.get(module) else { return vec![format!("module `{module}` is not in the table")] };
    let used = used_modules(source);
    used.into_iter().filter(|name| name != module && !allowed.contains(name)).collect()
}

/// All Rust files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// All source files of the library with the module they belong to; `None` for the crate's root.
fn sources() -> Vec<(PathBuf, Option<String>)> {
    let with_module = |path: PathBuf| {
        let relative = path.strip_prefix(root().join("src")).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let module = first.trim_end_matches(".rs").to_owned();
        (path, (module != "lib").then_some(module))
    };
    files(&root().join("src")).into_iter().map(with_module).collect()
}

fn table() -> Table {
    parse_table(&fs::read_to_string(root().join("docs/architecture.md")).unwrap()).unwrap()
}

#[test]
fn every_module_uses_only_what_the_table_allows() {
    let table = table();
    let mut found = Vec::new();
    for (path, module) in sources() {
        let Some(module) = module else { continue };
        for used in violations(&table, &module, &fs::read_to_string(&path).unwrap()) {
            found.push(format!("{}: `{module}` uses `{used}`", path.strip_prefix(root()).unwrap().display()));
        }
    }
    assert!(found.is_empty(), "not allowed by the table in docs/architecture.md:\n{}", found.join("\n"));
}

#[test]
fn every_module_of_the_table_exists() {
    let modules: BTreeSet<String> = sources().into_iter().filter_map(|(_, module)| module).collect();
    assert_eq!(table().into_keys().collect::<BTreeSet<_>>(), modules);
}

#[test]
fn the_library_knows_no_command_line() {
    for (path, _) in sources() {
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines().map(|line| line.split("//").next().unwrap_or_default()) {
            for word in ["clap::", "anyhow::", "indicatif::", "comfy_table::", "ctrlc::"] {
                assert!(!line.contains(word), "{} uses {word} which belongs to cli/: {line}", path.display());
            }
        }
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    assert!(!dependencies.contains("clap") && dependencies.contains("serde"), "{dependencies}");
}

#[test]
fn every_unsafe_block_is_listed() {
    let page = fs::read_to_string(root().join("docs/safety.md")).unwrap();
    let cli = files(&root().join("cli/src"));
    for path in sources().into_iter().map(|(path, _)| path).chain(cli) {
        let text = fs::read_to_string(&path).unwrap();
        let count = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default())
            .filter(|line| line.contains("unsafe {") || line.contains("unsafe impl"))
            .count();
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let listed = page.lines().find_map(|line| {
            let (_, rest) = line.split_once(&format!("| `{name}` |"))?;
            rest.split('|').next()?.trim().parse().ok()
        });
        assert_eq!(listed.unwrap_or(0), count, "`unsafe` blocks of {name} in docs/safety.md");
    }
}

const SMALL: &str = "<!-- layering: begin -->\n| module | purpose | may use |\n|---|---|---|\n| `tensor` | | |\n\
                     | `onnx` | | `tensor` |\n| `session` | | everything above |\n<!-- layering: end -->";

#[test]
fn a_planted_violation_is_found() {
    let table = parse_table(SMALL).unwrap();
    let clean = "use crate::tensor::Tensor;\n//! [`crate::session`] in a comment\nuse crate::onnx::proto::{A, B};";
    assert_eq!(violations(&table, "onnx", clean), Vec::<String>::new());
    assert_eq!(violations(&table, "onnx", "let x = crate::session::run();"), ["session"]);
    let grouped = "use crate::{\n    onnx::{Model, proto::{self, X}},\n    tensor::Tensor,\n};";
    assert_eq!(violations(&table, "tensor", grouped), ["onnx"]);
    assert_eq!(violations(&table, "session", grouped), Vec::<String>::new());
    assert_eq!(violations(&table, "tensor", "use crate::unknown::X;"), ["unknown"]);
    assert_eq!(violations(&table, "fresh", "").len(), 1);
}

#[test]
fn a_table_that_points_downwards_is_refused() {
    let upside_down = SMALL.replace("| `tensor` | | |", "| `tensor` | | `onnx` |");
    assert!(parse_table(&upside_down).unwrap_err().contains("does not stand above"));
}
