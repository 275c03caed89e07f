//! A network of a test's own, with loopback and no way out.

use std::ffi::OsStr;
use std::process::Command;

/// Set in there.
const INSIDE: &str = "EDDY_TEST_NETWORK";

/// Runs a test of this binary there; a line that says so where that cannot be.
pub fn run_without_routes(test: &str) {
    let unshare = |script: &str, arguments: &[&OsStr]| {
        let mut command = Command::new("unshare");
        command.args(["-rn", "sh", "-c", script]).args(arguments).env(INSIDE, "");
        command.output()
    };
    if !unshare("ip link set lo up", &[]).is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no network namespaces for this user here, or no ip(8): try `unshare -rn ip link`");
        return;
    }
    let this = std::env::current_exe().unwrap();
    let arguments = [this.as_os_str(), "--exact".as_ref(), test.as_ref(), "--nocapture".as_ref()];
    let output = unshare("ip link set lo up && exec \"$0\" \"$@\"", &arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs this test again there. True in there; false when that run is over, or cannot be.
pub fn in_a_network_without_routes(test: &str) -> bool {
    let inside = std::env::var_os(INSIDE).is_some();
    if !inside {
        run_without_routes(test);
    }
    inside
}
