//! Mixing specifications. A valid one is in range and displays as text that parses to the same value. An error
//! is one line that names the remedy.

#![no_main]

use dataplane::stage::pool::{Mixing, POOL_MAX};
use dataplane::{MILLI, Nanos, SECOND};
use libfuzzer_sys::fuzz_target;

fn check(t: Nanos) {
    assert!((MILLI / 10..=60 * SECOND).contains(&t), "{t} ns");
}

fuzz_target!(|spec: &str| {
    let mixing = match spec.parse::<Mixing>() {
        Ok(mixing) => mixing,
        Err(why) => {
            let text = why.to_string();
            assert!(text.contains("expected one of") && text.lines().count() == 1, "{text:?}");
            return;
        }
    };
    match mixing {
        Mixing::Threshold { n, n_min } => assert!((1..=POOL_MAX).contains(&n) && (1..=n).contains(&n_min)),
        Mixing::Timed { t } => check(t),
        Mixing::ThresholdOrTimed { n, n_min, t } => {
            assert!((1..=POOL_MAX).contains(&n) && (1..=n).contains(&n_min));
            check(t);
        }
    }
    assert_eq!(mixing.to_string().parse(), Ok(mixing), "{mixing}");
});
