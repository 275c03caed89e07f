//! House rules as a test: words, lengths, links and versions of the whole tree.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Files in which a word that CONTRIBUTING.md retires may stay.
const KEPT: &[(&str, &str)] = &[
    // SIP says callee.
    ("callee", "tests/apps/sip.py"),
    // The changelog names what was renamed.
    ("train", "CHANGELOG.md"),
    ("trains", "CHANGELOG.md"),
];

/// Names of storage that a frame must not have, outside of `wire/src/frames`: a frame is what a cell carries (SPEC
/// 3.10), the storage of a cell is a buffer.
const FRAME_NAMES: &[&str] = &["struct Frame", "enum Frame", "type Frame", "FRAMES"];

/// Files that became a part of another document. A branch from before that would bring them back unnoticed.
const GONE: &[&str] = &["docs/SOAK.md"];
/// The longest that a document may be, in lines, as CONTRIBUTING.md states it.
const LONGEST: &[(&str, usize)] = &[("README.md", 170), ("docs/ARCHITECTURE.md", 300)];
/// The longest that the name of a test may be, in characters: with its module, the line of the test report fits into
/// about 80 columns. CONTRIBUTING.md states it, too.
const TEST_NAME_MAX: usize = 59;
/// Documents that name the Rust version.
const VERSIONED: &[&str] = &["README.md", "CONTRIBUTING.md", "RELEASING.md", "docs/OPERATE.md"];
/// Most columns of a comment: `rustfmt` leaves comments alone.
const COLUMNS_MAX: usize = 120;
/// Functions that a document names although no source defines them, and why.
const FOREIGN_NAMES: &[&str] = &[
    // An example of a test's name.
    "forged_header_is_dropped_without_reply",
    // Of the C library.
    "getaddrinfo",
    // Crates that were not taken.
    "lru",
    "parking_lot",
];
/// Folders of what tools make.
const MADE: &[&str] = &[".git", "target", "corpus", "artifacts"];

/// All files below `folder`, without what tools make.
fn files(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        if !path.is_dir() {
            out.push(path);
        } else if !MADE.iter().any(|made| name == *made) {
            files(&path, out);
        }
    }
}

/// The tree's texts with these extensions, by their names from its root.
fn texts(extensions: &[&str]) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    files(root, &mut all);
    all.retain(|file| file.extension().is_some_and(|extension| extensions.iter().any(|known| extension == *known)));
    let name = |file: &Path| file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    all.iter().map(|file| (name(file), fs::read_to_string(file).unwrap())).collect()
}

/// The words of a line in lower case, identifiers taken apart.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in line.chars() {
        if !c.is_alphabetic() || before.is_lowercase() && c.is_uppercase() {
            words.push(String::new());
        }
        if c.is_alphabetic() {
            words.last_mut().unwrap().extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Words of CONTRIBUTING.md's table of retired words that are refused in this scope, and what to write instead.
fn retired(scope: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("CONTRIBUTING.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, table) = text.split_once("### Retired words").expect("the section");
    let mut all = Vec::new();
    for line in table.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if let [words, instead, refused] = cells[..]
            && refused == scope
        {
            all.extend(words.split(", ").map(|word| (word.to_owned(), instead.to_owned())));
        }
    }
    assert!(!all.is_empty(), "no word is refused {scope}: is the table of retired words in CONTRIBUTING.md whole?");
    all
}

#[test]
fn retired_words_do_not_return() {
    let retired = retired("everywhere");
    let mut wrong = Vec::new();
    for (file, text) in texts(&["rs", "md", "toml", "sh", "py", "yml", "service", "conf"]) {
        // The exceptions name the words.
        if file == "tests/it/tidy.rs" {
            continue;
        }
        let text = if file == "CONTRIBUTING.md" { text.split("### Retired words").next().unwrap() } else { &text };
        for (number, line) in text.lines().enumerate() {
            for word in words(line) {
                if let Some((_, instead)) = retired.iter().find(|(retired, _)| *retired == word)
                    && !KEPT.contains(&(word.as_str(), file.as_str()))
                {
                    wrong.push(format!("{file}:{}: \"{word}\" is retired, write \"{instead}\"", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A line of Rust without its comment and its strings.
fn code(line: &str) -> String {
    let line = line.split("//").next().unwrap();
    line.split('"').step_by(2).collect::<Vec<_>>().join(" ")
}

/// True if the words of `name` are in a line of code, each as a whole identifier or part of one.
fn has_name(code: &str, name: &str) -> bool {
    if name.chars().all(char::is_lowercase) {
        return words(&code.replace("track_caller", "")).iter().any(|word| word == name);
    }
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let (before, after) = (code[..at].chars().next_back(), code[at + name.len()..].chars().next());
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[test]
fn retired_names_do_not_return() {
    let retired = retired("in names");
    let mut wrong = Vec::new();
    for (file, text) in texts(&["rs"]).iter().filter(|(file, _)| file != "tests/it/tidy.rs") {
        for (number, line) in text.lines().enumerate() {
            let code = code(line);
            for (name, instead) in retired.iter().filter(|(name, _)| has_name(&code, name)) {
                wrong.push(format!("{file}:{}: \"{name}\" is retired, write \"{instead}\"", number + 1));
            }
            let storage = FRAME_NAMES.iter().find(|name| has_name(&code, name));
            if let Some(name) = storage.filter(|_| !file.starts_with("wire/src/frames/")) {
                wrong.push(format!("{file}:{}: \"{name}\" is retired for storage, write \"Buffer\"", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn comments_keep_their_width() {
    let mut wrong = Vec::new();
    for (file, text) in texts(&["rs"]) {
        for (number, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            if line.trim_start().starts_with("//") && columns > COLUMNS_MAX {
                wrong.push(format!("{file}:{}: {columns} columns", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "comments have at most {COLUMNS_MAX} columns: {wrong:#?}");
}

#[test]
fn test_names_keep_their_length() {
    let mut wrong = Vec::new();
    let mut tests = 0;
    for (file, text) in texts(&["rs"]) {
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            is_test |= line == "#[test]";
            // There may be other attributes between the two lines.
            let Some(rest) = line.strip_prefix("fn ").filter(|_| is_test) else { continue };
            is_test = false;
            tests += 1;
            let name = rest.split('(').next().unwrap();
            if name.len() > TEST_NAME_MAX {
                wrong.push(format!("{file}: {name} has {} characters", name.len()));
            }
        }
    }
    assert!(wrong.is_empty(), "names of tests have at most {TEST_NAME_MAX} characters: {wrong:#?}");
    assert!(tests > 300, "{tests} tests");
}

#[test]
fn documents_keep_their_lengths() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, longest) in LONGEST {
        let lines = fs::read_to_string(root.join(file)).unwrap().lines().count();
        assert!(lines <= *longest, "{file} has {lines} lines, at most {longest} are allowed: move details elsewhere");
    }
    let mut all = Vec::new();
    files(root, &mut all);
    let left = |file: &&PathBuf| file.extension().is_some_and(|extension| extension == "orig" || extension == "rej");
    assert_eq!(all.iter().find(left), None, "a merge has left it behind");
    for gone in GONE {
        assert!(!root.join(gone).exists(), "{gone} is gone: its content belongs into docs/BENCHMARKS.md");
    }
}

/// Lines outside of code blocks.
fn prose(text: &str) -> Vec<&str> {
    let mut code = false;
    text.lines()
        .filter(|line| {
            let fence = line.trim_start().starts_with("```");
            code ^= fence;
            !code && !fence
        })
        .collect()
}

/// The anchors of a document's headings, as hosting platforms make them.
fn anchors(text: &str) -> HashSet<String> {
    let heading = |line: &str| {
        let title = line.strip_prefix('#')?.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        Some(kept.map(|c| if c == ' ' { '-' } else { c }).collect())
    };
    prose(text).into_iter().filter_map(heading).collect()
}

#[test]
fn relative_links_of_documents_resolve() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = texts(&["md"]);
    let (mut links, mut wrong) = (0, Vec::new());
    for (file, text) in &documents {
        let text = prose(text).join("\n");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let folder = Path::new(file).parent().unwrap();
            let path = if path.is_empty() { root.join(file) } else { root.join(folder).join(path) };
            let found = if anchor.is_empty() {
                path.exists()
            } else {
                fs::read_to_string(&path).is_ok_and(|text| anchors(&text).contains(anchor))
            };
            if !found {
                wrong.push(format!("{file}: ({target})"));
            }
        }
    }
    assert!(wrong.is_empty(), "these links lead nowhere: {wrong:#?}");
    assert!(links > 100, "{links} links");
}

#[test]
fn paths_in_documents_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    const FOLDERS: &[&str] = &[
        "wire/",
        "control/",
        "dataplane/",
        "node/",
        "virtual/",
        "src/",
        "bench/",
        "attack/",
        "tests/",
        "fuzz/",
        "tuning/",
        "docs/",
        ".ci/",
    ];
    let documents =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "RELEASING.md", "docs/ARCHITECTURE.md", "docs/LIMITS.md"];
    let mut wrong = Vec::new();
    for (file, text) in texts(&["md"]) {
        if !documents.contains(&file.as_str()) && !file.starts_with("docs/adr/") {
            continue;
        }
        for path in prose(&text).join("\n").split('`').skip(1).step_by(2) {
            let named = FOLDERS.iter().any(|folder| path.starts_with(folder)) && !path.contains(' ');
            if named && !root.join(path).exists() && !root.join(format!("{path}.rs")).exists() {
                wrong.push(format!("{file}: {path}"));
            }
        }
    }
    assert!(wrong.is_empty(), "these files do not exist: {wrong:#?}");
}

/// Names of types, functions and files in the documents that explain the code.
#[test]
fn names_in_documents_exist() {
    let mut code = texts(&["rs", "sh", "toml", "py"]);
    let files: Vec<String> = code.iter().map(|(file, _)| file.clone()).collect();
    // This file names what does not exist.
    code.retain(|(file, _)| file != "tests/it/tidy.rs");
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let known: HashSet<&str> = code.iter().flat_map(|(_, text)| text.split(|c| !is_part(c))).collect();
    let (mut names, mut wrong) = (0, Vec::new());
    for (file, text) in texts(&["md"]) {
        if file != "CONTRIBUTING.md" && file != "docs/ARCHITECTURE.md" && !file.starts_with("docs/adr/") {
            continue;
        }
        for name in prose(&text).join("\n").split('`').skip(1).step_by(2) {
            // `Type`, `Type::function`, `function`, `module::function`, `file.rs`; numbers and other words of shells
            // are none.
            let is_word =
                name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.contains(|c: char| c.is_lowercase());
            let is_file = name.ends_with(".rs") && !name.contains(' ');
            if is_word && name.split("::").all(|part| !part.is_empty() && part.chars().all(is_part)) {
                names += 1;
                if !FOREIGN_NAMES.contains(&name) && !name.split("::").all(|part| known.contains(part)) {
                    wrong.push(format!("{file}: {name}"));
                }
            } else if is_file {
                names += 1;
                if !files.iter().any(|path| path == name || path.ends_with(&format!("/{name}"))) {
                    wrong.push(format!("{file}: {name}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "these names are not in the code: {wrong:#?}");
    assert!(names > 150, "{names} names");
}

/// Names in the map of folders in docs/ARCHITECTURE.md: a folder at the margin, its files below it, each followed by
/// what it holds behind two blanks or more.
#[test]
fn map_of_folders_names_existing_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/ARCHITECTURE.md")).unwrap();
    let (_, map) = text.split_once("\n## Folders\n").expect("the section");
    let (map, _) = map.split_once("\n## ").unwrap();
    let (mut folder, mut names, mut wrong) = (String::new(), 0, Vec::new());
    for line in map.lines().filter_map(|line| line.strip_prefix("    ")) {
        let indent = line.len() - line.trim_start().len();
        let mut parts = line.trim().split("  ").map(str::trim).filter(|part| !part.is_empty());
        if indent == 0 {
            folder = format!("{}src", parts.next().unwrap());
        } else if indent == 2 {
            while let Some(part) = parts.next() {
                for name in
                    part.split([',', ' ']).map(|name| name.trim_end_matches('/')).filter(|name| !name.is_empty())
                {
                    names += 1;
                    let path = root.join(&folder).join(name);
                    if !path.is_dir() && !path.with_extension("rs").is_file() {
                        wrong.push(format!("{folder}/{name}"));
                    }
                }
                parts.next();
            }
        }
    }
    assert!(wrong.is_empty(), "these files do not exist: {wrong:#?}");
    assert!(names > 40, "{names} names");
}

#[test]
fn documents_name_the_rust_version() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let (_, version) = manifest.split_once("rust-version = \"").expect("the workspace names it");
    let version = version.split('"').next().unwrap();
    for file in VERSIONED {
        let text = fs::read_to_string(root.join(file)).unwrap();
        let named: Vec<&str> = text
            .split("Rust ")
            .skip(1)
            .map(|rest| rest.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap().trim_end_matches('.'))
            .filter(|version| !version.is_empty())
            .collect();
        assert!(!named.is_empty(), "{file} does not name the Rust version");
        for named in named {
            assert_eq!(named, version, "{file} and `rust-version` in Cargo.toml differ");
        }
    }
}
