//! How many chains run at the same time, so that the suite needs no more memory and time on a machine with many cores
//! than on a small one: `cargo test` runs a test per core.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, PoisonError};

/// Chains at the same time. A chain of five processes has up to 150 MiB.
const CHAINS_MAX: usize = 4;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

thread_local! {
    /// Chains of this thread: further ones of a test that has one do not wait, or two such tests would wait for each
    /// other.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

/// Permission to run a chain, until dropped in the same thread.
pub struct Permit(());

impl Permit {
    /// Waits until fewer than [`CHAINS_MAX`] threads run chains.
    pub fn wait() -> Permit {
        if OWN.replace(OWN.get() + 1) == 0 {
            let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
            let full = |running: &mut usize| *running == CHAINS_MAX;
            *ENDED.wait_while(running, full).unwrap_or_else(PoisonError::into_inner) += 1;
        }
        Permit(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        OWN.set(OWN.get() - 1);
        if OWN.get() == 0 {
            *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            ENDED.notify_one();
        }
    }
}
