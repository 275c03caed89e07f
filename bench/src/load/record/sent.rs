//! What was sent in one direction.

use super::super::source::SECOND;

#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    /// Datagrams of each flow.
    pub(crate) numbers: Vec<u32>,
    /// Datagrams due in each second.
    pub(crate) seconds: Vec<u64>,
    /// Datagrams of each stream that the kernel refused.
    pub(crate) refused: Vec<u64>,
}

impl Sent {
    pub(crate) fn new(flows: usize, streams: usize) -> Sent {
        Sent { numbers: vec![0; flows], seconds: Vec::new(), refused: vec![0; streams] }
    }

    /// Counts one more of `flow`, and returns its number.
    pub(crate) fn count(&mut self, flow: usize, at_ns: u64) -> u32 {
        let second = (at_ns / SECOND) as usize;
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, 0);
        }
        self.seconds[second] += 1;
        self.numbers[flow] += 1;
        self.numbers[flow] - 1
    }

    /// Takes back the last one of `flow`: the kernel refused it.
    pub(crate) fn refuse(&mut self, flow: usize, stream: usize, at_ns: u64) {
        self.seconds[(at_ns / SECOND) as usize] -= 1;
        self.numbers[flow] -= 1;
        self.refused[stream] += 1;
    }
}
