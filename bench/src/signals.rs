//! Ctrl-C: the first ends what is under way, and tells what there is; the second ends the program.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};

/// Raised by SIGINT or SIGTERM.
///
/// # Errors
/// The system refuses.
pub fn interrupted() -> anyhow::Result<Arc<AtomicBool>> {
    let raised = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, raised.clone()).context("signals")?;
        signal_hook::flag::register(signal, raised.clone()).context("signals")?;
    }
    Ok(raised)
}
