//! Arguments that several commands share.

use std::net::SocketAddr;

use clap::Args;

/// A forward of a running chain, instead of a chain that the command starts.
#[derive(Args, Clone, Debug)]
pub(crate) struct TargetArgs {
    /// Send to this forward of a running entry instead of starting a chain
    #[arg(long, value_name = "ADDR", requires = "sink", help_heading = "Target")]
    pub(crate) to: Option<SocketAddr>,
    /// Receive at this address: the destination of the forward
    #[arg(long, value_name = "ADDR", requires = "to", help_heading = "Target")]
    pub(crate) sink: Option<SocketAddr>,
}

impl TargetArgs {
    /// The forward and the sink.
    pub(crate) fn running(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.to.zip(self.sink)
    }

    /// The arguments that repeat this, or `otherwise` if a chain is started.
    pub(crate) fn command(&self, otherwise: impl FnOnce() -> String) -> String {
        self.running().map_or_else(otherwise, |(to, sink)| format!("--to {to} --sink {sink}"))
    }
}

/// The form of the output.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct OutputArgs {
    /// Print every figure
    #[arg(short, long, conflicts_with = "json", help_heading = "Output")]
    pub(crate) verbose: bool,
    /// Print one JSON object on the last line
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// A number of seconds on the command line.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    in_range(text, 0.1, 86_400.0, "seconds")
}

/// A number with bounds on the command line.
pub(crate) fn in_range(text: &str, least: f64, most: f64, what: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("expected {what} from {least} to {most}")),
    }
}
