//! A timer wheel of one-second slots for tables whose entries expire.
//!
//! Entries are re-armed lazily: on expiry the owner looks at its own record and either ends it or
//! arms it again. Arming twice is harmless for the same reason.

/// Slots; the longest delay in seconds is one less.
const SLOTS: usize = 4096;

/// Which keys are due in which second.
pub struct Wheel {
    slots: Vec<Vec<u32>>,
    now_s: u64,
}

impl Wheel {
    /// An empty wheel at second `now_s`.
    pub fn new(now_s: u64) -> Wheel {
        Wheel { slots: vec![Vec::new(); SLOTS], now_s }
    }

    /// Makes `key` due at second `at_s`, at the earliest in the next second and at the latest after
    /// 4095.
    pub fn arm(&mut self, key: u32, at_s: u64) {
        let at_s = at_s.clamp(self.now_s + 1, self.now_s + SLOTS as u64 - 1);
        self.slots[at_s as usize % SLOTS].push(key);
    }

    /// Moves to second `now_s` and appends every key that became due to `due`.
    pub fn advance(&mut self, now_s: u64, due: &mut Vec<u32>) {
        if now_s.saturating_sub(self.now_s) >= SLOTS as u64 {
            self.now_s = now_s;
            due.extend(self.slots.iter_mut().flat_map(|slot| slot.drain(..)));
            return;
        }
        while self.now_s < now_s {
            self.now_s += 1;
            due.append(&mut self.slots[self.now_s as usize % SLOTS]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_wheel_agrees_with_a_sorted_list(
            steps in prop::collection::vec((0u64..5000, 0u64..200, any::<bool>()), 1..200),
        ) {
            let mut wheel = Wheel::new(10);
            let mut model: Vec<(u64, u32)> = Vec::new();
            let mut now = 10;
            for (key, (delay, step, arm)) in steps.into_iter().enumerate() {
                if arm {
                    wheel.arm(key as u32, now + delay);
                    model.push((now + delay.clamp(1, 4095), key as u32));
                } else {
                    now += if step == 199 { 5000 } else { step };
                    let mut due = Vec::new();
                    wheel.advance(now, &mut due);
                    due.sort_unstable();
                    let mut want: Vec<u32> = model.extract_if(.., |(at, _)| *at <= now).map(|(_, key)| key).collect();
                    want.sort_unstable();
                    prop_assert_eq!(due, want);
                }
            }
        }
    }
}
