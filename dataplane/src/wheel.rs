//! A timer wheel of one-second steps for tables whose entries expire.
//!
//! Entries are re-armed lazily: on expiry the owner looks at its own record and either ends it or
//! arms it again. A key has one timer at most, so an entry that comes and goes leaves no more behind
//! than that one, which its successor of the same key inherits.

/// Steps of the wheel. The longest delay in seconds is one less.
const STEPS: usize = 4096;

/// The keys that are due, by second.
pub(crate) struct Wheel {
    steps: Vec<Vec<u32>>,
    /// Per key, whether it has a timer.
    armed: Vec<bool>,
    now_s: u64,
}

impl Wheel {
    /// An empty wheel at second `now_s`.
    pub(crate) fn new(now_s: u64) -> Wheel {
        Wheel { steps: vec![Vec::new(); STEPS], armed: Vec::new(), now_s }
    }

    /// Makes `key` due at second `at_s`, at the earliest in the next second and at the latest after
    /// 4095, unless it is to become due anyway.
    pub(crate) fn arm(&mut self, key: u32, at_s: u64) {
        let at = key as usize;
        if self.armed.len() <= at {
            self.armed.resize(at + 1, false);
        }
        if !std::mem::replace(&mut self.armed[at], true) {
            let at_s = at_s.clamp(self.now_s + 1, self.now_s + STEPS as u64 - 1);
            self.steps[at_s as usize % STEPS].push(key);
        }
    }

    /// Moves to second `now_s` and appends every key that became due to `due`.
    pub(crate) fn advance(&mut self, now_s: u64, due: &mut Vec<u32>) {
        let before = due.len();
        if now_s.saturating_sub(self.now_s) >= STEPS as u64 {
            self.now_s = now_s;
            due.extend(self.steps.iter_mut().flat_map(std::mem::take));
        }
        while self.now_s < now_s {
            self.now_s += 1;
            // Its memory goes too: 4096 seconds, each as large as its busiest time, would be kept else.
            due.extend(std::mem::take(&mut self.steps[self.now_s as usize % STEPS]));
        }
        for key in &due[before..] {
            self.armed[*key as usize] = false;
        }
    }

    #[cfg(test)]
    pub(crate) fn timers(&self) -> usize {
        self.steps.iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_second_that_is_past_keeps_no_memory() {
        let mut wheel = Wheel::new(0);
        let kept = |wheel: &Wheel| wheel.steps.iter().map(Vec::capacity).sum::<usize>();
        let mut due = Vec::new();
        // Flows that live for ten seconds, 300 new ones a second, and then a step over the whole wheel.
        for now_s in 1..=STEPS as u64 {
            (0..300).for_each(|key| wheel.arm((now_s % 11) as u32 * 300 + key, now_s + 10));
            wheel.advance(now_s, &mut due);
            due.clear();
            assert!(kept(&wheel) <= 2 * wheel.timers(), "second {now_s}: {} for {}", kept(&wheel), wheel.timers());
        }
        wheel.advance(3 * STEPS as u64, &mut due);
        assert_eq!((due.len(), kept(&wheel)), (3000, 0));
    }

    proptest! {
        #[test]
        fn a_wheel_agrees_with_a_map(
            start in prop_oneof![Just(0u64), 0u64..10_000],
            steps in prop::collection::vec(
                (
                    0u32..20,
                    prop_oneof![0u64..5000, 4090u64..4100, Just(1 << 40)],
                    prop_oneof![8 => 0u64..200, 1 => 4090u64..4100, 1 => 4100u64..20_000],
                    any::<bool>(),
                ),
                1..200,
            ),
        ) {
            let mut wheel = Wheel::new(start);
            // When each key is due.
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = start;
            for (key, delay, step, arm) in steps {
                if arm {
                    wheel.arm(key, now + delay);
                    model.entry(key).or_insert(now + delay.clamp(1, 4095));
                } else {
                    now += step;
                    let mut due = vec![u32::MAX];
                    wheel.advance(now, &mut due);
                    prop_assert_eq!(due.remove(0), u32::MAX, "what was there stays");
                    due.sort_unstable();
                    let want: Vec<u32> = model.extract_if(.., |_, at| *at <= now).map(|(key, _)| key).collect();
                    prop_assert_eq!(due, want);
                }
                prop_assert_eq!(wheel.timers(), model.len());
            }
        }
    }
}
