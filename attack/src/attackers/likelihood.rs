//! Log-likelihood under the delay that a probe measures.

use crate::{
    attacker::{Attacker, Scores},
    directions::{self, Way},
    intensity::log_likelihoods,
    record::Record,
};

/// Asks how likely each output is, given the inputs and the density of delays, at a resolution of 0.2 ms.
///
/// Clocks that drift do no harm and help: every packet is compared at the time that it has. Lost and stray packets cost
/// a bounded amount each.
pub(crate) struct Likelihood {
    pub way: Way,
    /// Ask as well how likely each input is, given the outputs. It finds flows that lack packets, but is misled by
    /// cover cells, to which no datagram belongs.
    pub two_sided: bool,
}

impl Attacker for Likelihood {
    fn name(&self) -> String {
        let sides = if self.two_sided { "-two-sided" } else { "" };
        format!("likelihood{sides}{}", self.way.suffix())
    }

    fn source(&self) -> &'static str {
        "G. Danezis, The Traffic Analysis of Continuous-Time Mixes, PET 2004; \
         L. Oldenburg et al., MixMatch: Flow Matching for Mixnet Traffic, PoPETs 2024"
    }

    fn scores(&self, record: &Record) -> Scores {
        directions::scores(record, self.way, |direction| {
            let (inputs, outputs, delay) = (&direction.inputs, &direction.outputs, &direction.delay);
            let scores = log_likelihoods(inputs, outputs, delay, direction.length);
            if self.two_sided {
                scores.plus(&log_likelihoods(outputs, inputs, &delay.reversed(), direction.length).transposed())
            } else {
                scores
            }
        })
    }
}
