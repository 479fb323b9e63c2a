use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::POINTS;

/// All source files of this crate but those of this folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("kills") {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("kills.rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// What is given to each call of a function, as literals. Panics where it is none.
fn literals<'a>(text: &'a str, call: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(call) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') || text[..at].ends_with("fn ") {
            continue;
        }
        let inner = text[at + call.len()..].trim_start();
        let literal = inner.strip_prefix('"').and_then(|inner| inner.split_once('"'));
        found.push(literal.unwrap_or_else(|| panic!("{call} without a literal: {inner:.40}")).0);
    }
    found
}

#[test]
fn every_point_has_a_name_of_its_own_and_a_test_that_kills_there() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files).unwrap();
    let (mut points, mut tests) = (BTreeMap::new(), Vec::new());
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        for name in literals(&text, "point(") {
            let former = points.insert(name.to_owned(), file);
            assert!(former.is_none(), "two points are called {name:?}: in {former:?} and in {file:?}");
        }
        tests.extend(literals(&text, "KillTest::new(").into_iter().map(str::to_owned));
    }
    for (name, test) in POINTS {
        assert!(points.remove(*name).is_some(), "there is no point {name:?}, or it is in the list twice");
        assert!(tests.iter().any(|label| label == test), "there is no test {test:?}, which is to kill at {name:?}");
    }
    assert!(points.is_empty(), "these points have no test that kills there (see kills/points.rs): {points:?}");
}

#[test]
fn a_literal_is_found_wherever_it_stands() {
    let text = "point(\"a\"); super::point(\n    \"b\",\n); fn point() {} endpoint(3)";
    assert_eq!(literals(text, "point("), ["a", "b"]);
}
