//! The program as it is run: every cell and datagram that was sent is somewhere. No figure is judged.

use std::process::Command;

use serde_json::Value;

/// Runs it; its last line.
fn measure(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_eddy-bench")).args(arguments).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).expect("text");
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

#[test]
fn every_cell_of_a_hop_leaves_or_is_named() {
    let report = measure(&["hop", "--json", "--rows", "quick", "--rounds", "2", "--cells", "2048"]);
    let rows = report["rows"].as_array().expect("rows");
    let directions: Vec<&str> = rows.iter().filter_map(|row| row["direction"].as_str()).collect();
    assert_eq!(directions, ["forward", "backward"]);
    for row in rows {
        let count = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no count in {row}"));
        let [before, behind] = [&row["lost"][0], &row["lost"][1]].map(count);
        assert_eq!(count(&row["played"]), 2 * 2048);
        assert_eq!(count(&row["played"]), count(&row["left"]) + before + count(&row["dropped"]), "{row}");
        assert!(behind <= count(&row["left"]), "{row}");
        let [checked, foreign] = [&row["checked"][0], &row["checked"][1]].map(count);
        assert!(checked > 0 && foreign == 0, "{row}");
        assert_eq!(row["closed"], true, "{row}");
        for key in ["cell_ns", "null_gro_gso_ns", "null_mmsg_ns", "null_single_ns", "ratio_gro_gso", "ratio_mmsg"] {
            assert!(row[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {row}");
        }
    }
}

#[test]
fn a_path_is_searched_both_ways_and_its_ledgers_close() {
    let report = measure(&["path", "--json", "--payload-len", "200", "--try-ms", "50", "--flows", "16"]);
    let rows = report["rows"].as_array().expect("rows");
    let directions: Vec<&str> = rows.iter().filter_map(|row| row["direction"].as_str()).collect();
    assert_eq!(directions, ["forward", "both"]);
    assert!(rows.iter().all(|row| row["loss"].as_f64().is_some_and(|loss| loss <= 1e-4)), "{report}");
    assert_eq!(report["closed"], true);
}

#[cfg(not(feature = "peers"))]
#[test]
fn peers_say_in_one_line_how_they_are_built() {
    let output = Command::new(env!("CARGO_BIN_EXE_eddy-bench")).arg("peers").output().expect("it starts");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cargo run --release -p eddy-bench --features peers -- peers"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[cfg(feature = "peers")]
#[test]
fn peers_stand_beside_eddy_in_rows_of_both_kinds() {
    let report = measure(&["peers", "--json", "--rounds", "1"]);
    let rows = report["rows"].as_array().expect("rows");
    for (kind, names) in [
        ("crypto-only", &["eddy", "eddy", "sphinx-packet", "boringtun", "snow", "snow"][..]),
        ("with-io", &["eddy", "no cryptography", "no cryptography", "no cryptography"][..]),
    ] {
        let of = rows.iter().filter(|row| row["kind"] == kind).collect::<Vec<_>>();
        assert!(of.iter().map(|row| row["name"].as_str().expect("a name")).eq(names.iter().copied()), "{report}");
        assert_eq!(of[0]["ratio"], 1.0);
        assert!(of.iter().all(|row| row["packet_ns"].as_f64().is_some_and(|ns| ns > 0.0)), "{report}");
    }
}
