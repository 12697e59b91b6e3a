//! Laws of the text: the building order, the purity of the core, the map, the licences.
//!
//! The compiler does not hold these: inside one crate anything may use anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What no pure room may name, and why it would matter.
const IMPURE: &[(&str, &str)] = &[
    ("Instant::now", "reads the clock"),
    ("SystemTime", "reads the clock"),
    ("std::env", "reads the environment"),
    ("std::fs", "touches files"),
    ("std::net::Tcp", "touches sockets"),
    ("std::net::Udp", "touches sockets"),
    ("std::thread", "starts threads"),
    ("tokio", "waits for the world"),
    ("quinn", "touches sockets"),
    ("rusqlite", "touches files"),
    ("rand::rng()", "takes randomness from outside"),
    ("thread_rng", "takes randomness from outside"),
    ("Uuid::new_v4", "takes randomness from outside"),
    ("HashMap", "iterates in a random order"),
    ("HashSet", "iterates in a random order"),
];

/// A room as `lib.rs` declares it.
struct Room {
    name: String,
    is_pure: bool,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rooms() -> Vec<Room> {
    let mut rooms = Vec::new();
    let mut is_pure = true;
    for line in read(root().join("src/lib.rs")).lines() {
        if line.starts_with("// ---- Above this line") {
            is_pure = false;
        }
        if let Some(name) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            rooms.push(Room { name: name.to_owned(), is_pure });
        }
    }
    assert!(rooms.len() > 15 && !is_pure, "lib.rs is not what this test thinks it is");
    rooms
}

/// All files below a folder whose name ends so.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The lines of a file that are code, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn a_room_uses_only_the_rooms_declared_above_it() {
    let rooms = rooms();
    let rank: BTreeMap<&str, usize> =
        rooms.iter().enumerate().map(|(rank, room)| (room.name.as_str(), rank)).collect();
    let mut faults = Vec::new();
    for room in &rooms {
        for path in files(&root().join("src").join(&room.name), ".rs") {
            let text = read(&path);
            for (line, used) in code(&text).flat_map(|(line, text)| mentions(line, text)) {
                let Some(used_rank) = rank.get(used) else {
                    faults.push(format!("{}:{line}: no room is called {used}", path.display()));
                    continue;
                };
                if *used_rank > rank[room.name.as_str()] {
                    faults.push(format!(
                        "{}:{line}: {} uses {used}, which stands above it",
                        path.display(),
                        room.name
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The rooms that a line of code names by their full path. A macro's name is no room's.
fn mentions(line: usize, text: &str) -> Vec<(usize, &str)> {
    let is_outside = |c: char| !c.is_alphanumeric() && c != '_';
    text.match_indices("crate::")
        .map(|(at, found)| &text[at + found.len()..])
        .map(|rest| rest.split_at(rest.find(is_outside).unwrap_or(rest.len())))
        .filter(|(name, after)| !name.is_empty() && !after.starts_with('!'))
        .map(|(name, _)| (line, name))
        .collect()
}

#[test]
fn the_core_is_pure() {
    let mut faults = Vec::new();
    for room in rooms().iter().filter(|room| room.is_pure) {
        for path in files(&root().join("src").join(&room.name), ".rs") {
            let text = read(&path);
            // What stands under the tests may use the world; it is not the core.
            let core = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (line, text) in code(core) {
                for (name, why) in IMPURE {
                    if text.contains(name) {
                        faults.push(format!(
                            "{}:{line}: {} is pure, yet names {name}, which {why}",
                            path.display(),
                            room.name
                        ));
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_room_says_what_lives_in_it_and_stands_on_the_map() {
    let map = read(root().join("ARCHITECTURE.md"));
    for room in rooms() {
        let text = read(root().join("src").join(&room.name).join("mod.rs"));
        assert!(
            text.starts_with("//! "),
            "src/{}/mod.rs does not open with what lives there",
            room.name
        );
        assert!(
            map.contains(&format!("`{}/`", room.name)),
            "ARCHITECTURE.md does not name `{}/`",
            room.name
        );
    }
    let folders: BTreeSet<String> = fs::read_dir(root().join("src"))
        .expect("src")
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let declared: BTreeSet<String> = rooms().into_iter().map(|room| room.name).collect();
    assert_eq!(folders, declared, "folders of src and the rooms of lib.rs");
}

#[test]
fn sql_stands_in_the_store_alone() {
    let statement = ["SELECT ", "INSERT INTO ", "UPDATE ", "DELETE FROM ", "CREATE TABLE "];
    let mut faults = Vec::new();
    for room in rooms().iter().filter(|room| room.name != "store") {
        for path in files(&root().join("src").join(&room.name), ".rs") {
            let text = read(&path);
            let core = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (line, text) in code(core) {
                if statement.iter().any(|word| text.contains(&format!("\"{word}"))) {
                    faults.push(format!("{}:{line}: SQL outside of store/", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn nothing_unfinished_is_left_in_the_code() {
    let mut faults = Vec::new();
    for path in files(&root().join("src"), ".rs") {
        for (index, line) in read(&path).lines().enumerate() {
            for word in ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!("] {
                if line.contains(word) {
                    faults.push(format!("{}:{}: {word}", path.display(), index + 1));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn unsafe_code_stands_where_sqlite_calls_back() {
    let found: Vec<PathBuf> = files(&root().join("src"), ".rs")
        .into_iter()
        .filter(|path| code(&read(path)).any(|(_, line)| line.contains("unsafe ")))
        .map(|path| path.strip_prefix(root()).expect("below the root").to_owned())
        .collect();
    assert_eq!(
        found,
        ["src/store/hook.rs", "src/store/vfs/disk.rs", "src/store/vfs/mod.rs"].map(Path::new)
    );
}

#[test]
fn the_library_has_no_allocator_of_its_own() {
    // Fuzz targets, which nothing here builds, bring theirs, and so may who uses the library.
    for path in files(&root().join("src"), ".rs") {
        let is_program = path.ends_with("src/main.rs");
        let sets_one = code(&read(&path)).any(|(_, line)| line.contains("#[global_allocator]"));
        assert_eq!(sets_one, is_program, "{}", path.display());
    }
}

#[test]
fn every_dependency_has_a_licence_that_deny_toml_allows() {
    let deny: toml::Table = read(root().join("deny.toml")).parse().expect("deny.toml is TOML");
    let allowed: BTreeSet<&str> = deny["licenses"]["allow"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|licence| licence.as_str().expect("a text"))
        .collect();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 50, "cargo metadata lists {} packages", packages.len());
    let mut faults = Vec::new();
    for package in packages {
        let licence = package["license"].as_str().unwrap_or("");
        if !is_allowed(licence, &allowed) {
            faults.push(format!("{} {}: '{licence}'", package["name"], package["version"]));
        }
    }
    assert!(faults.is_empty(), "licences that deny.toml does not allow:\n{}", faults.join("\n"));
}

/// Reads an SPDX expression: any alternative, all of whose parts are allowed, will do.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    expression.split(" OR ").any(|alternative| {
        alternative
            .split(" AND ")
            // "This version or any later one": this one will do.
            .all(|licence| allowed.contains(licence.trim().trim_end_matches('+')))
    })
}
