//! Whatever leads from a forward to a sink: a chain that is started, or nodes that run.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use eddy_node::report::NodeReport;

use super::limit::{Usage, limited_by};
use super::search::Try;
use super::{At, CapacityArgs, Subject};
use crate::chain::Chain;
use crate::load::command::results;
use crate::load::drive::{self, Outcome, Target};
use crate::load::plan::{Even, Plan};
use crate::load::profile::Arrivals;
use crate::results::ChainFacts;

/// The nodes, as far as they are known.
pub struct Nodes {
    args: CapacityArgs,
    chain: Option<Chain>,
    to: SocketAddr,
    sink: UdpSocket,
    status: Vec<PathBuf>,
    interrupted: Arc<AtomicBool>,
}

impl Nodes {
    /// Starts a chain, unless one was named.
    ///
    /// # Errors
    /// It does not come up, or the sink cannot be bound.
    pub fn start(args: &CapacityArgs, interrupted: Arc<AtomicBool>) -> anyhow::Result<Nodes> {
        let sink_at = args.sink.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let sink = UdpSocket::bind(sink_at).with_context(|| format!("the sink cannot listen at {sink_at}"))?;
        let chain = match args.to {
            Some(_) => None,
            None => Some(Chain::start(&args.chain, sink.local_addr()?)?),
        };
        let status = chain.as_ref().map_or_else(|| args.status.clone(), |chain| chain.status.clone());
        let to = chain.as_ref().map_or(args.to, |chain| Some(chain.forward)).context("where to")?;
        Ok(Nodes { args: args.clone(), chain, to, sink, status, interrupted })
    }

    fn drive(&self, rate: f64, time: Duration) -> anyhow::Result<Outcome> {
        // Fast programs send in bursts; a datagram at a time, the generator would be measured.
        let arrivals = Arrivals::Burst((rate / 50_000.0).max(1.0) as u32);
        let flows = self.args.flows as usize;
        let even = Even { flows, rate, arrivals, lengths: self.args.payload_len.clone() };
        let target = Target { to: self.to, sink: &self.sink, delay: self.args.chain.delay() };
        drive::run(Plan::even(&even, time, false, 1), &target, &self.interrupted, |_| {})
    }

    fn ask(&self) -> anyhow::Result<Vec<NodeReport>> {
        let ask = |path: &PathBuf| {
            eddy_node::runtime::status::ask(path)
                .with_context(|| format!("no node answers at the status socket {}", path.display()))
        };
        self.status.iter().map(ask).collect()
    }
}

impl Subject for Nodes {
    fn warm_up(&mut self, rate: f64) -> anyhow::Result<()> {
        self.drive(rate, Duration::from_millis(200)).map(drop)
    }

    fn attempt(&mut self, rate: f64) -> anyhow::Result<Try> {
        let before = Usage::new(self.ask()?);
        let outcome = self.drive(rate, Duration::from_secs_f64(self.args.try_seconds))?;
        let after = Usage::new(self.ask()?);
        let (sent, lost) = (outcome.sum(|stream| stream.sent), outcome.sum(|stream| stream.lost));
        let latency = outcome.streams.first().map(|stream| stream.latency.clone()).unwrap_or_default();
        let limited_by = limited_by(&before, &after, &outcome, rate, self.args.budget());
        let passed = limited_by.is_none();
        Ok(Try { rate, passed, sent, lost, p50_us: latency.p50, p99_us: latency.p99, limited_by })
    }

    fn latency(&mut self, part: f64, rate: f64, name: &str) -> anyhow::Result<Option<At>> {
        let outcome = self.drive(rate, Duration::from_secs_f64(3.0 * self.args.try_seconds))?;
        let Some(stream) = outcome.streams.first() else { return Ok(None) };
        let latency = &stream.latency;
        let at = At {
            part,
            rate,
            lost: stream.lost,
            p50_us: latency.p50,
            p99_us: latency.p99,
            p999_us: latency.p999,
            max_us: latency.max,
        };
        if let Some(folder) = &self.args.out {
            let nodes = self.ask()?.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
            results(name, &self.args.command(), &outcome, self.facts()?, nodes).write(folder)?;
        }
        Ok(Some(at))
    }

    fn facts(&self) -> anyhow::Result<Option<ChainFacts>> {
        let Some(chain) = &self.chain else { return Ok(None) };
        Ok(Some(self.args.chain.facts(chain.ask()?.get(1))))
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
