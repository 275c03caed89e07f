//! A network namespace of the test's own, with loopback and without any other route.

use std::ffi::OsStr;
use std::process::Command;

use super::skipped;

/// Environment variable that is set inside.
const INSIDE: &str = "EDDY_TEST_NETWORK";

/// Runs a test of this binary there; prints `skipped: …` where namespaces are not available.
pub fn run_without_routes(test: &str) {
    let unshare = |script: &str, arguments: &[&OsStr]| {
        let mut command = Command::new("unshare");
        command.args(["-rn", "sh", "-c", script]).args(arguments).env(INSIDE, "");
        command.output()
    };
    if !unshare("ip link set lo up", &[]).is_ok_and(|output| output.status.success()) {
        skipped("needs network namespaces and ip(8): `unshare -rn ip link` must work, or run as root");
        return;
    }
    let this = std::env::current_exe().unwrap();
    let arguments = [this.as_os_str(), "--exact".as_ref(), test.as_ref(), "--nocapture".as_ref()];
    let output = unshare("ip link set lo up && exec \"$0\" \"$@\"", &arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs the calling test again there. True inside; false outside, when that run has ended or was skipped.
pub fn in_a_network_without_routes(test: &str) -> bool {
    let inside = std::env::var_os(INSIDE).is_some();
    if !inside {
        run_without_routes(test);
    }
    inside
}
