//! Runs the command and reads its output.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use dataplane::socket::backend::Io;

use super::limit::Permit;

/// The command without environment variables that change its behaviour.
pub fn eddy() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_eddy")))
}

/// The same under `ulimit -n`.
pub fn eddy_with_descriptors(most: u64) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {most}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_eddy")]);
    clean(command)
}

fn clean(mut command: Command) -> Command {
    command.stdin(Stdio::null());
    let systemd = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDS_FIRST_FD", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"];
    for name in systemd.into_iter().chain(["JOURNAL_STREAM", "EDDY_LOG"]) {
        command.env_remove(name);
    }
    command
}

/// I/O backend of the chains in all tests: `EDDY_TEST_IO=uring cargo test` selects io_uring.
pub fn io() -> Io {
    std::env::var("EDDY_TEST_IO").map_or(Io::Auto, |io| io.parse().expect("EDDY_TEST_IO"))
}

/// Runs the command in `dir`; arguments are separated by spaces.
pub fn run(dir: &Path, line: &str) -> Output {
    let _permit = line.starts_with("chain").then(Permit::wait);
    eddy().current_dir(dir).args(line.split_whitespace()).output().expect("the command starts")
}

/// Its exit code and standard error.
pub fn complaint(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Checks the output after a mistake: exit code 2, one line on standard error with all of `wanted`, nothing on
/// standard output.
pub fn assert_mistake(what: &str, output: &Output, wanted: &[&str]) {
    let (code, said) = complaint(output);
    assert_eq!(code, Some(2), "{what}: {said}");
    assert!(said.starts_with("eddy: ") && said.lines().count() == 1, "{what}: {said}");
    assert!(output.stdout.is_empty(), "{what}");
    for part in wanted {
        assert!(said.contains(part), "{what}: wanted {part:?} in {said}");
    }
}
