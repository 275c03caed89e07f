//! The capacity of a route from a forward to a sink, through a chain that is started or was running before.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use eddy_node::report::NodeReport;

use super::limit::{Usage, limited_by};
use super::search::Trial;
use super::{CapacityArgs, LatencyPoint, SystemUnderTest};
use crate::chain::{self, Route};
use crate::load::even::{Arrivals, Even};
use crate::load::generator::{self, Outcome, Target};
use crate::load::plan::Plan;
use crate::load::runs::results;
use crate::results::ChainFacts;

pub(super) struct ForwardPath {
    args: CapacityArgs,
    route: Route,
    interrupted: Arc<AtomicBool>,
}

impl ForwardPath {
    /// Starts a chain, unless the arguments name a running one.
    ///
    /// # Errors
    /// The chain does not start, or the sink cannot be bound.
    pub(super) fn start(args: &CapacityArgs, interrupted: Arc<AtomicBool>) -> anyhow::Result<ForwardPath> {
        let route = Route::start(&args.target, &args.chain)?;
        Ok(ForwardPath { args: args.clone(), route, interrupted })
    }

    fn drive(&self, rate: f64, time: Duration) -> anyhow::Result<Outcome> {
        let even = Even {
            flows: self.args.flows as usize,
            rate,
            arrivals: Arrivals::for_rate(rate),
            lengths: self.args.payload_len.clone(),
        };
        let target = Target { to: self.route.forward, sink: &self.route.sink, delay: self.args.chain.delay() };
        generator::run(Plan::even(&even, time, false, 1), &target, &self.interrupted, |_| {})
    }

    fn reports(&self) -> anyhow::Result<Vec<NodeReport>> {
        let own = self.route.status();
        chain::reports(if own.is_empty() { &self.args.status } else { own })
    }
}

impl SystemUnderTest for ForwardPath {
    fn warm_up(&mut self, rate: f64) -> anyhow::Result<()> {
        self.drive(rate, Duration::from_millis(200)).map(drop)
    }

    fn attempt(&mut self, rate: f64) -> anyhow::Result<Trial> {
        let before = Usage::new(self.reports()?);
        let outcome = self.drive(rate, Duration::from_secs_f64(self.args.try_seconds))?;
        let after = Usage::new(self.reports()?);
        let (sent, lost) = (outcome.sum(|stream| stream.sent), outcome.sum(|stream| stream.lost));
        let latency = outcome.streams.first().map(|stream| stream.latency.clone()).unwrap_or_default();
        let limited_by = limited_by(&before, &after, &outcome, rate, self.args.budget());
        let passed = limited_by.is_none();
        Ok(Trial { rate, passed, sent, lost, p50_us: latency.p50, p99_us: latency.p99, limited_by })
    }

    fn latency(&mut self, part: f64, rate: f64, name: &str) -> anyhow::Result<Option<LatencyPoint>> {
        let outcome = self.drive(rate, Duration::from_secs_f64(3.0 * self.args.try_seconds))?;
        let Some(stream) = outcome.streams.first() else { return Ok(None) };
        let latency = &stream.latency;
        let point = LatencyPoint {
            part,
            rate,
            lost: stream.lost,
            p50_us: latency.p50,
            p99_us: latency.p99,
            p999_us: latency.p999,
            max_us: latency.max,
        };
        if let Some(folder) = &self.args.out {
            let nodes = self.reports()?.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
            results(name, &self.args.command(), &outcome, self.facts()?, nodes).write(folder)?;
        }
        Ok(Some(point))
    }

    fn facts(&self) -> anyhow::Result<Option<ChainFacts>> {
        self.route.facts(&self.args.chain)
    }

    fn packets(&self) -> String {
        self.args.payload_len.to_string()
    }

    fn end(self: Box<Self>) -> anyhow::Result<()> {
        self.route.end().map(drop)
    }
}
