//! Ctrl-C: the first ends the measurement and prints what it has; the second ends the program.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};

/// A flag that SIGINT and SIGTERM set.
///
/// # Errors
/// The signal handlers cannot be installed.
pub(crate) fn interrupted() -> anyhow::Result<Arc<AtomicBool>> {
    let raised = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, raised.clone()).context("signals")?;
        signal_hook::flag::register(signal, raised.clone()).context("signals")?;
    }
    Ok(raised)
}
