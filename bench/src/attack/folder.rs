//! Records in a folder: one folder for each case and seed, `default-1`.
//!
//! ```text
//! record.csv   the record                          facts.json   its profile, command, and costs of the run
//! truth.csv    which flow is whose                 wf4nym/      the record in the format of WF4NYM-artifacts
//! exit.csv     what a corrupt exit saw of meetings, if the record has it
//! ```

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use attack::export;
use serde::{Deserialize, Serialize};

use super::cases::Attacked;
use super::facts::Facts;

/// The folder of a case and seed.
fn of(dir: &Path, case: &str, seed: u64) -> PathBuf {
    dir.join(format!("{case}-{seed}"))
}

/// `facts.json`.
#[derive(Default, Serialize, Deserialize)]
struct About {
    #[serde(default)]
    profile: Option<String>,
    #[serde(default)]
    command: Option<String>,
    #[serde(default)]
    wait_ms: Option<f64>,
    #[serde(flatten)]
    facts: Option<Facts>,
}

/// Writes a record, also for the tools of others if `all` is set.
///
/// # Errors
/// A file cannot be written.
pub(super) fn write(dir: &Path, attacked: &Attacked, facts: Option<Facts>, all: bool) -> anyhow::Result<()> {
    let folder = of(dir, &attacked.case, attacked.seed);
    ensure!(!folder.exists(), "there is a record in {}: choose another folder", folder.display());
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let create = |name: &str| {
        let path = folder.join(name);
        File::create(&path).map(BufWriter::new).with_context(|| format!("cannot write {}", path.display()))
    };
    let mut record = create("record.csv")?;
    export::write_csv(&attacked.record, &mut record)?;
    record.flush()?;
    if !attacked.record.meetings.is_empty() {
        let mut exit = create("exit.csv")?;
        export::write_meetings(&attacked.record.meetings, &mut exit)?;
        exit.flush()?;
    }
    let mut truth = create("truth.csv")?;
    export::write_truth(&attacked.truth, &mut truth)?;
    truth.flush()?;
    let mut about = create("facts.json")?;
    let (profile, command) = (attacked.profile.clone(), attacked.command.clone());
    serde_json::to_writer(&mut about, &About { profile, command, wait_ms: attacked.wait_ms, facts })?;
    about.flush()?;
    if all {
        export::write_wf4nym(&attacked.record, None, &folder.join("wf4nym"))?;
    }
    Ok(())
}

/// Reads a record, and how its run went.
///
/// # Errors
/// A file cannot be read.
pub(super) fn read(dir: &Path, case: &str, seed: u64) -> anyhow::Result<(Attacked, Option<Facts>)> {
    let folder = of(dir, case, seed);
    let open = |name: &str| {
        let path = folder.join(name);
        File::open(&path).map(BufReader::new).with_context(|| format!("cannot read {}", path.display()))
    };
    let within = |name: &'static str| {
        let path = folder.join(name);
        move || path.display().to_string()
    };
    let mut record = export::read_csv(open("record.csv")?).with_context(within("record.csv"))?;
    if folder.join("exit.csv").exists() {
        let meetings = export::read_meetings(open("exit.csv")?, record.flows.len());
        record.meetings = meetings.with_context(within("exit.csv"))?;
    }
    let truth = export::read_truth(open("truth.csv")?).with_context(within("truth.csv"))?;
    let mut flows = truth.0.clone();
    flows.sort_unstable();
    flows.dedup();
    ensure!(
        truth.0.len() == record.access.len()
            && flows.len() == truth.0.len()
            && flows.last() < Some(&record.flows.len()),
        "{}: expected a flow of its own for each of the {} users of record.csv, out of {}",
        within("truth.csv")(),
        record.access.len(),
        record.flows.len()
    );
    let about = open("facts.json").ok().map(serde_json::from_reader).transpose().with_context(within("facts.json"))?;
    let About { profile, command, wait_ms, facts } = about.unwrap_or_default();
    Ok((Attacked { case: case.to_owned(), seed, profile, command, record, truth, wait_ms }, facts))
}

/// The cases and seeds in a folder, in order.
///
/// # Errors
/// The folder cannot be read, or has no records.
pub(super) fn list(dir: &Path) -> anyhow::Result<Vec<(String, u64)>> {
    let name = dir.display();
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read the folder {name}"))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read the folder {name}"))?.file_name();
        let parts = entry.to_str().and_then(|entry| entry.rsplit_once('-'));
        found.extend(parts.and_then(|(case, seed)| Some((case.to_owned(), seed.parse().ok()?))));
    }
    ensure!(!found.is_empty(), "{name} has no records: expected folders CASE-SEED, e.g. default-1, of --record");
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use attack::simulate::Simulation;
    use attack::{Bodies, ExitRound, Meeting, PacedShape};

    #[test]
    fn records_read_back_and_mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(list(dir.path()).unwrap_err().to_string().contains("expected folders CASE-SEED"));
        let (mut record, truth) = Simulation::new(5, 1.0, 3).run();
        let body = Bodies::default().next(&[7; 224]);
        let round = ExitRound { round: 9, waited: None, before: body, between: None, after: body };
        record.meetings = vec![Meeting { forward: vec![round], backward: vec![] }; 5];
        record.paced = Some(PacedShape::default());
        let attacked = Attacked {
            case: "off".into(),
            seed: 3,
            profile: Some("voice".into()),
            command: None,
            record,
            truth,
            wait_ms: Some(2.5),
        };
        write(dir.path(), &attacked, Some(Facts::default()), true).unwrap();
        assert_eq!(list(dir.path()).unwrap(), [("off".to_owned(), 3)]);
        let (read, facts) = super::read(dir.path(), "off", 3).unwrap();
        assert!(read.record == attacked.record && read.truth == attacked.truth && facts.is_some());
        assert_eq!((read.profile.as_deref(), read.wait_ms), (Some("voice"), Some(2.5)));
        assert!(dir.path().join("off-3/wf4nym").is_dir());

        let again = write(dir.path(), &attacked, None, false).unwrap_err().to_string();
        assert!(again.contains("choose another folder"), "{again}");
        fs::remove_dir_all(dir.path().join("off-3")).unwrap();
        write(dir.path(), &attacked, None, false).unwrap();
        let (synthetic, facts) = super::read(dir.path(), "off", 3).unwrap();
        assert!(synthetic.profile.as_deref() == Some("voice") && facts.is_none());
        fs::remove_file(dir.path().join("off-3/facts.json")).unwrap();
        fs::remove_file(dir.path().join("off-3/exit.csv")).unwrap();
        let (bare, facts) = super::read(dir.path(), "off", 3).unwrap();
        assert!(bare.profile.is_none() && facts.is_none() && bare.record.meetings.is_empty());

        fs::write(dir.path().join("off-3/truth.csv"), "user,flow\n0,1\n1,1\n").unwrap();
        let error = format!("{:#}", super::read(dir.path(), "off", 3).err().unwrap());
        assert!(error.contains("off-3/truth.csv: expected a flow of its own"), "{error}");
        assert!(super::read(dir.path(), "off", 4).is_err());
    }
}
