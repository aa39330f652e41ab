//! The shape of the house: what a file begins with, how long it may be, and that data flows one way.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Lowest first. A module may name only the modules before it.
const ORDER: &[&str] = &[
    "clock",
    "bounded",
    "text",
    "id",
    "snapshot",
    "process",
    "record",
    "outlet",
    "live",
    "op",
    "tracker",
    "context",
    "resource",
    "mountinfo",
    "proc",
    "machine",
    "place",
    "listeners",
    "held_up",
    "evidence",
    "graph",
    "report",
    "render",
    "http",
    "debug",
    "watchdog",
    "otel",
    "fuse",
    "testing",
    "cli",
];

const LONGEST: usize = 950;

/// Words of the example, which the library knows nothing of.
const FOREIGN: &[&str] = &["shelley", "conversation"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(String, String)> {
    let mut todo: Vec<PathBuf> = ["src", "tests", "examples", "benches"]
        .iter()
        .map(|dir| root().join(dir))
        .collect();
    let mut found = Vec::new();
    while let Some(path) = todo.pop() {
        // What was built there is nobody's source.
        if path.is_dir() && !path.ends_with("target") {
            let entries = fs::read_dir(path).unwrap();
            todo.extend(entries.map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(root()).unwrap();
            found.push((name.to_str().unwrap().to_owned(), text));
        }
    }
    found.sort();
    found
}

// The module of a file, if it stands under `src/`.
fn module(file: &str) -> Option<&str> {
    let rest = file.strip_prefix("src/")?;
    let first = rest.split('/').next()?;
    Some(first.strip_suffix(".rs").unwrap_or(first))
}

// The first name in a file of a module that stands above its own.
fn upward(file: &str, text: &str) -> Option<String> {
    let own = module(file).filter(|module| !matches!(*module, "lib" | "main"))?;
    let place = |name: &str| ORDER.iter().position(|module| *module == name);
    let Some(own_place) = place(own) else {
        return Some(format!("{file}: {own} has no place in ORDER"));
    };
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut names = Vec::new();
    for part in code.split("crate::").skip(1) {
        match part.strip_prefix('{') {
            // `use crate::{a, b::c}`: only the outermost names.
            Some(group) => {
                let (mut depth, mut at_name, mut name) = (0, true, String::new());
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            names.push(std::mem::take(&mut name));
                            at_name = true;
                        }
                        c if depth == 0 && at_name && (c.is_alphanumeric() || c == '_') => {
                            name.push(c);
                        }
                        c if depth == 0 && !c.is_whitespace() => at_name = false,
                        _ => {}
                    }
                }
                names.push(name);
            }
            None => names.push(
                part.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            ),
        }
    }
    let above = names.into_iter().find(|name| {
        let starts_lower = name.starts_with(|c: char| c.is_ascii_lowercase());
        name != own
            && match place(name) {
                Some(place) => place > own_place,
                // Through lib.rs the order could not be seen.
                None => !name.is_empty() && !starts_lower,
            }
    });
    above.map(|above| format!("{file} names {above}, which is above it or reached through lib.rs"))
}

#[test]
fn every_file_says_what_it_is_for_and_is_not_too_long() {
    let sources = sources();
    assert!(sources.len() > 40, "the walk found {}", sources.len());

    for (file, text) in &sources {
        assert!(text.starts_with("//! "), "{file}: line 1 is no `//! `");
        let lines = text.lines().count();
        assert!(lines <= LONGEST, "{file}: {lines} lines");
        assert!(text.is_ascii(), "{file}: not ASCII");
    }
}

#[test]
fn data_flows_one_way() {
    let upward: Vec<_> = sources()
        .iter()
        .filter_map(|(file, text)| upward(file, text))
        .collect();

    assert!(upward.is_empty(), "{upward:#?}");
}

#[test]
fn an_upward_use_is_caught() {
    for (file, text) in [
        ("src/tracker.rs", "use crate::http::Server;"),
        ("src/tracker.rs", "use crate::{id::OpId, http::{A, B}};"),
        ("src/id.rs", "fn f() { crate::tracker::x() }"),
        ("src/http/mod.rs", "use crate::Tracker;"),
        ("src/new.rs", ""),
    ] {
        assert!(upward(file, text).is_some(), "{file}: {text}");
    }
    for (file, text) in [
        ("src/http/mod.rs", "use crate::{id::{A, http}, tracker::T};"),
        ("src/tracker.rs", "/// [`x`](crate::http::X)"),
        ("src/lib.rs", "use crate::http::X;"),
        ("tests/it/x.rs", "use crate::http::X;"),
    ] {
        assert_eq!(upward(file, text), None);
    }
}

#[test]
fn the_library_knows_nothing_of_the_example() {
    for (file, text) in sources() {
        if module(&file).is_some() {
            let text = text.to_lowercase();
            for word in FOREIGN {
                assert!(!text.contains(word), "{file} speaks of {word}");
            }
        }
    }
}

#[test]
fn every_feature_is_described_and_the_version_has_a_heading() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let (manifest, docs) = (read("Cargo.toml"), read("src/lib.rs"));
    let section = manifest.split("[features]").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let features: Vec<&str> = section
        .lines()
        .filter_map(|line| Some(line.split_once(" = [")?.0))
        .filter(|feature| *feature != "default")
        .collect();

    assert!(features.len() > 3, "{features:?}");
    for feature in features {
        assert!(
            docs.contains(&format!("//! - `{feature}`")),
            "lib.rs does not describe `{feature}`"
        );
    }
    let heading = format!("## {}", env!("CARGO_PKG_VERSION"));
    assert!(read("CHANGELOG.md").contains(&heading));
}

// Name and version of each package of a lock file.
fn packages(lock: &str) -> BTreeSet<(String, String)> {
    let path = root().join(lock);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let packages = text.split("[[package]]").skip(1);
    let field = |package: &str, name: &str| {
        let mut lines = package.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        value.unwrap().trim_matches('"').to_owned()
    };
    packages
        .map(|package| (field(package, "name"), field(package, "version")))
        .collect()
}

// Built offline, they have what our own build has fetched.
#[test]
fn the_hanging_tests_are_built_with_our_versions_of_everything() {
    let ours = packages("Cargo.lock");

    let theirs = packages("tests/fixtures/Cargo.lock");

    let mut others: Vec<_> = theirs.difference(&ours).collect();
    others.retain(|(name, _)| name != "fixtures");
    assert!(ours.len() > 100 && theirs.len() > 50);
    assert!(
        others.is_empty(),
        "{others:?}: copy Cargo.lock to tests/fixtures/ and run cargo metadata there"
    );
}
