//! Running the command and reading what it says.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use dataplane::io::calls::Io;

/// The command, with nothing of this process's environment that could change what it does.
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

/// How the chains of all tests get their cells into the kernel: `EDDY_TEST_IO=uring cargo test` has them use io_uring.
pub fn io() -> Io {
    std::env::var("EDDY_TEST_IO").map_or(Io::Auto, |io| io.parse().expect("EDDY_TEST_IO"))
}

/// Runs the command in `dir`; arguments are separated by spaces.
pub fn run(dir: &Path, line: &str) -> Output {
    eddy().current_dir(dir).args(line.split_whitespace()).output().expect("the command starts")
}

/// Its exit code and standard error.
pub fn complaint(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Checks an operator's mistake: exit code 2, one line on standard error, nothing on standard output,
/// and all of `wanted` said.
pub fn assert_mistake(what: &str, output: &Output, wanted: &[&str]) {
    let (code, said) = complaint(output);
    assert_eq!(code, Some(2), "{what}: {said}");
    assert!(said.starts_with("eddy: ") && said.lines().count() == 1, "{what}: {said}");
    assert!(output.stdout.is_empty(), "{what}");
    for part in wanted {
        assert!(said.contains(part), "{what}: wanted {part:?} in {said}");
    }
}
