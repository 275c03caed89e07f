//! Whatever leads from a forward to a sink: a chain that is started, or one that is running.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use eddy_node::report::NodeReport;

use super::limit::{Usage, limited_by};
use super::search::Trial;
use super::{CapacityArgs, LatencyPoint, SystemUnderTest};
use crate::chain::{self, Chain};
use crate::load::even::{Arrivals, Even};
use crate::load::generator::{self, Outcome, Target};
use crate::load::plan::Plan;
use crate::load::runs::results;
use crate::results::ChainFacts;

pub(super) struct ForwardPath {
    args: CapacityArgs,
    /// `None` if it was running before.
    chain: Option<Chain>,
    to: SocketAddr,
    sink: UdpSocket,
    status: Vec<PathBuf>,
    interrupted: Arc<AtomicBool>,
}

impl ForwardPath {
    /// Starts a chain, unless the arguments name a running one.
    ///
    /// # Errors
    /// The chain does not start, or the sink cannot be bound.
    pub(super) fn start(args: &CapacityArgs, interrupted: Arc<AtomicBool>) -> anyhow::Result<ForwardPath> {
        if let Some((to, sink)) = args.target.running() {
            let sink = UdpSocket::bind(sink).with_context(|| format!("cannot listen at the sink {sink}"))?;
            let status = args.status.clone();
            return Ok(ForwardPath { args: args.clone(), chain: None, to, sink, status, interrupted });
        }
        let sink = UdpSocket::bind("127.0.0.1:0")?;
        let chain = Chain::start(&args.chain, sink.local_addr()?)?;
        let (to, status) = (chain.forward, chain.status.clone());
        Ok(ForwardPath { args: args.clone(), chain: Some(chain), to, sink, status, interrupted })
    }

    fn drive(&self, rate: f64, time: Duration) -> anyhow::Result<Outcome> {
        let even = Even {
            flows: self.args.flows as usize,
            rate,
            arrivals: Arrivals::for_rate(rate),
            lengths: self.args.payload_len.clone(),
        };
        let target = Target { to: self.to, sink: &self.sink, delay: self.args.chain.delay() };
        generator::run(Plan::even(&even, time, false, 1), &target, &self.interrupted, |_| {})
    }

    fn reports(&self) -> anyhow::Result<Vec<NodeReport>> {
        chain::reports(&self.status)
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
        let Some(chain) = &self.chain else { return Ok(None) };
        Ok(Some(self.args.chain.facts(chain.reports()?.get(1))))
    }

    fn packets(&self) -> String {
        self.args.payload_len.to_string()
    }

    fn end(mut self: Box<Self>) -> anyhow::Result<()> {
        if let Some(chain) = &mut self.chain {
            let (nodes, closed) = chain.end()?;
            anyhow::ensure!(closed, "a ledger of the chain does not close: {}", serde_json::json!(nodes));
        }
        Ok(())
    }
}
