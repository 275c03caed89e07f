//! Operators' mistakes: each ends with exit code 2 and one line that says what, where, and what to do.
//!
//! `table` lists them. What eddy says to each is printed in docs/OPERATE.md;
//! `EDDY_BLESS=1 cargo test --test it mistakes` writes it there again.

mod table;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::command::{assert_mistake, eddy, run};
use crate::common::nodes::PATIENCE;
use crate::common::skipped;

/// One mistake.
struct Mistake {
    /// The operator's command.
    name: &'static str,
    setup: Setup,
    /// The command line that follows it.
    command: &'static str,
    /// The line that must be printed.
    wanted: &'static [&'static str],
}

/// Changes to a fresh chain of three mixes.
enum Setup {
    /// Not at all.
    Nothing,
    /// In this file, the first line that starts so becomes this one; appended, where the start is empty.
    Line(&'static str, &'static str, &'static str),
    /// By other means.
    Do(fn(&mut Scene)),
}

/// The place of a mistake.
struct Scene {
    dir: TempDir,
    /// Texts that differ from run to run, and their names in the handbook.
    names: Vec<(String, &'static str)>,
    environment: Vec<(&'static str, &'static str)>,
    /// Run by a shell before eddy takes its place.
    prelude: &'static str,
    /// Nodes have network namespaces of their own.
    apart: bool,
    /// By a user without privileges.
    unprivileged: bool,
    /// The reason why it cannot be made on this host.
    impossible: Option<String>,
    /// Sockets and processes that must live until the end.
    kept: Vec<Box<dyn std::any::Any>>,
}

/// User and group of nobody.
const NOBODY: u32 = 65_534;

/// True if the handbook is to be written instead of checked.
fn is_blessed() -> bool {
    std::env::var_os("EDDY_BLESS").is_some_and(|value| value == "1")
}

/// Replaces the first line of a file that starts with `line`, or appends, where that is empty.
pub fn edit(file: &Path, line: &str, with: &str) {
    let text = fs::read_to_string(file).unwrap();
    let edited: String = if line.is_empty() {
        format!("{text}{with}\n")
    } else {
        assert!(text.lines().any(|l| l.starts_with(line)), "no {line} in {}", file.display());
        let mut left = Some(with);
        let replace = |l| if str::starts_with(l, line) { left.take().unwrap_or(l) } else { l };
        text.lines().map(replace).map(|l| format!("{l}\n")).collect()
    };
    fs::write(file, edited).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Scene {
    /// A copy of the files of `chain`.
    fn new(chain: &Path) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        for file in fs::read_dir(chain).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
        Scene {
            dir,
            names: Vec::new(),
            environment: Vec::new(),
            prelude: "",
            apart: false,
            unprivileged: false,
            impossible: None,
            kept: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn edit(&self, file: &str, line: &str, with: &str) {
        edit(&self.path(file), line, with);
    }

    fn impossible(&mut self, why: impl Into<String>) {
        self.impossible = Some(why.into());
    }

    /// True if this process may make network namespaces and run `prelude` in one.
    fn can(&self, prelude: &str) -> bool {
        let mut command = Command::new("unshare");
        command.arg(if is_root() { "-n" } else { "-rn" }).args(["sh", "-c", prelude]);
        command.stdin(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// The command that runs eddy here.
    fn command(&mut self) -> Command {
        let mut command = eddy();
        if self.unprivileged && is_root() {
            // The user nobody owns the files, and can reach the program.
            let program = self.path("eddy");
            fs::copy(command.get_program(), &program).unwrap();
            fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let files = fs::read_dir(self.dir.path()).unwrap().map(|file| file.unwrap().path());
            for path in files.chain([self.dir.path().to_owned()]) {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            command = Command::new(&program);
            command.stdin(Stdio::null()).uid(NOBODY).gid(NOBODY).env_clear();
            if command.arg("--version").stdout(Stdio::null()).status().is_err() {
                self.impossible("the user nobody must be able to run a program in the temporary folder: set TMPDIR");
            }
            command = Command::new(program);
            command.stdin(Stdio::null()).uid(NOBODY).gid(NOBODY).env_clear();
        }
        if !self.prelude.is_empty() {
            let program = command.get_program().to_owned();
            let shell = format!("{} && exec \"$0\" \"$@\"", self.prelude);
            command = if self.apart { Command::new("unshare") } else { Command::new("sh") };
            if self.apart {
                command.arg(if is_root() { "-n" } else { "-rn" }).arg("sh");
            }
            command.arg("-c").arg(shell).arg(program).stdin(Stdio::null()).env_remove("EDDY_LOG");
        }
        command.current_dir(self.dir.path()).envs(self.environment.iter().copied());
        command
    }

    /// Runs it to its end, where it can be run.
    fn run(&mut self, line: &str) -> Option<Output> {
        let mut command = self.command();
        if self.impossible.is_some() {
            return None;
        }
        command.args(line.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the command starts");
        let deadline = Instant::now() + PATIENCE;
        while process.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                process.kill().unwrap();
                let mut said = String::new();
                process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                panic!("eddy {line} does not end: {said}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(process.wait_with_output().unwrap())
    }

    /// The output, with the handbook's names.
    fn stable(&self, said: &str) -> String {
        let dir = self.dir.path().display().to_string();
        let names = self.names.iter().map(|(from, to)| (from.as_str(), *to)).chain([(dir.as_str(), "DIR")]);
        names.fold(said.to_owned(), |text, (from, to)| text.replace(from, to))
    }
}

/// A node. Ends when dropped.
struct Running(Child, BufReader<ChildStderr>);

impl Running {
    fn new(command: &mut Command) -> Running {
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(process.stderr.take().unwrap());
        Running(process, said)
    }

    /// Its log until it is ready.
    fn until_ready(&mut self) -> String {
        let mut said = String::new();
        while !said.contains("ready: ") {
            assert_ne!(self.1.read_line(&mut said).unwrap(), 0, "the node does not start: {said}");
        }
        said
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A row of the handbook. Text in backticks may hold backticks and bars.
fn row(name: &str, said: &str) -> String {
    let said = said.trim_end().trim_start_matches("eddy: ").replace('|', "\\|");
    format!("{}`` {said} `` |", head(name))
}

fn head(name: &str) -> String {
    format!("| {} | ", name.replace('|', "\\|"))
}

const BEGIN: &str = "<!-- mistakes: begin, printed by a test -->\n";
const END: &str = "<!-- mistakes: end -->\n";

#[test]
fn every_mistake_has_one_line_with_place_and_fix() {
    let chain = tempfile::tempdir().unwrap();
    assert!(run(chain.path(), "init . --mixes 3").status.success());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATE.md");
    let doc = fs::read_to_string(&file).unwrap();
    let (before, rest) = doc.split_once(BEGIN).expect("the beginning of the table");
    let (printed, after) = rest.split_once(END).expect("the end of the table");

    let (mut lines, mut failed) = (Vec::new(), Vec::new());
    for (title, mistakes) in table::TABLE {
        lines.push(format!("\n### {title}\n\n| mistake | what eddy says |\n| --- | --- |"));
        for Mistake { name, setup, command, wanted } in *mistakes {
            assert!(!lines.iter().any(|line| line.starts_with(&head(name))), "duplicate mistake {name}");
            let mut scene = Scene::new(chain.path());
            match setup {
                Setup::Nothing => {}
                Setup::Line(file, line, with) => scene.edit(file, line, with),
                Setup::Do(make) => make(&mut scene),
            }
            let status = scene.path("mix1.sock");
            let was = status.exists();
            let Some(output) = scene.run(command) else {
                skipped(format!("{name}: {}", scene.impossible.unwrap_or_default()));
                let kept = printed.lines().find(|line| line.starts_with(&head(name)));
                lines.push(kept.unwrap_or_else(|| panic!("{name}: nowhere tried yet")).to_owned());
                continue;
            };
            if std::panic::catch_unwind(|| assert_mistake(name, &output, wanted)).is_err() {
                failed.push(*name);
            }
            assert_eq!(status.exists(), was, "{name}: the status socket goes with the node");
            lines.push(row(name, &scene.stable(&String::from_utf8_lossy(&output.stderr))));
        }
    }
    let made = lines.join("\n") + "\n\n";
    assert!(failed.is_empty() || is_blessed(), "other messages than wanted: {failed:#?}");
    if is_blessed() {
        fs::write(&file, [before, BEGIN, &made, END, after].concat()).unwrap();
        return;
    }
    let differ: Vec<_> = made.lines().filter(|line| !printed.lines().any(|old| old == *line)).collect();
    assert!(
        printed == made,
        "docs/OPERATE.md is not what eddy says; EDDY_BLESS=1 cargo test --test it mistakes rewrites it: {differ:#?}"
    );
}

/// The default needs no privilege: less is granted, and said.
#[test]
fn default_receive_buffer_is_best_effort() {
    let chain = tempfile::tempdir().unwrap();
    assert!(run(chain.path(), "init . --mixes 3").status.success());
    let mut scene = Scene::new(chain.path());
    scene.unprivileged = true;
    scene.edit("mix1.toml", "up", "up = \"127.0.0.1:0\"");
    let mut command = scene.command();
    if let Some(why) = scene.impossible {
        return skipped(why);
    }
    let mut node = Running::new(command.args(["mix", "--config", "mix1.toml"]));
    let said = node.until_ready();
    let most: usize = fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse().unwrap();
    let warned = said.contains("sudo sysctl -w net.core.rmem_max=8388608");
    assert_eq!(warned, most < 1 << 20, "{said}");
}

#[test]
fn handbook_explains_every_drop_and_refusal() {
    let doc = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATE.md")).unwrap();
    let drops = dataplane::ledger::DropReason::ALL.iter().map(|why| why.name());
    for name in drops.chain(control::Refusal::NAMES.iter().copied()) {
        let rows = doc.lines().filter(|line| line.starts_with(&format!("| `{name}` | ")));
        assert_eq!(rows.count(), 1, "docs/OPERATE.md must have one row for `{name}`");
    }
}
